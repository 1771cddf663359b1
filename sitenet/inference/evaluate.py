"""Predictions of crystals whose properties are known, and their errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import sitenet
from sitenet.crystal.arrangements import Sampling
from sitenet.data.dataset import Dataset, LeftOut
from sitenet.data.failures import UnclearTarget
from sitenet.data.prepare import open_dataset
from sitenet.data.prepared import is_prepared, load_dataset
from sitenet.data.readers import open_source
from sitenet.data.source import Source, same_quantity
from sitenet.inference.arrangements import ArrangedPrediction, over_arrangements
from sitenet.inference.evidence import learned_from
from sitenet.inference.metrics import class_scores, regression_scores
from sitenet.inference.predict import from_store
from sitenet.inference.structures import preparation, sampling_of
from sitenet.inference.table import (
    COVERAGE,
    LEARNED,
    LIKENESS,
    Cell,
    intervals,
    knows_zero,
    likeness_cells,
    structure_warnings,
    unlike_training,
)
from sitenet.model.calibration import half_widths, zero_probabilities
from sitenet.model.ensemble import Model
from sitenet.model.sitenet import Target
from sitenet.pairs.cache import pairs_of_dataset
from sitenet.pairs.maker import PairMaker
from sitenet.system.files import cell_text, write_csv
from sitenet.system.progress import Reporter


@dataclass(eq=False)
class Predictions:
    """Predictions of a dataset's crystals.

    Attributes:
        ids: (crystals,).
        formulas: (crystals,) reduced formulas.
        split: (crystals,) "train", "valid", "test" or "all".
        targets: What the model predicts.
        truth: (crystals, targets), NaN where unknown.
        values: (crystals, targets); probabilities for classes.
        half_width: (crystals, targets) of the intervals on the scales that are learned, infinite
            where there is none.
        unlike: (crystals,) why each is unlike the training set, "" if it is not; None if the model
            is not calibrated.
        warnings: (crystals,) doubts about each structure.
        lowest: The lowest value that the model can predict, on the scale that is learned.
        zero: (crystals, targets) probability that the property is exactly zero, NaN where the model
            does not know it.
        learned_from: (crystals,) id of the training crystal that each one is, "" if there is none;
            None if the model keeps no index of its training crystals.
    """

    ids: list[str]
    formulas: list[str]
    split: list[str]
    targets: list[Target]
    truth: np.ndarray
    values: np.ndarray
    half_width: np.ndarray
    unlike: list[str] | None
    warnings: list[str]
    lowest: float = -np.inf
    zero: np.ndarray | None = None
    learned_from: list[str] | None = None

    @classmethod
    def of(
        cls,
        model: Model,
        data: Dataset,
        parts: Mapping[str, np.ndarray],
        values: np.ndarray,
        encodings: np.ndarray,
        coverage: float = COVERAGE,
        structures: Any = None,
    ) -> Predictions:
        """Collect the predictions of parts of a dataset.

        Args:
            model: The model that predicted them.
            data: Crystals with their true values.
            parts: Name of the split -> numbers of its crystals.
            values: (crystals, targets), one part after another.
            encodings: (crystals, encoding), likewise.
            coverage: Share of true values that the intervals should hold.
            structures: The same crystals as ``unlike_training`` takes them, such as the pairs that
                the model has used; None takes the crystals of the dataset.
        """
        index = np.concatenate([np.asarray(i, dtype=int) for i in parts.values()])
        crystals = [data.crystals[i] for i in index]
        return cls(
            [data.ids[i] for i in index],
            [crystal.reduced_formula for crystal in crystals],
            [name for name, i in parts.items() for _ in i],
            model.targets,
            data.targets[index],
            values,
            half_widths(model, encodings, coverage),
            unlike_training(model, encodings, crystals if structures is None else structures),
            list(map(structure_warnings, crystals)),
            model.lowest,
            zero_probabilities(model, encodings) if any(knows_zero(model)) else None,
            learned_from(model, crystals, encodings),
        )

    def joined(self, other: Predictions, place: Mapping[str, int]) -> Predictions:
        """Join the predictions of other crystals by the same model, sorted by the places of ids."""
        ids = self.ids + other.ids
        order = sorted(range(len(ids)), key=lambda k: place[ids[k]])
        columns: dict[str, Any] = {"ids": [ids[k] for k in order]}
        for name in ("formulas", "split", "warnings", "unlike"):
            both = getattr(self, name), getattr(other, name)
            if None not in both:
                values = both[0] + both[1]
                columns[name] = [values[k] for k in order]
        for name in ("truth", "values", "half_width"):
            columns[name] = np.concatenate([getattr(self, name), getattr(other, name)])[order]
        return replace(self, **columns)

    def count_learned(self) -> int:
        """How many of the crystals the model was trained on, as far as it keeps an index."""
        return sum(map(bool, self.learned_from or ()))

    def scores(self, mean: np.ndarray | None = None, median: np.ndarray | None = None) -> dict:
        """Compute errors by split and target.

        Args:
            mean: (targets,) of the training crystals; adds ``mae_of_mean``, the error of
                predicting it for every crystal.
            median: (targets,), likewise; adds ``mae_of_median``.
        """
        constants = {"mae_of_mean": mean, "mae_of_median": median}
        by_split: dict[str, dict[str, dict[str, float]]] = {}
        for name in dict.fromkeys(self.split):
            chosen = np.array([s == name for s in self.split])
            by_split[name] = {
                target.name: self._scores(
                    k, chosen, {n: c[k] for n, c in constants.items() if c is not None}
                )
                for k, target in enumerate(self.targets)
            }
        return by_split

    def _scores(
        self, k: int, chosen: np.ndarray, constants: Mapping[str, float]
    ) -> dict[str, float]:
        """Errors of one target, for the crystals of one split."""
        target, truth, y = self.targets[k], self.truth[chosen, k], self.values[chosen, k]
        if target.kind == "class":
            return class_scores(truth, y)
        scores, error = (
            regression_scores(truth, y),
            np.abs(target.learned(y) - target.learned(truth)),
        )
        if target.scale == "log10":
            scores["mae_log10"] = float(np.nanmean(error)) if scores["crystals"] else np.nan
        for name, constant in constants.items():
            if scores["crystals"]:
                scores[name] = float(np.nanmean(np.abs(truth - constant)))
        known = np.isfinite(truth)
        width = self.half_width[chosen, k][known]
        if len(width) and np.isfinite(width).all():
            ends = [target.shown(target.learned(y[known]) + w) for w in (-width, width)]
            scores["interval"] = float((ends[1] - ends[0]).mean() / 2)
            scores["coverage"] = float((error[known] <= width).mean())
        return scores

    def write(self, path: Path) -> None:
        """Write a CSV file: id, formula, split, true value, prediction and interval per target,
        and doubts about the crystal."""
        header = ["id", "formula", "split"]
        for target in self.targets:
            header += [target.name, f"{target.name}_predicted"]
            header += [f"{target.name}_low", f"{target.name}_high"] * (target.kind == "value")
            header += [f"{target.name}_zero_probability"] * (self.zero is not None)
        header += [*LIKENESS, *[LEARNED] * (self.learned_from is not None), "warnings"]
        rows = (map(cell_text, row) for row in self._rows())
        write_csv(path, header, map(list, rows))

    def _rows(self) -> Iterator[list[Cell]]:
        low, high = intervals(self.targets, self.values, self.half_width, self.lowest)
        for i, name in enumerate(self.ids):
            row: list[Cell] = [name, self.formulas[i], self.split[i]]
            for k, target in enumerate(self.targets):
                row += [float(self.truth[i, k]), float(self.values[i, k])]
                if target.kind == "value":
                    row += [float(low[i, k]), float(high[i, k])]
                if self.zero is not None:
                    row.append(float(self.zero[i, k]))
            row += likeness_cells(None if self.unlike is None else self.unlike[i])
            if self.learned_from is not None:
                row.append(self.learned_from[i])
            yield [*row, self.warnings[i]]

    def plot(
        self, folder: Path, history: Sequence[Mapping[str, Any]], reporter: Reporter
    ) -> list[Path]:
        """Write parity plots and the learning curve; see ``sitenet.plot_predictions``."""
        return sitenet.plot_predictions(self, folder, history, reporter)


def evaluate(
    model: Model,
    data: str | Path | Dataset,
    targets: Sequence[str] | None = None,
    primitive: bool | None = None,
    disorder: str | None = None,
    workers: int | None = None,
    reporter: Reporter | None = None,
    **sampling: int,
) -> tuple[Predictions, list[LeftOut]]:
    """Predict crystals whose properties are known.

    Args:
        model: A SiteNet or an Ensemble.
        data: A source, a file of ``sitenet prepare``, or a Dataset.
        targets: Columns with the true values of the model's targets, in their order; None takes
            the columns that are named like the targets.
        primitive: As in ``predict``.
        disorder: As in ``predict``.
        workers: Processes that read structures and find pairs; None chooses.
        reporter: Shows progress.
        sampling: As in ``predict``; the intervals then take in the spread over arrangements.

    Returns:
        The predictions, all in the split "all", and what was left out.

    Raises:
        ValueError: The columns do not hold what the model predicts: their number, unit or
            quantity differs, or, unless ``targets`` names them, their name.
    """
    reporter = reporter or Reporter()
    disorder, drawn = sampling_of(disorder, sampling)
    names = [target.name for target in model.targets]
    try:
        opened = _open(data, targets, names)
    except UnclearTarget as error:
        raise ValueError(
            f"the model predicts {', '.join(names)}, the data have "
            f"{', '.join(error.available) or 'no numeric column'}; name the column of the same "
            "quantity with --target or targets=[...]"
        ) from None
    _check_columns(model.targets, opened, is_named=targets is not None)
    dataset = open_dataset(
        opened,
        _names(opened),
        how=preparation(model.config, primitive, disorder),
        workers=workers,
        reporter=reporter,
    )
    is_open = np.array([crystal.occupancy is not None for crystal in dataset.crystals])
    if drawn is None or not is_open.any():
        return _of_dataset(model, dataset, workers, reporter)
    arranged, others = _of_arrangements(
        model, dataset.select(np.flatnonzero(is_open)), drawn, reporter
    )
    if is_open.all():
        return arranged, [*dataset.left_out, *others]
    whole = dataset.select(np.flatnonzero(~is_open))
    predictions, left_out = _of_dataset(model, whole, workers, reporter)
    place = {name: k for k, name in enumerate(dataset.ids)}
    return predictions.joined(arranged, place), [*left_out, *others]


def _of_dataset(
    model: Model, dataset: Dataset, workers: int | None, reporter: Reporter
) -> tuple[Predictions, list[LeftOut]]:
    """Predict the crystals of a dataset as they are."""
    with reporter.bar("finding pairs", len(dataset)) as advance:
        dataset, store = pairs_of_dataset(dataset, model.config, workers, advance)
    outputs = from_store(model, store)
    values = np.array([y for y, _ in outputs]).reshape(len(outputs), len(model.targets))
    encodings = np.array([encoding for _, encoding in outputs], dtype=np.float32)
    encodings = encodings.reshape(len(outputs), model.encoding_size)
    parts = {"all": np.arange(len(dataset))}
    predictions = Predictions.of(model, dataset, parts, values, encodings, structures=store)
    return predictions, dataset.left_out


def _of_arrangements(
    model: Model, dataset: Dataset, sampling: Sampling, reporter: Reporter
) -> tuple[Predictions, list[LeftOut]]:
    """Predict the disordered crystals of a dataset over their arrangements."""
    make = PairMaker(model.config)
    results: dict[int, ArrangedPrediction] = {}
    left_out: list[LeftOut] = []
    with reporter.bar("predicting arrangements", len(dataset)) as advance:
        for k, crystal in enumerate(dataset.crystals):
            try:
                results[k] = over_arrangements(model, crystal, make, sampling, COVERAGE)
            except ValueError as error:
                left_out.append(LeftOut.of(dataset.ids[k], dataset.ids[k], error))
            advance(1)
    each, kept = list(results.values()), list(results)
    shape = len(each), len(model.targets)
    predictions = Predictions(
        [dataset.ids[k] for k in kept],
        [dataset.crystals[k].reduced_formula for k in kept],
        ["all"] * len(kept),
        model.targets,
        dataset.targets[kept],
        np.array([p.mean for p in each]).reshape(shape),
        np.array([p.half_width for p in each]).reshape(shape),
        None if model.calibration is None else [p.unlike or "" for p in each],
        ["; ".join(p.warnings) for p in each],
        model.lowest,
    )
    return predictions, left_out


def _open(
    data: str | Path | Dataset, targets: Sequence[str] | None, names: list[str]
) -> Source | Dataset:
    """Open data with the columns that are asked for, else those with the names of the model's
    targets, else the only one."""
    if not isinstance(data, Dataset):
        if not is_prepared(data):
            return _open_source(data, targets, names)
        data = load_dataset(data)
    if targets is None and set(names) <= set(data.names):
        targets = names
    return data.with_targets(targets)


def _open_source(path: str | Path, targets: Sequence[str] | None, names: list[str]) -> Source:
    if targets is None:
        try:
            return open_source(path, names)
        except ValueError:  # no such columns; otherwise the next call raises it again
            pass
    return open_source(path, targets)


def _names(data: Source | Dataset) -> Sequence[str]:
    return data.names if isinstance(data, Dataset) else data.targets


def _check_columns(targets: Sequence[Target], data: Source | Dataset, is_named: bool) -> None:
    """Refuse true values that are not what the model predicts.

    Args:
        targets: What the model predicts.
        data: Opened with one column per target.
        is_named: Whether the user named the columns, and so vouches for them.
    """
    columns = _names(data)
    if len(columns) != len(targets):
        predicted = ", ".join(target.name for target in targets)
        raise ValueError(f"the model predicts {predicted}; got {', '.join(columns)}")
    for target, column, unit in zip(targets, columns, data.units, strict=True):
        if complaint := same_quantity(target, column, unit):
            raise ValueError(complaint)
        if column != target.name and not is_named:
            raise ValueError(
                f"the model predicts {target.name}, the data have {column}; if that is the same "
                f"quantity, name it with --target {column!r} or targets=[{column!r}]"
            )
