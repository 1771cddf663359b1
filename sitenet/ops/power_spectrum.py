"""Power spectra of the density of neighbours around each site, with learned channels.

``csrc/power_spectrum.h`` states the formulas and layouts; ``sitenet/reference.py`` computes the
same in plain torch. The function is differentiable in ``values`` and ``mix``. Sums are in the dtype
of ``values``, also under autocast.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sitenet.ops import _C, check, checks, library, need_cuda
from sitenet.ops.kernel_calls import Run, by_site_for, flat, run_cpu, run_cuda, schema
from sitenet.ops.rows import BySite

MOST_DEGREES = 5  # l = 0 to 4
MOST_WIDTH = 1024  # of channels times radial functions, and of mixed channels

# ------------------------------------------------------------------------------------------------
# Arguments of the ops. The order of the tensors is that of the structs in csrc/power_spectrum.h.


class Neighbours(NamedTuple):
    """Tensors that both passes read."""

    values: Tensor
    mix: Tensor
    radial: Tensor
    vectors: Tensor
    offsets: Tensor
    sites: Tensor


def _outputs(neighbours: Neighbours) -> Tensor:
    degrees, _, mixed = neighbours.mix.shape
    return neighbours.values.new_empty((neighbours.offsets.shape[0] - 1, degrees, mixed))


def _gradients(neighbours: Neighbours, grad_out: Tensor, by_site: BySite) -> tuple[Tensor, Tensor]:
    return torch.empty_like(neighbours.values), torch.empty_like(neighbours.mix)


_OUTPUTS: dict[str, Callable] = {
    "power_spectrum_forward": _outputs,
    "power_spectrum_backward": _gradients,
}
for _name, _allocate in _OUTPUTS.items():
    library.define(schema(_name, _allocate))
    torch.library.register_fake(f"sitenet::{_name}", flat(_allocate, _allocate), lib=library)

# ------------------------------------------------------------------------------------------------
# Calls of the kernels.


def _shape(neighbours: Neighbours) -> Any:
    degrees, _, mixed = neighbours.mix.shape
    return _C.PowerSpectrumShape(
        images=neighbours.sites.shape[0],
        rows=neighbours.offsets.shape[0] - 1,
        sites=neighbours.values.shape[0],
        channels=neighbours.values.shape[1],
        radial=neighbours.radial.shape[1],
        degrees=degrees,
        mixed=mixed,
    )


def _check(neighbours: Neighbours) -> None:
    """Raise TypeError or ValueError unless the tensors fit together."""
    values, mix, radial, vectors, offsets, sites = neighbours
    check(values, "values", ("sites", "channels"), (torch.float32, torch.float64))
    check(radial, "radial", ("images", "radial"), like=values)
    images, products = radial.shape[0], radial.shape[1] * values.shape[1]
    check(mix, "mix", ("degrees", products, "mixed"), like=values)
    if not 1 <= mix.shape[0] <= MOST_DEGREES:
        raise ValueError(f"mix must have 1 to {MOST_DEGREES} degrees, got {mix.shape[0]}")
    for width, name in ((products, "radial functions times channels"), (mix.shape[2], "mixed")):
        if not 1 <= width <= MOST_WIDTH:
            raise ValueError(f"{name} must be 1 to {MOST_WIDTH}, got {width}")
    check(vectors, "vectors", (images, 3), like=values)
    check(offsets, "offsets", ("rows + 1",), torch.int64, like=values)
    check(sites, "sites", (images,), torch.int32, like=values)
    if not offsets.shape[0]:
        raise ValueError("offsets must have at least one entry, got none")
    checks.check_contiguous(**neighbours._asdict())


def _forward(run: Run, neighbours: Neighbours) -> Tensor:
    _check(neighbours)
    out = _outputs(neighbours)
    dtypes = neighbours.values.dtype, neighbours.values.dtype
    run("power_spectrum_forward", dtypes, _shape(neighbours), (*neighbours, out))
    return out


def _backward(
    run: Run, neighbours: Neighbours, grad_out: Tensor, by_site: BySite
) -> tuple[Tensor, Tensor]:
    _check(neighbours)
    rows, (degrees, _, mixed) = neighbours.offsets.shape[0] - 1, neighbours.mix.shape
    check(grad_out, "grad_out", (rows, degrees, mixed), like=neighbours.values)
    by_site = by_site_for(run, by_site, neighbours.sites, neighbours.values.shape[0])
    gradients = _gradients(neighbours, grad_out, by_site)
    dtypes = neighbours.values.dtype, neighbours.values.dtype
    tensors = (*neighbours, grad_out.contiguous(), *gradients, *by_site)
    run("power_spectrum_backward", dtypes, _shape(neighbours), tensors)
    return gradients


def _implementations(run: Run) -> dict[str, Callable]:
    return {
        "power_spectrum_forward": flat(_forward, _outputs, run),
        "power_spectrum_backward": flat(_backward, _gradients, run),
    }


CPU_IMPLEMENTATIONS = _implementations(run_cpu)
CUDA_IMPLEMENTATIONS = _implementations(run_cuda)
for _device, _functions in (("CPU", CPU_IMPLEMENTATIONS), ("CUDA", CUDA_IMPLEMENTATIONS)):
    for _name, _function in _functions.items():
        library.impl(_name, _function, _device)

_ops = torch.ops.sitenet

# ------------------------------------------------------------------------------------------------
# Gradients, and the public function.


_NUM_TENSORS = len(Neighbours._fields)


class _PowerSpectrum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor | None) -> Tensor:
        ctx.save_for_backward(*tensors)
        return _ops.power_spectrum_forward(*tensors[:_NUM_TENSORS])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        tensors = ctx.saved_tensors
        neighbours, by_site = tensors[:_NUM_TENSORS], tensors[_NUM_TENSORS:]
        gradients = _ops.power_spectrum_backward(*neighbours, grad_out, *by_site)
        return *gradients, *[None] * (len(tensors) - len(gradients))


def power_spectrum(
    values: Tensor,
    mix: Tensor,
    radial: Tensor,
    vectors: Tensor,
    offsets: Tensor,
    sites: Tensor,
    *,
    check_indices: bool = True,
    by_site: BySite | None = None,
) -> Tensor:
    """Compute power spectra of the density of neighbours around each site.

    The density of row r in degree l, order m, radial function n and channel c is the sum over the
    row's images of radial[:, n] Y_lm(direction) values[sites, c]. Its products n c are mixed by
    ``mix[l]``; the result holds the mixed density of l = 0, and the norms over m for l > 0, which
    do not change when the crystal is rotated or reflected.

    Args:
        values: (sites, channels), float32 or float64: what each site adds to the density.
        mix: (degrees, radial * channels, mixed): the mixing weights for l = 0 to degrees - 1.
        radial: (images, radial): radial functions of each image's distance. Not differentiable.
        vectors: (images, 3): from the row's site to the image, in angstrom. Not differentiable.
        offsets: (rows + 1,) int64: row r holds the images offsets[r] to offsets[r + 1] - 1.
        sites: (images,) int32: row of ``values`` for each image.
        check_indices: check the values of ``offsets`` and ``sites``, which waits for a GPU. False
            only if they have been checked (``Pairs.check``): the kernels would access foreign
            memory.
        by_site: what ``sorted_by_site`` returns for ``sites``, so that several calls share it. A
            GPU's backward pass needs it, and makes it if it is not given.

    Returns:
        (rows, degrees, mixed).

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape or device.
        RuntimeError: CUDA tensors in a build without CUDA kernels.

    Source:
        Bartok, Kondor and Csanyi, Phys. Rev. B 87, 184115 (2013), eq. 33, with learned channels;
        Batatia et al., MACE (arXiv 2206.07697), the A-features.
    """
    neighbours = Neighbours(values, mix, radial, vectors, offsets, sites)
    checks.check_tensors(**neighbours._asdict())
    if values.is_cuda:
        need_cuda()
    neighbours = Neighbours(*(x.contiguous() for x in neighbours))
    if check_indices:
        checks.check_indices(
            neighbours.offsets, neighbours.sites, values.shape[0], "values", "images"
        )
        checks.check_by_site(by_site or BySite(), neighbours.sites, values.shape[0], read=True)
    if torch.is_grad_enabled() and (values.requires_grad or mix.requires_grad):
        return _PowerSpectrum.apply(*neighbours, *(by_site or BySite()))
    return _ops.power_spectrum_forward(*neighbours)
