"""Preparing a dataset: a source -> one Parquet file, resumable and in bounded memory."""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from sitenet.data.dataset import USUAL, Dataset, Preparation, Reader, collect, read
from sitenet.data.duplicates import find_duplicates
from sitenet.data.failures import LeftOut, printable, reasons
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
from sitenet.data.units import stated_units
from sitenet.system.distributed import barrier, is_first, processes
from sitenet.system.files import locked, new_file
from sitenet.system.progress import Reporter
from sitenet.system.workers import default_workers, in_order

PART = 2000  # records that are read, written and, after a kill, read again together


def prepare(
    source: str | Path | Source,
    out: str | Path,
    targets: Sequence[str] | None = None,
    how: Preparation = USUAL,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda done: None,
    units: Sequence[str] | None = None,
) -> tuple[int, list[LeftOut]]:
    """Write a source's crystals to a dataset file, in bounded memory.

    They are written part by part into a folder beside ``out``, and joined at the end; a run that
    was killed goes on with the parts that are missing. A file that was prepared from the same
    source with the same settings is left as it is.

    Args:
        source: what ``open_source`` takes, or a source.
        out: the Parquet file.
        targets: as in ``open_source``.
        how: settings.
        workers: processes; None chooses.
        advance: called with the number of records done since the last call, those of an earlier run
            included.
        units: unit of each target; None takes those of the source.

    Returns:
        The number of crystals, and what was left out.

    Raises:
        ValueError: the source cannot be read, not one of its crystals can be used, or another
            process is preparing the same file.
    """
    if not isinstance(source, Source):
        source = open_source(source, targets)
    if units is not None:
        source = source.with_units(units)
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
    earlier = _finished(out, settings)
    if earlier is not None:
        advance(len(source))
        return earlier
    folder = _parts_folder(out, settings)
    _remove_abandoned(out, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / _LOCK, wait=False) as alone:
        if not alone:
            raise ValueError(f"another process is preparing {out}")
        paths = _write_parts(folder, source, how, workers, advance)
        return _join(paths, out, settings, source)


_LOCK = "lock"  # in a folder of parts, held by the process that writes them


def _parts_folder(out: Path, settings: dict[str, Any]) -> Path:
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    return out.with_name(f".{out.name}.{key}.parts")


def _remove_abandoned(out: Path, folder: Path) -> None:
    """Remove parts of other settings that no process is writing any more."""
    for other in out.parent.glob(f".{glob.escape(out.name)}.*.parts"):
        if other != folder:
            with locked(other / _LOCK, wait=False) as abandoned:
                if abandoned:
                    shutil.rmtree(other)


def _write_parts(
    folder: Path,
    source: Source,
    how: Preparation,
    workers: int | None,
    advance: Callable[[int], None],
) -> list[Path]:
    """Write the parts that are missing; returns the files of all of them."""
    workers = default_workers(len(source)) if workers is None else workers
    records = iter(source)
    paths: list[Path] = []
    while part := list(itertools.islice(records, PART)):
        path = folder / f"{len(paths):05d}.parquet"
        paths.append(path)
        if _is_whole(path):
            advance(len(part))
            continue
        data = collect(in_order(Reader(how), part, workers), source, advance)
        _write(table_of(data), path, {"left_out": [vars(x) for x in data.left_out]})
    return paths


def _finished(out: Path, settings: dict[str, Any]) -> tuple[int, list[LeftOut]] | None:
    """What ``prepare`` returned for a sound file that it wrote with these settings, else None."""
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


def preparation_of(path: Path) -> Preparation:
    """The settings with which a dataset file was prepared."""
    facts = _facts(path)
    return Preparation(facts["primitive"], facts["disorder"])


def _join(
    paths: list[Path], out: Path, settings: dict[str, Any], source: Source
) -> tuple[int, list[LeftOut]]:
    """Join the parts into one file and remove them."""
    left_out = [LeftOut(**x) for p in paths for x in _facts(p)["left_out"]]
    count = sum(parquet.read_metadata(p).num_rows for p in paths)
    folder = _parts_folder(out, settings)
    if not count:
        shutil.rmtree(folder)
        raise ValueError(_none_usable(source.path, left_out))
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
    units: Sequence[str] | None = None,
    split_column: str | None = None,
    how: Preparation = USUAL,
    prepared_as: Path | None = None,
    workers: int | None = None,
    reporter: Reporter | None = None,
) -> Dataset:
    """Open crystals with their properties, whatever holds them.

    Crystals without a value of any target are left out. Duplicates are reported.

    Args:
        data: a source or what ``open_source`` takes, a file written by ``prepare``, or a Dataset.
        targets: properties to keep; None takes the only one, () none.
        units: unit of each of them; None takes those that the data state.
        split_column: column of a source that names the split or fold.
        how: settings of the preparation.
        prepared_as: a file to prepare a source into, so that several processes can share it: the
            first process writes it, all load it. None reads the source into memory.
        workers: worker processes; None chooses.
        reporter: shows progress and the duplicates.

    Raises:
        ValueError: the source cannot be read, or none of its structures can be used.
    """
    reporter = reporter or Reporter()
    if isinstance(data, Dataset):
        dataset = data.with_targets(targets)
    elif not isinstance(data, Source) and is_prepared(data):
        dataset = load_dataset(data).with_targets(targets)
    else:
        source = data if isinstance(data, Source) else open_source(data, targets, split_column)
        source = source if units is None else source.with_units(units)
        dataset = _read(source, how, prepared_as, workers, reporter)
    if units is not None:
        dataset = replace(dataset, units=stated_units(dataset.names, units))
    dataset = dataset.with_values()
    if not len(dataset):
        path = data.path if isinstance(data, (Source, Dataset)) else data
        raise ValueError(_none_usable(path, dataset.left_out))
    if is_first() and (text := find_duplicates(dataset).describe()):
        reporter.say(text)
    return dataset


def _read(
    source: Source,
    how: Preparation,
    prepared_as: Path | None,
    workers: int | None,
    reporter: Reporter,
) -> Dataset:
    """Read a source into memory, or prepare it for several processes to share."""
    if prepared_as is None:
        if processes() > 1:
            raise ValueError("several processes need a file to share the dataset: a run folder")
        with reporter.bar("reading structures", len(source)) as advance:
            return read(source, how, workers, advance)
    if is_first():
        with reporter.bar("reading structures", len(source)) as advance:
            prepare(source, prepared_as, None, how, workers, advance)
    barrier()
    return load_dataset(prepared_as)


def _none_usable(path: str | Path | None, left_out: Sequence[LeftOut]) -> str:
    why = reasons(left_out)
    where = "the dataset" if path is None else printable(str(path))
    return f"{where}: not one structure can be used" + (f": {why}" if why else "")
