"""Intervals by predicted value, the probability of zero and that of a range hold what they say, and
agree with crepes."""

import numpy as np
import pytest
import torch
from toy_crystals import SMALL

import sitenet
from sitenet.model import calibration as calibrations
from sitenet.model.calibration import calibrate, errors_of, half_widths, zero_probabilities
from sitenet.model.errors import BINS, FLOOR, KEPT, LEAST, Errors, Outputs
from sitenet.model.sitenet import SiteNet, Target


def gaps(count, seed, spread=True):
    """Predictions like those of band gaps: two in five are metals; errors grow with the gap and
    with the members' spread."""
    rng = np.random.default_rng(seed)
    truth = np.where(rng.random(count) < 0.4, 0, rng.gamma(2, 1, count))
    apart = rng.lognormal(-2, 0.5, count)
    noise = rng.normal(size=count) * (0.1 + 0.2 * truth) * (0.5 + 4 * apart)
    raw = truth + noise - 0.3 * (truth == 0)
    columns = np.maximum(raw, 0)[:, None], raw[:, None], apart[:, None] if spread else None
    return Outputs(*columns), truth[:, None]


@pytest.mark.parametrize("spread", [True, False])
def test_every_bin_of_predicted_values_is_covered(spread):
    """The coverage of a bin of n calibration crystals has a standard error of sqrt(0.09 / n), that
    measured on m crystals one of sqrt(0.09 / m)."""
    known, known_truth = gaps(4000, 0, spread)
    errors = Errors.of(known, known_truth)
    new, truth = gaps(10_000, 1, spread)
    width = errors.half_width(0.9, new)
    covered = (np.abs(new.values - truth) <= width)[:, 0]
    raw = new.raw[:, 0]
    tolerance = 4 * np.sqrt(0.09 / (len(known_truth) / BINS) + 0.09 / (len(raw) / BINS))
    for part in np.array_split(np.argsort(raw), BINS):
        if raw[part].max() > 0:  # below, the prediction of nearly all metals is exactly right
            assert covered[part].mean() == pytest.approx(0.9, abs=tolerance)
        else:
            assert covered[part].mean() >= 0.9
    one_width = np.sort(np.abs(known.values - known_truth)[:, 0])[int(0.9 * 4001)]
    assert width.mean() < one_width


def test_few_crystals_are_one_bin():
    assert not Errors.of(*gaps(2 * LEAST - 1, 0)).is_binned
    assert Errors.of(*gaps(2 * LEAST, 0)).is_binned


def test_crepes_gives_the_same_intervals_and_probabilities():
    crepes = pytest.importorskip("crepes")
    known, known_truth = gaps(2000, 2)
    known_truth = known_truth + 0.01  # crepes knows no exact zeros
    new, _ = gaps(300, 3)
    errors = Errors.of(known, known_truth)
    edges = errors._targets[0].bins.edges
    floor = FLOOR * known.spread.mean()

    def arguments(outputs):
        bins = np.searchsorted(edges, outputs.raw[:, 0], side="right")
        return outputs.values[:, 0], (outputs.spread + floor)[:, 0], bins

    values, sigmas, bins = arguments(known)
    residuals = known_truth[:, 0] - values
    regressor = crepes.ConformalRegressor().fit(residuals, sigmas=sigmas, bins=bins)
    values, new_sigmas, new_bins = arguments(new)
    intervals = regressor.predict_int(values, sigmas=new_sigmas, bins=new_bins, confidence=0.9)
    ours = errors.half_width(0.9, new)[:, 0]
    np.testing.assert_allclose((intervals[:, 1] - intervals[:, 0]) / 2, ours, rtol=1e-9)

    system = crepes.ConformalPredictiveSystem().fit(residuals, sigmas=sigmas, bins=bins)
    theirs = system.predict_p(
        values, np.full(300, 1.1), sigmas=new_sigmas, bins=new_bins, smoothing=False
    )
    # Without smoothing, crepes counts the new crystal as a whole and ties fully.
    size = np.array([len(part) for part in errors._targets[0].signed])[new_bins]
    ours = errors.below(0, 1.1, new, or_equal=True)
    assert np.abs(ours - theirs.ravel()).max() <= 1 / (size.min() + 1)


def test_probabilities_of_zero_and_of_ranges_are_calibrated():
    """Of crystals with a probability of p, a share of p is hit: within 4 standard errors of the
    bins' counts and of the calibration's."""
    errors = Errors.of(*gaps(4000, 4))
    new, truth = gaps(20_000, 5)
    cases = [(errors.zero_probability(new)[:, 0], truth[:, 0] == 0)]
    for low, high in ((0.5, 1.0), (1.1, 1.7), (2.0, np.inf)):
        inside = errors.below(0, high, new, True) - errors.below(0, low, new, False)
        cases.append((inside, (truth[:, 0] >= low) & (truth[:, 0] <= high)))
    for probability, hit in cases:
        assert (probability >= 0).all() and (probability <= 1).all()
        for part in np.array_split(np.argsort(probability), 10):
            mean = probability[part].mean()
            noise = np.sqrt(mean * (1 - mean) * (1 / len(part) + 1 / 400)) + 1 / 400
            assert hit[part].mean() == pytest.approx(mean, abs=4 * noise)


def test_zero_itself_counts_where_the_bound_says_so():
    errors = Errors.of(*gaps(3000, 6))
    new, _ = gaps(50, 7)
    zero = errors.zero_probability(new)[:, 0]
    assert (errors.below(0, 0.0, new, or_equal=False) == 0).all()
    np.testing.assert_array_equal(errors.below(0, 0.0, new, or_equal=True), zero)
    assert (errors.below(0, -1.0, new, True) == 0).all()
    assert (errors.below(0, np.inf, new, False) == 1).all()
    bounds = np.linspace(0, 8, 40)
    rising = np.stack([errors.below(0, b, new, True) for b in bounds])
    assert (np.diff(rising, axis=0) >= 0).all()


def test_targets_without_zeros_have_no_probability_of_zero():
    outputs, truth = gaps(1000, 8)
    errors = Errors.of(outputs, truth + 1)
    assert not errors.has_zeros.any()
    assert np.isnan(errors.zero_probability(outputs)).all()
    assert (errors.below(0, 0.0, outputs, True) < 0.6).all()


def test_unknown_values_do_not_count():
    outputs, truth = gaps(1200, 9)
    truth[::2] = np.nan
    errors = Errors.of(outputs, truth)
    half = Errors.of(outputs.take(np.arange(1, 1200, 2)), truth[1::2])
    np.testing.assert_array_equal(errors.half_width(0.8, outputs), half.half_width(0.8, outputs))
    nothing = Errors.of(outputs, np.full_like(truth, np.nan))
    assert np.isinf(nothing.half_width(0.8, outputs)).all()
    with pytest.raises(ValueError, match="no validation crystal has a true value"):
        nothing.below(0, 1.0, outputs, True)


def test_of_very_many_crystals_some_are_kept():
    assert len(Errors.of(*gaps(KEPT + 5, 10)).truth) == KEPT


def model_of_gaps():
    """A model of random weights, calibrated on values that its encodings tell."""
    torch.manual_seed(0)
    model = SiteNet(SMALL.replace(last_activation="trelu"), [Target("gap", "eV")]).eval()
    rng = np.random.default_rng(11)
    encodings = rng.normal(size=(1500, model.encoding_size)).astype(np.float32)
    raw = calibrations.outputs(model, encodings).raw
    truth = np.maximum(raw + 0.1 * rng.normal(size=raw.shape) - np.median(raw), 0)
    y = calibrations.outputs(model, encodings).values
    model.calibration = calibrate(truth, y, encodings, encodings)
    model.calibration.errors = errors_of(model, encodings, truth)
    return model, encodings


def test_a_model_file_keeps_them(tmp_path):
    model, encodings = model_of_gaps()
    model.save(tmp_path / "m.safetensors")
    loaded = sitenet.load(tmp_path / "m.safetensors")
    assert loaded.calibration.errors.is_binned and loaded.calibration.errors.has_zeros.all()
    for function in (
        lambda m: half_widths(m, encodings, 0.9),
        lambda m: zero_probabilities(m, encodings),
    ):
        np.testing.assert_allclose(function(loaded), function(model), rtol=1e-4, atol=1e-6)
    assert np.ptp(half_widths(model, encodings, 0.9)) > 0


def test_classes_have_no_errors():
    model = SiteNet(SMALL, [Target("stable", kind="class")]).eval()
    encodings = np.zeros((600, model.encoding_size), np.float32)
    errors = errors_of(model, encodings, np.zeros((600, 1)))
    assert not errors.is_binned and not errors.has_zeros.any()
