"""Symmetry operations: parsed, checked against the cell, and applied to sites."""

from __future__ import annotations

import functools
import re
import warnings
from typing import NamedTuple

import gemmi
import numpy as np
import spglib

from sitenet.crystal.supercell import wrapped
from sitenet.system.compiled import _C

SPECIAL = 0.5  # angstrom: images of one atom that are nearer are one, on a special position
NEAR = 0.3  # angstrom: no two atoms of a crystal are nearer
SAME = 0.05  # angstrom: species that are nearer share a position
CROWDED = 1.1  # sum of the occupancies of one place beyond which it holds two atoms
_STEPS = 8  # each moves a site at least half-way to its special position
_DISTORTION = 0.02  # relative to the products of the lengths of cell vectors
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
    """Parse operations such as ``"-x, y+1/2, z"``, and combine them with centring translations.

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
            raise ValueError(f"{triplet!r:.60} is not a symmetry operation") from None

    both = [(parse(c) * parse(t)).wrap() for c in centerings for t in triplets]
    unique = list({op.triplet(): op for op in both}.values())
    if len(unique) > _MOST_OPERATIONS:
        raise ValueError(f"{len(unique)} symmetry operations")
    operations = _of(unique)
    if not _is_group(operations):
        raise ValueError(f"the {len(unique)} symmetry operations are not a group")
    return operations


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
        names: Hermann-Mauguin or Schoenflies symbols.
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
    group = find_group(names, number if hall is None and not names else None, alpha, gamma)
    if group is None:
        stated = [name for name in (hall, *names, number) if name is not None]
        raise ValueError(f"unknown space group {stated[0]!r:.60}")
    return _of(list(group.operations()))


@functools.lru_cache(1024)
def find_group(
    names: tuple[str, ...], number: str | None, alpha: float, gamma: float
) -> gemmi.SpaceGroup | None:
    """The space group of the first name that is known, or of a number; None if none is.

    Args as in ``operations_from_names``.
    """
    for name in names:
        for spelling in (name, name.replace(" ", ""), name.replace("_", "")):
            group = gemmi.find_spacegroup_by_name(spelling, alpha, gamma)
            if group is not None:
                return group
    numbers = [_further_names().get(_letters(name)) for name in names]
    if number is not None and re.fullmatch(r"\d+(\.0*)?", number):
        numbers.append(int(float(number)))
    for each in numbers:
        reference = gemmi.find_spacegroup_by_number(each) if each else None
        if reference is not None:
            return gemmi.find_spacegroup_by_name(reference.hm, alpha, gamma)
    return None


def _letters(name: str) -> str:
    return re.sub(r"[\s_^{}.]", "", name).lower()


@functools.lru_cache(1)
def _further_names() -> dict[str, int]:
    """Numbers of space groups by Schoenflies symbol, and by the full Hermann-Mauguin symbol of
    their reference setting."""
    numbers: dict[str, int] = {}
    for hall_number in range(1, 531):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # spglib announces how it will report errors
            kind = spglib.get_spacegroup_type(hall_number)
        if kind is not None and _letters(kind.schoenflies) not in numbers:  # the first setting
            numbers[_letters(kind.schoenflies)] = kind.number
            numbers[_letters(kind.international_full)] = kind.number
    return numbers


def fits(operations: Operations, cell: np.ndarray) -> bool:
    """Whether the operations preserve the lengths and angles of a cell, within _DISTORTION."""
    if len(operations) == 1:
        return True
    metric = cell @ cell.T
    lengths = np.sqrt(np.diag(metric))
    turned = operations.rotations.transpose(0, 2, 1) @ metric @ operations.rotations
    return bool((abs(turned - metric) <= _DISTORTION * np.outer(lengths, lengths)).all())


def expand(
    frac: np.ndarray,
    rounding: np.ndarray,
    amount: np.ndarray,
    operations: Operations,
    cell: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """All images of sites in the cell.

    A site near a special position moves onto it, to the mean of its images there. Images nearer
    than SPECIAL are one atom if rounding alone may have moved them apart, or if by their occupancy
    there is no room for all of them; otherwise the site is split.

    Args:
        frac: (sites, 3) fractional coordinates.
        rounding: (sites, 3) the largest error of these by rounding, one unit of the last digit.
        amount: (sites,) occupancy of the place, summed over the species that share it.
        operations: of the space group.
        cell: (3, 3) lattice vectors as rows, angstrom.

    Returns:
        Coordinates in [0, 1), (images, 3), site by site; and which site each is an image of.
    """
    if len(operations) == 1:
        return wrapped(frac), np.arange(len(frac))
    parts, counts = [], []
    for site, unit, occupancy in zip(frac, rounding, amount, strict=True):
        if occupancy > 0.5 * CROWDED:  # there is room for one image only
            images = _images(site, None, operations, cell)
        else:
            images = _images(site, unit, operations, cell)
            if _is_crowded(images, occupancy, cell):
                images = _images_with_room(site, unit, occupancy, operations, cell)
        parts.append(images)
        counts.append(len(images))
    return wrapped(np.concatenate(parts)), np.repeat(np.arange(len(frac)), counts)


def _images(
    site: np.ndarray, unit: np.ndarray | None, operations: Operations, cell: np.ndarray
) -> np.ndarray:
    """The images of one site, once it lies on the special position near it, if there is one."""
    rotations, translations = operations
    for _ in range(_STEPS):  # one does, unless only some of the images count as one
        images = rotations @ site + translations
        here, shift = _one_place(images - site, unit, cell)
        if here.sum() == 1:
            return images
        step = shift[here].mean(0)
        if abs(step).max() < 1e-12:
            break
        site = site + step
    same, _ = _one_place(images[:, None] - images, unit, cell)
    return images[~np.tril(same, -1).any(1)]


def _is_crowded(images: np.ndarray, occupancy: float, cell: np.ndarray) -> bool:
    """Whether the images near the first one hold more than one atom together."""
    return bool(_one_place(images - images[0], None, cell)[0].sum() * occupancy > CROWDED)


def _images_with_room(
    site: np.ndarray,
    unit: np.ndarray,
    occupancy: float,
    operations: Operations,
    cell: np.ndarray,
) -> np.ndarray:
    """The images of a split site, once it lies on the nearest special position that leaves room.

    Each operation that leaves the site near itself has such a position: the mean of the points to
    which its powers take the site.
    """
    rotations, translations = operations
    near, shift = _one_place(rotations @ site + translations - site, None, cell)
    distance = np.linalg.norm(shift @ cell, axis=1)
    for k in sorted(np.flatnonzero(near), key=lambda k: distance[k]):
        points = [site]
        for _ in range(5):  # an operation has order 6 at most
            point = rotations[k] @ points[-1] + translations[k]
            points.append(point - np.round(point - site))
            if abs(points[-1] - site).max() < 1e-9:
                points.pop()
                break
        images = _images(np.mean(points, axis=0), unit, operations, cell)
        if not _is_crowded(images, occupancy, cell):
            return images
    return _images(site, None, operations, cell)


def _one_place(
    shift: np.ndarray, unit: np.ndarray | None, cell: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Whether images this far from each other are one site; and the shift to the nearest one.

    Two images of a site that rounding moved by less than one unit off a special position differ by
    less than two.
    """
    shift = shift - np.round(shift)
    near = np.asarray(np.linalg.norm(shift @ cell, axis=-1) < SPECIAL)
    if unit is not None:
        near &= (abs(shift) < 2 * unit - 1e-9).all(-1)
    return near, shift


def near_pairs(
    cell: np.ndarray, frac: np.ndarray, near: float = NEAR
) -> tuple[np.ndarray, np.ndarray]:
    """Sites that are near each other.

    Sites are sorted into boxes at least twice as wide, of eight grids shifted by half a box: two
    near sites are in one box of one of them.

    Args:
        cell: (3, 3) lattice vectors as rows, angstrom.
        frac: (sites, 3) fractional coordinates in [0, 1).
        near: largest distance, angstrom.

    Returns:
        (pairs, 2) sites, and their distances in angstrom; not all pairs if there are very many.
    """
    none = np.empty((0, 2), dtype=np.int64), np.empty(0)
    if len(frac) <= _FEW:
        cell, frac = np.ascontiguousarray(cell), np.ascontiguousarray(frac)
        reach = near + 1e-9  # rounding errors
        if not _C.any_near_cpu(cell.ctypes.data, frac.ctypes.data, len(frac), reach):
            return none
    widths = 2 * near * np.linalg.norm(np.linalg.inv(cell), axis=0)
    boxes = np.maximum(1, 1 / widths).astype(np.int64)
    box = np.floor(frac * boxes + _HALVES[:, None]).astype(np.int64) % boxes
    keys = (box[..., 0] * boxes[1] + box[..., 1]) * boxes[2] + box[..., 2]  # (8, sites)
    if (np.diff(np.sort(keys, axis=1), axis=1) > 0).all():
        return none
    order = np.argsort(keys, axis=1)
    keys = np.take_along_axis(keys, order, 1)
    parts, distances = [], []
    for step in range(1, min(len(frac), _CROWD)):
        grid, place = np.nonzero(keys[:, step:] == keys[:, :-step])
        if not len(grid):
            break
        both = np.stack([order[grid, place], order[grid, place + step]], 1)
        shift = frac[both[:, 0]] - frac[both[:, 1]]
        shift -= np.round(shift)
        distance = np.linalg.norm(shift @ cell, axis=1)
        parts.append(np.sort(both[distance < near], 1))
        distances.append(distance[distance < near])
    pairs, first = np.unique(np.concatenate(parts), axis=0, return_index=True)
    return pairs, np.concatenate(distances)[first]


_HALVES = np.array([[a, b, c] for a in (0, 0.5) for b in (0, 0.5) for c in (0, 0.5)])
_FEW = 256  # sites that are compared each with each first: few crystals have any near pairs
_CROWD = 64  # sites of a box that are compared with one another: sound crystals have fewer
