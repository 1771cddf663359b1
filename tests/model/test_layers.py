"""Layers: the kernel that predicts with them on a CPU, beside torch's operations."""

import pytest
import torch

from sitenet.model.layers import ACTIVATIONS, Layer


@pytest.mark.parametrize("norm", ["layer", "none"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", [(5, 352, 256), (49, 17, 1), (1, 3, 33), (0, 4, 8)])
def test_predictions_are_those_of_training(sizes, activation, norm):
    rows, inputs, outputs = sizes
    if norm == "layer" and outputs == 1:
        pytest.skip("the norm of one column is rounding errors only")
    torch.manual_seed(0)
    layer = Layer(inputs, outputs, activation, norm).double()
    if layer.norm is not None:
        torch.nn.init.normal_(layer.norm.weight)
        torch.nn.init.normal_(layer.norm.bias)
    x = torch.randn(rows, inputs, dtype=torch.float64)
    expected = layer(x).detach()
    with torch.no_grad():
        got = layer(x)
        turned = layer(x.t().contiguous().t())
    # Sums of up to 353 terms of some 0.1 in another order, over a standard deviation of 0.3 or
    # more: some 1e-15 each; the eps of the norm and the exponential add as much.
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(turned, got)
