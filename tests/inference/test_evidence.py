"""Predictions name the nearest training crystals, and the one that a crystal is."""

import copy
import csv
import dataclasses

import numpy as np
import pytest
from toy_crystals import SIZE, toy_crystals, toy_dataset, toy_model, write_folder

from sitenet.crystal.crystal import Crystal
from sitenet.inference.evaluate import evaluate
from sitenet.inference.evidence import learned_from
from sitenet.inference.predict import outputs
from sitenet.inference.predict_files import predict_files
from sitenet.model.calibration import errors_of
from sitenet.model.neighbours import Fingerprints, TrainingIndex


@pytest.fixture(scope="module")
def model():
    """A model that learned from the first four toy crystals, and knows zeros."""
    model = toy_model()
    crystals = toy_crystals(4)
    encodings = np.stack([z for _, z in outputs(model, crystals)])
    names = [f"learned {k}" for k in range(4)]
    formulas = [c.reduced_formula for c in crystals]
    values = np.arange(4.0)[:, None]
    model.calibration.index = TrainingIndex.fit(
        encodings, values, names, formulas, Fingerprints.of(crystals)
    )
    model.calibration.errors = errors_of(model, encodings, np.array([[0.0], [0.0], [1.0], [2.0]]))
    return model


def test_files_name_their_neighbours(model, tmp_path):
    write_folder(tmp_path / "in", 6)
    outcome = predict_files(model, [tmp_path / "in"], neighbours=2)
    near = [f"neighbour{k}{x}" for k in (1, 2) for x in ("", "_formula", "_distance", "_size_A")]
    assert outcome.header == [
        "id", "formula", "size_A_predicted", "size_A_low", "size_A_high", "size_A_zero_probability",
        "like_training", "unlike_because", "learned_from", *near, "warnings",
    ]  # fmt: skip
    rows = {row[0]: dict(zip(outcome.header, row, strict=True)) for row in outcome.rows}
    for k in range(4):
        row = rows[f"c{k}"]
        assert row["learned_from"] == row["neighbour1"] == f"learned {k}"
        assert row["neighbour1_size_A"] == k
        assert row["neighbour1_distance"] < row["neighbour2_distance"]
        assert 0 < row["size_A_zero_probability"] < 1
    assert rows["c4"]["learned_from"] == rows["c5"]["learned_from"] == ""


def test_a_stopped_file_keeps_them(model, tmp_path):
    write_folder(tmp_path / "in", 6)
    plain = predict_files(model, [tmp_path / "in"], neighbours=1)
    done = predict_files(model, [tmp_path / "in"], tmp_path / "a.csv", neighbours=1)
    with (tmp_path / "a.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == plain.header and len(rows) == done.count == 6
    assert [row[header.index("neighbour1")] for row in rows] == [
        row[header.index("neighbour1")] for row in plain.rows
    ]
    again = predict_files(model, [tmp_path / "in"], tmp_path / "a.csv", neighbours=2)
    assert not again.is_old


def test_cells_of_missing_neighbours_are_empty(model, tmp_path):
    write_folder(tmp_path / "in", 1)
    outcome = predict_files(model, [tmp_path / "in"], neighbours=5)
    row = dict(zip(outcome.header, outcome.rows[0], strict=True))
    assert row["neighbour4"] and row["neighbour5"] is None and row["neighbour5_distance"] is None


def test_evaluation_counts_what_was_learned_from(model, tmp_path):
    predictions, _ = evaluate(model, toy_dataset(6))
    assert predictions.learned_from == [*(f"learned {k}" for k in range(4)), "", ""]
    assert predictions.count_learned() == 4
    predictions.write(tmp_path / "p.csv")
    with (tmp_path / "p.csv").open(newline="") as file:
        row = next(csv.DictReader(file))
    assert row["learned_from"] == "learned 0" and 0 < float(row["size_A_zero_probability"]) < 1


def test_without_an_index_there_is_no_word_of_it(tmp_path):
    write_folder(tmp_path / "in", 2)
    assert "learned_from" not in predict_files(toy_model(), [tmp_path / "in"]).header
    predictions, _ = evaluate(toy_model(), toy_dataset(3))
    assert predictions.learned_from is None and predictions.count_learned() == 0
    with pytest.raises(ValueError, match="keeps no index"):
        predict_files(toy_model(), [tmp_path / "in"], neighbours=1)
    assert SIZE.name == "size_A"


def test_volume_does_not_hide_a_training_crystal(model):
    crystals = [dataclasses.replace(c, cell=1.02 * c.cell) for c in toy_crystals(6)]
    encodings = np.stack([z for _, z in outputs(model, crystals)])
    want = [*(f"learned {k}" for k in range(4)), "", ""]
    assert learned_from(model, crystals, encodings) == want


def test_another_arrangement_is_not_the_training_crystal(model):
    """Sites that swap elements keep the composition, the volume and, in P1, the symmetry."""
    rng = np.random.default_rng(0)
    frac = rng.random((6, 3))
    cell = np.diag([5.0, 6.0, 7.0])
    one, other = (Crystal(cell, frac, numbers) for numbers in ([3, 3, 3, 9, 9, 9], [3, 9] * 3))
    learner = copy.deepcopy(model)
    encodings = np.stack([z for _, z in outputs(model, [one, *toy_crystals(3)])])
    learner.calibration.index = TrainingIndex.fit(
        encodings,
        np.zeros((4, 1)),
        ["one", "a", "b", "c"],
        ["LiF"] * 4,
        Fingerprints.of([one, *toy_crystals(3)]),
    )
    assert learner.calibration.index.candidates(other) == [0]
    encodings = np.stack([z for _, z in outputs(model, [one, other])])
    assert learned_from(learner, [one, other], encodings) == ["one", ""]
