"""Random rounding of expected counts to whole ones: without bias, and balanced.

The cube method of Deville and Tillé (Biometrika 91, 893, 2004): the fractional parts walk at random
inside the unit cube, along directions that leave the balanced sums unchanged, until they reach a
corner. Every step has mean zero, so the expectation of each count is kept exactly.
"""

from __future__ import annotations

import numpy as np

WHOLE = 1e-9  # distance to a whole number that counts as none


def rounded_counts(
    expected: np.ndarray, sums: np.ndarray, samples: int, rng: np.random.Generator
) -> np.ndarray:
    """Round expected counts up or down at random, many times.

    Args:
        expected: (n,) expected counts, at least 0.
        sums: (m, n) one row per weighted sum of the counts that should keep its value. The first
            ones are kept longest: where not all can be, the last are given up.
        samples: how many times.
        rng: source of randomness.

    Returns:
        (samples, n) int64, each the floor or the ceiling of the expected count, which is its mean.
    """
    low = np.floor(expected + WHOLE)
    parts = np.tile(np.clip(expected - low, 0, 1), (samples, 1))
    directions: dict[tuple[int, bytes], np.ndarray | None] = {}
    for part in parts:
        kept = len(sums)
        while True:
            is_free = (part > WHOLE) & (part < 1 - WHOLE)
            if not is_free.any():
                break
            key = kept, is_free.tobytes()
            if key not in directions:
                directions[key] = _direction(sums[:kept, is_free])
            direction = directions[key]
            if direction is None:
                kept -= 1
                continue
            free = part[is_free]
            up, down = _room(free, direction), _room(free, -direction)
            step = up if rng.random() < down / (up + down) else -down
            part[is_free] = np.clip(free + step * direction, 0, 1)
    return (low + np.round(parts)).astype(np.int64)


def _direction(sums: np.ndarray) -> np.ndarray | None:
    """A direction that changes none of the sums; None if every one does."""
    if not len(sums):
        return np.eye(sums.shape[1])[0]
    scale = np.linalg.norm(sums, axis=1)
    sums = sums[scale > 0] / scale[scale > 0, None]
    _, values, vectors = np.linalg.svd(sums)
    rank = int((values > 1e-9).sum())
    return vectors[-1] if rank < sums.shape[1] else None


def _room(part: np.ndarray, direction: np.ndarray) -> float:
    """How far a point inside the unit cube can move in a direction."""
    moving = abs(direction) > 1e-12
    ends = np.where(direction > 0, 1 - part, part)
    return float((ends[moving] / abs(direction[moving])).min())
