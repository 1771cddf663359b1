"""The check of pairs before kernels follow their indices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from sitenet.crystal.elements import NUM_ELEMENTS
from sitenet.ops import check
from sitenet.ops.checks import check_offsets, check_range, check_tensors

if TYPE_CHECKING:
    from sitenet.pairs.pairs import Pairs

_FLOATS = (torch.float32, torch.float64)
# What the first dimension of each tensor counts, and its dtypes. A batch holds no ``orbit``.
_SIZES: dict[str, tuple[str, Any]] = {
    "offsets": ("rows held + 1", torch.int64),
    "sites": ("pairs", torch.int32),
    "distance": ("pairs", _FLOATS),
    "multiplicity": ("pairs", torch.int32),
    "numbers": ("rows", torch.int64),
    "oxidation": ("rows", _FLOATS),
    "count": ("rows", torch.int32),
    "crystals": ("crystals + 1", torch.int64),
    "num_sites": ("crystals", torch.int64),
    "images": ("crystals", torch.int64),
    "sine_distance": ("pairs", _FLOATS),
    "vectors": ("images", _FLOATS),
    "mixed_rows": ("species", torch.int64),
    "mixed_numbers": ("species", torch.int64),
    "mixed_shares": ("species", _FLOATS),
}
_WIDTHS = {"vectors": (3,)}
_OPTIONAL = ("sine_distance", "vectors", "mixed_rows", "mixed_numbers", "mixed_shares")


def check_pairs(pairs: Pairs) -> None:
    """Check that the tensors of pairs fit together and that every index is in range.

    Raises:
        TypeError: an attribute is no tensor, or of another dtype.
        ValueError: one has another length or device, or an index is out of range.
    """
    tensors = {name: getattr(pairs, name) for name in _SIZES}
    tensors = {k: x for k, x in tensors.items() if x is not None or k not in _OPTIONAL}
    check_tensors(**{f"Pairs.{name}": x for name, x in tensors.items()})
    device = pairs.sites.device
    sizes = {"pairs": pairs.sites.numel(), "rows": pairs.numbers.numel()}
    sizes["crystals"] = pairs.num_sites.numel()
    sizes["crystals + 1"] = sizes["crystals"] + 1
    for name, x in tensors.items():
        size, dtypes = _SIZES[name]
        shape = (sizes.get(size, size), *_WIDTHS.get(name, ()))
        check(x, f"Pairs.{name}", shape, dtypes)
        sizes.setdefault(size, len(x))
        if x.device != device:
            raise ValueError(f"Pairs.{name} must be on {device}, got {x.device}")

    num_rows, held = sizes["rows"], pairs.offsets.numel() - 1
    if held < 0 or not 0 <= pairs.first_row <= num_rows - held:
        raise ValueError(
            f"Pairs.offsets must have at most {num_rows - pairs.first_row + 1} entries (rows from "
            f"first_row = {pairs.first_row} on, and 1), at least 1, got {held + 1}"
        )
    check_offsets(pairs.offsets, sizes["pairs"], "Pairs.offsets")
    check_offsets(pairs.crystals, num_rows, "Pairs.crystals", "rows")
    check_range(pairs.sites, num_rows, "Pairs.sites", "rows")
    check_range(pairs.numbers, NUM_ELEMENTS, "Pairs.numbers", "atomic numbers")
    check_range(pairs.multiplicity, 2**31, "Pairs.multiplicity", "images")
    if pairs.vectors is not None and len(pairs.vectors) != int(pairs.multiplicity.sum()):
        raise ValueError(
            f"Pairs.vectors must have one row per image, {int(pairs.multiplicity.sum())}, got "
            f"{len(pairs.vectors)}"
        )
    if pairs.mixed_rows is not None and pairs.mixed_numbers is not None:
        check_range(pairs.mixed_rows, num_rows, "Pairs.mixed_rows", "rows")
        check_range(pairs.mixed_numbers, NUM_ELEMENTS, "Pairs.mixed_numbers", "atomic numbers")
