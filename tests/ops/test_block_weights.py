"""The weights of a block against sitenet.reference in float64."""

import pytest
import torch
from step_checks import (
    BLOCKS,
    NORMS,
    block_of,
    check_block_weights,
    check_block_weights_gradcheck,
    check_block_weights_in_bfloat16,
)

from sitenet.ops import block_weights as ops


@pytest.fixture(params=["plain", "op"])
def path(request, monkeypatch):
    """Plain torch, as on a CPU, and the op, as on a GPU."""
    monkeypatch.setattr(ops, "fuses", lambda x: request.param == "op")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("norms", NORMS)
@pytest.mark.parametrize("sizes", BLOCKS)
def test_block_weights(path, sizes, norms, dtype):
    check_block_weights(BLOCKS[sizes], NORMS[norms], dtype)


def test_gradcheck(path):
    check_block_weights_gradcheck()


def test_bfloat16(monkeypatch):
    monkeypatch.setattr(ops, "fuses", lambda x: True)
    check_block_weights_in_bfloat16()


@pytest.mark.parametrize("sizes", ["paper", "sphere"])
def test_opcheck(sizes):
    block, width = block_of(BLOCKS[sizes], NORMS["both"], torch.float32)
    for dtype in (torch.float32, torch.bfloat16):
        forward = torch.ops.sitenet.block_weights_forward.default
        torch.library.opcheck(forward, (*block, width, dtype))
        backward = torch.ops.sitenet.block_weights_backward.default
        torch.library.opcheck(backward, (*block, *forward(*block, width, dtype)))


def test_a_folded_block_is_the_block(path):
    """Its first layer on the features without the affine part of their norm is that on the features
    with it, and its logits differ by a constant per row."""
    block, width = block_of(BLOCKS["paper"], NORMS["both"], torch.float64)
    weights = ops.block_weights(block, width)
    e = torch.randn(7, width, dtype=torch.float64)
    hidden = torch.randn(7, len(block.hidden_gain), dtype=torch.float64)
    affine = e * block.gain + block.shift
    want = affine @ torch.cat(block.groups)[:, -width:].mT + torch.cat(block.biases)
    torch.testing.assert_close(e @ weights.pairs.mT + weights.bias, want)
    change = hidden @ weights.logits.mT - (hidden * block.hidden_gain) @ block.logit.mT
    means = (block.logit * block.hidden_gain).mean(1)
    torch.testing.assert_close(change, -hidden.sum(1, keepdim=True) * means)
