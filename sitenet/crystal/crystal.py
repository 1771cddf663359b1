"""Crystals: read from CIF, made primitive, repeated, and exchanged with pymatgen and ASE."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from sitenet.config import SITE_FEATURES, Disorder
from sitenet.crystal import exchange
from sitenet.crystal.cif import CifError, CifWarning, location, read_structure
from sitenet.crystal.cif_blocks import Block, Limits, Unreadable, has_sites, read_blocks, read_text
from sitenet.crystal.disorder import find_places, mixture_label
from sitenet.crystal.elements import SYMBOLS, site_features
from sitenet.crystal.primitive import primitive_cell
from sitenet.crystal.supercell import repeat_sites, supercell_matrix, volume_of

if TYPE_CHECKING:
    import ase
    import pymatgen.core

__all__ = ["CifError", "CifWarning", "Crystal", "Limits", "read_cif", "read_cifs", "read_each"]


@dataclass(eq=False, repr=False)
class Crystal:
    """One structure: a cell and the sites in it.

    Attributes:
        cell: (3, 3) float64, lattice vectors as rows, angstrom.
        frac: (sites, 3) float64, fractional coordinates, kept as given; those that are read from
            files and those of primitive cells and supercells lie in [0, 1).
        numbers: (sites,) int64, atomic numbers.
        oxidation: (sites,) float64, oxidation states; None where nothing is known.
        occupancy: (sites,) float64 in (0, 1]; None where all are 1. Rows with the same ``frac`` are
            species that share a position.
        name: name of the structure, such as that of its CIF block.
        warnings: doubts about the file that it was read from, one sentence each.
        groups: (sites, 2) int64, the disorder assembly and group of each row, counted from 1; 0 and
            0 for rows in none. Rows of one group are there together, instead of those of the other
            groups of the assembly. None where no row has a group.

    Raises:
        ValueError: an array has another shape, a value is out of range, or the cell has no volume.
    """

    cell: np.ndarray
    frac: np.ndarray
    numbers: np.ndarray
    oxidation: np.ndarray | None = None
    occupancy: np.ndarray | None = None
    name: str | None = None
    warnings: tuple[str, ...] = ()
    groups: np.ndarray | None = None

    def __post_init__(self) -> None:
        self.cell = _floats(self.cell, "cell", (3, 3))
        if not abs(volume_of(self.cell)) > 1e-6:
            raise ValueError(f"cell must have a volume, got {self.cell.tolist()}")
        numbers = np.array(self.numbers)
        if numbers.ndim != 1 or not numbers.size:
            raise ValueError(f"numbers must have shape (num_sites,), got {numbers.shape}")
        if numbers.dtype.kind not in "iu" or numbers.min() < 1 or numbers.max() >= len(SYMBOLS):
            raise ValueError(f"numbers must be atomic numbers from 1 to {len(SYMBOLS) - 1}")
        self.numbers = numbers.astype(np.int64)
        self.frac = _floats(self.frac, "frac", (len(numbers), 3))
        if self.oxidation is not None:
            self.oxidation = _floats(self.oxidation, "oxidation", numbers.shape)
        if self.occupancy is not None:
            self.occupancy = _floats(self.occupancy, "occupancy", numbers.shape)
            if not (0 < self.occupancy.min() and self.occupancy.max() <= 1):
                raise ValueError("occupancy must be above 0 and at most 1")
        if self.groups is not None:
            self.groups = np.array(self.groups)
            shape = (len(numbers), 2)
            if self.groups.shape != shape or self.groups.dtype.kind not in "iu":
                got = f"{self.groups.dtype} {self.groups.shape}"
                raise ValueError(f"groups must be integers of shape (num_sites, 2), got {got}")

    def __len__(self) -> int:
        return len(self.numbers)

    def __repr__(self) -> str:
        lengths = np.linalg.norm(self.cell, axis=1)
        cos = [self.cell[i] @ self.cell[j] / lengths[i] / lengths[j] for i, j in _OTHERS]
        a, b, c = lengths
        alpha, beta, gamma = np.degrees(np.arccos(np.clip(cos, -1, 1)))
        name = "" if self.name is None else f"{self.name!r}, "
        return (
            f"Crystal({name}{self.formula}, {len(self)} sites, a={a:.4g} b={b:.4g} c={c:.4g} A, "
            f"alpha={alpha:.4g} beta={beta:.4g} gamma={gamma:.4g})"
        )

    @property
    def volume(self) -> float:
        """Volume of the cell in cubic angstrom."""
        return float(abs(np.linalg.det(self.cell)))

    @property
    def formula(self) -> str:
        """Contents of the cell, the least electronegative element first: ``"Na4Cl4"``."""
        return _formula(self._amounts())

    @property
    def reduced_formula(self) -> str:
        """The formula over the largest common divisor of its amounts: ``"NaCl"``."""
        amounts = self._amounts()
        if all(amount == int(amount) for amount in amounts.values()):
            divisor = math.gcd(*map(int, amounts.values()))
            amounts = {number: amount / divisor for number, amount in amounts.items()}
        return _formula(amounts)

    def _amounts(self) -> dict[int, float]:
        amounts = np.bincount(self.numbers, self.occupancy)
        return {int(number): float(amounts[number]) for number in np.flatnonzero(amounts)}

    def site_label(self, site: int) -> str:
        """The symbol of a site, or its species with their shares: ``"Fe0.5Ni0.25Vac0.25"``.

        Args:
            site: its number; species that share a place are one site. To label many, use
                ``site_labels``.
        """
        return self.site_labels()[site]

    def site_labels(self) -> list[str]:
        """The labels of all sites, the largest share first and the share of vacancies last.

        Without disorder, sites are rows. With it, site k has its first row at
        ``find_places(crystal).first[k]``.
        """
        if self.occupancy is None:
            return [SYMBOLS[number] for number in self.numbers]
        places = find_places(self)
        species: list[dict[str, float]] = [{} for _ in range(len(places))]
        for place, number, share in zip(places.place, self.numbers, self.occupancy, strict=True):
            symbol = SYMBOLS[number]
            species[place][symbol] = species[place].get(symbol, 0.0) + float(share)
        return [mixture_label(shares) for shares in species]

    def primitive(self, method: str = "spglib", tolerance: float | None = None) -> Crystal:
        """The smallest cell that repeats to this crystal.

        A cell that is primitive already is returned as it is, as the published code does; otherwise
        the primitive cell is Niggli-reduced. Two sites are equivalent only if they agree in
        species, oxidation state and occupancy.

        Args:
            method: ``"spglib"``; or ``"pymatgen"``, what the published code calls, to have the very
                same axes and order of sites. Where spglib finds no cell, the crystal is returned
                as it is.
            tolerance: how far from its image a site may lie, in angstrom; None takes 0.01 for
                spglib and the published 0.5 for pymatgen.

        Raises:
            ImportError: pymatgen is asked for and not installed.
        """
        if method == "pymatgen":
            structure = self.to_pymatgen().get_primitive_structure(tolerance or 0.5)
            crystal = Crystal.from_pymatgen(structure, disorder="average")
            return dataclasses.replace(crystal, name=self.name, warnings=self.warnings)
        if method != "spglib":
            raise ValueError(f"method must be 'spglib' or 'pymatgen', got {method!r}")
        tolerance = 0.01 if tolerance is None else tolerance
        if self.occupancy is None and math.gcd(*np.bincount(self.numbers).tolist()) == 1:
            return self  # translations permute the sites of an element
        places = find_places(self)
        frac, kinds = self.frac[places.first], places.kinds
        if self.groups is not None:
            columns = np.column_stack([kinds, self.groups[places.first]])
            kinds = np.unique(columns, axis=0, return_inverse=True)[1].reshape(-1)
        _, place_of_kind = np.unique(kinds, return_index=True)
        reduced = primitive_cell(self.cell, frac, kinds, tolerance)
        if reduced is None:
            return self
        cell, frac, kinds = reduced
        rows, place = places.rows_on(place_of_kind[kinds])
        return self._in_cell(cell, frac[place], rows)

    def _in_cell(self, cell: np.ndarray, frac: np.ndarray, rows: np.ndarray) -> Crystal:
        """The crystal in another cell, each site of which is a copy of a row of this one."""
        return Crystal(
            cell,
            frac,
            self.numbers[rows],
            None if self.oxidation is None else self.oxidation[rows],
            None if self.occupancy is None else self.occupancy[rows],
            self.name,
            self.warnings,
            None if self.groups is None else self.groups[rows],
        )

    def supercell(self, max_sites: int | None = None) -> Crystal:
        """The published supercell: nearly cubic, grown while it holds at most ``max_sites``.

        Args:
            max_sites: most sites of the supercell; a larger cell is not repeated, but sheared.
                Species that share a place are one site. None takes 500, the paper's largest; 0
                returns the crystal as it is.

        Returns:
            A crystal in which the images of a site are adjacent: row j is an image of site
            j // images.

        Source: cif_zip_to_hdf5.py of the published Site-Net; see ``supercell_matrix``.
        """
        if max_sites is None:
            max_sites = 500
        if max_sites == 0:
            return self
        places = len(self) if self.occupancy is None else len(find_places(self))
        matrix = supercell_matrix(self.cell, places, max_sites)
        frac = repeat_sites(self.frac, matrix)
        images = len(frac) // len(self)
        return self._in_cell(matrix @ self.cell, frac, np.repeat(np.arange(len(self)), images))

    @classmethod
    def from_pymatgen(cls, structure: pymatgen.core.Structure, disorder: str = "error") -> Crystal:
        """Convert a pymatgen ``Structure``.

        Args:
            structure: a disordered site becomes one row per species.
            disorder: what to do about partial occupancy, as in ``read_cif``.

        Raises:
            TypeError: it is not a ``Structure``.
            ValueError: a species is not an element, or a site is partly occupied.
        """
        return cls(*exchange.arrays_of_pymatgen(structure, disorder))

    def to_pymatgen(self) -> pymatgen.core.Structure:
        """Convert to a pymatgen ``Structure``; rows that share a position become one site."""
        return exchange.to_pymatgen(self)

    @classmethod
    def from_ase(cls, atoms: ase.Atoms) -> Crystal:
        """Convert ASE ``Atoms``, taken as periodic in the three vectors of their cell.

        Raises:
            TypeError: they are not ``Atoms``.
            ValueError: the cell has no volume, an atom is no element, or a site is partly occupied.
        """
        return cls(*exchange.arrays_of_ase(atoms))

    def to_ase(self) -> ase.Atoms:
        """Convert to ASE ``Atoms``, which have neither oxidation states nor partial occupancy.

        Raises:
            ValueError: a site is partly occupied.
        """
        return exchange.to_ase(self)


_OTHERS = ((1, 2), (0, 2), (0, 1))  # the vectors between which alpha, beta and gamma lie


def _floats(values: Any, name: str, shape: tuple[int, ...]) -> np.ndarray:
    array = np.array(values, dtype=np.float64)
    if array.shape != shape:
        expected = "(num_sites, 3)" if name == "frac" else shape
        raise ValueError(f"{name} must have shape {expected}, got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite")
    return array


def _formula(amounts: dict[int, float]) -> str:
    column = SITE_FEATURES.index("Electronegativity")
    electronegativity = site_features(list(amounts), missing="mean")[:, column]
    order = sorted(zip(electronegativity, amounts, strict=True))
    parts = [(SYMBOLS[number], amounts[number]) for _, number in order]
    return "".join(symbol + ("" if amount == 1 else f"{amount:g}") for symbol, amount in parts)


def read_cif(
    source: str | os.PathLike[str] | bytes,
    disorder: str = "error",
    limits: Limits | None = None,
    strict: bool = False,
) -> Crystal:
    """Read the first structure of a CIF.

    Args:
        source: path of a file (``.cif``, ``.mcif``, also gzipped), or its text.
        disorder: what to do about partial occupancy: ``"error"``, or ``"average"`` to keep it in
            ``Crystal.occupancy``, for models to average over what shares a position.
        limits: what a file may ask for before it is refused.
        strict: whether to refuse a file that contradicts itself or holds further structures,
            instead of warning.

    Returns:
        The crystal in the cell of the file, symmetry expanded, named after its block.

    Raises:
        CifError: the file holds no sound structure; says which block and why.
        OSError: there is no such file.

    Warns:
        CifWarning: for each entry of ``Crystal.warnings``: the atoms contradict the formula, Z,
            density, volume or space group that the file states, or it holds further structures.
    """
    file, blocks, limits = _open(source, disorder, limits)
    crystal = _read(file, blocks[0], disorder, limits)
    others = [block.name for block in blocks[1:]]
    if others:
        names = ", ".join(f"{name:.40}" for name in others[:3]) + (", ..." if others[3:] else "")
        further = f"the file holds {len(others)} more structure{'s' * (len(others) > 1)} ({names})"
        crystal.warnings += (f"{further}, which read_cifs reads",)
    _report(file, crystal, strict)
    return crystal


def read_cifs(
    source: str | os.PathLike[str] | bytes,
    disorder: str = "error",
    limits: Limits | None = None,
    strict: bool = False,
) -> list[Crystal]:
    """Read all structures of a CIF, one for each block that has atoms; see ``read_cif``."""
    file, blocks, limits = _open(source, disorder, limits)
    crystals = [_read(file, block, disorder, limits) for block in blocks]
    for crystal in crystals:
        _report(file, crystal, strict)
    return crystals


def read_each(
    source: str | os.PathLike[str] | bytes, disorder: str = "error", limits: Limits | None = None
) -> Iterator[tuple[str, Crystal | CifError]]:
    """Read the structures of a CIF one by one, so that one bad block does not lose the others.

    Args as in ``read_cif``. Warnings are only kept in ``Crystal.warnings``.

    Yields:
        The name of each block that has atoms, and its crystal, or why it cannot be read.

    Raises:
        CifError: the file has no structure at all, or cannot be split into blocks.
        OSError: there is no such file.
    """
    file, blocks, limits = _open(source, disorder, limits)
    for block in blocks:
        try:
            yield block.name, _read(file, block, disorder, limits)
        except CifError as error:
            yield block.name, error


def _open(
    source: str | os.PathLike[str] | bytes, disorder: str, limits: Limits | None
) -> tuple[str, list[Block], Limits]:
    """The name of a file and its blocks that have atoms; if none has, the first block."""
    if disorder not in get_args(Disorder):
        raise ValueError(f"disorder must be 'error' or 'average', got {disorder!r}")
    limits = limits or Limits()
    file = "CIF text"
    try:
        if isinstance(source, str) and re.search(r"[\r\n]|\s_cell", source):
            text = source
        elif isinstance(source, bytes):
            text = read_text(source, limits)
        elif isinstance(source, (str, os.PathLike)):
            file = os.fspath(source)
            text = read_text(Path(source), limits)
        else:
            kind = type(source).__name__
            raise TypeError(f"expected a path, CIF text or its bytes, got {kind}")
        blocks = read_blocks(text, limits)
    except Unreadable as error:
        raise CifError(file, None, str(error), error.kind) from None
    except ValueError as error:
        raise CifError(file, None, str(error)) from None
    if not blocks:
        raise CifError(file, None, "no data block", "no data block")
    return file, [block for block in blocks if has_sites(block)] or blocks[:1], limits


def _read(file: str, block: Block, disorder: str, limits: Limits) -> Crystal:
    try:
        structure = read_structure(block, limits, disorder)
        return Crystal(**structure._asdict(), name=block.name or None)
    except Unreadable as error:
        raise CifError(file, block.name, str(error), error.kind) from None
    except ValueError as error:
        raise CifError(file, block.name, str(error)) from None


def _report(file: str, crystal: Crystal, strict: bool) -> None:
    """Warn the caller of ``read_cif`` or ``read_cifs`` of all doubts, or refuse the crystal."""
    if strict and crystal.warnings:
        raise CifError(file, crystal.name, "; ".join(crystal.warnings), "contradictory CIF")
    for text in crystal.warnings:
        warnings.warn(f"{location(file, crystal.name)}: {text}", CifWarning, stacklevel=3)
