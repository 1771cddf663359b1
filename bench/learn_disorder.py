"""Learn properties of disordered crystals, beside a baseline that sees the composition alone.

    python bench/learn_disorder.py RUNS CONDUCTIVITIES SUPERCONDUCTORS

The tables are obelix_ionic_conductivity.parquet and superconductors_3dsc.parquet. Lithium-ion
conductivities are those of OBELiX, critical temperatures those of 3DSC, with the first
structure of each measured composition. Sites with partial occupancy are averaged. All models are
cross-validated over the same folds, in which crystals with the same elements stay together, as the
members of a doping series would otherwise be in training and test. The baseline is a random forest
on the share of each element and on the elements' properties: mean, standard deviation, minimum and
maximum. RUNS keeps what is trained, and an interrupted run resumes. Writes
``results/learned_disorder.md``.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from rich.console import Console
from sklearn.ensemble import RandomForestRegressor

import sitenet
from sitenet.crystal.elements import NUM_ELEMENTS, site_features
from sitenet.data.prepared import load_dataset
from sitenet.inference.metrics import regression_scores
from sitenet.system.files import write_text
from sitenet.system.progress import Reporter

OUT = Path(__file__).parent / "results" / "learned_disorder.md"
TREES = 500
CONFIG = "density"
STARTS = {"random weights": None, "`mp-eform`": "mp-eform"}


@dataclass(frozen=True)
class Property:
    """A property to learn.

    Attributes:
        title: For the heading.
        column: Of the table, with the values.
        unit: Of the values.
        folds: For cross-validation.
        composition: Column of the measured composition, of which the first structure is taken;
            "" takes all rows.
        changes: Settings of sitenet beside those of the shipped config.
    """

    title: str
    column: str
    unit: str
    folds: int
    composition: str
    changes: dict[str, Any]


CONDUCTIVITY = Property(
    "Lithium-ion conductivity", "log10_ionic_conductivity", "decades", 5, "", {}
)
SUPERCONDUCTORS = Property(
    "Critical temperature", "tc_K", "K", 3, "formula_supercon", {"last_activation": "trelu"}
)


def read(path: Path, what: Property, rows: int | None) -> pa.Table:
    """Names, CIFs and values of the crystals to learn from."""
    table = parquet.read_table(path)
    if what.composition:
        formulas = np.array(table[what.composition].to_pylist())
        table = table.take(np.sort(np.unique(formulas, return_index=True)[1]))
    return table.slice(0, rows).select(["id", "cif", what.column])


def composition_features(crystal: sitenet.Crystal) -> np.ndarray:
    """What the baseline sees of a crystal, (features,)."""
    shares = np.bincount(crystal.numbers, crystal.occupancy, minlength=NUM_ELEMENTS)
    shares = shares / shares.sum()
    present = np.flatnonzero(shares)
    values, weights = site_features(present, missing="mean"), shares[present]
    mean = weights @ values
    spread = np.sqrt(weights @ np.square(values - mean))
    return np.concatenate([shares, mean, spread, values.min(0), values.max(0)])


def forest(x: np.ndarray, y: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Predictions of each crystal by a forest that has not seen its fold, (crystals,)."""
    predicted = np.full(len(y), np.nan)
    for k in np.unique(fold):
        model = RandomForestRegressor(TREES, max_features=1 / 3, random_state=0)
        model.fit(x[fold != k], y[fold != k])
        predicted[fold == k] = model.predict(x[fold == k])
    return predicted


def predictions(path: Path, column: str) -> tuple[list[str], np.ndarray, np.ndarray, np.ndarray]:
    """Names, folds, values and predictions in the file that a cross-validation leaves."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    values = (
        np.array([float(row[name]) for row in rows])
        for name in ("fold", column, f"{column}_predicted")
    )
    return [row["id"] for row in rows], *values


def scores(name: str, y: np.ndarray, predicted: np.ndarray, fold: np.ndarray) -> str:
    """A line of the table: means over the folds, and the standard deviation of the error."""
    each = [regression_scores(y[fold == k], predicted[fold == k]) for k in np.unique(fold)]
    errors, r2 = (np.array([one[measure] for one in each]) for measure in ("mae", "r2"))
    return f"| {name} | {errors.mean():.3g} ± {errors.std():.2g} | {r2.mean():.2f} |"


def judge(
    what: Property, path: Path, runs: Path, rows: int | None, epochs: int | None
) -> list[str]:
    """Train and test the models of a property, and describe them in lines of Markdown."""
    reporter = Reporter(Console(stderr=True))
    runs.mkdir(parents=True, exist_ok=True)
    source = runs / "source.parquet"
    parquet.write_table(read(path, what, rows), source)
    changes = {**what.changes, **({} if epochs is None else {"epochs": epochs})}
    lines = []
    for name, start in STARTS.items():
        run = sitenet.crossval(
            source,
            runs / (start or "random"),
            None if start else CONFIG,
            start=start,
            target=what.column,
            folds=what.folds,
            group="elements",
            disorder="average",
            reporter=reporter,
            **changes,
        )
        ids, fold, y, predicted = predictions(run.folder / "predictions.csv", what.column)
        lines.append(scores(f"`density` from {name}", y, predicted, fold))
    dataset = load_dataset(run.folder / "dataset.parquet")
    crystals = dict(zip(dataset.ids, dataset.crystals, strict=True))
    x = np.stack([composition_features(crystals[name]) for name in ids])
    medians = [np.median(y[fold != k]) for k in np.unique(fold)]
    constant = np.array(medians)[np.searchsorted(np.unique(fold), fold)]
    lines += [
        scores("random forest on the composition", y, forest(x, y, fold), fold),
        scores("median of the training crystals", y, constant, fold),
    ]
    mixed = sum(crystal.occupancy is not None for crystal in crystals.values())
    left_out = f", {len(dataset.left_out)} left out" if dataset.left_out else ""
    return [
        f"## {what.title}, {len(y)} crystals",
        "",
        f"`{path.name}`: {mixed} crystals with partial occupancy, {what.folds} folds{left_out}.",
        "",
        f"| model | MAE ({what.unit}) | R² |",
        "|---|---:|---:|",
        *lines,
        "",
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("conductivities", type=Path)
    parser.add_argument("superconductors", type=Path)
    parser.add_argument("--rows", type=int, help="of each table, for trials  [default: all]")
    parser.add_argument(
        "--epochs", type=int, help="for trials  [default: by the number of crystals]"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args(arguments)
    lines = [
        "# Properties learned from disordered crystals",
        "",
        "Written by `bench/learn_disorder.py`. Partial occupancy is averaged. Errors are means "
        "over folds in which crystals with the same elements stay together, ± their standard "
        "deviation.",
        "",
    ]
    for what, path in (
        (CONDUCTIVITY, options.conductivities),
        (SUPERCONDUCTORS, options.superconductors),
    ):
        lines += judge(what, path, options.runs / what.column, options.rows, options.epochs)
    write_text(options.out, "\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
