"""Failures: their kinds, their texts, their counts."""

import csv
import pickle

import pytest

from sitenet.crystal.crystal import CifError
from sitenet.data.failures import LeftOut, Unusable, kind_of, printable, reasons, write_left_out


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (Unusable("no luck", "x 1"), "no luck"),
        (CifError("a.cif", None, "x", "odd block"), "odd block"),
        (FileNotFoundError(2, "none", "a.cif"), "no such file"),
        (PermissionError(13, "denied", "a.cif"), "unreadable file"),
        (CifError("a.cif", None, "x"), "unreadable CIF"),
        (ValueError("x"), "structure not usable"),
        (ZeroDivisionError("x"), "unforeseen ZeroDivisionError"),
    ],
)
def test_every_exception_has_a_kind(error, kind):
    assert kind_of(error) == LeftOut.of("a", "t.csv row 2", error).kind == kind


def test_unforeseen_errors_name_their_class():
    assert LeftOut.of("a", "b", KeyError("x")).reason == "KeyError: 'x'"
    assert LeftOut.of("a", "b", ValueError("x")).reason == "x"


def test_kinds_travel_between_processes():
    error = pickle.loads(pickle.dumps(Unusable("kind", "reason")))
    assert (error.kind, str(error)) == ("kind", "reason")


def test_reasons_count_kinds_and_name_the_first():
    first = LeftOut("a", "a.cif", "a.cif: no cell", "unreadable CIF")
    other = LeftOut("b", "t.csv row 3", "no He", "element without features")
    assert reasons([]) == ""
    assert reasons([first]) == "1 left out (1 x unreadable CIF); the first: a.cif: no cell"
    assert reasons([other, first, other]) == (
        "3 left out (2 x element without features, 1 x unreadable CIF); "
        "the first: t.csv row 3: no He"
    )


def test_a_table_of_failures(tmp_path):
    write_left_out([LeftOut("a", "b", "c, d", "e")], tmp_path / "x.csv")
    with open(tmp_path / "x.csv", newline="") as file:
        assert list(csv.reader(file)) == [
            ["id", "where", "reason", "kind"],
            ["a", "b", "c, d", "e"],
        ]


def test_bytes_that_are_no_text_are_shown():
    assert printable("caf\udce9 é") == "caf\\xe9 é"
