"""Scores of a tested model, on all test crystals or on some of them."""

from __future__ import annotations

import csv
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sitenet.inference.metrics import class_scores, regression_scores, roc_auc


@dataclass(frozen=True)
class Tested:
    """Predictions of the test crystals, (crystals,) each; intervals are NaN for a class."""

    ids: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    low: np.ndarray
    high: np.ndarray

    @classmethod
    def read(cls, path: Path, target: str) -> Tested:
        """Read the test crystals of a run's ``predictions.csv``."""
        with path.open(newline="", encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == "test" and row[target]]

        def numbers(name: str) -> np.ndarray:
            return np.array([float(row.get(name) or "nan") for row in rows])

        columns = (target, *(f"{target}_{x}" for x in ("predicted", "low", "high")))
        return cls(np.array([row["id"] for row in rows]), *map(numbers, columns))

    def only(self, ids: Collection[str]) -> Tested:
        """The crystals with these ids."""
        chosen = np.array([name in ids for name in self.ids], dtype=bool)
        return Tested(*(x[chosen] for x in vars(self).values()))

    def scores(self, is_class: bool, log: bool) -> dict[str, float]:
        """Their number, errors and the share of true values in their intervals.

        Args:
            is_class: Whether the truth is 0 or 1; ``roc_auc_of_labels`` is then the area under the
                curve as Matbench's leaderboard has it.
            log: Whether to give ``mae_log10``, the error of the decimal logarithm.
        """
        if not len(self.ids):
            return {"crystals": 0}
        if is_class:
            labels = (self.predicted > 0.5).astype(float)
            scores = class_scores(self.truth, self.predicted)
            return scores | {"roc_auc_of_labels": roc_auc(self.truth > 0.5, labels)}
        scores = regression_scores(self.truth, self.predicted)
        if log:
            scores["mae_log10"] = float(np.abs(np.log10(self.predicted / self.truth)).mean())
        if np.isfinite(self.low).any():
            covered = (self.low <= self.truth) & (self.truth <= self.high)
            scores["coverage"] = float(covered.mean())
        return scores
