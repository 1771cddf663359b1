"""A report on a training run: its data, errors by epoch, predictions and config."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sitenet.data.units import titled
from sitenet.inference.metrics import class_scores, regression_scores
from sitenet.model.checkpoint import read_metadata
from sitenet.model.sitenet import Target
from sitenet.report.figures import class_figure, learning_figure, parity_figure
from sitenet.report.html_page import Page
from sitenet.report.packages import plotly

TABLE_ROWS = 50  # rows of a table at most
TITLES = {
    "mae": "MAE",
    "rmse": "RMSE",
    "max_error": "largest error",
    "r2": "R²",
    "roc_auc": "ROC AUC",
    "f1": "F1",
    "log_loss": "log loss",
    "calibration_error": "calibration error",
    "inside": "inside interval",
    "mae_of_mean": "MAE of mean",
    "mae_of_median": "MAE of median",
}
IN_UNIT = (
    "mae",
    "rmse",
    "max_error",
    "mae_of_mean",
    "mae_of_median",
)  # scores in the target's unit


@dataclass
class _Run:
    """What a run folder holds; the parts that it lacks are empty.

    Attributes:
        name: Name of the folder.
        history: Lines of ``metrics.jsonl``.
        predictions: Columns of ``predictions.csv``.
        left_out: Columns of ``left_out.csv``.
        config: Text of ``config.yaml``.
        targets: By name.
        facts: What training noted in the checkpoint: epoch, crystals, scores.
    """

    name: str
    history: list[dict[str, Any]]
    predictions: dict[str, np.ndarray]
    left_out: dict[str, np.ndarray]
    config: str
    targets: dict[str, Target]
    facts: dict[str, Any]

    @property
    def best(self) -> list[int]:
        """The epochs whose weights were kept, one per model."""
        epochs = self.facts.get("epoch", [])
        return epochs if isinstance(epochs, list) else [epochs]


def run_report(run: str | Path, path: str | Path) -> None:
    """Write a report on a training run.

    Args:
        run: The run folder; the report lacks what the folder lacks.
        path: HTML file to write.

    Raises:
        ImportError: plotly is not installed.
        FileNotFoundError: There is no such folder, or it holds no run.
    """
    plotly("graph_objects")
    contents = _read(Path(run))
    predictions = [
        _Predictions(contents.targets.get(name, Target(name)), contents)
        for name in contents.predictions
        if f"{name}_predicted" in contents.predictions
    ]
    page = Page(contents.name, _subtitle(contents))
    page.cards(_cards(contents, predictions))
    if any(line.get("train_mae") is not None for line in contents.history):
        note = "Dotted lines mark the epochs whose weights were kept." if contents.best else ""
        page.section("Errors by epoch", *filter(None, [note]))
        units = {target.learned_unit for target in contents.targets.values()}
        unit = units.pop() if len(units) == 1 else ""
        page.figure(learning_figure(contents.history, contents.best, unit))
    for each in predictions:
        _add_predictions(page, each)
    if contents.left_out:
        _add_left_out(page, contents.left_out)
    if contents.config:
        page.section("Config")
        page.preformatted("config.yaml", contents.config)
    page.write(path)


def _read(run: Path) -> _Run:
    config, model = run / "config.yaml", run / "model.safetensors"
    metadata = read_metadata(model) if model.is_file() else {}
    contents = _Run(
        run.resolve().name,
        _read_history(run / "metrics.jsonl"),
        _read_table(run / "predictions.csv"),
        _read_table(run / "left_out.csv"),
        config.read_text(encoding="utf-8", errors="replace") if config.is_file() else "",
        {target["name"]: Target(**target) for target in metadata.get("targets", [])},
        metadata.get("metadata") or {},
    )
    if not (contents.history or contents.predictions or config.is_file()):
        raise FileNotFoundError(
            f"{run} holds no run: neither metrics.jsonl, predictions.csv nor config.yaml"
        )
    return contents


def _subtitle(run: _Run) -> str:
    counts = run.facts.get("crystals", {})
    tasks = {"train": "training", "valid": "validation", "test": "test"}
    parts = [f"{counts[name]:,} for {task}" for name, task in tasks.items() if name in counts]
    return f"A training run on crystals: {', '.join(parts)}" if parts else "A training run"


def _cards(run: _Run, predictions: Sequence[_Predictions]) -> dict[str, str]:
    """The main facts by name."""
    cards = {}
    for each in predictions:
        target = each.target
        shown = ["accuracy"] if target.kind == "class" else ["mae", "mae_of_mean"]
        for split, scores in each.scores.items():
            for score in shown:
                if split in ("valid", "test") and score in scores:
                    name = f"{TITLES.get(score, score)} of {target.name}, {split}"
                    if score == "mae_of_mean":
                        name = f"if predicting the mean of {target.name}, {split}"
                    cards[name] = f"{scores[score]:.3g} {target.unit}".strip()
    tables = {"crystals predicted": run.predictions, "crystals left out": run.left_out}
    for name, table in tables.items():
        if table:
            cards[name] = f"{len(next(iter(table.values()))):,}"
    if run.history:
        cards["epochs"] = f"{len(run.history):,}"
    if run.best:
        cards["best epoch" + "s" * (len(run.best) > 1)] = ", ".join(map(str, run.best))
    return cards


class _Predictions:
    """True and predicted values of one target, where both are known, and their errors by split."""

    def __init__(self, target: Target, run: _Run) -> None:
        columns = run.predictions
        truth = _numbers(columns[target.name])
        predicted = _numbers(columns[f"{target.name}_predicted"])
        known = np.flatnonzero(np.isfinite(truth) & np.isfinite(predicted))
        self.target = target
        self.truth, self.predicted = truth[known], predicted[known]
        self.formulas = columns["formula"][known] if "formula" in columns else None
        self.ids = columns["id"][known] if "id" in columns else known.astype(str)
        self.split = columns["split"][known] if "split" in columns else np.full(len(known), "all")
        self.parts = {s: self.split == s for s in dict.fromkeys(self.split.tolist())}
        errors = class_scores if target.kind == "class" else regression_scores
        self.scores = {s: errors(self.truth[m], self.predicted[m]) for s, m in self.parts.items()}
        if f"{target.name}_low" in columns:
            low = _numbers(columns[f"{target.name}_low"])[known]
            high = _numbers(columns[f"{target.name}_high"])[known]
            inside = (low <= self.truth) & (self.truth <= high)
            for split, part in self.parts.items():
                if np.isfinite(low[part]).any():
                    self.scores[split]["inside"] = float(inside[part].mean())
        noted = run.facts.get("scores", {})
        for split, scores in self.scores.items():
            baselines = noted.get(split, {}).get(target.name, {})
            for name in ("mae_of_mean", "mae_of_median"):
                if name in baselines:
                    scores[name] = baselines[name]


def _add_predictions(page: Page, p: _Predictions) -> None:
    name, unit = p.target.name, p.target.unit
    page.section(f"Predictions of {name}")
    if not p.parts:
        page.text("No crystal has a true and a predicted value.")
        return
    table: dict[str, Sequence[Any]] = {"split": list(p.scores)}
    for score in dict.fromkeys(score for values in p.scores.values() for score in values):
        title = titled(TITLES.get(score, score), unit if score in IN_UNIT else "")
        table[title] = [values.get(score, np.nan) for values in p.scores.values()]
    constant = "MAE of mean, of median: errors of predicting that of the training crystals for all."
    page.table(table, constant if any("mae_of_mean" in x for x in p.scores.values()) else "")
    drawn = {s: (p.ids[m], p.truth[m], p.predicted[m]) for s, m in p.parts.items()}
    page.figure((class_figure if p.target.kind == "class" else parity_figure)(drawn, name, unit))
    error = p.predicted - p.truth
    worst = np.argsort(-np.abs(error), kind="stable")[:TABLE_ROWS]
    formulas = {} if p.formulas is None else {"formula": p.formulas[worst]}
    page.table(
        {"id": p.ids[worst]}
        | formulas
        | {
            "split": p.split[worst],
            titled("true", unit): p.truth[worst],
            titled("predicted", unit): p.predicted[worst],
            titled("error", unit): error[worst],
        },
        "Largest errors",
    )


def _add_left_out(page: Page, columns: Mapping[str, np.ndarray]) -> None:
    total = len(next(iter(columns.values())))
    page.section("Left out", f"{total:,} crystal{'s' * (total != 1)} could not be used.")
    why = next((name for name in ("kind", "reason") if name in columns), None)
    if why is not None:
        counts = Counter(columns[why].tolist()).most_common(TABLE_ROWS)
        page.table({"crystals": [n for _, n in counts], why: [text for text, _ in counts]})
    page.table(
        {name: column[:TABLE_ROWS] for name, column in columns.items()},
        f"The first {TABLE_ROWS}" if total > TABLE_ROWS else "",
    )


def _read_history(path: Path) -> list[dict[str, Any]]:
    """Read the lines of metrics.jsonl, without one that a run is still writing."""
    history = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            history.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return history


def _read_table(path: Path) -> dict[str, np.ndarray]:
    """Read the columns of a CSV file by name, as text; none if it is absent or has no rows."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        header, *rows = csv.reader(file) or [[]]
    rows = [row for row in rows if len(row) == len(header)]
    if not rows:
        return {}
    return dict(zip(header, np.array(rows, dtype=object).T, strict=True))


def _numbers(column: np.ndarray) -> np.ndarray:
    """A column of text as numbers, NaN where it is empty."""
    return np.array([float(text or "nan") for text in column])
