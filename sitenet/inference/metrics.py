"""Errors of predictions. Crystals without a true value are left out; a prediction that is not a
number makes the errors NaN."""

from __future__ import annotations

import numpy as np

BINS = 10  # ranges of probability


def regression_scores(truth: np.ndarray, predicted: np.ndarray) -> dict[str, float]:
    """Compute errors of predicted values.

    Args:
        truth: (crystals,), NaN where missing.
        predicted: (crystals,) in the same unit.

    Returns:
        ``crystals`` (with a known value), ``mae``, ``rmse``, ``max_error`` and ``r2`` (NaN if
        all true values are equal).
    """
    known = np.isfinite(truth)
    x, y = truth[known], predicted[known]
    if not len(x):
        return {"crystals": 0, "mae": np.nan, "rmse": np.nan, "max_error": np.nan, "r2": np.nan}
    error = np.abs(y - x)
    spread = np.square(x - x.mean()).sum()
    return {
        "crystals": len(x),
        "mae": float(error.mean()),
        "rmse": float(np.sqrt(np.square(error).mean())),
        "max_error": float(error.max()),
        "r2": float(1 - np.square(error).sum() / spread) if spread > 0 else np.nan,
    }


def class_scores(truth: np.ndarray, probability: np.ndarray) -> dict[str, float]:
    """Compute errors of predicted probabilities of class 1.

    Args:
        truth: (crystals,) 0 or 1, NaN where missing.
        probability: (crystals,) in [0, 1].

    Returns:
        ``crystals`` (with a known class), ``roc_auc`` (NaN if only one class occurs),
        ``accuracy``, ``f1``, ``log_loss`` and ``calibration_error`` (expected calibration error
        over BINS equal ranges of probability).
    """
    known = np.isfinite(truth)
    x, p = truth[known] > 0.5, probability[known]
    if not len(x) or np.isnan(p).any():
        names = ("roc_auc", "accuracy", "f1", "log_loss", "calibration_error")
        return {"crystals": len(x)} | dict.fromkeys(names, np.nan)
    called = p > 0.5
    hits = (called & x).sum()
    clipped = np.clip(p, 1e-15, 1 - 1e-15)
    return {
        "crystals": len(x),
        "roc_auc": roc_auc(x, p),
        "accuracy": float((called == x).mean()),
        "f1": float(2 * hits / max(called.sum() + x.sum(), 1)),
        "log_loss": float(-np.log(np.where(x, clipped, 1 - clipped)).mean()),
        "calibration_error": _calibration_error(x, p),
    }


def _calibration_error(truth: np.ndarray, probability: np.ndarray) -> float:
    """The difference of mean probability and share of class 1 in a range of probability, absolute,
    averaged over ranges by their numbers of crystals."""
    place = np.minimum((probability * BINS).astype(int), BINS - 1)
    surplus = np.bincount(place, probability - truth, BINS)
    return float(np.abs(surplus).sum() / len(truth))


def roc_auc(truth: np.ndarray, score: np.ndarray) -> float:
    """The probability that a crystal of class 1 scores above one of class 0; ties count half.

    Args:
        truth: (crystals,) bool.
        score: (crystals,).
    """
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = (np.cumsum(count) - (count - 1) / 2)[place]
    ones, zeros = truth.sum(), (~truth).sum()
    if not ones or not zeros:
        return float("nan")
    return float((rank[truth].sum() - ones * (ones + 1) / 2) / (ones * zeros))
