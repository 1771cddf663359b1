"""Species that share a place: rows of a crystal with one position, averaged by occupancy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from sitenet.crystal.crystal import Crystal

FULL = 1 - 1e-3  # occupancies from here on are 1


@dataclass
class Places:
    """The places of a crystal's rows. In an ordered crystal every row is one.

    Attributes:
        first: (places,) int64, the first row on each place.
        place: (rows,) int64, the place of each row.
        kinds: (places,) int64: places of one kind hold the same species, oxidation states and
            occupancies.
    """

    first: np.ndarray
    place: np.ndarray
    kinds: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    def rows_on(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """All rows on some places, and which of these places each is on."""
        if len(self.first) == len(self.place):
            return self.first[places], np.arange(len(places))
        order = np.argsort(self.place, kind="stable")
        parts = np.split(order, np.cumsum(np.bincount(self.place))[:-1])
        which = [np.full(len(parts[place]), k) for k, place in enumerate(places)]
        return np.concatenate([parts[place] for place in places]), np.concatenate(which)


def find_places(crystal: Crystal) -> Places:
    """The places of a crystal: rows with exactly the same coordinates share one.

    Raises:
        ValueError: the occupancies on one place add up to more than 1.
    """
    rows = np.arange(len(crystal.numbers))
    if crystal.occupancy is None:
        if crystal.oxidation is None:
            kinds = np.unique(crystal.numbers, return_inverse=True)[1]
        else:
            both = np.stack([crystal.numbers, crystal.oxidation], 1)
            kinds = np.unique(both, axis=0, return_inverse=True)[1].reshape(-1)
        return Places(rows, rows, kinds)
    oxidation = np.zeros(len(rows)) if crystal.oxidation is None else crystal.oxidation
    columns = crystal.numbers, oxidation, crystal.occupancy
    species = list(zip(*(column.tolist() for column in columns), strict=True))
    rows_at: dict[tuple[float, ...], list[int]] = {}
    for row, point in enumerate(crystal.frac.tolist()):
        rows_at.setdefault(tuple(point), []).append(row)
    kind_of: dict[tuple[tuple[int, float, float], ...], int] = {}
    first, kinds = np.empty((2, len(rows_at)), dtype=np.int64)
    place = np.empty(len(rows), dtype=np.int64)
    for k, (point, here) in enumerate(rows_at.items()):
        total = crystal.occupancy[here].sum()
        if total > 1.001:
            raise ValueError(f"occupancies at {point} add up to {total:g}, more than 1")
        first[k], place[here] = here[0], k
        kinds[k] = kind_of.setdefault(tuple(sorted(species[row] for row in here)), len(kind_of))
    return Places(first, place, kinds)


def mixture_label(shares: dict[str, float]) -> str:
    """A name for the species of one site: ``"Fe0.5Ni0.25Vac0.25"``, or ``"Fe"`` if it is full."""
    vacant = 1 - sum(shares.values())
    if len(shares) == 1 and vacant < 1 - FULL:
        return next(iter(shares))
    ordered = sorted(shares.items(), key=lambda pair: (-pair[1], pair[0]))
    if vacant >= 1 - FULL:
        ordered.append(("Vac", vacant))
    return "".join(f"{symbol}{share:.3g}" for symbol, share in ordered)
