"""Predictions as a table: rows, columns, text of 80 columns, and what cannot be used."""

import csv
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toy_crystals import SMALL, cif_of, toy_crystals, toy_model

import sitenet
from sitenet.data.failures import LeftOut
from sitenet.inference.prediction_table import PredictionTable
from sitenet.inference.table import Prediction
from sitenet.inference.table_text import number_text, table_text
from sitenet.model.ensemble import Ensemble
from sitenet.model.sitenet import SiteNet, Target

CRYSTALS = toy_crystals(5)
GAP = Target("band_gap_eV", "eV")


def model_of(targets=(GAP,), unlike=()):
    """A model that calls crystals unlike the training set for these reasons, in turn."""
    torch.manual_seed(0)
    model = SiteNet(SMALL.replace(last_activation="identity", scale_site_features=True), targets)
    reasons = iter([*unlike, *[""] * 1000])
    model.calibration = SimpleNamespace(
        half_width=lambda coverage, spread: np.full(len(targets), coverage),
        unlike=lambda encodings, structures: [next(reasons) for _ in encodings],
        errors=None,
        index=None,
    )
    return model.eval()


def test_rows_are_the_predictions_in_order(tmp_path):
    model = model_of(unlike=["", "odd bonds"])
    path = tmp_path / "one.v2.cif"
    path.write_text(cif_of(CRYSTALS[1]))
    table = model.table([CRYSTALS[0], path, *CRYSTALS[2:]], coverage=0.5)
    values = model.predict(CRYSTALS)
    assert len(table) == 5 and table.coverage == 0.5
    assert list(table.columns) == ["id", "formula", "value", "low", "high", "flag", "reason"]
    np.testing.assert_allclose(table["value"], values, rtol=1e-5)
    np.testing.assert_allclose(table["high"] - table["low"], 1)  # half widths of the coverage
    assert list(table["formula"]) == [c.reduced_formula for c in CRYSTALS]
    assert list(table["id"]) == ["c0", "one.v2", "c2", "c3", "c4"]
    rows = list(table)
    assert (rows[1]["flag"], rows[1]["reason"]) == ("unlike", "odd bonds")
    assert {row["flag"] for row in rows[2:]} == {"ok"} and table[1] == rows[1]


def test_what_cannot_be_used_has_a_row_with_the_reason(tmp_path):
    model = model_of()
    heavy = sitenet.Crystal(np.eye(3) * 4, [[0, 0, 0]], [118], name="Og")  # has no properties
    wrong = [tmp_path / "absent.cif", None, "data_x\n_cell_length_a 4\n", heavy]
    table = model.table([CRYSTALS[0], *wrong, CRYSTALS[1]])
    assert list(table["flag"]) == ["ok", *["failed"] * 4, "ok"]
    assert list(table["id"]) == ["c0", "absent", "2", "3", "Og", "c1"]
    np.testing.assert_allclose(table["value"][[0, 5]], model.predict(CRYSTALS[:2]), rtol=1e-5)
    assert np.isnan(table["value"][1:5]).all()
    reasons = table["reason"][1:5]
    expected = ("absent.cif", "got NoneType", "no cell", "Og")
    assert all(text in reason for text, reason in zip(expected, reasons, strict=True)), reasons
    with pytest.raises(TypeError, match=r"structure 1: .*got NoneType"):
        model.table([CRYSTALS[0], None], strict=True)
    with pytest.raises(FileNotFoundError):
        model.table(wrong[0], strict=True)


def test_a_structure_that_contradicts_its_file_is_doubtful():
    text = cif_of(CRYSTALS[0]).replace("\n", "\n_chemical_formula_sum 'Fr7'\n", 1)
    (row,) = model_of().table(text)  # without a warning
    assert row["flag"] == "doubtful" and "Fr7" in row["reason"]


def test_one_structure_none_and_an_iterator():
    model = model_of()
    assert len(model.table(CRYSTALS[0])) == 1
    assert len(model.table([])) == 0 and list(model.table([])) == []
    assert len(model.table(iter(CRYSTALS))) == 5


def test_an_ensemble_and_a_model_without_calibration():
    members = [model_of(), model_of()]
    for member in members:
        member.calibration = None
    table = Ensemble(members).table(CRYSTALS[:2])
    assert set(table["flag"]) == {""} and np.isnan(table["low"]).all()
    assert "low" not in str(table) and "band_gap (eV)" in str(table)


def test_several_targets_have_columns_of_their_names():
    table = model_of([GAP, Target("metal", kind="class")]).table(CRYSTALS)
    names = ["band_gap_eV", "band_gap_eV_low", "band_gap_eV_high", "metal"]
    assert list(table.columns) == ["id", "formula", *names, "flag", "reason"]
    lines = str(table).splitlines()
    assert len(lines) == 11 and lines[1].split()[2:4] == ["band_gap", "(eV)"]
    assert lines[2].split()[0] == "metal"


def test_files_and_pandas(tmp_path, monkeypatch):
    table = model_of(unlike=["odd"]).table([CRYSTALS[0], None])
    table.to_csv(tmp_path / "t.csv")
    with open(tmp_path / "t.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert float(first["value"]) == pytest.approx(table["value"][0], rel=1e-6)
    assert (first["flag"], first["reason"]) == ("unlike", "odd")
    assert second["value"] == "" and second["flag"] == "failed"
    pandas = pytest.importorskip("pandas")
    frame = table.to_pandas()
    assert list(frame.columns) == list(table.columns) and frame["value"].dtype == np.float64
    assert isinstance(frame, pandas.DataFrame)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'sitenet\[table\]'"):
        table.to_pandas()


@pytest.mark.parametrize("coverage", [0, 1, 90])
def test_a_wrong_coverage_is_refused(coverage):
    with pytest.raises(ValueError, match="between 0 and 1"):
        model_of().table(CRYSTALS, coverage=coverage)


# ---------------------------------------------------------------------------------------------
# Text


def prediction(name, value=1.0, unlike="", warnings="", formula="NaCl", targets=1):
    return Prediction(
        name, formula, [value] * targets, [0.0] * targets, [2.0] * targets, unlike, warnings
    )


@pytest.mark.parametrize("targets", [1, 3])
def test_text_fits_into_80_columns(targets):
    long = "x" * 100
    rows = [
        prediction(f"{long}-{k}", -12345.678, long if k else "", "doubt " * 30, long, targets)
        for k in range(3)
    ] + [LeftOut(long, long, "because " * 40)]
    many = [Target(f"a_rather_long_name_{k}_eV_per_atom", "eV/atom") for k in range(targets)]
    lines = table_text(rows, many).splitlines()
    assert max(map(len, lines)) <= 80 + 30  # a word of a reason is never broken
    assert all(len(line) <= 80 for line in lines if not line.startswith("  "))
    assert sum(line.endswith(("unlike", "doubtful", "failed")) for line in lines) == 4
    assert len({line.split()[0] for line in lines if line.startswith("x")}) == 4  # ids differ


def test_text_shows_reasons_below_their_rows():
    rows = [prediction("a"), prediction("b", unlike="odd bonds"), prediction("c", warnings="Z")]
    lines = table_text([*rows, LeftOut("d", "d", "no cell")], [GAP]).splitlines()
    assert lines[0].split() == ["id", "formula", "band_gap", "(eV)", "low", "high", "flag"]
    assert lines[1].split() == ["a", "NaCl", "1.000", "0.000", "2.000", "ok"]
    assert [line.strip() for line in lines[3::2]] == ["odd bonds", "Z", "no cell"]
    assert [line.split()[-1] for line in lines[2::2]] == ["unlike", "doubtful", "failed"]


def test_long_tables_are_cut_when_printed():
    table = PredictionTable([prediction(str(k)) for k in range(1234)], [GAP], 0.9)
    assert str(table).splitlines()[-1] == "... and 1,204 more"
    assert len(table.text().splitlines()) == 1235


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (0, "0.000"),
        (1.23456, "1.235"),
        (-0.0456, "-0.046"),
        (1e-4, "0.0001"),
        (12345.6, "1.23e+04"),
    ],
)
def test_numbers(x, text):
    assert number_text(x) == text


def test_arrangements_of_a_disordered_crystal_are_one_row():
    """The row is that of ``predict_arrangements``; an ordered crystal beside it keeps its own."""
    model = toy_model()
    cell, frac = 5 * np.eye(3), [[0, 0, 0], [0, 0, 0], [0.5, 0.5, 0.5]]
    mixed = sitenet.Crystal(cell, frac, [31, 14, 8], occupancy=[0.5, 0.5, 1.0], name="mixed")
    ordered = toy_crystals(1)[0]
    table = model.table([mixed, ordered], disorder="sample", samples=8, seed=1)
    arranged = sitenet.predict_arrangements(model, mixed, 8, 1)
    assert table["id"].tolist() == ["mixed", "c0"]
    assert table["value"][0] == pytest.approx(arranged.mean[0])
    assert table["value"][1] == pytest.approx(model.predict(ordered)[0])
    with pytest.raises(ValueError, match="disorder must be"):
        model.table([mixed], disorder="none")
