"""Cross-validation: each crystal predicted once by a model that has not seen it, and resumed."""

import csv
import json

import numpy as np
import pytest
import yaml
from toy_crystals import toy_crystals, toy_targets, write_folder
from trainers import FAST

from sitenet import load
from sitenet.cli import app as cli
from sitenet.data.prepared import load_dataset
from sitenet.training.crossval import crossval
from sitenet.training.train import Stopped
from sitenet.training.trainer import Trainer

NUMBER = 15


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("crossval")
    write_folder(folder / "in", NUMBER)
    (folder / "in" / "c3.cif").write_text("data_x\n")
    result = crossval(folder / "in", folder / "out", FAST, folds=3, epochs=2)
    return folder, result


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_every_crystal_is_predicted_once_by_the_model_of_its_fold(finished):
    folder, result = finished
    rows = rows_of(folder / "out" / "predictions.csv")
    crystals = {c.name: c for c in toy_crystals(NUMBER)}
    assert [row["id"] for row in rows] == [name for name in crystals if name != "c3"]
    truth = dict(zip(crystals, toy_targets(list(crystals.values())), strict=True))
    for fold in ("1", "2", "3"):
        model = load(folder / "out" / f"fold-{fold}")
        own = [row for row in rows if row["fold"] == fold]
        # CIFs and CSVs hold 6 to 10 digits.
        expected = model.predict([crystals[row["id"]] for row in own])
        got = [float(row["size_A_predicted"]) for row in own]
        np.testing.assert_allclose(got, expected, rtol=1e-3)
        errors = [abs(y - truth[row["id"]]) for y, row in zip(got, own, strict=True)]
        mae = result.scores[int(fold) - 1]["size_A"]["mae"]
        assert mae == pytest.approx(np.mean(errors), abs=1e-5)
    assert [x.id for x in result.left_out] == ["c3"]


def test_scores_are_beside_their_baselines(finished):
    folder, result = finished
    rows = rows_of(folder / "out" / "folds.csv")
    assert [row["fold"] for row in rows] == ["1", "2", "3", "mean", "std"]
    values = [fold["size_A"]["mae"] for fold in result.scores]
    assert result.over_folds("size_A", "mae") == (np.mean(values), np.std(values))
    assert float(rows[3]["mae"]) == pytest.approx(np.mean(values), rel=1e-4)
    assert {"mae_of_mean", "mae_of_median", "r2"} <= rows[0].keys()
    (line,) = result.summary()
    assert line.startswith(
        f"size_A: MAE {np.mean(values):.4g} ± {np.std(values):.2g} Å over 3 folds"
    )
    assert "Å if predicting the mean" in line and "Å if predicting the median" in line


def test_finished_folds_are_not_trained_again(finished, tmp_path, monkeypatch):
    folder, result = finished
    train_epoch, epochs = Trainer.train_epoch, []

    def counted(self, *arguments):
        epochs.append(self.folder.name)
        if len(epochs) == 4:  # the second epoch of the second fold
            raise KeyboardInterrupt
        return train_epoch(self, *arguments)

    monkeypatch.setattr(Trainer, "train_epoch", counted)
    again = crossval(folder / "in", folder / "out", FAST, folds=3, epochs=2)
    assert not epochs and again.scores == result.scores
    with pytest.raises(Stopped, match="the same command resumes"):
        crossval(folder / "in", tmp_path, FAST, folds=3, epochs=2)
    resumed = crossval(folder / "in", tmp_path, FAST, folds=3, epochs=2)
    assert epochs[4:] == ["fold-2", "fold-3", "fold-3"] and resumed.scores == result.scores


def test_the_command(tmp_path, capsys):
    write_folder(tmp_path / "in", NUMBER)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(FAST.to_dict()))
    arguments = ["crossval", tmp_path / "in", "--out", tmp_path / "out", "--config", config]
    arguments += ["--folds", 2, "--epochs", 1, "--group", "formula", "--unit", "pm"]

    def run(*more):
        with pytest.raises(SystemExit) as end:
            cli.main(list(map(str, [*arguments, *more])))
        assert not end.value.code
        return capsys.readouterr()

    out, err = run()
    rows = list(csv.DictReader(out.splitlines()))
    assert [row["fold"] for row in rows] == ["1", "2", "mean", "std"]
    assert (
        "fold 2 of 2" in err
        and "pm over 2 folds" in err
        and "predictions of all crystals are in" in err
    )
    assert len(json.loads(run("--json")[0])["folds"]) == 2
    data = load_dataset(tmp_path / "out" / "dataset.parquet")
    assert data.units == ("pm",)
    fold = {row["id"]: row["fold"] for row in rows_of(tmp_path / "out" / "predictions.csv")}
    formulas = {}
    for name, crystal in zip(data.ids, data.crystals, strict=True):
        formulas.setdefault(crystal.reduced_formula, set()).add(fold[name])
    assert all(len(parts) == 1 for parts in formulas.values())
