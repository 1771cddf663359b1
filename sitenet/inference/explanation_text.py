"""Explanations in sentences: which elements attend to which, how far, and how heads differ."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from sitenet.inference.attention_histograms import BINS_PER_ANGSTROM, COARSE, weight_titles

if TYPE_CHECKING:
    from sitenet.inference.explanation import Explained

PAIRS = 2  # pairs of elements that are described
BOND = 3.5  # angstrom; few bonds are longer
TIMES = "\N{MULTIPLICATION SIGN}"
ALIKE = 0.3  # angstrom; heads whose mean distances differ by less count as alike


def sentences(e: Explained) -> list[str]:
    """Say what a model attends to, in about six sentences.

    Distances are those of histograms: rounded to 1/64 angstrom, or to 0.5 angstrom for pairs of
    elements.
    """
    if not e.by_distance.sites:
        return ["There is no crystal to describe."]
    if not e.by_distance.pairs.any():
        return ["Every site attends to itself alone: it has no neighbours."]
    lines = [*_of_elements(e), _near(e), _far(e), _coefficient(e), _heads(e)]
    return [line for line in lines if line]


def _of_elements(e: Explained) -> list[str]:
    """The pairs of elements with the most attention, and at which distance."""
    pairs, bins = e.columns("elements"), e.columns("distances")
    lines = []
    for k in np.flatnonzero(pairs["neighbour"] != "itself")[:PAIRS]:
        element, neighbour = pairs["element"][k], pairs["neighbour"][k]
        same = np.flatnonzero((bins["element"] == element) & (bins["neighbour"] == neighbour))
        middle = bins["distance"][same[bins["attention"][same].argmax()]]
        half = COARSE / BINS_PER_ANGSTROM / 2
        to = "other " if element == neighbour else ""
        lines.append(
            f"{element} gives {pairs['attention'][k]:.0%} of its attention to {to}{neighbour}, "
            f"mostly at {middle - half:.1f}-{middle + half:.1f} Å, {pairs['relative'][k]:.1f} "
            f"{TIMES} an even share."
        )
    return lines


def _shares(e: Explained) -> tuple[np.ndarray, np.ndarray, float]:
    """Distances, the share of attention at each, and the share that sites keep to themselves;
    averaged over blocks and heads."""
    histogram = e.by_distance
    attention = histogram.attention.mean((1, 2)) / histogram.sites
    return (
        np.arange(len(attention)) / BINS_PER_ANGSTROM,
        attention,
        float(histogram.self_attention.mean() / histogram.sites),
    )


def _near(e: Explained) -> str:
    distance, attention, itself = _shares(e)
    total = itself + np.cumsum(attention)
    half, most = (distance[np.searchsorted(total, share * total[-1])] for share in (0.5, 0.9))
    return (
        f"Half of it lies within {half:.1f} Å, 90% within {most:.1f} Å; {itself:.0%} stays with "
        "the site itself."
    )


def _far(e: Explained) -> str:
    distance, attention, _ = _shares(e)
    pairs, far = e.by_distance.pairs, distance > BOND
    if not pairs[far].any():
        return ""
    even = pairs[far].sum() / (pairs.sum() + e.by_distance.sites)
    share = attention[far].sum()
    return (
        f"Beyond {BOND} Å, where few bonds reach, lies {share:.0%}; evenly spread, it would be "
        f"{even:.0%}."
    )


def _coefficient(e: Explained) -> str:
    coefficients = e.long_range.reshape(-1, *e.by_distance.self_attention.shape).mean(0)
    return (
        f"The long-range coefficient (distance {TIMES} weight) is {coefficients.mean():.2f} Å on "
        f"average, {coefficients.max():.2f} Å at most."
    )


def _heads(e: Explained) -> str:
    """How far each head looks on average."""
    titles, histogram = _titles(e), e.by_distance
    if len(titles) == 1:
        return ""
    distance = np.arange(len(histogram.pairs)) / BINS_PER_ANGSTROM
    weights = histogram.attention.reshape(len(distance), -1)
    mean = distance @ weights / (weights.sum(0) + histogram.self_attention.ravel())
    nearest, farthest = int(mean.argmin()), int(mean.argmax())
    if mean[farthest] - mean[nearest] < ALIKE:
        return (
            f"The {len(titles)} heads look equally far: {mean[nearest]:.1f} to "
            f"{mean[farthest]:.1f} Å on average."
        )
    return (
        f"Heads differ: on average they look from {mean[nearest]:.1f} Å ({titles[nearest]}) to "
        f"{mean[farthest]:.1f} Å far ({titles[farthest]})."
    )


def _titles(e: Explained) -> list[str]:
    blocks, heads = e.by_distance.self_attention.shape
    return weight_titles(blocks, heads, e.members)
