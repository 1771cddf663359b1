"""What a CIF says besides its atoms, held against what they come to: formula, Z, density, volume.

Tolerances are those of common practice. Coordinates of hydrogens that were not located, formulas
rounded to two digits, and a formula that counts the whole cell (as pymatgen writes it) are not
contradictions, but for the hydrogens.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from sitenet.crystal import cif_blocks as blocks
from sitenet.crystal.cif_blocks import Block
from sitenet.crystal.elements import ISOTOPES, NUMBERS, SYMBOLS, atomic_weights
from sitenet.crystal.symmetry import near_pairs

_SHARE = 0.03  # of an element's amount, by which contents and formula may differ
_ATOMS = 0.1  # per formula unit, by which they may
_MASS = 0.1  # of a stated mass or density
_VOLUME = 0.02
_FAR = 10.0  # angstrom: in no crystal are all atoms so far apart
_GRAMS = 1.66053907  # per cubic centimetre, of 1 u per cubic angstrom


class Contents(NamedTuple):
    """What a cell holds, with symmetry expanded.

    Attributes:
        cell: (3, 3) lattice vectors as rows, angstrom.
        volume: of the cell, cubic angstrom.
        frac: (rows, 3) fractional coordinates of the atoms.
        numbers: (rows,) atomic numbers.
        occupancy: (rows,) occupancies.
        hydrogens: number of those that are stated as attached to atoms, without a row.
    """

    cell: np.ndarray
    volume: float
    frac: np.ndarray
    numbers: np.ndarray
    occupancy: np.ndarray
    hydrogens: float


Amounts = dict[str, float]  # by element


def contradictions(block: Block, contents: Contents, doubts: list[str]) -> list[str]:
    """Statements of a block that its atoms contradict.

    Args:
        block: the block.
        contents: of its cell.
        doubts: of the symmetry; a formula and Z that agree with the atoms dispel them.

    Returns:
        A sentence for each.
    """
    counts = np.bincount(contents.numbers, contents.occupancy)
    amounts = {SYMBOLS[number]: float(counts[number]) for number in np.flatnonzero(counts)}
    formula, units = parse_formula(block.value(blocks.FORMULA)), block.number(blocks.FORMULA_UNITS)
    density, weight = block.number(blocks.DENSITY), block.number(blocks.WEIGHT)
    mass = float(counts @ atomic_weights(np.arange(len(counts)))) if density or weight else 0.0
    own_density = mass * _GRAMS / contents.volume
    agrees = False
    warnings: list[str] = []
    if formula is not None:
        is_dense = bool(density) and _is_near(own_density, density)
        agrees, warnings = _of_formula(amounts, formula, units, is_dense)
    if not agrees and not warnings:
        if contents.hydrogens > 0:
            warnings = [
                f"{blocks.HYDROGENS} states {contents.hydrogens:g} hydrogens per cell "
                f"that are not listed"
            ]
        elif density and not _is_near(own_density, density):
            warnings = [
                f"the atoms have a density of {own_density:.3g} g/cm3, "
                f"{blocks.DENSITY} is {density:g}"
            ]
        elif weight and units and not density and not _is_near(mass, weight * units):
            warnings = [
                f"the atoms weigh {mass:.5g} u, {blocks.WEIGHT} {weight:g} and Z {units:g} "
                f"make {weight * units:.5g} u"
            ]
    return _of_units(block, contents, sum(amounts.values())) + warnings + doubts * (not agrees)


def _is_near(mass: float, stated: float | None) -> bool:
    return stated is not None and abs(mass - stated) <= _MASS * stated


def parse_formula(text: str | None) -> Amounts | None:
    """Amounts by element of a formula such as ``Na1.46 Co O2``; None if it is not of the form that
    the dictionary prescribes. Isotopes count as their element, vacancies as nothing."""
    if text is None:
        return None
    text = "".join(re.sub(r"\(\d+\)", "", text).split())
    terms = re.findall(r"([A-Z][a-z]?)(\d+\.?\d*|\.\d+)?", text)
    if sum(map(len, map("".join, terms))) != len(text):
        return None
    amounts: Amounts = {}
    for symbol, amount in terms:
        symbol = ISOTOPES.get(symbol, symbol)
        if symbol in NUMBERS:
            amounts[symbol] = amounts.get(symbol, 0.0) + float(amount or 1)
        elif symbol not in ("X", "Va", "Vc"):
            return None
    amounts = {symbol: amount for symbol, amount in amounts.items() if amount > 0}
    return amounts or None


def _of_formula(
    amounts: Amounts, formula: Amounts, units: float | None, is_dense: bool
) -> tuple[bool, list[str]]:
    """Whether the contents of the cell are Z formulas, and what speaks against it; ``is_dense``:
    their density is the one that the file states."""
    if units is not None and _is_multiple(amounts, formula, units):
        return True, []
    stated = f"{blocks.FORMULA} {formula_text(formula)}"
    if "H" in formula and "H" not in amounts:
        heavy = {symbol: amount for symbol, amount in formula.items() if symbol != "H"}
        if heavy and _is_multiple(amounts, heavy, sum(amounts.values()) / sum(heavy.values())):
            return False, [f"no H is listed, unlike in {stated}"]
    scale = sum(amounts.values()) / sum(formula.values())
    if not _is_multiple(amounts, formula, scale):
        return False, [f"the cell holds {formula_text(amounts)}, no multiple of {stated}"]
    if units is None or units <= 0:
        return False, []
    if abs(scale - 1) < 1e-6 and all(abs(x / units % 1) < 1e-6 for x in formula.values()):
        return True, []  # the formula is that of the whole cell
    if is_dense:
        return True, []  # then Z is wrong
    expected = formula_text({symbol: amount * units for symbol, amount in formula.items()})
    contents = formula_text(amounts)
    return False, [f"the cell holds {contents}, but {stated} and Z {units:g} make {expected}"]


def _is_multiple(amounts: Amounts, formula: Amounts, units: float) -> bool:
    for symbol in amounts.keys() | formula.keys():
        expected = formula.get(symbol, 0.0)
        tolerance = max(_SHARE * expected, _ATOMS) * units
        if abs(amounts.get(symbol, 0.0) - units * expected) > tolerance:
            return False
    return True


def formula_text(amounts: Amounts) -> str:
    """Amounts by element as a formula, in alphabetical order: ``"Cl4Na4"``."""
    return "".join(
        symbol + ("" if amount == 1 else f"{amount:.4g}")
        for symbol, amount in sorted(amounts.items())
    )


def _of_units(block: Block, contents: Contents, atoms: float) -> list[str]:
    """Whether volume and distances look like those of another unit."""
    volume, stated = contents.volume, block.number(blocks.VOLUME)
    if stated is not None and stated > 0 and abs(volume / stated - 1) > _VOLUME:
        return [
            f"the cell has {volume:.5g} cubic angstrom, {blocks.VOLUME} is {stated:g}: "
            f"wrong lengths, angles or unit"
        ]
    # In the densest packing, atoms at distance d take d^3 / sqrt(2) each.
    if volume / atoms > _FAR**3 / 2**0.5 and _all_far(contents.cell, contents.frac):
        return [
            f"no two atoms are nearer than {_FAR:g} A ({volume / atoms:.3g} cubic angstrom per "
            f"atom): are the lengths in another unit?"
        ]
    return []


_STEPS = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3), -1).reshape(-1, 3)


def _all_far(cell: np.ndarray, frac: np.ndarray) -> bool:
    lengths = np.linalg.norm(_STEPS[_STEPS.any(1)] @ cell, axis=1)
    distance = near_pairs(cell, frac, _FAR)[1]
    return bool(lengths.min() > _FAR and not (distance > 0).any())


def crowded_cell(atoms: float, volume: float, least: float) -> str:
    """Why a cell is too small for its atoms."""
    return (
        f"less than {least:g} cubic angstrom an atom (limit): {volume:.3g} for {atoms:g} atoms; "
        f"are the lengths in another unit?"
    )
