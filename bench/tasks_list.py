"""The properties of ``tasks.yaml``, which ``tasks.py`` works on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

TASKS = Path(__file__).resolve().with_name("tasks.yaml")
RANDOM = "random"  # the start that is none


@dataclass(frozen=True)
class Task:
    """A property: see ``tasks.yaml``, whose keys of other names are ``settings``."""

    name: str
    table: str
    column: str
    target: str
    unit: str = ""
    conversion: str = ""
    is_class: bool = False
    log: bool = False
    fold: str = "matbench_fold"
    starts: tuple[str, ...] = (RANDOM,)
    without: tuple[str, ...] = ()
    matbench: str = ""
    tested_fold: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def in_log10(self) -> bool:
        """Whether errors are those of decimal logarithms, which the table holds."""
        return self.conversion == "power_of_ten"

    @property
    def measure(self) -> str:
        """The score by which starts are compared, the lower the better."""
        return "log_loss" if self.is_class else "mae_log10" if self.in_log10 else "mae"


def read_tasks(path: Path = TASKS) -> dict[str, Task]:
    """Read the properties, sorted so that each comes after those that it may start from.

    Raises:
        ValueError: A start is no property, or starts from itself; names it.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    own = {f.name for f in fields(Task)} - {"name", "settings", "tested_fold"}
    words = {"as": "conversion", "class": "is_class"}
    tasks: dict[str, Task] = {}
    for name, entry in content["tasks"].items():
        entry = {words.get(key, key): value for key, value in entry.items()}
        known = {key: value for key, value in entry.items() if key in own}
        known |= {k: tuple(known[k]) for k in ("starts", "without") if k in known}
        settings = content["every"] | {k: v for k, v in entry.items() if k not in own}
        tasks[name] = Task(name, **known, tested_fold=content["fold"], settings=settings)
    order: dict[str, Task] = {}
    while len(order) < len(tasks):
        ready = [t for t in tasks.values() if set(t.starts) <= {RANDOM, *order}]
        new = [task for task in ready if task.name not in order]
        if not new:
            stuck = next(t for t in tasks.values() if t.name not in order)
            raise ValueError(f"{path}: {stuck.name} starts from {', '.join(stuck.starts)}")
        order |= {task.name: task for task in new}
    return order
