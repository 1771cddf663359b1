"""The supercell of the published Site-Net: nearly cubic, as large as a number of sites allows."""

from __future__ import annotations

import numpy as np

from sitenet.system.compiled import _C


def supercell_matrix(cell: np.ndarray, num_sites: int, max_sites: int | None) -> np.ndarray:
    """The published choice of a supercell.

    Args:
        cell: (3, 3) lattice vectors as rows, angstrom.
        num_sites: sites of the cell.
        max_sites: most sites of the supercell (or the cell's own, if it has more); None takes the
            cell as it is.

    Returns:
        (3, 3) int64, upper triangular: the supercell's vectors are this matrix times ``cell``. Its
        determinant is the number of images. The cell is sheared even where it is not repeated.

    Raises:
        ValueError: the cell has no volume or is not finite.

    Source: the ``-s`` option of cif_zip_to_hdf5.py of the published Site-Net. Shears that are exact
    halves round up here; there the rounding errors of LAPACK decide.
    """
    matrix = np.eye(3, dtype=np.int64)
    if max_sites is not None:
        cell = np.ascontiguousarray(cell, dtype=np.float64)
        addresses = cell.ctypes.data, matrix.ctypes.data
        if _C.supercell_matrix_cpu(addresses[0], num_sites, max_sites, addresses[1]) < 0:
            raise ValueError("the cell has no volume or is not finite")
    return matrix


def lattice_points(matrix: np.ndarray) -> np.ndarray:
    """The cells that make up a supercell.

    Args:
        matrix: (3, 3) integers that make the supercell's vectors of the cell's.

    Returns:
        (images, 3) int64 in lexicographic order: the points L of the cell's lattice for which
        L matrix^-1 lies in [0, 1).

    Raises:
        ValueError: the matrix has determinant 0.
    """
    images = round(abs(float(np.linalg.det(matrix))))
    if images == 0:
        raise ValueError("the supercell matrix has determinant 0")
    low, high = np.minimum(matrix, 0).sum(0), np.maximum(matrix, 0).sum(0)
    axes = [np.arange(a, b + 1) for a, b in zip(low, high, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    inside = points @ np.linalg.inv(matrix)
    points = points[((inside > -1e-10) & (inside < 1 - 1e-10)).all(1)]
    assert len(points) == images
    return points


def repeat_sites(frac: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Fractional coordinates of all sites in the supercell.

    Args:
        frac: (sites, 3) fractional coordinates in the cell.
        matrix: (3, 3) integers that make the supercell's vectors of the cell's.

    Returns:
        (sites * images, 3) in [0, 1), the images of a site adjacent.
    """
    points = lattice_points(matrix)
    images = ((frac[:, None] + points) @ np.linalg.inv(matrix)).reshape(-1, 3)
    return wrapped(images)


def wrapped(frac: np.ndarray) -> np.ndarray:
    """Fractional coordinates in [0, 1)."""
    frac = frac - np.floor(frac)
    frac[frac >= 1] = 0  # of -1e-17
    return frac
