"""Minimum-image distances against exhaustive searches, their gradients and the rules of ops."""

import itertools
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sitenet.ops import geometry
from sitenet.ops.geometry import minimum_image_distances, minimum_image_distances_batch
from sitenet.system.environment import info


def random_cells(rng, count, edges=(2, 40), angles=(10, 170), least_volume=0.01):
    """Cells of random edges and angles with V / abc of at least ``least_volume``: (count, 3, 3)."""
    cells = np.empty((0, 3, 3))
    while len(cells) < count:
        a, b, c = rng.uniform(*edges, (3, 4 * count))
        cos_a, cos_b, cos_g = np.cos(np.radians(rng.uniform(*angles, (3, 4 * count))))
        sin_g = np.sqrt(1 - cos_g**2)
        y = (cos_a - cos_b * cos_g) / sin_g
        z = np.sqrt(np.maximum(0, 1 - cos_b**2 - y**2))
        zero = np.zeros_like(a)
        rows = [a, zero, zero], [b * cos_g, b * sin_g, zero], [c * cos_b, c * y, c * z]
        new = np.stack([np.stack(row, -1) for row in rows], 1)
        cells = np.concatenate([cells, new[sin_g * z >= least_volume]])
    return cells[:count]


def minkowski(cells):
    """Minkowski-reduced bases of the same lattices, shortest vector first: (count, 3, 3)."""
    basis = cells.copy()
    steps = np.array(list(itertools.product((-1, 0, 1), repeat=2)))
    for _ in range(200):
        before = basis.copy()
        order = np.argsort((basis**2).sum(-1), axis=1)
        basis = np.take_along_axis(basis, order[:, :, None], 1)
        first, second, third = basis.swapaxes(0, 1)
        second = second - np.rint((first * second).sum(-1) / (first**2).sum(-1))[:, None] * first
        # The third in the plane of the others: rounded, then the shortest of nine.
        plane = np.stack([first, second], 1)
        gram = plane @ plane.swapaxes(1, 2)
        at = np.rint(np.linalg.solve(gram, plane @ third[:, :, None])[..., 0])
        near = third[:, None] - (at[:, None] + steps) @ plane
        best = (near**2).sum(-1).argmin(1)
        third = near[np.arange(len(near)), best]
        basis = np.stack([first, second, third], 1)
        if np.array_equal(basis, before):
            break
    return basis


def exhaustive(cells, differences):
    """Shortest of 125 images around each difference (count, 3), in fractions of its cell.

    In a Minkowski-reduced basis the nearest lattice point has n_3 within 1.3 of its coordinate (the
    third height is at least |b_3| / sqrt 2, the covering radius at most sqrt 3 / 2 |b_3|), then n_2
    within 0.82 (likewise in the plane), then n_1 within 0.5: five of each are more than enough.
    """
    basis = minkowski(cells)
    rest = np.einsum("ck,ckd->cd", differences - np.rint(differences), cells)[:, None]
    for k in (2, 1, 0):
        lower = basis[:, :k]
        height = basis[:, k].copy()  # its part across the vectors before it
        if k:
            gram = lower @ lower.swapaxes(1, 2)
            part = np.linalg.solve(gram, lower @ height[:, :, None])
            height -= (part.swapaxes(1, 2) @ lower)[:, 0]
        coordinate = np.einsum("cid,cd->ci", rest, height) / (height**2).sum(-1)[:, None]
        steps = np.rint(coordinate)[:, :, None] + np.arange(-2, 3)
        rest = rest[:, :, None] - steps[..., None] * basis[:, None, None, k]
        rest = rest.reshape(len(rest), -1, 3)
    return np.sqrt((rest**2).sum(-1).min(1))


def block_of_images(cell, frac_i, frac_j, reach):
    """The shortest of (2 reach + 1)^3 images, by brute force: (n_i, n_j)."""
    images = np.array(list(itertools.product(range(-reach, reach + 1), repeat=3)))
    x = frac_j[None] % 1 - frac_i[:, None] % 1
    return np.sqrt((((x[:, :, None] + images) @ cell) ** 2).sum(-1).min(-1))


def assert_exact(cells, seed, dtype, tolerance):
    rng = np.random.default_rng(seed)
    frac_i, frac_j = (torch.as_tensor(rng.uniform(-2, 3, (len(cells) * n, 3))) for n in (2, 1))
    cells, frac_i, frac_j = (torch.as_tensor(x).to(dtype) for x in (cells, frac_i, frac_j))
    offsets_i, offsets_j = (torch.arange(len(cells) + 1) * n for n in (2, 1))
    got, _ = minimum_image_distances_batch(cells, frac_i, frac_j, offsets_i, offsets_j)
    cells, frac_i, frac_j = (x.double().numpy() for x in (cells, frac_i, frac_j))
    for k in (0, 1):
        error = np.abs(got[k::2].double().numpy() - exhaustive(cells, frac_j - frac_i[k::2]))
        assert error.max() < tolerance, (cells[error.argmax()], frac_i, frac_j)


# In float32 the sites' coordinates are rounded by 3e-8, 120 A of three edges: 4e-6 A and some more
# for the sums; twice that for near images (geometry.h, cancellation_share).
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 3e-5)], ids=str
)
@pytest.mark.parametrize("least_volume", [0.01, 0.3], ids="volume {}".format)
def test_fuzz_of_random_cells(dtype, tolerance, least_volume):
    """100,000 cells in all, edges 2 to 40 A, angles 10 to 170 degrees, V/abc down to 0.01."""
    rng = np.random.default_rng(0)
    for seed in range(5):
        cells = random_cells(rng, 10_000, least_volume=least_volume)
        assert_exact(cells, seed, dtype, tolerance)


def test_flat_cells_are_exact():
    """V/abc between 0.01 and 0.02 only."""
    cells = random_cells(np.random.default_rng(1), 20_000)
    volumes = np.abs(np.linalg.det(cells)) / np.linalg.norm(cells, axis=-1).prod(-1)
    flat = cells[volumes < 0.02]
    assert len(flat) > 20
    assert_exact(flat, 0, torch.float64, 1e-11)


def test_the_exhaustive_search_is_a_block_of_images():
    """The oracle itself against all images of the cell as it is given."""
    rng = np.random.default_rng(2)
    for cell in random_cells(rng, 200, (3, 12), (35, 145), 0.2):
        f = rng.random((2, 3))
        want = block_of_images(cell, f[:1], f[1:], 7)[0, 0]
        assert exhaustive(cell[None], f[1:] - f[:1])[0] == pytest.approx(want, abs=1e-12)


def test_sheared_lattices_are_the_same_lattice():
    """Unimodular changes of the cell, with entries up to some hundred, change no distance."""
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
    """Moving the origin, whole translations, order, mirroring and swapping sites."""
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
    rng = np.random.default_rng(seed)
    dtype = getattr(torch, dtype)
    cells = torch.as_tensor(random_cells(rng, len(shapes))).to(dtype)
    f, g = ([torch.as_tensor(rng.random((s[k], 3))).to(dtype) for s in shapes] for k in (0, 1))
    offsets_f, offsets_g = (torch.tensor([0, *(len(x) for x in y)]).cumsum(0) for y in (f, g))
    cat = [torch.cat([torch.empty(0, 3, dtype=dtype), *x]) for x in (f, g)]
    got, offsets = minimum_image_distances_batch(cells, *cat, offsets_f, offsets_g)
    for k, (n_i, n_j) in enumerate(shapes):
        part = got[offsets[k] : offsets[k + 1]].view(n_i, n_j)
        assert torch.equal(part, minimum_image_distances(cells[k], f[k], g[k]))


@pytest.mark.levels
@pytest.mark.parametrize("n", [0, 1, 7, 15, 16, 17, 127, 128, 129, 500])
def test_sizes_around_the_edges(n):
    rng = np.random.default_rng(n)
    cell = torch.as_tensor(random_cells(rng, 1, (4, 9), (50, 130))[0])
    f, g = torch.as_tensor(rng.random((3, 3))), torch.as_tensor(rng.random((n, 3)))
    got = minimum_image_distances(cell, f, g)
    want = block_of_images(cell.numpy(), f.numpy(), g.numpy(), 4) if n else np.empty((3, 0))
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1e-12)
    assert torch.equal(minimum_image_distances(cell, g, f), got.T) or n > 16


@pytest.mark.levels
def test_near_images_keep_their_digits():
    """A site next to another's image, in a skewed cell: no cancellation in float32."""
    cell = torch.tensor([[20.0, 0, 0], [9.9, 17, 0], [-9.8, 5, 15]])
    x = torch.tensor([[0.5, 0.5, 0.5]])
    for direction in itertools.product((-1, 0, 1), repeat=3):
        for step in (1e-1, 1e-3, 1e-5):
            y = x + torch.tensor(direction) + step * torch.tensor([[0.3, -0.5, 0.2]])
            want = (((y - x - torch.tensor(direction)).double() @ cell.double()) ** 2).sum().sqrt()
            got = minimum_image_distances(cell, x, y)
            torch.testing.assert_close(got[0, 0].double(), want, rtol=1e-5, atol=2e-6)


def test_distance_to_itself_is_zero_exactly():
    rng = np.random.default_rng(5)
    for dtype in (torch.float32, torch.float64):
        cell = torch.as_tensor(random_cells(rng, 1)[0]).to(dtype)
        frac = torch.as_tensor(rng.normal(0, 5, (40, 3))).to(dtype)
        assert (minimum_image_distances(cell, frac, frac).diagonal() == 0).all()


def test_nan_sites_give_nan_and_stay_apart():
    cell, frac = torch.eye(3) * 5, torch.rand(4, 3)
    frac[2, 1] = torch.nan
    got = minimum_image_distances(cell, frac, frac)
    assert got[2].isnan().all() and got[:, 2].isnan().all()
    assert not got[[0, 1, 3]][:, [0, 1, 3]].isnan().any()


def test_sliced_and_transposed_inputs():
    cell, frac = torch.rand(3, 3) + torch.eye(3), torch.rand(3, 20)
    want = minimum_image_distances(cell.T.contiguous(), frac[:, ::2].T.contiguous(), frac.T.clone())
    assert torch.equal(minimum_image_distances(cell.T, frac[:, ::2].T, frac.T), want)


@pytest.mark.levels
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_gradients_are_those_of_plain_torch(dtype, threads):
    """Against autograd through the block of images, over a batch."""
    rng = np.random.default_rng(6)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    cells = torch.as_tensor(random_cells(rng, 12, (4, 9), (50, 130)))
    sizes_i, sizes_j = rng.integers(0, 60, 12), rng.integers(0, 40, 12)
    offsets_i, offsets_j = (torch.tensor([0, *x]).cumsum(0) for x in (sizes_i, sizes_j))
    f, g = (torch.as_tensor(rng.random((x.sum(), 3))) for x in (sizes_i, sizes_j))
    g[:3] = f[:3]  # some at distance 0
    images = torch.tensor(list(itertools.product(range(-3, 4), repeat=3))).double()
    leaves = [x.to(dtype).requires_grad_() for x in (cells, f, g)]
    got, offsets = minimum_image_distances_batch(*leaves, offsets_i, offsets_j)
    weight = torch.as_tensor(rng.normal(size=len(got)))
    gradients = torch.autograd.grad((got * weight.to(dtype)).sum(), leaves)
    again = minimum_image_distances_batch(*leaves, offsets_i, offsets_j)[0]
    same = torch.autograd.grad((again * weight.to(dtype)).sum(), leaves)
    assert all(torch.equal(x, y) for x, y in zip(gradients, same, strict=True))
    torch.set_num_threads(before)

    exact = [x.detach().double().requires_grad_() for x in leaves]
    loss = 0.0
    for k in range(12):
        fi = exact[1][offsets_i[k] : offsets_i[k + 1]]
        gj = exact[2][offsets_j[k] : offsets_j[k + 1]]
        vectors = (gj - fi[:, None])[:, :, None] + images
        squares = ((vectors @ exact[0][k]) ** 2).sum(-1).amin(-1)
        d = torch.where(squares > 0, squares, 1).sqrt() * (squares > 0)
        loss = loss + (d.reshape(-1) * weight[offsets[k] : offsets[k + 1]]).sum()
    tolerance = 1e-9 if dtype == torch.float64 else 1e-3
    for x, y in zip(gradients, torch.autograd.grad(loss, exact), strict=True):
        torch.testing.assert_close(x.double(), y, rtol=tolerance, atol=tolerance)


def test_gradcheck():
    rng = np.random.default_rng(7)
    cell = torch.as_tensor(random_cells(rng, 1, (4, 9), (50, 130))[0])
    leaves = [cell, *(torch.as_tensor(rng.random((n, 3))) for n in (4, 3))]
    assert torch.autograd.gradcheck(
        minimum_image_distances, [x.requires_grad_() for x in leaves], eps=1e-7
    )


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


CUBE, SITES = torch.eye(3), torch.zeros(2, 3)


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
    cells = CUBE.repeat(2, 1, 1)
    with pytest.raises(ValueError, match="offsets_i must ascend from 0 to the 2 sites of frac_i"):
        minimum_image_distances_batch(
            cells, SITES, SITES, torch.tensor(offsets_i), torch.tensor(offsets_j)
        )


def test_the_bad_cell_of_a_batch_is_named():
    cells = torch.stack([CUBE, CUBE, torch.ones(3, 3)])
    frac, offsets = torch.zeros(3, 3), torch.arange(4)
    with pytest.raises(ValueError, match="cell 2 has no volume"):
        minimum_image_distances_batch(cells, frac, frac, offsets, offsets)


def test_no_autograd_node_without_need():
    assert geometry.minimum_image_distances(CUBE, SITES, SITES).grad_fn is None
    with torch.no_grad():
        cell = CUBE.clone().requires_grad_()
        assert not minimum_image_distances(cell, SITES, SITES).requires_grad
