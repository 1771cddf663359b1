"""Crystal structures in CIF data blocks: checked, with their symmetry expanded."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

import gemmi
import numpy as np

from sitenet.crystal import cif_blocks as blocks
from sitenet.crystal.cif_blocks import UNKNOWN, Block, Limits, Unreadable
from sitenet.crystal.elements import NUMBERS
from sitenet.crystal.symmetry import (
    NEAR,
    SAME,
    Operations,
    expand,
    fits,
    near_pairs,
    operations_from_names,
    operations_from_triplets,
)

FULL = 1 - 1e-3  # occupancies from here on are 1
_CROWDED = 1.1  # sum of the occupancies of one place beyond which it holds two atoms


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


class Structure(NamedTuple):
    """The arrays of a ``Crystal``."""

    cell: np.ndarray
    frac: np.ndarray
    numbers: np.ndarray
    oxidation: np.ndarray | None
    occupancy: np.ndarray | None


class _Sites(NamedTuple):
    """The atoms that a block lists."""

    labels: list[str]
    frac: np.ndarray
    numbers: np.ndarray
    oxidation: np.ndarray
    occupancy: np.ndarray


def read_structure(block: Block, limits: Limits, disorder: str) -> Structure:
    """The crystal structure in a block.

    Raises:
        Unreadable: there is none, or it is not sound.
    """
    if block.problem is not None:
        raise Unreadable(block.problem)
    cell, operations = _read_cell(block, limits)
    sites = _read_sites(block)
    is_full = sites.occupancy == 1
    if disorder != "average" and not is_full.all():
        row = int(np.argmin(is_full))
        raise Unreadable(
            f"partial occupancy ({sites.labels[row]}: {sites.occupancy[row]:g}); "
            f'disorder="average" reads it, to be averaged over'
        )
    if len(is_full) * len(operations) > 10 * limits.sites:  # they are not all on special positions
        raise Unreadable(f"more than {limits.sites} sites (limit)")
    frac, source = expand(sites.frac, is_full, operations, cell)
    if len(frac) > limits.sites:
        raise Unreadable(f"{len(frac)} sites, more than {limits.sites} (limit)")
    frac, source, occupancy = _settle(sites, cell, frac, source)
    if abs(np.linalg.det(cell)) < limits.site_volume * occupancy.sum():
        raise Unreadable(f"less than {limits.site_volume:g} cubic angstrom an atom (limit)")
    oxidation = sites.oxidation[source]
    return Structure(
        cell,
        frac,
        sites.numbers[source],
        oxidation if oxidation.any() else None,
        occupancy if (occupancy < 1).any() else None,
    )


# ---------------------------------------------------------------------------------------------
# Cell and symmetry


def _read_cell(block: Block, limits: Limits) -> tuple[np.ndarray, Operations]:
    given = [block.value(tag) for tag in (*blocks.LENGTHS, *blocks.ANGLES)]
    for tag, text in zip(blocks.LENGTHS, given, strict=False):
        if text is None:
            raise Unreadable(f"no cell ({tag} is missing)")
    values = [90.0 if text is None else gemmi.cif.as_number(text) for text in given]
    cell = _cell_of(values, limits)
    operations = _read_operations(block, values)
    for k, tag in enumerate(blocks.ANGLES, 3):
        if given[k] is None:  # then it is 90 degrees, where symmetry leaves no choice
            other = _cell_of([*values[:k], 80.0, *values[k + 1 :]], limits)
            if fits(operations, other):
                raise Unreadable(f"no cell ({tag} is missing)")
    if not fits(operations, cell):
        raise Unreadable(f"the cell ({_described(values)}) does not have its symmetry")
    return cell, operations


def _described(values: list[float]) -> str:
    return "{:g} {:g} {:g} A, {:g} {:g} {:g} degrees".format(*values)


def _cell_of(values: list[float], limits: Limits) -> np.ndarray:
    lengths, angles = np.array(values[:3]), np.radians(values[3:])
    if not (np.isfinite(values).all() and (lengths > 0).all() and (angles > 0).all()):
        raise Unreadable(f"impossible cell ({_described(values)})")
    if (lengths > limits.edge).any():
        raise Unreadable(f"cell longer than {limits.edge:g} A (limit): {_described(values)}")
    # As in pymatgen: c along z, a in the plane of x and z.
    cos, sin = np.cos(angles), np.sin(angles)
    cos[abs(cos) < 1e-15] = 0
    x = (cos[2] - cos[0] * cos[1]) / sin[1] if sin[1] > 1e-9 else np.inf
    y_squared = sin[0] ** 2 - x**2
    if not ((angles < np.pi).all() and y_squared > 1e-6):
        raise Unreadable(f"impossible cell ({_described(values)})")
    directions = [[sin[1], 0, cos[1]], [x, np.sqrt(y_squared), cos[0]], [0, 0, 1]]
    return lengths[:, None] * np.array(directions)


def _read_operations(block: Block, cell: list[float]) -> Operations:
    names = tuple(name for tag in blocks.NAMES if (name := block.value(tag)) is not None)
    hall, number = block.value(*blocks.HALL), block.value(*blocks.GROUP_NUMBERS)
    is_named = bool(names) or hall is not None or number is not None
    try:
        for tag in blocks.OPERATIONS:
            triplets = block.columns.get(tag)
            if triplets and triplets[0] not in UNKNOWN:
                centerings = block.columns.get(blocks.CENTERINGS) or ["x,y,z"]
                try:
                    return operations_from_triplets(tuple(triplets), tuple(centerings))
                except ValueError:
                    if not is_named:
                        raise
        if is_named:
            return operations_from_names(hall, names, number, cell[3], cell[5])
        return operations_from_triplets(("x,y,z",))
    except ValueError as error:
        raise Unreadable(str(error)) from None


# ---------------------------------------------------------------------------------------------
# Sites


def _read_sites(block: Block) -> _Sites:
    columns = block.columns
    fract = [columns.get(tag, []) for tag in blocks.FRACT]
    count = len(fract[0])
    if not count:
        what = "Cartesian coordinates only" if blocks.CARTN in columns else "no _atom_site_fract_x"
        raise Unreadable(f"no sites ({what})")
    labels = columns.get(blocks.LABEL) or columns.get(blocks.SYMBOL)
    if labels is None:
        raise Unreadable("sites have neither _atom_site_type_symbol nor _atom_site_label")
    symbols = columns.get(blocks.SYMBOL, labels)
    shares = columns.get(blocks.OCCUPANCY, ["1"] * count)
    flags = columns.get(blocks.FLAG, ["d"] * count)
    if {len(column) for column in (*fract, labels, symbols, shares, flags)} != {count}:
        raise Unreadable("columns of _atom_site_ differ in length")
    occupancy = _read_occupancy(shares, labels, flags)
    if "dum" in flags or not occupancy.all():
        rows = [k for k in range(count) if flags[k] != "dum" and occupancy[k] > 0]
        *fract, labels, symbols = (
            [column[k] for k in rows] for column in (*fract, labels, symbols)
        )
        occupancy = occupancy[rows]
        if not rows:
            raise Unreadable("no sites (none is occupied)")
    frac = np.stack([_numbers(column, labels) for column in fract], 1)
    source, numbers, oxidation, share = _read_species(block, symbols, labels)
    labels = [labels[k] for k in source] if len(source) > len(frac) else labels
    return _Sites(labels, frac[source], numbers, oxidation, occupancy[source] * share)


def _numbers(column: list[str], labels: list[str]) -> np.ndarray:
    try:
        values = np.array([float(text) for text in column])
    except ValueError:
        values = np.array([gemmi.cif.as_number(text) for text in column])
    sound = abs(values) < 1000  # false for NaN
    if not sound.all():
        row = int(np.argmin(sound))
        raise Unreadable(f"coordinates of {labels[row]} are unknown: {column[row]!r}")
    return values


def _read_occupancy(column: list[str], labels: list[str], flags: list[str]) -> np.ndarray:
    """Occupancies, 1 where they are not known."""
    if column.count("1") == len(column):
        return np.ones(len(column))
    values = np.array([gemmi.cif.as_number(text, 1.0) for text in column])
    sound = (values >= 0) & (values <= _CROWDED)
    for row in np.flatnonzero(~sound):
        if flags[row] != "dum":
            raise Unreadable(f"occupancy of {labels[row]} is {column[row]}")
    return np.where(values >= FULL, 1.0, values)


def _read_species(
    block: Block, symbols: list[str], labels: list[str]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The species on the sites: which site, its element, its charge, its share of the site."""
    symbols_known = symbols is not labels
    texts = symbols
    if symbols_known and not UNKNOWN.isdisjoint(symbols):
        texts = [b if a in UNKNOWN else a for a, b in zip(symbols, labels, strict=True)]
        symbols_known = False
    formula: frozenset[str] = frozenset()
    if not symbols_known:
        words = re.findall("[A-Z][a-z]?", block.value(blocks.FORMULA) or "")
        formula = frozenset(words).intersection(NUMBERS)
    charges = _listed_charges(block)
    species = {text: _species(text, formula, charges) for text in set(texts)}
    sources, rows = [], []
    for site, text in enumerate(texts):
        if not species[text]:
            raise Unreadable(f"unknown element {text!r} (site {labels[site]})")
        for each in species[text]:
            sources.append(site)
            rows.append(each)
    numbers, oxidation, share = np.array(rows).T
    return np.array(sources), numbers.astype(np.int64), oxidation, share


def _listed_charges(block: Block) -> dict[str, float]:
    listed = block.columns.get(blocks.CHARGED, ()), block.columns.get(blocks.CHARGES, ())
    charges = {symbol: gemmi.cif.as_number(text) for symbol, text in zip(*listed, strict=False)}
    return {symbol: charge for symbol, charge in charges.items() if np.isfinite(charge)}


_SHARE = re.compile(r"\s*(\d*\.\d+)\s*([A-Z][a-z]?[\d+-]*)\s*")
_LETTERS = re.compile(r"\d*([A-Za-z]{1,2})(?![a-z]{2})")
_CHARGED = re.compile(r"[A-Za-z]{1,2}(?:(\d+\.?\d*)?([+-])|([+-])(\d+\.?\d*))")


def _species(
    text: str, formula: frozenset[str], charges: dict[str, float]
) -> list[tuple[int, float, float]]:
    """Atomic number, charge and share of a type symbol, or of several: 0.75Si + 0.25Al. A charge
    is part of the symbol (Na+, O2-, Fe+3) or listed. None where a symbol names no element."""
    parts = text.split(" + ")
    matches = [match for part in parts if (match := _SHARE.fullmatch(part))]
    if len(matches) == len(parts):
        shared = [(match[2], float(match[1])) for match in matches]
        if sum(share for _, share in shared) > 1.001:
            return []
    else:
        shared = [(text, 1.0)]
    found = []
    for symbol, share in shared:
        number = _element(symbol, formula)
        charge = charges.get(symbol)
        if charge is None:
            sign = _CHARGED.fullmatch(symbol)
            charge = float((sign[2] or sign[3]) + (sign[1] or sign[4] or "1")) if sign else 0.0
        if not number or abs(charge) > 9:
            return []
        found.append((number, charge, share))
    return found


@functools.lru_cache(4096)
def _element(text: str, formula: frozenset[str]) -> int:
    """Atomic number of a type symbol or label; 0 if it names no element. A formula tells the
    hydrogen HO1 from holmium."""
    letters = _LETTERS.match(text)
    if not letters:
        return 0
    choices = [letters[1].capitalize(), letters[1][0].upper()]
    if text[:3].lower() == "wat":
        choices = ["O"]
    choices = [_ISOTOPES.get(symbol, symbol) for symbol in choices]
    choices = [symbol for symbol in choices if symbol in NUMBERS]
    choices.sort(key=lambda symbol: symbol not in formula)
    return NUMBERS[choices[0]] if choices else 0


_ISOTOPES = {"D": "H", "T": "H"}


def _settle(
    sites: _Sites, cell: np.ndarray, frac: np.ndarray, source: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What is meant to be one place becomes one: coordinates, listed sites and occupancies.

    A file may list sites that are symmetry images of others: they go. Species whose occupancies
    add up to 1 share a place if they are nearer than SAME.
    """
    while True:
        pairs, distance = near_pairs(cell, frac)
        if not len(pairs):
            return frac, source, sites.occupancy[source]
        i, j = source[pairs].T
        crowded = sites.occupancy[i] + sites.occupancy[j] > _CROWDED
        if not crowded.any():
            break
        equal = (i != j) & (distance < SAME)
        for column in (sites.numbers, sites.oxidation, sites.occupancy):
            equal &= column[i] == column[j]
        listed_apart = np.linalg.norm((sites.frac[i] - sites.frac[j]) @ cell, axis=1) > NEAR
        wrong = crowded & ~(equal & listed_apart)
        if wrong.any():
            k = int(np.argmax(wrong))
            a, b = sites.labels[i[k]], sites.labels[j[k]]
            raise Unreadable(f"two atoms in one place ({a} and {b}, {distance[k]:.3f} A apart)")
        keep = ~np.isin(source, j[crowded])
        frac, source = frac[keep], source[keep]
    for a, b in pairs[distance < SAME].tolist():
        frac[b] = frac[a]
    occupancy = sites.occupancy[source]
    place = np.unique(frac, axis=0, return_inverse=True)[1].reshape(-1)
    total = np.bincount(place, occupancy)[place]
    if total.max() > _CROWDED:
        raise Unreadable(f"two atoms in one place ({sites.labels[source[np.argmax(total)]]})")
    return frac, source, occupancy / np.maximum(total, 1)
