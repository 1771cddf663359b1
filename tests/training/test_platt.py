"""Probabilities of classes: calibrated on the validation crystals, inside the decoder."""

import numpy as np
import pytest
import torch
from toy_crystals import SMALL, toy_dataset
from trainers import FAST

import sitenet
from sitenet.inference.metrics import class_scores
from sitenet.model.ensemble import Ensemble
from sitenet.model.sitenet import SiteNet, Target
from sitenet.training import platt
from sitenet.training.platt import calibrate_probabilities

CLASS = Target("is_metal", kind="class")


def model_of(seed=0, targets=(CLASS,)):
    torch.manual_seed(seed)
    return SiteNet(SMALL, targets).double().eval()


def encodings_and_classes(model, slope, offset, count, seed=0):
    """Encodings, and classes drawn with the probability of slope * logit + offset."""
    rng = np.random.default_rng(seed)
    encodings = 4 * rng.normal(size=(count, model.encoding_size))
    logits = platt._logits(model, encodings, 0)
    p = platt._probability(logits, slope, offset)
    return encodings, (rng.random(count) < p).astype(float)[:, None]


@pytest.mark.parametrize("members", [1, 3])
def test_the_slope_and_offset_of_the_truth_are_found(members):
    each = [model_of(seed) for seed in range(members)]
    for member in each:  # logits of about one
        member.decoder.weight.data *= 2
    model = Ensemble(each) if members > 1 else each[0]
    encodings, truth = encodings_and_classes(model, 0.4, -0.7, 20_000)
    before = [x.clone() for x in platt._members(model)[0].decoder.parameters()]
    (done,) = calibrate_probabilities(model, encodings, truth).values()
    # 20,000 crystals leave standard errors of some 0.02 and 0.03 on the two numbers.
    assert done.slope == pytest.approx(0.4, abs=0.08) and done.offset == pytest.approx(
        -0.7, abs=0.12
    )
    weight, bias = platt._members(model)[0].decoder.parameters()
    torch.testing.assert_close(weight, done.slope * before[0])
    torch.testing.assert_close(bias, done.slope * before[1] + done.offset)
    new, new_truth = encodings_and_classes(model, 1, 0, 20_000, seed=1)
    p = model.properties(torch.as_tensor(new))[:, 0].numpy(force=True)
    assert class_scores(new_truth[:, 0], p)["calibration_error"] < 0.02
    assert done.after["log_loss"] < done.before["log_loss"]
    assert done.after["calibration_error"] < 0.02 < done.before["calibration_error"]


def test_sound_probabilities_and_few_crystals_stay_as_they_are(monkeypatch):
    model = model_of()
    encodings, truth = encodings_and_classes(model, 3.0, 1.0, 200)
    truth[:] = 1
    truth[: platt.LEAST - 1] = 0
    kept = [x.clone() for x in model.decoder.parameters()]
    assert calibrate_probabilities(model, encodings, truth) == {}
    truth[: 2 * platt.LEAST] = np.arange(2 * platt.LEAST)[:, None] % 2
    monkeypatch.setattr(platt, "_fit", lambda logits, y: (-5.0, 9.0))  # worse in every part
    (done,) = calibrate_probabilities(model, encodings, truth).values()
    assert (done.slope, done.offset) == (1, 0) and done.described("x").endswith("left as they are")
    for now, then in zip(model.decoder.parameters(), kept, strict=True):
        assert torch.equal(now, then)


def test_only_classes_with_known_values_count():
    model = model_of(targets=(Target("gap_eV", "eV"), CLASS))
    encodings = 4 * np.random.default_rng(0).normal(size=(900, model.encoding_size))
    logits = platt._logits(model, encodings, 1)
    truth = np.full((900, 2), 0.5)
    truth[:, 1] = np.random.default_rng(1).random(900) < platt._probability(logits, 0.3, 1.0)
    truth[600:, 1] = np.nan
    values = model.properties(torch.as_tensor(encodings))[:, 0]
    done = calibrate_probabilities(model, encodings, truth)
    assert list(done) == ["is_metal"] and done["is_metal"].crystals == 600
    assert torch.equal(model.properties(torch.as_tensor(encodings))[:, 0], values)


def test_a_fit_to_separated_classes_stays_finite():
    z = np.concatenate([np.linspace(-3, -1, 30), np.linspace(1, 3, 30)])[None]
    slope, offset = platt._fit(z, (z[0] > 0).astype(float))
    p = platt._probability(z, slope, offset)
    assert 0 < slope < 100 and 0 < p.min() < 0.1 and 0.9 < p.max() < 1


@pytest.mark.parametrize(("members", "bits"), [(1, None), (2, 10)])
def test_training_calibrates_and_keeps_what_it_did(tmp_path, members, bits):
    data = toy_dataset(160, names=("big",))
    noise = np.random.default_rng(0).normal(size=data.targets.shape)
    noisy = data.targets + data.targets.std() * noise
    data.targets = (noisy > np.median(noisy)).astype(float)
    how = {"classes": ["big"], "epochs": 4, "valid": 0.5, "members": members, "bits": bits}
    result = sitenet.train(data, tmp_path / "run", FAST, **how)
    (done,) = result.probabilities.values()
    assert done.crystals == result.scores["valid"]["big"]["crystals"] == 80
    kept = sitenet.model.checkpoint.read_metadata(tmp_path / "run" / "model.safetensors")
    assert kept["metadata"]["probabilities"] == {"big": vars(done)}
    model = sitenet.load(tmp_path / "run")
    np.testing.assert_allclose(
        model.predict(data.crystals), result.model.predict(data.crystals), atol=1e-6
    )
    again = sitenet.train(data, tmp_path / "run", FAST, **how)  # a finished run is calibrated anew
    assert again.probabilities == result.probabilities and again.scores == result.scores
