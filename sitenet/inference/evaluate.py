"""What a model predicts of crystals whose properties are known, and how far off it is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sitenet.data.dataset import Dataset, LeftOut, Preparation, read
from sitenet.data.prepared import is_prepared, load_dataset
from sitenet.data.readers import open_source
from sitenet.data.source import Source
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
        """Parity plots of the test crystals (of validation where there are none), and the learning
        curve where there is a history; what is missing for them is said."""
        try:
            import matplotlib  # noqa: F401

            from sitenet.report import plots
        except ImportError:
            reporter.say("no plots: they need matplotlib, pip install 'sitenet[plot]'")
            return []
        written = []
        shown = next((s for s in ("test", "valid", "all") if s in self.split), None)
        chosen = np.array([s == shown for s in self.split], dtype=bool)
        for k, target in enumerate(self.targets):
            known = np.isfinite(self.truth[chosen, k]).any() if chosen.any() else False
            if target.kind == "value" and known:
                ending = "" if len(self.targets) == 1 else f"_{_file_name(target.name)}"
                path = folder / f"parity{ending}.png"
                plots.parity(
                    self.truth[chosen, k],
                    self.values[chosen, k],
                    path,
                    name=target.name.removesuffix("_" + target.unit.replace("/", "_per_")),
                    unit=target.unit,
                    title=f"{shown} crystals",
                )
                written.append(path)
        if len(history) > 1 and "train_mae" in history[0]:
            path = folder / "learning_curve.png"
            plots.learning_curve(history, path, unit=self.targets[0].unit)
            written.append(path)
        return written


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in name)


def interval(value: float, half_width: float, lowest: float = -np.inf) -> tuple[float, float]:
    """Low and high end around a value; NaN where there is no interval. What a model never predicts
    below ends there: no true value is lost where there is none."""
    if not np.isfinite(half_width):
        return np.nan, np.nan
    return max(value - half_width, lowest), value + half_width


def number(value: float) -> str:
    """For tables: seven significant digits, nothing where it is not known."""
    return f"{value:.7g}" if np.isfinite(value) else ""


def evaluate_data(
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
    if not isinstance(data, Dataset):
        if is_prepared(data):
            data = load_dataset(data)
        else:
            source = _open_with(data, targets, names)
            with reporter.bar("reading structures", len(source)) as advance:
                data = read(source, Preparation(primitive, disorder), workers, advance)
    if targets is None and set(names) <= set(data.names):
        targets = names
    data = data.with_targets(targets)
    if len(data.names) != len(names):
        raise ValueError(f"the model predicts {', '.join(names)}; got {', '.join(data.names)}")
    with reporter.bar("finding pairs", len(data)) as advance:
        data, store = pairs_of_dataset(data, model.config, workers, advance)
    found = from_store(model, store)
    values = np.array([f[0] for f in found]).reshape(len(found), len(names))
    encodings = np.array([f[1] for f in found])
    parts = {"all": np.arange(len(data))}
    return Predictions.of(model, data, parts, values, encodings), data.left_out


def _open_with(path: str | Path, targets: Sequence[str] | None, names: list[str]) -> Source:
    """A source with the targets asked for; those of the model's names, or the only one."""
    if targets is not None:
        return open_source(path, targets)
    try:
        return open_source(path, names)
    except ValueError:
        return open_source(path)
