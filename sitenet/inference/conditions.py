"""Conditions on predicted properties, such as ``band_gap_eV between 1.1 and 1.7``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sitenet.model.calibration import outputs
from sitenet.model.sitenet import Target

if TYPE_CHECKING:
    from sitenet.model.ensemble import Model

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_BETWEEN = re.compile(rf"(\S+)\s+between\s+({_NUMBER})\s+and\s+({_NUMBER})", re.IGNORECASE)
_COMPARISON = re.compile(rf"([^\s<>=]+)\s*(>=|<=|>|<)\s*({_NUMBER})")
_AND = re.compile(r"\s+and\s+", re.IGNORECASE)
_FORMS = "NAME > X, NAME >= X, NAME < X, NAME <= X or NAME between X and Y, joined with 'and'"


@dataclass(frozen=True)
class Range:
    """The values of one property that meet a condition.

    Attributes:
        target: Number of the property among the model's targets.
        low: Lower end.
        high: Upper end.
        with_low: Whether the lower end itself counts.
        with_high: Whether the upper end itself counts.
    """

    target: int
    low: float = -math.inf
    high: float = math.inf
    with_low: bool = True
    with_high: bool = True

    def meet(self, other: Range) -> Range:
        """The values that are in both ranges."""
        low, without_low = max((self.low, not self.with_low), (other.low, not other.with_low))
        high, with_high = min((self.high, self.with_high), (other.high, other.with_high))
        return Range(self.target, low, high, not without_low, with_high)

    @property
    def is_empty(self) -> bool:
        """Whether no value is in the range."""
        return self.low > self.high or (
            self.low == self.high and not (self.with_low and self.with_high)
        )


def parse_condition(text: str, targets: Sequence[Target]) -> list[Range]:
    """Read a condition.

    Args:
        text: Comparisons of properties with numbers, joined with ``and``.
        targets: What the model predicts. Only values can be compared, not classes.

    Returns:
        One range per property that the condition names.

    Raises:
        ValueError: A part cannot be read, names no property of the model, or contradicts the
            others; says which.
    """
    names = {target.name: k for k, target in enumerate(targets) if target.kind == "value"}
    ranges: dict[int, Range] = {}
    rest = text.strip()
    if not rest:
        raise ValueError(f"the condition is empty; expected {_FORMS}")
    while True:
        match = _BETWEEN.match(rest) or _COMPARISON.match(rest)
        end = 0 if match is None else match.end()
        joint = _AND.match(rest, end)
        if match is None or not (joint or end == len(rest)):
            raise ValueError(f"cannot read {rest!r} in the condition {text!r}; expected {_FORMS}")
        if match[1] not in names:
            known = ", ".join(names) or "no property with values"
            raise ValueError(f"the condition names {match[1]!r}; the model predicts {known}")
        found = _range(match, names[match[1]])
        if found.is_empty:
            raise ValueError(f"no value meets {match[0]!r}: the lower end comes first")
        met = ranges.get(found.target, found).meet(found)
        if met.is_empty:
            raise ValueError(f"no value of {match[1]} meets the whole condition {text!r}")
        ranges[found.target] = met
        if joint is None:
            return list(ranges.values())
        rest = rest[joint.end() :]


def probabilities(model: Model, encodings: np.ndarray, ranges: Sequence[Range]) -> np.ndarray:
    """Probability that each crystal meets a condition, (crystals,).

    Errors of several properties count as independent.

    Args:
        model: A calibrated model.
        encodings: (crystals, encoding).
        ranges: As ``parse_condition`` gives them.

    Raises:
        ValueError: The model keeps no errors on validation crystals.
    """
    if model.calibration is None or model.calibration.errors is None:
        raise ValueError("the model keeps no errors on validation crystals to judge by")
    errors, y = model.calibration.errors, outputs(model, encodings)
    product = np.ones(len(encodings))
    for r in ranges:
        low, high = model.targets[r.target].learned([r.low, r.high]).tolist()
        up_to_high = errors.below(r.target, high, y, or_equal=r.with_high)
        up_to_low = errors.below(r.target, low, y, or_equal=not r.with_low)
        product *= np.clip(up_to_high - up_to_low, 0, 1)
    return product


def _range(match: re.Match[str], target: int) -> Range:
    if match.re is _BETWEEN:
        return Range(target, float(match[2]), float(match[3]))
    bound, or_equal = float(match[3]), match[2].endswith("=")
    if match[2].startswith(">"):
        return Range(target, low=bound, with_low=or_equal)
    return Range(target, high=bound, with_high=or_equal)
