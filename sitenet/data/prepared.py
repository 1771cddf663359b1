"""Datasets as Parquet files: made from a source, resumable, with checksums.

One row a crystal; the metadata name the format, the source and the settings, and hold a hash of
the content.
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.parquet as parquet

from sitenet.crystal.crystal import Crystal
from sitenet.data.dataset import USUAL, Dataset, LeftOut, Preparation, Reader, collect
from sitenet.data.readers import open_source
from sitenet.data.source import Source
from sitenet.system.files import new_file
from sitenet.system.processes import default_workers, in_order

FORMAT = 2
PART = 2000  # crystals that are prepared, written and, after a kill, redone together

_SCHEMA = {
    "id": pa.string(),
    "cell": pa.list_(pa.float64(), 9),
    "frac": pa.large_list(pa.float64()),
    "numbers": pa.large_list(pa.uint8()),
    "oxidation": pa.large_list(pa.float64()),
    "occupancy": pa.large_list(pa.float64()),
    "split": pa.string(),
}
_TARGET = "target:"  # prefix of the targets' columns


def _table(data: Dataset) -> pa.Table:
    def plain(values: np.ndarray | None) -> list | None:
        return None if values is None else values.ravel().tolist()

    columns = {
        "id": data.ids,
        "cell": [plain(c.cell) for c in data.crystals],
        "frac": [plain(c.frac) for c in data.crystals],
        "numbers": [plain(c.numbers) for c in data.crystals],
        "oxidation": [plain(c.oxidation) for c in data.crystals],
        "occupancy": [plain(c.occupancy) for c in data.crystals],
        "split": data.split,
    }
    arrays = {name: pa.array(values, _SCHEMA[name]) for name, values in columns.items()}
    for k, name in enumerate(data.names):
        arrays[_TARGET + name] = pa.array(data.targets[:, k])
    return pa.table(arrays)


def _crystals(table: pa.Table) -> Iterator[Crystal]:
    for batch in table.to_batches():
        columns = {name: batch.column(name) for name in _SCHEMA}
        cells = columns["cell"].flatten().to_numpy().reshape(-1, 3, 3)
        for i in range(len(batch)):
            oxidation, occupancy = columns["oxidation"][i], columns["occupancy"][i]
            yield Crystal(
                cells[i],
                columns["frac"][i].values.to_numpy().reshape(-1, 3),
                columns["numbers"][i].values.to_numpy().astype(np.int64),
                oxidation.values.to_numpy() if oxidation.is_valid else None,
                occupancy.values.to_numpy() if occupancy.is_valid else None,
                columns["id"][i].as_py(),
            )


def _content_hash(table: pa.Table) -> bytes:
    """A hash of the values, however they lie in memory and in files."""
    digest = hashlib.sha256()
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        digest.update(f"{name} {len(column)} ".encode())
        if pa.types.is_string(column.type):
            digest.update(json.dumps(column.to_pylist()).encode())
            continue
        if not pa.types.is_floating(column.type):  # lists
            digest.update(column.is_valid().to_numpy(zero_copy_only=False))
            if pa.types.is_large_list(column.type):
                digest.update(compute.list_value_length(column).fill_null(0).to_numpy())
            column = column.flatten()
        digest.update(np.ascontiguousarray(column.to_numpy()).data)
    return digest.digest()


def _key(parts: list[bytes], facts: dict[str, Any]) -> str:
    """A hash of a dataset file: of its row groups and of what its metadata say."""
    told = json.dumps({k: v for k, v in facts.items() if k != "key"}, sort_keys=True)
    return hashlib.sha256(b"".join(parts) + told.encode()).hexdigest()


def prepare(
    source: str | Path | Source,
    out: str | Path,
    targets: Sequence[str] | None = None,
    how: Preparation = USUAL,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> tuple[int, list[LeftOut]]:
    """Make a dataset file of a source, in bounded memory.

    A part of the crystals is read, written and renamed at a time, into a folder beside ``out``; a
    run that was killed goes on with the parts that are missing, and they become one file at the
    end. A file that was made of the same source with the same settings is left as it is.

    Args:
        source: what ``open_source`` takes, or a source.
        out: the Parquet file.
        targets: as in ``open_source``.
        how: settings.
        workers: processes; None chooses.
        advance: is told how many more records are done, those of an earlier run too.

    Returns:
        The number of crystals, and what was left out.

    Raises:
        ValueError: the source cannot be read, or not one of its crystals can be used.
    """
    if not isinstance(source, Source):
        source = open_source(source, targets)
    out = Path(out)
    settings = {
        "format": FORMAT,
        "source": source.fingerprint(),
        "path": source.path.name,
        "names": list(source.targets),
        "units": list(source.units),
        "primitive": how.primitive,
        "disorder": how.disorder,
    }
    done = _finished(out, settings)
    if done is not None:
        advance(len(source))
        return done
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    folder = out.with_name(f".{out.name}.{key}.parts")
    for other in out.parent.glob(f".{glob.escape(out.name)}.*.parts"):
        if other != folder:  # of other settings
            shutil.rmtree(other)
    folder.mkdir(parents=True, exist_ok=True)
    workers = default_workers(len(source)) if workers is None else workers
    records = iter(source)
    for number in itertools.count():
        path = folder / f"{number:05d}.parquet"
        part = list(itertools.islice(records, PART))
        if not part:
            break
        if not _is_whole(path):
            data = collect(in_order(Reader(how), part, workers), source, advance)
            _write(_table(data), path, {"left_out": [vars(x) for x in data.left_out]})
        else:
            advance(len(part))
    return _join(folder, out, settings, source, number)


def _finished(out: Path, settings: dict[str, Any]) -> tuple[int, list[LeftOut]] | None:
    """What ``prepare`` returned when it made this sound file with these settings, if it did."""
    if not is_prepared(out):
        return None
    try:
        facts, table = _read_whole(out)
    except ValueError:
        return None
    if not settings.items() <= facts.items():
        return None
    return len(table), [LeftOut(**x) for x in facts["left_out"]]


def _is_whole(path: Path) -> bool:
    try:
        parquet.read_table(path, page_checksum_verification=True)
    except (OSError, ValueError):
        return False
    return True


def _write(table: pa.Table, path: Path, facts: dict[str, Any]) -> None:
    table = table.replace_schema_metadata({b"sitenet": json.dumps(facts).encode()})
    with new_file(path) as temporary:
        parquet.write_table(table, temporary, write_page_checksum=True)


def _facts(path: Path) -> dict[str, Any]:
    metadata = parquet.read_metadata(path).metadata or {}
    return json.loads(metadata.get(b"sitenet", b"{}"))


def _join(
    folder: Path, out: Path, settings: dict, source: Source, parts: int
) -> tuple[int, list[LeftOut]]:
    paths = [folder / f"{k:05d}.parquet" for k in range(parts)]
    left_out = [LeftOut(**x) for p in paths for x in _facts(p)["left_out"]]
    count = sum(parquet.read_metadata(p).num_rows for p in paths)
    if not count:
        reasons = f": {left_out[0].where}: {left_out[0].reason}" if left_out else ""
        shutil.rmtree(folder)
        raise ValueError(f"{source.path}: not one crystal can be used{reasons}")
    schema = parquet.read_schema(paths[0]).remove_metadata()
    hashes = []
    with (
        new_file(out) as temporary,
        parquet.ParquetWriter(temporary, schema, write_page_checksum=True) as writer,
    ):
        for path in paths:
            table = parquet.read_table(path, page_checksum_verification=True)
            if len(table):
                hashes.append(_content_hash(table))
                writer.write_table(table.replace_schema_metadata(None))
        facts = {**settings, "left_out": [vars(x) for x in left_out]}
        facts["key"] = _key(hashes, facts)
        writer.add_key_value_metadata({"sitenet": json.dumps(facts)})
    shutil.rmtree(folder)
    return count, left_out


def is_prepared(path: str | Path) -> bool:
    """Whether a file is a dataset that ``prepare`` wrote."""
    path = Path(path)
    if not path.is_file() or path.suffix.lower() not in (".parquet", ".pq"):
        return False
    try:
        return b"sitenet" in (parquet.read_metadata(path).metadata or {})
    except (OSError, ValueError):
        return False


def _read_whole(path: Path) -> tuple[dict[str, Any], pa.Table]:
    """What the metadata of a dataset file say, and its rows, both checked."""
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            content = (file.metadata.metadata or {}).get(b"sitenet")
            if content is None:
                raise ValueError(f"{path} is no dataset of sitenet prepare")
            facts = json.loads(content)
            if facts["format"] != FORMAT:
                raise ValueError(
                    f"{path} has format {facts['format']}, this sitenet reads {FORMAT}: make it "
                    "anew with sitenet prepare"
                )
            groups = [file.read_row_group(k) for k in range(file.num_row_groups)]
    except (OSError, pa.ArrowException, json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{path} is damaged or no dataset: {error}") from None
    if facts.get("key") != _key(list(map(_content_hash, groups)), facts):
        raise ValueError(f"{path} was altered: its checksum is another one")
    return facts, pa.concat_tables(groups)


def load_dataset(path: str | Path) -> Dataset:
    """A dataset that ``prepare`` wrote.

    Raises:
        ValueError: the file is damaged or was altered, is no dataset, or of another format.
    """
    path = Path(path)
    facts, table = _read_whole(path)
    columns = [table.column(_TARGET + name).to_numpy() for name in facts["names"]]
    return Dataset(
        table.column("id").to_pylist(),
        list(_crystals(table)),
        np.stack(columns, 1) if columns else np.empty((len(table), 0)),
        tuple(facts["names"]),
        tuple(facts["units"]),
        table.column("split").to_pylist(),
        [LeftOut(**x) for x in facts["left_out"]],
        facts["key"],
        path,
    )
