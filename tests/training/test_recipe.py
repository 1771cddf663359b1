"""Settings that follow from the number of crystals or from a start, and runs that are extended."""

import io

import numpy as np
import pytest
from rich.console import Console
from toy_crystals import SIZE, toy_dataset
from trainers import FAST, same, timeless, weights

from sitenet.config import DEFAULT_CONFIG, TrainingConfig, load_config
from sitenet.model.checkpoint import read_metadata
from sitenet.model.sitenet import SiteNet
from sitenet.system.progress import Reporter
from sitenet.training import recipe
from sitenet.training.plan import make_plan
from sitenet.training.recipe import batch_for, described, epochs_for, open_settings
from sitenet.training.train import Stopped, train
from sitenet.training.trainer import Trainer

ERRORS = {"valid_size_A_mae": 0.0}
OPEN = FAST.replace(epochs=None, batch_sites=0, batch_crystals=None)


def spoken(*arguments, **options):
    """A run's result, and what it reported."""
    said = io.StringIO()
    result = train(*arguments, reporter=Reporter(Console(file=said, width=1000)), **options)
    return result, said.getvalue()


# ---------------------------------------------------------------------------------------------
# The size of the data


@pytest.mark.parametrize(
    ("crystals", "batch", "epochs"),
    # 40 * sqrt(3200 / crystals) epochs; the power of two nearest to crystals / 20, as ratios go.
    [(1, 4, 300), (80, 4, 253), (240, 16, 146), (800, 32, 80), (3200, 64, 40), (85_000, 64, 40)],
)
def test_batches_and_epochs_follow_the_number_of_crystals(crystals, batch, epochs):
    assert (batch_for(crystals), epochs_for(crystals, has_start=False)) == (batch, epochs)
    assert epochs_for(crystals, has_start=True) == pytest.approx(epochs / 1.5, abs=1)


def test_more_crystals_never_get_more_epochs_or_smaller_batches():
    counts = np.unique(np.geomspace(1, 1e6, 200).astype(int)).tolist()
    assert sorted(map(batch_for, counts)) == list(map(batch_for, counts))
    for has_start in (False, True):
        epochs = [epochs_for(count, has_start) for count in counts]
        assert sorted(epochs, reverse=True) == epochs


@pytest.mark.parametrize(
    ("settings", "chosen"),
    [
        ({}, {}),
        ({"epochs": None}, {"epochs": 146}),
        ({"batch_crystals": None}, {}),  # batch_sites holds
        ({"batch_sites": 0, "batch_crystals": None}, {"batch_crystals": 16}),
        ({"batch_sites": 0, "batch_crystals": 7, "epochs": None}, {"epochs": 146}),
    ],
)
def test_what_a_config_sets_is_not_chosen(settings, chosen):
    assert open_settings(TrainingConfig(**settings), 240, has_start=False) == chosen


def test_the_choice_is_one_line():
    chosen = {"batch_crystals": 16, "epochs": 146}
    line = "240 crystals: batches of 16, 146 epochs; set --batch-crystals, --epochs to change"
    assert described(240, chosen) == line
    assert described(240, {"epochs": 9}) == "240 crystals: 9 epochs; set --epochs to change"


def test_a_run_says_and_keeps_what_was_chosen(tmp_path, monkeypatch):
    """Also where the rules have changed since it began."""
    data = toy_dataset(20)
    result, said = spoken(data, tmp_path, OPEN, epochs=3)
    assert "16 crystals: batches of 4; set --batch-crystals to change" in said
    config = load_config(tmp_path / "config.yaml")
    assert config == result.model.config and config.training.batch_crystals == 4
    monkeypatch.setattr(recipe, "batch_for", lambda crystals: 8)
    monkeypatch.setattr(recipe, "epochs_for", lambda crystals, has_start: 5)
    again, said = spoken(data, tmp_path, OPEN)
    assert "16 crystals: batches of 4, 3 epochs, as this run began" in said
    assert same(weights(again.model), weights(result.model))
    assert timeless(again.history) == timeless(result.history)


def test_members_of_an_ensemble_share_the_choice(tmp_path):
    spoken(toy_dataset(20), tmp_path, OPEN, epochs=1, members=2, member=1)
    result, said = spoken(toy_dataset(20), tmp_path, OPEN, members=2)
    assert "batches of 4, 1 epochs, as this run began" in said
    assert [entry["epoch"] for entry in result.history] == [1, 1]


def test_a_damaged_config_leaves_the_choice_to_the_rules(tmp_path):
    train(toy_dataset(20), tmp_path, OPEN, epochs=1)
    (tmp_path / "config.yaml").write_text("training: {epochs: [")
    _, said = spoken(toy_dataset(20), tmp_path, OPEN, epochs=1)
    assert "16 crystals: batches of 4; set" in said and "damaged or edited" in said


# ---------------------------------------------------------------------------------------------
# Defaults


def test_the_default_config_is_named_once():
    config = make_plan(None, None, {}).config
    assert config == load_config(DEFAULT_CONFIG)
    assert (config.training.epochs, config.training.batch_crystals) == (None, None)


def test_crystals_per_batch_are_heeded_in_every_config():
    """The published one sizes batches by sites."""
    for name in ("paper", DEFAULT_CONFIG):
        training = load_config(name).replace(batch_crystals=7).training
        assert (training.batch_sites, training.batch_crystals) == (0, 7)


@pytest.fixture(scope="module")
def start():
    trained = {"learning_rate": 3e-2, "optimizer": "muon", "valid": 0.03, "schedule": "constant"}
    return SiteNet(FAST.replace(**trained, scale_targets=False), [SIZE])


def test_a_start_brings_its_recipe(start):
    plan = make_plan(None, start, {})
    training = plan.config.training
    assert plan.config.replace(training=start.config.training) == start.config
    assert training.learning_rate == start.config.training.learning_rate == 3e-2
    assert (training.optimizer, training.schedule, training.warmup) == ("muon", "cosine", 0.1)
    assert training.scale_targets and training.epochs is None and training.batch_crystals is None
    assert training.valid == TrainingConfig().valid


def test_options_and_a_named_config_win_over_the_recipe(start):
    changes = {"learning_rate": 0.5, "epochs": 7, "schedule": "onecycle", "batch_sites": 50}
    training = make_plan(None, start, changes).config.training
    assert {name: getattr(training, name) for name in changes} == changes
    assert make_plan(FAST, start, {}).config.training == FAST.training


@pytest.mark.parametrize(("schedule", "kept"), [("constant", 1), ("cosine", 4), ("onecycle", 4)])
def test_the_best_epoch_is_one_of_a_low_learning_rate(monkeypatch, tmp_path, schedule, kept):
    """However lucky an epoch of the first half is."""
    errors = iter([1.0, 5.0, 4.0, 2.0, 3.0])
    monkeypatch.setattr(Trainer, "validate", lambda self: dict(ERRORS, valid_error=next(errors)))
    train(toy_dataset(20), tmp_path, FAST, epochs=5, schedule=schedule)
    assert read_metadata(tmp_path / "model.safetensors")["metadata"]["epoch"] == kept


# ---------------------------------------------------------------------------------------------
# Extending


def stop_after_four(entry):
    if entry["epoch"] == 4:
        raise KeyboardInterrupt


def test_a_constant_rate_goes_on_to_the_same_bits(tmp_path):
    train(toy_dataset(20), tmp_path / "a", FAST, epochs=2)
    extended, said = spoken(toy_dataset(20), tmp_path / "a", FAST, epochs=5)
    assert "ended after 2 epochs and goes on to 5; the learning rate begins" in said
    whole = train(toy_dataset(20), tmp_path / "b", FAST, epochs=5)
    assert timeless(extended.history) == timeless(whole.history)
    assert same(weights(extended.model), weights(whole.model))
    assert load_config(tmp_path / "a" / "config.yaml").training.epochs == 5


def test_a_schedule_begins_again_and_resumes(tmp_path):
    options = {"schedule": "cosine", "ema": 0.8, "optimizer": "muon"}
    for name in ("a", "b"):
        train(toy_dataset(20), tmp_path / name, FAST, epochs=2, **options)
    whole = train(toy_dataset(20), tmp_path / "a", FAST, epochs=6, **options)
    rates = [entry["learning_rate"] for entry in whole.history]
    assert rates[1] < rates[2] > rates[3] > rates[4] > rates[5]
    with pytest.raises(Stopped):
        more = {"after_epoch": stop_after_four, **options}
        train(toy_dataset(20), tmp_path / "b", FAST, epochs=6, **more)
    with pytest.raises(ValueError, match=r"6 epochs that is at epoch 4, .* finish it with --epo"):
        train(toy_dataset(20), tmp_path / "b", FAST, epochs=8, **options)
    resumed = train(toy_dataset(20), tmp_path / "b", FAST, epochs=6, **options)
    assert timeless(resumed.history) == timeless(whole.history)
    assert same(weights(resumed.model), weights(whole.model))


def test_a_run_that_lost_patience_is_extended_from_there(tmp_path):
    options = {"patience": 2, "learning_rate": 1e-30, "valid": 0.3}  # the first epoch stays best
    short = train(toy_dataset(20), tmp_path, FAST, epochs=9, **options)
    ended = len(short.history)
    assert ended < 9
    longer = train(toy_dataset(20), tmp_path, FAST, epochs=12, **options)
    assert len(longer.history) > ended


def test_other_settings_are_refused_in_an_extension_too(tmp_path):
    train(toy_dataset(20), tmp_path, FAST, epochs=2)
    with pytest.raises(ValueError, match="with other data or settings"):
        train(toy_dataset(20), tmp_path, FAST, epochs=4, learning_rate=0.5)
