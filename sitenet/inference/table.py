"""Predictions of single crystals as rows of a table: numbers, intervals and doubts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from sitenet.data.failures import LeftOut
from sitenet.model.calibration import half_widths, zero_probabilities
from sitenet.model.target import learned_values, shown_values

if TYPE_CHECKING:
    from sitenet.crystal.crystal import Crystal
    from sitenet.model.ensemble import Model
    from sitenet.model.surroundings import Structures
    from sitenet.model.target import Target

COVERAGE = 0.9  # of intervals, unless stated otherwise
LIKENESS = ["like_training", "unlike_because"]  # columns of ``likeness_cells``
LEARNED = "learned_from"  # column with the id of the training crystal that is the same

Cell = float | str | None  # None where the value is unknown
Row = tuple[Cell, ...]


@dataclass(frozen=True)
class Prediction:
    """A model's answer for one crystal.

    Attributes:
        id: Name of the crystal.
        formula: Reduced formula.
        values: Property per target; for a class, the probability of class 1.
        low: Lower end of the interval per target; None where there is no interval.
        high: Upper end per target.
        unlike: Why the crystal is unlike the training set, "" if it is not; None if the model is
            not calibrated.
        warnings: Doubts about the structure.
        spread: Standard deviation over arrangements per target; None unless they are sampled.
        arrangements: How many of them the model can tell apart; None unless they are sampled.
        zero: Probability per target that it is exactly zero; None where the model does not know it.
        learned_from: Id of the training crystal that this one is, "" if there is none; None if the
            model keeps no index of its training crystals.
        neighbours: Fields of each ``Neighbour``, the nearest first.
        probability: That it meets the condition of a screening; None without one.
    """

    id: str
    formula: str
    values: list[float]
    low: list[float | None]
    high: list[float | None]
    unlike: str | None
    warnings: str
    spread: list[float] | None = None
    arrangements: int | None = None
    zero: list[float | None] = field(default_factory=list)
    learned_from: str | None = None
    neighbours: list[list[Any]] = field(default_factory=list)
    probability: float | None = None


@dataclass(frozen=True)
class Joined:
    """The answers of several models for one crystal.

    Attributes:
        id: Name of the crystal.
        formula: Reduced formula.
        warnings: Doubts about the structure, and why a model cannot use it.
        parts: Fields of each model's Prediction, or of its LeftOut.
        counts: Targets per model.
    """

    id: str
    formula: str
    warnings: str
    parts: list[dict[str, Any]]
    counts: list[int]

    @property
    def results(self) -> list[Prediction | LeftOut]:
        """Each model's answer."""
        return [LeftOut(**x) if "reason" in x else Prediction(**x) for x in self.parts]


def prediction_header(model: Model, sampled: bool = False) -> list[str]:
    """Columns of a table of a model's predictions, of arrangements if they are sampled."""
    header = ["id", "formula"]
    for target, zero in zip(model.targets, knows_zero(model), strict=True):
        header.append(f"{target.name}_predicted")
        if target.kind == "value" and model.calibration is not None:
            header += [f"{target.name}_low", f"{target.name}_high"]
        header += [f"{target.name}_spread"] * sampled
        if zero:
            header.append(f"{target.name}_zero_probability")
    header += ["arrangements"] * sampled
    if model.calibration is not None:
        header += LIKENESS
        if model.calibration.index is not None:
            header.append(LEARNED)
    return [*header, "warnings"]


def prediction_row(model: Model, prediction: Prediction) -> Row:
    """Cells of ``prediction_header``."""
    row: list[Cell] = [prediction.id, prediction.formula]
    zeros = knows_zero(model)
    for k, target in enumerate(model.targets):
        row.append(prediction.values[k])
        if target.kind == "value" and model.calibration is not None:
            row += [prediction.low[k], prediction.high[k]]
        if prediction.spread is not None:
            row.append(prediction.spread[k])
        if zeros[k]:
            row.append(prediction.zero[k])
    if prediction.arrangements is not None:
        row.append(prediction.arrangements)
    if model.calibration is not None:
        row += likeness_cells(prediction.unlike)
        if model.calibration.index is not None:
            row.append(prediction.learned_from)
    return (*row, prediction.warnings)


def knows_zero(model: Model) -> list[bool]:
    """Whether the model gives the probability of zero, per target."""
    if model.calibration is None or model.calibration.errors is None:
        return [False] * len(model.targets)
    has_zeros = model.calibration.errors.has_zeros.tolist()
    return [has and t.scale == "linear" for has, t in zip(has_zeros, model.targets, strict=True)]


def likeness_cells(unlike: str | None) -> list[Cell]:
    """Whether a crystal is like the training set, and why not."""
    if unlike is None:
        return [None, ""]
    return ["no" if unlike else "yes", unlike]


def predictions_of(
    model: Model,
    ids: Sequence[str],
    formulas: Sequence[str],
    values: np.ndarray,
    encodings: np.ndarray,
    structures: Structures,
    warnings: Sequence[str],
    coverage: float,
) -> list[Prediction]:
    """Add intervals and likeness to a model's outputs.

    Args:
        model: Calibrated or not.
        ids: (crystals,).
        formulas: (crystals,), likewise.
        values: (crystals, targets).
        encodings: (crystals, encoding).
        structures: As in ``unlike_training``.
        warnings: (crystals,).
        coverage: Share of true values that the intervals should hold.
    """
    if not len(ids):
        return []
    half_width = half_widths(model, encodings, coverage)
    low, high = intervals(model.targets, values, half_width, model.lowest)
    unlike = unlike_training(model, encodings, structures)
    zero = zero_probabilities(model, encodings)
    known = np.isfinite(low)
    return [
        Prediction(
            ids[k],
            formulas[k],
            values[k].tolist(),
            [x if ok else None for x, ok in zip(low[k].tolist(), known[k], strict=True)],
            [x if ok else None for x, ok in zip(high[k].tolist(), known[k], strict=True)],
            None if unlike is None else unlike[k],
            warnings[k],
            zero=[x if np.isfinite(x) else None for x in zero[k].tolist()],
        )
        for k in range(len(ids))
    ]


def intervals(
    targets: Sequence[Target], values: np.ndarray, half_width: np.ndarray, lowest: float = -np.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends around predicted values, in their units; NaN where the half width is
    infinite.

    An interval ends at the lowest value that the model can predict: no true value lies below, so
    its coverage stays.

    Args:
        targets: What is predicted.
        values: (crystals, targets) in their units.
        half_width: (crystals, targets) on the scales that are learned.
        lowest: On the scale that is learned.
    """
    y, known = learned_values(targets, values), np.isfinite(half_width)
    low = np.where(known, np.maximum(y - half_width, lowest), np.nan)
    high = np.where(known, y + half_width, np.nan)
    return shown_values(targets, low), shown_values(targets, high)


def unlike_training(
    model: Model, encodings: np.ndarray, structures: Structures
) -> list[str] | None:
    """Say why each crystal is unlike the training set; "" if it is not.

    Args:
        model: Calibrated or not.
        encodings: (crystals, encoding).
        structures: The same crystals: the pairs that the model has used, as a batch, a store or
            columns; or Crystals.

    Returns:
        A reason per crystal; None if the model is not calibrated.
    """
    if model.calibration is None:
        return None
    return model.calibration.unlike(encodings, structures)


def structure_warnings(crystal: Crystal) -> str:
    """Doubts about a crystal's structure, as one text."""
    return "; ".join(crystal.warnings)
