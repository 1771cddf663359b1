"""Weights of fewer bits: how far they are rounded, that the file shrinks, and what is refused."""

import numpy as np
import pytest
import safetensors.torch
import torch
from toy_crystals import toy_crystals, toy_dataset, toy_model
from trainers import FAST

import sitenet
from sitenet.model.checkpoint import FORMAT, read_metadata
from sitenet.model.packing import LEAST_ROWS, pack, unpack
from sitenet.system.files import load_tensors
from sitenet.training.train import train

SHAPES = [(16, 1), (17, 3), (40, 33), (20, 4, 5)]


def matrices(seed=0):
    """Matrices whose columns differ in size by orders of magnitude; one column is zero."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for shape in SHAPES:
        columns = torch.logspace(-4, 3, shape[-1])
        weights[f"{shape}"] = torch.randn(shape, generator=generator) * columns
    weights["(40, 33)"][:, 7] = 0
    return weights


@pytest.mark.parametrize("bits", [8, 10])
def test_each_weight_is_rounded_to_half_a_step_of_its_column(bits):
    for seed in range(3):
        weights = matrices(seed)
        again = unpack(pack(weights, bits))
        assert list(again) == list(weights)
        for name, weight in weights.items():
            step = weight.reshape(-1, weight.shape[-1]).abs().amax(0) / (2 ** (bits - 1) - 1)
            # The division and the product round to 2^-24 of at most 511 steps each: 1e-4 steps.
            assert ((again[name] - weight).abs() <= step * (0.5 + 1e-4)).all()
            assert again[name].dtype == torch.float32 and again[name].shape == weight.shape


@pytest.mark.parametrize("bits", [8, 10])
def test_rounding_twice_is_rounding_once(bits):
    once = unpack(pack(matrices(), bits))
    twice = unpack(pack(once, bits))
    for name in once:
        # The step is computed again, from 511 times itself: one more rounding of 2^-24.
        torch.testing.assert_close(twice[name], once[name], rtol=2**-22, atol=0)


def test_small_tensors_and_counts_are_kept():
    kept = {
        "bias": torch.randn(100),
        "decoder": torch.randn(LEAST_ROWS - 1, 50),
        "count": torch.arange(40).reshape(20, 2),
    }
    again = unpack(pack(kept, 10))
    assert all(
        torch.equal(again[name], x) and again[name].dtype == x.dtype for name, x in kept.items()
    )


@pytest.mark.parametrize("bits", [16, 9, True, "10"])
def test_other_numbers_of_bits_are_refused(bits):
    with pytest.raises(ValueError, match="bits must be one of 8, 10, got"):
        pack(matrices(), bits)


def test_training_rounds_before_it_calibrates(tmp_path):
    data = toy_dataset(40)
    result = train(data, tmp_path / "run", config=FAST, epochs=1, bits=8)
    loaded = sitenet.load(tmp_path / "run")
    np.testing.assert_array_equal(
        loaded.predict(data.crystals), result.model.predict(data.crystals)
    )
    again = unpack(pack(result.model.state_dict(), 8))
    for name, weight in result.model.state_dict().items():
        torch.testing.assert_close(again[name], weight, rtol=2**-22, atol=0)
    (nearest,) = loaded.neighbours(data.crystals[:1], 1)  # of the encodings of rounded weights
    assert nearest[0].distance < 1
    with pytest.raises(ValueError, match="bits must be one of 8, 10, got 9"):
        train(data, config=FAST, epochs=1, bits=9)


@pytest.mark.parametrize("members", [1, 2])
def test_a_packed_model_predicts_as_its_rounded_weights_do(tmp_path, members):
    config = sitenet.config.load_config("sphere").replace(blocks=1)
    torch.manual_seed(0)
    each = [sitenet.SiteNet(config).eval() for _ in range(members)]
    model = sitenet.Ensemble(each) if members > 1 else each[0]
    whole, small = tmp_path / "whole.safetensors", tmp_path / "small.safetensors"
    model.save(whole)
    model.save(small, {"epoch": 3}, bits=10)
    assert small.stat().st_size < 0.4 * whole.stat().st_size
    header = read_metadata(small)
    assert (header["format"], header["metadata"]) == (FORMAT, {"epoch": 3})
    again = sitenet.load(small)
    model.load_state_dict(unpack(pack(model.state_dict(), 10)))
    crystals = toy_crystals(5)
    np.testing.assert_array_equal(again.predict(crystals), model.predict(crystals))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("wide.step", None, "wide.step must hold a float32 step per column of wide"),
        ("wide.step", torch.ones(2), "wide.step must hold a float32 step per column of wide"),
        ("wide.step", torch.ones(33, dtype=torch.float64), "wide.step must hold a float32 step"),
        ("wide.low", torch.zeros(7, dtype=torch.uint8), "wide.low must hold a byte per four numb"),
        ("wide.low", torch.zeros(330), "wide.low must hold a byte per four numbers of wide"),
        ("wide", torch.zeros(33, dtype=torch.int8), "wide.step must hold a float32 step per col"),
    ],
)
def test_parts_that_do_not_fit_are_named(name, value, message):
    tensors = pack({"wide": matrices()["(40, 33)"]}, 10)
    tensors.pop(name)
    if value is not None:
        tensors[name] = value
    with pytest.raises(ValueError, match=message):
        unpack(tensors)


def test_a_damaged_file_is_named(tmp_path):
    path = tmp_path / "model.safetensors"
    toy_model().save(path, bits=10)
    tensors, metadata = load_tensors(path)
    tensors["embedding.weight.step"] = torch.ones(1)
    safetensors.torch.save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=r"model\.safetensors: embedding\.weight\.step must hold"):
        sitenet.load(path)
