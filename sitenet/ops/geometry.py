"""Periodic minimum-image distances, exact for every cell.

``csrc/geometry.h`` has the formula and its proof. Distances differentiate with respect to the cell
and both lists of sites; at distance 0 the gradient is 0.
"""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sitenet.ops import _C, check, launch, library, need_cuda, scratch
from sitenet.ops.checks import can_read, check_offsets

_SUFFIX = {torch.float32: "f32", torch.float64: "f64"}

MAX_PAIRS = 2**28  # per call: 1 GB of float32, 2 GB of float64
# Beyond it a coordinate's rounding moves a site by more than some 1e-6 angstrom.
MAX_FRAC = 1e9

# Distances of crystals one after another, each a row-major (n_i, n_j) block. The offsets are None
# for one crystal. num_pairs: sum of n_i n_j.
library.define(
    "minimum_image_distances_forward(Tensor cells, Tensor frac_i, Tensor frac_j,"
    " Tensor? offsets_i, Tensor? offsets_j, SymInt num_pairs) -> Tensor"
)
library.define(
    "minimum_image_distances_backward(Tensor cells, Tensor frac_i, Tensor frac_j,"
    " Tensor? offsets_i, Tensor? offsets_j, Tensor grad_distance) -> (Tensor, Tensor, Tensor)"
)


@torch.library.register_fake("sitenet::minimum_image_distances_forward", lib=library)
def _(cells, frac_i, frac_j, offsets_i, offsets_j, num_pairs):
    return cells.new_empty(num_pairs)


@torch.library.register_fake("sitenet::minimum_image_distances_backward", lib=library)
def _(cells, frac_i, frac_j, offsets_i, offsets_j, grad_distance):
    return torch.empty_like(cells), torch.empty_like(frac_i), torch.empty_like(frac_j)


def _capturing(x: Tensor) -> bool:
    """Whether a CUDA graph is being captured, when no value can be read."""
    return x.is_cuda and torch.cuda.is_current_stream_capturing()


def _inputs(cells, frac_i, frac_j, offsets_i, offsets_j, num_pairs) -> tuple[int, ...]:
    """Addresses and sizes for the kernels, checked."""
    num_crystals = cells.shape[0]
    check(cells, "cells", ("crystals", 3, 3), tuple(_SUFFIX))
    check(frac_i, "frac_i", ("sites", 3), like=cells)
    check(frac_j, "frac_j", ("sites", 3), like=cells)
    if offsets_i is None:
        if num_crystals != 1:
            raise ValueError(f"cells must be one without offsets, got {num_crystals}")
        expected = frac_i.shape[0] * frac_j.shape[0]
    else:
        check(offsets_i, "offsets_i", (num_crystals + 1,), torch.int64, like=cells)
        check(offsets_j, "offsets_j", (num_crystals + 1,), torch.int64, like=cells)
        expected = num_pairs if _capturing(cells) else _count(frac_i, frac_j, offsets_i, offsets_j)
    if num_pairs != expected:
        raise ValueError(f"num_pairs must be {expected}, got {num_pairs}")
    return (
        cells.data_ptr(),
        frac_i.data_ptr(),
        frac_j.data_ptr(),
        0 if offsets_i is None else offsets_i.data_ptr(),
        0 if offsets_j is None else offsets_j.data_ptr(),
        num_crystals,
        frac_i.shape[0],
        frac_j.shape[0],
    )


def _count(frac_i, frac_j, offsets_i, offsets_j) -> int:
    """Number of pairs, from offsets that are checked; reads them once."""
    good = [
        (offsets[0] == 0) & (offsets[-1] == frac.shape[0]) & (offsets.diff() >= 0).all()
        for offsets, frac in ((offsets_i, frac_i), (offsets_j, frac_j))
    ]
    pairs = (offsets_i.diff() * offsets_j.diff()).sum()
    *good, pairs = torch.stack([*good, pairs]).tolist()
    for name, right, frac in (("i", good[0], frac_i), ("j", good[1], frac_j)):
        if not right:
            raise ValueError(
                f"offsets_{name} must ascend from 0 to the {frac.shape[0]} sites of frac_{name}"
            )
    return pairs


def _run_cpu(name, inputs, dtype, *tensors: Tensor) -> None:
    kernel = getattr(_C, f"minimum_image_distances_{name}_{_SUFFIX[dtype]}_cpu")
    bad = kernel(*inputs, *(x.data_ptr() for x in tensors), torch.get_num_threads())
    if bad >= 0:
        raise ValueError(f"cell {bad} has no volume or is not finite")


def _run_cuda(name, inputs, offsets_i, offsets_j, *tensors: Tensor) -> None:
    """In a graph's capture an unusable cell is not found; its distances are NaN."""
    need_cuda()
    like, suffix = tensors[0], _SUFFIX[tensors[0].dtype]
    pair_offsets = None if offsets_i is None else _pair_offsets(offsets_i, offsets_j)
    usable = torch.empty(inputs[5], dtype=torch.int32, device=like.device)
    memory = scratch(
        getattr(_C, f"minimum_image_distances_scratch_{suffix}_cuda")(*inputs[5:]), like
    )
    count = (tensors[0].numel(),) if name == "forward" else ()
    addresses = (x.data_ptr() for x in (*tensors, usable, memory))
    first = 0 if pair_offsets is None else pair_offsets.data_ptr()
    kernel = getattr(_C, f"minimum_image_distances_{name}_{suffix}_cuda")
    launch(kernel, like, *inputs, first, *count, *addresses)
    if not _capturing(like) and not usable.all():
        raise ValueError(f"cell {int(usable.argmin())} has no volume or is not finite")


def _pair_offsets(offsets_i: Tensor, offsets_j: Tensor) -> Tensor:
    """Where each crystal's distances begin, (crystals + 1,)."""
    sizes = offsets_i.diff() * offsets_j.diff()
    return torch.nn.functional.pad(sizes.cumsum(0), (1, 0))


def _forward_cpu(cells, frac_i, frac_j, offsets_i, offsets_j, num_pairs):
    inputs = _inputs(cells, frac_i, frac_j, offsets_i, offsets_j, num_pairs)
    distance = cells.new_empty(num_pairs)
    _run_cpu("forward", inputs, cells.dtype, distance)
    return distance


def _forward_cuda(cells, frac_i, frac_j, offsets_i, offsets_j, num_pairs):
    inputs = _inputs(cells, frac_i, frac_j, offsets_i, offsets_j, num_pairs)
    distance = cells.new_empty(num_pairs)
    _run_cuda("forward", inputs, offsets_i, offsets_j, distance)
    return distance


def _gradients(cells, frac_i, frac_j, offsets_i, offsets_j, grad_distance):
    """The kernels' inputs, and grad_distance and the empty gradients for them."""
    check(grad_distance, "grad_distance", ("pairs",), like=cells)
    inputs = _inputs(cells, frac_i, frac_j, offsets_i, offsets_j, grad_distance.shape[0])
    gradients = torch.empty_like(cells), torch.empty_like(frac_i), torch.empty_like(frac_j)
    return inputs, grad_distance.contiguous(), gradients


def _backward_cpu(cells, frac_i, frac_j, offsets_i, offsets_j, grad_distance):
    inputs, grad_distance, gradients = _gradients(
        cells, frac_i, frac_j, offsets_i, offsets_j, grad_distance
    )
    _run_cpu("backward", inputs, cells.dtype, grad_distance, *gradients)
    return gradients


def _backward_cuda(cells, frac_i, frac_j, offsets_i, offsets_j, grad_distance):
    inputs, grad_distance, gradients = _gradients(
        cells, frac_i, frac_j, offsets_i, offsets_j, grad_distance
    )
    _run_cuda("backward", inputs, offsets_i, offsets_j, grad_distance, *gradients)
    return gradients


library.impl("minimum_image_distances_forward", _forward_cpu, "CPU")
library.impl("minimum_image_distances_backward", _backward_cpu, "CPU")
library.impl("minimum_image_distances_forward", _forward_cuda, "CUDA")
library.impl("minimum_image_distances_backward", _backward_cuda, "CUDA")

_forward = torch.ops.sitenet.minimum_image_distances_forward.default
_backward = torch.ops.sitenet.minimum_image_distances_backward.default


class _Distances(torch.autograd.Function):
    @staticmethod
    def forward(ctx, cells, frac_i, frac_j, offsets_i, offsets_j, num_pairs):
        ctx.save_for_backward(cells, frac_i, frac_j, offsets_i, offsets_j)
        return _forward(cells, frac_i, frac_j, offsets_i, offsets_j, num_pairs)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_distance):
        gradients = _backward(*ctx.saved_tensors, grad_distance.contiguous())
        return (*gradients, None, None, None)


def _check_size(num_pairs: int, dtype: torch.dtype) -> None:
    if num_pairs > MAX_PAIRS:
        raise ValueError(
            f"at most {MAX_PAIRS} distances per call, got {num_pairs} pairs of sites "
            f"({num_pairs * dtype.itemsize / 1e9:.1f} GB): pass frac_i in parts, or take the "
            'neighbours within a radius alone: find_pairs(crystal, images="sphere", radius=...)'
        )


def _check_frac(**coordinates: Tensor) -> None:
    for name, frac in coordinates.items():
        if frac.numel() and can_read(frac):
            largest = float(frac.detach().abs().nan_to_num(posinf=0.0).amax())
            if largest > MAX_FRAC:  # infinite ones give NaN, as NaN ones do
                raise ValueError(f"{name} must be at most {MAX_FRAC:g} in size, got {largest:g}")


def _distances(cells, frac_i, frac_j, offsets_i, offsets_j, num_pairs) -> Tensor:
    floats = tuple(x.contiguous() for x in (cells, frac_i, frac_j))
    arguments = (*floats, offsets_i, offsets_j, num_pairs)
    if torch.is_grad_enabled() and any(x.requires_grad for x in floats):
        return _Distances.apply(*arguments)
    return _forward(*arguments)


def minimum_image_distances(cell: Tensor, frac_i: Tensor, frac_j: Tensor) -> Tensor:
    """Distances between sites in a periodic cell, each to the nearest image.

    Exact for every cell with a volume, however skewed, left- or right-handed, and wherever the
    sites lie. Differentiable in all three arguments.

    Args:
        cell: (3, 3) lattice vectors as rows, angstrom, float32 or float64.
        frac_i: (n_i, 3) fractional coordinates.
        frac_j: (n_j, 3) fractional coordinates.

    Returns:
        (n_i, n_j) distances in angstrom.

    Raises:
        TypeError: the arguments are of another dtype, or of different ones.
        ValueError: they have other shapes, the cell has no volume or is not finite, a coordinate is
            beyond ``MAX_FRAC``, or there are more than ``MAX_PAIRS`` distances.
    """
    check(cell, "cell", (3, 3), tuple(_SUFFIX))
    check(frac_i, "frac_i", ("num_sites", 3), like=cell)
    check(frac_j, "frac_j", ("num_sites", 3), like=cell)
    shape = frac_i.shape[0], frac_j.shape[0]
    _check_size(shape[0] * shape[1], cell.dtype)
    _check_frac(frac_i=frac_i, frac_j=frac_j)
    return _distances(cell[None], frac_i, frac_j, None, None, shape[0] * shape[1]).view(shape)


def minimum_image_distances_batch(
    cells: Tensor, frac_i: Tensor, frac_j: Tensor, offsets_i: Tensor, offsets_j: Tensor
) -> tuple[Tensor, Tensor]:
    """``minimum_image_distances`` of many crystals of any sizes in one call.

    Args:
        cells: (crystals, 3, 3) lattice vectors as rows, angstrom, float32 or float64.
        frac_i: (sites_i, 3) fractional coordinates, crystal after crystal.
        frac_j: (sites_j, 3) likewise.
        offsets_i: (crystals + 1,) int64, where each crystal's sites begin in ``frac_i``.
        offsets_j: (crystals + 1,) int64, likewise in ``frac_j``.

    Returns:
        Distances in angstrom, crystal after crystal, each a row-major (n_i, n_j) block; and where
        each block begins, (crystals + 1,) int64.

    Raises:
        TypeError: the arguments are of another dtype, or of different ones.
        ValueError: they have other shapes, a cell has no volume or is not finite, a coordinate is
            beyond ``MAX_FRAC``, or there are more than ``MAX_PAIRS`` distances.
    """
    check(cells, "cells", ("crystals", 3, 3), tuple(_SUFFIX))
    check(frac_i, "frac_i", ("num_sites", 3), like=cells)
    check(frac_j, "frac_j", ("num_sites", 3), like=cells)
    check(offsets_i, "offsets_i", (cells.shape[0] + 1,), torch.int64, like=cells)
    check(offsets_j, "offsets_j", (cells.shape[0] + 1,), torch.int64, like=cells)
    offsets_i, offsets_j = offsets_i.contiguous(), offsets_j.contiguous()
    if can_read(cells):
        check_offsets(offsets_i, frac_i.shape[0], "offsets_i", "sites of frac_i")
        check_offsets(offsets_j, frac_j.shape[0], "offsets_j", "sites of frac_j")
    offsets = _pair_offsets(offsets_i, offsets_j)
    num_pairs = int(offsets[-1])
    _check_size(num_pairs, cells.dtype)
    _check_frac(frac_i=frac_i, frac_j=frac_j)
    return _distances(cells, frac_i, frac_j, offsets_i, offsets_j, num_pairs), offsets
