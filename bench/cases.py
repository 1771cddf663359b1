"""What the benches measure on, and how they take times."""

import os
import resource
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import gemmi
import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch

from sitenet.pairs.finder import find_pairs
from sitenet.pairs.pairs import Pairs

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


def matbench_pairs(sites: int, max_sites: int, merge: bool) -> Pairs:
    """A batch as the published sampler makes it: crystals with this many unique sites at most."""
    crystals = matbench_crystals(1000)
    ends = np.cumsum([len(c.numbers) for c in crystals])
    count = max(1, int(np.searchsorted(ends, sites, side="right")))
    return Pairs.batch([find_pairs(c, max_sites, merge) for c in crystals[:count]])


@dataclass
class Time:
    """Seconds a call: the median, and half the distance between the quartiles."""

    median: float
    spread: float


def _quartiles(times: list[float]) -> Time:
    low, median, high = np.quantile(times, [0.25, 0.5, 0.75])
    return Time(float(median), float(high - low) / 2)


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
    return _quartiles(times)


def measure_in_turn(
    functions: Mapping[str, Callable[[], object]], repeats: int = 20, most: float = 5.0
) -> dict[str, Time]:
    """Times of functions to compare, called in turn after one call each to warm up, so that a
    change of the machine's load meets all of them; at least 3 rounds, no further one after
    ``most`` seconds."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    begin = time.perf_counter()
    for done in range(repeats):
        if done >= 3 and time.perf_counter() - begin > most:
            break
        for name, function in functions.items():
            t = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - t)
    return {name: _quartiles(t) for name, t in times.items()}


def large_product(dtype: torch.dtype, size: int = 1536) -> tuple[Callable[[], object], float]:
    """A large matrix product, whose rate is called the machine's peak, and its GFLOP."""
    a, b = torch.randn(2, size, size).to(dtype)
    return lambda: a @ b, 2 * size**3 / 1e9


def peak_gigabytes() -> float:
    """Most memory (GB resident) that this process has taken. What getrusage says would count the
    parent's too, from before the program was started."""
    try:
        with open("/proc/self/status") as lines:
            kilobytes = next(x.split()[1] for x in lines if x.startswith("VmHWM"))
        return int(kilobytes) * 1024 / 1e9
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
