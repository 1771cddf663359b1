"""The oracle: every op of a model in plain torch, slow and obvious, for any dtype.

``pair_embedding`` and ``attention`` have the signatures of ``sitenet.ops.attention``,
``power_spectrum`` and ``site_terms`` those of the modules named after them. Only tests and benches
import this module.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def mish(x: Tensor) -> Tensor:
    """x tanh(ln(1 + exp(x)))."""
    return x * torch.tanh(F.softplus(x))


ACTIVATIONS = {"mish": mish, "relu": torch.relu, "none": lambda x: x}


def normalise(x: Tensor, norm: bool = True, eps: float = 1e-5) -> Tensor:
    """LayerNorm over the last dimension, without affine; x itself if not norm."""
    if not norm:
        return x
    mean = x.mean(-1, keepdim=True)
    variance = (x - mean).square().mean(-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps)


def row_of_pair(offsets: Tensor, num_pairs: int) -> Tensor:
    """The row of each pair, (pairs,), from the rows' offsets, (rows + 1,)."""
    pairs = torch.arange(num_pairs, device=offsets.device)
    return torch.searchsorted(offsets, pairs, right=True) - 1


def row_softmax(logits: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Softmax over the pairs of each row, one per head.

    Args:
        logits: (pairs, heads); -inf leaves a pair out, a row of nothing else gives zeros.
        rows: (pairs,) the row of each pair.
        num_rows: the number of rows.

    Returns:
        (pairs, heads) weights.
    """
    index = rows[:, None].expand_as(logits)
    largest = logits.new_full((num_rows, logits.shape[1]), -torch.inf)
    largest = largest.scatter_reduce(0, index, logits.detach(), "amax")
    weights = torch.exp(logits - largest.nan_to_num(neginf=0.0)[rows])
    total = torch.zeros_like(largest).index_add(0, rows, weights)
    return weights / total.masked_fill(total == 0, 1)[rows]


def pair_embedding(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    activation: str = "mish",
    norm: bool = True,
    eps: float = 1e-5,
) -> Tensor:
    """normalise(activation(features weight^T + bias)): (pairs, F) -> (pairs, E)."""
    return normalise(ACTIVATIONS[activation](F.linear(features, weight, bias)), norm, eps)


def attention(
    site_i: Tensor,
    site_j: Tensor,
    e: Tensor,
    weight: Tensor,
    logit_weight: Tensor,
    log_multiplicity: Tensor,
    offsets: Tensor,
    sites: Tensor,
    *,
    attention_dim: int,
    activation: str = "mish",
    norm: bool = True,
    eps: float = 1e-5,
    need_logits: bool = False,
    check_indices: bool = True,
    by_site: object = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """One attention block over CSR rows of pairs.

    Args:
        site_i: (rows, C) what the row's site adds to the first layer, with its bias.
        site_j: (sites, C) what the pair's other site adds.
        e: (pairs, E) interaction features.
        weight: (C, E) the first layer's weight on e. The columns C are hidden | attention |
            interaction, the last group only if the next interaction features are wanted.
        logit_weight: (heads, hidden).
        log_multiplicity: (pairs,) added to every head's logit; -inf leaves the pair out.
        offsets: (rows + 1,) where each row's pairs begin.
        sites: (pairs,) row of ``site_j`` of each pair.
        attention_dim: width A of the attention group.
        activation: "mish", "relu" or "none".
        norm: whether each group is normalised (LayerNorm without affine).
        eps: of the norm.
        need_logits: whether to return the logits.
        check_indices: as in ``ops.attention``; torch itself checks every index here.
        by_site: as in ``ops.attention``; nothing here needs it.

    Returns:
        y (rows, A * heads) with feature index a * heads + h; the next interaction features
        (pairs, C - hidden - A) or None; the logits (pairs, heads) or None.
    """
    hidden = logit_weight.shape[1]
    rows = row_of_pair(offsets, len(sites))
    z = site_i[rows] + site_j[sites.long()] + F.linear(e, weight)  # (pairs, C)
    groups = z.split([hidden, attention_dim, z.shape[1] - hidden - attention_dim], 1)
    m, a, interaction = (normalise(ACTIVATIONS[activation](g), norm, eps) for g in groups)
    logits = F.linear(m, logit_weight) + log_multiplicity[:, None]  # (pairs, heads)
    y = attend(logits, a, rows, len(site_i))
    return y, interaction if interaction.shape[1] else None, logits if need_logits else None


def attend(logits: Tensor, a: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Sum of the attention features a (pairs, A) over each row, weighted by the softmax of the
    logits (pairs, heads): (rows, A * heads), head fastest."""
    weights = row_softmax(logits, rows, num_rows)
    y = a.new_zeros(num_rows, a.shape[1], weights.shape[1])
    return y.index_add(0, rows, a[:, :, None] * weights[:, None, :]).flatten(1)


def spherical_harmonics(vectors: Tensor, degrees: int) -> Tensor:
    """Real spherical harmonics of the directions for l < degrees, (n, degrees^2), each l scaled so
    that its squares sum to 1; of vectors shorter than 1e-6, l = 0 only.

    From associated Legendre functions and powers of x + i y.
    """
    length = vectors.norm(dim=1)
    has_direction = length > 1e-6
    x, y, z = (vectors / torch.where(has_direction, length, 1)[:, None]).unbind(1)
    plane = torch.complex(x, y)  # sin(theta) exp(i phi)
    columns = []
    for degree in range(degrees):
        row: list[Tensor] = []
        for m in range(degree + 1):
            power = plane**m
            factor = math.sqrt(math.factorial(degree - m) / math.factorial(degree + m))
            legendre = factor * _legendre_over_sine(degree, m, z)
            if m == 0:
                row = [legendre]
            else:
                scaled = math.sqrt(2) * legendre
                row = [scaled * power.imag, *row, scaled * power.real]
        columns += row
    harmonics = torch.stack(columns, 1)
    harmonics[:, 1:] = torch.where(has_direction[:, None], harmonics[:, 1:], 0)
    return harmonics


def _legendre_over_sine(degree: int, m: int, z: Tensor) -> Tensor:
    """P_degree^m(z) / (1 - z^2)^(m/2) without the phase (-1)^m, by recursion over the degree."""
    before, value = torch.zeros_like(z), torch.full_like(z, math.prod(range(1, 2 * m, 2)))
    for k in range(m, degree):
        before, value = value, ((2 * k + 1) * z * value - (k + m) * before) / (k - m + 1)
    return value


def power_spectrum(
    values: Tensor,
    mix: Tensor,
    radial: Tensor,
    vectors: Tensor,
    offsets: Tensor,
    sites: Tensor,
) -> Tensor:
    """Power spectra of the density of neighbours: (rows, degrees, mixed)."""
    degrees = len(mix)
    rows = row_of_pair(offsets, len(sites))
    products = (radial[:, :, None] * values[sites.long()][:, None, :]).flatten(1)
    terms = spherical_harmonics(vectors, degrees)[:, :, None] * products[:, None, :]
    density = terms.new_zeros(len(offsets) - 1, *terms.shape[1:]).index_add(0, rows, terms)
    spectra = []
    for degree in range(degrees):
        mixed = density[:, degree**2 : (degree + 1) ** 2] @ mix[degree]  # (rows, 2 l + 1, mixed)
        soft = 0.01
        norm = (mixed.square().sum(1) + soft**2).sqrt() - soft
        spectra.append(norm if degree else mixed[:, 0])
    return torch.stack(spectra, 1)


def block_weights(
    hidden: Tensor,
    attention: Tensor,
    interaction: Tensor | None,
    hidden_bias: Tensor,
    attention_bias: Tensor,
    interaction_bias: Tensor | None,
    logit: Tensor,
    gain: Tensor | None,
    shift: Tensor | None,
    hidden_gain: Tensor | None,
    *,
    width: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The weights that give a block the same first layer on e as on e * gain + shift, and the same
    softmax on hidden columns as on hidden * hidden_gain, up to a constant per row: those over both
    sites (2, columns, D), the bias, those over e (columns, width), and those of the logits."""
    weight = torch.cat([x for x in (hidden, attention, interaction) if x is not None])
    bias = torch.cat([x for x in (hidden_bias, attention_bias, interaction_bias) if x is not None])
    sites, pairs = weight[:, : weight.shape[1] - width], weight[:, weight.shape[1] - width :]
    if gain is not None and shift is not None:
        bias = bias + torch.einsum("ck,k->c", pairs, shift)
        pairs = torch.einsum("ck,k->ck", pairs, gain)
    if hidden_gain is not None:
        logit = torch.einsum("hk,k->hk", logit, hidden_gain)
        logit = logit - logit.mean(1, keepdim=True)
    return torch.stack(sites.chunk(2, 1)), bias, pairs, logit


def site_terms(
    x: Tensor, weight: Tensor, bias: Tensor, first: int = 0, rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """x weight[0]^T + bias for the rows' sites, from ``first`` on, and x weight[1]^T for all."""
    last = None if rows is None else first + rows
    return (x @ weight[0].mT + bias)[first:last], x @ weight[1].mT


def pair_inputs(
    offsets: Tensor,
    sites: Tensor,
    charges: Tensor,
    distance: Tensor,
    sine_distance: Tensor,
    kinds: list[tuple[str, float, float]],
    basis: int,
    reach: float,
    first_row: int = 0,
) -> Tensor:
    """Pair by pair. Each kind is a published name, a power, and the clip of the logarithm (0 for
    no logarithm); the Gaussians follow."""
    rows = row_of_pair(offsets, len(distance))
    result = distance.new_empty(len(distance), len(kinds) + basis)
    for p, (row, site) in enumerate(zip(rows.tolist(), sites.tolist(), strict=True)):
        d, i, j = float(distance[p]), float(charges[first_row + row]), float(charges[site])
        for column, (name, power, clip) in enumerate(kinds):
            apart = float(sine_distance[p]) if name == "coulomb_matrix" else d
            if name == "distance_matrix":
                x = d
            elif name == "reciprocal_square_distance_matrix":
                x = 1 / d**2 if d else math.inf
            else:
                x = i * j / (apart * 1.8897543773133647) if d else 0.5 * i**2.4
            x = x**power if x or power > 0 else math.inf
            result[p, column] = min(max(math.log(x + 1e-8), -clip), clip) if clip else x
        for k in range(basis):
            z = (d - k * reach / (basis - 1)) / (reach / (basis - 1))
            result[p, len(kinds) + k] = math.exp(-0.5 * z * z)
    return result


def log_multiplicity(
    multiplicity: Tensor, distance: Tensor, features: Tensor, cutoff: float | None, reach: float
) -> Tensor:
    """ln(multiplicity envelope(distance)), -inf where the first feature exceeds the cutoff."""
    u = distance / reach if reach else torch.zeros_like(distance)
    envelope = torch.where(u < 1, 1 - 28 * u**6 + 48 * u**7 - 21 * u**8, 0)
    kept = torch.ones_like(u) if cutoff is None else (features[:, 0] <= cutoff).to(u.dtype)
    return (multiplicity * envelope.clamp(min=0) * kept).log()
