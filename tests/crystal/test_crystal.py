"""Crystals: construction, reading CIF, primitive cells, and exchange with pymatgen and ASE."""

import gzip
import pickle
import re
import time
import warnings

import numpy as np
import pytest
from cases import matbench_texts
from conftest import ROOT

import sitenet
from sitenet import CifError, Crystal, Limits, read_cif, read_cifs

EXAMPLES = ROOT / "examples" / "semiconductors"


def cif(
    sites="Na1 Na 0 0 0\nCl1 Cl 0.5 0.5 0.5",
    cell=(5.64, 5.64, 5.64, 90, 90, 90),
    symmetry="_symmetry_space_group_name_H-M 'F m -3 m'",
    tags=("label", "type_symbol", "fract_x", "fract_y", "fract_z"),
    name="NaCl",
    more="",
):
    """A small CIF, rock salt unless said otherwise."""
    names = ("length_a", "length_b", "length_c", "angle_alpha", "angle_beta", "angle_gamma")
    lines = [f"data_{name}", symmetry, more]
    lines += [f"_cell_{n} {x}" for n, x in zip(names, cell, strict=False) if x is not None]
    lines += ["loop_", *(f"_atom_site_{tag}" for tag in tags), sites, ""]
    return "\n".join(lines)


def refusal(text, **options):
    with pytest.raises(CifError) as caught:
        read_cif(text, **options)
    return caught.value


# ---------------------------------------------------------------------------------------------
# Crystal


def test_a_crystal_holds_arrays():
    crystal = Crystal(np.eye(3, dtype=np.float32) * 4, [[0, 0, 0], [0.5, 0.5, 1.5]], [55, 17])
    assert crystal.cell.dtype == crystal.frac.dtype == np.float64
    assert crystal.numbers.dtype == np.int64
    assert len(crystal) == 2
    assert crystal.volume == pytest.approx(64)
    assert crystal.frac[1, 2] == 1.5  # as given
    assert repr(crystal) == ("Crystal(CsCl, 2 sites, a=4 b=4 c=4 A, alpha=90 beta=90 gamma=90)")


def test_formulas():
    crystal = Crystal(np.eye(3) * 9, np.random.rand(6, 3), [17, 11, 17, 11, 17, 11])
    assert (crystal.formula, crystal.reduced_formula) == ("Na3Cl3", "NaCl")
    mixed = Crystal(np.eye(3) * 9, np.zeros((2, 3)), [26, 12], occupancy=[0.25, 0.75])
    assert mixed.formula == mixed.reduced_formula == "Mg0.75Fe0.25"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cell": np.eye(2)}, r"cell must have shape \(3, 3\), got \(2, 2\)"),
        ({"cell": np.ones((3, 3))}, "cell must have a volume"),
        ({"cell": np.full((3, 3), np.nan)}, "cell must be finite"),
        ({"frac": np.zeros((3, 3))}, r"frac must have shape \(num_sites, 3\), got \(3, 3\)"),
        ({"frac": [[0, 0, np.inf], [0, 0, 0]]}, "frac must be finite"),
        ({"numbers": [11, 0]}, "atomic numbers from 1 to 118"),
        ({"numbers": [11.0, 17.0]}, "atomic numbers from 1 to 118"),
        ({"numbers": []}, r"numbers must have shape \(num_sites,\)"),
        ({"oxidation": [1]}, r"oxidation must have shape \(2,\), got \(1,\)"),
        ({"occupancy": [1, 0]}, "occupancy must be above 0 and at most 1"),
    ],
)
def test_what_is_no_crystal_is_refused(change, message):
    good = {"cell": np.eye(3) * 4, "frac": np.zeros((2, 3)), "numbers": [11, 17]}
    with pytest.raises(ValueError, match=message):
        Crystal(**good | change)


def test_pickling():
    crystal = read_cif(cif())
    copy = pickle.loads(pickle.dumps(crystal))
    assert np.array_equal(copy.frac, crystal.frac) and copy.name == "NaCl"
    error = pickle.loads(pickle.dumps(CifError("a.cif", "x", "no sites")))
    assert (str(error), error.block) == ("a.cif, data_x: no sites", "x")


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


FRACT = ("fract_x", "fract_y", "fract_z")


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
    assert set(read_cif(text).numbers) == {number}


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
    assert read_cif(text).name == "first"
    assert [(c.name, len(c)) for c in read_cifs(text)] == [("first", 8), ("second", 4)]
    error = refusal(text.replace("0.5 0.5 0.5", "? ? ?"))
    assert error.block == "first" and "'?'" in error.reason


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

MIXED = "Na1 Na+ 0 0 0 0.75\nK1 K+ 0 0 0 0.25\nCl1 Cl- 0.5 0.5 0.5 0.9"
WITH_OCCUPANCY = ("label", "type_symbol", *FRACT, "occupancy")


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


# ---------------------------------------------------------------------------------------------
# Primitive cells


def test_primitive_cells_are_reduced():
    crystal = read_cif(cif("Na1 Na+ 0 0 0\nCl1 Cl- 0.5 0.5 0.5"))
    primitive = crystal.primitive()
    assert sorted(zip(primitive.numbers, primitive.oxidation, strict=True)) == [(11, 1), (17, -1)]
    assert primitive.volume == pytest.approx(crystal.volume / 4)
    np.testing.assert_allclose(np.linalg.norm(primitive.cell, axis=1), 5.64 / 2**0.5)
    assert primitive.name == "NaCl"
    assert primitive.primitive() is primitive


@pytest.mark.parametrize("changed", ["oxidation", "occupancy"])
def test_sites_of_other_charge_or_occupancy_are_other_sites(changed):
    cell, frac = np.diag([4.0, 4, 8]), np.array([[0, 0, 0], [0, 0, 0.5]])
    assert len(Crystal(cell, frac, [26, 26]).primitive()) == 1
    different = Crystal(cell, frac, [26, 26], **{changed: np.array([0.5, 1.0])})
    assert len(different.primitive()) == 2
    same = Crystal(cell, frac, [26, 26], **{changed: np.array([0.5, 0.5])})
    assert getattr(same.primitive(), changed).tolist() == [0.5]


def test_primitive_cell_of_a_distorted_crystal():
    """Within the tolerance the sites are averaged; beyond it, the cell stays."""
    cell, frac = np.diag([4.0, 4, 8]), np.array([[0, 0, 0], [0, 0, 0.5], [0.5, 0.5, 0.2]])
    frac = np.vstack([frac, [0.5, 0.5, 0.7 + 0.004 / 8]])
    crystal = Crystal(cell, frac, [26, 26, 8, 8])
    assert len(crystal.primitive()) == 2
    assert crystal.primitive(tolerance=0.001) is crystal
    with pytest.raises(ValueError, match="method must be 'spglib' or 'pymatgen', got 'phonopy'"):
        crystal.primitive(method="phonopy")


def test_primitive_cells_have_the_distances_of_their_crystals():
    """Neighbours within 4 A, and their distances, a site."""
    for path in sorted(EXAMPLES.glob("*.cif"))[::8]:
        crystal = read_cif(path)
        found = []
        for c in (crystal, crystal.primitive()):
            pairs = sitenet.find_pairs(c, images="sphere", radius=4.03, merge=False)
            found.append((pairs.num_pairs / len(c), pairs.distance.sum().item() / len(c)))
        assert found[0] == pytest.approx(found[1], rel=1e-5), path.name


def test_large_cells_are_reduced_in_time():
    """16 x 16 x 2 copies of a cell, in any order, of one element and of several."""
    grid = np.stack(np.meshgrid(*map(np.arange, (16, 16, 2)), indexing="ij"), -1).reshape(-1, 3)
    frac = np.concatenate([grid + offset for offset in ([0, 0, 0], [0.5, 0.4, 0.3])]) / [16, 16, 2]
    order = np.random.default_rng(0).permutation(len(frac))
    for numbers in (np.full(len(frac), 6), np.repeat([5, 7], len(grid))):
        crystal = Crystal(np.diag([48.0, 64, 8]), frac[order], numbers[order])
        since = time.process_time()
        assert len(crystal.primitive()) == 2
        assert time.process_time() - since < 5
    shaken = crystal.frac + np.random.default_rng(1).normal(0, 1e-3, frac.shape)
    assert len(Crystal(crystal.cell, shaken, crystal.numbers).primitive()) == len(crystal)


def test_pymatgen_finds_the_same_primitive_cells():
    pytest.importorskip("pymatgen.core")
    for path in sorted(EXAMPLES.glob("*.cif"))[::8]:
        crystal = read_cif(path)
        ours, theirs = crystal.primitive(), crystal.primitive(method="pymatgen")
        assert len(ours) == len(theirs), path.name
        np.testing.assert_allclose(ours.cell @ ours.cell.T, theirs.cell @ theirs.cell.T, atol=1e-3)


# ---------------------------------------------------------------------------------------------
# pymatgen and ASE


def assert_equal(a, b):
    np.testing.assert_allclose(a.cell, b.cell, atol=1e-12)
    np.testing.assert_allclose(a.frac, b.frac, atol=1e-12)
    assert a.numbers.tolist() == b.numbers.tolist()
    for x, y in ((a.oxidation, b.oxidation), (a.occupancy, b.occupancy)):
        assert (x is None and y is None) or np.array_equal(x, y)


@pytest.mark.parametrize(
    "sites", ["Na1 Na 0 0 0\nCl1 Cl .5 .5 .5", "Na1 Na+ 0 0 0\nCl1 Cl- .5 .5 .5"]
)
def test_to_pymatgen_and_back(sites):
    pytest.importorskip("pymatgen.core")
    crystal = read_cif(cif(sites))
    assert_equal(Crystal.from_pymatgen(crystal.to_pymatgen()), crystal)


def test_disorder_to_pymatgen_and_back():
    pytest.importorskip("pymatgen.core")
    crystal = read_cif(cif(MIXED, tags=WITH_OCCUPANCY), disorder="average")
    structure = crystal.to_pymatgen()
    assert len(structure) == 8 and not structure.is_ordered
    with pytest.raises(ValueError, match='disorder="average"'):
        Crystal.from_pymatgen(structure)
    back = Crystal.from_pymatgen(structure, disorder="average")
    assert back.formula == crystal.formula
    assert sorted(back.occupancy) == sorted(crystal.occupancy)


def test_dummies_of_pymatgen_are_refused():
    core = pytest.importorskip("pymatgen.core")
    structure = core.Structure(core.Lattice.cubic(4), [core.DummySpecies("X")], [[0, 0, 0]])
    with pytest.raises(ValueError, match="unknown element X"):
        Crystal.from_pymatgen(structure)


def test_to_ase_and_back():
    pytest.importorskip("ase")
    crystal = read_cif(cif())
    atoms = crystal.to_ase()
    assert atoms.pbc.all() and atoms.get_chemical_formula() == "Cl4Na4"
    assert_equal(Crystal.from_ase(atoms), crystal)
    mixed = read_cif(cif(MIXED, tags=WITH_OCCUPANCY), disorder="average")
    with pytest.raises(ValueError, match="no partial occupancy"):
        mixed.to_ase()
    atoms.info["occupancy"] = {"0": {"Na": 0.5, "K": 0.5}}
    with pytest.raises(ValueError, match="partial occupancy"):
        Crystal.from_ase(atoms)
    del atoms.info["occupancy"]
    atoms.cell[2] = 0
    with pytest.raises(ValueError, match="cell must have a volume"):
        Crystal.from_ase(atoms)


def test_pymatgen_reads_the_same_matbench_crystals():
    core = pytest.importorskip("pymatgen.core")
    for text in matbench_texts(10):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it tells that it rounds 0.333333 to 1/3
            theirs = core.Structure.from_str(text, "cif")
        ours = read_cif(text)
        np.testing.assert_allclose(ours.cell, theirs.lattice.matrix, atol=1e-9)
        theirs = Crystal.from_pymatgen(theirs)
        assert sorted(ours.numbers) == sorted(theirs.numbers)
        np.testing.assert_allclose(
            np.sort(ours.frac % 1, 0), np.sort(theirs.frac % 1, 0), atol=2e-5
        )
