"""Ordered arrangements of a disordered crystal, drawn at random in a supercell."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from sitenet.crystal.alternatives import Alternatives, find_alternatives
from sitenet.crystal.crystal import Crystal
from sitenet.crystal.disorder import find_places
from sitenet.crystal.elements import SYMBOLS
from sitenet.crystal.oxidation import guess_oxidation
from sitenet.crystal.rounding import rounded_counts
from sitenet.crystal.supercell import MOST_SITES

MOST_SAMPLES = 100_000
ATTEMPTS = 300  # exchanges that each arrangement may try to separate atoms that are too near


@dataclass(frozen=True)
class Sampling:
    """How ordered arrangements are drawn.

    Attributes:
        samples: arrangements to draw.
        seed: of the random numbers; every crystal is drawn from its own generator with this seed.
        sites: most sites of the supercell that they are drawn in, as in ``Crystal.supercell``; a
            cell that has more is not repeated. 0 takes the cell as it is.
    """

    samples: int = 200
    seed: int = 0
    sites: int = 40

    def __post_init__(self) -> None:
        for name, least, most in (
            ("samples", 1, MOST_SAMPLES),
            ("seed", 0, 2**63 - 1),
            ("sites", 0, MOST_SITES),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            if not least <= value <= most:
                raise ValueError(f"{name} must be from {least} to {most}, got {value}")


@dataclass(eq=False)
class Arrangements:
    """Ordered arrangements of one crystal.

    Attributes:
        crystals: the different ones, in the order in which they were drawn first.
        counts: (arrangements,) int64, how often each was drawn.
        warnings: what the draws could not respect, one sentence each.
    """

    crystals: list[Crystal]
    counts: np.ndarray
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.crystals)


def sample_arrangements(
    crystal: Crystal, samples: int = 200, seed: int = 0, sites: int = 40
) -> Arrangements:
    """Draw ordered arrangements of a partly occupied crystal in a supercell.

    On average over the draws, every place is occupied as often as its occupancy says. Each draw has
    the expected number of atoms of each kind, rounded up or down at random in such a way that its
    charge is that of the average wherever the supercell allows this. Oxidation states are the
    crystal's, or else common ones that make it neutral, if there are any. Split sites and disorder
    groups exclude each other; otherwise, positions are independent, without short-range order.

    Args:
        crystal: read with ``disorder="average"``; taken in the cell that it is in.
        samples: how many arrangements to draw.
        seed: of the random numbers.
        sites: most sites of the supercell, as in ``Crystal.supercell``, where species that share a
            place count once; a cell that has more is not repeated, and 0 takes the cell as it is.

    Returns:
        The different arrangements, and how often each was drawn; the crystal itself, in its own
        cell, where all its sites are full.

    Raises:
        TypeError: an argument is no integer.
        ValueError: one is out of range, occupancies on one place add up to more than 1, or an
            arrangement holds no atom.
    """
    sampling = Sampling(samples, seed, sites)
    if crystal.occupancy is None or (crystal.occupancy == 1).all():
        ordered = dataclasses.replace(crystal, occupancy=None)
        return Arrangements([ordered], np.array([samples]))
    parent = _supercell(crystal, sampling.sites)
    open_ = find_alternatives(parent)
    states, crowded = _draw(parent, open_, sampling)
    occupied = open_.occupied(states)
    if not occupied.any(1).all():
        raise ValueError("an arrangement holds no atom: take a larger supercell (sites)")
    keys, first, inverse = np.unique(
        np.packbits(occupied, axis=1), axis=0, return_index=True, return_inverse=True
    )
    order = np.argsort(first)
    counts = np.bincount(inverse.reshape(-1), minlength=len(keys))[order]
    crystals = [_ordered(parent, np.flatnonzero(occupied[k])) for k in first[order]]
    warnings: tuple[str, ...] = ()
    if crowded:
        warnings = (
            f"{crowded} of {samples} arrangements hold atoms that exclude each other: the "
            f"occupancies leave no other choice, or too few",
        )
    return Arrangements(crystals, counts, warnings)


def _supercell(crystal: Crystal, sites: int) -> Crystal:
    """The supercell to draw in; the crystal as it is where it is not repeated."""
    if sites < 2 * len(find_places(crystal)):
        return crystal
    return crystal.supercell(sites)


def _ordered(parent: Crystal, rows: np.ndarray) -> Crystal:
    """The crystal of some rows, all of them fully occupied."""
    return Crystal(
        parent.cell,
        parent.frac[rows],
        parent.numbers[rows],
        None if parent.oxidation is None else parent.oxidation[rows],
        None,
        parent.name,
        parent.warnings,
    )


def _draw(parent: Crystal, open_: Alternatives, sampling: Sampling) -> tuple[np.ndarray, int]:
    """States of all units in all draws, (samples, units), and the number of draws in which atoms
    that exclude each other are left."""
    rng = np.random.default_rng(sampling.seed)
    sizes = np.bincount(open_.kind)
    expected = np.concatenate(
        [size * p for size, p in zip(sizes, open_.probabilities, strict=True)]
    )
    sums = _balanced_sums(parent, open_)
    begins = np.cumsum([0, *map(len, open_.probabilities)])
    states = np.empty((sampling.samples, len(open_.kind)), dtype=np.int64)
    units = [np.flatnonzero(open_.kind == kind) for kind in range(len(sizes))]
    for draw, counts in zip(
        states, rounded_counts(expected, sums, sampling.samples, rng), strict=True
    ):
        for kind, members in enumerate(units):
            here = counts[begins[kind] : begins[kind + 1]]
            draw[members] = rng.permutation(np.repeat(np.arange(len(here)), here))
    return _separated(states, open_, units, rng)


def _balanced_sums(parent: Crystal, open_: Alternatives) -> np.ndarray:
    """The sums over the counts of states that every draw should keep: units of each kind, then the
    charge, then atoms of each element that is in several kinds."""
    kind_of_state = np.repeat(
        np.arange(len(open_.probabilities)), list(map(len, open_.probabilities))
    )
    sums = [(kind_of_state == kind).astype(float) for kind in range(len(open_.probabilities))]
    oxidation = parent.oxidation
    if oxidation is None and parent.occupancy is not None:
        guess = guess_oxidation(parent.numbers, parent.occupancy)
        if guess is not None:
            oxidation = np.array([float(guess[z]) for z in parent.numbers.tolist()])
    if oxidation is not None:
        sums.append(np.concatenate(open_.rows_of_state(oxidation)))
    elements = np.unique(parent.numbers[open_.unit >= 0])
    if len(sums) > 1 and len(elements) < len(SYMBOLS):
        is_element = (parent.numbers[:, None] == elements).astype(float)
        sums += list(np.concatenate(open_.rows_of_state(is_element)).T)
    return np.array(sums)


def _separated(
    states: np.ndarray, open_: Alternatives, units: list[np.ndarray], rng: np.random.Generator
) -> tuple[np.ndarray, int]:
    """Exchange the states of units of one kind until no atoms exclude each other.

    An exchange is kept unless it brings more of them together, so compositions stay as drawn.

    Returns:
        (samples, units) states, and the number of draws in which some are left.
    """
    clash = open_.conflicts.astype(np.float32)
    if not clash.any():
        return states, 0
    movable = open_.unit >= 0

    def energies(trial: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Number of pairs that exclude each other per draw, and whether each row is in one."""
        occupied = open_.occupied(trial).astype(np.float32)
        of_row = (occupied @ clash) * occupied
        return of_row.sum(1), of_row > 0

    active = np.arange(len(states))
    energy, in_conflict = energies(states)
    for _ in range(ATTEMPTS):
        left = energy > 0
        if not left.any():
            return states, 0
        active, energy, in_conflict = active[left], energy[left], in_conflict[left]
        pick = (rng.random(in_conflict.shape) * (in_conflict & movable)).argmax(1)
        unit = open_.unit[pick]
        partner = np.array([rng.choice(units[open_.kind[u]]) for u in unit])
        trial = states[active]
        k = np.arange(len(active))
        trial[k, unit], trial[k, partner] = trial[k, partner], trial[k, unit]
        new_energy, new_conflict = energies(trial)
        better = new_energy <= energy
        states[active[better]] = trial[better]
        energy = np.where(better, new_energy, energy)
        in_conflict = np.where(better[:, None], new_conflict, in_conflict)
    return states, int((energy > 0).sum())
