"""What a run leaves in its folder, and which runs the folder refuses."""

import csv
import io
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from toy_crystals import toy_dataset, toy_targets, write_folder
from trainers import FAST, predicted, same, weights

from sitenet import load
from sitenet.config import load_config
from sitenet.data.dataset import LeftOut, Preparation
from sitenet.data.prepare import prepare
from sitenet.model.checkpoint import read_metadata
from sitenet.system.progress import Reporter
from sitenet.training.train import train
from sitenet.training.trainer import Trainer


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run over a folder in which one structure is missing and one cannot be read."""
    folder = tmp_path_factory.mktemp("run")
    crystals = write_folder(folder / "in", 30)
    (folder / "in" / "c3.cif").unlink()
    (folder / "in" / "c4.cif").write_text("data_x\n")
    result = train(folder / "in", folder / "out", FAST, epochs=4, valid=0.3)
    return folder, crystals, result


def test_what_a_run_leaves(finished):
    folder, crystals, result = finished
    out = folder / "out"
    files = {p.name for p in out.iterdir() if not p.name.startswith("events.")}
    assert files == {
        ".lock",
        "config.yaml",
        "left_out.csv",
        "learning_curve.png",
        "metrics.jsonl",
        "model.safetensors",
        "parity.png",
        "predictions.csv",
        "state.safetensors",
    }
    assert load_config(out / "config.yaml") == result.model.config
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.history
    assert [h["epoch"] for h in result.history] == [1, 2, 3, 4]
    with open(out / "left_out.csv", newline="") as file:
        left_out = [LeftOut(**row) for row in csv.DictReader(file)]
    assert left_out == result.left_out and [x.id for x in left_out] == ["c3", "c4"]
    model = load(out / "model.safetensors")
    assert same(weights(model), weights(result.model))
    assert model.targets == result.model.targets and model.calibration is not None
    facts = read_metadata(out / "model.safetensors")["metadata"]
    assert facts["crystals"] == {"train": 17, "valid": 8, "test": 3}
    assert facts["scores"] == result.scores
    truth = dict(zip((c.name for c in crystals), toy_targets(crystals), strict=True))
    rows = predicted(out)
    assert [row["split"] for row in rows] == ["valid"] * 8 + ["test"] * 3
    for row in rows:
        assert float(row["size_A"]) == pytest.approx(truth[row["id"]], abs=1e-5)


def test_tensorboard_events_hold_the_same(finished):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _, result = finished
    events = EventAccumulator(str(folder / "out")).Reload()
    for name in ("train_loss", "valid_mae", "learning_rate"):
        scalars = events.Scalars(name)
        assert [s.step for s in scalars] == [1, 2, 3, 4]
        np.testing.assert_allclose([s.value for s in scalars], [h[name] for h in result.history])


def test_a_run_needs_no_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    train(toy_dataset(20), tmp_path, FAST)
    assert not list(tmp_path.glob("events*"))


def test_a_finished_run_has_nothing_left_to_learn(finished, monkeypatch):
    folder, _, result = finished

    def never(self):
        raise AssertionError

    monkeypatch.setattr(Trainer, "train_epoch", never)
    events = sorted(p.name for p in (folder / "out").glob("events*"))
    again = train(folder / "in", folder / "out", FAST, epochs=4, valid=0.3)
    assert again.scores == result.scores and again.history == result.history
    assert same(weights(again.model), weights(result.model))
    assert sorted(p.name for p in (folder / "out").glob("events*")) == events


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 3}, "holds a finished run of 4 epochs, this is one of 3"),
        ({"blocks": 3, "seed": 1}, r"\(blocks: 2 there, 3 here; seed: 42 there, 1 here\)"),
        ({"fold": "x"}, "no crystal is in fold 'x'"),
    ],
)
def test_a_folder_with_another_run_is_refused(finished, changes, message):
    folder, _, _ = finished
    before = (folder / "out" / "config.yaml").read_text()
    with pytest.raises(ValueError, match=message):
        train(folder / "in", folder / "out", FAST, **{"epochs": 4, "valid": 0.3} | changes)
    assert (folder / "out" / "config.yaml").read_text() == before


def test_other_data_is_refused(finished):
    folder, _, _ = finished
    start = folder / "out" / "model.safetensors"
    for data, more in ((toy_dataset(28), {}), (folder / "in", {"start": start})):
        with pytest.raises(ValueError, match="holds a run with other data or settings"):
            train(data, folder / "out", FAST, **{"epochs": 4, "valid": 0.3} | more)


def test_other_structures_under_the_same_names_are_refused(tmp_path):
    train(toy_dataset(20), tmp_path, FAST, epochs=1)
    changes = [
        lambda c: replace(c, frac=c.frac + 1e-9),
        lambda c: replace(c, cell=c.cell * 1.001),
        lambda c: replace(c, numbers=c.numbers + 1),
        lambda c: replace(c, oxidation=np.zeros(len(c))),
    ]
    for change in changes:
        data = toy_dataset(20)
        data.crystals[7] = change(data.crystals[7])
        with pytest.raises(ValueError, match="holds a run with other data or settings: choose"):
            train(data, tmp_path, FAST, epochs=1)
    train(toy_dataset(20), tmp_path, FAST, epochs=1)


def test_a_prepared_dataset_trains_to_the_same_bits(tmp_path, finished):
    folder, _, result = finished
    prepare(folder / "in", tmp_path / "data.parquet")
    again = train(tmp_path / "data.parquet", tmp_path / "out", FAST, epochs=4, valid=0.3)
    assert same(weights(again.model), weights(result.model))
    assert again.left_out == result.left_out


def test_not_one_usable_structure_is_an_error(tmp_path):
    write_folder(tmp_path / "in", 3)
    for path in (tmp_path / "in").glob("*.cif"):
        path.write_text("data_x\n")
    with pytest.raises(ValueError, match=r"(none of|not one) .* can be used.*row 2: .*c0\.cif"):
        train(tmp_path / "in", tmp_path / "out", FAST)


def test_a_folder_that_cannot_be_written_is_noticed_first(tmp_path):
    """Before the data are read."""
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(OSError, match="file"):
            train(tmp_path / "no data", out, FAST)


def test_the_model_keeps_how_structures_were_read(tmp_path):
    write_folder(tmp_path / "in", 20)
    model = train(tmp_path / "in", None, FAST, epochs=1, primitive=False, disorder="average").model
    assert (model.config.primitive, model.config.disorder) == (False, "average")
    again = train(tmp_path / "in", None, FAST, epochs=1, start=model).model
    assert (again.config.primitive, again.config.disorder) == (False, "average")
    model = train(tmp_path / "in", None, FAST.replace(primitive=False), epochs=1).model
    assert (model.config.primitive, model.config.disorder) == (False, "error")


def test_the_model_keeps_how_a_dataset_was_prepared(tmp_path):
    """Whatever the call asks for, which comes too late."""
    write_folder(tmp_path / "in", 20)
    prepare(tmp_path / "in", tmp_path / "data.parquet", how=Preparation(False, "average"))
    lines = io.StringIO()
    reporter = Reporter(Console(file=lines, width=1000))
    for options in ({}, {"primitive": True}, {"max_crystals": 18}):
        data = tmp_path / "data.parquet"
        model = train(data, None, FAST, epochs=1, reporter=reporter, **options).model
        assert (model.config.primitive, model.config.disorder) == (False, "average")
    assert "prepared with primitive: false and disorder: average" in lines.getvalue()


def test_equal_structures_stay_on_one_side_of_the_split(tmp_path):
    data = toy_dataset(30)
    data = data.select([*range(30), *range(30)])
    data.ids = [f"{k}" for k in range(60)]
    lines = io.StringIO()
    reporter = Reporter(Console(file=lines, width=1000))
    options = {"epochs": 1, "valid": 0.3, "test": 0.3, "reporter": reporter}
    train(data, tmp_path / "structure", FAST, **options)
    assert (tmp_path / "structure" / "duplicates.csv").exists()
    assert "the structure of a training crystal" not in lines.getvalue()
    ids = {int(row["id"]) % 30 for row in predicted(tmp_path / "structure")}
    assert 2 * len(ids) == len(predicted(tmp_path / "structure"))
    train(data, tmp_path / "none", FAST, group="none", **options)
    assert "have the structure of a training crystal" in lines.getvalue()


def test_epochs_report_the_time_left_and_the_best(tmp_path):
    lines = io.StringIO()
    train(toy_dataset(20), None, FAST, reporter=Reporter(Console(file=lines, width=1000)))
    epochs = [line for line in lines.getvalue().splitlines() if line.startswith("epoch ")]
    assert len(epochs) == 3 and "(best so far)" in epochs[0]
    assert [line.endswith(" left") for line in epochs] == [True, True, False]
