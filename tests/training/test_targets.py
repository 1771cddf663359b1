"""Targets: several, missing, negative, classes, and their scale."""

import numpy as np
import pytest
import torch
from toy_crystals import toy_dataset
from trainers import FAST, trainer_of

from sitenet.data.dataset import split
from sitenet.training.gradients import step_loss
from sitenet.training.train import train


def test_a_missing_value_pulls_nowhere():
    """A crystal without values changes nothing; a target is learned from those that have one."""
    data = toy_dataset(8, names=("a", "b"))
    data.targets[4:, 0] = np.nan
    run = trainer_of(FAST, data, double=True)
    truth = torch.as_tensor(data.targets)
    output = run.model(run.data.store.batch(range(8)))
    counts = torch.tensor([4, 8])
    want = (output[:4, 0] - truth[:4, 0]).abs().mean() + (output[:, 1] - truth[:, 1]).abs().mean()
    torch.testing.assert_close(step_loss(run.model, output, truth, counts), want)
    nothing = step_loss(run.model, output, torch.full_like(truth, torch.nan), torch.tensor([0, 0]))
    nothing.backward()
    assert nothing == 0
    assert all((p.grad == 0).all() for p in run.model.parameters() if p.grad is not None)


def test_several_targets_with_missing_values():
    data = toy_dataset(60, names=("small", "large"))
    data.targets[:, 1] *= 1000
    data.targets[::2, 0] = np.nan
    data.targets[3] = np.nan
    result = train(data, config=FAST, target=["small", "large"], epochs=12)
    assert result.model.targets[1].std > 100 * result.model.targets[0].std
    for name in ("small", "large"):
        first, last = (result.history[k][f"valid_{name}_mae"] for k in (0, -1))
        assert last < first
    assert result.scores["test"]["small"]["crystals"] < result.scores["test"]["large"]["crystals"]
    with pytest.raises(ValueError, match="which target to learn; there is small, large"):
        train(data, config=FAST)


def test_classes_are_told_apart():
    data = toy_dataset(80, names=("big",))
    data.targets = (data.targets > np.median(data.targets)).astype(float)
    result = train(data, config=FAST, classes=["big"], epochs=12, valid=0.3)
    history = result.history
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert max(h["valid_big_roc_auc"] for h in history) > 0.8
    assert result.scores["valid"]["big"]["roc_auc"] > 0.7
    assert (result.model.targets[0].kind, result.model.targets[0].std) == ("class", 1.0)
    p = result.model.predict(data.crystals)
    assert ((p >= 0) & (p <= 1)).all() and p.std() > 0
    data.targets[5] = 2
    with pytest.raises(ValueError, match="big is a class: expected 0 or 1, got 2"):
        train(data, config=FAST, classes=["big"])
    with pytest.raises(ValueError, match="no target small; there is big"):
        train(data, config=FAST, classes=["small"])


def test_targets_are_scaled_by_the_training_crystals():
    data = toy_dataset(30)
    parts = split(data, 0.1, 0.1, seed=FAST.training.seed)
    (target,) = train(data, config=FAST, epochs=1).model.targets
    values = data.targets[parts.train, 0]
    assert (target.mean, target.std) == pytest.approx((values.mean(), values.std()))
    (target,) = train(data, config=FAST, epochs=1, scale_targets=False).model.targets
    assert (target.mean, target.std, target.unit) == (0, 1, "Å")


def test_a_target_without_values_is_named():
    data = toy_dataset(20)
    data.targets[:] = np.nan
    with pytest.raises(ValueError, match="no training crystal has a value of size_A"):
        train(data, config=FAST)
