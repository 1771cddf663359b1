"""The supercell: its matrix, its lattice points and the order of its sites."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sitenet import Crystal, find_pairs
from sitenet.crystal.supercell import (
    MOST_SITES,
    lattice_points,
    repeat_sites,
    supercell_matrix,
    wrapped,
)
from sitenet.ops.geometry import minimum_image_distances


def random_cell(seed):
    rng = np.random.default_rng(seed)
    return np.diag(rng.uniform(2, 12, 3)) + rng.normal(0, 1, (3, 3))


def published_matrix(cell, num_sites, max_sites):
    """SPEC 1.3, step by step, with Gram-Schmidt from the last vector up."""
    a, b, c = cell
    on_c = b @ c / (c @ c)
    b_star = b - on_c * c
    a_on_b, a_on_c = a @ b_star / (b_star @ b_star), a @ c / (c @ c)
    shear = np.array([[1, -a_on_b, a_on_b * on_c - a_on_c], [0, 1, -on_c], [0, 0, 1]])
    lengths = np.linalg.norm(shear @ cell, axis=1)
    repeats = np.ones(3, int)
    while True:
        more = repeats.copy()
        more[np.argmin(repeats * lengths)] += 1
        if more.prod() * num_sites > max_sites:
            return np.rint(np.diag(repeats) @ shear).astype(int)
        repeats = more


@given(st.integers(0, 10**6), st.integers(1, 60), st.sampled_from([1, 50, 100, 500]))
@settings(max_examples=100, deadline=None)
def test_the_matrix_is_the_published_one(seed, num_sites, max_sites):
    cell = random_cell(seed)
    matrix = supercell_matrix(cell, num_sites, max_sites)
    assert np.array_equal(matrix, published_matrix(cell, num_sites, max_sites))
    images = round(np.linalg.det(matrix))
    assert images * num_sites <= max(max_sites, num_sites)


@given(st.lists(st.integers(-4, 4), min_size=9, max_size=9))
@settings(max_examples=100, deadline=None)
def test_lattice_points_tile_the_supercell(entries):
    matrix = np.array(entries).reshape(3, 3)
    images = round(abs(np.linalg.det(matrix)))
    if images == 0:
        with pytest.raises(ValueError, match="determinant 0"):
            lattice_points(matrix)
        return
    points = lattice_points(matrix)
    assert len(points) == images
    assert points.tolist() == sorted(points.tolist())
    # Every point of the lattice differs from exactly one of them by a supercell vector.
    for shift in ([0, 0, 0], [1, 0, 0], [-3, 2, 5]):
        whole = (points - shift) @ np.linalg.inv(matrix)
        assert (abs(whole - np.round(whole)).max(1) < 1e-9).sum() == 1


def test_images_of_a_site_are_adjacent():
    crystal = Crystal(random_cell(1), np.random.default_rng(1).random((3, 3)), [3, 8, 14])
    crystal.oxidation = np.array([1.0, -2.0, 4.0])
    supercell = crystal.supercell(50)
    images = len(supercell) // 3
    assert images > 1
    assert supercell.numbers.tolist() == np.repeat([3, 8, 14], images).tolist()
    assert supercell.oxidation.tolist() == np.repeat([1, -2, 4], images).tolist()
    assert supercell.volume == pytest.approx(images * crystal.volume)
    back = supercell.frac @ supercell.cell @ np.linalg.inv(crystal.cell)
    shift = back - np.repeat(crystal.frac, images, axis=0)
    assert abs(shift - np.round(shift)).max() < 1e-9


def test_the_supercell_is_the_crystal():
    """A supercell has the distances of its crystal's, whatever way it is repeated."""
    import torch

    crystal = Crystal(random_cell(5), np.random.default_rng(5).random((4, 3)), [1, 2, 3, 4])
    twice = crystal.supercell(100).supercell(200)

    def nearest(c):
        f = torch.from_numpy(c.frac)
        d = minimum_image_distances(torch.from_numpy(c.cell), f, f)
        return d[d > 1e-6].min().item()

    assert nearest(twice) == pytest.approx(nearest(crystal.supercell(100)))


def test_a_crystal_larger_than_the_supercell_stays():
    crystal = Crystal(np.diag([3.0, 4, 5]), np.random.default_rng(0).random((7, 3)), [6] * 7)
    assert len(crystal.supercell(5)) == 7
    assert crystal.supercell(0) is crystal
    assert len(crystal.supercell()) == len(crystal.supercell(None)) == len(crystal.supercell(500))
    assert np.array_equal(supercell_matrix(crystal.cell, 7, 0), np.eye(3))


def test_a_flat_cell_is_refused():
    with pytest.raises(ValueError, match="no volume"):
        supercell_matrix(np.ones((3, 3)), 1, 100)


def test_wrapped_is_below_one():
    frac = wrapped(np.array([[-1e-18, 1.0, -0.25], [2.5, -1.0, 0.9999]]))
    assert frac.tolist() == [[0, 0, 0.75], [0.5, 0, 0.9999]]
    assert (repeat_sites(frac, 3 * np.eye(3, dtype=int)) < 1).all()


@pytest.mark.parametrize("max_sites", [-1, MOST_SITES + 1, 10**12])
def test_bounds_of_a_supercell(max_sites):
    crystal = Crystal(np.eye(3) * 4, [[0, 0, 0]], [26])
    with pytest.raises(ValueError, match=f"max_sites must be from 0 to 1000000, got {max_sites}"):
        crystal.supercell(max_sites)
    with pytest.raises(ValueError, match="max_sites must be from 0 to"):
        find_pairs(crystal, max_sites=max_sites)


def test_what_is_no_number_of_sites_is_refused():
    crystal = Crystal(np.eye(3) * 4, [[0, 0, 0]], [26])
    for max_sites in (2.5, "20", np.nan):
        with pytest.raises(TypeError, match="max_sites must be an integer or None"):
            crystal.supercell(max_sites)
    assert len(crystal.supercell(np.int64(8))) == 8


@pytest.mark.parametrize("matrix", [np.eye(3, dtype=int) * 101, np.diag([10**6, 10**6, 10**6])])
def test_too_many_images_are_refused(matrix):
    with pytest.raises(ValueError, match=r"would have \d+ images, more than 1000000"):
        lattice_points(matrix)
    with pytest.raises(ValueError, match="images"):
        find_pairs(Crystal(np.eye(3) * 4, [[0, 0, 0]], [26]), supercell=matrix)


def test_needles_take_no_more_room_than_their_images():
    """A cell sheared by 2000 of its own vectors: the box around the supercell holds 2000 times as
    many lattice points as the supercell."""
    crystal = Crystal([[2000, 0, 1], [0, 1, 0], [1, 0, 0]], [[0, 0, 0]], [26])
    tracemalloc.start()
    supercell = crystal.supercell(10_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 5_000 < len(supercell) <= 10_000
    assert len(np.unique(np.round(supercell.frac, 9), axis=0)) == len(supercell)
    assert peak < 1000 * len(supercell)  # a few dozen float64 per image
