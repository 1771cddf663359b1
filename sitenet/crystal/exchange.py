"""Structures of pymatgen and ASE, to and from the arrays of a ``Crystal``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sitenet.crystal.disorder import FULL
from sitenet.crystal.elements import SYMBOLS

if TYPE_CHECKING:
    import ase
    import pymatgen.core

    from sitenet.crystal.crystal import Crystal


def package_of(structure: Any) -> str:
    """``"pymatgen"`` for a Structure, ``"ase"`` for Atoms (and MSONAtoms), ``""`` for others."""
    if is_a(structure, "ase", "Atoms"):
        return "ase"
    return "pymatgen" if is_a(structure, "pymatgen", "IStructure") else ""


def is_a(structure: Any, module: str, name: str) -> bool:
    """Whether an object is of a class of an optional package, or of one derived from it."""
    return any(
        cls.__name__ == name and cls.__module__.partition(".")[0] == module
        for cls in type(structure).__mro__
    )


def refusal(structure: Any, expected: str) -> TypeError:
    """The error for an object that is no structure, or one of another package."""
    hint = ""
    if package_of(structure):
        hint = f", which Crystal.from_{package_of(structure)} converts"
    elif isinstance(structure, dict):
        hint = "; make a Structure or Atoms of it first"
    elif is_a(structure, "pymatgen", "IMolecule"):
        hint = ", which has no cell: put it into one with get_boxed_structure"
    elif is_a(structure, "pymatgen", "Entry"):
        hint = ", which holds no structure: give a ComputedStructureEntry"
    return TypeError(f"expected {expected}, got {type(structure).__name__}{hint}")


def arrays_of_pymatgen(structure: pymatgen.core.Structure, disorder: str) -> tuple[Any, ...]:
    """Cell, coordinates, numbers, oxidation and occupancy; see ``Crystal.from_pymatgen``."""
    if package_of(structure) != "pymatgen":
        raise refusal(structure, "a pymatgen Structure")
    frac, numbers, oxidation, occupancy = [], [], [], []
    for site in structure:
        for species, amount in site.species.items():
            number = getattr(species, "Z", 0)
            if type(species).__name__ == "DummySpecies" or not number:
                raise ValueError(f"unknown element {species} in {structure.formula}")
            frac.append(site.frac_coords)
            numbers.append(number)
            oxidation.append(getattr(species, "oxi_state", None))
            occupancy.append(amount)
    known = any(charge is not None for charge in oxidation)
    partial = min(occupancy, default=1) < FULL
    if partial and disorder != "average":
        raise ValueError(
            f"partial occupancy in {structure.formula}; "
            f'from_pymatgen(structure, disorder="average") averages over it'
        )
    return (
        structure.lattice.matrix,
        np.array(frac).reshape(-1, 3),
        np.array(numbers, dtype=np.int64),
        np.array([charge or 0 for charge in oxidation], dtype=float) if known else None,
        np.minimum(occupancy, 1) if partial else None,
    )


def to_pymatgen(crystal: Crystal) -> pymatgen.core.Structure:
    """See ``Crystal.to_pymatgen``."""
    from pymatgen.core import Lattice, Species, Structure

    oxidation = [None] * len(crystal) if crystal.oxidation is None else crystal.oxidation.tolist()
    occupancy = [1] * len(crystal) if crystal.occupancy is None else crystal.occupancy.tolist()
    sites: dict[tuple[float, ...], dict[Any, float]] = {}
    for row, point in enumerate(crystal.frac.tolist()):
        symbol, charge = SYMBOLS[crystal.numbers[row]], oxidation[row]
        species = symbol if charge is None else Species(symbol, charge)
        sites.setdefault(tuple(point), {})[species] = occupancy[row]
    return Structure(Lattice(crystal.cell), list(sites.values()), list(sites))


def arrays_of_ase(atoms: ase.Atoms) -> tuple[Any, ...]:
    """Cell, coordinates and numbers; see ``Crystal.from_ase``."""
    if package_of(atoms) != "ase":
        raise refusal(atoms, "ASE Atoms")
    for kind in (atoms.info.get("occupancy") or {}).values():
        if min(kind.values()) < FULL:
            raise ValueError(
                'partial occupancy; sitenet.read_cif(..., disorder="average") averages over it'
            )
    if not len(atoms):
        raise ValueError("the Atoms hold no atom")
    if (atoms.numbers < 1).any():
        raise ValueError(f"unknown element X (atom {int(np.argmin(atoms.numbers))})")
    return atoms.cell.array, atoms.get_scaled_positions(wrap=False), atoms.numbers


def to_ase(crystal: Crystal) -> ase.Atoms:
    """See ``Crystal.to_ase``."""
    from ase import Atoms

    if crystal.occupancy is not None and crystal.occupancy.min() < 1:
        raise ValueError("ASE has no partial occupancy")
    return Atoms(crystal.numbers, cell=crystal.cell, scaled_positions=crystal.frac, pbc=True)
