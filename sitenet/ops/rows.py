"""Operations over the rows of CSR pairs in plain torch, for any dtype and device."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = 1e-5  # of every norm, as published


def normalise(x: Tensor, norm: bool = True, eps: float = EPSILON) -> Tensor:
    """LayerNorm over the last dimension without the affine part; x unchanged if not ``norm``."""
    return F.layer_norm(x, x.shape[-1:], eps=eps) if norm else x


def row_of_pair(offsets: Tensor, num_pairs: int) -> Tensor:
    """The row of each pair, (pairs,) int64.

    Args:
        offsets: (rows + 1,) int64, where each row's pairs begin.
        num_pairs: the last offset, known on the host, so that no device has to be waited for.
    """
    pairs = torch.arange(num_pairs, device=offsets.device)
    return torch.bucketize(pairs, offsets, right=True) - 1


def row_softmax(logits: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Softmax over the pairs of each row, per head.

    Args:
        logits: (pairs, heads); -inf excludes a pair, and a row with nothing else gets zeros.
        rows: (pairs,) the row of each pair.
        num_rows: number of rows.

    Returns:
        (pairs, heads) weights.
    """
    index = rows[:, None].expand_as(logits)
    peak = logits.new_full((num_rows, logits.shape[1]), -torch.inf)
    peak = peak.scatter_reduce(0, index, logits.detach(), "amax")
    weights = (logits - peak.nan_to_num(neginf=0.0)[rows]).exp()
    total = torch.zeros_like(peak).index_add(0, rows, weights)
    return weights / torch.where(total == 0, 1, total)[rows]


def weighted_sums(weights: Tensor, values: Tensor, rows: Tensor, num_rows: int) -> Tensor:
    """Sum over each row of the values (pairs, A), weighted per head: (rows, A * heads), with
    feature index a * heads + head, as published."""
    products = values[:, :, None] * weights[:, None, :]
    return products.new_zeros(num_rows, *products.shape[1:]).index_add(0, rows, products).flatten(1)


class BySite(NamedTuple):
    """The pairs of each site, so that sums over them have one order; none where no kernel reads it.

    ``pairs_of_site`` (pairs,) int64, sorted by site and ascending within a site;
    ``offsets_of_site`` (sites + 1,) int64, where those of each site begin.
    """

    pairs_of_site: Tensor | None = None
    offsets_of_site: Tensor | None = None


def sorted_by_site(sites: Tensor, num_sites: int) -> BySite:
    """List the pairs by site.

    Args:
        sites: (pairs,) the site of each pair.
        num_sites: number of sites.
    """
    sorted_sites, pairs_of_site = torch.sort(sites, stable=True)
    bounds = torch.arange(num_sites + 1, dtype=sites.dtype, device=sites.device)
    return BySite(pairs_of_site, torch.searchsorted(sorted_sites, bounds))


def by_site_for_backward(sites: Tensor, num_sites: int) -> BySite:
    """List the pairs by site if a backward pass on a GPU may follow, whose kernels read the list;
    once for all ops over the same pairs."""
    if sites.is_cuda and torch.is_grad_enabled():
        return sorted_by_site(sites, num_sites)
    return BySite()
