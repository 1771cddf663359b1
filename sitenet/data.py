"""Crystals with ids and targets as arrays: made from a source, kept as Parquet, split, and turned
into pairs.

A prepared dataset is a Parquet file with one row a crystal; its metadata name the format, the
source, the settings and a hash of the content. The pairs of a prepared dataset are cached beside
it, mapped into memory and shared by processes, under a key of that hash and the settings.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import torch

from sitenet.config import SiteNetConfig
from sitenet.crystal import Crystal
from sitenet.files import new_file, write_csv
from sitenet.pairs import find_pairs
from sitenet.sources import Record, Source, open_source
from sitenet.store import PairStore, StoreWriter, columns_of, pair_options

FORMAT = 1
PART = 2000  # crystals that are prepared, written and, after a kill, redone together
CHUNK = 64  # crystals that a process takes at a time
PARALLEL = 256  # crystals: fewer are not worth starting processes for


@dataclass(frozen=True)
class LeftOut:
    """A structure that could not be used, and why."""

    id: str
    where: str
    reason: str


@dataclass(eq=False)
class Dataset:
    """Crystals in arrays.

    Attributes:
        ids: (crystals,) names.
        crystals: the structures.
        targets: (crystals, targets) float64, NaN where missing.
        names: of the targets.
        units: of the targets.
        split: (crystals,) value of the source's split column, "" where there is none.
        left_out: what the source held beside these.
        key: hash of the content, of prepared datasets.
        path: the file it was loaded from, if any.
    """

    ids: list[str]
    crystals: list[Crystal]
    targets: np.ndarray
    names: tuple[str, ...]
    units: tuple[str, ...]
    split: list[str]
    left_out: list[LeftOut] = field(default_factory=list)
    key: str | None = None
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, index: Sequence[int] | np.ndarray) -> Dataset:
        """Some of the crystals."""
        index = np.asarray(index, dtype=np.int64)
        pick = lambda values: [values[i] for i in index]  # noqa: E731
        return replace(
            self,
            ids=pick(self.ids),
            crystals=pick(self.crystals),
            targets=self.targets[index],
            split=pick(self.split),
            key=None,
            path=None,
        )

    def with_targets(self, names: Sequence[str] | None) -> Dataset:
        """The same crystals with some of the targets; None takes the only one.

        Raises:
            ValueError: there is no such target, or there are several and none is named.
        """
        if names is None:
            if len(self.names) != 1:
                found = ", ".join(self.names) or "none"
                raise ValueError(f"say which target to learn; there is {found}")
            return self
        missing = [n for n in names if n not in self.names]
        if missing:
            found = ", ".join(self.names) or "none"
            raise ValueError(f"no target {', '.join(missing)}; there is {found}")
        columns = [self.names.index(n) for n in names]
        units = tuple(self.units[c] for c in columns)
        return replace(self, targets=self.targets[:, columns], names=tuple(names), units=units)


# ---------------------------------------------------------------------------------------------
# Work spread over processes


def _start_worker() -> None:
    torch.set_num_threads(1)


def in_order(
    function: Callable[[list], Any], items: Iterable, workers: int, chunk: int = CHUNK
) -> Iterator[Any]:
    """function(chunk) for chunks of the items, in order, a bounded number of them under way."""
    remaining = iter(items)
    chunks = iter(lambda: list(itertools.islice(remaining, chunk)), [])
    if workers <= 1:
        yield from map(function, chunks)
        return
    # Forked where that is possible: a spawned process would import a user's script once more.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    with ProcessPoolExecutor(workers, context, _start_worker) as pool:
        try:
            waiting = [pool.submit(function, c) for c in itertools.islice(chunks, 3 * workers)]
            while waiting:
                yield waiting.pop(0).result()
                waiting += [pool.submit(function, c) for c in itertools.islice(chunks, 1)]
        finally:
            pool.shutdown(cancel_futures=True)


def default_workers(items: int) -> int:
    """Processes for this many crystals: one a core, or only this one for few."""
    if items < PARALLEL:
        return 1
    count = getattr(os, "process_cpu_count", None)
    return (count() if count else len(os.sched_getaffinity(0))) or 1


@dataclass(frozen=True)
class Preparation:
    """How structures are made into a dataset: whether cells are made primitive, and what is done
    about partial occupancy."""

    primitive: bool = True
    disorder: str = "error"


def read_records(records: list[Record], how: Preparation) -> list[tuple[Record, Crystal | LeftOut]]:
    """The crystal of each record, or why there is none; the records without their content."""
    done: list[tuple[Record, Crystal | LeftOut]] = []
    for record in records:
        slim = replace(record, content=None)  # the content need not travel back
        try:
            crystal = record.crystal(how.disorder)
            if how.primitive:
                crystal = crystal.primitive()
            crystal.name = record.id
            done.append((slim, crystal))
        except (ValueError, OSError) as error:
            done.append((slim, LeftOut(record.id, record.where, str(error))))
    return done


class _Reader:
    """``read_records`` with its settings, for processes to receive."""

    def __init__(self, how: Preparation) -> None:
        self.how = how

    def __call__(self, records: list[Record]) -> list[tuple[Record, Crystal | LeftOut]]:
        return read_records(records, self.how)


def read(
    source: Source,
    how: Preparation = Preparation(),
    workers: int | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> Dataset:
    """All crystals of a source in memory.

    Args:
        source: see ``open_source``.
        how: settings.
        workers: processes; None chooses.
        advance: is told how many more records have been read.

    Returns:
        A dataset; what could not be used is in its ``left_out``.
    """
    workers = default_workers(len(source)) if workers is None else workers
    parts = in_order(_Reader(how), source, workers)
    return _collect(parts, source, advance)


def _collect(parts: Iterable[list], source: Source, advance: Callable[[int], None]) -> Dataset:
    records: list[Record] = []
    crystals: list[Crystal] = []
    left_out: list[LeftOut] = []
    for part in parts:
        for record, result in part:
            if isinstance(result, LeftOut):
                left_out.append(result)
            else:
                records.append(record)
                crystals.append(result)
        advance(len(part))
    shape = len(records), len(source.targets)
    targets = np.array([r.targets for r in records], dtype=np.float64).reshape(shape)
    return Dataset(
        [r.id for r in records],
        crystals,
        targets,
        source.targets,
        source.units,
        [r.split for r in records],
        left_out,
    )


# ---------------------------------------------------------------------------------------------
# Parquet


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


def _content_hash(table: pa.Table) -> str:
    digest = hashlib.sha256()
    for name in table.column_names:
        for chunk in table.column(name).chunks:
            sink = pa.BufferOutputStream()
            plain = pa.table({name: pa.concat_arrays([chunk])})
            with pa.ipc.new_stream(sink, plain.schema) as writer:
                writer.write_table(plain)
            digest.update(sink.getvalue())
    return digest.hexdigest()


def _fingerprint(source: Source) -> str:
    """What tells one source from another, and a file from its later versions."""
    path = source.path
    paths = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    digest = hashlib.sha256()
    for p in paths:
        facts = p.stat()
        digest.update(f"{p.relative_to(path)} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def prepare(
    source: str | Path | Source,
    out: str | Path,
    targets: Sequence[str] | None = None,
    how: Preparation = Preparation(),
    workers: int | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> tuple[int, list[LeftOut]]:
    """Make a dataset file of a source, in bounded memory.

    A part of the crystals is read, written and renamed at a time, into a folder beside ``out``; a
    run that was killed goes on after the last complete part, and the parts become one file at the
    end.

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
        "source": _fingerprint(source),
        "targets": source.targets,
        "primitive": how.primitive,
        "disorder": how.disorder,
    }
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    folder = out.with_name(f".{out.name}.{key}.parts")
    folder.mkdir(parents=True, exist_ok=True)
    workers = default_workers(len(source)) if workers is None else workers
    records = iter(source)
    for number in itertools.count():
        path = folder / f"{number:05d}.parquet"
        part = list(itertools.islice(records, PART))
        if not part:
            break
        if not _is_whole(path):
            data = _collect(in_order(_Reader(how), part, workers), source, advance)
            _write(_table(data), path, {"left_out": [vars(x) for x in data.left_out]})
        else:
            advance(len(part))
    return _join(folder, out, settings, source, number)


def _is_whole(path: Path) -> bool:
    try:
        parquet.read_metadata(path)
    except (OSError, ValueError):
        return False
    return True


def _write(table: pa.Table, path: Path, facts: dict[str, Any]) -> None:
    table = table.replace_schema_metadata({b"sitenet": json.dumps(facts).encode()})
    with new_file(path) as temporary:
        parquet.write_table(table, temporary, write_page_checksum=True)


def _facts(path: Path) -> dict[str, Any]:
    metadata = parquet.read_schema(path).metadata or {}
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
    digest = hashlib.sha256()
    schema = parquet.read_schema(paths[0]).remove_metadata()
    with (
        new_file(out) as temporary,
        parquet.ParquetWriter(temporary, schema, write_page_checksum=True) as writer,
    ):
        for path in paths:
            table = parquet.read_table(path, page_checksum_verification=True)
            table = table.replace_schema_metadata(None)
            digest.update(_content_hash(table).encode())
            writer.write_table(table)
        facts = {
            **settings,
            "path": source.path.name,
            "names": source.targets,
            "units": source.units,
            "key": digest.hexdigest(),
            "left_out": [vars(x) for x in left_out],
        }
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


def load_dataset(path: str | Path) -> Dataset:
    """A dataset that ``prepare`` wrote.

    Raises:
        ValueError: the file is damaged, no dataset, or of a later format.
    """
    path = Path(path)
    try:
        metadata = parquet.read_metadata(path).metadata or {}
        table = parquet.read_table(path, page_checksum_verification=True)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged or no Parquet file: {error}") from None
    if b"sitenet" not in metadata:
        raise ValueError(f"{path} is no dataset of sitenet prepare")
    facts = json.loads(metadata[b"sitenet"])
    if facts["format"] > FORMAT:
        raise ValueError(f"{path} has format {facts['format']}, this sitenet reads up to {FORMAT}")
    names = tuple(facts["names"])
    columns = [table.column(_TARGET + name).to_numpy() for name in names]
    return Dataset(
        table.column("id").to_pylist(),
        list(_crystals(table)),
        np.stack(columns, 1) if columns else np.empty((len(table), 0)),
        names,
        tuple(facts["units"]),
        table.column("split").to_pylist(),
        [LeftOut(**x) for x in facts["left_out"]],
        facts["key"],
        path,
    )


# ---------------------------------------------------------------------------------------------
# Pairs


def _pairs_of(crystals: list[Crystal], options: dict[str, Any]) -> list:
    done: list[Any] = []
    for crystal in crystals:
        try:
            done.append(columns_of(find_pairs(crystal, **options)))
        except ValueError as error:
            done.append(LeftOut(crystal.name or "", crystal.name or "", str(error)))
    return done


class _PairFinder:
    """``_pairs_of`` with its settings, for processes to receive."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options

    def __call__(self, crystals: list[Crystal]) -> list:
        return _pairs_of(crystals, self.options)


def pairs_of_dataset(
    data: Dataset,
    config: SiteNetConfig,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> tuple[Dataset, PairStore]:
    """The pairs of all crystals as the config asks for them.

    Those of a prepared dataset are kept beside its file, in ``NAME.pairs/KEY``, and mapped from
    there the next time; a damaged cache is named in a warning and made anew.

    Returns:
        The dataset without the crystals whose pairs cannot be found (they are in its
        ``left_out``), and the pairs of the others.
    """
    options = pair_options(config)
    workers = default_workers(len(data)) if workers is None else workers
    if data.key is None or data.path is None:
        results = []
        for part in in_order(_PairFinder(options), data.crystals, workers):
            results += part
            advance(len(part))
        bad = {k: r for k, r in enumerate(results) if isinstance(r, LeftOut)}
        store = PairStore.of([r for r in results if not isinstance(r, LeftOut)])
        return _without(data, bad), store
    key = hashlib.sha256(f"{data.key} {sorted(options.items())}".encode()).hexdigest()[:16]
    folder = data.path.with_name(f"{data.path.stem}.pairs") / key
    if folder.exists():
        try:
            store = PairStore.open(folder, key)
        except ValueError as error:
            warnings.warn(f"the cached pairs are made anew: {error}", stacklevel=2)
        else:
            advance(len(data))
            return _without(data, _left_out_facts(store)), store
    with StoreWriter(folder, key) as writer:
        bad, number = {}, 0
        for part in in_order(_PairFinder(options), data.crystals, workers):
            for result in part:
                if isinstance(result, LeftOut):
                    bad[number] = vars(result)
                else:
                    writer.add(result)
                number += 1
            advance(len(part))
        writer.facts = {"left_out": bad}
    store = PairStore.open(folder, key)
    return _without(data, _left_out_facts(store)), store


def _left_out_facts(store: PairStore) -> dict[int, LeftOut]:
    return {int(k): LeftOut(**x) for k, x in store.facts["left_out"].items()}


def _without(data: Dataset, bad: dict[int, LeftOut]) -> Dataset:
    if not bad:
        return data
    kept = data.select([k for k in range(len(data)) if k not in bad])
    kept.left_out = [*data.left_out, *bad.values()]
    return kept


# ---------------------------------------------------------------------------------------------
# Splits


@dataclass(frozen=True)
class Split:
    """Numbers of the crystals to learn from, to choose the best epoch by, and to test on."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray


def split(data: Dataset, valid: float, test: float, seed: int, fold: str | None = None) -> Split:
    """Divide a dataset.

    Args:
        data: where its split column says ``train``, ``valid`` and ``test``, that holds.
        valid: part of the crystals for validation.
        test: part of the crystals for the test; not used where a fold or column says it.
        seed: of the random order, the same for the same number of crystals.
        fold: the value of the split column whose rows are the test.

    Raises:
        ValueError: no crystal is in that fold, or none is left to learn from.
    """
    names = np.array([s.lower() for s in data.split])
    everything = np.arange(len(data))
    order = np.random.default_rng(seed).permutation(len(data))
    if fold is not None:
        held = names == str(fold).lower()
        if not held.any():
            found = ", ".join(sorted(set(data.split))) or "nothing"
            raise ValueError(f"no crystal is in fold {fold!r}; the split column says {found}")
    elif {"train", "test"} <= set(names):
        held = names == "test"
        if "valid" in names:
            parts = [everything[names == n] for n in ("train", "valid")]
            return _checked_split(Split(*parts, everything[held]))
        order = order[np.isin(order, everything[(names == "train") | held])]
    else:
        count = max(round(test * len(data)), 1 if test else 0)
        held = np.isin(everything, order[:count])
    rest = order[~held[order]]
    count = max(round(valid * len(data)), 1 if valid else 0)
    return _checked_split(Split(np.sort(rest[count:]), np.sort(rest[:count]), everything[held]))


def _checked_split(parts: Split) -> Split:
    if not len(parts.train):
        raise ValueError(
            f"nothing is left to learn from: {len(parts.valid)} crystals for validation, "
            f"{len(parts.test)} for the test"
        )
    return parts


def write_left_out(left_out: Sequence[LeftOut], path: Path) -> None:
    """A CSV of what could not be used: id, where, reason."""
    write_csv(path, ("id", "where", "reason"), ((x.id, x.where, x.reason) for x in left_out))
