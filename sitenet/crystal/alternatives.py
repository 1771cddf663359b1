"""What a disordered crystal leaves open: units that are each in one of a few states.

A unit is a place that several species share, or that may be vacant; split sites, of which one at
most is occupied; or a copy of a disorder assembly, whose groups are there by turns. Rows that lie
too near to each other are never meant to be occupied together, although their unit does not say so:
these are conflicts, which ``arrangements.py`` resolves as far as the occupancies allow.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sitenet.config import SITE_FEATURES
from sitenet.crystal.crystal import Crystal
from sitenet.crystal.disorder import FULL, find_places
from sitenet.crystal.elements import site_features
from sitenet.ops.geometry import minimum_image_distances

# Two atoms nearer than LEAST exclude each other; so do those nearer than this share of the sum of
# their atomic radii (Li-Li below 1.9 A), unless their occupancies add up to more than 1.
OVERLAP = 0.65
LEAST, LEAST_OF_HYDROGEN = 1.0, 0.7  # angstrom
# Atoms of one assembly within this distance are of one copy of it, such as the fluorine atoms of
# BF4. Shorter ones are tried where copies run together; if none parts them, distances decide.
REACHES = (2.8, 2.0, 1.5)
MOST_ROWS = 5000  # of a crystal; matrices of their pairs take 0.5 GB
CROWDED = 1.001  # sum of occupancies that is still 1


@dataclass(eq=False)
class Alternatives:
    """The units of a crystal, and what goes together.

    Units of one kind have equal states with equal probabilities.

    Attributes:
        unit: (rows,) int64, the unit of each row of the crystal; -1 where it is there always.
        state: (rows,) int64, the state of its unit in which a row is occupied.
        kind: (units,) int64.
        probabilities: per kind, (states,) that add up to 1; in the last state of a kind that may
            be vacant, no row is occupied.
        conflicts: (rows, rows) bool, rows of different units that exclude each other.
    """

    unit: np.ndarray
    state: np.ndarray
    kind: np.ndarray
    probabilities: list[np.ndarray]
    conflicts: np.ndarray

    def rows_of_state(self, values: np.ndarray) -> list[np.ndarray]:
        """Sums of the rows' values over each state of the first unit of each kind.

        Args:
            values: (rows, ...).

        Returns:
            Per kind, (states, ...).
        """
        sums = []
        for kind, probabilities in enumerate(self.probabilities):
            rows = np.flatnonzero(self.unit == np.argmax(self.kind == kind))
            total = np.zeros((len(probabilities), *values.shape[1:]))
            np.add.at(total, self.state[rows], values[rows])
            sums.append(total)
        return sums

    def occupied(self, states: np.ndarray) -> np.ndarray:
        """Which rows are occupied when the units are in some states.

        Args:
            states: (..., units).

        Returns:
            (..., rows) bool.
        """
        is_fixed = self.unit < 0
        if is_fixed.all():
            return np.ones((*states.shape[:-1], len(self.unit)), dtype=bool)
        return (states[..., self.unit] == self.state) | is_fixed


def find_alternatives(crystal: Crystal) -> Alternatives:
    """Find the units of a crystal, in the cell that it is in.

    Raises:
        ValueError: the occupancies on one place add up to more than 1, or the crystal has more than
            MOST_ROWS rows.
    """
    rows = len(crystal)
    if rows > MOST_ROWS:
        raise ValueError(f"{rows} atoms in a disordered cell, more than {MOST_ROWS} (limit)")
    occupancy = np.ones(rows) if crystal.occupancy is None else crystal.occupancy
    place = find_places(crystal).place
    alone = np.bincount(place)[place] == 1
    open_rows = np.flatnonzero((occupancy < FULL) | ~alone)
    distance = np.full((rows, rows), np.inf)
    if len(open_rows):
        frac = torch.from_numpy(crystal.frac[open_rows])
        cell = torch.from_numpy(crystal.cell)
        between = minimum_image_distances(cell, frac, frac).numpy()
        distance[np.ix_(open_rows, open_rows)] = between
    same_place = place[:, None] == place
    least, overlap = _limits(crystal.numbers)
    fits = occupancy[:, None] + occupancy <= CROWDED
    is_near = ((distance < least) | ((distance < overlap) & fits)) & ~same_place
    units = _copies_of_assemblies(crystal, occupancy, place, distance)
    grouped = {row for unit in units for state in unit for row in state}
    left = np.array([row for row in open_rows.tolist() if row not in grouped], dtype=np.int64)
    if len(left):
        units += _split_sites(left, occupancy, place, is_near)
    return _assembled(crystal, occupancy, units, is_near)


Unit = list[list[int]]  # the rows of each state


def _limits(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances below which two rows exclude each other in any case, and unless their occupancies
    are too high for that: (rows, rows) angstrom each."""
    radius = site_features(numbers, "mean")[:, SITE_FEATURES.index("AtomicRadius")]
    hydrogen = numbers == 1
    least = np.where(hydrogen[:, None] | hydrogen, LEAST_OF_HYDROGEN, LEAST)
    return least, OVERLAP * (radius[:, None] + radius)


def _copies_of_assemblies(
    crystal: Crystal, occupancy: np.ndarray, place: np.ndarray, distance: np.ndarray
) -> list[Unit]:
    """The copies of disorder assemblies whose groups can alternate as wholes."""
    groups = crystal.groups
    if groups is None:
        return []
    units: list[Unit] = []
    alone = np.bincount(place)[place] == 1
    for assembly in np.unique(groups[groups[:, 1] > 0, 0]):
        rows = np.flatnonzero((groups[:, 0] == assembly) & (occupancy < FULL) & alone)
        for reach in REACHES:
            copies = [rows[part] for part in components(distance[np.ix_(rows, rows)] < reach)]
            alike = [_states_of(copy, groups[:, 1], occupancy) for copy in copies]
            if None not in alike and not _run_together(crystal.numbers, copies):
                units += [unit for unit in alike if unit is not None]
                break
    return units


def _states_of(rows: np.ndarray, group: np.ndarray, occupancy: np.ndarray) -> Unit | None:
    """The groups of a copy as states; None unless each has one occupancy, and all fit in 1."""
    states = [rows[group[rows] == g] for g in np.unique(group[rows])]
    shares = [occupancy[state] for state in states]
    if any(np.ptp(share) > 0.05 for share in shares):
        return None
    if sum(share.mean() for share in shares) > CROWDED:
        return None
    return [state.tolist() for state in states]


def _run_together(numbers: np.ndarray, copies: list[np.ndarray]) -> bool:
    """Whether some copies hold several times the atoms of others."""
    contents = np.unique([np.bincount(numbers[copy], minlength=120) for copy in copies], axis=0)
    for one in contents:
        for other in contents:
            ratio = other.sum() / one.sum()
            if ratio > 1 and np.array_equal(other, ratio * one):
                return True
    return False


def _split_sites(
    rows: np.ndarray, occupancy: np.ndarray, place: np.ndarray, is_near: np.ndarray
) -> list[Unit]:
    """Units of rows that share a place, or places of which one at most is occupied; where more
    could be, every place is a unit."""
    units: list[Unit] = []
    together = place[rows, None] == place[rows]
    for part in components(is_near[np.ix_(rows, rows)] | together):
        members = rows[part]
        excluding = (is_near[np.ix_(members, members)] | together[np.ix_(part, part)]).all()
        if excluding and occupancy[members].sum() <= CROWDED:
            units.append([[row] for row in members.tolist()])
            continue
        for each in np.unique(place[members]):
            units.append([[row] for row in members[place[members] == each].tolist()])
    return units


def components(adjacent: np.ndarray) -> list[np.ndarray]:
    """The connected components of a graph.

    Args:
        adjacent: (n, n) bool, symmetric.
    """
    label = np.arange(len(adjacent))
    linked = adjacent | np.eye(len(adjacent), dtype=bool)
    while True:
        lowest = np.where(linked, label, len(adjacent)).min(1, initial=len(adjacent))
        if np.array_equal(lowest, label):
            return [np.flatnonzero(label == first) for first in np.unique(label)]
        label = lowest


def _assembled(
    crystal: Crystal, occupancy: np.ndarray, units: list[Unit], is_near: np.ndarray
) -> Alternatives:
    """Sort the units into kinds."""
    unit, state = np.full(len(crystal), -1), np.zeros(len(crystal), dtype=np.int64)
    oxidation = np.zeros(len(crystal)) if crystal.oxidation is None else crystal.oxidation
    kinds: dict[tuple[object, ...], int] = {}
    kind, probabilities = np.empty(len(units), dtype=np.int64), []
    for k, states in enumerate(units):
        described = []
        for rows in states:
            species = sorted(zip(crystal.numbers[rows], oxidation[rows], strict=True))
            described.append((tuple(species), round(float(occupancy[rows].mean()), 6), rows))
        described.sort()
        key = tuple(each[:2] for each in described)
        if key not in kinds:
            kinds[key] = len(kinds)
            shares = np.array([share for _, share, _ in described])
            vacant = 1 - shares.sum()
            shares = np.append(shares, vacant) if vacant > 1 - FULL else shares / shares.sum()
            probabilities.append(shares)
        kind[k] = kinds[key]
        for number, (_, _, rows) in enumerate(described):
            unit[rows], state[rows] = k, number
    between = (unit[:, None] != unit) & is_near
    return Alternatives(unit, state, kind, probabilities, between)
