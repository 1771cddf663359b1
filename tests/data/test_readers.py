"""Tables of crystals: every accepted form, what is missing and what is wrong, by name."""

import csv
import gzip
import json
import math
import os
import shutil

import numpy as np
import pandas as pd
import pytest

from sitenet.crystal.crystal import CifError, read_cif
from sitenet.data.readers import open_source

CIF = """data_{name}
_cell_length_a {a}
_cell_length_b {a}
_cell_length_c {a}
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
loop_
_atom_site_type_symbol
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
Cs 0 0 0
Cl 0.5 0.5 0.5
"""
SI = 2.715 * (1 - np.eye(3))


def write_cifs(folder, names="abc", suffix=".cif"):
    for k, name in enumerate(names):
        (folder / f"{name}{suffix}").write_text(CIF.format(name=name, a=4 + k / 10))


def ids(source):
    return [record.id for record in source]


def edges(source):
    return [round(record.crystal().cell[0, 0], 3) for record in source]


@pytest.mark.parametrize("header", ["id", "file"])
def test_folder_with_a_csv(tmp_path, header):
    write_cifs(tmp_path)
    ending = ".cif" if header == "file" else ""
    table = f"{header},note,gap_eV\na{ending},x,1.5\nc{ending},y,\nb{ending},z,-2e-1\n"
    (tmp_path / "any name.csv").write_text(table)
    source = open_source(tmp_path)
    assert (source.targets, source.units, len(source)) == (("gap_eV",), ("eV",), 3)
    assert ids(source) == ["a", "c", "b"]
    assert edges(source) == [4, 4.2, 4.1]
    np.testing.assert_equal([r.targets for r in source], [(1.5,), (math.nan,), (-0.2,)])
    assert [r.where for r in source] == [f"{tmp_path / 'any name.csv'} row {k}" for k in (2, 3, 4)]


def test_an_id_names_the_crystal_and_a_file_where_it_is(tmp_path):
    (tmp_path / "deep").mkdir()
    write_cifs(tmp_path / "deep", "a")
    (tmp_path / "t.csv").write_text("file,id,y\ndeep/a.cif,first,1\ndeep/a,second,2\n")
    source = open_source(tmp_path / "t.csv")
    assert ids(source) == ["first", "second"]
    assert edges(source) == [4, 4]
    (tmp_path / "t.csv").write_text("file,y\ndeep/a.cif,1\n")
    assert ids(open_source(tmp_path / "t.csv")) == ["deep/a"]


def test_id_prop_of_cgcnn_has_no_header(tmp_path):
    write_cifs(tmp_path)
    (tmp_path / "id_prop.csv").write_text("a,1.0\nb,2.5\n")
    (tmp_path / "atom_init.json").write_text("{}")
    source = open_source(tmp_path)
    assert source.targets == ("target",)
    assert ids(source) == ["a", "b"]
    assert [r.targets for r in source] == [(1.0,), (2.5,)]
    (tmp_path / "id_prop.csv").write_text("a,1.0,7\nb,2.5,8\n")
    assert open_source(tmp_path, ["target1"]).targets == ("target1",)


@pytest.mark.parametrize("suffix", [".cif", ".cif.gz", ".mcif", ".CIF"])
def test_folder_and_file_without_a_table(tmp_path, suffix):
    (tmp_path / "sub").mkdir()
    write_cifs(tmp_path, "ba", suffix)
    write_cifs(tmp_path / "sub", "c", suffix)
    write_cifs(tmp_path, ["._a"], suffix)  # what macOS leaves beside a file
    source = open_source(tmp_path, ())
    assert ids(source) == ["a", "b", "sub/c"]
    one = open_source(tmp_path / f"a{suffix}", ())
    assert (ids(one), one.targets) == (["a"], ())
    for path in (tmp_path, tmp_path / f"a{suffix}"):
        with pytest.raises(ValueError, match="needs a CSV file beside"):
            open_source(path)
        with pytest.raises(ValueError, match="needs a CSV file with gap beside"):
            open_source(path, ["gap"])


def test_without_targets_a_folder_is_its_cifs_whatever_its_tables_say(tmp_path):
    write_cifs(tmp_path)
    for name in ("x.csv", "y.csv"):
        (tmp_path / name).write_text("id,y\na,1\n")
    assert ids(open_source(tmp_path, ())) == ["a", "b", "c"]


def test_gzipped_files_are_read(tmp_path):
    with gzip.open(tmp_path / "a.cif.gz", "wt") as file:
        file.write(CIF.format(name="a", a=4))
    (tmp_path / "t.csv").write_text("id,y\na,1\n")
    assert edges(open_source(tmp_path)) == [4]


def test_csv_with_a_cif_column_of_any_size(tmp_path):
    long = CIF.format(name="x", a=5) + "# " + "x" * 200_000
    limit = csv.field_size_limit()
    table = pd.DataFrame({"id": ["p", "q"], "cif": [long, "no cif"], "y": [1.0, 2.0]})
    table.to_csv(tmp_path / "t.csv", index=False)
    source = open_source(tmp_path / "t.csv")
    first, second = source
    assert first.crystal().cell[0, 0] == 5
    with pytest.raises(CifError, match=r"t\.csv row 3"):
        second.crystal()
    assert csv.field_size_limit() == limit


def test_parquet_with_a_cif_column(tmp_path):
    table = pd.DataFrame(
        {
            "material_id": ["p", "q", "r"],
            "cif": [CIF.format(name="x", a=a) for a in (4, 5)] + [None],
            "gap_eV": [1.5, None, 2.0],
            "is_metal": [True, False, True],
            "n_atoms": [2, 2, 2],
            "formula": ["CsCl"] * 3,
            "matbench_fold": [0, 1, 1],
        }
    )
    path = tmp_path / "t.parquet"
    table.to_parquet(path)
    with pytest.raises(ValueError, match=r"which target to learn; there is gap_eV, is_metal, n_at"):
        open_source(path)
    source = open_source(path, ["is_metal", "gap_eV"])
    assert (ids(source), len(source)) == (["p", "q", "r"], 3)
    np.testing.assert_equal([r.targets for r in source], [(1, 1.5), (0, math.nan), (1, 2)])
    assert [r.split for r in source] == ["0", "1", "1"]
    assert [r.crystal().cell[0, 0] for r in list(source)[:2]] == [4, 5]
    with pytest.raises(CifError, match=r"t.parquet row 3.*expected CIF text, got None"):
        list(source)[2].crystal()
    with pytest.raises(ValueError, match="expected a column cif, got formula"):
        table[["formula"]].to_parquet(path)
        open_source(path)


@pytest.mark.parametrize("at", [0.3, 0.999])
def test_a_damaged_parquet_is_named(tmp_path, at):
    path = tmp_path / "t.parquet"
    noise = np.random.default_rng(0).random(4000)
    table = pd.DataFrame({"cif": [f"{x}" for x in noise], "y": noise})
    table.to_parquet(path, compression="snappy")
    data = bytearray(path.read_bytes())
    place = int(at * len(data))
    data[place - 60 : place] = bytes(60)
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"t\.parquet is damaged"):
        list(open_source(path))


def pymatgen_dict(occupancy=1, charge=None):
    """Silicon with magnesium on one site, as pymatgen writes a Structure."""
    pytest.importorskip("pymatgen.core")
    from pymatgen.core import Species, Structure

    species = "Si" if charge is None else Species("Si", charge)
    other = {species: occupancy, "Mg": 1 - occupancy} if occupancy < 1 else species
    structure = Structure(SI, [species, other], [[0, 0, 0], [0.25, 0.25, 0.25]])
    return structure.as_dict()


def write_matbench(path, rows, target="gap pbe", opened=gzip.open):
    """As matminer's store_dataframe_as_json with orient="split"."""
    index = [f"mb-mp-gap-{k:06d}" for k in range(1, len(rows) + 1)]
    with opened(path, "wt") as file:
        json.dump({"columns": ["structure", target], "index": index, "data": rows}, file)


@pytest.mark.parametrize(("name", "opened"), [("t.json.gz", gzip.open), ("t.json", open)])
def test_matbench_json(tmp_path, name, opened):
    rows = [[pymatgen_dict(), 0.6], [pymatgen_dict(charge=4), None], [{"sites": []}, 1.0]]
    write_matbench(tmp_path / name, rows, opened=opened)
    source = open_source(tmp_path / name)
    assert (source.targets, source.units) == (("gap pbe",), ("eV",))
    assert ids(source) == [f"mb-mp-gap-00000{k}" for k in (1, 2, 3)]
    first, second, third = source
    crystal = first.crystal()
    np.testing.assert_allclose(crystal.cell, SI)
    np.testing.assert_allclose(crystal.frac, [[0, 0, 0], [0.25] * 3])
    assert crystal.numbers.tolist() == [14, 14]
    assert crystal.oxidation is None and crystal.occupancy is None
    assert second.crystal().oxidation.tolist() == [4, 4]
    assert math.isnan(second.targets[0])
    with pytest.raises(ValueError, match="not a pymatgen structure"):
        third.crystal()


@pytest.mark.parametrize(
    ("lattice", "sites"),
    [(None, []), ({}, []), ({"matrix": [[1]]}, [{}]), ({"matrix": SI.tolist()}, [{"abc": [0]}])],
)
def test_a_structure_that_is_none_is_refused(tmp_path, lattice, sites):
    write_matbench(tmp_path / "t.json", [[{"lattice": lattice, "sites": sites}, 0]], opened=open)
    (record,) = open_source(tmp_path / "t.json")
    with pytest.raises(ValueError, match=r"structure|must"):
        record.crystal()


def test_matbench_classes_are_true_or_false(tmp_path):
    write_matbench(tmp_path / "t.json.gz", [[pymatgen_dict(), True]] * 2, "is_metal")
    assert [r.targets for r in open_source(tmp_path / "t.json.gz")] == [(1.0,), (1.0,)]


def test_disorder_in_pymatgen_dicts(tmp_path):
    write_matbench(tmp_path / "t.json.gz", [[pymatgen_dict(0.75), 0.6]])
    (record,) = open_source(tmp_path / "t.json.gz")
    with pytest.raises(ValueError, match='partial occupancy; disorder="average"'):
        record.crystal()
    crystal = record.crystal("average")
    assert crystal.numbers.tolist() == [14, 14, 12]
    assert crystal.occupancy.tolist() == [1, 0.75, 0.25]
    assert (crystal.frac[1] == crystal.frac[2]).all()


def test_jarvis_list(tmp_path):
    atoms = {
        "lattice_mat": SI.tolist(),
        "coords": [[0, 0, 0], [0.25, 0.25, 0.25]],
        "elements": ["Si", "Si "],
        "cartesian": False,
    }
    frac = np.array(atoms["coords"])
    cartesian = atoms | {"coords": (frac @ SI).tolist(), "cartesian": True}
    rows = [
        {"jid": "JVASP-1", "atoms": atoms, "optb88vdw_bandgap": 0.7, "mbj_bandgap": "na"},
        {"jid": "JVASP-2", "atoms": cartesian, "optb88vdw_bandgap": 0, "mbj_bandgap": 1.3},
        {"jid": "JVASP-3", "atoms": atoms | {"elements": ["Si", "Q"]}, "optb88vdw_bandgap": ""},
        {"jid": "JVASP-4"},
    ]
    path = tmp_path / "jdft.json"
    path.write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="there is optb88vdw_bandgap, mbj_bandgap"):
        open_source(path)
    names = ["mbj_bandgap", "optb88vdw_bandgap"]
    source = open_source(path, names)
    assert (source.targets, source.units) == (tuple(names), ("eV", "eV"))
    assert ids(source) == [f"JVASP-{k}" for k in range(1, 5)]
    nan = math.nan
    np.testing.assert_equal(
        [r.targets for r in source], [(nan, 0.7), (1.3, 0), (nan, nan), (nan, nan)]
    )
    records = list(source)
    for record in records[:2]:
        np.testing.assert_allclose(record.crystal().frac, frac, atol=1e-12)
    with pytest.raises(ValueError, match="unknown element 'Q'"):
        records[2].crystal()
    with pytest.raises(ValueError, match="not a jarvis structure"):
        records[3].crystal()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"[1, 2]", "expected a Matbench table"),
        (b"[]", "expected a Matbench table"),
        (b'[{"x": 1}]', "expected a column structure or atoms, got x"),
        (b'{"columns": ["y"], "data": [[1]], "index": [0]}', "expected a column structure, got y"),
        (b'{"columns": ["structure", "y"], "data": [[{}]]}', "row 1: expected 2 cells .*, got 1"),
        (b'{"columns": ["structure"], "data": [5]}', "row 1: expected 1 cells .*, got 0"),
        (
            b'{"columns": ["structure"], "data": [[{}]], "index": [1, 2]}',
            "index holds 2 ids, data holds 1 rows",
        ),
        (b'{"columns"', "damaged or not a JSON file"),
        (b"\xff\xfe", "damaged or not a JSON file"),
    ],
)
@pytest.mark.parametrize("name", ["t.json", "t.json.gz"])
def test_json_of_other_kinds_is_refused_by_name(tmp_path, name, content, message):
    packed = gzip.compress(content) if name.endswith(".gz") else content
    (tmp_path / name).write_bytes(packed)
    with pytest.raises(ValueError, match=f"{name}.*{message}"):
        open_source(tmp_path / name)
    if name.endswith(".gz"):
        (tmp_path / name).write_bytes(packed[:-9])
        with pytest.raises(ValueError, match="damaged"):
            open_source(tmp_path / name)


def test_choice_of_target(tmp_path):
    write_cifs(tmp_path)
    (tmp_path / "t.csv").write_text("id,gap_eV,energy,text\na,1,2,x\nb,3,,4\n")
    with pytest.raises(ValueError, match=r"t\.csv: say which target.*there is gap_eV, energy$"):
        open_source(tmp_path)
    with pytest.raises(ValueError, match=r"no target density; there is gap_eV, energy$"):
        open_source(tmp_path, ["energy", "density"])
    source = open_source(tmp_path, ["energy", "gap_eV", "energy"])
    assert source.targets == ("energy", "gap_eV")
    np.testing.assert_equal([r.targets for r in source], [(2, 1), (math.nan, 3)])
    (tmp_path / "t.csv").write_text("id,text\na,x\n")
    with pytest.raises(ValueError, match="there is no numeric column"):
        open_source(tmp_path)


@pytest.mark.parametrize("empty", ["", " ", "nan", "NaN", "N/A", "na", "None", "null"])
def test_empty_cells_are_missing_values(tmp_path, empty):
    (tmp_path / "t.csv").write_text(f"id,y\na,1\nb,{empty}\n")
    np.testing.assert_equal([r.targets for r in open_source(tmp_path)], [(1,), (math.nan,)])


@pytest.mark.parametrize("wrong", ["1,5", "abc", "inf", "1.5(2)"])
def test_a_wrong_cell_is_named_by_file_row_and_column(tmp_path, wrong):
    (tmp_path / "t.csv").write_text(f'id,gap\na,1\n\nb,"{wrong}"\nc,2\n')
    for targets in (None, ["gap"]):
        with pytest.raises(ValueError, match=r"t\.csv row 4: expected a number for gap, got '"):
            open_source(tmp_path, targets)


def test_true_and_false_are_numbers(tmp_path):
    (tmp_path / "t.csv").write_text("id,metal\na,True\nb,false\n")
    assert [r.targets for r in open_source(tmp_path)] == [(1,), (0,)]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "t.csv is empty"),
        ("name of it,y\na,1\n", "expected a column id, file or cif, got name of it, y"),
        ("id,y\na,1,2\n", "row 2: expected 2 cells, got 3"),
        ("id,y,y\na,1,2\n", "two columns have one name"),
        ('id,y\n"a\n', "damaged"),
        (
            "id,y\n\x81,1\n",
            "row 2 is damaged or not a CSV file: byte 0x81 is neither UTF-8 nor Latin",
        ),
    ],
)
def test_what_is_wrong_with_a_csv_is_said(tmp_path, table, message):
    (tmp_path / "t.csv").write_text(table, encoding="latin-1")
    if message == "damaged":  # an open quote takes in the rest
        message = "expected 2 cells, got 1"
    with pytest.raises(ValueError, match=message):
        open_source(tmp_path / "t.csv")


def test_a_missing_cif_is_reported_when_it_is_read(tmp_path):
    (tmp_path / "t.csv").write_text("id,y\nnone,1\n")
    (record,) = open_source(tmp_path)
    with pytest.raises(OSError, match=r"none\.cif"):
        record.crystal()


def test_one_of_several_csv_files_is_chosen_by_name_or_not_at_all(tmp_path):
    write_cifs(tmp_path)
    for name in ("other.csv", "sources.csv"):
        (tmp_path / name).write_text("id,y\na,1\n")
    with pytest.raises(
        ValueError, match=r"several CSV files.*: other\.csv, sources\.csv; name the"
    ):
        open_source(tmp_path)
    (tmp_path / "targets.csv").write_text("id,y\na,1\nb,2\n")
    (tmp_path / "data.left_out.csv").write_text("id,where,reason\n")
    assert len(open_source(tmp_path)) == 2
    (tmp_path / "id_prop.csv").write_text("a,1\n")
    with pytest.raises(ValueError, match="more than one of them called targets"):
        open_source(tmp_path)
    assert len(open_source(tmp_path / "other.csv")) == 1


def test_the_split_column(tmp_path):
    write_cifs(tmp_path)
    (tmp_path / "t.csv").write_text("id,y,split,fold\na,1,train,0\nb,2, test ,1\n")
    assert [r.split for r in open_source(tmp_path, ["y"])] == ["train", "test"]
    source = open_source(tmp_path, split_column="fold")
    assert (source.targets, [r.split for r in source]) == (("y",), ["0", "1"])
    with pytest.raises(ValueError, match="no column 'part'; there is id, y, split, fold"):
        open_source(tmp_path, ["y"], "part")
    write_matbench(tmp_path / "t.json", [[pymatgen_dict(), 1]], opened=open)
    with pytest.raises(ValueError, match="no column 'part'; there is gap pbe, id"):
        open_source(tmp_path / "t.json", split_column="part")


def test_paths_that_are_no_table(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file or folder: .*nothing"):
        open_source(tmp_path / "nothing")
    (tmp_path / "x.txt").touch()
    with pytest.raises(ValueError, match=r"x\.txt is not a table of crystals"):
        open_source(tmp_path / "x.txt")
    (tmp_path / "x.txt").unlink()
    with pytest.raises(ValueError, match="holds no structure files"):
        open_source(tmp_path)


def test_fingerprint_changes_with_the_files(tmp_path):
    write_cifs(tmp_path)
    (tmp_path / "t.csv").write_text("id,y\na,1\nmissing,2\n")
    before = open_source(tmp_path).fingerprint()
    write_cifs(tmp_path, ["other"])
    assert open_source(tmp_path).fingerprint() == before
    os.utime(tmp_path / "a.cif", (1, 1))
    changed = open_source(tmp_path).fingerprint()
    assert changed != before
    shutil.copy(tmp_path / "a.cif", tmp_path / "missing.cif")
    assert open_source(tmp_path).fingerprint() != changed
    assert open_source(tmp_path, ()).fingerprint() != before


def test_cif_text_in_a_table_is_never_a_path(tmp_path):
    write_cifs(tmp_path, "a")
    path = str(tmp_path / "a.cif")
    assert read_cif(path)
    pd.DataFrame({"cif": [path], "y": [1.0]}).to_parquet(tmp_path / "t.parquet")
    (record,) = open_source(tmp_path / "t.parquet")
    with pytest.raises(CifError, match="row 1"):
        record.crystal()
