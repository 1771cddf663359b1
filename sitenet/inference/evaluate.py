"""What a model predicts of crystals whose properties are known, and how far off it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import sitenet
from sitenet.data.dataset import Dataset, LeftOut, Preparation
from sitenet.data.prepare import open_dataset
from sitenet.data.readers import open_source
from sitenet.inference.metrics import class_scores, regression_scores
from sitenet.inference.predict import from_store
from sitenet.model.calibration import half_widths
from sitenet.model.ensemble import Model
from sitenet.model.sitenet import Target
from sitenet.pairs.cache import pairs_of_dataset
from sitenet.system.files import write_csv
from sitenet.system.progress import Reporter

COVERAGE = 0.9  # of the intervals that are written, unless said otherwise


@dataclass(eq=False)
class Predictions:
    """Predictions of a dataset's crystals.

    Attributes:
        ids: (crystals,).
        split: (crystals,) "valid", "test" or the like.
        targets: of the model.
        truth: (crystals, targets), NaN where missing.
        values: (crystals, targets); probabilities for classes.
        half_width: (crystals, targets) of the intervals, infinite where there is none.
        inside: (crystals,) whether each is like the training set.
        lowest: the lowest value that a prediction can have.
    """

    ids: list[str]
    split: list[str]
    targets: list[Target]
    truth: np.ndarray
    values: np.ndarray
    half_width: np.ndarray
    inside: np.ndarray
    lowest: float = -np.inf

    @classmethod
    def of(
        cls,
        model: Model,
        data: Dataset,
        parts: Mapping[str, np.ndarray],
        values: np.ndarray,
        encodings: np.ndarray,
        coverage: float = COVERAGE,
    ) -> Predictions:
        """Predictions of parts of a dataset, one part after another."""
        index = np.concatenate([np.asarray(i, dtype=int) for i in parts.values()])
        inside = np.ones(len(index), dtype=bool)
        if model.calibration is not None and len(index):
            inside = model.calibration.inside(encodings)
        return cls(
            [data.ids[i] for i in index],
            [name for name, i in parts.items() for _ in i],
            model.targets,
            data.targets[index],
            values,
            half_widths(model, encodings, coverage),
            inside,
            model.lowest,
        )

    def scores(self, mean: np.ndarray | None = None, median: np.ndarray | None = None) -> dict:
        """Errors by split and target.

        Args:
            mean: (targets,) of the training crystals: what predicting it would give stands beside,
                as ``mae_of_mean``.
            median: likewise, ``mae_of_median``.
        """
        found: dict[str, dict[str, dict[str, float]]] = {}
        for name in dict.fromkeys(self.split):
            chosen = np.array([s == name for s in self.split])
            found[name] = {}
            for k, target in enumerate(self.targets):
                truth, y = self.truth[chosen, k], self.values[chosen, k]
                if target.kind == "class":
                    found[name][target.name] = class_scores(truth, y)
                    continue
                scores = regression_scores(truth, y)
                for title, constant in (("mae_of_mean", mean), ("mae_of_median", median)):
                    if constant is not None and scores["crystals"]:
                        scores[title] = float(np.nanmean(np.abs(truth - constant[k])))
                known = np.isfinite(truth)
                width = self.half_width[chosen, k][known]
                if len(width) and np.isfinite(width).all():
                    scores["interval"] = float(width.mean())
                    near = np.abs(y - truth)[known] <= width
                    scores["coverage"] = float(near.mean())
                found[name][target.name] = scores
        return found

    def write(self, path: Path) -> None:
        """A CSV: id, split, then for each target its true value, prediction and interval."""
        header = ["id", "split"]
        for target in self.targets:
            header += [target.name, f"{target.name}_predicted"]
            header += [f"{target.name}_low", f"{target.name}_high"] * (target.kind == "value")
        write_csv(path, [*header, "like_training"], self._rows())

    def _rows(self) -> Any:
        for i, name in enumerate(self.ids):
            row: list[Any] = [name, self.split[i]]
            for k, target in enumerate(self.targets):
                row += [number(self.truth[i, k]), number(self.values[i, k])]
                if target.kind == "value":
                    half_width = self.half_width[i, k]
                    row += map(number, interval(self.values[i, k], half_width, self.lowest))
            yield [*row, "yes" if self.inside[i] else "no"]

    def plot(
        self, folder: Path, history: Sequence[Mapping[str, Any]], reporter: Reporter
    ) -> list[Path]:
        """Write parity plots and the learning curve; see ``sitenet.plot_predictions``."""
        return sitenet.plot_predictions(self, folder, history, reporter)


def interval(value: float, half_width: float, lowest: float = -np.inf) -> tuple[float, float]:
    """Low and high end around a value; NaN where there is no interval. What a model never predicts
    below ends there: no true value is lost where there is none."""
    if not np.isfinite(half_width):
        return np.nan, np.nan
    return max(value - half_width, lowest), value + half_width


def number(value: float) -> str:
    """For tables: seven significant digits, nothing where it is not known."""
    return f"{value:.7g}" if np.isfinite(value) else ""


def evaluate(
    model: Model,
    data: str | Path | Dataset,
    targets: Sequence[str] | None = None,
    primitive: bool = True,
    disorder: str = "error",
    workers: int | None = None,
    reporter: Reporter | None = None,
) -> tuple[Predictions, list[LeftOut]]:
    """Predict crystals whose properties are known.

    Args:
        model: a SiteNet or an Ensemble.
        data: a source, a file of ``sitenet prepare``, or a Dataset.
        targets: columns with the true values of the model's targets, in their order; None takes
            those of the same names, or the only one.
        primitive: as in ``predict``.
        disorder: as in ``read_cif``.
        workers: processes that read structures and find pairs; None chooses.
        reporter: is told how far it is.

    Returns:
        The predictions (all in the split "all"), and what was left out.
    """
    reporter = reporter or Reporter()
    names = [t.name for t in model.targets]
    dataset = open_dataset(
        data,
        _truth_columns(data, targets, names),
        how=Preparation(primitive, disorder),
        workers=workers,
        reporter=reporter,
    )
    if len(dataset.names) != len(names):
        raise ValueError(f"the model predicts {', '.join(names)}; got {', '.join(dataset.names)}")
    with reporter.bar("finding pairs", len(dataset)) as advance:
        dataset, store = pairs_of_dataset(dataset, model.config, workers, advance)
    found = from_store(model, store)
    values = np.array([f[0] for f in found]).reshape(len(found), len(names))
    encodings = np.array([f[1] for f in found])
    parts = {"all": np.arange(len(dataset))}
    return Predictions.of(model, dataset, parts, values, encodings), dataset.left_out


def _truth_columns(
    data: str | Path | Dataset, targets: Sequence[str] | None, names: list[str]
) -> Sequence[str] | None:
    """Columns of the true values: those asked for, else those with the names of the model's
    targets if the data have them, else None for the only one."""
    if targets is not None:
        return targets
    if isinstance(data, Dataset):
        return names if set(names) <= set(data.names) else None
    try:
        open_source(data, names)
    except ValueError:
        return None
    return names
