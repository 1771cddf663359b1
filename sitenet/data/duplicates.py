"""Equal structures in a dataset, whatever their cells, and what their targets say.

Two crystals are compared only if their compositions agree and their volumes per atom differ by less
than VOLUME. They are equal if every site of the one has a site of the other whose surroundings are
the same, in equal shares: the same species in the middle, and for each species distances up to a
radius that differ by less than NEAR. Neither the cell, nor its origin, nor the order of sites
counts; mirror images are equal.
"""

from __future__ import annotations

import functools
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
SHELL = 12  # atoms by which structures are told apart at first
DISTANCES = 3 * NEIGHBOURS  # of one kind that are kept at most, the nearest
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
    environments = [_Environments(k, crystals[k], radius, kinds) for k in run]
    signatures = np.stack([each.signature() for each in environments])
    # Means of distances that differ by less than NEAR differ by less than NEAR.
    close = abs(volume[run][:, None] / volume[run] - 1) < VOLUME
    different: list[int] = []
    for k, this in enumerate(environments):
        candidates = np.array(different, dtype=int)
        candidates = candidates[close[k, candidates]]
        alike = (abs(signatures[candidates] - signatures[k]) < NEAR).all(1)
        for other in candidates[alike].tolist():
            if this.equal(environments[other]):
                yield run[k], run[other]
                break
        else:
            different.append(k)


def _kinds(crystal: Crystal) -> list[tuple[int, float]]:
    """Atomic number and occupancy, to 0.01, of each row."""
    if crystal.occupancy is None:
        return [(number, 1.0) for number in crystal.numbers.tolist()]
    shares = np.round(crystal.occupancy, 2).tolist()
    return list(zip(crystal.numbers.tolist(), shares, strict=True))


class _Environments:
    """What surrounds the sites of a crystal, kind after kind as it is needed.

    Args:
        number: of the crystal.
        crystal: the crystal.
        radius: in angstrom.
        kinds: species to tell apart, as atomic number and occupancy.
    """

    def __init__(
        self, number: int, crystal: Crystal, radius: float, kinds: Sequence[tuple[int, float]]
    ) -> None:
        self.number, self.crystal, self.radius = number, crystal, radius
        place = {kind: k for k, kind in enumerate(kinds)}
        self.kind = np.array([place[kind] for kind in _kinds(crystal)])
        self.counts = np.bincount(self.kind, minlength=len(kinds))
        self._around: dict[int, np.ndarray] = {}

    def signature(self) -> np.ndarray:
        """Distances from sites of the rarest kind to the nearest atoms, averaged over these sites:
        (SHELL,) with the radius of a sphere of about SHELL atoms for those beyond."""
        sites = np.flatnonzero(self.kind == self._kinds_by_count()[0])
        radius = self.radius * (SHELL / NEIGHBOURS) ** (1 / 3)
        cell, frac = self.crystal.cell, self.crystal.frac
        between = frac - frac[sites, None]
        vectors = (between - np.round(between)) @ cell
        vectors = vectors[:, :, None] + _images(cell, radius)
        squares = np.einsum("inax,inax->ina", vectors, vectors).reshape(len(sites), -1)
        count = min(SHELL, squares.shape[1])
        nearest = np.full((len(sites), SHELL), radius)
        nearest[:, :count] = np.sqrt(np.sort(squares, 1)[:, :count])
        return np.minimum(nearest, radius).mean(0)

    def _kinds_by_count(self) -> list[int]:
        return [k for k in np.argsort(self.counts, kind="stable").tolist() if self.counts[k]]

    def equal(self, other: _Environments) -> bool:
        """Whether equal shares of two crystals have the same surroundings; the rarest kind of sites
        is compared first."""
        if ((self.counts > 0) != (other.counts > 0)).any():
            return False
        kinds = self._kinds_by_count()
        return all(_same_shares(self.around(kind), other.around(kind)) for kind in kinds)

    def around(self, kind: int) -> np.ndarray:
        """(sites of this kind, kinds, DISTANCES) distances from each of these sites to those of
        each kind, in ascending order, filled up with the radius."""
        if kind not in self._around:
            self._around[kind] = self._distances(np.flatnonzero(self.kind == kind))
        return self._around[kind]

    def _distances(self, sites: np.ndarray) -> np.ndarray:
        cell, frac = self.crystal.cell, self.crystal.frac
        images = _images(cell, self.radius)
        around = np.full((len(sites), len(self.counts), DISTANCES), self.radius)
        for row, site in enumerate(sites):
            between = frac - frac[site]
            vectors = ((between - np.round(between)) @ cell)[:, None] + images
            distance = np.sqrt(np.einsum("nsx,nsx->ns", vectors, vectors))
            for kind in self._kinds_by_count():
                nearest = distance[self.kind == kind]
                nearest = np.sort(nearest[nearest < self.radius])[:DISTANCES]
                around[row, kind, : len(nearest)] = nearest
        return around


def _images(cell: np.ndarray, radius: float) -> np.ndarray:
    """(images, 3) translations that bring sites, whose coordinates differ by at most 1/2, to within
    a radius of each other."""
    heights = 1 / np.linalg.norm(np.linalg.inv(cell), axis=0)
    reach = np.floor(radius / heights + 0.5).astype(int)
    return _steps(*reach.tolist()) @ cell


@functools.lru_cache(256)
def _steps(*reach: int) -> np.ndarray:
    """(steps, 3) integers of at most ``reach`` along each axis."""
    steps = np.meshgrid(*(np.arange(-n, n + 1) for n in reach), indexing="ij")
    return np.stack(steps, -1).reshape(-1, 3)


def _same_shares(these: np.ndarray, others: np.ndarray) -> bool:
    """Whether each surroundings has as large a share of the one sites as of the others."""
    covered = np.zeros(len(others), dtype=bool)
    for surroundings in these:
        same = abs(others - surroundings).max((1, 2)) < NEAR
        own = abs(these - surroundings).max((1, 2)) < NEAR
        if not same.any() or abs(same.mean() - own.mean()) > 1e-3:
            return False
        covered |= same
    return bool(covered.all())


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
