"""Preparing a dataset: a source -> one Parquet file, resumable and in bounded memory."""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from sitenet.data.dataset import USUAL, Dataset, LeftOut, Preparation, Reader, collect, read
from sitenet.data.prepared import (
    FORMAT,
    content_hash,
    file_key,
    is_prepared,
    load_dataset,
    read_whole,
    table_of,
)
from sitenet.data.readers import open_source
from sitenet.data.source import Source
from sitenet.system.distributed import barrier, is_first, world
from sitenet.system.files import new_file
from sitenet.system.progress import Reporter
from sitenet.system.workers import default_workers, in_order

PART = 2000  # crystals that are prepared, written and, after a kill, redone together


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
            _write(table_of(data), path, {"left_out": [vars(x) for x in data.left_out]})
        else:
            advance(len(part))
    return _join(folder, out, settings, source, number)


def _finished(out: Path, settings: dict[str, Any]) -> tuple[int, list[LeftOut]] | None:
    """What ``prepare`` returned when it made this sound file with these settings, if it did."""
    if not is_prepared(out):
        return None
    try:
        facts, table = read_whole(out)
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
                hashes.append(content_hash(table))
                writer.write_table(table.replace_schema_metadata(None))
        facts = {**settings, "left_out": [vars(x) for x in left_out]}
        facts["key"] = file_key(hashes, facts)
        writer.add_key_value_metadata({"sitenet": json.dumps(facts)})
    shutil.rmtree(folder)
    return count, left_out


def open_dataset(
    data: str | Path | Source | Dataset,
    targets: Sequence[str] | None = None,
    *,
    split_column: str | None = None,
    how: Preparation = USUAL,
    prepared_as: Path | None = None,
    workers: int | None = None,
    reporter: Reporter | None = None,
) -> Dataset:
    """Open crystals with their properties, whatever holds them.

    Args:
        data: a source or what ``open_source`` takes, a file written by ``prepare``, or a Dataset.
        targets: properties to keep; None takes the only one, () none.
        split_column: column of a source that names the split or fold.
        how: settings of the preparation.
        prepared_as: a file to prepare a source into, so that several processes can share it: the
            first process writes it, all load it. None reads the source into memory.
        workers: worker processes; None chooses.
        reporter: shows progress.

    Raises:
        ValueError: the source cannot be read, or none of its structures can be used.
    """
    if isinstance(data, Dataset):
        return data.with_targets(targets)
    if not isinstance(data, Source) and is_prepared(data):
        return load_dataset(data).with_targets(targets)
    reporter = reporter or Reporter()
    source = data if isinstance(data, Source) else open_source(data, targets, split_column)
    if prepared_as is None:
        if world() > 1:
            raise ValueError("several processes need a file to share the dataset: a run folder")
        with reporter.bar("reading structures", len(source)) as advance:
            dataset = read(source, how, workers, advance)
        if not len(dataset):
            first = dataset.left_out[0] if dataset.left_out else None
            reason = f": {first.where}: {first.reason}" if first else ""
            raise ValueError(f"{source.path}: none of the structures can be used{reason}")
        return dataset
    if is_first():
        with reporter.bar("reading structures", len(source)) as advance:
            prepare(source, prepared_as, targets, how, workers, advance)
    barrier()
    return load_dataset(prepared_as)
