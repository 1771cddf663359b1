"""Fingerprints of crystals: what stays equal from one determination of a crystal to the next.

The fingerprints of two crystals agree if three things do: the composition, the symmetry (space
group and, for each element, how many equivalent sites its orbits have in the conventional cell),
and the volume per atom, to within VOLUME. Cell, origin, order of sites and handedness do not count,
nor do lattice constants and coordinates within the tolerances, so that a measured structure has the
fingerprint of the relaxed one. Polymorphs and ordered arrangements of one compound may agree in all
three: ``sitenet.inference.evidence.learned_from`` then compares encodings.
"""

from __future__ import annotations

import hashlib
import warnings
from typing import Any

import numpy as np
import spglib

from sitenet.crystal.crystal import Crystal
from sitenet.crystal.disorder import Places, find_places

SYMMETRY = 0.1  # angstrom: sites this far from equivalent places are equivalent
VOLUME = 0.1  # relative: PBE and measured volumes differ by 5 %, layered crystals by more
# Space groups of a right-handed and a left-handed crystal, counted as the first.
_MIRRORED = {
    78: 76, 95: 91, 96: 92, 145: 144, 153: 151, 154: 152, 170: 169, 172: 171, 179: 178, 181: 180,
    213: 212,
}  # fmt: skip


def composition_hash(crystal: Crystal) -> int:
    """A hash of the elements and their shares, to 0.001, in 32 bits."""
    amounts = np.bincount(crystal.numbers, crystal.occupancy)
    numbers = np.flatnonzero(amounts)
    shares = amounts[numbers] / amounts.sum() + 1e-5  # 1/16 is not halfway between two
    return _hash((numbers.tolist(), np.round(1000 * shares).astype(int).tolist()))


def symmetry_hash(crystal: Crystal) -> int:
    """A hash of the space group and of the orbits' elements and sizes, 32 bits; of the composition
    where spglib finds no symmetry."""
    places = find_places(crystal)
    content = _species(crystal, places)
    species = sorted(set(content))
    kinds = [species.index(each) for each in content]
    frac = crystal.frac[places.first]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # spglib announces how it will report errors
        try:
            found: Any = spglib.get_symmetry_dataset(
                (crystal.cell, frac, kinds),  # type: ignore[arg-type]
                symprec=SYMMETRY,
            )
        except spglib.SpglibError:
            found = None
    if found is None:
        return composition_hash(crystal)
    conventional = len(found.std_types) / len(frac)
    orbits, sizes = np.unique(found.crystallographic_orbits, return_counts=True)
    multiplicities = sorted(
        (content[orbit], round(size * conventional))
        for orbit, size in zip(orbits.tolist(), sizes.tolist(), strict=True)
    )
    return _hash((_MIRRORED.get(found.number, found.number), multiplicities))


def volume_per_atom(crystal: Crystal) -> float:
    """In cubic angstrom; a partially occupied site counts for its share."""
    atoms = len(crystal) if crystal.occupancy is None else float(crystal.occupancy.sum())
    return crystal.volume / atoms


def _species(crystal: Crystal, places: Places) -> list[tuple[tuple[int, float], ...]]:
    """The species of each place, with their shares."""
    if crystal.occupancy is None:
        return [((number, 1.0),) for number in crystal.numbers.tolist()]
    species: list[list[tuple[int, float]]] = [[] for _ in range(len(places))]
    rows = zip(places.place, crystal.numbers.tolist(), crystal.occupancy.tolist(), strict=True)
    for place, number, share in rows:
        species[place].append((number, round(share, 2)))
    return [tuple(sorted(each)) for each in species]


def _hash(content: Any) -> int:
    digest = hashlib.blake2b(repr(content).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little", signed=True)
