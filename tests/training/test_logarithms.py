"""Targets that are learned as logarithms: the same model as of their logarithms, in their unit."""

import csv
import dataclasses

import numpy as np
import pytest
from toy_crystals import toy_crystals, toy_dataset
from trainers import FAST

import sitenet
from sitenet.config import SiteNetConfig
from sitenet.inference.conditions import parse_condition, probabilities
from sitenet.inference.predict import outputs
from sitenet.inference.table import intervals, prediction_header
from sitenet.model.calibration import half_widths
from sitenet.model.checkpoint import FORMAT, read_metadata
from sitenet.model.target import Target, learned_values, shown_values
from sitenet.training.train import train

CONFIG = FAST.replace(epochs=4, valid=0.3, last_activation="identity")
# Both runs see the same float32 targets but for the rounding of 10**log10(x): 1e-15 of a value.
# A float32 prediction of the logarithm, y, has an error of |y| * 6e-8 and so 10**y one of
# |y| ln(10) * 6e-8 of its value, which twice 1e-6 covers for |y| < 5.
CLOSE = {"rtol": 2e-6}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One run that learns the logarithm of a modulus, one on the column of its logarithms."""
    folder = tmp_path_factory.mktemp("runs")
    logarithm = toy_dataset(80, names=("K",))
    logarithm.targets[:] = (logarithm.targets - logarithm.targets.mean()) * 1.5 + 1
    modulus = dataclasses.replace(logarithm, targets=10**logarithm.targets, units=("GPa",))
    results = (
        train(modulus, folder / "log", config=CONFIG, log=["K"]),
        train(logarithm, folder / "plain", config=CONFIG),
    )
    return *results, modulus


def read(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_and_intervals_are_powers_of_those_of_the_logarithm(runs):
    log, plain, data = runs
    (target,) = log.model.targets
    assert (target.scale, target.unit, target.learned_unit) == ("log10", "GPa", "log10(GPa)")
    assert target.mean == pytest.approx(plain.model.targets[0].mean)
    np.testing.assert_allclose(
        log.model.predict(data.crystals), 10 ** plain.model.predict(data.crystals), **CLOSE
    )
    rows, others = (read(run.folder / "predictions.csv") for run in (log, plain))
    assert len(rows) == len(others) > 20
    for row, other in zip(rows, others, strict=True):
        assert float(row["K"]) == pytest.approx(10 ** float(other["K"]), rel=1e-5)
        for name in ("K_predicted", "K_low", "K_high"):  # seven digits each
            assert float(row[name]) == pytest.approx(10 ** float(other[name]), rel=1e-5)


def test_errors_are_measured_in_the_unit_and_in_the_logarithm(runs):
    log, plain, _ = runs
    for split in ("valid", "test"):
        own, other = log.scores[split]["K"], plain.scores[split]["K"]
        assert own["mae_log10"] == pytest.approx(other["mae"], rel=1e-5)
        assert own["coverage"] == other["coverage"]
        assert "mae_log10" not in other
        rows = [r for r in read(log.folder / "predictions.csv") if r["split"] == split]
        truth, y, low, high = (
            np.array([float(r[n]) for r in rows]) for n in ("K", "K_predicted", "K_low", "K_high")
        )
        assert own["mae"] == pytest.approx(np.abs(y - truth).mean(), rel=1e-5)
        assert own["interval"] == pytest.approx((high - low).mean() / 2, rel=1e-5)
    for a, b in zip(log.history, plain.history, strict=True):
        assert a["valid_K_mae"] == pytest.approx(b["valid_K_mae"], rel=1e-5)


def test_a_file_keeps_the_scale(runs, tmp_path):
    log, plain, data = runs
    assert read_metadata(log.folder / "model.safetensors")["format"] == FORMAT
    loaded = sitenet.load(log.folder)
    assert loaded.targets == log.model.targets
    np.testing.assert_array_equal(loaded.predict(data.crystals), log.model.predict(data.crystals))
    (fields,) = read_metadata(plain.folder / "model.safetensors")["targets"]
    assert "scale" not in fields  # an older sitenet reads it


def test_every_table_is_in_the_unit(runs):
    log, plain, data = runs
    crystals = data.crystals[:6]
    table, other = log.model.table(crystals), plain.model.table(crystals)
    for name in ("value", "low", "high"):
        np.testing.assert_allclose(table[name], 10 ** other[name], **CLOSE)
    nearest = [run.model.neighbours(crystals, 3) for run in (log, plain)]
    for one, of_log in zip(*nearest, strict=True):
        values = [10 ** n.values[0] for n in of_log]
        assert [n.values[0] for n in one] == pytest.approx(values, rel=1e-5)
    explained = sitenet.explain(log.model, crystals[0])
    assert explained.predicted[0] == pytest.approx(table["value"][0])
    changes = sitenet.what_changes(log.model, crystals[0])
    assert changes.unchanged.values[0] == pytest.approx(table["value"][0])
    predictions, _ = sitenet.evaluate(log.model, data)
    np.testing.assert_allclose(predictions.values[:6, 0], table["value"], **CLOSE)


def test_a_condition_is_in_the_unit(runs):
    log, plain, data = runs
    encodings = [
        np.stack([z for _, z in outputs(run.model, data.crystals)]) for run in (log, plain)
    ]
    for text, of_log in (
        ("K > 20", "K > 1.30103"),
        ("K between 3 and 30", "K between 0.4771212 and 1.4771212"),
    ):
        p, q = (
            probabilities(run.model, z, parse_condition(each, run.model.targets))
            for run, z, each in zip((log, plain), encodings, (text, of_log), strict=True)
        )
        np.testing.assert_allclose(p, q, atol=1e-9)
        assert 0 < p.mean() < 1
    ranges = parse_condition("K < -5", log.model.targets)
    assert (probabilities(log.model, encodings[0], ranges) == 0).all()


def test_a_members_spread_widens_intervals_in_the_logarithm():
    data = toy_dataset(60, names=("K",))
    data.targets[:] = 10**data.targets
    model = train(data, config=CONFIG, log=["K"], members=2).model
    encodings = np.stack([z for _, z in outputs(model, data.crystals)])
    width = half_widths(model, encodings, 0.8)
    y = model.predict(data.crystals)[:, None]
    low, high = intervals(model.targets, y, width)
    np.testing.assert_allclose(high / y, y / low, rtol=1e-9)  # symmetric in the logarithm
    assert (width > 0).all() and np.isfinite(width).all()
    assert "K_zero_probability" not in prediction_header(model)


def test_an_arrangement_is_a_mean_in_the_unit(runs):
    log, plain, _ = runs
    crystal = toy_crystals(1, seed=3, sites=(4, 4))[0]
    numbers = np.concatenate([crystal.numbers, [31]])
    frac = np.concatenate([crystal.frac, crystal.frac[:1]])
    occupancy = [0.5, *[1.0] * (len(crystal) - 1), 0.5]
    mixed = sitenet.Crystal(
        crystal.cell, frac, np.where(numbers == 31, 14, numbers), occupancy=occupancy
    )
    mixed.numbers[-1] = 31
    one, other = (sitenet.predict_arrangements(run.model, mixed, samples=8) for run in (log, plain))
    np.testing.assert_allclose(one.values, 10**other.values, **CLOSE)
    shares = one.counts / one.counts.sum()
    np.testing.assert_allclose(one.mean, shares @ one.values)
    np.testing.assert_allclose(one.half_width, other.half_width, rtol=1e-4)


def test_values_without_a_logarithm_are_refused():
    data = toy_dataset(30, names=("K",))
    data.targets[7] = 0
    with pytest.raises(
        ValueError, match="K is learned as a logarithm: expected values above 0, got 0"
    ):
        train(data, config=CONFIG, log=["K"])
    with pytest.raises(ValueError, match="no target G; there is K"):
        train(data, config=CONFIG, log=["G"])
    with pytest.raises(ValueError, match="K is a class: it has no logarithm"):
        train(data, config=CONFIG, log=["K"], classes=["K"])
    for fields, message in (
        ({"scale": "log"}, "scale must be one of linear, log10, got 'log'"),
        ({"scale": "log10", "kind": "class"}, "a class has no scale"),
    ):
        with pytest.raises(ValueError, match=message):
            Target("K", **fields)


def test_values_below_one_need_a_last_activation_that_reaches_them():
    data = toy_dataset(40, names=("K",))
    data.targets[:] = 10 ** (data.targets - data.targets.mean())
    config = FAST.replace(last_activation=SiteNetConfig().last_activation)
    assert config.last_activation == "trelu"
    result = train(data, config=config, log=["K"], epochs=1)
    assert result.model.config.last_activation == "identity"
    assert result.model.lowest == -np.inf


def test_fine_tuning_keeps_the_decoder_of_the_same_scale_only(runs):
    log, plain, data = runs
    for start, kept in ((log, True), (plain, False)):
        tuned = train(data, start=start.model, epochs=1, learning_rate=1e-12, log=["K"])
        same = np.allclose(
            tuned.model.predict(data.crystals), log.model.predict(data.crystals), rtol=1e-3
        )
        assert same == kept


def test_scales_and_back():
    targets = [Target("a"), Target("b", scale="log10")]
    values = np.array([[-1.0, 10.0], [np.nan, 0.001], [2.0, np.nan]])
    learned = learned_values(targets, values)
    np.testing.assert_allclose(learned, [[-1, 1], [np.nan, -3], [2, np.nan]])
    np.testing.assert_allclose(shown_values(targets, learned), values)
    assert targets[1].learned([0, -3]).tolist() == [-np.inf, -np.inf]
    assert targets[1].shown([400, -np.inf]).tolist() == [np.inf, 0]
    assert Target("c", scale="log10").learned_unit == "log10"
