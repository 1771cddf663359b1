"""Minimum-image distances beside pymatgen and ASE, which are exact on skewed cells too."""

import numpy as np
import pytest
import torch
from cases import measure, random_cell

from sitenet.ops.geometry import minimum_image_distances, minimum_image_distances_batch

TITLE = "minimum-image distances (G pairs/s; x: times faster)"
HEADER = ("case", "dtype", "pymatgen", "ASE", "ours", "+-", "x pymatgen", "x ASE", "GB/s written")
DTYPES = (torch.float32, torch.float64)


def pymatgen_distances(cell, frac):
    lattice = pytest.importorskip("pymatgen.core").Lattice(cell)
    return lambda: lattice.get_all_distances(frac, frac)


def ase_distances(cell, frac):
    get_distances = pytest.importorskip("ase.geometry").get_distances
    positions = frac @ cell
    return lambda: get_distances(positions, positions, cell=cell, pbc=True)[1]


def report(table, name, dtype, pairs, theirs, ours):
    rates = [pairs / t.median / 1e9 for t in (*theirs, ours)]
    spread = rates[2] * ours.spread / ours.median
    width = torch.tensor([], dtype=dtype).element_size()
    cells = [f"{rates[0]:.4f}", f"{rates[1]:.4f}", f"{rates[2]:.3f}", f"{spread:.3f}"]
    ratios = [f"{rates[2] / rates[k]:.0f}" for k in (0, 1)]
    cells += [*ratios, f"{rates[2] * width:.1f}"]
    table(TITLE, HEADER, name, str(dtype).removeprefix("torch."), *cells)


@pytest.mark.parametrize("sites", [8, 50, 100, 500])
def test_one_crystal(sites, table, full):
    rng = np.random.default_rng(sites)
    cell, frac = random_cell(rng), rng.random((sites, 3))
    baselines = pymatgen_distances(cell, frac), ase_distances(cell, frac)
    want = baselines[0]()
    np.testing.assert_allclose(baselines[1](), want, atol=1e-9)
    repeats = 20 if full or sites <= 100 else 5
    theirs = [measure(f, repeats) for f in baselines]
    for dtype in DTYPES:
        c, f = (torch.as_tensor(x, dtype=dtype) for x in (cell, frac))
        assert np.abs(minimum_image_distances(c, f, f).double().numpy() - want).max() < 1e-4
        ours = measure(lambda c=c, f=f: minimum_image_distances(c, f, f))
        report(table, f"{sites} sites", dtype, sites**2, theirs, ours)


@pytest.mark.parametrize(("sites", "crystals"), [(5, 2000), (8, 2000), (27, 500), (100, 50)])
def test_batch_of_crystals(sites, crystals, table, full):
    rng = np.random.default_rng(sites)
    cells = np.stack([random_cell(rng) for _ in range(crystals)])
    frac = rng.random((crystals, sites, 3))
    some = range(crystals if full else min(crystals, 50))
    theirs = []
    for baseline in (pymatgen_distances, ase_distances):
        calls = [baseline(cells[k], frac[k]) for k in some]
        time = measure(lambda calls=calls: [call() for call in calls], 3)
        time.median *= crystals / len(some)
        theirs.append(time)
    offsets = torch.arange(crystals + 1) * sites
    for dtype in DTYPES:
        c, f = (torch.as_tensor(x, dtype=dtype) for x in (cells, frac.reshape(-1, 3)))
        got, _ = minimum_image_distances_batch(c, f, f, offsets, offsets)
        for k in some:
            want = pymatgen_distances(cells[k], frac[k])().reshape(-1)
            part = got[k * sites**2 : (k + 1) * sites**2]
            assert np.abs(part.double().numpy() - want).max() < 1e-4
        ours = measure(lambda c=c, f=f: minimum_image_distances_batch(c, f, f, offsets, offsets))
        report(table, f"{crystals} x {sites} sites", dtype, crystals * sites**2, theirs, ours)


def test_forward_and_backward(table):
    """With the gradients to cell and sites, in the same table (no baseline has them)."""
    rng = np.random.default_rng(0)
    for dtype in DTYPES:
        leaves = [
            torch.as_tensor(x, dtype=dtype).requires_grad_()
            for x in (random_cell(rng), rng.random((500, 3)), rng.random((500, 3)))
        ]

        def step(leaves=leaves):
            return torch.autograd.grad(minimum_image_distances(*leaves).sum(), leaves)

        time = measure(step)
        rate = 500**2 / time.median / 1e9
        cells = ("-", "-", f"{rate:.3f}", f"{rate * time.spread / time.median:.3f}", "-", "-", "-")
        table(TITLE, HEADER, "500, both ways", str(dtype).removeprefix("torch."), *cells)
