"""Histograms of attention by distance and by elements, over any number of crystals, in bounded
memory.

Both count pairs of sites: a merged pair counts for all pairs of sites that it stands for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

BINS_PER_ANGSTROM = 64
LONGEST = 30  # angstrom; longer pairs count in the last bin
WEIGHT_EDGES = np.logspace(-6, 0, 501)  # as published
COARSE = 32  # bins of distance per bin of an ElementHistogram: 0.5 angstrom

_BINS = LONGEST * BINS_PER_ANGSTROM + 1
_COARSE_BINS = _BINS // COARSE + 2  # the first is for self pairs


def distance_bin(distance: np.ndarray) -> np.ndarray:
    """Return the bin of each distance; bin k begins at (k - 1/2) / 64 angstrom.

    The shift by half a bin keeps edges off the distances that are frequent in cells with few
    decimals, where rounding would choose the bin.
    """
    bins = np.floor(distance * BINS_PER_ANGSTROM + 0.5).astype(np.int64)
    return np.minimum(bins, _BINS - 1)


def distance_edges() -> np.ndarray:
    """Edges of the bins of distance, in angstrom."""
    return (np.arange(_BINS + 1) - 0.5) / BINS_PER_ANGSTROM


class DistanceHistogram:
    """Pairs of sites counted by distance and weight; self pairs apart.

    Attributes:
        counts: (blocks, heads, distances, weights) uint32, pairs of sites in bins with the edges
            ``distance_edges`` and ``WEIGHT_EDGES``. Weights below 1e-6 are not counted, as
            published.
        self_counts: (blocks, heads, weights) uint32, self pairs.
        pairs: (distances,) pairs of sites per bin of distance.
        attention: (distances, blocks, heads), the sum of their weights.
        self_attention: (blocks, heads), the sum of the weights of self pairs.
        sites: Number of sites counted.
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
            weights: (pairs, blocks, heads) attention weight of one pair of sites.
            copies: (pairs,) number of pairs of sites that each pair stands for.
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


class ElementHistogram:
    """Attention from sites of one kind to those of another, by distance.

    A kind is an element, or the species that share a site: ``Fe0.5Ni0.5``.
    """

    def __init__(self, blocks: int, heads: int) -> None:
        self._shape = blocks, heads
        # By (kind, neighbour's kind): number of sites that could attend to such a neighbour; and
        # by bins of distance: pairs, their weights if attention were even, their weights.
        self._sites: dict[tuple[str, str], int] = defaultdict(int)
        self._sums: dict[tuple[str, str], np.ndarray] = {}

    def add(
        self,
        distance: np.ndarray,
        weights: np.ndarray,
        copies: np.ndarray,
        even: np.ndarray,
        kinds: np.ndarray,
        labels: Sequence[str],
        sites: Sequence[int],
    ) -> None:
        """Count the pairs of one crystal.

        Args:
            distance: (pairs,) in angstrom, 0 for self pairs.
            weights: (pairs, blocks, heads) attention weight of one pair of sites.
            copies: (pairs,) number of pairs of sites that each pair stands for.
            even: (pairs,) weight of one pair of sites if all weights of its row were equal.
            kinds: (pairs, 2) numbers of the kinds of site and neighbour.
            labels: (kinds,) their names.
            sites: (kinds,) number of sites per kind.
        """
        keys, key = np.unique(kinds @ [len(labels), 1], return_inverse=True)
        values = np.column_stack([np.ones_like(even), even, weights.reshape(len(weights), -1)])
        bins = np.where(distance == 0, 0, 1 + distance_bin(distance) // COARSE)
        sums = np.zeros((len(keys), _COARSE_BINS, values.shape[1]))
        np.add.at(sums, (key, bins), values * copies[:, None])
        for both, total in zip(keys.tolist(), sums, strict=True):
            i, j = divmod(both, len(labels))
            pair = labels[i], labels[j]
            self._sites[pair] += sites[i]
            self._sums[pair] = self._sums.get(pair, 0) + total

    def columns(self, by_distance: bool) -> dict[str, np.ndarray]:
        """Return the attention per site for pairs of kinds, as columns of equal length.

        Args:
            by_distance: Return a row per 0.5 angstrom, not one for all distances.

        Returns:
            ``element``, the kind of the site; ``neighbour``, the neighbour's, "itself" for self
            pairs; ``distance``, the middle of the bin in angstrom; ``sites`` of this kind in
            crystals with such a neighbour; ``pairs`` per site; ``attention``, the summed weights
            of a site's pairs, averaged over sites, blocks and heads; ``relative``, the ratio of
            that to even attention; then ``attention`` per block and head. Without distances, rows
            are sorted by total attention, the largest first.
        """
        rows: list[tuple[str, str, float, int, np.ndarray]] = []
        for (i, j), sums in self._sums.items():
            count = self._sites[i, j]
            for k, total in enumerate(sums if by_distance else (sums[0], sums[1:].sum(0))):
                if total[0]:
                    name = j if k else "itself"
                    at = max(k - 0.5, 0) * COARSE / BINS_PER_ANGSTROM
                    rows.append((i, name, at, count, total / count))
        table = np.array([row[:4] for row in rows], dtype=object).reshape(len(rows), 4)
        element, neighbour = table[:, 0], table[:, 1]
        middle, sites = table[:, 2].astype(float), table[:, 3].astype(int)
        width = 2 + self._shape[0] * self._shape[1]
        per_site = np.array([row[4] for row in rows]).reshape(len(rows), width)
        pairs, even, *weights = per_site.T
        attention = np.mean(weights, 0)
        columns = {"element": element, "neighbour": neighbour, "distance": middle, "sites": sites}
        columns |= {"pairs": pairs, "attention": attention, "relative": attention / even}
        columns |= zip(weight_names(*self._shape), weights, strict=True)
        if by_distance:
            order = np.lexsort((middle, neighbour, neighbour != "itself", element))
        else:
            order = np.argsort(-attention * sites, kind="stable")
            del columns["distance"]
        return {name: column[order] for name, column in columns.items()}


def weight_names(blocks: int, heads: int) -> list[str]:
    """Names of all blocks and heads, in order, for columns."""
    return [f"block{b + 1}_head{k + 1}" for b in range(blocks) for k in range(heads)]


def weight_titles(blocks: int, heads: int, members: int = 1) -> list[str]:
    """Titles of all blocks and heads, in order; the blocks of an ensemble by their members."""
    titles = []
    for b, k in np.ndindex(blocks, heads):
        member, block = divmod(b, blocks // members)
        of_member = f"member {member + 1}, " if members > 1 else ""
        titles.append(f"{of_member}block {block + 1}, head {k + 1}")
    return titles
