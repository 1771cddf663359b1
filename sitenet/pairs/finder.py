"""Finding the pairs of a crystal: in its supercell or in spheres, equal pairs merged."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sitenet.crystal.crystal import Crystal
from sitenet.crystal.disorder import Places, find_places
from sitenet.crystal.supercell import count_images, lattice_points, supercell_matrix
from sitenet.pairs.pairs import MIXED, Pairs
from sitenet.system.compiled import _C

_ERRORS = {
    -1: "the cell has no volume or is not finite",
    -2: "the supercell matrix has determinant 0",
    -3: "two sites are in one place (nearer than 1e-6 angstrom)",
}


class _Input:
    """A crystal's arrays as the kernels take them, checked; they hold addresses of what is here."""

    def __init__(
        self,
        crystal: Crystal,
        tolerance: float,
        max_sites: int | None = None,
        supercell: np.ndarray | None = None,
    ) -> None:
        if not tolerance >= 0:
            raise ValueError(f"tolerance must be >= 0, got {tolerance!r}")
        self.crystal = crystal
        # The kernels take a place for a site, and its kind for an element.
        self.places = None if crystal.occupancy is None else find_places(crystal)
        numbers, frac, oxidation = crystal.numbers, crystal.frac, crystal.oxidation
        if self.places is not None:
            numbers, frac, oxidation = self.places.kinds, frac[self.places.first], None
        self.cell = np.ascontiguousarray(crystal.cell, dtype=np.float64)
        self.frac = np.ascontiguousarray(frac, dtype=np.float64)
        self.numbers = np.ascontiguousarray(numbers, dtype=np.int64)
        if oxidation is not None:
            oxidation = np.ascontiguousarray(oxidation, dtype=np.float64)
        self.oxidation = oxidation
        self.sites = len(self.numbers)
        if self.sites == 0:
            raise ValueError("the crystal has no sites")
        if not (np.isfinite(self.cell).all() and np.isfinite(self.frac).all()):
            raise ValueError("cell and frac must be finite")
        self.supercell = _supercell(self.cell, self.sites, max_sites, supercell)
        arrays = (self.cell, self.frac, self.numbers, self.oxidation, None)
        addresses = [0 if x is None else x.ctypes.data for x in (*arrays, self.supercell)]
        self.kernel = _C.PairInput(*addresses, self.sites, float(tolerance))

    def new_orbits(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Room for the orbit of each site and the first site of each orbit."""
        return torch.empty(self.sites, dtype=torch.int32), torch.empty(
            self.sites, dtype=torch.int32
        )

    def rows(self, orbit: torch.Tensor, leader: torch.Tensor, images: int) -> dict[str, Any]:
        """What Pairs holds of its rows, each an orbit with its first site."""
        num_rows, first = leader.numel(), leader.numpy()
        if self.places is None:
            oxidation = np.zeros(num_rows) if self.oxidation is None else self.oxidation[first]
            species = {"numbers": self.numbers[first], "oxidation": oxidation}
        else:
            species = self._mixed(self.places, first)
        return {
            **{name: torch.from_numpy(x) for name, x in species.items()},
            "count": torch.bincount(orbit, minlength=num_rows).int(),
            "orbit": orbit if self.places is None else orbit[self.places.place],
            "crystals": torch.tensor([0, num_rows]),
            "num_sites": torch.tensor([self.sites]),
            "images": torch.tensor([images]),
        }

    def _mixed(self, places: Places, first: np.ndarray) -> dict[str, np.ndarray]:
        """What Pairs holds of the species on some places, each a row."""
        on, row = places.rows_on(first)
        numbers = self.crystal.numbers[on]
        shares = np.asarray(self.crystal.occupancy, dtype=np.float64)[on]
        oxidation = (
            np.zeros(len(on)) if self.crystal.oxidation is None else (self.crystal.oxidation[on])
        )
        mean = np.bincount(row, shares * oxidation, minlength=len(first))
        main = np.lexsort((-shares, row))[np.searchsorted(row, np.arange(len(first)))]
        shares[main] -= 1
        mixed = {"numbers": numbers[main], "oxidation": mean}
        left = shares != 0
        if left.any():
            values = row[left], numbers[left], shares[left]
            mixed |= dict(zip(MIXED, values, strict=True))
        return mixed


class PairFinder:
    """Finds the pairs of a crystal row by row, for crystals whose pairs do not fit into memory.

    Args:
        crystal: the structure, taken as it stands (not made primitive).
        max_sites: most sites of the supercell (or the cell's own, if it has more); None takes the
            cell as it is.
        merge: whether to merge equal pairs.
        tolerance: largest difference in angstrom between distances that are merged.
        sine: whether to compute ``sine_distance`` too; needs ``merge=False``.
        supercell: (3, 3) integers that make the supercell's vectors of the cell's, instead of the
            published choice for ``max_sites``.

    Raises:
        ValueError: the cell has no volume, or two sites are in one place.
    """

    def __init__(
        self,
        crystal: Crystal,
        max_sites: int | None = 100,
        merge: bool = True,
        tolerance: float = 1e-3,
        sine: bool = False,
        supercell: np.ndarray | None = None,
    ) -> None:
        if sine and merge:
            raise ValueError("the sine distance tells equal distances apart: it needs merge=False")
        self._input = _Input(crystal, tolerance, max_sites, supercell)
        self.images = abs(round(float(np.linalg.det(self._input.supercell))))
        self._merge = merge
        self._sine = sine
        if merge:
            orbit, leader = self._input.new_orbits()
            addresses = orbit.data_ptr(), leader.data_ptr()
            self.num_rows = _checked(_C.find_orbits_cpu(self._input.kernel, *addresses))
        else:
            self.num_rows = self._input.sites
            orbit = leader = torch.arange(self.num_rows, dtype=torch.int32)
        self._orbit = orbit
        self._rows = self._input.rows(orbit, leader[: self.num_rows], self.images)

    @property
    def row_size(self) -> int:
        """Most pairs a row can have: the supercell's sites."""
        return self._input.sites * self.images

    def rows(self, first: int = 0, last: int | None = None) -> Pairs:
        """The pairs of some rows.

        Args:
            first: first row.
            last: the row after the last; None takes all from ``first`` on.

        Returns:
            Pairs whose ``offsets`` cover the rows from ``first`` to ``last``; ``numbers``,
            ``count`` and the like are those of all rows.

        Raises:
            ValueError: there are no such rows, or two sites are in one place.
        """
        last = self.num_rows if last is None else last
        if not 0 <= first <= last <= self.num_rows:
            raise ValueError(f"rows must lie in 0 to {self.num_rows}, got {first} to {last}")
        # Room for the most there can be; pages that are never written cost nothing.
        room = (last - first) * self.row_size
        offsets = torch.empty(last - first + 1, dtype=torch.int64)
        sites = torch.empty(room, dtype=torch.int32)
        distance = torch.empty(room, dtype=torch.float64)
        multiplicity = torch.empty(room, dtype=torch.int32)
        orbit = self._orbit.data_ptr() if self._merge else 0
        outputs = (x.data_ptr() for x in (offsets, sites, distance, multiplicity))
        pairs = _checked(_C.fill_pairs_cpu(self._input.kernel, orbit, first, last, *outputs))
        if pairs < room:
            sites, distance, multiplicity = (
                x[:pairs].clone() for x in (sites, distance, multiplicity)
            )
        return Pairs(
            offsets,
            sites,
            distance,
            multiplicity,
            **self._rows,
            sine_distance=self._sine_distance(first, last) if self._sine else None,
            first_row=first,
        ).assume_checked()

    def _sine_distance(self, first: int, last: int) -> torch.Tensor:
        cell, frac, matrix = self._input.cell, self._input.frac, self._input.supercell
        points = lattice_points(matrix)
        ends = ((frac[:, None] + points) @ np.linalg.inv(matrix)).reshape(-1, 3)
        begins = ends[:: self.images][first:last]
        sines = np.sin(np.pi * (ends - begins[:, None])) ** 2
        return torch.from_numpy(np.linalg.norm(sines @ (matrix @ cell), axis=-1).reshape(-1))


def _supercell(
    cell: np.ndarray, sites: int, max_sites: int | None, supercell: np.ndarray | None
) -> np.ndarray:
    if supercell is None:
        return supercell_matrix(cell, sites, max_sites)
    matrix = np.ascontiguousarray(supercell)
    if matrix.shape != (3, 3) or not np.issubdtype(matrix.dtype, np.integer):
        raise ValueError(f"supercell must be (3, 3) integers, got {matrix.dtype} {matrix.shape}")
    count_images(matrix)  # refuses too many, and none
    return matrix.astype(np.int64)


def _checked(found: int) -> int:
    if found < 0:
        raise ValueError(_ERRORS[found])
    return found


def _find_in_sphere(crystal: Crystal, radius: float, merge: bool, tolerance: float) -> Pairs:
    data = _Input(crystal, tolerance)
    volume = abs(np.linalg.det(data.cell))
    if not 0 < radius or data.sites**2 * 4.19 * radius**3 > 1e9 * volume > 0:
        raise ValueError(f"radius must be positive and hold fewer than 1e9 pairs, got {radius!r}")
    room = _checked(_C.count_sphere_cpu(data.kernel, radius))
    orbit, leader = data.new_orbits()
    offsets = torch.empty(data.sites + 1, dtype=torch.int64)
    sites = torch.empty(room, dtype=torch.int32)
    distance = torch.empty(room, dtype=torch.float64)
    multiplicity = torch.empty(room, dtype=torch.int32)
    outputs = (x.data_ptr() for x in (orbit, leader, offsets, sites, distance, multiplicity))
    pairs = _checked(_C.find_sphere_cpu(data.kernel, radius, merge, room, *outputs))
    if pairs < room:
        sites, distance, multiplicity = (x[:pairs].clone() for x in (sites, distance, multiplicity))
    num_rows = int(orbit.max()) + 1
    rows = data.rows(orbit, leader[:num_rows], images=0)
    offsets = offsets[: num_rows + 1].clone()
    return Pairs(offsets, sites, distance, multiplicity, **rows).assume_checked()


def find_pairs(
    crystal: Crystal,
    max_sites: int | None = 100,
    merge: bool = True,
    tolerance: float = 1e-3,
    sine: bool = False,
    supercell: np.ndarray | None = None,
    images: str = "supercell",
    radius: float = 8.0,
) -> Pairs:
    """The pairs of a crystal's sites with the sites of its supercell, or of a sphere.

    Merging changes no prediction beyond the tolerance: pairs of one site with one orbit at one
    distance are the same pair in every block of a Site-Net.

    Args:
        crystal: the structure, taken as it stands (not made primitive).
        max_sites: most sites of the supercell (or the cell's own, if it has more); None takes the
            cell as it is.
        merge: whether to merge equal pairs.
        tolerance: largest difference in angstrom between distances that are merged.
        sine: whether to compute ``sine_distance`` too; needs ``merge=False``.
        supercell: (3, 3) integers that make the supercell's vectors of the cell's, instead of the
            published choice for ``max_sites``.
        images: ``"supercell"``, as published: every supercell site once, at its nearest image; or
            ``"sphere"``: all periodic images within ``radius`` of a site, its own too, which do
            not depend on the choice of the cell. ``Pairs.images`` is then 0.
        radius: of the sphere, in angstrom.

    Returns:
        Pairs of this one crystal.

    Raises:
        ValueError: the crystal has no sites, its cell has no volume, or two sites are in one
            place.
    """
    if images == "sphere":
        if sine or supercell is not None:
            raise ValueError("sine and supercell are of images='supercell', not of 'sphere'")
        return _find_in_sphere(crystal, radius, merge, tolerance)
    if images != "supercell":
        raise ValueError(f"images must be 'supercell' or 'sphere', got {images!r}")
    return PairFinder(crystal, max_sites, merge, tolerance, sine, supercell).rows()
