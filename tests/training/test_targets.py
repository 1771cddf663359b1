"""Targets: several, missing, negative, classes, and their scale."""

import io

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console
from toy_crystals import toy_dataset
from trainers import FAST, trainer_of

from sitenet.config import SiteNetConfig
from sitenet.data.dataset import split
from sitenet.model.sitenet import SiteNet, Target
from sitenet.system.progress import Reporter
from sitenet.training.finish import no_better_than_a_constant
from sitenet.training.gradients import step_loss
from sitenet.training.train import train


def test_a_missing_value_pulls_nowhere():
    """A crystal without values changes nothing; each target learns from its known values."""
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


def test_classes_are_learned():
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
    with pytest.raises(ValueError, match="no value of size_A"):
        train(data, config=FAST)


# ---------------------------------------------------------------------------------------------
# Negative values

UNSET = {k: v for k, v in FAST.to_dict().items() if k != "last_activation"}


def negative_dataset(number=40):
    data = toy_dataset(number)
    data.targets -= data.targets.mean()
    return data


def spoken(data, config, **options):
    """The result of a run, and what it reported."""
    lines = io.StringIO()
    result = train(
        data, None, config, reporter=Reporter(Console(file=lines, width=1000)), **options
    )
    return result, lines.getvalue()


def as_yaml(path, values):
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.mark.parametrize("kind", ["mapping", "file", "base", "object"])
def test_negative_targets_are_learned(tmp_path, kind):
    """However the config is passed, as long as it does not set the last activation."""
    file = as_yaml(tmp_path / "config.yaml", UNSET)
    config = {
        "mapping": UNSET,
        "file": file,
        "base": {"base": str(file), "blocks": 1},
        "object": SiteNetConfig.from_dict(UNSET),
    }[kind]
    result, said = spoken(negative_dataset(), config)
    assert result.model.config.last_activation == "identity"
    assert "size_A has negative values: last_activation is identity, instead of trelu" in said
    assert (result.model.predict(negative_dataset().crystals) < 0).any()


@pytest.mark.parametrize("kind", ["mapping", "file", "base", "change", "start"])
def test_an_explicit_last_activation_is_kept(tmp_path, kind):
    """And a warning says that it cannot predict them."""
    explicit = UNSET | {"last_activation": "softplus"}
    file = as_yaml(tmp_path / "config.yaml", explicit)
    config, options = explicit, {}
    if kind == "file":
        config = file
    elif kind == "base":
        config = {"base": str(file), "blocks": 1}
    elif kind in ("change", "start"):
        config, options = UNSET, {"last_activation": "softplus"}
    if kind == "start":
        options["start"] = SiteNet(SiteNetConfig.from_dict(UNSET), [Target("size_A")])
    with pytest.warns(UserWarning, match="negative values, which last_activation: softplus cannot"):
        result = train(negative_dataset(), None, config, epochs=1, **options)
    assert result.model.config.last_activation == "softplus"


def test_positive_targets_and_classes_keep_the_last_activation():
    assert train(toy_dataset(20), None, UNSET, epochs=1).model.config.last_activation == "trelu"
    data = toy_dataset(20)
    data.targets = (data.targets > np.median(data.targets)).astype(float)
    model = train(data, None, UNSET, epochs=1, classes=["size_A"]).model
    assert model.config.last_activation == "trelu"


def test_a_model_of_positive_values_is_fine_tuned_on_negative_ones():
    start = SiteNet(SiteNetConfig.from_dict(UNSET), [Target("other")])
    model = train(negative_dataset(), None, UNSET, epochs=1, start=start).model
    assert model.config.last_activation == "identity"


def test_a_model_of_negative_values_is_fine_tuned_on_positive_ones():
    """Only on another property than its own, and unless the user chose the identity."""

    def activation(data, target="other", **options):
        start = SiteNet(
            SiteNetConfig.from_dict(UNSET | {"last_activation": "identity"}), [Target(target)]
        )
        result, said = spoken(data, None, epochs=1, start=start, **options)
        assert ("no value of size_A is negative: last_activation is trelu" in said) == (
            result.model.config.last_activation == "trelu"
        )
        return result.model.config.last_activation

    assert activation(toy_dataset(20)) == "trelu"
    assert activation(toy_dataset(20), target="size_A") == "identity"
    assert activation(toy_dataset(20), last_activation="identity") == "identity"
    assert activation(toy_dataset(20), log=["size_A"]) == "identity"
    assert activation(negative_dataset()) == "identity"
    classes = toy_dataset(20)
    classes.targets = (classes.targets > np.median(classes.targets)).astype(float)
    assert activation(classes, classes=["size_A"]) == "identity"


# ---------------------------------------------------------------------------------------------
# What a run reports


def test_crystals_without_a_value_are_not_learned_from():
    """The loss has the same bits as without these crystals."""
    data = toy_dataset(30)
    data.split = ["train"] * 20 + ["valid"] * 10
    data.targets[15:20] = np.nan
    fewer = data.select([*range(15), *range(20, 30)])
    (got, said), (want, _) = (spoken(x, FAST, epochs=2, test=0.0) for x in (data, fewer))
    assert got.history[-1]["train_loss"] == want.history[-1]["train_loss"]
    assert "15 crystals to learn from, 10 to validate, 0 to test" in said


def test_a_run_that_learns_nothing_says_so():
    for config, learns in ((FAST.replace(learning_rate=1e-9), False), (FAST, True)):
        result, said = spoken(toy_dataset(60), config, epochs=12 if learns else 1)
        scores = result.scores["test"]["size_A"]
        assert (scores["mae"] < min(scores["mae_of_mean"], scores["mae_of_median"])) == learns
        expected = "WARNING: the model has not learned size_A: on the test crystals, MAE "
        assert (expected in said) != learns
        if not learns:
            assert "Try more epochs (now 1), another learning_rate (now 1e-09)" in said


def test_classes_no_better_than_chance_are_reported():
    bad = {"test": {"big": {"crystals": 5, "roc_auc": 0.4}}}
    good = {"test": {"big": {"crystals": 5, "roc_auc": 0.9}, "a": {"roc_auc": np.nan}}}
    (line,) = no_better_than_a_constant(bad, FAST.training, 10)
    assert "not learned big: on the test crystals, ROC AUC 0.4, against 0.5 from chance" in line
    assert no_better_than_a_constant(good, FAST.training, 10) == []
