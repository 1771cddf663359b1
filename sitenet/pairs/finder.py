"""Finding the pairs of a crystal: in its supercell or in spheres, equal pairs merged."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sitenet.config import SiteNetConfig
from sitenet.crystal.crystal import Crystal
from sitenet.crystal.disorder import Places, find_places
from sitenet.crystal.supercell import count_images, lattice_points, supercell_matrix
from sitenet.pairs.pairs import MIXED, Pairs
from sitenet.system.compiled import _C

# More are refused before the search begins.
MOST_PAIRS = 2e8  # held at a time; 48 bytes each while they are merged
MOST_ROOM = 1e9  # before merging, in a supercell, of which only the merged pairs are written
MOST_IMAGES = 2e9  # looked at in spheres, some 2 ns each
MOST_SEARCHED = 1e10  # pairs of a supercell that are searched row by row, some 10 ns each

_SMALLER_SUPERCELL = "take a smaller max_sites, or the primitive cell"
_SMALLER_SPHERE = "take a smaller radius, or the primitive cell"
_TOO_MANY = -4
_ERRORS = {
    -1: "the cell has no volume or is not finite",
    -2: "the supercell matrix has determinant 0",
    -3: "two sites are in one place (nearer than 1e-6 angstrom)",
}


class _Input:
    """A crystal's arrays as the kernels take them, checked. ``kernel`` holds their addresses."""

    def __init__(
        self,
        crystal: Crystal,
        tolerance: float,
        max_sites: int | None,
        supercell: np.ndarray | None = None,
    ) -> None:
        if not tolerance >= 0:
            raise ValueError(f"tolerance must be >= 0, got {tolerance!r}")
        self.crystal = crystal
        # Of a disordered crystal, the kernels get places as sites and their kinds as elements.
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
        orbit, leader = torch.empty((2, self.sites), dtype=torch.int32)
        return orbit, leader

    def rows(self, orbit: torch.Tensor, leader: torch.Tensor, images: int) -> dict[str, Any]:
        """The attributes of Pairs that describe rows.

        Args:
            orbit: (sites,) the row of each site.
            leader: (rows,) the first site of each row.
            images: supercell sites per site.
        """
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
        """The attributes of Pairs that describe the species on some places, one row each."""
        on, row = places.rows_on(first)
        numbers = self.crystal.numbers[on]
        shares = np.asarray(self.crystal.occupancy, dtype=np.float64)[on]
        known = self.crystal.oxidation
        oxidation = np.zeros(len(on)) if known is None else known[on]
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

    Args and errors are those of ``find_pairs`` with ``images="supercell"``.
    """

    def __init__(
        self,
        crystal: Crystal,
        max_sites: int | None = None,
        merge: bool = True,
        tolerance: float = SiteNetConfig.tolerance,
        sine: bool = False,
        supercell: np.ndarray | None = None,
    ) -> None:
        if sine and merge:
            raise ValueError("the sine distance tells equal distances apart: it needs merge=False")
        self._input = _Input(crystal, tolerance, max_sites, supercell)
        self.images = count_images(self._input.supercell)
        _need_work(
            self._input.sites, self.row_size, MOST_SEARCHED, "supercell sites", _SMALLER_SUPERCELL
        )
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
        _need_work(last - first, self.row_size, MOST_ROOM, "supercell sites", _SMALLER_SUPERCELL)
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
        """``Pairs.sine_distance`` of some rows."""
        matrix = self._input.supercell
        points = lattice_points(matrix)
        ends = ((self._input.frac[:, None] + points) @ np.linalg.inv(matrix)).reshape(-1, 3)
        begins = ends[:: self.images][first:last]
        sines = np.sin(np.pi * (ends - begins[:, None])) ** 2
        lengths = np.linalg.norm(sines @ (matrix @ self._input.cell), axis=-1)
        return torch.from_numpy(lengths.reshape(-1))


def _supercell(
    cell: np.ndarray, sites: int, max_sites: int | None, supercell: np.ndarray | None
) -> np.ndarray:
    """The supercell's matrix, from the published choice or as given."""
    if supercell is None:
        most = SiteNetConfig.max_sites if max_sites is None else max_sites
        matrix = supercell_matrix(cell, sites, most)
    else:
        matrix = np.asarray(supercell)
        if matrix.shape != (3, 3) or not np.issubdtype(matrix.dtype, np.integer):
            raise ValueError(
                f"supercell must be (3, 3) integers, got {matrix.dtype} {matrix.shape}"
            )
        count_images(matrix)  # refuses too many, and none
    return np.ascontiguousarray(matrix, dtype=np.int64)


def _need_work(sites: int, each: float, most: float, what: str, remedy: str) -> None:
    """Raise ValueError where a search would look at too many pairs.

    Args:
        sites: of the cell.
        each: other ends of the pairs of each site.
        most: pairs that are allowed.
        what: what the other ends are.
        remedy: what to do about it.
    """
    if sites * each > most:
        raise ValueError(
            f"the pairs of {sites} sites with {each:.3g} {what} each are {sites * each:.1e}, more "
            f"than {most:.0e}: {remedy}"
        )


def _checked(count: int) -> int:
    """A count of the kernels, or the ValueError that stands for it."""
    if count < 0:
        raise ValueError(_ERRORS[count])
    return count


class SphereSearch:
    """The pairs of a crystal with all images within a radius of its sites, as arrays.

    Args:
        crystal: as in ``find_pairs``, like the others.
        radius: radius of the sphere in angstrom.
        merge: whether to merge equal pairs.
        tolerance: largest difference in angstrom between distances that are merged.
        vectors: whether to find ``vectors``, too.

    Attributes:
        arrays: ``orbit``, ``leader``, ``offsets``, ``sites``, ``distance``, ``multiplicity`` and
            ``vectors``, as csrc/pairs.h describes them.
        input: the crystal as the kernels take it.

    Raises:
        ValueError: as in ``find_pairs``.
    """

    def __init__(
        self, crystal: Crystal, radius: float, merge: bool, tolerance: float, vectors: bool
    ) -> None:
        if not 0 < radius < np.inf:
            raise ValueError(f"radius must be positive and finite, got {radius!r}")
        self.input = data = _Input(crystal, tolerance, max_sites=0)
        self.arrays = _C.SpherePairs()
        how = data.kernel, radius, merge, vectors
        count = _C.find_sphere_cpu(*how, MOST_PAIRS, self.arrays)
        if count == _TOO_MANY:  # lattice points, of which half may be pairs
            _need_sphere(data, radius)
            images = _checked(_C.count_sphere_cpu(data.kernel, radius))
            _need_work(data.sites, images / data.sites, MOST_PAIRS, "images", _SMALLER_SPHERE)
            count = _C.find_sphere_cpu(*how, np.inf, self.arrays)
        _checked(count)


def _find_in_sphere(
    crystal: Crystal, radius: float, merge: bool, tolerance: float, need_vectors: bool
) -> Pairs:
    search = SphereSearch(crystal, radius, merge, tolerance, need_vectors)
    names = "orbit", "leader", "offsets", "sites", "distance", "multiplicity", "vectors"
    orbit, leader, offsets, sites, distance, multiplicity, vectors = (
        torch.from_numpy(getattr(search.arrays, name)) for name in names
    )
    rows = search.input.rows(orbit, leader, images=0)
    pairs = Pairs(offsets, sites, distance, multiplicity, **rows)
    pairs.vectors = vectors.view(-1, 3) if need_vectors else None
    return pairs.assume_checked()


def _need_sphere(data: _Input, radius: float) -> None:
    """Raise ValueError where the search in spheres would look at too many images.

    For every pair of sites, the kernel looks at a box of lattice points around the sphere in the
    reduced basis, and refuses a box that is too large. The lattice points in the sphere are then
    counted, n of a small radius first: there are at least 2n - 1 in twice the radius, as sums of
    two of them, so that a search without end shows early.
    """
    volume = abs(np.linalg.det(data.cell))
    origin = _Input(Crystal(data.cell, np.zeros((1, 3)), data.numbers[:1]), 0, max_sites=0)
    points = 4 / 3 * np.pi * radius**3 / volume
    for doublings in range(16, -1, -1):
        _need_work(data.sites, points, MOST_PAIRS, "images", _SMALLER_SPHERE)
        _need_work(data.sites, data.sites * points, MOST_IMAGES, "images", _SMALLER_SPHERE)
        count = _checked(_C.count_sphere_cpu(origin.kernel, radius / 2**doublings))
        points = max(points, (count - 1) * 2.0**doublings + 1)
    _need_work(data.sites, data.sites * points, MOST_IMAGES, "images", _SMALLER_SPHERE)


def find_pairs(
    crystal: Crystal,
    max_sites: int | None = None,
    merge: bool = True,
    tolerance: float = SiteNetConfig.tolerance,
    sine: bool = False,
    supercell: np.ndarray | None = None,
    images: str = "supercell",
    radius: float = SiteNetConfig.radius,
    vectors: bool = False,
) -> Pairs:
    """Find the pairs of a crystal's sites with the sites of its supercell, or in spheres.

    Merging changes no prediction beyond the tolerance: pairs of one site with one orbit at one
    distance are the same pair in every block of a Site-Net.

    Args:
        crystal: the structure, taken as it stands (not made primitive).
        max_sites: largest number of sites of the supercell; a cell that has more is not repeated.
            None takes the default of a config, 100; 0 takes the cell as it is.
        merge: whether to merge equal pairs.
        tolerance: largest difference in angstrom between distances that are merged.
        sine: whether to compute ``sine_distance``, too; needs ``merge=False``.
        supercell: (3, 3) integers, which times the cell's vectors are the supercell's, instead of
            the published choice for ``max_sites``.
        images: ``"supercell"``, as published: every supercell site once, at its nearest image; or
            ``"sphere"``: all periodic images within ``radius`` of a site, its own included, which
            do not depend on the choice of the cell. ``Pairs.images`` is then 0.
        radius: radius of the sphere in angstrom.
        vectors: whether to return ``vectors``, too; needs ``images="sphere"``. Only sites that
            agree in distances and angles are then one orbit.

    Returns:
        Pairs of this one crystal.

    Raises:
        TypeError: ``max_sites`` is no integer.
        ValueError: the crystal has no sites, its cell has no volume, two sites are in one place,
            or there are too many pairs; says how many and what to do.
    """
    if images == "sphere":
        if sine or supercell is not None:
            raise ValueError("sine and supercell need images='supercell', got 'sphere'")
        return _find_in_sphere(crystal, radius, merge, tolerance, vectors)
    if vectors:
        raise ValueError("vectors need images='sphere', got 'supercell'")
    if images != "supercell":
        raise ValueError(f"images must be 'supercell' or 'sphere', got {images!r}")
    return PairFinder(crystal, max_sites, merge, tolerance, sine, supercell).rows()
