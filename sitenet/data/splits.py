"""Dividing a dataset into crystals to learn from, to validate on and to test on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sitenet.data.failures import reasons

if TYPE_CHECKING:
    from sitenet.data.dataset import Dataset


@dataclass(frozen=True)
class Split:
    """Numbers of the crystals to learn from, to choose the best epoch by, and to test on."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray

    def without_test(self) -> Split:
        """The same, but to learn from the test's crystals too."""
        return Split(np.sort(np.concatenate([self.train, self.test])), self.valid, self.test[:0])


def split(
    data: Dataset,
    valid: float,
    test: float,
    seed: int,
    fold: str | None = None,
    group: str = "none",
) -> Split:
    """Divide a dataset.

    Args:
        data: where its split column says ``train`` of some crystals, that holds, and so do
            ``valid`` (or ``val``) and ``test``; crystals with any other value are left out.
        valid: share of the crystals for validation, drawn from those to learn from where the column
            names none.
        test: likewise for the test.
        seed: of the random order, the same for the same number of crystals.
        fold: the value of the split column whose rows are the test.
        group: crystals that are kept together where parts are drawn: those with the same
            "structure", "formula" or set of "elements", or "none". A part is then as near to its
            size as whole groups allow; without equal crystals it is the same for all three.

    Raises:
        ValueError: no crystal is in that fold, or none is left to learn from.
    """
    names = np.array([_PARTS.get(s.lower(), s.lower()) for s in data.split], dtype=object)
    order = np.random.default_rng(seed).permutation(len(data))
    rest, parts = order, {}
    if fold is not None:
        held = names == str(fold).lower()
        if not held.any():
            listed = ", ".join(sorted(set(data.split) - {""})) or "nothing"
            raise ValueError(f"no crystal is in fold {fold!r}; the split column says {listed}")
        parts["test"] = np.flatnonzero(held)
        rest = order[~held[order]]
    elif (names == "train").any():
        rest = order[(names == "train")[order]]
        parts = {n: np.flatnonzero(names == n) for n in ("valid", "test") if (names == n).any()}
    groups = data.groups(group)
    for name, share in (("test", test), ("valid", valid)):
        if name not in parts:
            count = max(round(share * len(data)), 1) if share else 0
            drawn = _draw(groups[rest], count)
            parts[name], rest = np.sort(rest[drawn]), rest[~drawn]
    if not len(rest):
        raise ValueError(_nothing_left(data, parts, group))
    return Split(np.sort(rest), parts["valid"], parts["test"])


def folds(data: Dataset, count: int, seed: int, group: str = "none") -> np.ndarray:
    """Divide a dataset into folds of about equal size, for cross-validation.

    Args:
        data: its split column is ignored.
        count: number of folds.
        seed: of the random order.
        group: as in ``split``.

    Returns:
        (crystals,) fold of each crystal, from 1.

    Raises:
        ValueError: there are fewer groups than folds.
    """
    if count < 2:
        raise ValueError(f"folds must be at least 2, got {count}")
    _, numbers = np.unique(data.groups(group), return_inverse=True)
    sizes = np.bincount(numbers)
    if len(sizes) < count:
        kind = "crystals" if group == "none" else f"crystals of different {group}"
        raise ValueError(f"{count} folds need as many {kind}, got {len(sizes)}")
    order = np.random.default_rng(seed).permutation(len(sizes))
    fold_of_group = np.zeros(len(sizes), dtype=int)
    filled = np.zeros(count, dtype=int)
    for number in order[np.argsort(-sizes[order], kind="stable")]:  # the largest groups first
        fold_of_group[number] = filled.argmin()
        filled[filled.argmin()] += sizes[number]
    return fold_of_group[numbers] + 1


_PARTS = {"val": "valid", "validation": "valid", "training": "train", "testing": "test"}


def _draw(groups: np.ndarray, count: int) -> np.ndarray:
    """Which of some crystals in random order to draw, by their groups: about ``count``.

    Groups are taken in order if they fit; at the end, another one if that comes nearer to the
    count, and at least one if any crystal is asked for.
    """
    _, first, numbers = np.unique(groups, return_index=True, return_inverse=True)
    sizes = np.bincount(numbers, minlength=len(first))
    drawn = np.zeros(len(first), dtype=bool)
    missing = count
    for number in np.argsort(first):  # in the order in which they first occur
        if sizes[number] <= missing:
            drawn[number] = True
            missing -= sizes[number]
        if not missing:
            break
    left = np.flatnonzero(~drawn)
    if missing and len(left):
        smallest = left[np.lexsort([first[left], sizes[left]])[0]]
        if sizes[smallest] - missing < missing or missing == count:
            drawn[smallest] = True
    return drawn[numbers]


def _nothing_left(data: Dataset, parts: dict[str, np.ndarray], group: str) -> str:
    if not len(data):
        why = reasons(data.left_out)
        return "nothing is left to learn from: no crystal can be used" + (f"; {why}" if why else "")
    text = (
        f"nothing is left to learn from: {len(parts['valid'])} crystals for validation, "
        f"{len(parts['test'])} for the test"
    )
    together = len(data) - len(np.unique(data.groups(group)))
    if together:
        text += f"; equal crystals are kept together (group: {group})"
    why = reasons(data.left_out)
    return f"{text}; {why}" if why else text


def shared_structures(data: Dataset, parts: Split) -> str:
    """How many crystals to validate or test on have the structure of one to learn from, as a split
    column or a fold may have it; "" if none has."""
    groups = data.groups("structure")
    sentences = []
    for name, index in (("validation", parts.valid), ("test", parts.test)):
        shared = int(np.isin(groups[index], groups[parts.train]).sum())
        if shared:
            sentences.append(f"{shared} of {len(index)} crystals of the {name}")
    if not sentences:
        return ""
    return f"{' and '.join(sentences)} have the structure of a training crystal"
