"""The features of pairs, in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sitenet.config import InteractionFeature, SiteNetConfig
from sitenet.ops.pair_inputs import bells, envelope, pair_inputs
from sitenet.ops.pair_inputs import gaussians as gaussians
from sitenet.ops.pair_inputs import log_envelope as log_envelope
from sitenet.pairs.pairs import Pairs


def pair_features(
    pairs: Pairs,
    features: Sequence[InteractionFeature] = SiteNetConfig.interaction_features,
    dtype: torch.dtype | None = None,
    basis: int = 0,
    reach: float = 0.0,
) -> torch.Tensor:
    """Compute the features of every pair, in closed form, and Gaussians of its distance.

    Args:
        pairs: pairs of a crystal or a batch.
        features: by published names: ``distance_matrix`` (angstrom),
            ``reciprocal_square_distance_matrix`` (infinite for the self pair),
            ``non_sine_coulomb_matrix`` (Z_i Z_j / d with d in bohr, 0.5 Z^2.4 for the self pair)
            or ``coulomb_matrix`` (the same with the sine distance as d); each is raised to its
            power and, with ``log``, replaced by ln(x + 1e-8) and clipped.
        dtype: of the result; None takes that of the distances.
        basis: number of Gaussians, 0 or at least 2 (``gaussians``).
        reach: centre of the last one, in angstrom.

    Returns:
        (pairs, features + basis) tensor.

    Raises:
        ValueError: a feature has an unknown name, or the sine distance was not computed.

    Source: h5_handler.py of the published Site-Net; Coulomb matrices as in matminer.
    """
    if pairs.sites.is_cuda:
        pairs.check()  # kernels follow the sites
    charges = None
    if any("coulomb" in feature.name for feature in features):
        mixed = None
        if pairs.mixed_numbers is not None:
            mixed = pairs.mixed_numbers.to(pairs.distance.dtype)
        charges = pairs.mix(pairs.numbers.to(pairs.distance.dtype), mixed)
    return pair_inputs(
        pairs.offsets,
        pairs.sites,
        charges,
        pairs.distance,
        pairs.sine_distance,
        features,
        basis=basis,
        reach=reach,
        first_row=pairs.first_row,
        dtype=dtype,
    )


def radial_functions(distance: torch.Tensor, number: int, reach: float) -> torch.Tensor:
    """Gaussians at equal spacings from 0.3 to 1 times the reach, with the spacing as standard
    deviation, times the envelope: (pairs, number), 0 at the reach and beyond."""
    height = bells(distance, number, 0.3 * reach, 0.7 * reach / (number - 1))
    return height * envelope(distance, reach)[:, None]
