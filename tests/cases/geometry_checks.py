"""Checks of the minimum-image distances, for every implementation of the ops.

The checks look up ``minimum_image_distances`` and ``minimum_image_distances_batch`` in this module,
where a test can replace them.
"""

import itertools

import numpy as np
import pytest
import torch

from sitenet.ops.geometry import minimum_image_distances, minimum_image_distances_batch

CUBE, SITES = torch.eye(3), torch.zeros(2, 3)


def random_cells(rng, count, edges=(2, 40), angles=(10, 170), least_volume=0.01):
    """Return cells of random edges and angles, V / abc at least ``least_volume``: (count, 3, 3)."""
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
    """Return Minkowski-reduced bases of the lattices, shortest vector first: (count, 3, 3)."""
    basis = cells.copy()
    steps = np.array(list(itertools.product((-1, 0, 1), repeat=2)))
    for _ in range(200):
        before = basis.copy()
        order = np.argsort((basis**2).sum(-1), axis=1)
        basis = np.take_along_axis(basis, order[:, :, None], 1)
        first, second, third = basis.swapaxes(0, 1)
        second = second - np.rint((first * second).sum(-1) / (first**2).sum(-1))[:, None] * first
        # Reduce the third vector by the others: round, then take the shortest of nine.
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
    """Return the shortest of 125 images of each difference (count, 3), in fractions of its cell.

    In a Minkowski-reduced basis the nearest lattice point has n_3 within 1.3 of its coordinate (the
    third height is at least |b_3| / sqrt 2, the covering radius at most sqrt 3 / 2 |b_3|), then n_2
    within 0.82 (likewise in the plane), then n_1 within 0.5: five of each are more than enough.
    """
    basis = minkowski(cells)
    rest = np.einsum("ck,ckd->cd", differences - np.rint(differences), cells)[:, None]
    for k in (2, 1, 0):
        lower = basis[:, :k]
        height = basis[:, k].copy()  # the part normal to the vectors before it
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
    """Return the shortest distances to (2 reach + 1)^3 images, by brute force: (n_i, n_j)."""
    images = np.array(list(itertools.product(range(-reach, reach + 1), repeat=3)))
    x = frac_j[None] % 1 - frac_i[:, None] % 1
    return np.sqrt((((x[:, :, None] + images) @ cell) ** 2).sum(-1).min(-1))


def assert_exact(cells, seed, dtype, tolerance):
    """Compare the distances of random sites in each cell with the exhaustive search."""
    rng = np.random.default_rng(seed)
    frac_i, frac_j = (torch.as_tensor(rng.uniform(-2, 3, (len(cells) * n, 3))) for n in (2, 1))
    cells, frac_i, frac_j = (torch.as_tensor(x).to(dtype) for x in (cells, frac_i, frac_j))
    offsets_i, offsets_j = (torch.arange(len(cells) + 1) * n for n in (2, 1))
    got, _ = minimum_image_distances_batch(cells, frac_i, frac_j, offsets_i, offsets_j)
    cells, frac_i, frac_j = (x.double().numpy() for x in (cells, frac_i, frac_j))
    for k in (0, 1):
        error = np.abs(got[k::2].double().numpy() - exhaustive(cells, frac_j - frac_i[k::2]))
        assert error.max() < tolerance, (cells[error.argmax()], frac_i, frac_j)


def check_batch_is_the_single_crystals(seed, shapes, dtype):
    """Compare a batch with one call per crystal, bit by bit."""
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


def check_sizes_around_the_edges(n):
    """Compare ``n`` sites with the block of images, around the widths of vectors and blocks."""
    rng = np.random.default_rng(n)
    cell = torch.as_tensor(random_cells(rng, 1, (4, 9), (50, 130))[0])
    f, g = torch.as_tensor(rng.random((3, 3))), torch.as_tensor(rng.random((n, 3)))
    got = minimum_image_distances(cell, f, g)
    want = block_of_images(cell.numpy(), f.numpy(), g.numpy(), 4) if n else np.empty((3, 0))
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=1e-12)
    assert torch.equal(minimum_image_distances(cell, g, f), got.T) or n > 16


def check_near_images_keep_their_digits():
    """Check that float32 keeps its digits where a site is close to an image, in a skewed cell."""
    cell = torch.tensor([[20.0, 0, 0], [9.9, 17, 0], [-9.8, 5, 15]])
    x = torch.tensor([[0.5, 0.5, 0.5]])
    for direction in itertools.product((-1, 0, 1), repeat=3):
        for step in (1e-1, 1e-3, 1e-5):
            y = x + torch.tensor(direction) + step * torch.tensor([[0.3, -0.5, 0.2]])
            want = (((y - x - torch.tensor(direction)).double() @ cell.double()) ** 2).sum().sqrt()
            got = minimum_image_distances(cell, x, y)
            torch.testing.assert_close(got[0, 0].double(), want, rtol=1e-5, atol=2e-6)


def check_distance_to_itself_is_zero_exactly():
    """Check that a site is at distance 0 from itself, however far outside the cell."""
    rng = np.random.default_rng(5)
    for dtype in (torch.float32, torch.float64):
        cell = torch.as_tensor(random_cells(rng, 1)[0]).to(dtype)
        frac = torch.as_tensor(rng.normal(0, 5, (40, 3))).to(dtype)
        assert (minimum_image_distances(cell, frac, frac).diagonal() == 0).all()


def check_nan_sites_give_nan_and_stay_apart():
    """Check that NaN coordinates give NaN for their own site only."""
    cell, frac = torch.eye(3) * 5, torch.rand(4, 3)
    frac[2, 1] = torch.nan
    got = minimum_image_distances(cell, frac, frac)
    assert got[2].isnan().all() and got[:, 2].isnan().all()
    assert not got[[0, 1, 3]][:, [0, 1, 3]].isnan().any()


def check_sliced_and_transposed_inputs():
    """Check that strided views give the bits of contiguous tensors."""
    cell, frac = torch.rand(3, 3) + torch.eye(3), torch.rand(3, 20)
    want = minimum_image_distances(cell.T.contiguous(), frac[:, ::2].T.contiguous(), frac.T.clone())
    assert torch.equal(minimum_image_distances(cell.T, frac[:, ::2].T, frac.T), want)


def check_gradients_are_those_of_plain_torch(dtype, threads):
    """Compare with autograd through the block of images, over a batch."""
    rng = np.random.default_rng(6)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    cells = torch.as_tensor(random_cells(rng, 12, (4, 9), (50, 130)))
    sizes_i, sizes_j = rng.integers(0, 60, 12), rng.integers(0, 40, 12)
    offsets_i, offsets_j = (torch.tensor([0, *x]).cumsum(0) for x in (sizes_i, sizes_j))
    f, g = (torch.as_tensor(rng.random((x.sum(), 3))) for x in (sizes_i, sizes_j))
    g[:3] = f[:3]  # some pairs at distance 0
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


def check_gradcheck():
    """Check the gradients against finite differences in float64."""
    rng = np.random.default_rng(7)
    cell = torch.as_tensor(random_cells(rng, 1, (4, 9), (50, 130))[0])
    leaves = [cell, *(torch.as_tensor(rng.random((n, 3))) for n in (4, 3))]
    assert torch.autograd.gradcheck(
        minimum_image_distances, [x.requires_grad_() for x in leaves], eps=1e-7
    )


def check_wrong_offsets_are_refused(offsets_i, offsets_j):
    """Check that the error names the offsets that do not ascend to the number of sites."""
    cells = CUBE.repeat(2, 1, 1)
    with pytest.raises(ValueError, match="offsets_i must ascend from 0 to the 2 sites of frac_i"):
        minimum_image_distances_batch(
            cells, SITES, SITES, torch.tensor(offsets_i), torch.tensor(offsets_j)
        )


def check_the_bad_cell_of_a_batch_is_named():
    """Check that the error names the crystal whose cell has no volume."""
    cells = torch.stack([CUBE, CUBE, torch.ones(3, 3)])
    frac, offsets = torch.zeros(3, 3), torch.arange(4)
    with pytest.raises(ValueError, match="cell 2 has no volume"):
        minimum_image_distances_batch(cells, frac, frac, offsets, offsets)


# Checks that the other implementations run too, with their arguments.
GEOMETRY = pytest.mark.parametrize(
    ("check", "arguments"),
    [
        *((check_sizes_around_the_edges, (n,)) for n in (0, 1, 127, 128, 129)),
        (check_near_images_keep_their_digits, ()),
        (check_distance_to_itself_is_zero_exactly, ()),
        (check_nan_sites_give_nan_and_stay_apart, ()),
        (check_sliced_and_transposed_inputs, ()),
        (check_gradients_are_those_of_plain_torch, (torch.float64, 1)),
        (check_gradients_are_those_of_plain_torch, (torch.float32, 1)),
        (check_gradcheck, ()),
        (check_the_bad_cell_of_a_batch_is_named, ()),
        (check_wrong_offsets_are_refused, ([0, 3, 2], [0, 1, 2])),
    ],
    ids=lambda x: x.__name__ if callable(x) else str(x),
)
