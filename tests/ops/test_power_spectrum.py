"""The fused power spectrum against sitenet.reference in float64."""

import math

import pytest
import torch
from attention_blocks import outputs_and_gradients
from spectrum_checks import (
    ROWS,
    SIZES,
    check_power_spectrum,
    check_spectrum_gradcheck,
    check_spectrum_sliced_inputs,
    inputs,
)

from sitenet import reference
from sitenet.ops.power_spectrum import power_spectrum

DTYPES = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])


@pytest.mark.levels
@DTYPES
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("sizes", SIZES)
def test_power_spectrum(sizes, rows, dtype, device):
    check_power_spectrum(SIZES[sizes], ROWS[rows], dtype, device)


def test_harmonics_of_the_oracle_are_orthonormal():
    """Averages of products over the sphere are 1 / (2 l + 1), by exact quadrature: Gauss-Legendre
    in z and equal steps in phi."""
    z, weights = torch.from_numpy(_legendre_nodes(8)).unbind(1)
    phi = torch.arange(16, dtype=torch.float64) * (2 * math.pi / 16)
    plane = (1 - z**2).sqrt()[:, None]
    axes = plane * phi.cos(), plane * phi.sin(), z[:, None].expand(-1, 16)
    directions = torch.stack(axes, -1).reshape(-1, 3)
    y = reference.spherical_harmonics(directions, 5)
    mean = torch.einsum("n,na,nb->ab", weights.repeat_interleave(16) / 32, y, y)
    degrees = torch.tensor([n for n in (1, 3, 5, 7, 9) for _ in range(n)])
    torch.testing.assert_close(mean, torch.diag(1 / degrees.double()), rtol=0, atol=1e-14)


def _legendre_nodes(n):
    import numpy as np

    return np.stack(np.polynomial.legendre.leggauss(n), 1)


def test_rotated_and_reflected_images_have_the_same_spectrum(device):
    values, mix, radial, vectors, *rest = inputs(SIZES["config"], (40, 17), torch.float64, device)
    generator = torch.Generator().manual_seed(3)
    orthogonal, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    expected = power_spectrum(values, mix, radial, vectors, *rest)
    for turn in (orthogonal, -orthogonal):
        got = power_spectrum(values, mix, radial, vectors @ turn.to(device), *rest)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def test_angles_tell_cis_from_trans():
    """Two of six neighbours differ from the others, side by side or opposite: l = 0 cannot tell
    them apart, l = 2 can."""
    axes = torch.cat([torch.eye(3), -torch.eye(3)])
    values = torch.tensor([[0.0], [1.0]])
    mix, radial = torch.ones(3, 2, 1), torch.ones(6, 2)
    offsets = torch.tensor([0, 6])
    sites = {"cis": (1, 1, 0, 0, 0, 0), "trans": (1, 0, 0, 1, 0, 0)}
    cis, trans = (
        power_spectrum(values, mix, radial, axes, offsets, torch.tensor(s, dtype=torch.int32))
        for s in sites.values()
    )
    assert cis[0, 0] == trans[0, 0] == 4
    # Per product, the sum of two P_2: |Y(x) + Y(y)|^2 = 2 + 2 P_2(0) = 1, |Y(x) + Y(-x)|^2 = 4.
    soft = 0.01
    for got, square in ((cis, 4 * 1), (trans, 4 * 4)):
        expected = math.sqrt(square + soft**2) - soft
        assert got[0, 2].item() == pytest.approx(expected, rel=1e-5)


def test_opcheck(device):
    tensors = inputs((3, 2, 3, 5), (4, 0, 2), torch.float32, device)
    torch.library.opcheck(torch.ops.sitenet.power_spectrum_forward.default, tuple(tensors))
    out = power_spectrum(*tensors)
    arguments = (*tensors, out, None, None)
    torch.library.opcheck(torch.ops.sitenet.power_spectrum_backward.default, arguments)


def test_gradcheck(device):
    check_spectrum_gradcheck(device)


def test_sliced_and_transposed_inputs(device):
    check_spectrum_sliced_inputs(device)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiles_without_a_graph_break(device):
    values, mix, *rest = inputs((3, 2, 3, 5), (4, 0, 2), torch.float32, device)

    def step(values):
        return power_spectrum(values, mix, *rest).square().sum()

    values.requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    (expected,) = torch.autograd.grad(step(values), values)
    (got,) = torch.autograd.grad(compiled(values), values)
    torch.testing.assert_close(got, expected)


def test_two_runs_give_equal_bits(device):
    tensors = inputs(SIZES["config"], (50,) * 40, torch.float32, device)
    first, second = (outputs_and_gradients(power_spectrum, tensors, 2) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_the_number_of_threads_changes_rounding_only():
    tensors = inputs(SIZES["config"], (50,) * 40, torch.float32)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(outputs_and_gradients(power_spectrum, tensors, 2))
    torch.set_num_threads(before)
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            # Sums of up to 2,000 terms in another order.
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4 * y.abs().max().item())


WRONG = {
    "degrees": (1, torch.ones(6, 4, 5), ValueError, "mix must have 1 to 5 degrees, got 6"),
    "products": (1, torch.ones(2, 5, 5), ValueError, r"mix must have shape \(degrees, 4, mixed\)"),
    "vectors": (3, torch.ones(6, 2), ValueError, r"vectors must have shape \(6, 3\)"),
    "dtype": (2, torch.ones(6, 2).double(), TypeError, "radial must be float32"),
    "sites": (5, torch.full((6,), 9).int(), ValueError, "sites must be from 0 to 3"),
    "offsets": (4, torch.tensor([0, 7]), ValueError, "offsets must ascend from 0 to the 6 images"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_named(name):
    place, wrong, kind, message = WRONG[name]
    tensors = inputs((2, 2, 3, 5), (4, 2), torch.float32)
    tensors[place] = wrong
    with pytest.raises(kind, match=message):
        power_spectrum(*tensors)
