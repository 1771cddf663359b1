"""The predictions that a run leaves in ``predictions.csv``, and their scores."""

from __future__ import annotations

import csv
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from sitenet.inference.metrics import class_scores, regression_scores, roc_auc


@dataclass(frozen=True)
class Predictions:
    """Predictions of one target for crystals of one split.

    Attributes:
        split: "test", "valid" or "train".
        ids: (crystals,) str.
        truth: (crystals,) true values.
        predicted: (crystals,).
        low: (crystals,) lower ends of the intervals; NaN where there are none.
        high: (crystals,) upper ends.
        like_training: (crystals,) bool.
    """

    split: str
    ids: np.ndarray
    truth: np.ndarray
    predicted: np.ndarray
    low: np.ndarray
    high: np.ndarray
    like_training: np.ndarray

    @classmethod
    def read(cls, path: Path, target: str) -> Predictions:
        """Read the test crystals, or the only split that there is."""
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        split = "test" if any(row["split"] == "test" for row in rows) else rows[0]["split"]
        rows = [row for row in rows if row["split"] == split and row[target]]

        def numbers(name: str) -> np.ndarray:
            return np.array([float(row.get(name) or "nan") for row in rows])

        return cls(
            split,
            np.array([row["id"] for row in rows]),
            *map(numbers, (target, *(f"{target}_{x}" for x in ("predicted", "low", "high")))),
            np.array([row["like_training"] == "yes" for row in rows], dtype=bool),
        )

    @property
    def covered(self) -> np.ndarray:
        """Whether the interval holds the true value, (crystals,): 0, 1, or NaN without one."""
        inside = (self.low <= self.truth) & (self.truth <= self.high)
        return np.where(np.isfinite(self.low), inside, np.nan)

    def only(self, ids: Collection[str]) -> Predictions:
        """The crystals with these ids."""
        chosen = np.array([name in ids for name in self.ids], dtype=bool)
        columns = {k: v[chosen] for k, v in vars(self).items() if isinstance(v, np.ndarray)}
        return replace(self, **columns)

    def scores(self, is_class: bool, log: bool) -> dict[str, float]:
        """Count the crystals, and compute their errors and the share of intervals that hold.

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
            scores["coverage"] = float(np.nanmean(self.covered))
        return scores

    def cells(self, chosen: np.ndarray) -> tuple[str, ...]:
        """Format the count, errors and coverage of some crystals as cells of a table.

        Args:
            chosen: (crystals,) bool.
        """
        if not chosen.any():
            return ("0", "", "", "")
        error = self.predicted[chosen] - self.truth[chosen]
        mean = f"{np.abs(error).mean():.3f}", f"{error.mean():+.3f}"
        share = self.covered[chosen].mean()
        return (str(int(chosen.sum())), *mean, f"{share:.0%}" if np.isfinite(share) else "")
