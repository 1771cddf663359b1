"""From CIF text to pairs, stage by stage, and what merging saves on the Matbench sample."""

import time

import numpy as np
import pytest
import torch
from cases import Case, matbench_crystals, matbench_texts, measure

from sitenet.pairs.features import pair_features
from sitenet.pairs.finder import PairFinder, find_pairs
from sitenet.pairs.pairs import Pairs

SITES = (50, 100, 500)


def test_stages(table, full):
    """Reading, primitive cell and merged pairs of each crystal, one after another."""
    crystal = pytest.importorskip("sitenet.crystal.crystal")
    texts = matbench_texts(1000 if full else 300)
    crystal.read_cif(texts[0]).primitive()
    header = ("supercell", "read", "primitive", "pairs", "all", "crystals/s")
    for max_sites in SITES:
        stages = np.zeros(3)
        for text in texts:
            t = [time.perf_counter()]
            c = crystal.read_cif(text)
            t.append(time.perf_counter())
            c = c.primitive()
            t.append(time.perf_counter())
            find_pairs(c, max_sites)
            t.append(time.perf_counter())
            stages += np.diff(t)
        cells = [f"{s / len(texts) * 1e3:.3f} ms" for s in (*stages, stages.sum())]
        rate = f"{len(texts) / stages.sum():.0f}"
        table("CIF text to merged pairs", header, f"{max_sites} sites", *cells, rate)


def test_merging(table, full):
    """How many pairs and rows are left, and the time they take to find."""
    crystals = matbench_crystals(4000 if full else 1000)
    header = ("images", "pairs", "merged", "fewer", "median", "rows", "merged", "crystals/s")
    title = f"merging on {len(crystals)} Matbench crystals"
    options = {f"{n} sites": {"max_sites": n} for n in SITES}
    options |= {f"sphere {r} A": {"images": "sphere", "radius": r} for r in (5, 6, 8)}
    for name, option in options.items():
        begin = time.perf_counter()
        pairs = [find_pairs(c, **option) for c in crystals]
        seconds = time.perf_counter() - begin
        unmerged = np.array([int(p.multiplicity.long() @ p.count.long()[p.rows]) for p in pairs])
        merged = np.array([p.num_pairs for p in pairs])
        rows = [sum(x) for x in ((p.orbit.numel() for p in pairs), (p.num_rows for p in pairs))]
        fewer = f"{unmerged.sum() / merged.sum():.2f}x", f"{np.median(unmerged / merged):.2f}x"
        cells = (unmerged.sum(), merged.sum(), *fewer, *rows, f"{len(crystals) / seconds:.0f}")
        table(title, header, name, *cells)


@pytest.mark.parametrize("merge", [True, False])
def test_large_crystals(merge, table, full):
    """Rows of random crystals, where nothing merges."""
    header = ("sites", "merged", "orbits", "rows", "G pairs/s", "+-")
    for sites in (1000, 10_000) if full else (1000,):
        rng = np.random.default_rng(0)
        cell = np.eye(3) * (15 * sites) ** (1 / 3)
        crystal = Case(cell, rng.random((sites, 3)), rng.integers(1, 5, sites))
        orbits = measure(lambda c=crystal: PairFinder(c, merge=merge), 3)
        finder = PairFinder(crystal, merge=merge)
        rows = min(500, finder.num_rows)
        filled = measure(lambda f=finder, r=rows: f.rows(0, r), 3)
        rate = finder.rows(0, rows).num_pairs / filled.median / 1e9
        spread = rate * filled.spread / filled.median
        cells = (f"{orbits.median * 1e3:.1f} ms", f"{filled.median * 1e3:.1f} ms")
        table("large crystals", header, sites, merge, *cells, f"{rate:.3f}", f"{spread:.3f}")


def test_features(table):
    """The published features of a batch, from its pairs."""
    pairs = Pairs.batch([find_pairs(c) for c in matbench_crystals(200)])
    for dtype in (torch.float64, torch.float32):
        batch = pairs.to(dtype=dtype)
        seconds = measure(lambda b=batch: pair_features(b))
        rate = batch.num_pairs / seconds.median / 1e6
        spread = rate * seconds.spread / seconds.median
        name = str(dtype).removeprefix("torch.")
        header = ("dtype", "pairs", "M pairs/s", "+-")
        table("pair features", header, name, batch.num_pairs, f"{rate:.0f}", f"{spread:.0f}")
