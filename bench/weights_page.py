"""Write the page of all weights that ship, ``docs/models/index.md``, from what they hold.

    python bench/weights_page.py

Errors are those in the metadata of the files. Matbench's are those of its leaderboard on the same
fold (``sitenet.training.leaderboard``).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from model_card import markdown
from tasks_list import Task, read_tasks

from sitenet.model.checkpoint import read_metadata, shipped_weights
from sitenet.system.files import write_text
from sitenet.training.leaderboard import ANCHORS, SOURCE

HERE = Path(__file__).resolve().parent
OUT = HERE.parent / "docs" / "models" / "index.md"
HEADER = (
    "weights",
    "error on the test",
    "best on the leaderboard",
    "predicting the median",
    "90 % intervals hold",
    "tested on",
    "MB",
)
TEXT = """# Shipped weights

`sitenet predict FILES --model NAME` and `sitenet.load("NAME")` take any of these names. Repeat
`--model` for a table of several properties, or give `--model all`; crystals are then read once.

{table}

- Errors are mean absolute errors in the unit of the property, those of moduli errors of the decimal
  logarithm, and those of classes areas under the ROC curve, the higher the better.
- The test is fold {fold} of the Matbench task, unless the card names another one. The tested model
  has learned from three other folds, and the test chose nothing. What ships has learned from all
  four.
- "Best on the leaderboard" is the lowest error (or the largest area) on the same fold in
  [Matbench's leaderboard]({source}),
  of the models with published errors per fold. They learned from four folds and from no other data,
  whereas most weights here start from a model of formation energies: this compares what you get,
  not the architectures.
- A prediction does not replace a calculation or a measurement: confirm what matters.
"""


def write_page(out: Path = OUT) -> None:
    """Write the page."""
    tasks = read_tasks()
    facts = yaml.safe_load((HERE / "task_cards.yaml").read_text(encoding="utf-8"))
    rows = [
        _row(tasks[name], facts[name]["property"], path)
        for name, path in sorted(shipped_weights().items(), key=lambda x: list(tasks).index(x[0]))
    ]
    fold = next(iter(tasks.values())).tested_fold
    text = TEXT.format(table=markdown(HEADER, rows), fold=fold, source=SOURCE)
    write_text(out, text)


def _row(task: Task, title: str, path: Path) -> tuple[str, ...]:
    metadata = read_metadata(path)["metadata"]
    by_fold = "tested" in metadata
    scores = metadata.get("tested", metadata)["scores"].get("test", {}).get(task.target, {})
    return (
        f"[{task.name}]({task.name}.md): {title}" + (f" ({task.unit})" if task.unit else ""),
        _error(task, scores),
        _best(task) if by_fold else "",
        "" if task.is_class or task.in_log10 or not scores else short(scores["mae_of_median"]),
        f"{scores['coverage']:.1%}" if "coverage" in scores else "",
        f"{scores['crystals']:,}" if scores else "",
        f"{path.stat().st_size / 1e6:.1f}",
    )


def _error(task: Task, scores: Mapping[str, Any]) -> str:
    if not scores:
        return ""
    if task.is_class:
        return f"**{short(scores['roc_auc'])}** (of labels {short(scores['roc_auc_of_labels'])})"
    return f"**{short(scores[task.measure])}**"


def _best(task: Task) -> str:
    """The best published score on the tested fold, and whose it is."""
    known = [(a.over([task.tested_fold]), a.model) for a in ANCHORS.get(task.matbench, ())]
    scores = [(x, model) for x, model in known if x is not None]
    if not scores:
        return ""
    x, model = (max if task.is_class else min)(scores)
    return f"{short(x)} ({model}{', of labels' * task.is_class})"


def short(x: float) -> str:
    """Three digits."""
    return f"{x:#.3g}" if abs(x) < 100 else f"{x:.0f}"


if __name__ == "__main__":
    write_page()
