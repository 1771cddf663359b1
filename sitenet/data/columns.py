"""What the columns of a table mean: ids, splits, targets, or nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sitenet.data.failures import UnclearTarget, printable
from sitenet.data.source import Record

ID_COLUMNS = ("id", "file", "material_id", "mpid", "jid", "name", "index")
SPLIT_COLUMNS = ("split", "matbench_fold")
# Cells without a value, in any case.
MISSING = {
    *("", "na", "n/a", "#n/a", "n.a.", "nan", "none", "null", "n.d.", "nd", "-", "--", "\u2013"),
    *("\u2014", "?", "*", ".", "unknown", "missing", "not determined", "not available"),
}
# Row numbers that pandas, R and spreadsheets write beside a table.
_INDEX = re.compile(r"unnamed: ?\d+(_level_\d+)?|__index_level_\d+__|level_\d+|index|#|", re.I)


def is_index(name: str) -> bool:
    """Whether a column holds row numbers, by its name."""
    return _INDEX.fullmatch(name.strip()) is not None


def column_called(names: Sequence[str], *choices: str) -> str | None:
    """The first of the choices that is a column's name, in any case."""
    by_name = {name.lower(): name for name in reversed(names)}
    return next((by_name[choice] for choice in choices if choice in by_name), None)


def may_be_target(name: str) -> bool:
    """Whether a column may hold a property, by its name."""
    lower = name.strip().lower()
    return lower not in ID_COLUMNS and lower not in SPLIT_COLUMNS and not is_index(name)


def choose_targets(
    available: Sequence[str], wanted: Sequence[str] | None, where: Path | str
) -> tuple[str, ...]:
    """The targets asked for, or the only one there is.

    A column that is called by a number is only taken where it is asked for.

    Raises:
        ValueError: there is no such target, or there are several and none is asked for.
    """
    if wanted is None:
        if len(available) == 1 and number(available[0]) is None:
            return tuple(available)
        raise UnclearTarget(available, str(where))
    missing = [name for name in wanted if name not in available]
    if missing:
        listed = ", ".join(available) or "none"
        raise ValueError(f"{where}: no target {', '.join(missing)}; there is {listed}")
    return tuple(dict.fromkeys(wanted))


class Columns:
    """What the columns of a table mean, and so which record a row becomes.

    Args:
        path: of the table.
        names: of all columns.
        kind: of the records.
        targets: the columns to predict.
        split: the column that says which split or fold a row is in; None takes a usual one.

    Raises:
        ValueError: there is no such split column.
    """

    def __init__(
        self,
        path: Path,
        names: Sequence[str],
        kind: str,
        targets: Sequence[str],
        split: str | None,
    ) -> None:
        if split is not None and split not in names:
            raise ValueError(f"{path}: no column {split!r}; there is {', '.join(names)}")
        self.path, self.kind, self.targets = path, kind, targets
        self.identity = identity_of(names)
        self.split = split or column_called(names, *SPLIT_COLUMNS)

    def record(self, row: int, cells: Mapping[str, Any], content: Any, block: str = "") -> Record:
        """The record of a row with this structure."""
        where = printable(f"{self.path} row {row}")
        name = cells.get(self.identity) if self.identity else None
        split = cells.get(self.split) if self.split else None
        return Record(
            str(row) if name is None else printable(str(name).strip()),
            where,
            self.kind,
            content,
            tuple(_value(cells.get(c), c, where) for c in self.targets),
            "" if split is None else str(split).strip(),
            block,
        )


def identity_of(names: Sequence[str]) -> str | None:
    """The column with the ids: one with a usual name, else the row labels that pandas wrote."""
    named = column_called(names, *ID_COLUMNS)
    labels = (x for k, x in enumerate(names) if is_index(x) and (k == 0 or x.startswith("__")))
    return named or next(labels, None)


def number(cell: Any) -> float | None:
    """The number in a cell, NaN if it is empty; None if it holds something else."""
    if isinstance(cell, str):
        cell = cell.strip().lower()
        cell = {"true": 1, "false": 0}.get(cell, math.nan if cell in MISSING else cell)
        if isinstance(cell, str) and "_" in cell:  # Python reads 1_5 as 15
            return None
    try:
        return math.nan if cell is None else float(cell)
    except (TypeError, ValueError):
        return None


def _value(cell: Any, column: str, where: str) -> float:
    """A target's value, NaN where it is missing."""
    value = number(cell)
    if value is None or math.isinf(value):
        raise ValueError(f"{where}: expected a number for {column}, got {cell!r}")
    return value


def is_numeric(cells: Sequence[Any]) -> bool:
    """Whether a column holds numbers; a few wrong cells are an error that names them later."""
    values = [number(cell) for cell in cells]
    numbers = sum(x is not None and not math.isnan(x) for x in values)
    return numbers > values.count(None)
