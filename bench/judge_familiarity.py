"""Judge ``like_training``: which share of sound and of ruined crystals counts as like the training
crystals.

    python bench/judge_familiarity.py MODEL TABLE PREDICTIONS [--other TABLE]

MODEL is a shipped name, a model file or a run folder, and PREDICTIONS a ``predictions.csv``, whose
test crystals are taken from TABLE (columns id and cif). They must be new to MODEL. ``--other``
adds the crystals of a further table.
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from encode_table import crystals_of

import sitenet
from sitenet.crystal.crystal import Crystal
from sitenet.inference.predict import from_store
from sitenet.model.ensemble import Model
from sitenet.pairs.maker import PairMaker
from sitenet.pairs.store import PairStore

COUNT = 1000  # crystals of each kind, at most


def ruined(crystals: list[Crystal], elements: np.ndarray) -> dict[str, list[Crystal]]:
    """Crystals that no one would mistake for sound ones, by what was done to them.

    Args:
        crystals: sound ones.
        elements: atomic numbers to draw from.
    """
    rng = np.random.default_rng(0)

    def each(change: Callable[[Crystal], Crystal]) -> list[Crystal]:
        return [change(c) for c in crystals]

    def other_elements(c: Crystal) -> Crystal:
        kinds, kind = np.unique(c.numbers, return_inverse=True)
        others = rng.choice(np.setdiff1d(elements, kinds), len(kinds), replace=False)
        return Crystal(c.cell, c.frac, others[kind])

    several = [c for c in crystals if len(c) > 2]
    return {
        "isolated atoms": [Crystal(20 * np.eye(3), [[0, 0, 0]], [z]) for z in elements],
        "cell x 0.6": each(lambda c: Crystal(c.cell * 0.6, c.frac, c.numbers)),
        "cell x 0.8": each(lambda c: Crystal(c.cell * 0.8, c.frac, c.numbers)),
        "cell x 1.2": each(lambda c: Crystal(c.cell * 1.2, c.frac, c.numbers)),
        "random positions": [Crystal(c.cell, rng.random(c.frac.shape), c.numbers) for c in several],
        "random element per element": each(other_elements),
        "random element per site": each(
            lambda c: Crystal(c.cell, c.frac, rng.choice(elements, len(c)))
        ),
    }


def judge(model: Model, name: str, crystals: list[Crystal]) -> None:
    """Print the share of crystals that count as like the training crystals, and what it costs."""
    make, columns = PairMaker(model.config), []
    for crystal in crystals:
        try:
            columns.append(make(crystal))
        except ValueError:  # random positions may coincide
            continue
    store = PairStore.of(columns)
    encodings = np.stack([z for _, z in from_store(model, store)])
    start = time.process_time()
    assert model.calibration is not None
    reasons = model.calibration.unlike(encodings, store)
    cost = (time.process_time() - start) / len(reasons)
    like = sum(not why for why in reasons) / len(reasons)
    print(f"{name:28} {len(reasons):5} crystals, like training {like:6.1%}, {cost * 1e6:4.0f} us")


def drawn(table: pa.Table, rows: np.ndarray, rng: np.random.Generator) -> list[Crystal]:
    """Some crystals of a table, at random."""
    return crystals_of(table, rng.choice(rows, min(COUNT, len(rows)), replace=False))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("model")
    parser.add_argument("table", type=Path)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("--other", type=Path, help="a further table with a column cif to judge")
    options = parser.parse_args()
    model = sitenet.load(options.model)
    if model.calibration is None or model.calibration.familiarity is None:
        raise SystemExit(f"{options.model} keeps no statistics of its training crystals")
    with options.predictions.open(newline="", encoding="utf-8") as file:
        tested = {row["id"] for row in csv.DictReader(file) if row["split"] == "test"}
    table = parquet.read_table(options.table, columns=["id", "cif"])
    rows = np.flatnonzero([name in tested for name in table["id"].to_pylist()])
    if not len(rows):
        raise SystemExit(f"no test crystal of {options.predictions} is in {options.table}")
    rng = np.random.default_rng(1)
    sound = drawn(table, rows, rng)
    judge(model, "held-out crystals", sound)
    if options.other:
        further = parquet.read_table(options.other, columns=["cif"])
        judge(model, options.other.stem, drawn(further, np.arange(len(further)), rng))
    for name, crystals in ruined(
        sound, np.flatnonzero(model.calibration.familiarity.elements)
    ).items():
        judge(model, name, crystals)


if __name__ == "__main__":
    main()
