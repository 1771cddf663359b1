"""The supercell of the published Site-Net: nearly cubic, as large as a number of sites allows."""

from __future__ import annotations

import numpy as np

from sitenet.system.compiled import _C

MOST_SITES = 1_000_000  # of a supercell: beyond, memory runs out rather than patience


def supercell_matrix(cell: np.ndarray, num_sites: int, max_sites: int) -> np.ndarray:
    """The published choice of a supercell.

    Args:
        cell: (3, 3) lattice vectors as rows, angstrom.
        num_sites: sites of the cell.
        max_sites: most sites of the supercell, up to MOST_SITES; a cell that has more is not
            repeated. 0 takes the cell as it is.

    Returns:
        (3, 3) int64, upper triangular: the supercell's vectors are this matrix times ``cell``. Its
        determinant is the number of images. The cell is sheared even where it is not repeated.

    Raises:
        TypeError: ``max_sites`` is not an integer.
        ValueError: it is out of range, or the cell has no volume or is not finite.

    Source: the ``-s`` option of cif_zip_to_hdf5.py of the published Site-Net. Shears that are exact
    halves round up here; there the rounding errors of LAPACK decide.
    """
    matrix = np.eye(3, dtype=np.int64)
    if isinstance(max_sites, bool) or not isinstance(max_sites, (int, np.integer)):
        raise TypeError(f"max_sites must be an integer or None, got {max_sites!r}")
    if not 0 <= max_sites <= MOST_SITES:
        raise ValueError(f"max_sites must be from 0 to {MOST_SITES}, got {max_sites}")
    if max_sites == 0:
        return matrix
    cell = np.ascontiguousarray(cell, dtype=np.float64)
    if _C.supercell_matrix_cpu(cell.ctypes.data, num_sites, int(max_sites), matrix.ctypes.data) < 0:
        raise ValueError("the cell has no volume or is not finite")
    return matrix


def count_images(matrix: np.ndarray) -> int:
    """The number of cells that make up a supercell, the determinant of its matrix.

    Raises:
        ValueError: it is 0, or more than MOST_SITES.
    """
    a, b, c = ([int(x) for x in row] for row in matrix)
    images = abs(
        a[0] * (b[1] * c[2] - b[2] * c[1])
        - a[1] * (b[0] * c[2] - b[2] * c[0])
        + a[2] * (b[0] * c[1] - b[1] * c[0])
    )
    if images == 0:
        raise ValueError("the supercell matrix has determinant 0")
    if images > MOST_SITES:
        raise ValueError(f"the supercell would have {images} images, more than {MOST_SITES}")
    return images


def lattice_points(matrix: np.ndarray) -> np.ndarray:
    """The cells that make up a supercell.

    Args:
        matrix: (3, 3) integers that make the supercell's vectors of the cell's.

    Returns:
        (images, 3) int64 in lexicographic order: the points L of the cell's lattice for which
        L matrix^-1 lies in [0, 1).

    Raises:
        ValueError: the matrix has determinant 0, or there are more than MOST_SITES points.
    """
    matrix = np.asarray(matrix, dtype=np.int64)
    images = count_images(matrix)
    # One point of each coset, then shifted by supercell vectors into the supercell. Integers are
    # exact: the inverse is the adjugate over the determinant.
    axes = [np.arange(n) for n in _coset_box(matrix)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    adjugate = np.stack([np.cross(matrix[i - 2], matrix[i - 1]) for i in range(3)], 1)
    sign = 1 if matrix[0] @ adjugate[:, 0] > 0 else -1
    points = points - (points @ adjugate * sign) // images @ matrix
    return points[np.lexsort(points.T[::-1])]


def _coset_box(matrix: np.ndarray) -> list[int]:
    """Edges of a box of lattice points, one for each image: the diagonal of the Hermite form."""
    rows = [[int(x) for x in row] for row in matrix]
    for k in range(3):
        for row in range(k + 1, 3):  # Euclid's algorithm on rows k and row, until the latter is 0
            while rows[row][k]:
                factor = rows[k][k] // rows[row][k]
                rest = [x - factor * y for x, y in zip(rows[k], rows[row], strict=True)]
                rows[k], rows[row] = rows[row], rest
    return [abs(rows[k][k]) for k in range(3)]


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


def volume_of(cell: np.ndarray) -> float:
    """Volume of a cell, negative if its vectors are left-handed."""
    (a, b, c), (d, e, f), (g, h, i) = cell.tolist()
    return a * (e * i - f * h) - b * (d * i - f * g) + c * (d * h - e * g)


def wrapped(frac: np.ndarray) -> np.ndarray:
    """Fractional coordinates in [0, 1)."""
    frac = frac - np.floor(frac)
    frac[frac >= 1] = 0  # of -1e-17
    return frac
