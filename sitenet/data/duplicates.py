"""Equal structures in a dataset, whatever their cells, and what their targets say.

Two crystals are compared only if their compositions agree and their volumes per atom differ by less
than VOLUME. They are equal if every site of the one has a site of the other whose surroundings are
the same, in equal shares: the same species in the middle, and for each species distances up to a
radius that differ by less than NEAR. Neither the cell, nor its origin, nor the order of sites
counts; mirror images are equal.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sitenet.crystal.crystal import Crystal
from sitenet.system.files import write_csv

if TYPE_CHECKING:
    from sitenet.data.dataset import Dataset

NEAR = 0.02  # angstrom: coordinates rounded to three digits move a site of a 10 A cell by 0.01
VOLUME = 0.01  # of the volume: a distance of 6 A, changed by NEAR, is 0.3 % longer
NEIGHBOURS = 60  # atoms within the radius, about: four shells and more
CONTRADICTION = 0.05  # standard deviations by which targets of equal structures may differ


def formula_groups(crystals: Sequence[Crystal]) -> np.ndarray:
    """The number of each crystal's first one of equal composition, (crystals,)."""
    first: dict[tuple, int] = {}
    return np.array([first.setdefault(_composition(c), k) for k, c in enumerate(crystals)], int)


def structure_groups(crystals: Sequence[Crystal]) -> np.ndarray:
    """The number of each crystal's first one of equal structure, (crystals,)."""
    groups = np.arange(len(crystals))
    if not len(crystals):
        return groups
    exact: dict[tuple, int] = {}
    for k, crystal in enumerate(crystals):  # copies need no comparison
        groups[k] = exact.setdefault(_content(crystal), k)
    volume = abs(np.linalg.det(np.stack([c.cell for c in crystals])))
    per_atom = volume / [_atoms(c) for c in crystals]
    candidates = defaultdict(list)
    for k in np.flatnonzero(groups == np.arange(len(groups))).tolist():
        candidates[_composition(crystals[k])].append(k)
    for numbers in candidates.values():
        for run in _runs(numbers, per_atom):
            for k, same in _compare(crystals, run, per_atom):
                groups[k] = same
    return groups[groups]  # copies follow the crystal that they are copies of


def _atoms(crystal: Crystal) -> float:
    return len(crystal) if crystal.occupancy is None else float(crystal.occupancy.sum())


def _content(crystal: Crystal) -> tuple:
    occupancy = None if crystal.occupancy is None else crystal.occupancy.tobytes()
    arrays = crystal.cell, crystal.frac, crystal.numbers
    return (*(array.tobytes() for array in arrays), occupancy)


def _composition(crystal: Crystal) -> tuple:
    """Elements and their shares, to 0.001."""
    amounts = np.bincount(crystal.numbers, crystal.occupancy)
    numbers = np.flatnonzero(amounts)
    shares = amounts[numbers] / amounts.sum()
    return tuple(numbers.tolist()), tuple(np.round(shares, 3).tolist())


def _runs(numbers: list[int], volume: np.ndarray) -> Iterator[list[int]]:
    """Crystals whose volumes follow each other closely, in the order of their numbers."""
    if len(numbers) < 2:
        return
    order = sorted(numbers, key=lambda k: volume[k])
    run = order[:1]
    for before, k in itertools.pairwise(order):
        if volume[k] > (1 + VOLUME) * volume[before]:
            yield sorted(run)
            run = []
        run.append(k)
    yield sorted(run)


def _compare(
    crystals: Sequence[Crystal], run: list[int], volume: np.ndarray
) -> Iterator[tuple[int, int]]:
    """Pairs of a crystal and the first one that it equals."""
    if len(run) < 2:
        return
    radius = (NEIGHBOURS * volume[run].mean() * 3 / (4 * np.pi)) ** (1 / 3)
    kinds = sorted({kind for k in run for kind in _kinds(crystals[k])})
    different: list[tuple[int, np.ndarray, np.ndarray]] = []
    for k in run:
        middle, around = surroundings(crystals[k], radius, kinds)
        for other, its_middle, its_around in different:
            close = abs(volume[k] / volume[other] - 1) < VOLUME
            if close and _equal(middle, around, its_middle, its_around):
                yield k, other
                break
        else:
            different.append((k, middle, around))


def _kinds(crystal: Crystal) -> list[tuple[int, float]]:
    """Atomic number and occupancy, to 0.01, of each row."""
    if crystal.occupancy is None:
        return [(number, 1.0) for number in crystal.numbers.tolist()]
    shares = np.round(crystal.occupancy, 2).tolist()
    return list(zip(crystal.numbers.tolist(), shares, strict=True))


def surroundings(
    crystal: Crystal, radius: float, kinds: Sequence[tuple[int, float]]
) -> tuple[np.ndarray, np.ndarray]:
    """What surrounds each site.

    Args:
        crystal: the crystal.
        radius: in angstrom.
        kinds: species to tell apart, as atomic number and occupancy.

    Returns:
        (sites,) the kind of each site, and (sites, kinds, 3 * NEIGHBOURS) distances in ascending
        order, filled up with the radius. Each atom within the radius counts; its own place is one.
    """
    place = {kind: k for k, kind in enumerate(kinds)}
    middle = np.array([place[kind] for kind in _kinds(crystal)])
    heights = 1 / np.linalg.norm(np.linalg.inv(crystal.cell), axis=0)
    reach = np.ceil(radius / heights).astype(int)
    steps = np.stack(np.meshgrid(*(np.arange(-n - 1, n + 2) for n in reach), indexing="ij"), -1)
    steps = steps.reshape(-1, 3)
    frac = crystal.frac - np.floor(crystal.frac)
    around = np.full((len(middle), len(kinds), 3 * NEIGHBOURS), radius)
    images = (frac[:, None] + steps) @ crystal.cell
    for site in range(len(middle)):
        distance = np.linalg.norm(images - frac[site] @ crystal.cell, axis=2)
        for kind in np.unique(middle):
            inside = distance[middle == kind]
            inside = np.sort(inside[inside < radius])[: 3 * NEIGHBOURS]
            around[site, kind, : len(inside)] = inside
    return middle, around


def _equal(middle: np.ndarray, around: np.ndarray, other: np.ndarray, its: np.ndarray) -> bool:
    """Whether sites with the same surroundings make up equal shares of two crystals."""
    covered = np.zeros(len(other), dtype=bool)
    for site in range(len(middle)):
        same = _same(middle[site], around[site], other, its)
        own = _same(middle[site], around[site], middle, around)
        if not same.any() or abs(same.mean() - own.mean()) > 1e-3:
            return False
        covered |= same
    return bool(covered.all())


def _same(kind: int, distances: np.ndarray, middle: np.ndarray, around: np.ndarray) -> np.ndarray:
    """(sites,) whether the surroundings of sites are those of one site."""
    same = middle == kind
    same[same] = abs(around[same] - distances).max((1, 2)) < NEAR
    return same


# ---------------------------------------------------------------------------------------------
# Report


@dataclass(frozen=True)
class Duplicates:
    """Crystals of a dataset that are equal, and what contradicts.

    Attributes:
        ids: (crystals,) names of all crystals of the dataset.
        groups: numbers of equal crystals, two and more each.
        contradictions: of each group, the names of the targets in which they differ.
        repeated_ids: names that several crystals have.
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
                f"{self.count} of {len(self.ids)} crystals are duplicates, the same structure as "
                f"another one ({first}{more})"
            )
        differing = [k for k, names in enumerate(self.contradictions) if names]
        if differing:
            group, names = self.groups[differing[0]], self.contradictions[differing[0]]
            sentences.append(
                f"{len(differing)} of {len(self.groups)} such structures have targets that differ "
                f"(the first: {', '.join(names)} of {', '.join(self.ids[k] for k in group[:3])})"
            )
        if self.repeated_ids:
            more = ", ..." * (len(self.repeated_ids) > 3)
            sentences.append(
                f"{len(self.repeated_ids)} ids name several crystals "
                f"({', '.join(self.repeated_ids[:3])}{more})"
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
    """The equal structures of a dataset, and the targets in which they differ by more than
    CONTRADICTION standard deviations of all crystals."""
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
