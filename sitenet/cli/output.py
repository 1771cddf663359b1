"""What commands print: data on standard output, messages on standard error."""

from __future__ import annotations

import csv
import functools
import json
import math
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sitenet.system.distributed import is_first
from sitenet.system.files import cell_text, text_rows
from sitenet.system.progress import Reporter

if TYPE_CHECKING:
    from rich.console import Console


@functools.cache
def _talk() -> Console:
    from rich.console import Console  # takes 30 ms to import

    return Console(stderr=True)


def reporter() -> Reporter:
    """Show progress on standard error, from the first process only."""
    return Reporter(_talk() if is_first() else None)


def say(text: str, **style: Any) -> None:
    """One line on standard error."""
    _talk().print(text, highlight=False, markup=False, soft_wrap=True, **style)


def print_json(content: Any) -> None:
    """JSON on standard output."""
    print(json.dumps(_plain(content)))


def _plain(content: Any) -> Any:
    """For JSON, which knows no NaN and no numpy: None, and Python's own numbers."""
    if isinstance(content, Mapping):
        return {str(k): _plain(v) for k, v in content.items()}
    if isinstance(content, (list, tuple)):
        return [_plain(v) for v in content]
    if isinstance(content, np.generic):
        content = content.item()
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def print_rows(header: Sequence[str], rows: Sequence[Sequence[Any]], as_json: bool) -> None:
    """A table on standard output: for people on a terminal, CSV in a pipe."""
    if as_json:
        print_json([dict(zip(header, row, strict=True)) for row in rows])
        return
    if sys.stdout.isatty():
        print_aligned(header, rows)
    else:
        texts = [list(map(cell_text, row)) for row in rows]
        csv.writer(sys.stdout, lineterminator="\n").writerows([header, *texts])


def print_aligned(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """A table for people: aligned columns, numbers with three digits."""
    texts = [[_short(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *texts, strict=True)]
    numeric = [all(isinstance(row[k], (int, float)) for row in rows) for k in range(len(header))]
    for line in (header, *texts):
        cells = (
            cell.rjust(width) if is_number else cell.ljust(width)
            for cell, width, is_number in zip(line, widths, numeric, strict=True)
        )
        print("  ".join(cells).rstrip())


def _short(cell: Any) -> str:
    if isinstance(cell, float):
        return f"{cell:.3g}" if math.isfinite(cell) else ""
    return "" if cell is None else str(cell)


def print_paragraphs(paragraphs: Sequence[str]) -> None:
    """Text on standard output, wrapped at the terminal's width."""
    width = shutil.get_terminal_size().columns
    for paragraph in paragraphs:
        print(textwrap.fill(paragraph, width, subsequent_indent="  "))


def print_columns(columns: Mapping[str, np.ndarray], as_json: bool) -> None:
    """A table of equally long columns on standard output."""
    rows = list(zip(*(column.tolist() for column in columns.values()), strict=True))
    if as_json or sys.stdout.isatty():
        print_rows(list(columns), rows, as_json)
    else:
        print_rows(list(columns), text_rows(columns), False)


def rounded(value: float) -> str:
    """A number with three decimals, or three significant digits where it is small."""
    return f"{value:.3f}" if not abs(value) < 0.1 else f"{value:.3g}"


def print_scores(scores: Mapping[str, Any], targets: Sequence[Any], as_json: bool) -> None:
    """Errors by split and target, on standard output."""
    if as_json:
        print_json(scores)
        return
    from sitenet.data.units import titled

    titles = {t.name: titled(t.name, t.unit) for t in targets}
    for split, by_target in scores.items():
        for name, values in by_target.items():
            title, crystals = titles.get(name, name), values["crystals"]
            if "mae" not in values:
                rest = ", ".join(f"{k} {rounded(v)}" for k, v in values.items() if k != "crystals")
                print(f"{split}: {title}: {rest} on {crystals} crystals")
                continue
            line = f"{split}: {title}: MAE {rounded(values['mae'])}"
            if "mae_log10" in values:
                line += f" ({rounded(values['mae_log10'])} in log10)"
            for key, constant in (("mae_of_mean", "mean"), ("mae_of_median", "median")):
                if key in values:
                    line += f", {rounded(values[key])} if predicting the {constant}"
            line += (
                f"; RMSE {rounded(values['rmse'])}, R2 {values['r2']:.3f} on {crystals} crystals"
            )
            if "coverage" in values:
                line += f"; {values['coverage']:.0%} within ±{rounded(values['interval'])}"
            print(line)
