"""Error limits, from what rounding does to the plain formula in the same precision.

A stable computation returns the exact result of inputs that differ from its own in their last bits.
How far that is from the wanted result depends on the case: a norm over almost constant columns
multiplies such differences by 1 / std, and a sum that cancels by the ratio of its terms to its
result. The yardstick measures both at once: the largest error of the plain formula on copies of the
inputs, each changed at random by up to one unit in the last place.
"""

import torch

COPIES = 6
# A kernel may err more than the plain formula: it takes variances from sums of squares about the
# first column rather than about the mean, and the softmax from ln(sum), whose rounding all pairs of
# a row share. At all SIMD levels, with 200 seeds of the dims "tiny" and 30 of "heads" and "wide",
# some 80,000 tensors, the largest ratio was 10 and one in a thousand exceeded 3; a wrong term is
# off by 1e-3 or more, some 1000 yardsticks.
FACTOR = 32
# Relative to the largest entry, in units of the precision. It covers tensors that the plain formula
# happens to compute exactly, and sums whose terms cancel to zero.
FLOOR = 16


def errors(got, exact):
    """Return the largest difference per tensor, relative to the largest entry of the exact one.

    None and empty tensors are left out. Infinite entries must be where they are in ``exact``.
    """
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
    """Return a copy whose entries differ from x by up to one unit in the last place."""
    if not x.is_floating_point():
        return x
    noise = 2 * torch.rand(x.shape, generator=generator, dtype=torch.float64) - 1
    return (x.double() * (1 + torch.finfo(x.dtype).eps * noise.to(x.device))).to(x.dtype)


def limits(plain, inputs, exact, factor=FACTOR):
    """Return the largest errors that a kernel may make, one per tensor that ``errors`` lists.

    Args:
        plain: the plain formula, from inputs to the tensors to compare, in the inputs' precision.
        inputs: the inputs of the kernel.
        exact: the tensors that float64 gives for the same inputs.
        factor: largest ratio of an error to the yardstick.
    """
    generator = torch.Generator().manual_seed(0)
    copies = ([neighbour(x, generator) for x in inputs] for _ in range(COPIES))
    yardsticks = [errors(plain(copy), exact) for copy in copies]
    precision = torch.finfo(next(x for x in inputs if x.is_floating_point()).dtype).eps
    return [factor * max(each) + FLOOR * precision for each in zip(*yardsticks, strict=True)]
