"""Reports as self-contained HTML pages: what a model saw in a crystal, and how a run went."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sitenet.inference.evaluate import COVERAGE
from sitenet.inference.explain import Explanation, explain
from sitenet.inference.metrics import class_scores, regression_scores
from sitenet.model.calibration import half_widths
from sitenet.model.checkpoint import read_metadata
from sitenet.model.ensemble import Model
from sitenet.model.sitenet import Target
from sitenet.report.cell_view import cell_view
from sitenet.report.figures import (
    attention_figure,
    class_figure,
    element_figure,
    learning_figure,
    parity_figure,
)
from sitenet.report.html_page import Page, plotly
from sitenet.report.plots import label

TABLE_ROWS = 50
TITLES = {
    "mae": "MAE",
    "rmse": "RMSE",
    "max_error": "largest error",
    "r2": "R²",
    "roc_auc": "ROC AUC",
    "f1": "F1",
    "log_loss": "log loss",
    "inside": "inside interval",
}


def crystal_report(model: Model, structure: Any, path: str | Path, **options: Any) -> Explanation:
    """Write a report on one crystal: its prediction, and what the model attended to.

    Args:
        model: the model.
        structure: a crystal, or the path of a CIF.
        path: the HTML file to write.
        options: as of ``explain``.

    Returns:
        The explanation that the report shows.

    Raises:
        ImportError: plotly is not installed.
        ValueError: the structure is not valid, or there are several.
    """
    plotly("graph_objects")  # absent, it is missed before anything is computed
    e = explain(model, structure, **options)
    if not isinstance(e, Explanation):
        raise ValueError("a report is on one crystal, got a list")
    sites, images = len(e.crystal), int(e.pairs.images)
    around = f"{sites * images} sites of a supercell" if images else "all sites in a sphere"
    formula = e.crystal.reduced_formula
    page = Page(e.name, f"{formula}, {sites} sites in the cell, each attending to {around}")
    page.cards(_predicted(model, e))

    received = e.received
    blocks, heads = received.shape[1:]
    page.section(
        "The cell, its sites coloured by attention",
        "Colours show the attention that a site receives from all sites of the cell, 1 on average. "
        "The menu chooses one block and head instead of their mean; drag to turn.",
    )
    entries = {"mean": received.mean((1, 2))}
    for b, h in np.ndindex(blocks, heads):
        entries[f"block {b + 1}, head {h + 1}"] = received[:, b, h]
    page.figure(cell_view(e.crystal, entries, "attention received"))
    page.section(
        "Attention against distance",
        "Each point is a site and a site that it attends to; where several are equal, the weight "
        "is that of one. The weights of a site's pairs add up to 1 in every block and head. "
        "Diamonds are sites that attend to themselves.",
    )
    page.figure(attention_figure(e))
    page.section(
        "Between elements",
        "What share of its attention a site of one element pays to each kind of neighbour, and how "
        "many times that is what even attention would pay; means over blocks and heads.",
    )
    page.figure(element_figure(e))
    page.section(
        "Most attended pairs",
        "By the mean weight over blocks and heads of one pair of sites, self pairs left out.",
    )
    page.table(_most_attended(e))
    page.section("Sites", "The attention that a site receives, 1 on average, and pays to itself.")
    columns = e.columns("sites")
    shown = ["site", "element", "x", "y", "z", "received", "kept"]
    page.table(
        {name: columns[name][:TABLE_ROWS] for name in shown},
        f"The first {TABLE_ROWS} of {sites:,} sites" if sites > TABLE_ROWS else "",
    )
    page.section(
        "Long-range coefficient",
        "The largest product of distance and attention weight of any pair of sites, in angstrom: "
        "large where a distant site gets much attention.",
    )
    page.table(
        {"block": np.arange(blocks) + 1}
        | {f"head {h + 1}": e.long_range[:, h] for h in range(heads)}
    )
    page.write(path)
    return e


def _predicted(model: Model, e: Explanation) -> dict[str, str]:
    """What the model predicts and how sure it is, by name."""
    cards = {}
    (width,) = half_widths(model, e.encoding[None], COVERAGE)
    for target, value, half in zip(e.targets, e.predicted, width, strict=True):
        if target.kind == "class":
            cards[f"probability of {target.name}"] = f"{value:.3f}"
            continue
        name, text = target.name, f"{value:.4g}"
        if np.isfinite(half):
            name, text = f"{name}, {COVERAGE:.0%} interval", f"{text} ± {half:.2g}"
        cards[name] = f"{text} {target.unit}".strip()
    if model.calibration is not None:
        like = model.calibration.inside(e.encoding[None])[0]
        cards["like the training crystals"] = "yes" if like else "no"
    return cards


def _most_attended(e: Explanation) -> dict[str, Any]:
    """The pairs with the largest mean weight, as columns."""
    columns = e.columns("pairs")
    weights = e.weights.reshape(len(columns["site"]), -1)
    mean = np.where(columns["distance"] > 0, weights.mean(1), -1)
    top = np.argsort(-mean, kind="stable")[:TABLE_ROWS]
    top = top[mean[top] >= 0]
    block, head = np.divmod(weights[top].argmax(1), e.weights.shape[2])
    return {
        "site": [f"{columns['element'][k]} {columns['site'][k]}" for k in top],
        "neighbour": [f"{columns['neighbour_element'][k]} {columns['neighbour'][k]}" for k in top],
        "distance (Å)": columns["distance"][top],
        "equal sites": columns["multiplicity"][top],
        "mean weight": mean[top],
        "largest weight": weights[top].max(1),
        "in": [f"block {b + 1}, head {h + 1}" for b, h in zip(block, head, strict=True)],
    }


def run_report(run: str | Path, path: str | Path) -> None:
    """Write a report on a training run: errors by epoch, predictions, what was left out, config.

    Args:
        run: the run folder; files it lacks are left out of the report.
        path: the HTML file to write.

    Raises:
        ImportError: plotly is not installed.
        FileNotFoundError: there is no such folder, or it holds no run.
    """
    plotly("graph_objects")
    run = Path(run)
    history = _read_history(run / "metrics.jsonl")
    predictions = _read_table(run / "predictions.csv")
    left_out = _read_table(run / "left_out.csv")
    config, model = run / "config.yaml", run / "model.safetensors"
    if not (history or predictions or config.is_file()):
        raise FileNotFoundError(
            f"{run} holds no run: neither metrics.jsonl, predictions.csv nor config.yaml"
        )
    targets = read_metadata(model)["targets"] if model.is_file() else []
    known = {target["name"]: Target(**target) for target in targets}
    page = Page(run.resolve().name, "A training run")
    found = [
        _Predictions(known.get(name, Target(name)), predictions)
        for name in predictions
        if f"{name}_predicted" in predictions
    ]
    cards = {}
    for each in found:
        score = "accuracy" if each.target.kind == "class" else "mae"
        for split, values in each.scores.items():
            if split in ("valid", "test"):
                name = f"{TITLES.get(score, score)} of {each.target.name}, {split}"
                cards[name] = f"{values[score]:.3g} {each.target.unit}".strip()
    for name, table in (("crystals predicted", predictions), ("crystals left out", left_out)):
        if table:
            cards[name] = f"{len(next(iter(table.values()))):,}"
    if history:
        cards["epochs"] = f"{len(history):,}"
    page.cards(cards)
    if any(line.get("train_mae") is not None for line in history):
        page.section("Errors by epoch")
        page.figure(learning_figure(history))
    for each in found:
        _add_predictions(page, each)
    if left_out:
        _add_left_out(page, left_out)
    if config.is_file():
        page.section("Config")
        page.preformatted(config.read_text(encoding="utf-8", errors="replace"))
    page.write(path)


class _Predictions:
    """True and predicted values of one target, where both are known, and their errors by split."""

    def __init__(self, target: Target, columns: Mapping[str, np.ndarray]) -> None:
        truth = _numbers(columns[target.name])
        predicted = _numbers(columns[f"{target.name}_predicted"])
        known = np.flatnonzero(np.isfinite(truth) & np.isfinite(predicted))
        self.target = target
        self.truth, self.predicted = truth[known], predicted[known]
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


def _add_predictions(page: Page, p: _Predictions) -> None:
    name, unit = p.target.name, p.target.unit
    page.section(f"Predictions of {name}")
    if not p.parts:
        page.text("No crystal has a true and a predicted value.")
        return
    table: dict[str, Sequence[Any]] = {"split": list(p.scores)}
    for score in dict.fromkeys(score for values in p.scores.values() for score in values):
        title = label(
            TITLES.get(score, score), unit if score in ("mae", "rmse", "max_error") else ""
        )
        table[title] = [values.get(score, np.nan) for values in p.scores.values()]
    page.table(table)
    drawn = {s: (p.ids[m], p.truth[m], p.predicted[m]) for s, m in p.parts.items()}
    page.figure((class_figure if p.target.kind == "class" else parity_figure)(drawn, name, unit))
    error = p.predicted - p.truth
    worst = np.argsort(-np.abs(error), kind="stable")[:TABLE_ROWS]
    page.table(
        {
            "id": p.ids[worst],
            "split": p.split[worst],
            label("true", unit): p.truth[worst],
            label("predicted", unit): p.predicted[worst],
            label("error", unit): error[worst],
        },
        "Largest errors",
    )


def _add_left_out(page: Page, columns: Mapping[str, np.ndarray]) -> None:
    total = len(next(iter(columns.values())))
    page.section("Left out", f"{total:,} crystals could not be used.")
    if "reason" in columns:
        counts = Counter(columns["reason"].tolist()).most_common()
        page.table(
            {"crystals": [n for _, n in counts[:TABLE_ROWS]],
             "reason": [reason for reason, _ in counts[:TABLE_ROWS]]}
        )  # fmt: skip
    page.table(
        {name: column[:TABLE_ROWS] for name, column in columns.items()},
        f"The first {TABLE_ROWS}" if total > TABLE_ROWS else "",
    )


def _read_history(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; one that a run is still writing is left out."""
    history = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            history.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return history


def _read_table(path: Path) -> dict[str, np.ndarray]:
    """The columns of a CSV file by name, as text; none if it is absent or has no rows."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        header, *rows = csv.reader(file) or [[]]
    rows = [row for row in rows if len(row) == len(header)]
    if not rows:
        return {}
    return dict(zip(header, np.array(rows, dtype=object).T, strict=True))


def _numbers(column: np.ndarray) -> np.ndarray:
    """NaN where there is none."""
    return np.array([float(text or "nan") for text in column])
