"""The simple rival: ridge regression on the encodings of a model that was trained on something
else. Its strength is chosen on the validation crystals."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from sitenet.inference.metrics import class_scores, regression_scores

STRENGTHS = 10.0 ** np.arange(-6, 5)  # of the penalty, per training crystal


def ridge(
    x: np.ndarray, y: np.ndarray, strengths: np.ndarray = STRENGTHS
) -> tuple[np.ndarray, np.ndarray]:
    """Fit y = x w + b with the penalty strength * n * |w|², in closed form.

    Args:
        x: (crystals, features), which are standardised here.
        y: (crystals,).
        strengths: (strengths,).

    Returns:
        The weights of the features as they are, (features, strengths), and b, (strengths,).
    """
    x, mean, scale = x.astype(np.float64), x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
    scale = np.where(scale > 1e-9 * scale.max(initial=0), scale, np.inf)
    z = (x - mean) / scale
    values, vectors = np.linalg.eigh(z.T @ z / len(z))
    projected = vectors.T @ (z.T @ (y - y.mean())) / len(z)
    w = vectors @ (projected[:, None] / (np.maximum(values, 0)[:, None] + strengths))
    w /= scale[:, None]
    return w, y.mean() - mean @ w


def ridge_scores(
    x: np.ndarray,
    y: np.ndarray,
    parts: Mapping[str, np.ndarray],
    is_class: bool,
    shown: Callable[[np.ndarray], np.ndarray] | None = None,
) -> dict[str, Any]:
    """Fit on the training crystals, choose the strength on the validation crystals, and test.

    Args:
        x: (crystals, features).
        y: (crystals,) on the scale that a model would learn.
        parts: Numbers of the crystals that "train", "valid" and "test".
        is_class: Whether y is 0 or 1; the fit is then a score of class 1, not a probability.
        shown: Converts y to the scale on which errors are measured; None measures them on its own.

    Returns:
        ``valid``, the error that chose (mean absolute error, or 1 - ROC AUC), ``test`` with all
        measures, and ``strength``.
    """
    w, b = ridge(x[parts["train"]], y[parts["train"]])
    predicted = x @ w + b

    def scores(part: str, k: int) -> dict[str, float]:
        true, own = y[parts[part]], predicted[parts[part], k]
        if is_class:
            return class_scores(true, own)
        if shown is not None:
            true, own = shown(true), shown(own)
        return regression_scores(true, own)

    errors = [
        1 - s["roc_auc"] if is_class else s["mae"]
        for s in (scores("valid", k) for k in range(len(STRENGTHS)))
    ]
    best = int(np.argmin(errors))
    test = scores("test", best)
    kept = ("crystals", "roc_auc") if is_class else ("crystals", "mae", "rmse", "r2")
    return {
        "valid": errors[best],
        "test": {name: test[name] for name in kept},
        "strength": float(STRENGTHS[best]),
    }
