"""What surrounds the sites of crystals: their bonds and a few numbers per site, from their pairs.

Plain geometry and chemistry, which no model has to learn, so that they tell a sound crystal from a
squeezed, scrambled or wrongly labelled one where the encodings of a model do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from sitenet.config import SITE_FEATURES
from sitenet.crystal.crystal import Crystal
from sitenet.crystal.elements import SYMBOLS, site_features
from sitenet.pairs.columns import Columns, columns_of
from sitenet.pairs.finder import find_pairs
from sitenet.pairs.pairs import Pairs
from sitenet.pairs.store import PairStore

SHELL = 1.15  # bonds of a site: up to this many times the distance of its nearest neighbour
NEAR = 5.0  # angstrom: neighbours within it measure the density
ALONE = 10.0  # angstrom: length of the one bond, to its own kind, of a site without neighbours
CHUNK = 512  # crystals of a store that are described at a time
SITE_NUMBERS = ("ln(bonds)", "electronegativity of bonded sites", "ln(1 + neighbours within 5 A)")

_ELECTRONEGATIVITY = np.concatenate(
    [
        [0.0],
        site_features(range(1, len(SYMBOLS)), "mean")[:, SITE_FEATURES.index("Electronegativity")],
    ]
)

Structures = Pairs | PairStore | Sequence[Crystal | Columns]


@dataclass
class Surroundings:
    """Bonds and sites of some crystals.

    Attributes:
        crystals: how many there are.
        bond_crystal: (bonds,) the crystal of each bond, ascending.
        bond_elements: (bonds, 2) atomic numbers, ascending.
        bond_length: (bonds,) angstrom.
        bond_share: (bonds,) of the crystal's bonds, every site counting the same.
        site_crystal: (sites,) the crystal of each site, ascending; equal sites are one.
        site_element: (sites,) atomic number.
        site_share: (sites,) of the crystal's sites.
        site_numbers: (sites, 3) what ``SITE_NUMBERS`` names.
        species_crystal: (species,) the crystal of each further species of a disordered site.
        species_element: (species,) its atomic number.
    """

    crystals: int
    bond_crystal: np.ndarray
    bond_elements: np.ndarray
    bond_length: np.ndarray
    bond_share: np.ndarray
    site_crystal: np.ndarray
    site_element: np.ndarray
    site_share: np.ndarray
    site_numbers: np.ndarray
    species_crystal: np.ndarray
    species_element: np.ndarray

    @classmethod
    def of(cls, structures: Structures, index: np.ndarray | None = None) -> Surroundings:
        """Describe the crystals of a batch of pairs, of a store, or of a sequence.

        Args:
            structures: the pairs that a model has used, as they are or in columns; or Crystals,
                whose neighbours are then searched for.
            index: numbers of the store's crystals; None takes all.
        """
        if isinstance(structures, Pairs):
            return of_pairs(structures)
        if not isinstance(structures, PairStore):
            parts = [x if isinstance(x, dict) else _columns(x) for x in structures]
            structures = PairStore.of(parts)
        numbers = np.arange(len(structures)) if index is None else np.asarray(index)
        chunks = np.split(numbers, range(CHUNK, len(numbers), CHUNK))
        return cls.join(of_pairs(structures.batch(chunk)) for chunk in chunks)

    @classmethod
    def join(cls, parts: Iterable[Surroundings]) -> Surroundings:
        """The surroundings of all the crystals of some parts."""
        arrays: dict[str, list[np.ndarray]] = {}
        crystals = 0
        for part in parts:
            for name, value in vars(part).items():
                if name != "crystals":
                    shift = crystals if name.endswith("_crystal") else 0
                    arrays.setdefault(name, []).append(value + shift if shift else value)
            crystals += part.crystals
        return cls(crystals, **{name: np.concatenate(values) for name, values in arrays.items()})


def _columns(crystal: Crystal) -> Columns:
    return columns_of(find_pairs(crystal, images="sphere", radius=NEAR))


def of_pairs(pairs: Pairs) -> Surroundings:
    """The surroundings of the crystals of a batch of pairs, on any device.

    One pass over all pairs finds the nearest neighbours; the rest is done on the bonds.
    """
    offsets, numbers, count, crystals = (
        x.cpu().numpy() for x in (pairs.offsets, pairs.numbers, pairs.count, pairs.crystals)
    )
    rows, per_row = len(numbers), np.diff(offsets)
    distance, multiplicity, ends = (
        x.cpu().numpy() for x in (pairs.distance, pairs.multiplicity, pairs.sites)
    )
    others = np.where(distance > 0, distance, np.inf)  # without self pairs, one in each row
    begins = offsets[:-1]
    nearest = np.minimum.reduceat(others, begins)
    near = np.add.reduceat(np.where(others <= NEAR, multiplicity, 0), begins)
    bonds = np.flatnonzero(others <= np.repeat(SHELL * nearest, per_row))
    bonds = bonds[np.isfinite(others[bonds])]
    row, copies = np.searchsorted(offsets, bonds, side="right") - 1, multiplicity[bonds]
    end, length = ends[bonds], distance[bonds].astype(np.float64)
    if not np.isfinite(nearest).all():
        alone = np.flatnonzero(~np.isfinite(nearest))
        row, end = np.append(row, alone), np.append(end, alone)
        length = np.append(length, np.full(len(alone), ALONE))
        copies = np.append(copies, np.ones(len(alone), copies.dtype))
        order = np.argsort(row, kind="stable")
        row, end, length, copies = row[order], end[order], length[order], copies[order]

    crystal = np.repeat(np.arange(len(crystals) - 1), np.diff(crystals))
    share = count / np.add.reduceat(count, crystals[:-1])[crystal]
    bonded = np.bincount(row, copies, rows)
    mean = np.bincount(row, copies * _ELECTRONEGATIVITY[numbers[end]], rows) / bonded
    mixed = pairs.mixed_rows is not None and pairs.mixed_numbers is not None
    return Surroundings(
        len(crystals) - 1,
        bond_crystal=crystal[row],
        bond_elements=np.sort(np.stack([numbers[row], numbers[end]], 1), 1),
        bond_length=length,
        bond_share=share[row] * copies / bonded[row],
        site_crystal=crystal,
        site_element=numbers,
        site_share=share,
        site_numbers=np.stack([np.log(bonded), mean, np.log1p(near)], 1),
        species_crystal=crystal[_numpy(pairs.mixed_rows)] if mixed else crystal[:0],
        species_element=_numpy(pairs.mixed_numbers) if mixed else numbers[:0],
    )


def _numpy(x) -> np.ndarray:
    return x.cpu().numpy()
