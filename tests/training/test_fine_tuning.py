"""Training that starts from a model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy_crystals import toy_dataset
from trainers import FAST, predicted, same, weights

from sitenet import load
from sitenet.config import load_config
from sitenet.model.checkpoint import read_metadata
from sitenet.training.train import train


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    path = tmp_path_factory.mktemp("start") / "model.safetensors"
    train(toy_dataset(30), config=FAST, epochs=5).model.save(path)
    return path


def test_a_model_goes_on_learning(start):
    before = load(start)
    other = toy_dataset(30, seed=1)
    result = train(other, config=FAST, start=start, epochs=5)
    assert result.model.targets == before.targets
    fresh = train(other, config=FAST, epochs=5)
    assert result.history[0]["train_mae"] < fresh.history[0]["train_mae"]
    from_object = train(other, config=FAST, start=before, epochs=5)
    assert same(weights(from_object.model), weights(result.model))
    assert same(weights(before), weights(load(start)))


def test_frozen_layers_stay(start):
    result = train(toy_dataset(30, seed=1), config=FAST, start=start, freeze=True)
    before = weights(load(start))
    for name, value in weights(result.model).items():
        learns = name.startswith(("post_pool", "decoder"))
        assert torch.equal(value, before[name]) != learns, name
    with pytest.raises(ValueError, match="freeze needs a model to start from"):
        train(toy_dataset(30), config=FAST, freeze=True)


def test_a_refit_learns_from_the_test_and_keeps_the_validation(tmp_path):
    data = toy_dataset(30)
    tested = train(data, tmp_path / "tested", FAST)
    model = tmp_path / "tested" / "model.safetensors"
    final = train(data, tmp_path / "final", FAST, start=model, refit=True)
    validated = [row["id"] for row in predicted(tmp_path / "tested") if row["split"] == "valid"]
    assert validated and validated == [row["id"] for row in predicted(tmp_path / "final")]
    facts = read_metadata(model)["metadata"]["crystals"]
    assert facts["test"] and len(tested.scores) == len(final.scores) + 1
    facts = {"train": facts["train"] + facts["test"], "valid": facts["valid"], "test": 0}
    final_file = tmp_path / "final" / "model.safetensors"
    assert read_metadata(final_file)["metadata"]["crystals"] == facts


def test_another_target_gets_a_decoder_of_its_own(start):
    data = toy_dataset(30, names=("a_eV", "b_eV"))
    result = train(data, config=FAST, target=["b_eV", "a_eV"], start=start, epochs=1)
    assert [t.name for t in result.model.targets] == ["b_eV", "a_eV"]
    assert result.model.decoder.out_features == 2
    data = toy_dataset(30)
    data.targets = (data.targets > np.median(data.targets)).astype(float)
    result = train(data, config=FAST, start=start, classes=["size_A"], epochs=1)
    assert result.model.targets[0].kind == "class"


def test_another_target_begins_at_its_mean(start):
    """Not where random weights lead the encodings of a trained model."""
    data = toy_dataset(30, names=("a_eV",))
    data.split = ["train"] * 20 + ["test"] * 10
    model = train(data, config=FAST, start=start, epochs=1, valid=0.0, learning_rate=1e-30).model
    np.testing.assert_allclose(model.predict(data.crystals), data.targets[:20].mean(), rtol=1e-5)


def test_the_model_keeps_its_own_config_but_for_training(start):
    result = train(toy_dataset(30), config="paper", start=start, epochs=1, max_sites=5)
    config = result.model.config
    assert (config.embedding, config.max_sites, config.last_activation) == (4, 5, "identity")
    assert config.training.learning_rate == load_config("paper").training.learning_rate
    with pytest.raises(ValueError, match=r"does not fit the config: .*\n.*embedding.weight"):
        train(toy_dataset(30), start=start, embedding=5)


def test_another_scale_of_the_start_is_refused(tmp_path, start):
    model = load(start)
    train(toy_dataset(20), tmp_path, FAST, epochs=1, start=model)
    model.targets = [replace(t, std=2 * t.std) for t in model.targets]
    with pytest.raises(ValueError, match="holds a run with other data or settings"):
        train(toy_dataset(20), tmp_path, FAST, epochs=1, start=model)
