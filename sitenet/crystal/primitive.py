"""Primitive cells: lattice translations that a cell contains, and its Niggli-reduced part."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import spglib

from sitenet.crystal.supercell import wrapped
from sitenet.crystal.symmetry import near_pairs


def primitive_cell(
    cell: np.ndarray, frac: np.ndarray, kinds: np.ndarray, tolerance: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The Niggli-reduced primitive cell of a structure.

    Args:
        cell: (3, 3) lattice vectors as rows, angstrom.
        frac: (sites, 3) fractional coordinates.
        kinds: (sites,) integers, equal for equivalent sites.
        tolerance: how far from its image a site may lie, angstrom.

    Returns:
        Its cell, sites and kinds; None if the cell is primitive already, or spglib finds none.
    """
    if not _has_translation(cell, frac, kinds, tolerance):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # spglib announces how it will report errors
        try:
            standard: Any = spglib.standardize_cell(
                (cell, frac, kinds),  # type: ignore[arg-type]
                to_primitive=True,
                no_idealize=True,
                symprec=tolerance,
            )
            reduced = None if standard is None else spglib.niggli_reduce(standard[0])
        except spglib.SpglibError:
            return None
    if standard is None or len(standard[2]) >= len(kinds):
        return None
    cell, frac, kinds = standard
    if reduced is None:
        return cell, wrapped(frac), kinds
    return reduced, wrapped(frac @ cell @ np.linalg.inv(reduced)), kinds


def _has_translation(
    cell: np.ndarray, frac: np.ndarray, kinds: np.ndarray, tolerance: float
) -> bool:
    """Whether a shift by a part of the cell maps every site onto one of its kind.

    Such shifts form a group whose order divides the number of sites of each kind. If there are any,
    one has a prime order p: p times the shift is a lattice vector.
    """
    counts = np.bincount(kinds)
    common = math.gcd(*counts.tolist())
    if common == 1:
        return False
    rarest = frac[kinds == np.argmin(np.where(counts > 0, counts, len(kinds) + 1))]
    shifts = rarest[1:] - rarest[0]
    for p in _prime_factors(common):
        rest = p * shifts
        rest -= np.round(rest)
        near = np.linalg.norm(rest @ cell, axis=1) < 2 * p * tolerance
        if any(_maps(cell, frac, kinds, shift, tolerance) for shift in shifts[near]):
            return True
    return False


def _prime_factors(number: int) -> list[int]:
    factors, p = [], 2
    while p * p <= number:
        if number % p == 0:
            factors.append(p)
            while number % p == 0:
                number //= p
        p += 1
    return factors + [number] * (number > 1)


def _maps(
    cell: np.ndarray, frac: np.ndarray, kinds: np.ndarray, shift: np.ndarray, tolerance: float
) -> bool:
    """Whether each site, once shifted, lies on a site of its kind."""
    few = slice(0, 8)
    between = frac[few, None] + shift - frac
    between -= np.round(between)
    same = np.linalg.norm(between @ cell, axis=2) < tolerance
    if not (same & (kinds[few, None] == kinds)).any(1).all():
        return False
    both = np.concatenate([wrapped(frac), wrapped(frac + shift)])
    pairs, distance = near_pairs(cell, both)
    site, shifted = pairs[distance < tolerance].T
    across = (site < len(frac)) & (shifted >= len(frac))
    site, shifted = site[across], shifted[across] - len(frac)
    return len(np.unique(shifted[kinds[site] == kinds[shifted]])) == len(frac)
