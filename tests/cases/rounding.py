"""How far rounding may carry a result, by what it does to the plain formula in the same precision.

A computation that is stable returns the exact result of inputs that differ from the given ones in
their last bits. How far that lies from the result wanted depends on the case: a norm over almost
constant columns multiplies such differences by 1 / std, sums that cancel by their terms over their
result. The yardstick measures both at once: the largest error that the plain formula makes on
copies of the inputs, each changed at random by up to one unit in the last place.
"""

import torch

COPIES = 6
# A kernel may err more than the plain formula: it takes variances from sums of squares about the
# first column rather than about the mean, and the softmax from ln(sum), whose rounding all pairs of
# a row share. Over 200 seeds and all SIMD levels, 80,000 tensors, the largest ratio was 10 and one
# in a thousand exceeded 3; a wrong term is off by 1e-3 or more, some 1000 yardsticks.
FACTOR = 32
# Of the largest entry, in units of the precision: for tensors that the plain formula happens to
# compute exactly, and for the terms of sums that cancel to zero.
FLOOR = 16


def errors(got, exact):
    """Largest differences relative to the exact tensors' largest entries; None and empty tensors
    are left out. Infinite entries must be where they are in ``exact``."""
    result = []
    for x, y in zip(got, exact, strict=True):
        assert (x is None) == (y is None)
        if y is None or not y.numel():
            continue
        assert x.shape == y.shape
        assert torch.equal(torch.isinf(x).cpu(), torch.isinf(y).cpu())
        finite = torch.isfinite(y)
        if finite.any():
            scale = y[finite].abs().max().clamp(min=1e-3)
            result.append(((x.double() - y)[finite].abs().max() / scale).item())
    return result


def neighbour(x, generator):
    """A copy whose entries differ from x by up to one unit in the last place."""
    if not x.is_floating_point():
        return x
    noise = 2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1
    return (x.double() * (1 + torch.finfo(x.dtype).eps * noise.to(x.device))).to(x.dtype)


def limits(plain, inputs, exact, factor=FACTOR):
    """The largest errors allowed of a kernel, one per tensor that ``errors`` lists.

    Args:
        plain: inputs -> the tensors to compare, by the plain formula in the inputs' precision.
        inputs: the kernel's own.
        exact: the tensors in float64, of the same inputs.
        factor: how much larger than the yardstick an error may be.
    """
    generator = torch.Generator().manual_seed(0)
    copies = ([neighbour(x, generator) for x in inputs] for _ in range(COPIES))
    yardsticks = [errors(plain(copy), exact) for copy in copies]
    precision = torch.finfo(next(x for x in inputs if x.is_floating_point()).dtype).eps
    return [factor * max(each) + FLOOR * precision for each in zip(*yardsticks, strict=True)]
