"""Cross-validation: every crystal is predicted by a model that has not seen its fold."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sitenet.config import SiteNetConfig
from sitenet.data.dataset import Dataset
from sitenet.data.failures import LeftOut, write_left_out
from sitenet.data.prepare import open_dataset
from sitenet.data.splits import folds as divide
from sitenet.model.sitenet import Target
from sitenet.system.devices import choose_device
from sitenet.system.distributed import is_first, process_group
from sitenet.system.files import cell_text, writable_folder, write_csv
from sitenet.system.progress import Reporter
from sitenet.training.plan import Start, make_plan
from sitenet.training.start import any_start, is_auto
from sitenet.training.train import train

PREDICTIONS = "predictions.csv"
FOLDS = "folds.csv"


@dataclass(eq=False)
class CrossValidation:
    """Errors of a cross-validation.

    Attributes:
        scores: One dict per fold, target -> error measures, as in ``Result.scores["test"]``.
        targets: What is predicted.
        folder: Holds the predictions of all crystals, the table of scores and one run per fold.
        left_out: Structures that could not be used.
    """

    scores: list[dict[str, dict[str, float]]]
    targets: list[Target]
    folder: Path
    left_out: list[LeftOut] = field(default_factory=list)

    def over_folds(self, target: str, measure: str) -> tuple[float, float]:
        """Mean and standard deviation of a measure over the folds."""
        values = [fold[target][measure] for fold in self.scores]
        return float(np.mean(values)), float(np.std(values))

    def summary(self) -> list[str]:
        """One line per target: the mean and the standard deviation of its error over the folds,
        beside those of constants."""
        lines = []
        for target in self.targets:
            measure = "mae" if target.kind == "value" else "roc_auc"
            unit = f" {target.unit}" if target.unit else ""
            mean, std = self.over_folds(target.name, measure)
            title = {"mae": "MAE", "roc_auc": "ROC AUC"}[measure]
            line = (
                f"{target.name}: {title} {mean:.4g} ± {std:.2g}{unit} over {len(self.scores)} folds"
            )
            if measure == "mae":
                for constant in ("mean", "median"):
                    error, _ = self.over_folds(target.name, f"mae_of_{constant}")
                    line += f", {error:.4g}{unit} if predicting the {constant}"
            lines.append(line)
        return lines


def crossval(
    data: str | Path | Dataset,
    out: str | Path,
    config: str | Path | Mapping[str, Any] | SiteNetConfig | None = None,
    *,
    folds: int = 5,
    target: str | Sequence[str] | None = None,
    unit: str | Sequence[str] | None = None,
    classes: Sequence[str] = (),
    log: Sequence[str] = (),
    start: Start = None,
    freeze: bool = False,
    primitive: bool | None = None,
    disorder: str | None = None,
    device: str | torch.device = "cpu",
    workers: int | None = None,
    reporter: Reporter | None = None,
    **changes: Any,
) -> CrossValidation:
    """Train one model per fold on the other folds, and predict the crystals of the fold.

    Args:
        data: As in ``train``. Its split column is ignored.
        out: Folder for ``predictions.csv`` (every crystal, predicted by the model of its fold),
            ``folds.csv`` (errors per fold), ``left_out.csv``, a run folder per fold, and the
            dataset with its pairs. The same call resumes there; finished folds are not trained
            again.
        config: As in ``train``.
        folds: Number of folds. Crystals are kept together by the config's ``group``.
        target: As in ``train``.
        unit: As in ``train``.
        classes: As in ``train``.
        log: As in ``train``.
        start: As in ``train``; "auto" chooses for each fold, by its own validation crystals.
        freeze: As in ``train``.
        primitive: As in ``train``.
        disorder: As in ``train``.
        device: As in ``train``.
        workers: As in ``train``.
        reporter: Shows progress.
        changes: As in ``train``.

    Raises:
        ValueError: The data, the config or the content of the folder cannot be used.
        OSError: The folder cannot be written to.
        Stopped: Interrupted; the message says how to resume.
    """
    reporter = reporter if reporter is not None and is_first() else Reporter()
    inputs = {"primitive": primitive, "disorder": disorder}
    changes |= {name: value for name, value in inputs.items() if value is not None}
    plan = make_plan(config, any_start() if is_auto(start) else start, changes, freeze)
    device, out = choose_device(device), writable_folder(out)
    dataset = open_dataset(
        data,
        [target] if isinstance(target, str) else target,
        units=[unit] if isinstance(unit, str) else unit,
        how=plan.preparation,
        prepared_as=out / "dataset.parquet",  # beside which the pairs of all folds are kept
        workers=workers,
        reporter=reporter,
    )
    with process_group(device):
        training = plan.config.training
        assigned = divide(dataset, folds, training.seed, training.group)
        dataset = replace(dataset, split=list(map(str, assigned)))
        scores: list[dict[str, dict[str, float]]] = []
        rows: list[dict[str, str]] = []
        for fold in range(1, folds + 1):
            reporter.say(f"fold {fold} of {folds}")
            result = train(
                dataset,
                out / f"fold-{fold}",
                config,
                target=dataset.names,
                classes=classes,
                log=log,
                fold=str(fold),
                start=start,
                freeze=freeze,
                device=device,
                workers=workers,
                reporter=reporter,
                **changes,
            )
            scores.append(result.scores["test"])
            if is_first():
                rows += _predicted(out / f"fold-{fold}" / PREDICTIONS, fold)
    if is_first():
        place = {name: k for k, name in enumerate(dataset.ids)}
        _write(out, scores, sorted(rows, key=lambda row: place[row["id"]]))
        write_left_out(result.left_out, out / "left_out.csv")
    return CrossValidation(scores, result.model.targets, out, result.left_out)


def _predicted(path: Path, fold: int) -> list[dict[str, str]]:
    """The rows of a fold's test crystals, with the fold in place of the split."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row.pop("split") == "test"]
    return [{"id": row.pop("id"), "fold": str(fold), **row} for row in rows]


def _write(
    out: Path, scores: Sequence[Mapping[str, Mapping[str, float]]], rows: list[dict[str, str]]
) -> None:
    """Write the tables of predictions and of scores."""
    write_csv(out / PREDICTIONS, list(rows[0]), (list(row.values()) for row in rows))
    header, table = score_rows(scores)
    write_csv(out / FOLDS, header, (list(map(cell_text, row)) for row in table))


def score_rows(
    scores: Sequence[Mapping[str, Mapping[str, float]]],
) -> tuple[list[str], list[list[Any]]]:
    """Scores as a table: one row per fold and target, then their mean and standard deviation per
    target.

    Returns:
        The header and the rows.
    """
    rows: list[list[Any]] = []
    columns = dict.fromkeys(m for fold in scores for values in fold.values() for m in values)
    for target in scores[0]:
        measures = [[fold[target].get(m, np.nan) for m in columns] for fold in scores]
        rows += [[target, k, *values] for k, values in enumerate(measures, 1)]
        for name, summary in (("mean", np.mean), ("std", np.std)):
            rows.append([target, name, *(float(x) for x in summary(measures, axis=0))])
    return ["target", "fold", *columns], rows
