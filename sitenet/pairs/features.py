"""The features of pairs, in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from sitenet.config import InteractionFeature, SiteNetConfig
from sitenet.pairs.pairs import Pairs

# Angstrom to bohr as in the published features: scipy's "Angstrom star" (1.00001495e-10 m) over the
# Bohr radius.
BOHR_PER_ANGSTROM = 1.8897543773133647
# Gaussians stop at e^-50 = 2e-22, which is nothing beside 1. Far smaller ones are denormal numbers
# in float32, with which processors multiply a hundred times as slowly.
LEAST_EXPONENT = -50.0


def pair_features(
    pairs: Pairs,
    features: Sequence[InteractionFeature] = SiteNetConfig.interaction_features,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Compute the features of every pair, in closed form.

    Args:
        pairs: pairs of a crystal or a batch.
        features: by published names: ``distance_matrix`` (angstrom),
            ``reciprocal_square_distance_matrix`` (infinite for the self pair),
            ``non_sine_coulomb_matrix`` (Z_i Z_j / d with d in bohr, 0.5 Z^2.4 for the self pair)
            or ``coulomb_matrix`` (the same with the sine distance as d); each is raised to its
            power and, with ``log``, replaced by ln(x + 1e-8) and clipped.
        dtype: of the result; None takes that of the distances.

    Returns:
        (pairs, features) tensor.

    Raises:
        ValueError: a feature has an unknown name, or the sine distance was not computed.

    Source: h5_handler.py of the published Site-Net; Coulomb matrices as in matminer.
    """
    columns = [_feature(pairs, f) for f in features]
    return torch.stack(columns, 1).to(dtype or pairs.distance.dtype)


def log_envelope(distance: torch.Tensor, reach: float) -> torch.Tensor:
    """Logarithm of a polynomial that falls from 1 at distance 0 to 0 at the reach, where its first
    and second derivatives are 0, too; -inf beyond.

    Source: Gasteiger et al., Directional message passing, ICLR 2020, eq. 8 with p = 6.
    """
    return envelope(distance, reach).log()


def envelope(distance: torch.Tensor, reach: float) -> torch.Tensor:
    """The polynomial whose logarithm is ``log_envelope``."""
    u = distance / reach
    square = u * u
    return torch.where(u < 1, 1 - square**3 * (28 - 48 * u + 21 * square), 0).clamp(min=0)


def gaussians(distance: torch.Tensor, number: int, reach: float) -> torch.Tensor:
    """Gaussians at equal spacings from 0 to the reach, with the spacing as standard deviation:
    (pairs, number)."""
    return _bells(distance, number, 0.0, reach / (number - 1))


def radial_functions(distance: torch.Tensor, number: int, reach: float) -> torch.Tensor:
    """Gaussians at equal spacings from 0.3 to 1 times the reach, with the spacing as standard
    deviation, times the envelope: (pairs, number), 0 at the reach and beyond."""
    height = _bells(distance, number, 0.3 * reach, 0.7 * reach / (number - 1))
    return height * envelope(distance, reach)[:, None]


def _bells(distance: torch.Tensor, number: int, first: float, spacing: float) -> torch.Tensor:
    """Gaussians at equal spacings from ``first`` on, with the spacing as standard deviation:
    (pairs, number)."""
    centres = torch.arange(number, dtype=distance.dtype, device=distance.device)
    apart = ((distance - first) / spacing)[:, None] - centres
    return apart.square().mul_(-0.5).clamp_(min=LEAST_EXPONENT).exp_()


def _feature(pairs: Pairs, feature: InteractionFeature) -> torch.Tensor:
    distance = pairs.distance
    if feature.name == "distance_matrix":
        x = distance
    elif feature.name == "reciprocal_square_distance_matrix":
        x = distance**-2
    elif feature.name == "non_sine_coulomb_matrix":
        x = _coulomb(pairs, distance)
    elif feature.name == "coulomb_matrix":
        if pairs.sine_distance is None:
            raise ValueError("coulomb_matrix needs find_pairs(..., merge=False, sine=True)")
        x = _coulomb(pairs, pairs.sine_distance)
    else:
        raise ValueError(f"no pair feature is called {feature.name!r}")
    if feature.polynomial_degree != 1:
        x = x**feature.polynomial_degree
    if feature.log:
        x = torch.log(x + 1e-8).clamp(-feature.max_clip, feature.max_clip)
    return x


def _coulomb(pairs: Pairs, distance: torch.Tensor) -> torch.Tensor:
    mixed = None if pairs.mixed_numbers is None else pairs.mixed_numbers.to(distance.dtype)
    numbers = pairs.mix(pairs.numbers.to(distance.dtype), mixed)  # mean nuclear charges
    i = numbers[pairs.rows]
    j = numbers[pairs.sites]
    return torch.where(pairs.distance == 0, 0.5 * i**2.4, i * j / (distance * BOHR_PER_ANGSTROM))
