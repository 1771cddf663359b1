"""What to say about the equal structures of a dataset, and where their targets contradict."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sitenet.system.files import write_csv

if TYPE_CHECKING:
    from sitenet.data.dataset import Dataset

CONTRADICTION = 0.05  # standard deviations by which targets of equal structures may differ


@dataclass(frozen=True)
class Duplicates:
    """Equal crystals of a dataset.

    Attributes:
        ids: (crystals,) names of all crystals of the dataset.
        groups: lists of two or more equal crystals, by number.
        contradictions: for each group, the names of the targets in which its crystals differ.
        repeated_ids: names that several crystals share.
    """

    ids: list[str]
    groups: list[list[int]]
    contradictions: list[list[str]]
    repeated_ids: list[str]

    @property
    def count(self) -> int:
        """Crystals beyond the first of each group."""
        return sum(len(group) - 1 for group in self.groups)

    def describe(self) -> str:
        """How many crystals are duplicates, of which, and what contradicts; "" if nothing does."""
        sentences = []
        if self.groups:
            first = " = ".join(self.ids[k] for k in self.groups[0][:3])
            more = ", ..." if len(self.groups) > 1 or len(self.groups[0]) > 3 else ""
            sentences.append(
                f"duplicates: {self.count} of {len(self.ids)} crystals have the same structure as "
                f"another one ({first}{more})"
            )
        differing = [k for k, names in enumerate(self.contradictions) if names]
        if differing:
            group, names = self.groups[differing[0]], self.contradictions[differing[0]]
            sentences.append(
                f"targets differ in {len(differing)} of {len(self.groups)} such structures (the "
                f"first: {', '.join(names)} of {', '.join(self.ids[k] for k in group[:3])})"
            )
        if self.repeated_ids:
            more = ", ..." * (len(self.repeated_ids) > 3)
            sentences.append(
                f"several crystals share an id ({', '.join(self.repeated_ids[:3])}{more}; "
                f"ids: {len(self.repeated_ids)})"
            )
        return "; ".join(sentences)

    def write(self, path: Path) -> None:
        """Write a CSV of all duplicates: id, the first equal one, targets that differ."""
        rows = (
            (self.ids[k], self.ids[group[0]], " ".join(names))
            for group, names in zip(self.groups, self.contradictions, strict=True)
            for k in group[1:]
        )
        write_csv(path, ("id", "same_as", "differs_in"), rows)


def find_duplicates(data: Dataset) -> Duplicates:
    """Find the equal structures of a dataset, and the targets in which they differ by more than
    CONTRADICTION standard deviations."""
    members: dict[int, list[int]] = defaultdict(list)
    for k, first in enumerate(data.groups("structure").tolist()):
        members[first].append(k)
    groups = [group for group in members.values() if len(group) > 1]
    known = [column[np.isfinite(column)] for column in data.targets.T]
    allowed = [CONTRADICTION * (column.std() if len(column) else 0.0) for column in known]
    contradictions = []
    for group in groups:
        names = []
        for k, name in enumerate(data.names):
            values = data.targets[group, k]
            values = values[np.isfinite(values)]
            if len(values) > 1 and np.ptp(values) > allowed[k]:
                names.append(name)
        contradictions.append(names)
    repeated = [name for name, count in Counter(data.ids).items() if count > 1]
    return Duplicates(data.ids, groups, contradictions, repeated)
