"""Screening: crystals ranked by the probability that they meet a condition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import sitenet
from sitenet.data.dataset import LeftOut, write_left_out
from sitenet.inference.conditions import Range, parse_condition
from sitenet.inference.predict_chunks import PROBABILITY
from sitenet.inference.predict_files import predict_files
from sitenet.inference.table import COVERAGE, Row
from sitenet.model.ensemble import Model
from sitenet.model.sitenet import Target
from sitenet.system.files import cell_text, writable_folder, write_csv

RANKING, LEFT_OUT, REPORT = "ranking.csv", "left_out.csv", "report.html"
SHARE = 0.8  # of the expected hits, whose number of crystals the summary gives


@dataclass(eq=False)
class Screening:
    """Crystals ranked by the probability that they meet a condition.

    Attributes:
        where: The condition.
        ranges: What it asks of each property.
        targets: What the model predicts.
        coverage: Share of true values that the intervals should hold.
        header: Columns of the table: ``id``, ``probability``, then those of ``predict``.
        rows: Rows of the table, the most probable first.
        left_out: Crystals that could not be used.
    """

    where: str
    ranges: list[Range]
    targets: list[Target]
    coverage: float
    header: list[str]
    rows: list[Row]
    left_out: list[LeftOut]

    @property
    def probabilities(self) -> np.ndarray:
        """(crystals,) of meeting the condition, in descending order."""
        place = self.header.index(PROBABILITY)
        return np.array([row[place] for row in self.rows], dtype=np.float64)

    def column(self, name: str) -> list[Any]:
        """The cells of a column, by its name."""
        place = self.header.index(name)
        return [row[place] for row in self.rows]

    def first_with(self, share: float = SHARE) -> int:
        """How many crystals from the top hold this share of those expected to meet the
        condition."""
        total = np.cumsum(self.probabilities)
        if not len(total) or total[-1] <= 0:
            return 0
        return int(np.searchsorted(total, share * total[-1] * (1 - 1e-12))) + 1

    def summary(self) -> str:
        """How many crystals are expected to meet the condition, and where they are."""
        total, count = self.probabilities.sum(), len(self.rows)
        line = f"{total:.3g} of {count} crystals are expected to meet: {self.where}"
        if total > 0:
            line += f"; {SHARE:.0%} of these are among the first {self.first_with()}"
        return line

    def write(self, folder: str | Path, report: bool = True) -> None:
        """Write ``ranking.csv``, ``left_out.csv`` and ``report.html`` into a folder.

        Args:
            folder: It may exist.
            report: Whether to write the report, which needs plotly.
        """
        folder = writable_folder(folder)
        rows = (list(map(cell_text, row)) for row in self.rows)
        write_csv(folder / RANKING, self.header, rows)
        write_left_out(self.left_out, folder / LEFT_OUT)
        if report:
            self.report(folder / REPORT)

    def report(self, path: str | Path) -> None:
        """Write an HTML page; see ``sitenet.screen_report``."""
        sitenet.screen_report(self, path)


def screen(
    model: Model,
    paths: Sequence[str | Path] | str | Path,
    where: str,
    *,
    coverage: float = COVERAGE,
    **options: Any,
) -> Screening:
    """Rank crystals by the probability that they meet a condition.

    Args:
        model: A calibrated SiteNet or Ensemble.
        paths: Structure files, folders and tables, as in ``predict_files``.
        where: Comparisons of properties with numbers, joined with ``and``:
            ``"band_gap_eV between 1.1 and 1.7"``, ``"band_gap_eV > 0 and band_gap_eV <= 3"``.
        coverage: Share of true values that the intervals of the table should hold.
        options: Further options of ``predict_files``, but ``out``.

    Raises:
        ValueError: The condition cannot be read or names no property of the model; the model keeps
            no errors on validation crystals; a path is none of the above.
        FileNotFoundError: There is no such path.
    """
    ranges = parse_condition(where, model.targets)
    if model.calibration is None or model.calibration.errors is None:
        raise ValueError("the model keeps no errors on validation crystals to judge by")
    paths = [paths] if isinstance(paths, (str, Path)) else paths
    outcome = predict_files(model, paths, coverage=coverage, where=where, **options)
    place = outcome.header.index(PROBABILITY)
    rows = sorted(outcome.rows, key=lambda row: -float(row[place] or 0))
    targets, header, left_out = model.targets, outcome.header, outcome.left_out
    return Screening(where, ranges, targets, coverage, header, rows, left_out)
