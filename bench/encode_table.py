"""Encodings, surroundings and fingerprints of the crystals of a table, kept in files, so that a
stopped run goes on where it was.

    python bench/encode_table.py mp-gap matbench_mp_gap_folds1234.parquet CACHE

``bench/calibrate_weights.py --cache CACHE`` does the same where the files are missing.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

import sitenet
from sitenet.crystal.crystal import Crystal
from sitenet.crystal.fingerprint import composition_hash, symmetry_hash, volume_per_atom
from sitenet.inference.predict import from_store
from sitenet.model.ensemble import Model
from sitenet.model.surroundings import Surroundings
from sitenet.pairs.maker import PairMaker
from sitenet.pairs.store import PairStore
from sitenet.system.files import fingerprint, new_file

CHUNK = 1000  # crystals per file
FORMAT = 1  # of the files


@dataclass(eq=False)
class Encoded:
    """What calibration needs of some crystals; every array is (crystals, ...).

    Attributes:
        values: (crystals, targets) properties.
        encodings: (crystals, encoding).
        formulas: reduced formulas.
        compositions: hashes of the compositions.
        symmetries: hashes of the symmetries.
        volumes: cubic angstrom per atom.
    """

    values: np.ndarray
    encodings: np.ndarray
    formulas: np.ndarray
    compositions: np.ndarray
    symmetries: np.ndarray
    volumes: np.ndarray

    def take(self, rows: np.ndarray) -> Encoded:
        """The crystals of some rows."""
        return Encoded(*(getattr(self, f.name)[rows] for f in fields(self)))


def crystals_of(table: pa.Table, rows: np.ndarray | Sequence[int]) -> list[Crystal]:
    """The primitive cells of some rows of a table."""
    return [sitenet.read_cif(text).primitive() for text in table["cif"].take(rows).to_pylist()]


def encode_table(
    model: Model, table: pa.Table, folder: Path
) -> tuple[Encoded, list[tuple[int, Surroundings]]]:
    """Encode all crystals of a table, reading from ``folder`` what an earlier run has left there.

    Returns:
        Everything but the surroundings; and the surroundings of each chunk, with the number of its
        first crystal.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = fingerprint(
        FORMAT,
        model.config.to_dict(),
        table["id"].to_pylist(),
        *(x.cpu().numpy() for x in model.state_dict().values()),
    )
    make, start = PairMaker(model.config), time.monotonic()
    parts, surroundings = [], []
    for first in range(0, len(table), CHUNK):
        path = folder / f"{key[:16]}-{first:06}.npz"
        if not path.exists():
            rows = np.arange(first, min(first + CHUNK, len(table)))
            arrays = _encode(model, crystals_of(table, rows), make)
            with new_file(path) as temporary, temporary.open("wb") as file:
                np.savez(file, **arrays)
            print(f"{rows[-1] + 1} of {len(table)}, {time.monotonic() - start:.0f} s", flush=True)
        with np.load(path) as file:
            arrays = dict(file)
        around = {
            k.removeprefix("around."): arrays.pop(k) for k in list(arrays) if k[:7] == "around."
        }
        parts.append(Encoded(**arrays))
        surroundings.append((first, Surroundings(len(arrays["values"]), **around)))
    whole = (np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Encoded))
    return Encoded(*whole), surroundings


def surroundings_of(
    chunks: Sequence[tuple[int, Surroundings]], rows: np.ndarray
) -> Iterator[Surroundings]:
    """The surroundings of some rows, ascending, chunk by chunk."""
    for first, chunk in chunks:
        chosen = np.zeros(chunk.crystals, dtype=bool)
        chosen[rows[(rows >= first) & (rows < first + chunk.crystals)] - first] = True
        number = np.cumsum(chosen) - 1
        arrays = {}
        for kind in ("bond", "site", "species"):
            crystal = getattr(chunk, f"{kind}_crystal")
            inside = chosen[crystal]
            for f in fields(chunk):
                if f.name.startswith(kind):
                    arrays[f.name] = getattr(chunk, f.name)[inside]
            arrays[f"{kind}_crystal"] = number[crystal[inside]]
        yield Surroundings(int(chosen.sum()), **arrays)


def _encode(model: Model, crystals: Sequence[Crystal], make: PairMaker) -> dict[str, np.ndarray]:
    store = PairStore.of([make(crystal) for crystal in crystals])
    values, encodings = zip(*from_store(model, store), strict=True)
    around = {k: v for k, v in vars(Surroundings.of(store)).items() if k != "crystals"}
    return {
        "values": np.stack(values),
        "encodings": np.stack(encodings),
        "formulas": np.array([c.reduced_formula for c in crystals]),
        "compositions": np.array([composition_hash(c) for c in crystals], np.int32),
        "symmetries": np.array([symmetry_hash(c) for c in crystals], np.int32),
        "volumes": np.array([volume_per_atom(c) for c in crystals]),
        **{f"around.{name}": value for name, value in around.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", help="name of shipped weights, or a model file")
    parser.add_argument("table", type=Path, help="Parquet file with the columns id and cif")
    parser.add_argument("cache", type=Path, help="folder of the files")
    options = parser.parse_args()
    model = sitenet.load(options.model)
    model.uses_oxidation = False  # no CIF of these tables states any
    encode_table(model, parquet.read_table(options.table, columns=["id", "cif"]), options.cache)


if __name__ == "__main__":
    main()
