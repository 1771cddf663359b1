"""Tables in text files of any dialect: read if it is unambiguous, refused by row otherwise."""

import codecs
import gzip
import math

import numpy as np
import pytest

from sitenet.data.readers import open_source

ROWS = ["id,gap_eV,density", "a,0.5,1.25", "b,1.5,-2e3", "c,,7"]
VALUES = [(0.5, 1.25), (1.5, -2000), (math.nan, 7)]
NAMES = ["gap_eV", "density"]


def opened(tmp_path, text, targets=NAMES, name="t.csv"):
    content = text if isinstance(text, bytes) else text.encode()
    (tmp_path / name).write_bytes(content)
    return open_source(tmp_path / name, targets)


def values(source):
    return [record.targets for record in source]


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", ",\n"])
def test_separators(tmp_path, separator, end):
    """At the end of a line a separator may stand once more."""
    text = end.join([*ROWS, ""]).replace(",", separator)
    np.testing.assert_equal(values(opened(tmp_path, text)), VALUES)


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_decimal_commas(tmp_path, separator):
    text = "\n".join([*ROWS, ""]).replace(",", separator).replace(".", ",")
    np.testing.assert_equal(values(opened(tmp_path, text)), VALUES)


def test_a_separator_in_a_cell_divides_nothing(tmp_path):
    text = "id,note,y\na,x;y,1\nb,x;y;z,2\n"
    assert values(opened(tmp_path, text, ["y"])) == [(1,), (2,)]
    text = 'id;note;y\na;"x;y";1\nb;x,y;2\n'
    assert values(opened(tmp_path, text, ["y"])) == [(1,), (2,)]


def test_a_first_line_may_name_the_separator(tmp_path):
    source = opened(tmp_path, "sep=;\r\nid;y\r\na;1,5\r\nb;2\r\n", None)
    assert values(source) == [(1.5,), (2,)]
    assert [r.where.rpartition(" ")[2] for r in source] == ["3", "4"]


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "cp1252"]
)
def test_encodings(tmp_path, encoding):
    boms = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}
    text = "id,größe_A,y\ncafé,1,2\nü,3,4\n"
    source = opened(tmp_path, boms.get(encoding, b"") + text.encode(encoding), ["größe_A"])
    assert [r.id for r in source] == ["café", "ü"]
    assert (values(source), source.units) == ([(1,), (3,)], ("Å",))


def test_a_gzipped_table(tmp_path):
    packed = gzip.compress("\n".join(ROWS).encode())
    np.testing.assert_equal(values(opened(tmp_path, packed, name="t.csv.gz")), VALUES)
    with pytest.raises(ValueError, match=r"t\.csv\.gz is damaged"):
        opened(tmp_path, packed[:-9], name="t.csv.gz")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("id;y;z\na;1;2\nb;3\n", r"row 3: expected 3 cells, got 2 \(separator: semicolon\)"),
        ("id\ty\na\t1\nb\t2\t3\n", r"row 3: expected 2 cells, got 3 \(separator: tab\)"),
        ("id,y;z\na,1;2\nb,3;4\n", "separator is unclear, comma and semicolon both divide"),
        ("id;y\na;1,234\nb;12,345\n", r"row 2: 1,234 in column y may be 1\.234 or 1234"),
        ("id;y\na;0,5\nb;1.5\n", r"column y has both decimal commas .*: 0,5 in row 2, 1\.5 in row"),
        ("id;y\na;0,5\nb;1.234,5\n", "row 3: expected a number for y, got '1.234,5'"),
        ('id,y\na,1\nb,"1,5"\n', "row 3: expected a number for y, got '1,5'"),
        ("id,y\na,1\nb,1_5\n", "row 3: expected a number for y, got '1_5'"),
        ("id,y\na,1\n\x81,2\n".encode("latin-1"), "row 3 is damaged .* byte 0x81 is neither UTF-8"),
        ("id,y\na,1\n".encode("utf-16-le"), "neither UTF-8 nor UTF-16 with a byte order"),
        (codecs.BOM_UTF8 + b"id,y\na,1\n\xe9,2\n", "row 3 is damaged: not UTF-8"),
    ],
)
def test_what_is_unclear_is_refused_by_row(tmp_path, text, message):
    with pytest.raises(ValueError, match=rf"t\.csv.*{message}"):
        opened(tmp_path, text, ["y"])


def test_unclear_commas_matter_only_in_targets(tmp_path):
    text = "id;y;price\na;1;1,234\nb;2;2,345\n"
    assert values(opened(tmp_path, text, ["y"])) == [(1,), (2,)]
    with pytest.raises(ValueError, match=r"there is y, price"):
        opened(tmp_path, text, None)
    # One number that is clear tells the others.
    text = "id;y;price\na;0,5;1,234\nb;2;2,345\n"
    assert values(opened(tmp_path, text, ["price"])) == [(1.234,), (2.345,)]


@pytest.mark.parametrize(
    "header", ["", "Unnamed: 0", "index", "Index", "__index_level_0__", "level_0", "#"]
)
def test_row_numbers_are_no_targets(tmp_path, header):
    source = opened(tmp_path, f"{header},id,y\n0,a,5\n1,b,6\n", None)
    assert source.targets == ("y",)
    assert [r.id for r in source] == ["a", "b"]
    assert values(source) == [(5,), (6,)]


def test_row_labels_are_ids_where_there_are_no_others(tmp_path):
    source = opened(tmp_path, ",y\nAgBr,5\nNaCl,6\n", None)
    assert [r.id for r in source] == ["AgBr", "NaCl"]
    assert [r.content for r in source] == [str(tmp_path / f"{x}.cif") for x in ("AgBr", "NaCl")]


def test_columns_called_by_numbers_are_a_header(tmp_path):
    text = "id,2020,2021\na,1,2\nb,3,4\n"
    with pytest.raises(ValueError, match=r"which target to learn; there is 2020, 2021$"):
        opened(tmp_path, text, None)
    assert values(opened(tmp_path, text, ["2021"])) == [(2,), (4,)]
    for text in ("Name,0\na,1\nb,2\n", ",0\na,1\nb,2\n"):
        with pytest.raises(ValueError, match=r"which target to learn; there is 0$"):
            opened(tmp_path, text, None)
        assert values(opened(tmp_path, text, ["0"])) == [(1,), (2,)]


def test_a_first_row_is_data_only_if_it_names_a_file(tmp_path):
    (tmp_path / "a.cif").touch()
    assert values(opened(tmp_path, "a,1\nb,2\n", None)) == [(1,), (2,)]
    with pytest.raises(ValueError, match="expected a column id, file or cif, got material, 2020"):
        opened(tmp_path, "material,2020\na,1\n", None)
    assert values(opened(tmp_path, "x,1\nb,2\n", None, "id_prop.csv")) == [(1,), (2,)]


@pytest.mark.parametrize("names", ["ID,Split,Y", "Material_ID,SPLIT,Y", "File,split,Y"])
def test_names_of_columns_in_any_case(tmp_path, names):
    source = opened(tmp_path, f"{names}\na,train,1\nb,test,2\n", None)
    assert [(r.id, r.split) for r in source] == [("a", "train"), ("b", "test")]
    assert source.targets == ("Y",)


@pytest.mark.parametrize("text", ["n.d.", "-", "--", "\u2013", "?", "N.A.", "#N/A", "unknown"])
def test_texts_for_no_value(tmp_path, text):
    np.testing.assert_equal(
        values(opened(tmp_path, f"id,y\na,1\nb,{text}\n", None)), [(1,), (math.nan,)]
    )
