"""Predictions as text of 80 columns: a line per value, and what is doubtful below it."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from sitenet.data.failures import LeftOut
from sitenet.data.units import titled
from sitenet.inference.table import Joined, Prediction

if TYPE_CHECKING:
    from sitenet.model.sitenet import Target

WIDTH = 80
SHOWN = 30  # rows that ``print(table)`` shows of a longer table
LONGEST = 20  # characters of formulas and titles; longer ones are cut in their middle
SHORTEST_ID = 12  # characters that every id may have
ID, FORMULA, PROPERTY, VALUE, LOW, HIGH, FLAG = range(7)  # cells of a line

Line = tuple[str, ...]


def flag_and_reason(row: Prediction | LeftOut) -> tuple[str, str]:
    """What to think of a row in a word, and why; see ``PredictionTable``."""
    if isinstance(row, LeftOut):
        return "failed", row.reason
    reason = "; ".join(filter(None, (row.unlike, row.warnings)))
    if row.unlike:
        return "unlike", reason
    if row.warnings:
        return "doubtful", reason
    return "" if row.unlike is None else "ok", ""


def table_text(
    rows: Sequence[Prediction | Joined | LeftOut],
    targets: Sequence[Target],
    width: int = WIDTH,
    most: int | None = None,
) -> str:
    """Lay out predictions in lines of at most ``width`` characters.

    Args:
        rows: Predictions, and what could not be used.
        targets: What the model predicts, or several models in their order; several targets take a
            line each.
        width: Columns of the terminal, at least 80 for all columns to fit.
        most: Rows to show; None shows all.
    """
    shown = rows[:most]
    lines = [line for row in shown for line in _with_reasons(row, targets)]
    header = _header(targets, has_intervals=any(line[HIGH] for line, _ in lines))
    columns = _columns([header, *(line for line, _ in lines)], width)
    texts = [_laid_out(header, columns)]
    for line, reason in lines:
        texts.append(_laid_out(line, columns))
        if reason:
            texts.append(textwrap.fill(reason, width, initial_indent="  ", subsequent_indent="  "))
    if len(rows) > len(shown):
        texts.append(f"... and {len(rows) - len(shown):,} more")
    return "\n".join(texts)


def _columns(lines: Sequence[Line], width: int) -> dict[int, int]:
    """Width per column that is shown; ids give way to the others, and formulas to ids."""
    header = lines[0]
    widths = {k: max(len(line[k]) for line in lines) for k, name in enumerate(header) if name}
    room = width - sum(widths[k] + 2 for k in widths if k != ID)
    if room < SHORTEST_ID:
        room += widths.pop(FORMULA) + 2
    widths[ID] = min(widths[ID], max(room, SHORTEST_ID))
    return widths


def _laid_out(line: Line, columns: Mapping[int, int]) -> str:
    texts = [
        _cut(line[k], width).rjust(width)
        if VALUE <= k <= HIGH
        else _cut(line[k], width).ljust(width)
        for k, width in columns.items()
    ]
    return "  ".join(texts).rstrip()


def _header(targets: Sequence[Target], has_intervals: bool) -> Line:
    """Titles of the columns; empty for those that are not shown."""
    (first, *others) = targets
    value = "value" if others else _title(first)
    low, high = ("low", "high") if has_intervals else ("", "")
    return ("id", "formula", "property" if others else "", value, low, high, "flag")


def _with_reasons(
    row: Prediction | Joined | LeftOut, targets: Sequence[Target]
) -> list[tuple[Line, str]]:
    """Lines of a row, and the text below each: of several models, each with its own flag, and a
    reason that they share once."""
    if not isinstance(row, Joined):
        *before, last = _lines(row, targets)
        return [*((line, "") for line in before), (last, flag_and_reason(row)[1])]
    lines: list[tuple[Line, str]] = []
    names, said, remaining = (row.id, _cut(row.formula, LONGEST)), set(), iter(targets)
    for result, count in zip(row.results, row.counts, strict=True):
        mine = list(itertools.islice(remaining, count))
        reason = flag_and_reason(result)[1]
        each = [line[PROPERTY:] for line in _lines(result, mine)]
        if isinstance(result, LeftOut):
            each = [(_title(target), *each[0][1:]) for target in mine]
        each = [(*names, *cells) for cells in each[:1]] + [("", "", *cells) for cells in each[1:]]
        below = [""] * (len(each) - 1) + ["" if reason in said else reason]
        lines += zip(each, below, strict=True)
        names = "", ""
        said.add(reason)
    return lines


def _lines(row: Prediction | LeftOut, targets: Sequence[Target]) -> list[Line]:
    """Cells of a row: a line per target."""
    if isinstance(row, LeftOut):
        return [(row.id, "", "", "", "", "", "failed")]
    names, flag = (row.id, _cut(row.formula, LONGEST)), flag_and_reason(row)[0]
    lines = []
    for k, target in enumerate(targets):
        numbers = [number_text(x) for x in (row.values[k], row.low[k], row.high[k])]
        lines.append((*names, _title(target), *numbers, flag))
        names, flag = ("", ""), ""
    return lines


def _title(target: Target) -> str:
    return _cut(titled(target.name, target.unit), LONGEST)


def number_text(x: float | None) -> str:
    """A number with three decimals, or three digits where that is too coarse or too long."""
    if x is None:
        return ""
    return f"{x:.3f}" if x == 0 or 0.01 <= abs(x) < 10_000 else f"{x:.3g}"


def _cut(text: str, longest: int) -> str:
    """A text with its middle left out if it is too long: files often differ at their ends."""
    if len(text) <= longest:
        return text
    end = (longest - 1) // 2
    return f"{text[: longest - 1 - end]}…{text[len(text) - end :]}"
