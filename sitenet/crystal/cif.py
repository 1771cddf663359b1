"""Crystal structures in CIF data blocks: checked, with their symmetry expanded."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sitenet.crystal.cif_blocks import Block, Limits, Unreadable
from sitenet.crystal.cif_cell import read_cell
from sitenet.crystal.cif_checks import Contents, contradictions, crowded_cell
from sitenet.crystal.cif_sites import amount_on_place, merge_coincident_sites, read_sites
from sitenet.crystal.supercell import volume_of
from sitenet.crystal.symmetry import expand


class CifError(ValueError):
    """A CIF that cannot be read.

    Attributes:
        file: path of the file, or "CIF text".
        block: name of the data block, or None if it is the file as a whole.
        reason: what is wrong.
        kind: short fixed phrase, the same for all files with such a fault.
    """

    def __init__(
        self, file: str, block: str | None, reason: str, kind: str = "unreadable CIF"
    ) -> None:
        super().__init__(file, block, reason)
        self.file, self.block, self.reason, self.kind = file, block, reason, kind

    def __str__(self) -> str:
        return f"{location(self.file, self.block)}: {self.reason}"


def location(file: str, block: str | None) -> str:
    """A file and one of its blocks, for messages."""
    return file if block is None else f"{file}, data_{block:.80}"


class CifWarning(UserWarning):
    """A CIF that was read, though it contradicts itself or holds more than was read."""


class Structure(NamedTuple):
    """The arrays of a ``Crystal``, and what is doubtful about them."""

    cell: np.ndarray
    frac: np.ndarray
    numbers: np.ndarray
    oxidation: np.ndarray | None
    occupancy: np.ndarray | None
    warnings: tuple[str, ...]
    groups: np.ndarray | None


def read_structure(block: Block, limits: Limits, disorder: str) -> Structure:
    """Read the crystal structure in a block.

    Raises:
        Unreadable: there is none, or it is not sound.
    """
    if block.problem is not None:
        raise Unreadable(block.problem, "malformed block")
    cell, operations, doubts = read_cell(block, limits)
    sites = read_sites(block)
    is_full = sites.occupancy == 1
    if disorder != "average" and not is_full.all():
        row = int(np.argmin(is_full))
        raise Unreadable(
            f"partial occupancy ({sites.labels[row]:.40}: {sites.occupancy[row]:g}); "
            f'disorder="average" reads it, to be averaged over',
            "partial occupancy",
        )
    volume = abs(volume_of(cell))
    if volume < limits.site_volume * sites.occupancy.sum():  # before images become one atom
        raise Unreadable(
            crowded_cell(sites.occupancy.sum(), volume, limits.site_volume),
            "too little room for the atoms",
        )
    if len(is_full) * len(operations) > 10 * limits.sites:  # they are not all on special positions
        raise Unreadable(f"more than {limits.sites} sites (limit)", "too many sites")
    frac, source = expand(sites.frac, sites.rounding, amount_on_place(sites), operations, cell)
    if len(frac) > limits.sites:
        raise Unreadable(f"{len(frac)} sites, more than {limits.sites} (limit)", "too many sites")
    frac, source, occupancy = merge_coincident_sites(sites, cell, frac, source)
    if volume < limits.site_volume * occupancy.sum():
        raise Unreadable(
            crowded_cell(occupancy.sum(), volume, limits.site_volume),
            "too little room for the atoms",
        )
    numbers, oxidation = sites.numbers[source], sites.oxidation[source]
    hydrogens = float(sites.hydrogens[source] @ occupancy)
    contents = Contents(cell, volume, frac, numbers, occupancy, hydrogens)
    warnings = contradictions(block, contents, doubts)
    return Structure(
        cell,
        frac,
        numbers,
        oxidation if oxidation.any() else None,
        occupancy if (occupancy < 1).any() else None,
        tuple(warnings),
        None if sites.groups is None else sites.groups[source],
    )
