"""Known properties beside predicted ones: errors, coverage, tables and plots."""

import csv

import numpy as np
import pytest
from toy_crystals import (
    SIZE,
    toy_crystals,
    toy_dataset,
    toy_model,
    toy_targets,
    write_folder,
)

from sitenet.data.prepare import prepare
from sitenet.data.readers import open_source
from sitenet.inference.evaluate import Predictions, evaluate
from sitenet.inference.table import intervals
from sitenet.model.sitenet import Target
from sitenet.system.progress import Reporter

MODEL = toy_model()


def predictions(truth, values, split, targets=(SIZE,), half_width=np.inf):
    truth, values = (np.array(x, dtype=float).reshape(-1, len(targets)) for x in (truth, values))
    ids = [f"c{k}" for k in range(len(split))]
    width = np.broadcast_to(half_width, truth.shape)
    unlike = ["far" if k == 1 else "" for k in range(len(split))]
    warnings = ["odd cell"] + [""] * len(split)
    return Predictions(
        ids,
        ["NaCl"] * len(split),
        split,
        list(targets),
        truth,
        values,
        width,
        unlike,
        warnings[: len(split)],
    )


def test_scores_by_split_and_target():
    found = predictions(
        [1, 2, 3, np.nan], [1.5, 2, 1, 0], ["valid", "test", "test", "test"], half_width=1.0
    ).scores(np.array([2.0]), np.array([3.0]))
    assert list(found) == ["valid", "test"]
    assert found["valid"]["size_A"]["mae"] == 0.5
    scores = found["test"]["size_A"]
    assert scores["crystals"] == 2 and scores["mae"] == 1.0 and scores["max_error"] == 2.0
    assert (scores["mae_of_mean"], scores["mae_of_median"]) == (0.5, 0.5)
    assert (scores["interval"], scores["coverage"]) == (1.0, 0.5)


def test_scores_of_classes_and_without_intervals():
    targets = (Target("a"), Target("b", kind="class"))
    found = predictions([[1, 0], [2, 1]], [[1, 0.2], [2, 0.9]], ["all"] * 2, targets).scores()
    assert "coverage" not in found["all"]["a"] and "mae_of_mean" not in found["all"]["a"]
    assert found["all"]["b"]["roc_auc"] == 1.0


def test_nothing_known_is_no_error():
    found = predictions([np.nan], [1], ["test"], half_width=1.0).scores(np.ones(1), np.ones(1))
    assert found["test"]["size_A"]["crystals"] == 0
    assert np.isnan(found["test"]["size_A"]["mae"])


def test_the_table_holds_truth_prediction_and_interval(tmp_path):
    targets = (SIZE, Target("b", kind="class"))
    predictions(
        [[1, 0], [np.nan, 1]], [[1.5, 0.25], [2, 0.5]], ["valid", "test"], targets, [0.5, np.inf]
    ).write(tmp_path / "p.csv")
    with open(tmp_path / "p.csv", newline="") as file:
        rows = list(csv.reader(file))
    header = "id,formula,split,size_A,size_A_predicted,size_A_low,size_A_high,b,b_predicted"
    header += ",like_training,unlike_because,warnings"
    assert rows == [
        header.split(","),
        ["c0", "NaCl", "valid", "1", "1.5", "1", "2", "0", "0.25", "yes", "", "odd cell"],
        ["c1", "NaCl", "test", "", "2", "1.5", "2.5", "1", "0.5", "no", "far", ""],
    ]


def test_intervals_end_at_the_lowest_value_that_is_predicted():
    values, width = np.array([[1.0], [1.0], [0.2]]), np.array([[0.5], [np.inf], [0.5]])
    low, high = intervals([SIZE], values, width, lowest=0.0)
    assert low[[0, 2], 0].tolist() == [0.5, 0.0] and high[[0, 2], 0].tolist() == [1.5, 0.7]
    assert np.isnan([low[1], high[1]]).all()


def test_without_calibration_likeness_is_unknown(tmp_path):
    found = predictions([1], [2], ["all"])
    found.unlike = None
    found.write(tmp_path / "p.csv")
    assert (tmp_path / "p.csv").read_text().splitlines()[1] == "c0,NaCl,all,1,2,,,,,odd cell"


def names_of(paths):
    return [path.name for path in paths]


def test_plots_of_each_target_and_of_the_history(tmp_path):
    pytest.importorskip("matplotlib")
    values = np.arange(6.0)
    history = [{"epoch": k, "train_mae": 1.0, "valid_mae": 1.0} for k in (1, 2)]
    split = ["valid", "valid", *["test"] * 4]
    found = predictions(values, values, split)
    assert names_of(found.plot(tmp_path, history, Reporter())) == [
        "parity.png",
        "learning_curve.png",
    ]
    assert names_of(found.plot(tmp_path, history[:1], Reporter())) == ["parity.png"]
    targets = (Target("gap pbe", "eV"), Target("n/a"), Target("c", kind="class"))
    table = np.stack([values, values, values > 2], 1)
    found = predictions(table, table, split, targets)
    assert names_of(found.plot(tmp_path, [], Reporter())) == [
        "parity_gap_pbe.png",
        "parity_n_a.png",
    ]
    table[:, 1] = np.nan
    found = predictions(table, table, split, targets)
    assert names_of(found.plot(tmp_path, [], Reporter())) == ["parity_gap_pbe.png"]
    assert predictions([], [], []).plot(tmp_path, [], Reporter()) == []


# ---------------------------------------------------------------------------------------------
# Evaluation


def test_a_folder_is_evaluated(tmp_path):
    crystals = write_folder(tmp_path / "in", 8)
    (tmp_path / "in" / "c2.cif").write_text("data_x\n")
    found, left_out = evaluate(MODEL, tmp_path / "in")
    assert [x.id for x in left_out] == ["c2"]
    assert found.ids == [c.name for c in crystals if c.name != "c2"]
    kept = [c for c in crystals if c.name != "c2"]
    np.testing.assert_allclose(found.truth[:, 0], toy_targets(kept), atol=1e-6)
    np.testing.assert_allclose(found.values[:, 0], MODEL.predict(kept), rtol=1e-4, atol=1e-5)
    error = np.abs(found.values - found.truth)[:, 0]
    scores = found.scores()["all"]["size_A"]
    assert scores["mae"] == pytest.approx(error.mean())
    assert scores["coverage"] == (error <= MODEL.calibration.half_width(0.9)[0]).mean()


def test_datasets_and_prepared_files_are_evaluated(tmp_path):
    write_folder(tmp_path / "in", 6)
    prepare(tmp_path / "in", tmp_path / "data.parquet")
    a, _ = evaluate(MODEL, tmp_path / "data.parquet")
    b, _ = evaluate(MODEL, toy_dataset(6))
    np.testing.assert_allclose(a.values, b.values, rtol=1e-4, atol=1e-5)


def test_columns_of_the_models_names_or_those_asked_for(tmp_path):
    write_folder(tmp_path, 3)
    values = toy_targets(toy_crystals(3))
    rows = [f"c{k},{k},{values[k]}" for k in range(3)]
    (tmp_path / "targets.csv").write_text("\n".join(["id,other_A,size_A", *rows, ""]))
    found, _ = evaluate(MODEL, tmp_path)
    np.testing.assert_allclose(found.truth[:, 0], values)
    found, _ = evaluate(MODEL, tmp_path, ["other_A"])
    assert found.truth[:, 0].tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="the model predicts size_A; got other_A, size_A"):
        evaluate(MODEL, tmp_path, ["other_A", "size_A"])
    (tmp_path / "targets.csv").write_text("\n".join(["id,other_A,third", "c0,1,2", ""]))
    said = "the model predicts size_A, the data have other_A, third; name the column of the same"
    with pytest.raises(ValueError, match=said):
        evaluate(MODEL, tmp_path)
    prepare(open_source(tmp_path, ["other_A", "third"]), tmp_path / "data.parquet")
    with pytest.raises(ValueError, match=said):
        evaluate(MODEL, tmp_path / "data.parquet")


@pytest.mark.parametrize("prepared", [False, True])
def test_another_quantity_is_refused_unless_it_is_named_and_its_unit_agrees(tmp_path, prepared):
    write_folder(tmp_path / "in", 3)

    def data(column):
        rows = [f"c{k},{k}" for k in range(3)]
        (tmp_path / "in" / "targets.csv").write_text("\n".join([f"id,{column}", *rows, ""]))
        if not prepared:
            return tmp_path / "in"
        prepare(tmp_path / "in", tmp_path / "data.parquet")
        return tmp_path / "data.parquet"

    length = data("length_A")
    with pytest.raises(ValueError, match="the model predicts size_A, the data have length_A; "):
        evaluate(MODEL, length)
    found, _ = evaluate(MODEL, length, ["length_A"])
    assert found.truth[:, 0].tolist() == [0, 1, 2]
    unknown = data("length")
    with pytest.raises(ValueError, match="name it with --target 'length'"):
        evaluate(MODEL, unknown)
    evaluate(MODEL, unknown, ["length"])
    pressure = data("size_GPa")
    for targets in (None, ["size_GPa"]):
        with pytest.raises(
            ValueError, match=r"units differ: .* size_A in Å, .* size_GPa is in GPa"
        ):
            evaluate(MODEL, pressure, targets)
