"""Files that rows name, in any case, and the structures in them."""

import os

import numpy as np
import pandas as pd
import pytest
from toy_crystals import cif_of, toy_crystals

from sitenet.crystal.crystal import CifError
from sitenet.data.dataset import read
from sitenet.data.failures import write_left_out
from sitenet.data.prepare import prepare
from sitenet.data.prepared import load_dataset
from sitenet.data.readers import open_source


def write(folder, *names):
    for crystal, name in zip(toy_crystals(len(names)), names, strict=True):
        (folder / name).write_text(cif_of(crystal))


def sites(data):
    return [len(c) for c in data.crystals]


def blocks(*names, seed=0):
    """The text of a CIF with a structure per name."""
    texts = []
    for crystal, name in zip(toy_crystals(len(names), seed), names, strict=True):
        crystal.name = name
        texts.append(cif_of(crystal))
    return "".join(texts)


@pytest.mark.parametrize("table", ["id", "file", "FILE"])
def test_endings_in_any_case(tmp_path, table):
    write(tmp_path, "a.CIF", "B.Cif", "c.cif")
    (tmp_path / "TARGETS.CSV").write_text(f"{table},y\na,1\nb,2\nC.cif,3\n")
    (tmp_path / "other.csv").write_text("nothing")
    data = read(open_source(tmp_path))
    assert not data.left_out
    assert data.ids == ["a", "b", "C" if table != "id" else "C.cif"]
    assert sites(data) == [len(c) for c in toy_crystals(3)]


def test_an_exact_name_comes_first_and_an_unclear_one_is_not_guessed(tmp_path):
    write(tmp_path, "a.cif", "A.CIF", "aA.cif", "Aa.cif")
    (tmp_path / "t.csv").write_text("id,y\na.cif,1\nA.CIF,2\naa,3\n")
    data = read(open_source(tmp_path))
    assert sites(data) == [len(c) for c in toy_crystals(2)]
    assert [(x.id, x.kind) for x in data.left_out] == [("aa", "no such file")]


def test_every_structure_of_a_file_is_a_row(tmp_path):
    (tmp_path / "two.cif").write_text(blocks("first", "second"))
    (tmp_path / "one.cif").write_text(blocks("x"))
    (tmp_path / "number.cif").write_text(blocks("2", ""))
    (tmp_path / "same.cif").write_text("data_global\n_cell_length_a 1\n" + blocks("p", "p", ""))
    data = read(open_source(tmp_path, ()))
    assert data.ids == [
        *("number/1", "number/2", "one", "same/1", "same/2", "same/3", "two/first", "two/second")
    ]
    assert [c.name for c in data.crystals] == data.ids
    count, left_out = prepare(tmp_path, tmp_path / "d.parquet", ())
    assert (count, left_out) == (8, [])
    assert load_dataset(tmp_path / "d.parquet").ids == data.ids


def test_a_bad_block_loses_no_other(tmp_path):
    text = blocks("p", "q", "r").replace("data_q\n_cell_length_a", "data_q\n_cell_length_x")
    (tmp_path / "three.cif").write_text(text)
    source, progress = open_source(tmp_path, ()), []
    data = read(source, advance=progress.append)
    assert data.ids == ["three/p", "three/r"]
    assert sum(progress) == len(source) == 1
    (lost,) = data.left_out
    assert lost.id == "three/q" and "no cell" in lost.reason


def test_a_row_names_one_structure_of_a_file(tmp_path):
    (tmp_path / "two.cif").write_text(blocks("first", "second"))
    (tmp_path / "a#b.cif").write_text(blocks("x"))
    rows = ["two", "two#second", "two.cif#first", "two#third", "a#b", "TWO#first"]
    (tmp_path / "t.csv").write_text("id,y\n" + "".join(f"{r},{k}\n" for k, r in enumerate(rows)))
    data = read(open_source(tmp_path))
    assert data.ids == ["two#second", "two.cif#first", "a#b", "TWO#first"]
    first, second = (len(c) for c in toy_crystals(2))
    assert sites(data) == [second, first, first, first]
    several, none = data.left_out
    assert several.kind == "several structures in one row"
    assert "two.cif holds 2 structures (first, second), expected one" in several.reason
    assert "name one, as two.cif#first" in several.reason
    assert none.kind == "no such block" and "first, second, not 'third'" in none.reason


def test_a_text_with_several_structures_is_refused(tmp_path):
    texts = [blocks("x"), blocks("p", "q")]
    for k, column in enumerate((texts, [text.encode() for text in texts])):
        path = tmp_path / f"{k}.PARQUET"
        pd.DataFrame({"cif": column, "y": [1.0, 2.0]}).to_parquet(path)
        data = read(open_source(path))
        assert len(data) == 1
        (lost,) = data.left_out
        assert lost.kind == "several structures in one row"
        assert "row 2: the CIF text holds 2 structures (p, q), expected one" in lost.reason


def test_texts_may_be_bytes_and_row_labels_are_kept(tmp_path):
    table = pd.DataFrame(
        {"cif": [blocks("x").encode(), b"no CIF"], "y": [1.0, 2.0]}, index=["first", "second"]
    )
    table.to_parquet(tmp_path / "t.parquet")
    source = open_source(tmp_path / "t.parquet")
    assert source.targets == ("y",)
    assert [r.id for r in source] == ["first", "second"]
    first, second = source
    assert len(first.crystal()) == len(toy_crystals(1)[0])
    with pytest.raises(CifError, match=r"t\.parquet row 2"):
        second.crystal()


def test_names_that_are_not_utf_8(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    try:
        write(tmp_path, f"{name}.cif")
    except OSError:
        pytest.skip("file names must be UTF-8 here")
    (tmp_path / f"{name}2.cif").write_text("data_\n")
    source = open_source(tmp_path, ())
    assert len(source.fingerprint()) == 64
    data = read(source)
    assert data.ids == [r"caf\xe9"]
    assert [x.id for x in data.left_out] == [r"caf\xe92"]
    assert r"caf\xe92.cif" in data.left_out[0].reason
    write_left_out(data.left_out, tmp_path / "left_out.csv")
    prepare(tmp_path, tmp_path / "d.parquet", ())
    loaded = load_dataset(tmp_path / "d.parquet")
    assert (loaded.ids, loaded.left_out) == (data.ids, data.left_out)
    np.testing.assert_equal(loaded.crystals[0].frac, data.crystals[0].frac)


def test_a_row_without_a_name_is_left_out(tmp_path):
    write(tmp_path, "a.cif")
    write(tmp_path.parent, f"{tmp_path.name}.cif")  # is not what a blank name means
    (tmp_path / "t.csv").write_text("id,y\na,1\n ,2\n")
    source = open_source(tmp_path)
    assert len(source.fingerprint()) == 64
    data = read(source)
    assert data.ids == ["a"]
    assert [(x.kind, x.reason) for x in data.left_out] == [
        ("no file named", f"{tmp_path / 't.csv'} row 3 names no file")
    ]


def test_numbers_that_a_parquet_file_holds_as_text_are_read_if_asked_for(tmp_path):
    texts = [blocks("x")] * 2
    pd.DataFrame({"cif": texts, "y": ["1.5", "n.d."]}).to_parquet(tmp_path / "t.parquet")
    source = open_source(tmp_path / "t.parquet", ["y"])
    np.testing.assert_equal([r.targets for r in source], [(1.5,), (np.nan,)])
    with pytest.raises(ValueError, match="there is no numeric column"):
        open_source(tmp_path / "t.parquet")
