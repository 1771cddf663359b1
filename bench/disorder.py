"""Judge both treatments of partial occupancy on the gaps of alloys.

    python bench/disorder.py expt_gap_solid_solutions.parquet iii_v_alloys_gap_fits.parquet

The first table holds measured gaps of solid solutions, the second one fits to measured gaps of
III-V alloys over the composition, of which every second point is taken. The shipped ``mp-gap``
predicts each crystal averaged, and as the mean over arrangements in supercells of two sizes. It
predicts PBE gaps, which lie below measured ones, so errors are also given after the mean error of
each system is taken off. Writes ``results/disorder.md``.
"""

from __future__ import annotations

import argparse
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet

import sitenet
from sitenet.model.ensemble import Model
from sitenet.system.files import write_text

OUT = Path(__file__).parent / "results" / "disorder.md"
LEAST = 4  # compositions of a system whose order is judged
SIZES = (16, 40)  # sites of the supercells


@dataclass
class Alloys:
    """A table of alloys.

    Attributes:
        title: for the heading.
        cifs: (alloys,) CIF texts.
        truth: (alloys,) eV.
        system: (alloys,) name of the system.
        x: (alloys,) composition; equal ones of a system are averaged.
    """

    title: str
    cifs: list[str]
    truth: np.ndarray
    system: np.ndarray
    x: np.ndarray


def measured(path: Path) -> Alloys:
    """Read the solid solutions; a system has the same parents and mixed sublattices."""
    t = parquet.read_table(path).to_pydict()
    mixed = [
        " | ".join("+".join(sorted(part.split("+"))) for part in text.split(" | "))
        for text in t["mixed_sublattices"]
    ]
    parents = [" ".join(sorted(text.split())) for text in t["parent_mp_ids"]]
    system = np.array([f"{m};{p}" for m, p in zip(mixed, parents, strict=True)])
    x = np.unique(t["formula_expt"], return_inverse=True)[1]
    return Alloys("Measured gaps", t["cif"], np.array(t["band_gap_expt_eV"]), system, x)


def fitted(path: Path) -> Alloys:
    """Read the mixed III-V alloys at x = 0.1, 0.2, ... 0.9."""
    t = parquet.read_table(path).to_pydict()
    x = np.array(t["x"])
    tenths = np.round(10 * x)
    kept = np.flatnonzero((abs(10 * x - tenths) < 1e-6) & (tenths > 0) & (tenths < 10))
    columns = (np.array(t[name])[kept] for name in ("band_gap_300K_eV", "alloy", "x"))
    return Alloys("Fits of III-V alloys", [t["cif"][k] for k in kept], *columns)


@dataclass
class Answers:
    """Predictions of a treatment: (alloys,) values, spreads and half widths in eV; seconds each."""

    name: str
    values: np.ndarray
    spread: np.ndarray
    half_width: np.ndarray
    seconds: float


def answers(model: Model, alloys: Alloys, samples: int) -> list[Answers]:
    """Predict alloys averaged, and over arrangements."""
    crystals = [sitenet.read_cif(cif, disorder="average") for cif in alloys.cifs]
    start = time.process_time()
    values = model.predict(crystals)
    seconds = (time.process_time() - start) / len(crystals)
    unknown = np.full(len(values), np.nan)
    results = [Answers("`average`", values, unknown, unknown, seconds)]
    for sites in SIZES:
        start = time.process_time()
        each = [sitenet.predict_arrangements(model, c, samples, 0, sites) for c in crystals]
        seconds = (time.process_time() - start) / len(crystals)
        columns = (
            np.array([getattr(p, n)[0] for p in each]) for n in ("mean", "spread", "half_width")
        )
        results.append(Answers(f"`sample`, {sites} sites", *columns, seconds))
    return results


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks of values, equal ones sharing their mean rank."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(count) - (count - 1) / 2)[place]


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation; 0 where all values of one are equal."""
    a, b = ranks(a), ranks(b)
    return float(np.corrcoef(a, b)[0, 1]) if a.std() and b.std() else 0.0


def orders(alloys: Alloys, values: np.ndarray) -> dict[str, float]:
    """Rank correlations of predicted and true gaps within each system of several compositions."""
    result = {}
    for system in np.unique(alloys.system):
        here = np.flatnonzero(alloys.system == system)
        x, place = np.unique(alloys.x[here], return_inverse=True)
        if len(x) >= LEAST:
            means = [
                np.bincount(place, v[here]) / np.bincount(place) for v in (values, alloys.truth)
            ]
            result[str(system)] = spearman(np.round(means[0], 6), means[1])
    return result


def shifted_error(alloys: Alloys, values: np.ndarray) -> float:
    """Mean absolute error without the mean error of each system."""
    error = values - alloys.truth
    _, place = np.unique(alloys.system, return_inverse=True)
    return float(abs(error - (np.bincount(place, error) / np.bincount(place))[place]).mean())


def bowing(alloys: Alloys, values: np.ndarray) -> dict[str, float]:
    """The bowing of each system, in eV: E(x) = a + b x - bowing x (1 - x)."""
    result = {}
    for system in np.unique(alloys.system):
        here = alloys.system == system
        result[str(system)] = float(np.polyfit(alloys.x[here], values[here], 2)[0])
    return result


def accuracy_table(alloys: Alloys, results: list[Answers]) -> list[str]:
    """Lines of the table of errors and orders."""
    lines = [
        "| treatment | MAE (eV) | MAE without the system's mean error (eV) | order within a system "
        "| spread (eV) | within the 90 % interval | CPU time per alloy (s) |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for r in results:
        error = abs(r.values - alloys.truth)
        order = np.array(list(orders(alloys, r.values).values()))
        known = np.isfinite(r.half_width).all()
        more = f"{r.spread.mean():.3f} | {(error <= r.half_width).mean():.0%}" if known else "- | -"
        lines.append(
            f"| {r.name} | {error.mean():.3f} | {shifted_error(alloys, r.values):.3f} | "
            f"{order.mean():.2f} ({len(order)} systems) | {more} | {r.seconds:.3f} |"
        )
    return lines


def order_table(alloys: Alloys, results: list[Answers]) -> list[str]:
    """Lines of the table of rank correlations."""
    each = [orders(alloys, r.values) for r in results]
    names = " | ".join(r.name for r in results)
    lines = [
        f"| mixed | parents | compositions | {names} |",
        "|---|---|---:|" + "---:|" * len(each),
    ]
    for system in each[0]:
        cells = " | ".join(f"{order[system]:.2f}" for order in each)
        mixed, _, parents = system.partition(";")
        count = len(np.unique(alloys.x[alloys.system == system]))
        lines.append(f"| {mixed.replace(' | ', ', ')} | {parents} | {count} | {cells} |")
    return lines


def bowing_table(alloys: Alloys, results: list[Answers]) -> list[str]:
    """Lines of the table of bowing parameters."""
    truth = bowing(alloys, alloys.truth)
    each = [bowing(alloys, r.values) for r in results]
    names = " | ".join(r.name for r in results)
    lines = [f"| alloy | fit | {names} |", "|---|---:|" + "---:|" * len(results)]
    for system, value in truth.items():
        cells = " | ".join(f"{b[system]:.2f}" for b in each)
        lines.append(f"| {system} | {value:.2f} | {cells} |")
    wanted = np.array(list(truth.values()))
    got = [np.array(list(b.values())) for b in each]
    errors = " | ".join(f"{abs(b - wanted).mean():.2f}" for b in got)
    signs = " | ".join(f"{int((np.sign(b) == np.sign(wanted)).sum())} of {len(b)}" for b in got)
    return [*lines, f"| mean absolute error | | {errors} |", f"| right sign | | {signs} |"]


def main() -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("measured", type=Path)
    parser.add_argument("fitted", type=Path)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    warnings.simplefilter("ignore")  # of CIFs
    model = sitenet.load("mp-gap").eval()
    lines = [
        "# Alloys, averaged or sampled",
        "",
        f"`python bench/disorder.py MEASURED FITTED --samples {options.samples}` with the shipped "
        "`mp-gap`, which predicts PBE gaps.",
    ]
    for alloys in (measured(options.measured), fitted(options.fitted)):
        results = answers(model, alloys, options.samples)
        lines += ["", f"## {alloys.title}, {len(alloys.cifs)} alloys", ""]
        lines += accuracy_table(alloys, results)
        small, large = (r.values for r in results[1:])
        between = abs(small - large).mean()
        lines += ["", f"The means over {SIZES[0]} and {SIZES[1]} sites differ by {between:.3f} eV."]
        if alloys.title == "Measured gaps":
            lines += ["", "### Order within each system", "", *order_table(alloys, results)]
    lines += ["", "### Bowing (eV)", "", *bowing_table(alloys, results), ""]
    write_text(options.out, "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
