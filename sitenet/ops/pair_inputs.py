"""What pairs bring into a model: features in closed form, and logarithms of multiplicities.

``csrc/pair_inputs.h`` states the formulas and layouts. On a CPU plain torch computes them, in some
forty operations; on a GPU two kernels do. The ops run on a CPU, too, so that tests and
``bench/count_operations.py`` can use them there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sitenet.config import InteractionFeature
from sitenet.ops import _C, check, checks, fuses, library
from sitenet.ops.kernel_calls import flat, run_cuda, schema

# Angstrom to bohr as in the published features: scipy's "Angstrom star" (1.00001495e-10 m) over the
# Bohr radius.
BOHR_PER_ANGSTROM = 1.8897543773133647
# Gaussians stop at e^-50 = 2e-22, which is nothing beside 1. Far smaller ones are denormal numbers
# in float32, with which processors multiply a hundred times as slowly.
LEAST_EXPONENT = -50.0

DISTANCE, RECIPROCAL_SQUARE, COULOMB, SINE_COULOMB = range(4)
KINDS = {
    "distance_matrix": DISTANCE,
    "reciprocal_square_distance_matrix": RECIPROCAL_SQUARE,
    "non_sine_coulomb_matrix": COULOMB,
    "coulomb_matrix": SINE_COULOMB,
}
MOST_FEATURES = 32

# ------------------------------------------------------------------------------------------------
# Arguments of the ops. The order of the tensors is that of the structs in csrc/pair_inputs.h.


class Described(NamedTuple):
    """The columns of pairs that features read. ``charges`` are those of all sites, None without a
    Coulomb feature."""

    offsets: Tensor
    sites: Tensor
    charges: Tensor | None
    distance: Tensor
    sine_distance: Tensor | None


class FeatureOptions(NamedTuple):
    """Kind, power and clip (0: no logarithm) of each feature; Gaussians and their reach; and the
    number of the first row in ``charges``."""

    kinds: list[int]
    powers: list[float]
    clips: list[float]
    basis: int
    reach: float
    first_row: int


class Weighed(NamedTuple):
    """The columns of pairs that logarithms of multiplicities read."""

    multiplicity: Tensor
    distance: Tensor
    features: Tensor


class WeighOptions(NamedTuple):
    """Largest first feature, infinite without a cutoff; reach of the envelope, 0 without one."""

    cutoff: float
    reach: float


def _pair_inputs_outputs(pairs: Described, dtype: torch.dtype, options: FeatureOptions) -> Tensor:
    columns = len(options.kinds) + options.basis
    return pairs.distance.new_empty((pairs.distance.shape[0], columns), dtype=dtype)


def _log_multiplicity_outputs(pairs: Weighed, options: WeighOptions) -> Tensor:
    return pairs.features.new_empty(pairs.features.shape[0])


_OUTPUTS: dict[str, Callable] = {
    "pair_inputs": _pair_inputs_outputs,
    "log_multiplicity": _log_multiplicity_outputs,
}
for _name, _allocate in _OUTPUTS.items():
    library.define(schema(_name, _allocate))
    torch.library.register_fake(f"sitenet::{_name}", flat(_allocate, _allocate), lib=library)

# ------------------------------------------------------------------------------------------------
# In plain torch.


def gaussians(distance: Tensor, number: int, reach: float) -> Tensor:
    """Gaussians at equal spacings from 0 to the reach, with the spacing as standard deviation:
    (pairs, number)."""
    return bells(distance, number, 0.0, reach / (number - 1))


def bells(distance: Tensor, number: int, first: float, spacing: float) -> Tensor:
    """Gaussians at equal spacings from ``first`` on, with the spacing as standard deviation:
    (pairs, number)."""
    centres = torch.arange(number, dtype=distance.dtype, device=distance.device)
    apart = ((distance - first) / spacing)[:, None] - centres
    return apart.square().mul_(-0.5).clamp_(min=LEAST_EXPONENT).exp_()


def log_envelope(distance: Tensor, reach: float) -> Tensor:
    """Logarithm of a polynomial that falls from 1 at distance 0 to 0 at the reach, where its first
    and second derivatives are 0, too; -inf beyond.

    Source: Gasteiger et al., Directional message passing, ICLR 2020, eq. 8 with p = 6.
    """
    return envelope(distance, reach).log()


def envelope(distance: Tensor, reach: float) -> Tensor:
    """The polynomial whose logarithm is ``log_envelope``."""
    u = distance / reach
    square = u * u
    return torch.where(u < 1, 1 - square**3 * (28 - 48 * u + 21 * square), 0).clamp(min=0)


def _coulomb(pairs: Described, first_row: int, distance: Tensor) -> Tensor:
    assert pairs.charges is not None  # pair_inputs has checked it
    rows = torch.arange(pairs.offsets.shape[0] - 1, device=distance.device) + first_row
    rows = torch.repeat_interleave(rows, pairs.offsets.diff(), output_size=distance.shape[0])
    i, j = pairs.charges[rows], pairs.charges[pairs.sites]
    return torch.where(pairs.distance == 0, 0.5 * i**2.4, i * j / (distance * BOHR_PER_ANGSTROM))


def _plain_pair_inputs(pairs: Described, dtype: torch.dtype, options: FeatureOptions) -> Tensor:
    columns = []
    for kind, power, clip in zip(options.kinds, options.powers, options.clips, strict=True):
        if kind in (COULOMB, SINE_COULOMB):
            apart = pairs.distance if kind == COULOMB else pairs.sine_distance
            assert apart is not None  # pair_inputs has checked it
            x = _coulomb(pairs, options.first_row, apart)
        else:
            x = pairs.distance if kind == DISTANCE else pairs.distance**-2
        if power != 1:
            x = x**power
        columns.append(torch.log(x + 1e-8).clamp(-clip, clip) if clip else x)
    features = torch.stack(columns, 1).to(dtype)
    if not options.basis:
        return features
    basis = gaussians(pairs.distance.to(dtype), options.basis, options.reach)
    return torch.cat([features, basis], 1)


def _plain_log_multiplicity(pairs: Weighed, options: WeighOptions) -> Tensor:
    dtype = pairs.features.dtype
    result = pairs.multiplicity.to(dtype).log()
    if math.isfinite(options.cutoff):
        result = result.masked_fill(pairs.features[:, 0] > options.cutoff, -torch.inf)
    if options.reach:
        result = result + log_envelope(pairs.distance.to(dtype), options.reach)
    return result


# ------------------------------------------------------------------------------------------------
# Calls of the kernels.

_FLOATS = (torch.float32, torch.float64)


def _distances(distance: Tensor, dtype: torch.dtype) -> Tensor:
    """Distances in a type that the kernels read: not in float64 for results in float32."""
    return distance.to(dtype) if dtype == torch.float32 else distance


def _pair_inputs_cuda(pairs: Described, dtype: torch.dtype, options: FeatureOptions) -> Tensor:
    distance, num_pairs = pairs.distance, pairs.distance.shape[0]
    out = _pair_inputs_outputs(pairs, dtype, options)
    check(distance, "distance", ("pairs",), _FLOATS)
    check(pairs.offsets, "offsets", ("rows + 1",), torch.int64, like=distance)
    check(pairs.sites, "sites", (num_pairs,), torch.int32, like=distance)
    distance = _distances(distance, dtype)
    tensors = {
        "charges": None if pairs.charges is None else _distances(pairs.charges, dtype),
        "distance": distance,
        "sine_distance": None
        if pairs.sine_distance is None
        else _distances(pairs.sine_distance, dtype),
    }
    for name, x in tensors.items():
        if x is not None:
            sizes = ("sites",) if name == "charges" else (num_pairs,)
            check(x, name, sizes, like=distance)
    every = {"offsets": pairs.offsets, "sites": pairs.sites, **tensors}
    checks.check_contiguous(**{name: x for name, x in every.items() if x is not None})
    shape = _C.PairInputsShape(
        pairs=num_pairs,
        rows=pairs.offsets.shape[0] - 1,
        first_row=options.first_row,
        basis=options.basis,
        reach=options.reach,
        kinds=list(options.kinds),
        powers=list(options.powers),
        clips=list(options.clips),
    )
    run_cuda("pair_inputs", (dtype, distance.dtype), shape, (*every.values(), out))
    return out


def _log_multiplicity_cuda(pairs: Weighed, options: WeighOptions) -> Tensor:
    features = pairs.features
    check(features, "features", ("pairs", "columns"), _FLOATS)
    distance = _distances(pairs.distance, features.dtype)
    check(distance, "distance", (features.shape[0],), _FLOATS, like=features)
    check(pairs.multiplicity, "multiplicity", (features.shape[0],), torch.int32, like=features)
    out = _log_multiplicity_outputs(pairs, options)
    every = {"multiplicity": pairs.multiplicity, "distance": distance, "features": features}
    checks.check_contiguous(**every)
    shape = _C.LogMultiplicityShape(
        pairs=features.shape[0],
        columns=features.shape[1],
        cutoff=options.cutoff,
        reach=options.reach,
    )
    run_cuda("log_multiplicity", (features.dtype, distance.dtype), shape, (*every.values(), out))
    return out


CPU_IMPLEMENTATIONS: dict[str, Callable] = {
    "pair_inputs": flat(_plain_pair_inputs, _pair_inputs_outputs),
    "log_multiplicity": flat(_plain_log_multiplicity, _log_multiplicity_outputs),
}
CUDA_IMPLEMENTATIONS: dict[str, Callable] = {
    "pair_inputs": flat(_pair_inputs_cuda, _pair_inputs_outputs),
    "log_multiplicity": flat(_log_multiplicity_cuda, _log_multiplicity_outputs),
}
for _device, _functions in (("CPU", CPU_IMPLEMENTATIONS), ("CUDA", CUDA_IMPLEMENTATIONS)):
    for _name, _function in _functions.items():
        library.impl(_name, _function, _device)

_ops = torch.ops.sitenet

# ------------------------------------------------------------------------------------------------
# The public functions.


def _options(
    features: Sequence[InteractionFeature], basis: int, reach: float, first_row: int
) -> FeatureOptions:
    for feature in features:
        if feature.name not in KINDS:
            raise ValueError(f"no pair feature is called {feature.name!r}")
    if len(features) > MOST_FEATURES:
        raise ValueError(f"at most {MOST_FEATURES} pair features, got {len(features)}")
    return FeatureOptions(
        [KINDS[f.name] for f in features],
        [float(f.polynomial_degree) for f in features],
        [float(f.max_clip) if f.log else 0.0 for f in features],
        basis,
        reach,
        first_row,
    )


def pair_inputs(
    offsets: Tensor,
    sites: Tensor,
    charges: Tensor | None,
    distance: Tensor,
    sine_distance: Tensor | None,
    features: Sequence[InteractionFeature],
    *,
    basis: int = 0,
    reach: float = 0.0,
    first_row: int = 0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Compute the features of pairs, and Gaussians of their distances.

    Args:
        offsets: (rows + 1,) int64: row r holds the pairs offsets[r] to offsets[r + 1] - 1.
        sites: (pairs,) int32: the other site of each pair. The caller has checked both.
        charges: (sites,) in the dtype of ``distance``: nuclear charges. None without a Coulomb
            feature.
        distance: (pairs,), in angstrom.
        sine_distance: (pairs,), in angstrom. None without a feature of it.
        features: as ``sitenet.pairs.features.pair_features`` takes them.
        basis: number of Gaussians, 0 or at least 2.
        reach: centre of the last Gaussian, in angstrom.
        first_row: number in ``charges`` of the site that the first row belongs to.
        dtype: of the result; None takes that of ``distance``.

    Returns:
        (pairs, features + basis). A gradient flows to ``distance``, on a GPU through plain torch.

    Raises:
        TypeError: on a GPU, a tensor of another dtype.
        ValueError: an unknown feature, or one without what it is computed from.
    """
    options = _options(features, basis, reach, first_row)
    if SINE_COULOMB in options.kinds and sine_distance is None:
        raise ValueError("coulomb_matrix needs find_pairs(..., merge=False, sine=True)")
    if charges is None and {COULOMB, SINE_COULOMB} & set(options.kinds):
        raise ValueError("Coulomb features need charges, got None")
    pairs = Described(offsets, sites, charges, distance, sine_distance)
    dtype = dtype or distance.dtype
    if not fuses(distance) or (torch.is_grad_enabled() and distance.requires_grad):
        return _plain_pair_inputs(pairs, dtype, options)
    pairs = Described._make(None if x is None else x.contiguous() for x in pairs)
    return _ops.pair_inputs(*pairs, dtype, *options)


def log_multiplicity(
    multiplicity: Tensor,
    distance: Tensor,
    features: Tensor,
    *,
    cutoff: float | None = None,
    reach: float = 0.0,
) -> Tensor:
    """Compute what pairs add to their logits: the logarithm of the number of equal pairs that they
    stand for, and that of an envelope of the distance.

    Args:
        multiplicity: (pairs,) int32.
        distance: (pairs,), in angstrom.
        features: (pairs, columns) from ``pair_inputs``.
        cutoff: pairs whose first feature is larger are left out (-inf).
        reach: where the envelope ends, in angstrom; 0 for no envelope.

    Returns:
        (pairs,) in the dtype of ``features``.

    Raises:
        TypeError, ValueError: on a GPU, a tensor of another dtype or shape.
    """
    options = WeighOptions(math.inf if cutoff is None else cutoff, reach)
    pairs = Weighed(multiplicity.contiguous(), distance.contiguous(), features.contiguous())
    if not fuses(features):
        return _plain_log_multiplicity(pairs, options)
    return _ops.log_multiplicity(*pairs, *options)
