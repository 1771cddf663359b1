"""Crystals with the same structure, formula or set of elements, whatever their cells.

Two structures are compared only if their compositions agree and their volumes per atom differ by
less than VOLUME. They are equal if sites with the same surroundings make up equal shares of both:
the same species in the middle and, for each species, distances up to a radius that differ by less
than NEAR. Neither the cell, nor its origin, nor the order of sites counts; mirror images are equal.
"""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence

import numpy as np

from sitenet.crystal.crystal import Crystal

NEAR = 0.02  # angstrom: coordinates rounded to three digits move a site of a 10 A cell by 0.01
VOLUME = 0.01  # relative: NEAR at a radius of 7 A is 0.3 % of a length, 0.9 % of a volume
NEIGHBOURS = 60  # atoms within the radius, about
SHELL = 12  # atoms by which most structures are told apart before all are compared
DISTANCES = 3 * NEIGHBOURS  # most distances of one kind that are kept, the shortest


def formula_groups(crystals: Sequence[Crystal]) -> np.ndarray:
    """The number of each crystal's first one of equal composition, (crystals,)."""
    return _first_with_equal(_composition(c) for c in crystals)


def element_groups(crystals: Sequence[Crystal]) -> np.ndarray:
    """The number of each crystal's first one with the same elements, (crystals,)."""
    return _first_with_equal(_composition(c)[0] for c in crystals)


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


def _first_with_equal(keys: Iterable[Hashable]) -> np.ndarray:
    first: dict[Hashable, int] = {}
    return np.array([first.setdefault(key, k) for k, key in enumerate(keys)], int)


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
    return tuple(numbers.tolist()), tuple(_rounded(shares, 3))


def _rounded(shares: np.ndarray, digits: int) -> list[float]:
    """Shares, of which common ones such as 1/16 are not halfway between two rounded ones."""
    return np.round(shares + 0.01 * 0.1**digits, digits).tolist()


def _runs(numbers: list[int], volume: np.ndarray) -> Iterator[list[int]]:
    """Yield runs of crystals, each close in volume to the next, in the order of their numbers."""
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
    """Yield each crystal that equals an earlier one, and the first of these."""
    if len(run) < 2:
        return
    radius = (NEIGHBOURS * volume[run].mean() * 3 / (4 * np.pi)) ** (1 / 3)
    kinds = sorted({kind for k in run for kind in _kinds(crystals[k])})
    environments = [_Environments(crystals[k], radius, kinds) for k in run]
    signatures = np.stack([each.signature() for each in environments])
    volumes = volume[run]
    different = np.zeros(len(run), dtype=bool)
    for k, this in enumerate(environments):
        # Equal crystals have distances that differ by less than NEAR, so the means of these do too.
        alike = different[:k] & (abs(volumes[:k] / volumes[k] - 1) < VOLUME)
        alike &= (abs(signatures[:k] - signatures[k]) < NEAR).all(1)
        same = next((j for j in np.flatnonzero(alike) if this.equal(environments[j])), None)
        if same is None:
            different[k] = True
        else:
            yield run[k], run[same]


def _kinds(crystal: Crystal) -> list[tuple[int, float]]:
    """Atomic number and occupancy, to 0.01, of each row."""
    if crystal.occupancy is None:
        return [(number, 1.0) for number in crystal.numbers.tolist()]
    return list(zip(crystal.numbers.tolist(), _rounded(crystal.occupancy, 2), strict=True))


class _Environments:
    """What surrounds the sites of a crystal, kind after kind as it is needed.

    Args:
        crystal: the crystal.
        radius: in angstrom.
        kinds: species to tell apart, as atomic number and occupancy.
    """

    def __init__(self, crystal: Crystal, radius: float, kinds: Sequence[tuple[int, float]]) -> None:
        self.crystal, self.radius = crystal, radius
        place = {kind: k for k, kind in enumerate(kinds)}
        self.kind = np.array([place[kind] for kind in _kinds(crystal)])
        self.counts = np.bincount(self.kind, minlength=len(kinds))
        self._around: dict[int, np.ndarray] = {}

    def signature(self) -> np.ndarray:
        """(SHELL,) distances from a site of the rarest kind to its nearest atoms, averaged over
        such sites; at most the radius of a sphere of about SHELL atoms."""
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
    """Whether sites with the same surroundings make up the same share of both sets of sites."""
    covered = np.zeros(len(others), dtype=bool)
    for surroundings in these:
        same = abs(others - surroundings).max((1, 2)) < NEAR
        own = abs(these - surroundings).max((1, 2)) < NEAR
        if not same.any() or abs(same.mean() - own.mean()) > 1e-3:
            return False
        covered |= same
    return bool(covered.all())
