"""The cell and the symmetry operations of a CIF block."""

from __future__ import annotations

from typing import NamedTuple

import gemmi
import numpy as np

from sitenet.crystal import cif_blocks as blocks
from sitenet.crystal.cif_blocks import UNKNOWN, Block, Limits, Unreadable, number_problem, shown
from sitenet.crystal.symmetry import (
    Operations,
    find_group,
    fits,
    operations_from_names,
    operations_from_triplets,
)


class CellWithSymmetry(NamedTuple):
    """A cell as rows in angstrom, and its symmetry operations; what contradicts these by name."""

    cell: np.ndarray
    operations: Operations
    doubts: list[str]


def read_cell(block: Block, limits: Limits) -> CellWithSymmetry:
    """Read the cell of a block, in angstrom, and its symmetry.

    Raises:
        Unreadable: the cell is missing or impossible, or its symmetry is not clear or does not fit.
    """
    lengths = [_length(block, tag) for tag in blocks.LENGTHS]
    angles = [block.value(tag) for tag in blocks.ANGLES]
    values = lengths + [
        90.0 if text is None else _number(tag, text)
        for tag, text in zip(blocks.ANGLES, angles, strict=True)
    ]
    cell = _cell_of(values, limits)
    operations = _read_operations(block, values)
    for k, tag in enumerate(blocks.ANGLES, 3):
        if angles[k - 3] is None:  # then it is 90 degrees, where symmetry leaves no choice
            other = _cell_of([*values[:k], 80.0, *values[k + 1 :]], limits)
            if fits(operations, other):
                raise Unreadable(f"no cell ({tag} is missing)", "no cell")
    if not fits(operations, cell):
        raise Unreadable(
            f"the cell ({_described(values)}) does not have its symmetry",
            "cell without its symmetry",
        )
    return CellWithSymmetry(cell, operations, _doubts(block, operations, values))


def _length(block: Block, tag: str) -> float:
    """A length in angstrom; the tag says by its ending if the file gives it in another unit."""
    for unit, angstrom in blocks.UNITS.items():
        text = block.value(tag + unit)
        if text is not None:
            return _number(tag + unit, text) * angstrom
    raise Unreadable(f"no cell ({tag} is missing)", "no cell")


def _number(tag: str, text: str) -> float:
    value = gemmi.cif.as_number(text)
    if not np.isfinite(value):
        raise Unreadable(f"impossible cell ({tag} is {number_problem(text)})", "impossible cell")
    return value


def _described(values: list[float]) -> str:
    return "{:g} {:g} {:g} A, {:g} {:g} {:g} degrees".format(*values)


def _cell_of(values: list[float], limits: Limits) -> np.ndarray:
    lengths, angles = np.array(values[:3]), np.radians(values[3:])
    if not ((lengths > 0).all() and (angles > 0).all()):
        raise Unreadable(f"impossible cell ({_described(values)})", "impossible cell")
    if (lengths > limits.edge).any():
        raise Unreadable(
            f"cell longer than {limits.edge:g} A (limit): {_described(values)}", "cell too long"
        )
    # As in pymatgen: c along z, a in the plane of x and z.
    cos, sin = np.cos(angles), np.sin(angles)
    cos[abs(cos) < 1e-15] = 0
    x = (cos[2] - cos[0] * cos[1]) / sin[1] if sin[1] > 1e-9 else np.inf
    y_squared = sin[0] ** 2 - x**2
    if not ((angles < np.pi).all() and y_squared > 1e-6):
        raise Unreadable(f"impossible cell ({_described(values)})", "impossible cell")
    directions = [[sin[1], 0, cos[1]], [x, np.sqrt(y_squared), cos[0]], [0, 0, 1]]
    return lengths[:, None] * np.array(directions)


# ---------------------------------------------------------------------------------------------
# Symmetry


def _names(block: Block) -> tuple[str, ...]:
    names = (block.value(tag) for tag in (*blocks.NAMES, *blocks.SCHOENFLIES))
    return tuple(name for name in names if name is not None)


def _read_operations(block: Block, cell: list[float]) -> Operations:
    try:
        operations = _stated_operations(block, cell)
    except ValueError as error:
        raise Unreadable(str(error), "symmetry not understood") from None
    if operations is None:
        _refuse_other_symmetry(block, "")
        return operations_from_triplets(("x,y,z",))
    if len(operations) == 1:  # P 1, perhaps by default, beside a group in more dimensions
        _refuse_other_symmetry(block, "_ssg_", "_magn_")
    return operations


def _stated_operations(block: Block, cell: list[float]) -> Operations | None:
    """The operations that are listed, or those of the space group; None if neither is stated."""
    names, hall = _names(block), block.value(*blocks.HALL)
    number = block.value(*blocks.GROUP_NUMBERS)
    is_named = bool(names) or hall is not None or number is not None
    for tag in blocks.OPERATIONS:
        triplets = block.columns.get(tag)
        if triplets and triplets[0] not in UNKNOWN:
            centerings = block.columns.get(blocks.CENTERINGS) or ["x,y,z"]
            try:
                return operations_from_triplets(tuple(triplets), tuple(centerings))
            except ValueError:
                if not is_named:
                    raise
    return operations_from_names(hall, names, number, cell[3], cell[5]) if is_named else None


_UNDERSTOOD = frozenset(
    (
        *(*blocks.OPERATIONS, blocks.CENTERINGS),
        *(*blocks.NAMES, *blocks.HALL, *blocks.GROUP_NUMBERS, *blocks.SCHOENFLIES),
    )
)
_BY_THE_WAY = ("_id", "_description", "_source", "_details", "_special_details", "_url")
_NO_SYMMETRY = frozenset(
    ("1", "p1", "p1.1", "1.1", "1.1.1", "triclinic", "anorthic", "ap", "x,y,z")
)


def _refuse_other_symmetry(block: Block, *parts: str) -> None:
    """Refuse a block with a symmetry that is not understood, under a tag with one of the parts."""
    if (block.number(blocks.MODULATION) or 0) > 0:
        raise Unreadable(
            "a modulated structure (superspace group) is not read", "symmetry not understood"
        )
    for tag, column in block.columns.items():
        is_symmetry = tag.startswith(blocks.ANY_SYMMETRY) and tag not in _UNDERSTOOD
        is_symmetry = is_symmetry and any(part in tag for part in parts)
        if is_symmetry and not tag.endswith(_BY_THE_WAY):
            value = block.value(tag)
            if value and (len(column) > 1 or value.replace(" ", "").lower() not in _NO_SYMMETRY):
                raise Unreadable(
                    f"symmetry is stated by {tag} ({shown(value)}) only, which is not understood; "
                    f"symmetry operations are needed",
                    "symmetry not understood",
                )


def _doubts(block: Block, operations: Operations, cell: list[float]) -> list[str]:
    """Contradictions between the operations and the space group's names."""
    if (block.number(blocks.MODULATION) or 0) > 0:
        return ["of a modulated structure, only the average is read"]
    names, number = _names(block), block.value(*blocks.GROUP_NUMBERS)
    group = find_group(names, None if names else number, cell[3], cell[5])
    if group is None:
        return []
    is_listed = any(tag in block.columns for tag in blocks.OPERATIONS)
    schoenflies = block.value(*blocks.SCHOENFLIES)
    if len(names) == 1 and schoenflies is not None and not is_listed:
        return [f"the setting {group.hm} of space group {schoenflies} is assumed"]
    if names and number is not None and number.isdigit() and int(number) != group.number:
        return [f"space group {group.hm} is number {group.number}, not {number} as stated"]
    point_group = len({rotation.tobytes() for rotation in operations.rotations})
    expected = len(group.operations().sym_ops)
    if point_group != expected:
        return [
            f"{len(operations)} symmetry operations are listed with {point_group} rotations; "
            f"space group {group.hm} has {expected}"
        ]
    return []
