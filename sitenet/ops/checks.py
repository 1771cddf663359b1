"""Checks of the attention ops: sizes for every call, values of the indices where they enter.

The kernels read and write through addresses, so a size or an index that is wrong would reach
foreign memory. Sizes are checked by every op. Offsets and sites are read once: by ``Pairs.check``
for models, and by the public function for everyone else.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sitenet.ops import check
from sitenet.ops.rows import BySite, sorted_by_site


def can_read(x: object) -> bool:
    """Whether a tensor's values may be read: not while torch compiles or captures a CUDA graph."""
    if torch.compiler.is_compiling():
        return False
    return not (getattr(x, "is_cuda", False) and torch.cuda.is_current_stream_capturing())


def check_tensors(**tensors: Tensor) -> None:
    """Raise TypeError for an argument that is no tensor."""
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")


def check_offsets(offsets: Tensor, end: int, name: str = "offsets", of: str = "pairs") -> None:
    """Raise ValueError unless CSR offsets ascend from 0 to ``end``; reads them once."""
    first, last, step = torch.stack(
        [offsets[0], offsets[-1], offsets.diff(append=offsets[-1:]).min()]
    ).tolist()
    if first or last != end or step < 0:
        got = f"from {first} to {last}" + (f" with a step of {step}" if step < 0 else "")
        raise ValueError(f"{name} must ascend from 0 to the {end} {of}, got offsets {got}")


def check_range(index: Tensor, size: int, name: str, of: str, least: int = 0) -> None:
    """Raise ValueError unless all entries are from ``least`` to ``size`` - 1; reads them once."""
    if not index.numel():
        return
    low, high = torch.stack(index.aminmax()).tolist()
    if low < least or high >= size:
        raise ValueError(
            f"{name} must be from {least} to {size - 1} ({of}), got values from {low} to {high}"
        )


def check_pair_embedding(features: Tensor, weight: Tensor, bias: Tensor, eps: float) -> None:
    """Raise TypeError or ValueError unless the embedding's tensors fit together."""
    check(features, "features", ("pairs", "features"), (torch.float32, torch.float64))
    check(weight, "weight", ("width", features.shape[1]), like=features)
    check(bias, "bias", (weight.shape[0],), like=features)
    _check_not_empty(weight, "weight")
    check_contiguous(features=features, weight=weight, bias=bias)
    _check_eps(eps)


def check_attention(
    site_i: Tensor,
    site_j: Tensor,
    e: Tensor,
    weight: Tensor,
    logit_weight: Tensor,
    log_multiplicity: Tensor,
    offsets: Tensor,
    sites: Tensor,
    attention_dim: int,
    eps: float,
) -> None:
    """Raise TypeError or ValueError unless the tensors of a block fit together."""
    check(site_i, "site_i", ("rows", "columns"), (torch.float32, torch.float64))
    rows, columns = site_i.shape
    check(site_j, "site_j", ("sites", columns), like=site_i)
    low = (torch.bfloat16,) if site_i.dtype == torch.float32 else ()
    check(e, "e", ("pairs", "width"), (site_i.dtype, *low), like=site_i)
    num_pairs, width = e.shape
    check(weight, "weight", (columns, width), like=site_i)
    check(logit_weight, "logit_weight", ("heads", "hidden"), like=site_i)
    hidden = logit_weight.shape[1]
    if attention_dim < 1 or hidden < 1 or hidden + attention_dim > columns:
        raise ValueError(
            f"site_i must have at least hidden + attention_dim = {hidden} + {attention_dim}"
            f" columns, got {columns}"
        )
    _check_not_empty(weight, "weight")
    _check_not_empty(logit_weight, "logit_weight")
    check(log_multiplicity, "log_multiplicity", (num_pairs,), like=site_i)
    check(offsets, "offsets", (rows + 1,), torch.int64, like=site_i)
    check(sites, "sites", (num_pairs,), torch.int32, like=site_i)
    check_contiguous(
        site_i=site_i,
        site_j=site_j,
        e=e,
        weight=weight,
        logit_weight=logit_weight,
        log_multiplicity=log_multiplicity,
        offsets=offsets,
        sites=sites,
    )
    _check_eps(eps)


def check_attention_gradients(
    site_i: Tensor,
    e: Tensor,
    logit_weight: Tensor,
    y: Tensor,
    logsum: Tensor,
    grad_y: Tensor,
    grad_e_out: Tensor | None,
    attention_dim: int,
) -> None:
    """Raise TypeError or ValueError unless what only backward reads fits the block."""
    heads, hidden = logit_weight.shape
    rows, columns = site_i.shape
    check(y, "y", (rows, attention_dim * heads), like=site_i)
    check(logsum, "logsum", (rows, heads), like=site_i)
    check(grad_y, "grad_y", (rows, attention_dim * heads), like=site_i)
    if grad_e_out is not None:
        check(grad_e_out, "grad_e_out", (e.shape[0], columns - hidden - attention_dim), like=e)
    check_contiguous(y=y, logsum=logsum)


def check_indices(
    offsets: Tensor, sites: Tensor, num_sites: int, of: str = "site_j", entries: str = "pairs"
) -> None:
    """Raise ValueError unless the offsets hold all entries and each entry's site is a row of
    ``of``."""
    if can_read(sites):
        check_offsets(offsets, sites.shape[0], of=entries)
        check_range(sites, num_sites, "sites", f"rows of {of}")


def check_by_site(by_site: BySite, sites: Tensor, num_sites: int, read: bool = False) -> None:
    """Raise TypeError or ValueError unless a list of pairs by site has the sizes for these sites
    or, if it is to be read, is their list; without a list, do nothing."""
    pairs, offsets = by_site
    if pairs is None or offsets is None:
        return
    check(pairs, "pairs_of_site", (sites.shape[0],), torch.int64, like=sites)
    check(offsets, "offsets_of_site", (num_sites + 1,), torch.int64, like=sites)
    check_contiguous(pairs_of_site=pairs, offsets_of_site=offsets)
    if read and can_read(sites):
        want = sorted_by_site(sites, num_sites)
        if not all(map(torch.equal, (pairs, offsets), want)):  # type: ignore[arg-type]
            raise ValueError("by_site must be sorted_by_site(sites, sites of site_j), got another")


def _check_not_empty(x: Tensor, name: str) -> None:
    if not x.numel():
        raise ValueError(f"{name} must have no dimension of size 0, got {tuple(x.shape)}")


def check_contiguous(**tensors: Tensor) -> None:
    """Raise ValueError for a tensor that is not contiguous."""
    for name, x in tensors.items():
        if not x.is_contiguous():
            raise ValueError(f"{name} must be contiguous, got strides {x.stride()}")


def _check_eps(eps: float) -> None:
    if not 0 <= eps < float("inf"):
        raise ValueError(f"eps must be >= 0 and finite, got {eps}")
