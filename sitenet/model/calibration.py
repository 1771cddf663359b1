"""How sure a prediction is: an interval of stated coverage, and whether the crystal resembles those
that the model was trained on.

Intervals are split-conformal (Vovk et al., 2005; Lei et al., JASA 2018): the quantile of the
absolute residuals of validation crystals, which no training step saw, covers a new crystal drawn
from the same distribution with the stated probability. An ensemble's residuals are taken in units
of its spread, so that intervals are wider where its members disagree (Lei et al., section 5.2),
with the same overall coverage. With enough validation crystals, each range of predicted values has
a quantile of its own (``errors.py``). Resemblance has two parts: the surroundings of the sites
(``familiarity.py``), and the mean distance to the nearest training crystals in the whitened space
of encodings. ``neighbours.py`` names these crystals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from sitenet.model.errors import Errors, Outputs
from sitenet.model.familiarity import Familiarity, need_arrays, upper_bound
from sitenet.model.neighbours import TrainingIndex
from sitenet.model.surroundings import Structures, Surroundings

if TYPE_CHECKING:
    from sitenet.model.ensemble import Model

POINTS = 1000  # training crystals whose encodings are kept
DIMENSIONS = 8  # kept of their encodings, by variance: further ones tell less of errors
NEIGHBOURS = 5
RESIDUALS = 2000  # kept quantiles of the residuals
INSIDE = 0.995  # share of the validation crystals whose encodings count as near
FAR = "far from the training crystals in the model's encoding"
# Prefixes of the tensors of a Familiarity, of Errors and of a TrainingIndex.
_FAMILIARITY, _ERRORS, _INDEX = "familiarity.", "errors.", "index."


@dataclass(eq=False)
class Calibration:
    """What a checkpoint keeps of its validation and training crystals.

    Attributes:
        residuals: (targets, n) sorted absolute residuals of validation crystals, on the scales
            that are learned, or in units of an ensemble's spread; thinned to equally spaced
            quantiles where there are many, padded with infinity.
        counts: (targets,) number of crystals behind them.
        mean: (encoding,) mean encoding of the training crystals.
        axes: (encoding, dimensions) whitening projection.
        points: (points, dimensions) projected training crystals.
        threshold: the largest distance that still counts as near to the training crystals.
        floor: (targets,) added to an ensemble's spread, on the scales that are learned, so that no
            interval is empty; None for a single model.
        familiarity: what the surroundings of the training crystals' sites are; None in older files.
        errors: outputs and true values of the validation crystals; None in older files.
        index: the training crystals, to be searched; None where they were not kept.
    """

    residuals: np.ndarray
    counts: np.ndarray
    mean: np.ndarray
    axes: np.ndarray
    points: np.ndarray
    threshold: float
    floor: np.ndarray | None = None
    familiarity: Familiarity | None = None
    errors: Errors | None = None
    index: TrainingIndex | None = None

    def half_width(self, coverage: float, spread: np.ndarray | None = None) -> np.ndarray:
        """Half the width of each target's interval, (targets,); infinite where there are too few
        validation crystals for this coverage.

        Args:
            coverage: share of new crystals whose true value the interval should hold, in (0, 1).
            spread: (crystals, targets) of an ensemble's members; the result is then
                (crystals, targets), too.

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
        square_of_point = (self.points**2).sum(1)
        distances = np.empty(len(x))
        for first in range(0, len(x), 256):
            part = x[first : first + 256]
            square = (part**2).sum(1)[:, None] - 2 * part @ self.points.T + square_of_point
            nearest = np.partition(np.maximum(square, 0), k - 1, axis=1)[:, :k]
            distances[first : first + 256] = np.sqrt(nearest).mean(1)
        return distances

    def inside(self, encodings: np.ndarray) -> np.ndarray:
        """Whether each encoding is as near to the training crystals as nearly all of those of the
        validation crystals are, (crystals,) bool."""
        return self.distance(encodings) <= self.threshold

    def unlike(self, encodings: np.ndarray, structures: Structures | Surroundings) -> list[str]:
        """Say why each crystal is unlike the training crystals; "" for one that is like them.

        Args:
            encodings: (crystals, encoding) by the model.
            structures: the same crystals: the pairs that the model has used, as a batch, a store
                or columns; or Crystals, whose neighbours are then searched for.
        """
        if not len(encodings):
            return []
        reasons = [""] * len(encodings)
        if self.familiarity is not None:
            if not isinstance(structures, Surroundings):
                structures = Surroundings.of(structures)
            reasons = self.familiarity.unlike(structures)
        if len(reasons) != len(encodings):
            raise ValueError(f"got {len(encodings)} encodings of {len(reasons)} crystals")
        near = self.inside(encodings)
        return [why or ("" if near[k] else FAR) for k, why in enumerate(reasons)]

    def to_tensors(self) -> dict[str, Tensor]:
        """All values as float32 or integer tensors, by name; ``from_tensors`` takes them back."""
        parts = ("familiarity", "errors", "index")
        values = {k: v for k, v in vars(self).items() if v is not None and k not in parts}
        if self.familiarity is not None:
            kept = {f.name: getattr(self.familiarity, f.name) for f in fields(Familiarity)}
            values |= {_FAMILIARITY + name: value for name, value in kept.items()}
        if self.errors is not None:
            values |= {_ERRORS + k: v for k, v in self.errors.to_arrays().items()}
        if self.index is not None:
            values |= {_INDEX + k: v for k, v in self.index.to_arrays().items()}
        tensors = {k: torch.as_tensor(np.atleast_1d(v).copy()) for k, v in values.items()}
        return {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}

    @classmethod
    def from_tensors(
        cls, tensors: Mapping[str, Tensor], encoding_size: int, num_targets: int
    ) -> Calibration:
        """Build a calibration from what ``to_tensors`` gave.

        Raises:
            ValueError: a tensor is missing, unknown or of a wrong shape; names it.
        """
        values = {
            k: v.double().numpy() if v.is_floating_point() else v.numpy()
            for k, v in tensors.items()
        }
        shapes = {
            "residuals": (num_targets, None),
            "counts": (num_targets,),
            "mean": (encoding_size,),
            "axes": (encoding_size, None),
            "points": (None, values["axes"].shape[-1] if "axes" in values else None),
            "threshold": (1,),
            "floor": (num_targets,),
        }
        familiar, errors, index = (
            {k.removeprefix(part): values.pop(k) for k in list(values) if k.startswith(part)}
            for part in (_FAMILIARITY, _ERRORS, _INDEX)
        )
        need_arrays(values, shapes, optional={"floor"})
        return cls(
            **{name: value for name, value in values.items() if name != "threshold"},
            threshold=float(values["threshold"].item()),
            familiarity=Familiarity.from_arrays(familiar) if familiar else None,
            errors=Errors.from_arrays(errors, num_targets) if errors else None,
            index=TrainingIndex.from_arrays(index, encoding_size, num_targets) if index else None,
        )


def calibrate(
    truth: np.ndarray,
    predicted: np.ndarray,
    valid_encodings: np.ndarray,
    train_encodings: np.ndarray,
    seed: int = 0,
    spread: np.ndarray | None = None,
    valid: Surroundings | None = None,
    train: Surroundings | None = None,
) -> Calibration:
    """Calibrate a model on its validation crystals.

    Args:
        truth: (crystals, targets) true values on the scales that are learned, NaN where missing.
        predicted: (crystals, targets), likewise.
        valid_encodings: (crystals, encoding).
        train_encodings: (training crystals, encoding); a sample does.
        seed: of the choice of the training crystals whose encodings are kept.
        spread: (crystals, targets) of an ensemble's members.
        valid: surroundings of the validation crystals.
        train: surroundings of the training crystals, best of all of them; None leaves the elements
            and bonds of a crystal unjudged.
    """
    error, floor = np.abs(predicted - truth), None
    if spread is not None:
        floor = spread.mean(0) if len(spread) else np.ones(truth.shape[1])
        floor[~(floor > 0)] = 1.0  # members that agree on every crystal: as for a single model
        error = error / (spread + floor)
    residuals, counts = _kept_residuals(truth, error)
    encodings = train_encodings.astype(np.float64)
    mean = encodings.mean(0)
    _, std, axes = np.linalg.svd(encodings - mean, full_matrices=False)
    std = std / np.sqrt(max(len(encodings) - 1, 1))
    used = min(DIMENSIONS, int((std > 1e-6 * max(std.max(initial=0), 1e-12)).sum()))
    axes = axes[:used].T / np.maximum(std[:used], 1e-12)
    chosen = np.random.default_rng(seed).permutation(len(encodings))[:POINTS]
    points = (encodings[chosen] - mean) @ axes
    familiarity = None if train is None else Familiarity.fit(train, valid)
    calibration = Calibration(residuals, counts, mean, axes, points, np.inf, floor, familiarity)
    if len(valid_encodings):
        calibration.threshold = upper_bound(calibration.distance(valid_encodings), INSIDE)
    return calibration


def _kept_residuals(truth: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``residuals`` and ``counts`` of a Calibration from the errors of known values."""
    residuals = [np.sort(e[np.isfinite(t)]) for t, e in zip(truth.T, error.T, strict=True)]
    counts = np.array([len(r) for r in residuals])
    kept = np.full((len(counts), min(RESIDUALS, max(counts.max(initial=0), 1))), np.inf)
    for k, each in enumerate(residuals):
        size = min(RESIDUALS, len(each))
        if size:
            kept[k, :size] = each[np.ceil(np.linspace(0, len(each) - 1, size)).astype(int)]
    return kept, counts


def half_widths(model: Model, encodings: np.ndarray, coverage: float) -> np.ndarray:
    """Half the widths of the crystals' intervals, (crystals, targets), on the scales that are
    learned; infinite where the model has none.

    Args:
        model: calibrated or not.
        encodings: (crystals, encoding) by the model.
        coverage: as in ``Calibration.half_width``.
    """
    calibration = model.calibration
    shape = len(encodings), len(model.targets)
    if calibration is None:
        return np.full(shape, np.inf)
    if calibration.errors is not None and calibration.errors.is_binned:
        return calibration.errors.half_width(coverage, outputs(model, encodings))
    width = calibration.half_width(coverage, spread(model, encodings))
    return np.broadcast_to(width, shape)


def zero_probabilities(model: Model, encodings: np.ndarray) -> np.ndarray:
    """Probability that each property is exactly zero, (crystals, targets); NaN where the model does
    not know it."""
    nothing = np.full((len(encodings), len(model.targets)), np.nan)
    if model.calibration is None or model.calibration.errors is None:
        return nothing
    is_linear = [target.scale == "linear" for target in model.targets]
    zero = model.calibration.errors.zero_probability(outputs(model, encodings))
    return np.where(is_linear, zero, nothing)


def errors_of(model: Model, encodings: np.ndarray, truth: np.ndarray) -> Errors:
    """The errors of a model on validation crystals, for ``Calibration.errors``.

    Args:
        model: a SiteNet or an Ensemble.
        encodings: (crystals, encoding) by the model.
        truth: (crystals, targets) on the scales that are learned, NaN where unknown.
    """
    is_class = np.array([target.kind == "class" for target in model.targets])
    return Errors.of(outputs(model, encodings), np.where(is_class, np.nan, truth))


@torch.no_grad()
def outputs(model: Model, encodings: np.ndarray) -> Outputs:
    """A model's outputs from its encodings, (crystals, encoding), on the scales that are
    learned."""
    z = torch.as_tensor(encodings, device=model.element_table.device)
    values, raw = (f(z).double().cpu().numpy() for f in (model.learned, model.raw))
    return Outputs(values, raw, spread(model, encodings))


def spread(model: Model, encodings: np.ndarray) -> np.ndarray | None:
    """Standard deviation over an ensemble's members, (crystals, targets), on the scales that are
    learned, from its encodings; None for a single model."""
    values = model.spread(torch.as_tensor(encodings, device=model.element_table.device))
    return None if values is None else values.double().cpu().numpy()
