"""Elements that may replace one another in a crystal without changing its type."""

from __future__ import annotations

import numpy as np

from sitenet.config import SITE_FEATURES
from sitenet.crystal.elements import SYMBOLS, site_features
from sitenet.crystal.oxidation import common_states

ALIKE = 0.15  # largest difference of the radii of elements of different groups, relative
# Nobody makes crystals of elements without lasting isotopes, and hydrogen is no alkali metal.
_LEFT_OUT = frozenset((1, *range(84, 90), *range(95, len(SYMBOLS))))


def substitutes(number: int, state: float | None = None) -> list[int]:
    """Elements that plausibly replace an element.

    They share a common oxidation state with it, and are of its group; or they are beside it in its
    period, or of the corresponding main group or subgroup (Mg and Zn, Si and Ti), and their atomic
    radii differ by 15 % at most.

    Args:
        number: atomic number of the element that is replaced.
        state: its oxidation state, which the others must have among their common ones; None takes
            any of the common states of the element.

    Returns:
        Atomic numbers, ascending; none for hydrogen, and where no other element has such a state.

    Source: V. M. Goldschmidt, Naturwissenschaften 14, 477 (1926): ions replace each other if their
    radii differ by 15 % at most. The radii are those of Slater in ``elements.csv``.
    """
    numbers = np.arange(1, len(SYMBOLS))
    features = site_features(numbers, "mean")
    row, column, radius = (
        features[:, SITE_FEATURES.index(name)] for name in ("Row", "Column", "AtomicRadius")
    )
    this = number - 1
    between = abs(column - column[this])
    beside = (row == row[this]) & (between == 1)
    alike = abs(radius - radius[this]) <= ALIKE * np.maximum(radius, radius[this])
    near = (between == 0) | ((beside | (between == 10)) & alike)
    states = {state} if state is not None else set(common_states(number))
    if number == 1:
        return []
    return [
        other
        for other in numbers[near].tolist()
        if other != number and other not in _LEFT_OUT and states & set(common_states(other))
    ]
