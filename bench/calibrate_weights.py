"""Calibrate shipped weights again, without a change to the network.

    python bench/calibrate_weights.py mp-eform eform_source.parquet --cache CACHE

The table is the one that the model's card names or makes, and its split is drawn again as in
training. The weights are kept in ten bits. The present code computes again what the file keeps
beside them: the errors on the validation crystals, the statistics and the index of the training
crystals, and the scores in the metadata. Predictions of the held-out crystals go to
CACHE/predictions.csv; a stopped run goes on where it was, from the other files in CACHE.

``bench/judge_errors.py`` judges the intervals and the probability of zero, and
``bench/judge_familiarity.py`` what counts as like the training crystals.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
from encode_table import Encoded, crystals_of, encode_table, surroundings_of

import sitenet
from sitenet.data.dataset import Dataset, Split, split
from sitenet.inference.evaluate import Predictions
from sitenet.model.calibration import Calibration, calibrate, errors_of, spread
from sitenet.model.checkpoint import read_metadata, shipped_weights
from sitenet.model.ensemble import Model
from sitenet.model.neighbours import Fingerprints, TrainingIndex
from sitenet.model.packing import pack, unpack
from sitenet.model.surroundings import Surroundings

BITS = 10  # per weight of the file
ENCODED = 5000  # training crystals that are encoded, as in training
ENERGY = "formation_energy_eV_per_atom"


def energies(path: Path) -> tuple[pa.Table, str, list[str], dict]:
    """Table, target, folds and the arguments of ``split`` that made mp-eform."""
    table = parquet.read_table(path, columns=["id", "cif", "e_form_eV_per_atom"])
    table = table.rename_columns(["id", "cif", ENERGY])
    return table, ENERGY, [""] * len(table), {"valid": 0.02, "test": 0.1, "group": "structure"}


TABLES = {"mp-eform": energies}


def calibrated(
    model: Model,
    table: pa.Table,
    truth: np.ndarray,
    parts: Split,
    cache: Path,
) -> tuple[Calibration, Encoded]:
    """A calibration, and all crystals.

    Args:
        model: as it ships.
        table: the crystals.
        truth: (crystals, 1) true values.
        parts: rows of the table.
        cache: folder of ``encode_table``.
    """
    encoded, around = encode_table(model, table, cache)
    train, valid = np.sort(parts.train), np.sort(parts.valid)
    sample = train
    if len(sample) > ENCODED:
        sample = np.random.default_rng(0).choice(sample, ENCODED, replace=False)
    of_valid, of_train = encoded.take(valid), encoded.take(train)
    calibration = calibrate(
        truth[valid],
        of_valid.values,
        of_valid.encodings,
        encoded.encodings[sample],
        spread=spread(model, of_valid.encodings),
        valid=Surroundings.join(surroundings_of(around, valid)),
        train=Surroundings.join(surroundings_of(around, train)),
    )
    calibration.errors = errors_of(model, of_valid.encodings, truth[valid])
    ids = table["id"].to_pylist()
    calibration.index = TrainingIndex.fit(
        of_train.encodings,
        truth[train],
        [ids[k] for k in train],
        of_train.formulas.tolist(),
        Fingerprints.from_values(of_train.compositions, of_train.symmetries, of_train.volumes),
    )
    return calibration, encoded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=TABLES)
    parser.add_argument("table", type=Path)
    parser.add_argument(
        "--cache", type=Path, default="build/calibration", help="folder of encoded crystals"
    )
    options = parser.parse_args()
    model = sitenet.load(options.name)
    model.uses_oxidation = False  # no CIF of either table states any
    model.load_state_dict(unpack(pack(model.state_dict(), BITS)))  # calibrate what is kept
    table, target, folds, how = TABLES[options.name](options.table)
    ids = table["id"].to_pylist()
    everything = crystals_of(table, np.arange(len(table))) if "group" in how else []
    data = Dataset(ids, everything, np.empty((len(ids), 0)), (), (), folds)
    parts = split(data, seed=42, **how)
    path = shipped_weights()[options.name]
    facts = read_metadata(path)["metadata"]
    if not facts["crystals"]["test"]:
        parts = parts.without_test()  # the weights that ship learned from those, too
    truth = np.array(table[target].to_pylist(), dtype=np.float64)[:, None]
    calibration, encoded = calibrated(model, table, truth, parts, options.cache)
    model.calibration = calibration
    held_out = {name: np.sort(getattr(parts, name)) for name in ("valid", "test")}
    rows = np.concatenate([*held_out.values()])
    crystals, names, count = crystals_of(table, rows), [ids[k] for k in rows], len(rows)
    data = Dataset(names, crystals, truth[rows], (target,), (model.targets[0].unit,), [""] * count)
    places = np.split(np.arange(count), [len(held_out["valid"])])
    each = {name: place for name, place in zip(held_out, places, strict=True) if len(place)}
    of_rows = encoded.take(rows)
    predictions = Predictions.of(model, data, each, of_rows.values, of_rows.encodings)
    predictions.write(options.cache / "predictions.csv")
    for name, scores in predictions.scores().items():
        facts["scores"][name][target] |= scores[target]
    model.save(path, facts, BITS)
    print(f"{path}: {path.stat().st_size} bytes, {facts['scores']}")


if __name__ == "__main__":
    main()
