"""The pairs of a crystal as flat columns, as a store keeps them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sitenet.pairs.pairs import Pairs

Columns = dict[str, np.ndarray]

# Column -> what has one entry in it, and its dtype on disk and in memory. Distances are kept in
# float32: 5e-7 A at 8 A, far below the tolerance of merging.
COLUMNS = {
    "num_sites": ("crystal", np.int32),
    "images": ("crystal", np.int32),
    "num_rows": ("crystal", np.int32),
    "num_mixed": ("crystal", np.int32),
    "numbers": ("row", np.uint8),
    "oxidation": ("row", np.float32),
    "count": ("row", np.int32),
    "num_pairs": ("row", np.int32),
    "sites": ("pair", np.int32),
    "distance": ("pair", np.float32),
    "multiplicity": ("pair", np.int32),
    "mixed_rows": ("species", np.int32),
    "mixed_numbers": ("species", np.uint8),
    "mixed_shares": ("species", np.float32),
}

# Columns in float32 that a store has if its pairs were found with them: the sine distance of each
# pair, and the three components of each image's vector.
OPTIONAL_COLUMNS = ("sine_distance", "vectors")

# The columns of the species of an ordered crystal.
NOT_MIXED = {name: np.empty(0, dtype) for name, (of, dtype) in COLUMNS.items() if of == "species"}


def columns_of(pairs: Pairs) -> Columns:
    """Lay out one crystal's pairs as columns."""
    none = torch.empty(0)
    mixed = none if pairs.mixed_rows is None else pairs.mixed_rows
    columns = {
        "num_sites": pairs.num_sites,
        "images": pairs.images,
        "num_rows": pairs.crystals.diff(),
        "num_mixed": torch.tensor([len(mixed)]),
        "numbers": pairs.numbers,
        "oxidation": pairs.oxidation,
        "count": pairs.count,
        "num_pairs": pairs.offsets.diff(),
        "sites": pairs.sites,
        "distance": pairs.distance,
        "multiplicity": pairs.multiplicity,
        "mixed_rows": mixed,
        "mixed_numbers": none if pairs.mixed_numbers is None else pairs.mixed_numbers,
        "mixed_shares": none if pairs.mixed_shares is None else pairs.mixed_shares,
    }
    if pairs.sine_distance is not None:
        columns["sine_distance"] = pairs.sine_distance
    if pairs.vectors is not None:
        columns["vectors"] = pairs.vectors.flatten()
    return {name: x.numpy().astype(dtype_of(name), copy=False) for name, x in columns.items()}


def dtype_of(name: str) -> type:
    """The dtype of a column."""
    return np.float32 if name in OPTIONAL_COLUMNS else COLUMNS[name][1]


def joined(parts: Sequence[Columns]) -> Columns:
    """Join the columns of crystals; of none, they are empty."""
    names = parts[0] if parts else COLUMNS
    return {
        name: np.concatenate([p[name] for p in parts]) if parts else np.empty(0, dtype_of(name))
        for name in names
    }


def separated(columns: Columns) -> list[Columns]:
    """Take joined columns apart, crystal by crystal; the arrays are views."""
    row = _begins(columns["num_rows"])
    pair = _begins(columns["num_pairs"])[row]
    ends = {"row": row, "pair": pair, "species": _begins(columns["num_mixed"])}
    ends["crystal"] = np.arange(len(row))
    of = {name: kind for name, (kind, _) in COLUMNS.items()} | {"sine_distance": "pair"}
    if "vectors" in columns:
        ends["vectors"] = 3 * _begins(columns["multiplicity"])[pair]
        of["vectors"] = "vectors"
    parts: list[Columns] = [{} for _ in columns["num_rows"]]
    for name, values in columns.items():
        end = ends[of[name]].tolist()
        for k, part in enumerate(parts):
            part[name] = values[end[k] : end[k + 1]]
    return parts


def _begins(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
