"""The choice of a start among the weights that ship."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from toy_crystals import toy_crystals, toy_dataset, toy_targets
from trainers import FAST

import sitenet
from sitenet.data.dataset import Dataset
from sitenet.system import model_files
from sitenet.system.progress import Reporter
from sitenet.training import start as starts
from sitenet.training.start import Choice, is_auto


def learned(crystals, names, targets, units):
    data = Dataset(
        [c.name for c in crystals], crystals, targets, names, units, [""] * len(crystals)
    )
    model = sitenet.train(data, config=FAST, epochs=3).model
    return model


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Weights of a size, of a band gap, and some whose encodings say nothing."""
    folder = tmp_path_factory.mktemp("weights")
    crystals = toy_crystals(80, seed=1)
    size = toy_targets(crystals)[:, None]
    learned(crystals, ("size_A",), size, ("Å",)).save(folder / "size.safetensors")
    gap = learned(crystals, ("band_gap_eV",), size, ("eV",))
    gap.save(folder / "mp-gap.safetensors")
    deaf = learned(crystals, ("formation_energy_eV_per_atom",), size, ("eV/atom",))
    deaf.post_pool[-1].linear.weight.data.zero_()
    deaf.save(folder / "mp-eform.safetensors")
    return folder


@pytest.fixture
def shipped(weights, monkeypatch):
    monkeypatch.setattr(model_files, "weights_folder", lambda: weights)


def spoken(data, *arguments, **options):
    """A run's result, and what it reported."""
    said = io.StringIO()
    reporter = Reporter(Console(file=said, width=1000))
    result = sitenet.train(data, *arguments, start="auto", reporter=reporter, **options)
    return result, said.getvalue()


def test_the_ridge_chooses_where_no_weights_have_learned_the_property(shipped, tmp_path):
    data = replace(toy_dataset(120, seed=5, names=("volume",)), units=("K",))
    result, said = spoken(data, tmp_path / "run", epochs=1, valid=0.2)
    choice = json.loads((tmp_path / "run" / "start.json").read_text())
    assert choice["start"] == "mp-gap" and "size" not in choice["reason"]
    assert f"start: mp-gap, {choice['reason']}; --start NAME takes another" in said
    assert "encodings of 84 crystals" in said
    want = starts.load(starts.shipped_weights()["mp-gap"])
    assert result.model.config.embedding == want.config.embedding
    assert "batches of" in said  # by the size of the data


def test_weights_in_the_same_unit_are_candidates(shipped, tmp_path):
    data = toy_dataset(120, seed=5, names=("diameter",))
    parts = sitenet.data.dataset.split(data, 0.2, 0.1, 42)
    choice = starts.choose_start(data, parts, (), (), Reporter())
    assert "size 0." in choice.reason and choice.start in ("size", "mp-gap")
    errors = dict(x.split() for x in choice.reason.rpartition("(")[2].rstrip(")").split(", "))
    assert set(errors) == {"size", "mp-gap", "mp-eform"}
    assert errors[choice.start] == min(errors.values())
    # Encodings that are all alike predict the mean, with an error of some 0.8 standard deviations.
    assert float(errors["mp-eform"]) > 0.5 > float(min(errors.values()))


def test_weights_of_the_same_property_win_and_what_they_know_is_said(shipped, tmp_path):
    crystals = toy_crystals(80, seed=1)  # those that the weights learned from
    gap = toy_targets(crystals)[:, None]
    data = Dataset([c.name for c in crystals], crystals, gap, ("band_gap_eV",), ("eV",), [""] * 80)
    _, said = spoken(data, epochs=1, seed=3)  # validates others than they did
    assert "start: mp-gap, which predicts the same property and learned from " in said
    assert "of the validation crystals, so that errors will be too low" in said
    new = toy_crystals(40, seed=9)
    data = Dataset([c.name for c in new], new, gap[:40], ("band_gap_eV",), ("eV",), [""] * 40)
    _, said = spoken(data, epochs=1)
    assert "learned from none of the validation crystals" in said


def test_a_resumed_run_keeps_its_choice(shipped, tmp_path, monkeypatch):
    data = toy_dataset(60, names=("volume",))
    first, _ = spoken(data, tmp_path / "run", epochs=1)
    monkeypatch.setattr(starts, "choose_start", None)
    again, said = spoken(data, tmp_path / "run", epochs=2)
    assert len(again.history) == 2 and again.history[0] == first.history[0]
    assert "start:" not in said
    (tmp_path / "run" / "start.json").write_text("{")
    with pytest.raises(ValueError, match=r"start\.json is damaged"):
        spoken(data, tmp_path / "run", epochs=2)


def test_few_validation_crystals_and_classes(shipped):
    data = toy_dataset(30, names=("volume",))
    _, said = spoken(data, epochs=1, valid=0.1)
    assert "start: mp-eform, as fewer than 10 crystals validate" in said
    data = toy_dataset(120, seed=5, names=("big",))
    data.targets = (data.targets > np.median(data.targets)).astype(float)
    data.targets[::7] = np.nan
    _, said = spoken(data.with_values(), epochs=1, valid=0.3, classes=["big"])
    assert "start: mp-gap, by" in said


def test_each_fold_of_a_cross_validation_chooses(shipped, tmp_path):
    data = toy_dataset(60, names=("volume",))
    sitenet.crossval(data, tmp_path, folds=2, start="auto", epochs=1)
    assert {Choice.read(tmp_path / f"fold-{k}").start for k in (1, 2)} <= {"mp-gap", "mp-eform"}


def test_auto_stands_alone_and_needs_weights(tmp_path, monkeypatch):
    assert is_auto("auto") and is_auto(["auto"]) and not is_auto("mp-gap") and not is_auto(None)
    with pytest.raises(ValueError, match="name no other beside it"):
        is_auto(["auto", "mp-gap"])
    monkeypatch.setattr(model_files, "weights_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match="and none do"):
        sitenet.train(toy_dataset(20), start="auto")
