"""The table of results of ``tasks.py``: one row per property."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model_card import markdown

from sitenet.system.files import write_text
from sitenet.training.leaderboard import ANCHORS, SOURCE
from sitenet.training.matbench import FOLDS, TASKS

if TYPE_CHECKING:
    from tasks_list import Task

HEADER = (
    "property",
    "error on the tested fold",
    "on formulas new to the starts (crystals)",
    "ridge on encodings",
    "median or chance",
    "anchors, same fold",
    "trained on",
    "tested on",
    "of the official fold",
    "start (error on validation)",
    "intervals hold",
)
TEXT = """# Results of the tasks

Written by `python bench/tasks.py table RUNS` from the runs of `python bench/tasks.py run`
(`bench/tasks.yaml`).

The tested models learned from all folds at hand but number {fold}, less the validation crystals,
which chose the start and the epoch; the tested fold chose nothing. Errors are mean absolute errors
in the unit of the property, and for moduli of the decimal logarithm; classes have areas under the
ROC curve instead, the higher the better. *Line* is the prediction of the start for another property
in the same unit, scaled by a line.

A start has learned another property, also of crystals in the tested fold where that property's
fold differs. "New to the starts" are test crystals whose reduced formula no start of the model has
learned from, itself or through its own starts.

Anchors are from [Matbench's leaderboard]({source}):
scores on the same fold, of models that learned from four folds and were tested on all of its rows.
"Of the official fold" says how many of these rows are at hand: the others could not be matched to a
structure, so that scores are of slightly different crystals. Fold 0 was not used.

{table}
"""


def write_table(runs: Path, tasks: Mapping[str, Task], out: Path) -> None:
    """Write the table of all properties with a tested model."""
    rows = []
    for task in tasks.values():
        tested = _read(runs / task.name / "tested.json")
        if tested:
            rows.append(_row(task, tested, _read(runs / task.name / "rival.json")))
    if not rows:
        raise FileNotFoundError(f"{runs} holds no tested.json of any property")
    fold = next(iter(tasks.values())).tested_fold
    table = markdown(HEADER, rows)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, TEXT.format(fold=fold, source=SOURCE, table=table))


def official_rows(task: Task) -> float | None:
    """Rows of a fold of Matbench's task."""
    return TASKS[task.matbench][0] / FOLDS if task.matbench else None


def _row(task: Task, tested: Mapping[str, Any], rival: Mapping[str, Any]) -> tuple[str, ...]:
    scores, rows = tested["scores"]["test"][task.target], tested["rows"]
    ridge = anchors = ""
    if task.is_class:
        shown = f"**{scores['roc_auc']:.4f}** (of labels {scores['roc_auc_of_labels']:.4f})"
        constant = "0.5"
    else:
        unit = "log10" if task.in_log10 else task.unit
        shown = f"**{_short(scores[task.measure])}** {unit}".strip()
        constant = "" if task.in_log10 else _short(scores["mae_of_median"])
    if rival:
        error = rival["test"]["roc_auc" if task.is_class else "mae"]
        line = f"; line {_short(rival['line'])}" if "line" in rival else ""
        ridge = f"{_short(error)} ({rival['start']}{line})"
    if task.matbench:
        each = ((a.model, a.over([task.tested_fold])) for a in ANCHORS[task.matbench])
        anchors = ", ".join(f"{model} {_short(x)}" for model, x in each if x is not None)
        anchors += " (of labels)" * task.is_class
    official = official_rows(task)
    errors = ", ".join(f"{k} {_short(v)}" for k, v in tested["valid_errors"].items())
    return (
        task.name,
        shown,
        _unknown(task, tested),
        ridge,
        constant,
        anchors,
        f"{rows['train']:,}",
        f"{rows['test']:,}",
        "" if official is None else f"{rows['test'] / official:.0%}",
        f"{tested['start']} ({errors})",
        "" if "coverage" not in scores else f"{scores['coverage']:.1%}",
    )


def _unknown(task: Task, tested: Mapping[str, Any]) -> str:
    """The error on test crystals whose formula no start has learned from, and their number."""
    scores = tested["unknown"]
    count = f"({scores['crystals']:,})"
    if not tested["chain"] or not scores["crystals"]:
        return "" if not tested["chain"] else count
    return f"{_short(scores['roc_auc' if task.is_class else task.measure])} {count}"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def _short(x: float) -> str:
    return f"{x:.3g}" if abs(x) < 100 else f"{x:.0f}"
