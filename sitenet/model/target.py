"""What a model predicts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

Kind = Literal["value", "class"]
Scale = Literal["linear", "log10"]


@dataclass(frozen=True)
class Target:
    """One predicted property.

    Values, true ones too, are in its unit. A property of scale "log10" is learned as its decimal
    logarithm, which is also the scale of its errors: intervals are symmetric there.

    Attributes:
        name: of the property.
        unit: of its values.
        mean: added to the decoder's output times ``std``, on the scale that is learned.
        std: see ``mean``.
        kind: "value", or "class" for labels 0 and 1, for which the decoder gives the logit.
        scale: "linear", or "log10" for positive values whose logarithm is learned.
    """

    name: str = "target"
    unit: str = ""
    mean: float = 0.0
    std: float = 1.0
    kind: Kind = "value"
    scale: Scale = "linear"

    def __post_init__(self) -> None:
        for name, kind in (("name", str), ("unit", str), ("mean", float), ("std", float)):
            value = getattr(self, name)
            if kind is float and type(value) is int:
                object.__setattr__(self, name, value := float(value))
            if not isinstance(value, kind):
                raise TypeError(f"{name} must be of type {kind.__name__}, got {value!r}")
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise ValueError(f"mean must be finite and std positive, got {self.mean}, {self.std}")
        for name, choices in (("kind", get_args(Kind)), ("scale", get_args(Scale))):
            value = getattr(self, name)
            if value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        if self.kind == "class" and self.scale != "linear":
            raise ValueError(f"a class has no scale, got {self.scale!r}")

    @property
    def learned_unit(self) -> str:
        """The unit on the scale that is learned: ``log10(GPa)``."""
        return self.unit if self.scale == "linear" else f"log10({self.unit})".replace("()", "")

    def learned(self, values: ArrayLike) -> np.ndarray:
        """Values on the scale that is learned; minus infinity for the logarithm of 0 or less."""
        values = np.asarray(values, np.float64)
        if self.scale == "linear":
            return values
        with np.errstate(divide="ignore"):
            return np.log10(np.maximum(values, 0))

    def shown(self, learned: ArrayLike) -> np.ndarray:
        """Values in the target's unit, from those on the scale that is learned."""
        learned = np.asarray(learned, np.float64)
        if self.scale == "linear":
            return learned
        with np.errstate(over="ignore"):
            return 10.0**learned

    def to_dict(self) -> dict[str, Any]:
        """The fields; ``scale``, which earlier versions do not know, only if it is not linear."""
        fields = asdict(self)
        if self.scale == "linear":
            del fields["scale"]
        return fields


def learned_values(targets: Sequence[Target], values: np.ndarray) -> np.ndarray:
    """Values of several targets, (crystals, targets), on the scales that are learned."""
    if all(target.scale == "linear" for target in targets):
        return values
    return np.stack([t.learned(x) for t, x in zip(targets, values.T, strict=True)], 1)


def shown_values(targets: Sequence[Target], learned: np.ndarray) -> np.ndarray:
    """Values of several targets, (crystals, targets), in their units."""
    if all(target.scale == "linear" for target in targets):
        return learned
    return np.stack([t.shown(x) for t, x in zip(targets, learned.T, strict=True)], 1)
