"""How sure a prediction is: an interval of stated coverage, and whether the crystal is like those
that the model learned from.

Intervals are split-conformal (Vovk et al., 2005; Lei et al., JASA 2018): the quantile of the
absolute residuals of validation crystals, which no training step saw, covers a new crystal drawn
from the same distribution with the stated probability. Those of an ensemble are in units of its
spread, so that intervals are wider where its members disagree (Lei et al., section 5.2), with the
same coverage over all. The distance to the training set is the mean distance to the nearest
training crystals in the space of encodings, whitened.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from sitenet.model.ensemble import Model

POINTS = 1000  # training crystals that are kept
DIMENSIONS = 16  # of their encodings, by variance
NEIGHBOURS = 5
RESIDUALS = 2000  # quantiles that are kept
INSIDE = 0.99  # part of the validation crystals that count as like the training set


@dataclass(eq=False)
class Calibration:
    """What a checkpoint keeps of its validation and training crystals.

    Attributes:
        residuals: (targets, n) sorted absolute residuals of validation crystals, in the targets'
            units, or of an ensemble in units of its spread; of many, equally spaced quantiles;
            padded with infinity.
        counts: (targets,) how many crystals they come from.
        mean: (encoding,) mean encoding of the training crystals.
        axes: (encoding, dimensions) whitening projection.
        points: (points, dimensions) projected training crystals.
        threshold: the largest distance that still counts as inside the training set.
        floor: (targets,) what is added to an ensemble's spread, in the targets' units, so that no
            interval is empty; None of a single model.
    """

    residuals: np.ndarray
    counts: np.ndarray
    mean: np.ndarray
    axes: np.ndarray
    points: np.ndarray
    threshold: float
    floor: np.ndarray | None = None

    def half_width(self, coverage: float, spread: np.ndarray | None = None) -> np.ndarray:
        """Half the width of the interval of each target, (targets,); infinite where there are too
        few validation crystals for this coverage.

        Args:
            coverage: part of new crystals whose true value the interval should hold, in (0, 1).
            spread: (crystals, targets) of an ensemble's members; the widths are then of each
                crystal, (crystals, targets).

        Raises:
            ValueError: the coverage is out of range.
        """
        if not 0 < coverage < 1:
            raise ValueError(f"coverage must be between 0 and 1, got {coverage!r}")
        widths = np.full(len(self.counts), np.inf)
        for k, count in enumerate(self.counts):
            rank = np.ceil(round((count + 1) * coverage, 9))  # of count, the conformal correction
            if 1 <= rank <= count:
                kept = np.isfinite(self.residuals[k]).sum()
                place = np.ceil((rank - 1) * (kept - 1) / max(count - 1, 1))
                widths[k] = self.residuals[k, int(place)]
        if self.floor is None:
            return widths
        if spread is None:
            raise ValueError("the intervals of an ensemble need the spread of its members")
        return widths * (spread + self.floor)

    def distance(self, encodings: np.ndarray) -> np.ndarray:
        """Mean distance to the nearest training crystals, (crystals,), in standard deviations.

        Args:
            encodings: (crystals, encoding).
        """
        x = (encodings - self.mean) @ self.axes
        k = min(NEIGHBOURS, len(self.points))
        distances = np.empty(len(x))
        for first in range(0, len(x), 256):
            part = x[first : first + 256]
            square = ((part[:, None] - self.points) ** 2).sum(-1)
            nearest = np.partition(square, k - 1, axis=1)[:, :k]
            distances[first : first + 256] = np.sqrt(nearest).mean(1)
        return distances

    def inside(self, encodings: np.ndarray) -> np.ndarray:
        """Whether each crystal is as near to the training set as nearly all of the validation
        crystals are, (crystals,) bool."""
        return self.distance(encodings) <= self.threshold


def calibrate(
    truth: np.ndarray,
    predicted: np.ndarray,
    valid_encodings: np.ndarray,
    train_encodings: np.ndarray,
    seed: int = 0,
    spread: np.ndarray | None = None,
) -> Calibration:
    """Calibrate a model on its validation crystals.

    Args:
        truth: (crystals, targets) true values, NaN where missing.
        predicted: (crystals, targets).
        valid_encodings: (crystals, encoding).
        train_encodings: (training crystals, encoding).
        seed: of the choice of the training crystals that are kept.
        spread: (crystals, targets) of an ensemble's members.
    """
    error, floor = np.abs(predicted - truth), None
    if spread is not None:
        floor = spread.mean(0) if len(spread) else np.ones(truth.shape[1])
        floor[~(floor > 0)] = 1.0  # members that agree on every crystal: as for a single model
        error = error / (spread + floor)
    sorted_residuals = [np.sort(e[np.isfinite(t)]) for t, e in zip(truth.T, error.T, strict=True)]
    counts = np.array([len(r) for r in sorted_residuals])
    kept = np.full((len(counts), min(RESIDUALS, max(counts.max(initial=0), 1))), np.inf)
    for k, residuals in enumerate(sorted_residuals):
        size = min(RESIDUALS, len(residuals))
        if size:
            places = np.ceil(np.linspace(0, len(residuals) - 1, size)).astype(int)
            kept[k, :size] = residuals[places]
    train = train_encodings.astype(np.float64)
    mean = train.mean(0)
    _, spread, axes = np.linalg.svd(train - mean, full_matrices=False)
    spread = spread / np.sqrt(max(len(train) - 1, 1))
    used = min(DIMENSIONS, int((spread > 1e-6 * max(spread.max(initial=0), 1e-12)).sum()))
    axes = axes[:used].T / np.maximum(spread[:used], 1e-12)
    chosen = np.random.default_rng(seed).permutation(len(train))[:POINTS]
    points = (train[chosen] - mean) @ axes
    found = Calibration(kept, counts, mean, axes, points, np.inf, floor)
    if len(valid_encodings):
        found.threshold = float(np.quantile(found.distance(valid_encodings), INSIDE))
    return found


def half_widths(model: Model, encodings: np.ndarray, coverage: float) -> np.ndarray:
    """Half the widths of the intervals of crystals, (crystals, targets); infinite where the model
    has none.

    Args:
        model: calibrated or not.
        encodings: (crystals, encoding) by the model.
        coverage: as in ``Calibration.half_width``.
    """
    shape = len(encodings), len(model.targets)
    if model.calibration is None:
        return np.full(shape, np.inf)
    width = model.calibration.half_width(coverage, spread(model, encodings))
    return np.broadcast_to(width, shape)


def spread(model: Model, encodings: np.ndarray) -> np.ndarray | None:
    """How far an ensemble's members are apart, (crystals, targets), from encodings by it; None of
    a single model."""
    found = model.spread(torch.as_tensor(encodings, device=model.element_table.device))
    return None if found is None else found.double().cpu().numpy()
