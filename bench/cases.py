"""What the benches measure on, and how they take times."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import gemmi
import numpy as np
import pyarrow.parquet as parquet
import pytest

SHARED = Path(os.environ.get("SITENET_SHARED", Path(__file__).resolve().parents[2] / "shared"))
MATBENCH = SHARED / "data" / "matbench_mp_gap_sample_4000.parquet"


@dataclass
class Case:
    """A crystal's arrays, as ``sitenet.Crystal`` has them."""

    cell: np.ndarray
    frac: np.ndarray
    numbers: np.ndarray
    oxidation: None = None
    occupancy: None = None


def random_cell(rng: np.random.Generator) -> np.ndarray:
    """A cell of edges 3 to 25 A and angles 25 to 155 degrees that is not quite flat."""
    while True:
        a, b, c = rng.uniform(3, 25, 3)
        cos_a, cos_b, cos_g = np.cos(np.radians(rng.uniform(25, 155, 3)))
        sin_g = np.sqrt(1 - cos_g**2)
        y = (cos_a - cos_b * cos_g) / sin_g
        z = 1 - cos_b**2 - y**2
        if z > 0.01:
            return np.array(
                [[a, 0, 0], [b * cos_g, b * sin_g, 0], [c * cos_b, c * y, c * np.sqrt(z)]]
            )


@lru_cache
def matbench_texts(count: int) -> list[str]:
    """The first CIF texts of the Matbench sample, a random one; the test is skipped without it."""
    if not MATBENCH.exists():
        pytest.skip(f"no {MATBENCH}")
    return parquet.read_table(MATBENCH, columns=["cif"])["cif"][:count].to_pylist()


@lru_cache
def matbench_crystals(count: int) -> list[Case]:
    """Their crystals. The files list all sites (P1), so nothing is expanded here."""
    crystals = []
    for text in matbench_texts(count):
        structure = gemmi.make_small_structure_from_block(gemmi.cif.read_string(text).sole_block())
        cell = np.array(structure.cell.orth.mat.tolist()).T
        frac = np.array([site.fract.tolist() for site in structure.sites])
        numbers = np.array([site.element.atomic_number for site in structure.sites])
        crystals.append(Case(np.ascontiguousarray(cell), frac, numbers))
    return crystals


@dataclass
class Time:
    """Seconds a call: the median, and half the distance between the quartiles."""

    median: float
    spread: float


def measure(function: Callable[[], object], repeats: int = 20, least: float = 0.2) -> Time:
    """Times of ``function`` after one call to warm up; at least 3, stopping after 10 ``least``."""
    function()
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < repeats or time.perf_counter() - begin < least:
        t = time.perf_counter()
        function()
        times.append(time.perf_counter() - t)
        if len(times) >= 3 and time.perf_counter() - begin > 10 * least:
            break
    low, median, high = np.quantile(times, [0.25, 0.5, 0.75])
    return Time(float(median), float(high - low) / 2)
