"""What a model predicts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["value", "class"]


@dataclass(frozen=True)
class Target:
    """One predicted property.

    Attributes:
        name: of the property.
        unit: of its values.
        mean: added to the decoder's output times ``std``.
        std: see ``mean``.
        kind: "value", or "class" for labels 0 and 1, for which the decoder gives the logit.
    """

    name: str = "target"
    unit: str = ""
    mean: float = 0.0
    std: float = 1.0
    kind: Kind = "value"

    def __post_init__(self) -> None:
        for name, kind in (("name", str), ("unit", str), ("mean", float), ("std", float)):
            value = getattr(self, name)
            if kind is float and type(value) is int:
                object.__setattr__(self, name, value := float(value))
            if not isinstance(value, kind):
                raise TypeError(f"{name} must be of type {kind.__name__}, got {value!r}")
        if not (math.isfinite(self.mean) and 0 < self.std < math.inf):
            raise ValueError(f"mean must be finite and std positive, got {self.mean}, {self.std}")
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
