"""Minimum-image distances against exhaustive searches, their gradients and the rules of ops."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from geometry_checks import (
    CUBE,
    SITES,
    assert_exact,
    block_of_images,
    check_batch_is_the_single_crystals,
    check_distance_to_itself_is_zero_exactly,
    check_gradcheck,
    check_gradients_are_those_of_plain_torch,
    check_nan_sites_give_nan_and_stay_apart,
    check_near_images_keep_their_digits,
    check_sizes_around_the_edges,
    check_sliced_and_transposed_inputs,
    check_the_bad_cell_of_a_batch_is_named,
    check_wrong_offsets_are_refused,
    exhaustive,
    random_cells,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from sitenet.ops import geometry
from sitenet.ops.geometry import minimum_image_distances
from sitenet.system.environment import info


# In float32 fractional coordinates are rounded by 3e-8, which over the 120 A of three edges is
# 4e-6 A; sums add to it, and near images double it (geometry.h, cancellation_share).
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 3e-5)], ids=str
)
@pytest.mark.parametrize("least_volume", [0.01, 0.3], ids="volume {}".format)
def test_fuzz_of_random_cells(dtype, tolerance, least_volume):
    """Distances are exact in 100,000 cells.

    Edges are 2 to 40 A, angles 10 to 170 degrees and V/abc down to 0.01.
    """
    rng = np.random.default_rng(0)
    for seed in range(5):
        cells = random_cells(rng, 10_000, least_volume=least_volume)
        assert_exact(cells, seed, dtype, tolerance)


def test_flat_cells_are_exact():
    """Distances are exact in cells with V/abc between 0.01 and 0.02."""
    cells = random_cells(np.random.default_rng(1), 20_000)
    volumes = np.abs(np.linalg.det(cells)) / np.linalg.norm(cells, axis=-1).prod(-1)
    flat = cells[volumes < 0.02]
    assert len(flat) > 20
    assert_exact(flat, 0, torch.float64, 1e-11)


def test_the_exhaustive_search_is_a_block_of_images():
    """The oracle agrees with a search over all images of the unreduced cell."""
    rng = np.random.default_rng(2)
    for cell in random_cells(rng, 200, (3, 12), (35, 145), 0.2):
        f = rng.random((2, 3))
        want = block_of_images(cell, f[:1], f[1:], 7)[0, 0]
        assert exhaustive(cell[None], f[1:] - f[:1])[0] == pytest.approx(want, abs=1e-12)


def test_sheared_lattices_are_the_same_lattice():
    """Unimodular changes of the cell, with entries up to several hundred, change no distance."""
    rng = np.random.default_rng(3)
    for _ in range(200):
        cell = random_cells(rng, 1, (3, 8), (60, 120))[0]
        frac = rng.random((5, 3))
        shear = np.eye(3)
        for _ in range(6):
            i, j = rng.permutation(3)[:2]
            shear[i] += rng.integers(-3, 4) * shear[j]
        other = torch.as_tensor(shear @ cell)
        moved = torch.as_tensor(frac @ np.linalg.inv(shear))
        want = minimum_image_distances(*map(torch.as_tensor, (cell, frac, frac)))
        torch.testing.assert_close(
            minimum_image_distances(other, moved, moved), want, rtol=0, atol=1e-9
        )


sizes = st.integers(0, 40)
seeds = st.integers(0, 2**31)


@settings(deadline=None, max_examples=100)
@given(seeds, sizes, sizes)
def test_properties(seed, n_i, n_j):
    """Shifts, lattice translations, permutations, mirroring and swaps change no distance."""
    rng = np.random.default_rng(seed)
    cell = torch.as_tensor(random_cells(rng, 1)[0])
    f, g = (torch.as_tensor(rng.random((n, 3))) for n in (n_i, n_j))
    want = minimum_image_distances(cell, f, g)
    assert want.shape == (n_i, n_j)

    def same(cell, f, g, expected=want, atol=1e-9):
        got = minimum_image_distances(cell, f, g)
        torch.testing.assert_close(got, expected, rtol=0, atol=atol)

    shift = torch.as_tensor(rng.normal(size=3))
    same(cell, f + shift, g + shift)
    same(cell, f, g + torch.as_tensor(rng.integers(-50, 50, (n_j, 3))))
    same(cell, g, f, want.T)
    same(cell * torch.tensor([1, 1, -1]), f, g)  # left-handed
    order = torch.as_tensor(rng.permutation(3))
    same(cell[order], f[:, order], g[:, order])
    some = torch.as_tensor(rng.permutation(n_j))
    assert torch.equal(minimum_image_distances(cell, f, g[some]), want[:, some])


@pytest.mark.levels
@settings(deadline=None, max_examples=30)
@given(
    seeds, st.lists(st.tuples(sizes, sizes), max_size=8), st.sampled_from(["float32", "float64"])
)
def test_batch_is_the_single_crystals(seed, shapes, dtype):
    check_batch_is_the_single_crystals(seed, shapes, dtype)


@pytest.mark.levels
@pytest.mark.parametrize("n", [0, 1, 7, 15, 16, 17, 127, 128, 129, 500])
def test_sizes_around_the_edges(n):
    check_sizes_around_the_edges(n)


@pytest.mark.levels
def test_near_images_keep_their_digits():
    check_near_images_keep_their_digits()


def test_distance_to_itself_is_zero_exactly():
    check_distance_to_itself_is_zero_exactly()


def test_nan_sites_give_nan_and_stay_apart():
    check_nan_sites_give_nan_and_stay_apart()


def test_sliced_and_transposed_inputs():
    check_sliced_and_transposed_inputs()


@pytest.mark.levels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_are_those_of_plain_torch(dtype, threads):
    check_gradients_are_those_of_plain_torch(dtype, threads)


def test_gradcheck():
    check_gradcheck()


def test_opcheck():
    rng = np.random.default_rng(8)
    cells = torch.as_tensor(random_cells(rng, 2))
    f, g = torch.as_tensor(rng.random((5, 3))), torch.as_tensor(rng.random((4, 3)))
    offsets_f, offsets_g = torch.tensor([0, 2, 5]), torch.tensor([0, 3, 4])
    forward = (cells, f, g, offsets_f, offsets_g, 9)
    ops = torch.ops.sitenet
    torch.library.opcheck(ops.minimum_image_distances_forward.default, forward)
    torch.library.opcheck(
        ops.minimum_image_distances_backward.default, (*forward[:-1], torch.rand(9).double())
    )
    torch.library.opcheck(
        ops.minimum_image_distances_forward.default, (cells[:1], f, g, None, None, 20)
    )


# torch.compile itself makes an instance of every autograd.Function it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic):
    def step(cell, frac):
        return minimum_image_distances(cell, frac, frac * 0.5).square().sum()

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for n in (4, 6):
        cell = (torch.eye(3) * 4 + torch.rand(3, 3)).requires_grad_()
        frac = torch.rand(n, 3, requires_grad=True)
        want = torch.autograd.grad(step(cell, frac), (cell, frac))
        got = torch.autograd.grad(compiled(cell, frac), (cell, frac))
        torch.testing.assert_close(got, want)


def test_levels_of_simd_agree(tmp_path):
    script = tmp_path / "levels.py"
    script.write_text(
        "import sys, torch\n"
        "from sitenet.ops.geometry import minimum_image_distances\n"
        "torch.manual_seed(0)\n"
        "cell, f = torch.rand(3, 3) * 4 + 3 * torch.eye(3), torch.rand(150, 3)\n"
        "leaves = [x.double().requires_grad_() for x in (cell, f)]\n"
        "d = minimum_image_distances(leaves[0], leaves[1], leaves[1])\n"
        "gradients = torch.autograd.grad(d.square().sum(), leaves)\n"
        "single = minimum_image_distances(cell, f, f)\n"
        "torch.save([d.detach(), *gradients, single], sys.argv[1])\n"
    )
    levels = ["x86_64_v2", "x86_64_v3", "x86_64_v4", "x86_64_v4_bf16"]
    if info()["simd"] not in levels[1:]:
        pytest.skip("this processor has one SIMD level")
    results = []
    for level in levels[: levels.index(info()["simd"]) + 1]:
        path = tmp_path / level
        environment = {**os.environ, "SITENET_SIMD": level}
        subprocess.run([sys.executable, str(script), str(path)], check=True, env=environment)
        results.append(torch.load(path))
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            tolerance = 1e-9 if x.dtype == torch.float64 else 2e-5
            torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((torch.eye(4), SITES, SITES), ValueError, r"cell must have shape \(3, 3\), got \(4, 4\)"),
        ((CUBE, torch.zeros(4, 2), SITES), ValueError, r"frac_i must have shape \(num_sites, 3\)"),
        ((CUBE, SITES, SITES.double()), TypeError, "frac_j must be float32, got float64"),
        ((CUBE.half(), SITES, SITES), TypeError, "cell must be float32 or float64, got float16"),
        ((np.eye(3), SITES, SITES), TypeError, "cell must be a torch.Tensor, got ndarray"),
        ((CUBE * torch.tensor([1, 1, 0]), SITES, SITES), ValueError, "has no volume"),
        ((CUBE * torch.nan, SITES, SITES), ValueError, "not finite"),
        ((CUBE * torch.inf, SITES, SITES), ValueError, "not finite"),
    ],
)
def test_a_wrong_argument_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        minimum_image_distances(*arguments)


@pytest.mark.parametrize(
    ("offsets_i", "offsets_j"),
    [([0, 1, 1], [0, 1, 2]), ([1, 1, 2], [0, 1, 2]), ([0, 3, 2], [0, 1, 2])],
)
def test_wrong_offsets_are_refused(offsets_i, offsets_j):
    check_wrong_offsets_are_refused(offsets_i, offsets_j)


def test_the_bad_cell_of_a_batch_is_named():
    check_the_bad_cell_of_a_batch_is_named()


def test_no_autograd_node_without_need():
    assert geometry.minimum_image_distances(CUBE, SITES, SITES).grad_fn is None
    with torch.no_grad():
        cell = CUBE.clone().requires_grad_()
        assert not minimum_image_distances(cell, SITES, SITES).requires_grad
