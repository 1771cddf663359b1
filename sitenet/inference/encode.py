"""Encodings of crystals: the vectors after pooling, from which the last layer predicts."""

from __future__ import annotations

import base64
import itertools
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from sitenet.inference.chunked_job import Outcome, run
from sitenet.inference.predict import outputs
from sitenet.inference.predict_chunks import Chunk, Predictor
from sitenet.inference.structures import is_single, preparation, prepared
from sitenet.inference.table import COVERAGE, Row
from sitenet.model.ensemble import Model
from sitenet.pairs.maker import PairMaker
from sitenet.system.files import new_file
from sitenet.system.progress import Reporter

FORMATS = (".parquet", ".npz")
_ROWS = 1000  # encodings that are written at a time


def encode(
    model: Model,
    structures: Iterable[Any] | Any,
    max_sites: int | None = None,
    primitive: bool | None = None,
    merge: bool = True,
    disorder: str | None = None,
) -> np.ndarray:
    """Encode structures.

    Args:
        model: A SiteNet or an Ensemble.
        structures: As in ``predict``.
        max_sites: As in ``predict``.
        primitive: As in ``predict``.
        merge: As in ``predict``.
        disorder: As in ``predict``.

    Returns:
        (structures, model.encoding_size) float32.

    Raises:
        CifError, ValueError, TypeError: A structure cannot be used; says which and why.
    """
    if is_single(structures):
        structures = [structures]
    crystals = prepared(structures, preparation(model.config, primitive, disorder))
    encodings = [encoding for _, encoding in outputs(model, crystals, max_sites, merge)]
    return np.array(encodings, dtype=np.float32).reshape(len(encodings), model.encoding_size)


def encode_files(
    model: Model,
    paths: Sequence[str | Path],
    out: str | Path,
    *,
    max_sites: int | None = None,
    merge: bool = True,
    primitive: bool | None = None,
    disorder: str | None = None,
    workers: int | None = None,
    reporter: Reporter | None = None,
) -> Outcome:
    """Encode all crystals of files, folders and tables, in bounded memory.

    Args:
        model: A SiteNet or an Ensemble.
        paths: As in ``predict_files``.
        out: File to write: ``.parquet`` with the columns ``id`` and ``encoding``, or ``.npz`` with
            the arrays ``ids`` (crystals,) and ``encodings`` (crystals, model.encoding_size)
            float32. ``NAME.left_out.csv`` beside it lists what could not be used. A stopped run
            continues where it was, and a finished file of the same crystals, model and settings is
            left as it is.
        max_sites: As in ``predict``.
        merge: As in ``predict``.
        primitive: As in ``predict``.
        disorder: As in ``predict``.
        workers: Processes that read structures and find pairs; None chooses.
        reporter: Shows progress.

    Raises:
        FileNotFoundError, ValueError: A path is none of these, ``out`` has another ending, or
            another process writes it.
        OSError: ``out`` cannot be written; raised before anything is computed.
    """
    check_format(out)
    how = preparation(model.config, primitive, disorder)
    make = PairMaker(model.config, max_sites, merge)
    return run(_Encoder(model, how, make, COVERAGE), paths, out, workers, reporter)


def check_format(out: str | Path) -> None:
    """Check that encodings can be written to a file of this name.

    Raises:
        ValueError: It ends otherwise.
    """
    suffix = Path(out).suffix
    if suffix not in FORMATS:
        raise ValueError(f"{out}: expected a file ending in {' or '.join(FORMATS)}, got {suffix!r}")


@dataclass(frozen=True)
class _Encoding:
    """The encoding of a crystal, as JSON can hold it.

    Attributes:
        id: Name of the crystal.
        vector: Little-endian float32 numbers in base 64.
    """

    id: str
    vector: str

    def array(self) -> np.ndarray:
        return np.frombuffer(base64.b64decode(self.vector), dtype="<f4")


class _Encoder(Predictor):
    """Encode chunks of records."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.header = ["id", "encoding"]

    def row(self, result: _Encoding) -> Row:
        return result.id, result.vector

    def chunk_of(self, content: dict[str, Any]) -> Chunk:
        return Chunk.of_plain(content, _Encoding)

    def _predictions(self, predicted: list[tuple[Any, Any]]) -> list[Any]:
        return [
            _Encoding(one.record.id, base64.b64encode(encoding.astype("<f4").tobytes()).decode())
            for one, (_, encoding) in predicted
        ]

    def write(self, path: Path, results: Callable[[], Iterator[_Encoding]]) -> None:
        write = _write_parquet if path.suffix == ".parquet" else _write_npz
        write(path, results, self.model.encoding_size)


def _parts(results: Iterator[_Encoding]) -> Iterator[list[_Encoding]]:
    return iter(lambda: list(itertools.islice(results, _ROWS)), [])


def _write_parquet(path: Path, results: Callable[[], Iterator[_Encoding]], size: int) -> None:
    schema = pa.schema({"id": pa.string(), "encoding": pa.list_(pa.float32(), size)})
    with new_file(path) as temporary, parquet.ParquetWriter(temporary, schema) as writer:
        for part in _parts(results()):
            values = pa.array(np.concatenate([one.array() for one in part]))
            encodings = pa.FixedSizeListArray.from_arrays(values, size)
            writer.write_batch(
                pa.record_batch([pa.array([one.id for one in part]), encodings], schema=schema)
            )


def _write_npz(path: Path, results: Callable[[], Iterator[_Encoding]], size: int) -> None:
    count, longest = 0, 1
    for one in results():
        count, longest = count + 1, max(longest, len(one.id))
    arrays = {
        "ids": (np.dtype(f"<U{longest}"), (count,), lambda part: [one.id for one in part]),
        "encodings": (
            np.dtype("<f4"),
            (count, size),
            lambda part: [one.array() for one in part],
        ),
    }
    with new_file(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, (dtype, shape, rows) in arrays.items():
            header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                np.lib.format.write_array_header_1_0(file, header)
                for part in _parts(results()):
                    file.write(np.array(rows(part), dtype=dtype).tobytes())
