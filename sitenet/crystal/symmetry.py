"""Symmetry operations of a structure file: understood, checked against the cell, and applied."""

from __future__ import annotations

import functools
from typing import NamedTuple

import gemmi
import numpy as np

from sitenet.crystal.supercell import wrapped

SPECIAL = 0.5  # angstrom: images of one atom that are nearer are one, on a special position
NEAR = 0.3  # angstrom: no two atoms of a crystal are nearer
SAME = 0.05  # angstrom: species that are nearer share a position
_ROUNDING = 1e-3  # of fractional coordinates that are given to three digits
_DISTORTION = 0.02  # of the products of the cell vectors' lengths
_MOST_OPERATIONS = 1000  # a space group has at most 192, a magnetic one more in its large cell


class Operations(NamedTuple):
    """Symmetry operations: frac -> rotations @ frac + translations."""

    rotations: np.ndarray  # (operations, 3, 3)
    translations: np.ndarray  # (operations, 3)

    def __len__(self) -> int:
        return len(self.rotations)


def _of(operations: list[gemmi.Op]) -> Operations:
    rotations = np.array([op.rot for op in operations]) / gemmi.Op.DEN
    translations = np.array([op.tran for op in operations]) / gemmi.Op.DEN
    return Operations(rotations, translations)


@functools.lru_cache(1024)
def operations_from_triplets(
    triplets: tuple[str, ...], centerings: tuple[str, ...] = ("x,y,z",)
) -> Operations:
    """The products of operations such as ``"-x, y+1/2, z"`` and of centering translations.

    What follows a third comma, the time reversal of a magnetic operation, has no effect on sites.

    Raises:
        ValueError: one cannot be understood, or together they are not a group.
    """

    if len(triplets) * len(centerings) > 20 * _MOST_OPERATIONS:
        raise ValueError(f"{len(triplets)} symmetry operations")

    def parse(triplet: str) -> gemmi.Op:
        parts = triplet.replace(" ", "").split(",")
        try:
            return gemmi.Op(",".join(parts[:3]))
        except (RuntimeError, ValueError):
            raise ValueError(f"{triplet!r} is not a symmetry operation") from None

    both = [(parse(c) * parse(t)).wrap() for c in centerings for t in triplets]
    unique = list({op.triplet(): op for op in both}.values())
    if len(unique) > _MOST_OPERATIONS:
        raise ValueError(f"{len(unique)} symmetry operations")
    found = _of(unique)
    if not _is_group(found):
        raise ValueError(f"the {len(unique)} symmetry operations are not a group")
    return found


def _is_group(operations: Operations) -> bool:
    """Whether the products of all operations are among them, up to lattice vectors."""
    rotations, translations = operations
    if not np.isin(np.round(np.linalg.det(rotations), 6), (-1, 1)).all():
        return False
    products = np.einsum("aij,bjk->abik", rotations, rotations)
    shifts = np.einsum("aij,bj->abi", rotations, translations) + translations[:, None]

    def keys(r: np.ndarray, t: np.ndarray) -> np.ndarray:
        numbers = np.concatenate([r.reshape(-1, 9), t.reshape(-1, 3) % 1], 1)
        whole = np.round(numbers * gemmi.Op.DEN).astype(np.int64)
        whole[:, 9:] %= gemmi.Op.DEN
        # Entries of products are small: 12 digits to the base 1000 are two integers.
        base = 1000 ** np.arange(6)
        return np.stack([whole[:, :6] @ base, whole[:, 6:] @ base], 1)

    known = {tuple(key) for key in keys(rotations, translations).tolist()}
    return all(tuple(key) in known for key in np.unique(keys(products, shifts), axis=0).tolist())


@functools.lru_cache(1024)
def operations_from_names(
    hall: str | None, names: tuple[str, ...], number: str | None, alpha: float, gamma: float
) -> Operations:
    """The operations of the first of several names of a space group that is known.

    Args:
        hall: Hall symbol.
        names: Hermann-Mauguin symbols.
        number: in the International Tables, used if no symbol is given.
        alpha: cell angle in degrees; with gamma it tells hexagonal from rhombohedral axes.
        gamma: cell angle in degrees.

    Raises:
        ValueError: none is known.
    """
    if hall is not None:
        try:
            return _of(list(gemmi.symops_from_hall(hall)))
        except (RuntimeError, ValueError):
            pass
    for name in names:
        group = gemmi.find_spacegroup_by_name(name, alpha, gamma)
        group = group or gemmi.find_spacegroup_by_name(name.replace(" ", ""), alpha, gamma)
        if group is not None:
            return _of(list(group.operations()))
    if not names and hall is None and number is not None and number.isdigit():
        group = gemmi.find_spacegroup_by_number(int(number))
        if group is not None:
            return operations_from_names(None, (group.hm,), None, alpha, gamma)
    given = [name for name in (hall, *names, number) if name is not None]
    raise ValueError(f"unknown space group {given[0]!r}")


def fits(operations: Operations, cell: np.ndarray) -> bool:
    """Whether the operations leave lengths and angles in the cell as they are, nearly."""
    if len(operations) == 1:
        return True
    metric = cell @ cell.T
    lengths = np.sqrt(np.diag(metric))
    turned = operations.rotations.transpose(0, 2, 1) @ metric @ operations.rotations
    return bool((abs(turned - metric) <= _DISTORTION * np.outer(lengths, lengths)).all())


def expand(
    frac: np.ndarray, full: np.ndarray, operations: Operations, cell: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """All images of sites in the cell.

    A site near a special position moves onto it, to the mean of its images there. Images of an
    atom nearer than SPECIAL are one atom. Those of a partly occupied site are one if they are equal
    within the rounding of coordinates; otherwise it may be split.

    Args:
        frac: (sites, 3) fractional coordinates.
        full: (sites,) whether a site is fully occupied.
        operations: of the space group.
        cell: (3, 3) lattice vectors as rows, angstrom.

    Returns:
        Coordinates in [0, 1), (images, 3), site by site; and which site each is an image of.
    """
    if len(operations) == 1:
        return wrapped(frac), np.arange(len(frac))
    rotations, translations = operations
    parts, counts = [], []
    for site, is_full in zip(frac, full, strict=True):
        images = rotations @ site + translations
        here, shift = _one_place(images - site, cell, is_full)
        if here.sum() > 1:
            images = rotations @ (site + shift[here].mean(0)) + translations
            same, _ = _one_place(images[:, None] - images, cell, is_full)
            images = images[~np.tril(same, -1).any(1)]
        parts.append(images)
        counts.append(len(images))
    return wrapped(np.concatenate(parts)), np.repeat(np.arange(len(frac)), counts)


def _one_place(shift: np.ndarray, cell: np.ndarray, is_full: bool) -> tuple[np.ndarray, np.ndarray]:
    """Whether images this far from each other are one site; and the shift to the nearest one."""
    shift = shift - np.round(shift)
    if is_full:
        return np.asarray(np.linalg.norm(shift @ cell, axis=-1) < SPECIAL), shift
    return np.asarray((abs(shift) <= _ROUNDING).all(-1)), shift


def near_pairs(cell: np.ndarray, frac: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sites nearer to each other than NEAR.

    Sites are sorted into boxes at least twice as wide, of eight grids shifted by half a box: two
    near sites are in one box of one of them.

    Args:
        cell: (3, 3) lattice vectors as rows, angstrom.
        frac: (sites, 3) fractional coordinates in [0, 1).

    Returns:
        (pairs, 2) sites, and their distances in angstrom; not all pairs if there are very many.
    """
    widths = 2 * NEAR * np.linalg.norm(np.linalg.inv(cell), axis=0)
    boxes = np.maximum(1, 1 / widths).astype(np.int64)
    box = np.floor(frac * boxes + _HALVES[:, None]).astype(np.int64) % boxes
    keys = (box[..., 0] * boxes[1] + box[..., 1]) * boxes[2] + box[..., 2]  # (8, sites)
    if (np.diff(np.sort(keys, axis=1), axis=1) > 0).all():
        return np.empty((0, 2), dtype=np.int64), np.empty(0)
    order = np.argsort(keys, axis=1)
    keys = np.take_along_axis(keys, order, 1)
    found, distances = [], []
    for step in range(1, min(len(frac), _CROWD)):
        grid, place = np.nonzero(keys[:, step:] == keys[:, :-step])
        if not len(grid):
            break
        pairs = np.stack([order[grid, place], order[grid, place + step]], 1)
        shift = frac[pairs[:, 0]] - frac[pairs[:, 1]]
        shift -= np.round(shift)
        distance = np.linalg.norm(shift @ cell, axis=1)
        near = distance < NEAR
        found.append(np.sort(pairs[near], 1))
        distances.append(distance[near])
    pairs, first = np.unique(np.concatenate(found), axis=0, return_index=True)
    return pairs, np.concatenate(distances)[first]


_HALVES = np.array([[a, b, c] for a in (0, 0.5) for b in (0, 0.5) for c in (0, 0.5)])
_CROWD = 64  # sites of a box that are compared with one another: sound crystals have fewer
