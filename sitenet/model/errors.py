"""Errors on validation crystals, and what they say of a new prediction: an interval, the
probability that the property is exactly zero, and that it lies in a range.

Intervals are Mondrian conformal (Vovk et al., *Algorithmic Learning in a Random World*, 2005): the
validation crystals are cut into bins of equal numbers by predicted value, and each bin has the
quantile of its own residuals, so that the stated coverage holds in every bin. Residuals are taken
in units of an ensemble's spread plus a constant.

Where many true values are exactly zero, as the gaps of metals, two questions are asked in turn: is
it zero (isotonic regression on the prediction before the last activation, in units of its spread),
and if not, what is it (a conformal predictive system, Vovk et al., *Machine Learning* 108, 445,
2019, on the other crystals' residuals, by bin again).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sitenet.model.familiarity import need_arrays

LEAST = 250  # validation crystals per bin: a coverage of 90 % then has a standard error of 1.9 %
BINS = 10  # at most
FLOOR = (
    4.0  # mean spreads added to an ensemble's spread; narrowest intervals on both shipped models
)
ZEROS = 0.05  # share of true values that are exactly zero from which on zero is a case of its own
KEPT = 20_000  # validation crystals at most, chosen at random


@dataclass(eq=False)
class Outputs:
    """A model's outputs for some crystals, on the scales that are learned; every array is
    (crystals, targets).

    Attributes:
        values: Properties.
        raw: Properties before the last activation; an ensemble's mean.
        spread: Standard deviation over an ensemble's members; None for a single model.
    """

    values: np.ndarray
    raw: np.ndarray
    spread: np.ndarray | None

    def take(self, rows: np.ndarray) -> Outputs:
        """The outputs for some of the crystals."""
        spread = None if self.spread is None else self.spread[rows]
        return Outputs(self.values[rows], self.raw[rows], spread)


@dataclass(eq=False)
class Errors:
    """Outputs and true values of the validation crystals.

    Attributes:
        outputs: Of the model.
        truth: (crystals, targets), NaN where unknown, and for classes.
    """

    outputs: Outputs
    truth: np.ndarray

    def __post_init__(self) -> None:
        self._targets = [_Target(self, k) for k in range(self.truth.shape[1])]

    @classmethod
    def of(cls, outputs: Outputs, truth: np.ndarray, seed: int = 0) -> Errors:
        """Keep at most KEPT crystals, which are chosen at random."""
        if len(truth) > KEPT:
            rows = np.random.default_rng(seed).choice(len(truth), KEPT, replace=False)
            outputs, truth = outputs.take(rows), truth[rows]
        return cls(outputs, truth)

    @property
    def is_binned(self) -> bool:
        """Whether the crystals suffice for two bins or more in every target."""
        return all(target.bins.count > 1 for target in self._targets)

    def half_width(self, coverage: float, outputs: Outputs) -> np.ndarray:
        """Half the width of each interval, (crystals, targets); infinite where a bin has too few
        crystals for this coverage.

        Args:
            coverage: Share of new crystals whose true value the interval should hold, in (0, 1).
            outputs: For the new crystals.
        """
        return np.stack([t.half_width(coverage, outputs) for t in self._targets], 1)

    def zero_probability(self, outputs: Outputs) -> np.ndarray:
        """Probability that each property is exactly zero, (crystals, targets); NaN for targets
        that are rarely zero."""
        return np.stack([t.zero_probability(outputs) for t in self._targets], 1)

    @property
    def has_zeros(self) -> np.ndarray:
        """Which targets are often exactly zero, (targets,) bool."""
        return np.array([target.has_zeros for target in self._targets], dtype=bool)

    def below(self, target: int, bound: float, outputs: Outputs, or_equal: bool) -> np.ndarray:
        """Probability that a property is below a bound, (crystals,).

        Args:
            target: Number of the property.
            bound: On the scale that is learned.
            outputs: For the new crystals.
            or_equal: Whether the bound itself counts; it matters at zero.

        Raises:
            ValueError: No validation crystal has a true value.
        """
        return self._targets[target].below(bound, outputs, or_equal)

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All values by name; ``from_arrays`` takes them back."""
        arrays = {"truth": self.truth, **vars(self.outputs)}
        return {name: array for name, array in arrays.items() if array is not None}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], num_targets: int) -> Errors:
        """Build it from what ``to_arrays`` gave.

        Raises:
            ValueError: An array is missing, unknown or of a wrong shape; names it.
        """
        shape = (arrays["truth"].shape[0] if arrays["truth"].ndim else None, num_targets)
        names = ("truth", "values", "raw", "spread")
        need_arrays(arrays, dict.fromkeys(names, shape), optional={"spread"})
        outputs = Outputs(arrays["values"], arrays["raw"], arrays.get("spread"))
        return cls(outputs, arrays["truth"])


class _Bins:
    """Bins of equal numbers of crystals, by a key."""

    def __init__(self, key: np.ndarray) -> None:
        count = int(np.clip(len(key) // LEAST, 1, BINS))
        inner = np.linspace(0, 1, count + 1)[1:-1]
        self.edges = np.unique(np.quantile(key, inner)) if count > 1 else np.empty(0)
        self.count = len(self.edges) + 1

    def __call__(self, key: np.ndarray) -> np.ndarray:
        """The bin of each key; an edge belongs to the bin above."""
        return np.searchsorted(self.edges, key, side="right")

    def sorted_parts(self, key: np.ndarray, values: np.ndarray) -> list[np.ndarray]:
        """The values of each bin in ascending order."""
        which = self(key)
        return [np.sort(values[which == b]) for b in range(self.count)]


class _Target:
    """The errors of one target."""

    def __init__(self, errors: Errors, number: int) -> None:
        self.number = number
        truth = errors.truth[:, number]
        known = np.isfinite(truth)
        outputs, truth = errors.outputs.take(known), truth[known]
        spread = outputs.spread
        mean = 0.0 if spread is None or not len(truth) else spread[:, number].mean()
        self.floor = FLOOR * mean if mean > 0 else 1.0
        values, raw, scale = self._columns(outputs)
        self.bins = _Bins(raw)
        self.residuals = self.bins.sorted_parts(raw, np.abs(truth - values) / scale)
        zero = truth == 0
        self.has_zeros = bool(len(truth) and truth.min() == 0 and zero.mean() >= ZEROS)
        if self.has_zeros:
            self.keys, self.shares = _isotonic(-raw / scale, zero)
            values, raw, scale, truth = (x[~zero] for x in (values, raw, scale, truth))
        self.other_bins = _Bins(raw)
        self.signed = self.other_bins.sorted_parts(raw, (truth - values) / scale)

    def _columns(self, outputs: Outputs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Value, raw value and scale of errors of each crystal."""
        k = self.number
        spread = 0.0 if outputs.spread is None else outputs.spread[:, k]
        raw = outputs.raw[:, k]
        return outputs.values[:, k], raw, np.broadcast_to(spread + self.floor, raw.shape)

    def half_width(self, coverage: float, outputs: Outputs) -> np.ndarray:
        _, raw, scale = self._columns(outputs)
        quantiles = np.full(self.bins.count, np.inf)
        for b, residuals in enumerate(self.residuals):
            rank = int(np.ceil(round((len(residuals) + 1) * coverage, 9)))
            if rank <= len(residuals):
                quantiles[b] = residuals[rank - 1]
        return quantiles[self.bins(raw)] * scale

    def zero_probability(self, outputs: Outputs) -> np.ndarray:
        _, raw, scale = self._columns(outputs)
        if not self.has_zeros:
            return np.full(len(raw), np.nan)
        return np.interp(-raw / scale, self.keys, self.shares)

    def below(self, bound: float, outputs: Outputs, or_equal: bool) -> np.ndarray:
        values, raw, scale = self._columns(outputs)
        if not sum(map(len, self.signed)) and not self.has_zeros:
            raise ValueError("no validation crystal has a true value to judge by")
        if np.isinf(bound):
            return np.full(len(raw), float(bound > 0))
        share = self._share(bound, values, raw, scale)
        if not self.has_zeros:
            return share
        zero = self.zero_probability(outputs)
        at_zero = self._share(0.0, values, raw, scale)  # of the others, none is below zero
        positive = np.clip((share - at_zero) / np.maximum(1 - at_zero, 1e-9), 0, 1)
        if bound < 0 or (bound == 0 and not or_equal):
            return np.zeros(len(raw))
        return zero + (1 - zero) * (positive if bound > 0 else 0.0)

    def _share(
        self, bound: float, values: np.ndarray, raw: np.ndarray, scale: np.ndarray
    ) -> np.ndarray:
        """The share of residuals of the crystal's bin that lead to a value below the bound; half of
        those that lead to it, and half a crystal for the new one itself."""
        which, x = self.other_bins(raw), (bound - values) / scale
        share = np.empty(len(x))
        for b, residuals in enumerate(self.signed):
            here = which == b
            less = np.searchsorted(residuals, x[here], side="left")
            equal = np.searchsorted(residuals, x[here], side="right") - less
            share[here] = (less + (equal + 1) / 2) / (len(residuals) + 1)
        return share


def _isotonic(key: np.ndarray, hit: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Isotonic regression by pooling adjacent violators.

    Each pool counts half a hit and half a miss extra, so that no probability is 0 or 1.

    Args:
        key: (crystals,) rising with the probability.
        hit: (crystals,) whether it happened.

    Returns:
        Mean key and probability of each pool, ascending; between them, interpolate.
    """
    order = np.argsort(key, kind="stable")
    pools: list[list[float]] = []  # crystals, hits, sum of keys
    for k, h in zip(key[order].tolist(), hit[order].tolist(), strict=True):
        pools.append([1.0, float(h), k])
        while len(pools) > 1 and pools[-2][1] * pools[-1][0] >= pools[-1][1] * pools[-2][0]:
            last = pools.pop()
            pools[-1] = [a + b for a, b in zip(pools[-1], last, strict=True)]
    count, hits, total = np.array(pools).T
    return total / count, np.maximum.accumulate((hits + 0.5) / (count + 1))
