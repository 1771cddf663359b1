"""Crystal structures in CIF text: what a block says, checked, with its symmetry expanded."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import gemmi
import numpy as np

from sitenet.elements import NUMBERS
from sitenet.supercell import wrapped

SPECIAL = 0.4  # angstrom: images of one site that are nearer are one site on a special position
COINCIDENT = 0.3  # angstrom: no two atoms of a crystal are nearer
FULL = 1 - 1e-3  # occupancies from here on are 1


class CifError(ValueError):
    """A CIF that cannot be read.

    Attributes:
        file: path of the file, or "CIF text".
        block: name of the data block, or None if it is the file as a whole.
        reason: what is wrong.
    """

    def __init__(self, file: str, block: str | None, reason: str) -> None:
        super().__init__(file, block, reason)
        self.file, self.block, self.reason = file, block, reason

    def __str__(self) -> str:
        where = self.file if self.block is None else f"{self.file}, data_{self.block}"
        return f"{where}: {self.reason}"


@dataclass(frozen=True)
class Limits:
    """What a file may ask for before it is refused.

    Attributes:
        file_bytes: size of a file, and of what it holds where it is compressed.
        sites: sites of the cell, symmetry expanded.
        edge: length of a cell vector in angstrom.
    """

    file_bytes: int = 256 << 20
    sites: int = 50_000
    edge: float = 2000.0


class Structure(NamedTuple):
    """The arrays of a ``Crystal``."""

    cell: np.ndarray
    frac: np.ndarray
    numbers: np.ndarray
    oxidation: np.ndarray | None
    occupancy: np.ndarray | None


class Unreadable(Exception):
    """Why a block cannot be read; becomes a CifError, which names the file and the block."""


# Names of one thing in the versions of the dictionary; lower case, dots as underscores.
_OPERATIONS = (
    "_space_group_symop_operation_xyz",
    "_symmetry_equiv_pos_as_xyz",
    "_space_group_symop_magn_operation_xyz",
)
_CENTERINGS = "_space_group_symop_magn_centering_xyz"
_NAMES = (
    "_space_group_name_hall",
    "_symmetry_space_group_name_hall",
    "_space_group_name_h-m_alt",
    "_symmetry_space_group_name_h-m",
    "_space_group_name_h-m_full",
    "_space_group_name_h-m",
)
_GROUP_NUMBERS = ("_space_group_it_number", "_symmetry_int_tables_number")
_CELL = tuple(f"_cell_length_{x}" for x in "abc") + tuple(
    f"_cell_angle_{x}" for x in ("alpha", "beta", "gamma")
)
_FRACT = tuple(f"_atom_site_fract_{x}" for x in "xyz")
_RELEVANT = ("_cell", "_atom", "_space_group", "_symmetry", "_chemical_formula_sum")


class Block(NamedTuple):
    """A data block: the values of each tag as they stand in the file."""

    name: str
    values: dict[str, list[str]]

    def column(self, tag: str) -> list[str] | None:
        return self.values.get(tag)

    def value(self, *tags: str) -> str | None:
        """The first of the tags that has a value, without quotes."""
        for tag in tags:
            found = self.values.get(tag)
            if found and found[0] not in ("?", "."):
                return gemmi.cif.as_string(found[0]).strip()
        return None


def read_blocks(text: str) -> Iterator[Block]:
    """The data blocks of a CIF.

    Raises:
        Unreadable: the text is not a CIF.
    """
    try:
        document = gemmi.cif.read_string(text, 0)
    except (ValueError, RuntimeError) as error:
        raise Unreadable(f"not a CIF: {str(error).removeprefix('string:')}") from None
    for block in document:
        values: dict[str, list[str]] = {}
        for item in block:
            if item.pair is not None:
                tag = item.pair[0].lower().replace(".", "_")
                if tag.startswith(_RELEVANT):
                    values.setdefault(tag, [item.pair[1]])
            elif item.loop is not None:
                loop = item.loop
                tags = [tag.lower().replace(".", "_") for tag in loop.tags]
                if tags[0].startswith(_RELEVANT):
                    cells = loop.values
                    for k, tag in enumerate(tags):
                        values.setdefault(tag, cells[k :: len(tags)])
        yield Block(block.name, values)


def has_sites(block: Block) -> bool:
    """Whether a block lists atoms with fractional coordinates."""
    return _FRACT[0] in block.values


def read_structure(block: Block, limits: Limits, disorder: str) -> Structure:
    """The crystal structure in a block.

    Raises:
        Unreadable: there is none, or it is not sound.
    """
    cell = _read_cell(block, limits)
    columns = [block.column(tag) for tag in _FRACT]
    if any(column is None for column in columns):
        raise Unreadable("no sites (no _atom_site_fract_x, _y and _z)")
    count = len(columns[0])
    if any(len(column) != count for column in columns):
        raise Unreadable("_atom_site_fract_x, _y and _z differ in length")
    labels = block.column("_atom_site_label") or block.column("_atom_site_type_symbol")
    symbols = block.column("_atom_site_type_symbol") or labels
    if symbols is None:
        raise Unreadable("sites have neither _atom_site_type_symbol nor _atom_site_label")
    occupancy = _read_occupancy(block, count)
    keep = [k for k in range(count) if not _is_dummy(block, k)] if _has_dummies(block) else None
    if occupancy is not None and (occupancy <= 0).any():
        keep = [k for k in (range(count) if keep is None else keep) if occupancy[k] > 0]
    if keep is not None:
        columns = [[column[k] for k in keep] for column in columns]
        labels, symbols = ([names[k] for k in keep] for names in (labels, symbols))
        occupancy = None if occupancy is None else occupancy[keep]
    if not symbols:
        raise Unreadable("no sites")
    frac = np.stack([_numbers(column, labels) for column in columns], 1)
    numbers, oxidation = _read_species(block, symbols, labels)
    if occupancy is not None and (occupancy < FULL).any():
        if disorder != "average":
            partial = int(np.argmin(occupancy))
            raise Unreadable(
                f"partial occupancy ({labels[partial]} has {occupancy[partial]:g}); "
                f'disorder="average" reads it and averages over what shares a position'
            )
    else:
        occupancy = None
    rotations, translations = _read_symmetry(block, cell)
    if len(frac) * len(rotations) > 200 * limits.sites:
        raise Unreadable(f"more than {limits.sites} sites (limit)")
    frac, source = _expand(frac, rotations, translations, cell)
    if len(frac) > limits.sites:
        raise Unreadable(f"{len(frac)} sites, more than {limits.sites} (limit)")
    numbers = numbers[source]
    oxidation = None if oxidation is None else oxidation[source]
    occupancy = None if occupancy is None else occupancy[source]
    if occupancy is None:
        pairs = coincident_pairs(cell, frac)
        if len(pairs):
            a, b = (labels[source[k]] for k in pairs[0])
            raise Unreadable(f"two atoms in one place: {a} and {b}")
    return Structure(cell, frac, numbers, oxidation, occupancy)


def _read_cell(block: Block, limits: Limits) -> np.ndarray:
    values = []
    for tag in _CELL:
        text = block.value(tag)
        if text is None:
            raise Unreadable(f"no cell ({tag} is missing)")
        values.append(gemmi.cif.as_number(text))
    lengths, angles = np.array(values[:3]), np.radians(values[3:])
    described = "a, b, c = {:g}, {:g}, {:g} A; alpha, beta, gamma = {:g}, {:g}, {:g}".format(
        *values
    )
    if not (np.isfinite(values).all() and (lengths > 0).all()):
        raise Unreadable(f"impossible cell ({described})")
    if (lengths > limits.edge).any():
        raise Unreadable(f"cell longer than {limits.edge:g} A (limit): {described}")
    cos = np.cos(angles)
    cos[abs(cos) < 1e-15] = 0
    sin = np.sin(angles[2])
    y = (cos[0] - cos[1] * cos[2]) / sin if sin > 0 else np.inf
    z_squared = 1 - cos[1] ** 2 - y**2
    if not (((angles > 0) & (angles < np.pi)).all() and z_squared > 1e-6):
        raise Unreadable(f"impossible cell ({described})")
    return lengths[:, None] * np.array(
        [[1, 0, 0], [cos[2], sin, 0], [cos[1], y, np.sqrt(z_squared)]]
    )


def _numbers(column: list[str], labels: list[str]) -> np.ndarray:
    try:
        values = np.array([float(text) for text in column])
    except ValueError:
        values = np.array([gemmi.cif.as_number(gemmi.cif.as_string(text)) for text in column])
    if not np.isfinite(values).all():
        k = int(np.argmin(np.isfinite(values)))
        raise Unreadable(f"coordinate of {labels[k]} is not a number: {column[k]}")
    return values


def _read_occupancy(block: Block, count: int) -> np.ndarray | None:
    column = block.column("_atom_site_occupancy")
    if column is None or column.count("1") == len(column):
        return None
    values = np.array([gemmi.cif.as_number(gemmi.cif.as_string(text), 1.0) for text in column])
    return values


def _has_dummies(block: Block) -> bool:
    flags = block.column("_atom_site_calc_flag")
    return flags is not None and "dum" in flags


def _is_dummy(block: Block, k: int) -> bool:
    return block.values["_atom_site_calc_flag"][k] == "dum"


_SYMBOL = re.compile(r"\d*([A-Za-z]{1,2})")
_CHARGE = re.compile(r"(\d+\.?\d*)([+-])|([+-])(\d+\.?\d*)?")


@functools.lru_cache(4096)
def _element(text: str) -> int:
    """Atomic number of a type symbol or label; 0 if it names no element."""
    found = _SYMBOL.match(text)
    if not found:
        return 0
    letters = found[1]
    for symbol in (letters.capitalize(), letters[0].upper()):
        if symbol in NUMBERS:
            return NUMBERS[symbol]
        if symbol in ("D", "T"):
            return 1
    return 0


@functools.lru_cache(4096)
def _charge(text: str) -> float:
    """Oxidation state in a type symbol such as Na+, O2- or Fe+3; 0 if there is none."""
    found = _CHARGE.search(text)
    if not found:
        return 0.0
    size, sign = (found[1], found[2]) if found[2] else (found[4] or "1", found[3])
    return float(size) if sign == "+" else -float(size)


def _read_species(
    block: Block, symbols: list[str], labels: list[str]
) -> tuple[np.ndarray, np.ndarray | None]:
    numbers = np.array([_element(symbol) for symbol in symbols], dtype=np.int64)
    if not numbers.all():
        k = int(np.argmin(numbers))
        raise Unreadable(f"unknown element {symbols[k]!r} (site {labels[k]})")
    if any("+" in symbol or "-" in symbol for symbol in symbols):
        return numbers, np.array([_charge(symbol) for symbol in symbols])
    return numbers, None


def _read_symmetry(block: Block, cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    for tag in _OPERATIONS:
        listed = block.column(tag)
        if listed:
            centerings = block.column(_CENTERINGS) or ["x,y,z"]
            try:
                return _operations(tuple(listed), tuple(centerings))
            except (RuntimeError, ValueError) as error:
                raise Unreadable(f"{tag} cannot be understood: {error}") from None
    name = block.value(*_NAMES)
    number = block.value(*_GROUP_NUMBERS)
    if name is None and number is None:
        return _operations(("x,y,z",), ("x,y,z",))
    return _group_operations(name, number)


@functools.lru_cache(1024)
def _operations(
    triplets: tuple[str, ...], centerings: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray]:
    def parse(triplet: str) -> gemmi.Op:
        parts = gemmi.cif.as_string(triplet).split(",")
        return gemmi.Op(",".join(part.strip() for part in parts[:3]))

    operations = [parse(c) * parse(t) for c in centerings for t in triplets]
    return _arrays(operations)


@functools.lru_cache(1024)
def _group_operations(name: str | None, number: str | None) -> tuple[np.ndarray, np.ndarray]:
    group = None
    if name is not None:
        group = gemmi.find_spacegroup_by_name(name)
    if group is None and name is None and number is not None:
        group = gemmi.find_spacegroup_by_number(int(number))
    if group is not None:
        return _arrays(list(group.operations()))
    try:
        return _arrays(list(gemmi.symops_from_hall(name or "")))
    except (RuntimeError, ValueError):
        raise Unreadable(f"unknown space group {name!r}") from None


def _arrays(operations: list[gemmi.Op]) -> tuple[np.ndarray, np.ndarray]:
    rotations = np.array([op.rot for op in operations]) / gemmi.Op.DEN
    translations = np.array([op.tran for op in operations]) / gemmi.Op.DEN
    return rotations, translations


def _expand(
    frac: np.ndarray, rotations: np.ndarray, translations: np.ndarray, cell: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """All images of the sites in the cell, site by site, and the site that each is of.

    A site near a special position, within the rounding of its coordinates, moves onto it: to the
    mean of its images that are nearer than SPECIAL.
    """
    if len(rotations) == 1:
        return wrapped(frac), np.arange(len(frac))
    parts, counts = [], []
    for site in frac:
        images = rotations @ site + translations
        shift = images - site
        shift -= np.round(shift)
        near = np.linalg.norm(shift @ cell, axis=1) < SPECIAL
        if near.sum() > 1:
            images = rotations @ (site + shift[near].mean(0)) + translations
            between = images[:, None] - images
            between -= np.round(between)
            same = np.linalg.norm(between @ cell, axis=2) < SPECIAL
            images = images[~np.tril(same, -1).any(1)]
        parts.append(images)
        counts.append(len(images))
    return wrapped(np.concatenate(parts)), np.repeat(np.arange(len(frac)), counts)


def coincident_pairs(cell: np.ndarray, frac: np.ndarray) -> np.ndarray:
    """Sites nearer to each other than COINCIDENT: (pairs, 2), possibly not all if there are many.

    Sites are sorted into boxes at least twice as wide, of eight grids shifted by half a box: two
    near sites are in one box of one of them.
    """
    widths = 2 * COINCIDENT * np.linalg.norm(np.linalg.inv(cell), axis=0)
    boxes = np.maximum(1, 1 / widths).astype(np.int64)
    box = np.floor(frac * boxes + _HALVES[:, None]).astype(np.int64) % boxes
    keys = (box[..., 0] * boxes[1] + box[..., 1]) * boxes[2] + box[..., 2]  # (8, sites)
    order = np.argsort(keys, axis=1)
    keys = np.take_along_axis(keys, order, 1)
    for step in range(1, len(frac)):
        grid, place = np.nonzero(keys[:, step:] == keys[:, :-step])
        if not len(grid):
            break
        pairs = np.stack([order[grid, place], order[grid, place + step]], 1)
        shift = frac[pairs[:, 0]] - frac[pairs[:, 1]]
        shift -= np.round(shift)
        near = np.linalg.norm(shift @ cell, axis=1) < COINCIDENT
        if near.any():
            return np.unique(np.sort(pairs[near], 1), axis=0)
    return np.empty((0, 2), dtype=np.int64)


_HALVES = np.array([[a, b, c] for a in (0, 0.5) for b in (0, 0.5) for c in (0, 0.5)])
