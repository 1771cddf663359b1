"""Reading CIFs: symmetry, species, sources, broken syntax, disorder, limits and refusals."""

import gzip
import re

import numpy as np
import pytest
from cif_texts import FRACT, MIXED, WITH_OCCUPANCY, cif

from sitenet import CifError, CifWarning, Limits, read_cif, read_cifs, read_each


def refusal(text, **options):
    with pytest.raises(CifError) as caught:
        read_cif(text, **options)
    return caught.value


# ---------------------------------------------------------------------------------------------
# Reading


def test_symmetry_is_expanded_and_special_positions_are_merged():
    crystal = read_cif(cif())
    assert crystal.numbers.tolist() == [11] * 4 + [17] * 4
    assert sorted(crystal.frac[:4].tolist()) == [
        [0, 0, 0],
        [0, 0.5, 0.5],
        [0.5, 0, 0.5],
        [0.5] * 2 + [0],
    ]
    assert crystal.name == "NaCl"
    assert crystal.oxidation is None and crystal.occupancy is None


@pytest.mark.parametrize(
    ("symmetry", "cell", "count"),
    [
        ("_space_group_name_Hall '-F 4 2 3'", (5, 5, 5, 90, 90, 90), 4),
        ("_space_group_IT_number 225", (5, 5, 5, 90, 90, 90), 4),
        ("_symmetry_space_group_name_H-M 'R -3 m :H'", (4, 4, 20, 90, 90, 120), 3),
        ("_symmetry_space_group_name_H-M 'R -3 m'", (4, 4, 20, 90, 90, 120), 3),
        ("_symmetry_space_group_name_H-M 'R -3 m'", (7, 7, 7, 50, 50, 50), 1),
        ("_space_group_name_H-M_alt 'P 21 /c'", (5, 6, 7, 90, 100, 90), 2),
        ("_symmetry_space_group_name_H-M 'P 1 1 21/b'", (5, 6, 7, 90, 90, 100), 2),
        ("_symmetry_space_group_name_H-M 'F d -3 m :1'", (5, 5, 5, 90, 90, 90), 8),
        ("_symmetry_space_group_name_H-M 'F d -3 m :2'", (5, 5, 5, 90, 90, 90), 16),
        ("loop_\n_space_group_symop.operation_xyz\nx,y,z\n-x,-y,-z", (5, 6, 7, 80, 95, 100), 1),
        (
            "loop_\n_symmetry_equiv_pos_as_xyz\n'X, Y, Z'\n'1/2+x, y+.5, Z'",
            (5, 6, 7, 90, 90, 90),
            2,
        ),
        ("_symmetry_equiv_pos_as_xyz x,y,z", (5, 6, 7, 80, 95, 100), 1),
        ("", (5, 6, 7, 80, 95, 100), 1),
    ],
)
def test_settings(symmetry, cell, count):
    assert len(read_cif(cif("Si 0 0 0", cell, symmetry, tags=("label", *FRACT)))) == count


def test_operations_that_are_no_group_give_way_to_the_space_group_name():
    broken = "loop_\n_symmetry_equiv_pos_as_xyz\nx,y,z\n-x,1/2+y,1/2-z\n-x,-y,-z\nx,1/2-y,1/2+x"
    name = "_symmetry_space_group_name_H-M 'P 21/c'"
    options = {"cell": (5, 6, 7, 90, 100, 90), "sites": "Si 0.1 0.2 0.3", "tags": ("label", *FRACT)}
    assert len(read_cif(cif(symmetry=f"{name}\n{broken}", **options))) == 4
    assert "not a group" in refusal(cif(symmetry=broken, **options)).reason
    wrong = "loop_\n_symmetry_equiv_pos_as_xyz\nx,y,z\n-x,y,nonsense"
    assert "'-x,y,nonsense'" in refusal(cif(symmetry=wrong, **options)).reason


def test_coordinates_of_few_digits_move_onto_their_special_position():
    text = cif(
        "Zn 0.333 0.667 0\nS 0.3333 0.6667 0.375",
        (3.82, 3.82, 6.26, 90, 90, 120),
        "_symmetry_space_group_name_H-M 'P 63 m c'",
        tags=("label", *FRACT),
    )
    crystal = read_cif(text)
    assert crystal.numbers.tolist() == [30, 30, 16, 16]
    np.testing.assert_allclose(crystal.frac[:2, :2], [[1 / 3, 2 / 3], [2 / 3, 1 / 3]], atol=1e-12)


def test_numbers_with_uncertainties():
    text = cif(
        "Na1 Na 0 0 0\nCl1 Cl 0.50(1) .5000(12) 0.5(2)", ("5.640(5)",) * 3 + ("90.0(1)",) * 3
    )
    crystal = read_cif(text)
    assert len(crystal) == 8 and crystal.cell[2, 2] == 5.64


@pytest.mark.parametrize(
    ("symbols", "charges"),
    [
        (("Na+", "Cl-"), (1, -1)),
        (("Na1+", "O2-"), (1, -2)),
        (("Fe3+", "O-2"), (3, -2)),
        (("Fe+3", "O2-"), (3, -2)),
        (("Cu1.5+", "N3-"), (1.5, -3)),
        (("Na", "Cl-"), (0, -1)),
    ],
)
def test_oxidation_states_in_type_symbols(symbols, charges):
    sites = "\n".join(f"a{k} {s} {k / 2} {k / 2} {k / 2}" for k, s in enumerate(symbols))
    crystal = read_cif(cif(sites))
    assert crystal.oxidation[[0, -1]].tolist() == list(charges)


def test_listed_oxidation_states():
    listed = "loop_\n_atom_type_symbol\n_atom_type_oxidation_number\nNa0+ 1\nCl? -1\nFe ?"
    crystal = read_cif(cif("Na1 Na0+ 0 0 0\nCl1 Cl? 0.5 0.5 0.5", more=listed))
    assert crystal.oxidation[[0, -1]].tolist() == [1, -1]


@pytest.mark.parametrize(
    ("label", "symbol", "number"),
    [
        ("D1", "D", 1),
        ("T1", "T", 1),
        ("Cl1", "CL", 17),
        ("O1W", None, 8),
        ("OW1", None, 8),
        ("Wat1", None, 8),
        ("SiT2*", None, 14),
        ("MgIII", None, 12),
        ("Ca1", "?", 20),
        ("2H", None, 1),
        ("C1-2", None, 6),
        ("Cs1", "'Cs'", 55),
    ],
)
def test_elements(label, symbol, number):
    tags = ("label", *FRACT) if symbol is None else ("label", "type_symbol", *FRACT)
    site = f"{label} 0 0 0" if symbol is None else f"{label} {symbol} 0 0 0"
    crystal = read_cif(cif(site, tags=tags))
    assert set(crystal.numbers) == {number} and crystal.oxidation is None


@pytest.mark.parametrize(
    ("formula", "label", "number"),
    [("C2 H6 O1", "HO1", 1), ("Ho2 O3", "HO1", 67), ("C6 O1", "CO1", 6), ("Co1 S1", "CO1", 27)],
)
def test_the_formula_tells_labels_apart(formula, label, number):
    text = cif(f"{label} 0 0 0", tags=("label", *FRACT), more=f"_chemical_formula_sum '{formula}'")
    with pytest.warns(CifWarning, match="no multiple of _chemical_formula_sum"):
        crystal = read_cif(text)
    assert set(crystal.numbers) == {number}


def test_magnetic_operations():
    symmetry = (
        "loop_\n_space_group_symop_magn_operation.xyz\nx,y,z,+1\n-x,-y,-z,+1\n"
        "loop_\n_space_group_symop_magn_centering.xyz\nx,y,z,+1\nx+1/2,y+1/2,z+1/2,-1"
    )
    crystal = read_cif(cif("Fe1 Fe 0.1 0.2 0.3", (5, 6, 7, 90, 90, 90), symmetry))
    expected = [[0.1, 0.2, 0.3], [0.9, 0.8, 0.7], [0.6, 0.7, 0.8], [0.4, 0.3, 0.2]]
    np.testing.assert_allclose(sorted(crystal.frac.tolist()), sorted(expected), atol=1e-12)


def test_sources(tmp_path):
    text = cif()
    expected = read_cif(text).frac
    for name, data in {
        "plain.cif": text.encode(),
        "crlf.cif": text.replace("\n", "\r\n").encode(),
        "cr.cif": text.replace("\n", "\r").encode(),
        "bom.cif": text.encode("utf-8-sig"),
        "utf16.cif": text.encode("utf-16"),
        "latin.cif": text.replace("data_", "# \xe9 \x96\ndata_").encode("latin-1"),
        "packed.cif.gz": gzip.compress(text.encode()),
        "parts.cif.gz": b"".join(gzip.compress(line.encode()) for line in text.splitlines(True)),
    }.items():
        path = tmp_path / name
        path.write_bytes(data)
        for source in (path, str(path), data):
            assert np.array_equal(read_cif(source).frac, expected), name
    with pytest.raises(FileNotFoundError):
        read_cif(tmp_path / "absent.cif")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.split("\n", 1)[1],  # no data_
        lambda text: text.replace("_cell_length_a", "_title 'never closed\n_cell_length_a"),
        lambda text: text.replace("_cell_length_a", "_title 'un\nclosed\n'\n_cell_length_a"),
        lambda text: text + "\nloop_\n_geom_a\n_geom_b\n1 2 3\n",
        lambda text: text + "\nloop_\n_geom_a\n",
        lambda text: text.replace("\n", "\x0b\n"),
        lambda text: text.replace("data_", "global_\n_a b\ndata_"),
        lambda text: text + "\n_cell_length_a 5.64\n",
        lambda text: text + "\n_x $frame\n",
        lambda text: text + "_x\n;text\n;value\n_eof\n",
    ],
)
def test_broken_syntax_is_read_as_far_as_it_is_clear(damage):
    assert len(read_cif(damage(cif()))) == 8


def test_several_blocks():
    empty = "data_global\n_publ 'x'\n"
    text = empty + cif(name="first") + empty + cif("Si1 Si 0 0 0", name="second")
    with pytest.warns(CifWarning, match=r"data_first: the file holds 1 more structure \(second\)"):
        crystal = read_cif(text)
    assert crystal.name == "first" and "1 more structure" in crystal.warnings[0]
    assert "1 more structure" in refusal(text, strict=True).reason
    assert [(c.name, len(c)) for c in read_cifs(text, strict=True)] == [("first", 8), ("second", 4)]
    error = refusal(text.replace("0.5 0.5 0.5", "? ? ?"))
    assert error.block == "first" and "'?'" in error.reason


def test_one_bad_block_does_not_lose_the_others():
    bad = cif("X1 X 0 0 0", name="bad")
    odd = cif(name="odd", more="_cell_formula_units_Z 7\n_chemical_formula_sum NaCl")
    first, second, third = read_each(bad + cif(name="good") + odd)
    assert (first[0], second[0], third[0]) == ("bad", "good", "odd")
    assert isinstance(first[1], CifError) and first[1].block == "bad"
    assert second[1].name == "good" and second[1].warnings == ()
    assert "Z 7" in third[1].warnings[0]  # kept, not issued
    with pytest.raises(CifError, match="no data block"):
        list(read_each("# nothing\n"))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cell": (None,) * 6}, r"no cell \(_cell_length_a is missing\)"),
        ({"cell": (5, 5, 5, 90, 90, None), "symmetry": ""}, r"no cell \(_cell_angle_gamma is m"),
        ({"cell": (5, 5, 5, 60, 60, 150), "symmetry": ""}, "impossible cell"),
        ({"cell": (0, 5, 5, 90, 90, 90)}, "impossible cell"),
        ({"cell": (5, -5, 5, 90, 90, 90)}, "impossible cell"),
        ({"cell": (5, 5, 5, 90, 90, 200)}, "impossible cell"),
        ({"cell": ("nan", 5, 5, 90, 90, 90)}, "impossible cell"),
        ({"cell": (5, 5, 9, 90, 90, 90)}, "does not have its symmetry"),
        ({"cell": (5, 5, 1e5, 90, 90, 90)}, "longer than 2000 A"),
        ({"cell": (1, 1, 1, 90, 90, 90)}, "two atoms in one place|cubic angstrom an atom"),
        ({"sites": ""}, "no sites"),
        ({"tags": ("label", "type_symbol", "Cartn_x", "Cartn_y", "Cartn_z")}, "Cartesian"),
        ({"tags": ("x", "y", *FRACT)}, "neither _atom_site_type_symbol nor _atom_site_label"),
        ({"sites": "X1 X 0 0 0"}, r"unknown element 'X' \(site X1\)"),
        ({"sites": "Na1 Na ? 0 0\nCl1 Cl 0 0 0"}, r"coordinates of Na1 are unknown: '\?'"),
        ({"sites": "Na1 Na 0 0,25 0"}, r"coordinates of Na1 are unknown: '0,25' \(a decimal comma"),
        ({"cell": ("5,64(2)", 5, 5, 90, 90, 90)}, r"_cell_length_a is '5,64\(2\)' \(a decimal"),
        ({"cell": (5, 5, 5, 90, "ninety", 90)}, "_cell_angle_beta is 'ninety'"),
        ({"tags": ("label", "type_symbol", "fract_x", "fract_z", "charge")}, "fract_y is missing"),
        ({"more": "loop_\n_atom_site_fract_y\n0 .1 .2"}, "_atom_site_fract_y is given twice"),
        ({"more": "loop_\n_atom_site_occupancy\n1"}, "_atom_site_occupancy has 1 values"),
        ({"more": "loop_\n_atom_site_label\nK1\nF1"}, "_atom_site_label is given twice"),
        ({"sites": "Na1 Na 1e9 0 0"}, "coordinates of Na1 are unknown: '1e9'"),
        ({"sites": "Na1 Na 0 0 0\nCl1 Cl 0 0 0"}, r"two atoms in one place \(Na1 and Cl1"),
        ({"sites": "Na1 Na 0 0 0\nNa2 Na 0 0 0.01"}, r"two atoms in one place \(Na1 and Na2"),
        ({"sites": "Na1 Na 0 0"}, "no whole number of lines"),
        ({"symmetry": "_symmetry_space_group_name_H-M 'P nonsense'"}, "unknown space group"),
    ],
)
def test_refusals_name_the_reason(changes, reason, tmp_path):
    path = tmp_path / "bad.cif"
    path.write_text(cif(**changes))
    error = refusal(path)
    assert (error.file, error.block) == (str(path), "NaCl")
    assert str(error).startswith(f"{path}, data_NaCl: ")
    assert re.search(reason, error.reason), error.reason


def test_no_structure_at_all():
    assert refusal("data_a\n_b c\n").reason.startswith("no cell")
    assert "no data block" in refusal("# nothing\n").reason
    assert "no data block" in refusal(b"").reason


def test_angles_that_symmetry_fixes_may_be_missing():
    assert read_cif(cif(cell=(5.64, 5.64, 5.64))).volume == pytest.approx(5.64**3)


def test_sites_that_are_images_of_others_go():
    """Files that list a molecule complete, or the corners of a cell."""
    twice = "C1 C 0.1 0.2 0.3\nC2 C 0.9 0.8 0.7\nO1 O 0 0 0\nO2 O 1 1 1"
    symmetry = "_symmetry_space_group_name_H-M 'P -1'"
    crystal = read_cif(cif(twice, (5, 6, 7, 90, 90, 90), symmetry))
    assert crystal.numbers.tolist() == [6, 6, 8]


def test_dummies_and_empty_sites_are_left_out():
    tags = ("label", "type_symbol", *FRACT, "occupancy", "calc_flag")
    sites = "Na1 Na 0 0 0 1.0 d\nX1 X -1 -1 -1 2.0 dum\nC1 C 0.2 0.2 0.2 0 d\nCl1 Cl .5 .5 .5 ? d"
    assert read_cif(cif(sites, tags=tags)).formula == "Na4Cl4"


# ---------------------------------------------------------------------------------------------
# Disorder


def test_partial_occupancy_is_refused_with_the_way_out():
    error = refusal(cif(MIXED, tags=WITH_OCCUPANCY))
    assert "partial occupancy (Na1: 0.75)" in error.reason
    assert 'disorder="average"' in error.reason
    with pytest.raises(ValueError, match="disorder must be 'error' or 'average', got 'order'"):
        read_cif(cif(), disorder="order")


def test_disorder_is_kept():
    crystal = read_cif(cif(MIXED, tags=WITH_OCCUPANCY), disorder="average")
    assert crystal.numbers.tolist() == [11] * 4 + [19] * 4 + [17] * 4
    assert crystal.occupancy.tolist() == [0.75] * 4 + [0.25] * 4 + [0.9] * 4
    assert crystal.oxidation.tolist() == [1] * 8 + [-1] * 4
    assert np.array_equal(crystal.frac[:4], crystal.frac[4:8])
    assert crystal.formula == "KNa3Cl3.6"
    ordered = read_cif(
        cif(
            MIXED.replace("0.75", "1").replace("K1 K+ 0 0 0 0.25\n", "").replace("0.9", "1"),
            tags=WITH_OCCUPANCY,
        ),
        disorder="average",
    )
    assert ordered.occupancy is None and len(ordered) == 8


def test_mixed_type_symbols():
    text = cif("M1 '0.75Si + 0.25Al' 0 0 0\nO1 O2- 0.5 0.5 0.5")
    assert "partial occupancy (M1: 0.75)" in refusal(text).reason
    crystal = read_cif(text, disorder="average")
    assert crystal.formula == "Al1Si3O4".replace("Al1", "Al")
    assert crystal.oxidation.tolist() == [0] * 8 + [-2] * 4


def test_a_place_holds_one_atom_at_most():
    text = cif(MIXED.replace("0.25", "0.5"), tags=WITH_OCCUPANCY)
    assert "two atoms in one place (Na1 and K1" in refusal(text, disorder="average").reason
    rounded = read_cif(cif(MIXED.replace("0.25", "0.26"), tags=WITH_OCCUPANCY), disorder="average")
    assert rounded.occupancy[[0, 4]].sum() == pytest.approx(1)


def test_split_sites_stay_apart():
    """Two half atoms either side of a mirror are two; rounding makes no split site."""
    symmetry = "loop_\n_symmetry_equiv_pos_as_xyz\nx,y,z\n-x,y,z"
    cell = (8, 6, 7, 90, 90, 90)
    split = cif("H1 H 0.03 0.5 0.5 0.5", cell, symmetry, tags=WITH_OCCUPANCY)
    assert len(read_cif(split, disorder="average")) == 2
    on_it = split.replace("0.03", "0.0004")
    assert read_cif(on_it, disorder="average").frac.tolist() == [[0, 0.5, 0.5]]


# ---------------------------------------------------------------------------------------------
# Limits


def test_limits_can_be_set(tmp_path):
    text = cif()
    assert "more than 7 sites" in refusal(text, limits=Limits(sites=7)).reason
    assert "longer than 5 A" in refusal(text, limits=Limits(edge=5)).reason
    assert "30 cubic angstrom an atom" in refusal(text, limits=Limits(site_volume=30)).reason
    path = tmp_path / "large.cif"
    path.write_text(text)
    assert "larger than 100 bytes" in refusal(path, limits=Limits(file_bytes=100)).reason


def test_bombs_are_refused(tmp_path):
    bomb = gzip.compress(b"data_a\n" + b" " * 30_000_000)
    assert len(bomb) < 100_000
    path = tmp_path / "bomb.cif.gz"
    path.write_bytes(bomb)
    assert "unpacks to more than" in refusal(path, limits=Limits(file_bytes=1_000_000)).reason
    path.write_bytes(bomb[:1000])
    assert "gzip" in refusal(path).reason
    path.write_bytes(b"\x1f\x8bnonsense")
    assert "gzip" in refusal(path).reason
    path.write_bytes(gzip.compress(b"data_a\n") + b"rest")
    assert "gzip" in refusal(path).reason
    path.write_bytes(gzip.compress(b" " * 40_000) * 30)
    assert "unpacks to more than" in refusal(path, limits=Limits(file_bytes=1_000_000)).reason
    path.write_bytes(gzip.compress(b"") * 100_000)
    assert "more than 1000 members" in refusal(path).reason


def test_very_many_sites_are_refused_at_once():
    many = "\n".join(f"C{k} C {k % 97 / 97} {k % 89 / 89} 0" for k in range(60_000))
    assert "60000 lines, more than 50000" in refusal(cif(many)).reason
    some = "\n".join(many.split("\n")[:5000])
    assert "sites" in refusal(cif(some, (900, 900, 900, 90, 90, 90))).reason
    operations = "\n".join(f"x,y,z+{k}/1000" for k in range(30_000))
    symmetry = f"loop_\n_symmetry_equiv_pos_as_xyz\n{operations}"
    assert "symmetry operations" in refusal(cif(symmetry=symmetry)).reason
