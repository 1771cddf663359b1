"""Intervals hold what they state on exchangeable data, and strangers are told from relatives."""

import numpy as np
import pytest
import torch
from toy_crystals import SMALL

from sitenet import load
from sitenet.model.calibration import DIMENSIONS, INSIDE, POINTS, RESIDUALS, calibrate
from sitenet.model.sitenet import SiteNet, Target


def calibration_of(residuals, encodings=None, train=None):
    truth = np.asarray(residuals, dtype=np.float64)
    truth = truth[:, None] if truth.ndim == 1 else truth
    rng = np.random.default_rng(0)
    encodings = rng.normal(size=(len(truth), 3)) if encodings is None else encodings
    train = rng.normal(size=(50, 3)) if train is None else train
    return calibrate(truth, np.zeros_like(truth), encodings, train)


@pytest.mark.parametrize(("count", "coverage"), [(99, 0.9), (30, 0.8), (19, 0.95)])
def test_measured_coverage_is_the_stated_one(count, coverage):
    """Of new crystals, ceil((n + 1) c) / (n + 1) on average over calibrations; each repetition's
    is a Beta variable of about that mean, of which many average the noise away."""
    rng = np.random.default_rng(0)
    repetitions, found = 500, []
    for _ in range(repetitions):
        residuals = np.abs(rng.standard_t(3, count + 40))
        width = calibration_of(residuals[:count]).half_width(coverage)[0]
        found.append((residuals[count:] <= width).mean())
    want = np.ceil((count + 1) * coverage - 1e-9) / (count + 1)
    assert np.mean(found) == pytest.approx(want, abs=4 * np.std(found) / repetitions**0.5)
    assert coverage - 1e-9 <= want < coverage + 1 / count


def test_of_many_residuals_quantiles_are_kept_and_cover_no_less():
    rng = np.random.default_rng(1)
    residuals = np.abs(rng.normal(size=3 * RESIDUALS + 7))
    calibration = calibration_of(residuals)
    assert calibration.residuals.shape == (1, RESIDUALS)
    for coverage in (0.1, 0.5, 0.9, 0.99, 0.999):
        exact = np.sort(residuals)[int(np.ceil((len(residuals) + 1) * coverage)) - 1]
        width = calibration.half_width(coverage)[0]
        covered = (residuals <= width).mean()
        assert width >= exact and coverage <= covered <= coverage + 2 / RESIDUALS


def test_the_width_is_one_of_the_residuals():
    calibration = calibration_of(np.arange(1, 10))
    assert calibration.half_width(0.9)[0] == 9
    assert calibration.half_width(0.5)[0] == 5
    assert calibration.half_width(0.1)[0] == 1


def test_too_few_crystals_give_no_interval():
    calibration = calibration_of(np.arange(1, 10))
    assert np.isinf(calibration.half_width(0.91)).all()
    assert np.isinf(calibration_of([]).half_width(0.5)).all()


def test_intervals_follow_the_spread_and_cover_no_less():
    """Residuals as large as the members are apart, by chance: intervals are wide where they are,
    and hold the stated part; those of one width for all would be wider on average."""
    rng = np.random.default_rng(0)
    apart = rng.lognormal(sigma=1.5, size=(4000, 1))
    truth = apart * rng.normal(size=(4000, 1))
    encodings, zeros = rng.normal(size=(4000, 3)), np.zeros((2000, 1))
    known, new = slice(0, 2000), slice(2000, 4000)
    given = truth[known], zeros, encodings[known], encodings[known]
    by_spread, plain = calibrate(*given, spread=apart[known]), calibrate(*given)
    width = by_spread.half_width(0.9, apart[new])
    assert width.shape == (2000, 1)
    assert (np.abs(truth[new]) <= width).mean() == pytest.approx(0.9, abs=0.02)
    assert np.corrcoef(width[:, 0], apart[new][:, 0])[0, 1] > 0.999
    assert width.mean() < 0.8 * plain.half_width(0.9)[0]
    with pytest.raises(ValueError, match="need the spread"):
        by_spread.half_width(0.9)


def test_members_that_agree_leave_plain_intervals():
    residuals = np.arange(1, 20, dtype=float)[:, None]
    encodings = np.random.default_rng(0).normal(size=(19, 3))
    nothing = np.zeros_like(residuals)
    found = calibrate(residuals, nothing, encodings, encodings, spread=nothing)
    assert found.half_width(0.5, np.zeros((2, 1))).tolist() == [[10], [10]]


@pytest.mark.parametrize("coverage", [0, 1, -0.1, 1.5, np.nan])
def test_a_coverage_that_is_none_is_refused(coverage):
    with pytest.raises(ValueError, match="coverage must be between 0 and 1"):
        calibration_of([1, 2]).half_width(coverage)


def test_targets_have_widths_of_their_own_where_values_are_known():
    residuals = np.stack([np.arange(1, 20), np.arange(1, 20) * 10], 1).astype(float)
    residuals[10:, 1] = np.nan
    calibration = calibration_of(residuals)
    assert calibration.counts.tolist() == [19, 10]
    assert calibration.half_width(0.5).tolist() == [10, 60]
    assert calibration.half_width(0.95).tolist() == [19, np.inf]


def test_relatives_are_inside_and_strangers_outside():
    rng = np.random.default_rng(2)
    mix = rng.normal(size=(4, 10)) * 100
    train, valid, new = (rng.normal(size=(n, 4)) @ mix + 7 for n in (600, 300, 300))
    calibration = calibration_of(np.ones(300), valid, train)
    assert calibration.inside(valid).mean() == pytest.approx(INSIDE, abs=0.01)
    assert calibration.inside(new).mean() > 0.95
    strangers = rng.normal(size=(50, 4)) * 0.1 @ mix + 8 * mix[0]
    assert not calibration.inside(strangers).any()
    near, far = (calibration.distance(train[:20] + k * mix[1]).mean() for k in (1, 10))
    assert calibration.distance(train).mean() < near < far
    assert not calibration.inside(np.full((1, 10), np.nan)).any()


def test_units_of_the_encoding_do_not_matter():
    rng = np.random.default_rng(3)
    train, valid = rng.normal(size=(2, 80, 5))
    scale = 10.0 ** np.arange(-2, 3)
    a = calibration_of(np.ones(80), valid, train)
    b = calibration_of(np.ones(80), valid * scale, train * scale)
    np.testing.assert_allclose(a.distance(valid), b.distance(valid * scale), rtol=1e-6)


def test_of_many_training_crystals_some_are_kept():
    rng = np.random.default_rng(4)
    calibration = calibration_of(
        np.ones(10), rng.normal(size=(10, 30)), rng.normal(size=(1500, 30))
    )
    assert calibration.points.shape == (POINTS, DIMENSIONS)


@pytest.mark.parametrize("train", [np.zeros((1, 3)), np.ones((7, 3))])
def test_training_crystals_without_spread_do_no_harm(train):
    calibration = calibration_of([1.0, 2.0], np.zeros((2, 3)), train)
    assert calibration.inside(np.zeros((4, 3))).all()


def test_without_validation_everything_counts_as_inside():
    assert calibration_of([]).inside(np.full((2, 3), 1e9)).all()


def test_a_model_file_keeps_it(tmp_path):
    torch.manual_seed(0)
    model = SiteNet(SMALL, [Target("a", "eV"), Target("b")])
    rng = np.random.default_rng(5)
    residuals = np.abs(rng.normal(size=(40, 2)))
    encodings, train = rng.normal(size=(40, 6)), rng.normal(size=(60, 6))
    model.calibration = calibration_of(residuals, encodings, train)
    model.save(tmp_path / "m.safetensors")
    loaded = load(tmp_path / "m.safetensors").calibration
    np.testing.assert_allclose(loaded.half_width(0.9), model.calibration.half_width(0.9), rtol=1e-6)
    np.testing.assert_allclose(
        loaded.distance(train), model.calibration.distance(train), rtol=1e-5, atol=1e-5
    )
    assert loaded.threshold == pytest.approx(model.calibration.threshold, rel=1e-6)
    assert loaded.counts.tolist() == [40, 40]
