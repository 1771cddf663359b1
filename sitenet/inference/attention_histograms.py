"""Attention counted by distance and by elements, over any number of crystals, in bounded memory.

Both tallies count pairs of sites: a merged pair counts for all the pairs of sites it stands for,
each with its own weight.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from sitenet.crystal.elements import SYMBOLS

BINS_PER_ANGSTROM = 64
LONGEST = 30  # angstrom; longer pairs count in the last bin
WEIGHT_EDGES = np.logspace(-6, 0, 501)  # as published
COARSE = 32  # bins of distance that make one of the bins by elements: 0.5 angstrom

_BINS = LONGEST * BINS_PER_ANGSTROM + 1
_COARSE_BINS = _BINS // COARSE + 2  # the first is for self pairs


def distance_bin(distance: np.ndarray) -> np.ndarray:
    """The bin of each distance; bin k begins at (k - 1/2) / 64 angstrom.

    Half a bin off the multiples, an edge lies on no distance that a cell of few decimals makes
    often, where rounding would choose the bin.
    """
    bins = np.floor(distance * BINS_PER_ANGSTROM + 0.5).astype(np.int64)
    return np.minimum(bins, _BINS - 1)


def distance_edges() -> np.ndarray:
    """Where the bins of distance begin and end, in angstrom."""
    return (np.arange(_BINS + 1) - 0.5) / BINS_PER_ANGSTROM


class DistanceTally:
    """Pairs counted by distance and weight, self pairs apart.

    Attributes:
        counts: (blocks, heads, distances, weights) uint32, pairs of sites; bins of distance as
            ``distance_edges``, of weight as ``WEIGHT_EDGES``. Weights below 1e-6 count nowhere, as
            published.
        self_counts: (blocks, heads, weights) uint32, self pairs.
        pairs: (distances,) pairs of sites at each distance.
        attention: (distances, blocks, heads), the sum of their weights.
        self_attention: (blocks, heads), the sum of the weights of self pairs.
        sites: how many sites were counted.
    """

    def __init__(self, blocks: int, heads: int) -> None:
        weights = len(WEIGHT_EDGES) - 1
        self.counts = np.zeros((blocks, heads, _BINS, weights), np.uint32)
        self.self_counts = np.zeros((blocks, heads, weights), np.uint32)
        self.pairs = np.zeros(_BINS)
        self.attention = np.zeros((_BINS, blocks, heads))
        self.self_attention = np.zeros((blocks, heads))
        self.sites = 0

    def add(self, distance: np.ndarray, weights: np.ndarray, copies: np.ndarray) -> None:
        """Count pairs.

        Args:
            distance: (pairs,) in angstrom, 0 for self pairs.
            weights: (pairs, blocks, heads), those of one pair of sites.
            copies: (pairs,) pairs of sites that each pair stands for.
        """
        itself = distance == 0
        bins = distance_bin(distance)
        np.add.at(self.pairs, bins[~itself], copies[~itself])
        np.add.at(self.attention, bins[~itself], (weights * copies[:, None, None])[~itself])
        self.self_attention += np.tensordot(copies[itself], weights[itself], 1)
        self.sites += int(copies[itself].sum())

        last = len(WEIGHT_EDGES) - 2
        with np.errstate(divide="ignore"):
            place = np.floor((np.log10(weights) / 6 + 1) * (last + 1))
        place = np.minimum(place, last)
        for block, head in np.ndindex(weights.shape[1:]):
            seen = place[:, block, head] >= 0
            at = place[:, block, head][seen].astype(np.int64)
            own, pair = itself[seen], ~itself[seen]
            count = copies[seen].astype(np.uint32)
            np.add.at(self.self_counts[block, head], at[own], count[own])
            np.add.at(self.counts[block, head], (bins[seen][pair], at[pair]), count[pair])


class ElementTally:
    """Attention from sites of one element to those of another, by distance."""

    def __init__(self, blocks: int, heads: int) -> None:
        self._shape = blocks, heads
        # By (element, neighbour): how many sites of the element could attend to the neighbour; and
        # by bins of distance: pairs, their weights if all of a row were equal, their weights.
        self._sites: dict[tuple[int, int], int] = defaultdict(int)
        self._sums: dict[tuple[int, int], np.ndarray] = {}

    def add(
        self,
        distance: np.ndarray,
        weights: np.ndarray,
        copies: np.ndarray,
        uniform: np.ndarray,
        elements: np.ndarray,
        sites: dict[int, int],
    ) -> None:
        """Count the pairs of one crystal.

        Args:
            distance: (pairs,) in angstrom, 0 for self pairs.
            weights: (pairs, blocks, heads), those of one pair of sites.
            copies: (pairs,) pairs of sites that each pair stands for.
            uniform: (pairs,) the weight of one pair of sites if all of its row were equal.
            elements: (pairs, 2) atomic numbers of site and neighbour.
            sites: sites of each element.
        """
        keys, key = np.unique(elements @ [len(SYMBOLS), 1], return_inverse=True)
        values = np.column_stack(
            [np.ones_like(uniform), uniform, weights.reshape(len(weights), -1)]
        )
        bins = np.where(distance == 0, 0, 1 + distance_bin(distance) // COARSE)
        sums = np.zeros((len(keys), _COARSE_BINS, values.shape[1]))
        np.add.at(sums, (key, bins), values * copies[:, None])
        for both, total in zip(keys.tolist(), sums, strict=True):
            i, j = divmod(both, len(SYMBOLS))
            self._sites[i, j] += sites[i]
            self._sums[i, j] = self._sums.get((i, j), 0) + total

    def columns(self, by_distance: bool) -> dict[str, np.ndarray]:
        """Attention per site, for pairs of elements.

        Args:
            by_distance: whether to have a row for every 0.5 angstrom.

        Returns:
            Columns of equal length: ``element``; ``neighbour``, "itself" for self pairs;
            ``distance``, the middle of the bin in angstrom; ``sites`` of the element in crystals
            with such a neighbour; ``pairs`` a site; ``attention``, the mean over these sites,
            blocks and heads of the weights of all their pairs; ``relative``, the same over what it
            were if all weights of a site were equal; then ``attention`` for each block and head.
            Without distances the rows with most attention in all stand first.
        """
        rows = []
        for (i, j), sums in self._sums.items():
            count = self._sites[i, j]
            for k, total in enumerate(sums if by_distance else (sums[0], sums[1:].sum(0))):
                if total[0]:
                    name = SYMBOLS[j] if k else "itself"
                    at = max(k - 0.5, 0) * COARSE / BINS_PER_ANGSTROM
                    rows.append((SYMBOLS[i], name, at, count, total / count))
        table = np.array([row[:4] for row in rows], dtype=object).reshape(len(rows), 4)
        element, neighbour = table[:, 0], table[:, 1]
        middle, sites = table[:, 2].astype(float), table[:, 3].astype(int)
        width = 2 + self._shape[0] * self._shape[1]
        per_site = np.array([row[4] for row in rows]).reshape(len(rows), width)
        pairs, uniform, *weights = per_site.T
        attention = np.mean(weights, 0)
        columns = {"element": element, "neighbour": neighbour, "distance": middle, "sites": sites}
        columns |= {"pairs": pairs, "attention": attention, "relative": attention / uniform}
        columns |= zip(weight_names(*self._shape), weights, strict=True)
        if by_distance:
            order = np.lexsort((middle, neighbour, neighbour != "itself", element))
        else:
            order = np.argsort(-attention * sites, kind="stable")
            del columns["distance"]
        return {name: column[order] for name, column in columns.items()}


def weight_names(blocks: int, heads: int) -> list[str]:
    """A name for each block and head, in their order."""
    return [f"block{b + 1}_head{k + 1}" for b in range(blocks) for k in range(heads)]
