"""Prediction of any number of crystals from files and tables: in bounded memory, resumable, with
what was left out listed by reason.

Under torchrun the processes share the crystals out, and the first one joins what they found.
"""

from __future__ import annotations

import collections
import hashlib
import heapq
import itertools
import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sitenet.cache import pairs_of_dataset
from sitenet.crystal import Crystal
from sitenet.data import Dataset, LeftOut, Preparation, read, read_records
from sitenet.evaluation import COVERAGE, Predictions, interval, number
from sitenet.files import write_csv
from sitenet.model import SiteNet
from sitenet.pairs import find_pairs
from sitenet.predict import from_store, most_pairs, outputs
from sitenet.prepare import is_prepared, load_dataset
from sitenet.processes import default_workers, in_order
from sitenet.progress import Reporter
from sitenet.records import Record
from sitenet.sources import open_source
from sitenet.store import PairStore, columns_of, pair_options

CHUNK = 32  # crystals that a process takes at a time
SENT_PAIRS = (
    1_000_000  # of a crystal, at most, for a process to send them; else it sends the crystal
)


@dataclass(eq=False)
class Outcome:
    """What a batch prediction found.

    Attributes:
        header: of the table.
        rows: of the table, where it was not written to a file.
        count: crystals that were predicted.
        left_out: the others, where they were not written to a file; otherwise the first of them.
        reasons: reason -> how many were left out for it.
        out: the file, if any.
    """

    header: list[str]
    rows: list[list[str]] = field(default_factory=list)
    count: int = 0
    left_out: list[LeftOut] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    out: Path | None = None

    def summary(self) -> str:
        """How many were left out for which reasons, a line each."""
        total = sum(self.reasons.values())
        where = f", listed in {_listed(self.out)}" if self.out else ""
        lines = [f"{total} left out{where}"]
        if total <= 3:
            return "\n".join([*lines, *(f"  {x.where}: {x.reason}" for x in self.left_out)])
        counts = sorted(self.reasons.items(), key=lambda item: -item[1])
        lines += [f"  {count} x {reason}" for reason, count in counts[:10]]
        first = self.left_out[0]
        return "\n".join([*lines, f"  the first: {first.where}: {first.reason}"])


def _listed(out: Path) -> Path:
    return out.with_name(f"{out.stem}.left_out.csv")


def reason_class(reason: str) -> str:
    """A reason without what is of one file only, so that equal ones can be counted."""
    reason = reason.rpartition(": ")[2] if reason.count(": ") > 1 else reason
    return re.sub(r"'[^']*'|-?\d[\d.e+-]*", "...", reason)


class _Worker:
    """Records -> pairs; runs in other processes."""

    def __init__(self, how: Preparation, options: dict[str, Any]) -> None:
        self.how, self.options = how, options

    def __call__(self, records: list[Record]) -> list[tuple[Record, Any]]:
        done: list[tuple[Record, Any]] = []
        for record, found in read_records(records, self.how):
            if isinstance(found, Crystal) and most_pairs(found, self.options) <= SENT_PAIRS:
                try:
                    found = columns_of(find_pairs(found, **self.options))
                except ValueError as error:
                    found = LeftOut(record.id, record.where, str(error))
            done.append((record, found))
        return done


def predict_sources(
    model: SiteNet,
    paths: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    coverage: float = COVERAGE,
    max_sites: int | None = None,
    merge: bool = True,
    primitive: bool = True,
    disorder: str = "error",
    workers: int | None = None,
    reporter: Reporter | None = None,
) -> Outcome:
    """Predict all crystals of files, folders and tables.

    Args:
        model: a SiteNet.
        paths: CIFs, folders of CIFs, tables (``sitenet.sources.open_source``) or files of
            ``sitenet prepare``.
        out: a CSV to write; beside it ``NAME.left_out.csv`` lists what could not be used. A run
            that was stopped goes on after what it had written. None keeps the rows in memory.
        coverage: of the intervals.
        max_sites: as in ``predict``.
        merge: as in ``predict``.
        primitive: as in ``predict``.
        disorder: as in ``read_cif``.
        workers: processes that read structures and find pairs; None chooses.
        reporter: is told how far it is.

    Returns:
        The table, or what was written.

    Raises:
        FileNotFoundError, ValueError: a path is none of these.
    """
    reporter = reporter or Reporter()
    job = _Job(model, coverage, Preparation(primitive, disorder), max_sites, merge)
    total, records = _records(paths)
    if out is None:
        outcome = Outcome(job.header)
        with reporter.bar("predicting", total) as advance:
            for _, rows in job.chunks(records, 0, 1, total, workers):
                for row in rows:
                    job.count(outcome, row)
                    if not row[2]:
                        outcome.rows.append([row[0], *row[3:]])
                advance(len(rows))
        return outcome
    return _to_file(job, records, total, paths, Path(out), workers, reporter)


def _records(paths: Sequence[str | Path]) -> tuple[int, Iterator[Record]]:
    sources: list[Any] = []
    for path in paths:
        if is_prepared(path):
            data = load_dataset(path)
            found = zip(data.ids, data.crystals, strict=True)
            sources.append([Record(i, f"{path} {i}", "crystal", c) for i, c in found])
        else:
            sources.append(open_source(path, ()))
    return sum(map(len, sources)), itertools.chain.from_iterable(sources)


class _Job:
    """Turns records into rows: id, where, reason (empty if predicted), then values."""

    def __init__(
        self,
        model: SiteNet,
        coverage: float,
        how: Preparation,
        max_sites: int | None,
        merge: bool,
    ) -> None:
        self.model, self.how, self.max_sites, self.merge = model, how, max_sites, merge
        self.options = pair_options(model.config, max_sites, merge)
        self.width = np.full(len(model.targets), np.inf)
        self.header = ["id"]
        if model.calibration is not None:
            self.width = model.calibration.half_width(coverage)
        for target in model.targets:
            self.header.append(f"{target.name}_predicted")
            if target.kind == "value" and model.calibration is not None:
                self.header += [f"{target.name}_low", f"{target.name}_high"]
        if model.calibration is not None:
            self.header.append("like_training")

    def settings(self, paths: Sequence[str | Path]) -> str:
        """A hash of what fixes the rows."""
        digest = hashlib.sha256(repr((self.options, self.how, self.header)).encode())
        digest.update(repr([os.path.abspath(p) for p in paths]).encode())
        digest.update(self.width.tobytes())
        for name, value in self.model.state_dict().items():
            digest.update(name.encode() + value.cpu().numpy().tobytes())
        return digest.hexdigest()

    def chunks(
        self,
        records: Iterator[Record],
        rank: int,
        world: int,
        total: int,
        workers: int | None,
        skip: int = 0,
    ) -> Iterator[tuple[int, list[list[str]]]]:
        """The rows of chunk after chunk of this process, with the chunk's number, after ``skip``
        chunks of its own."""
        mine = itertools.islice(_chunked(records), rank, None, world)
        mine = itertools.islice(mine, skip, None)
        numbers: collections.deque[int] = collections.deque()

        def records_of(chunks: Iterable[tuple[int, list[Record]]]) -> Iterator[list[Record]]:
            for k, chunk in chunks:
                numbers.append(k)
                yield chunk

        workers = default_workers(total) if workers is None else workers
        work = _Worker(self.how, self.options)
        for found in in_order(_First(work), records_of(mine), workers, chunk=1):
            yield numbers.popleft(), self._rows(found)

    def _rows(self, found: list[tuple[Record, Any]]) -> list[list[str]]:
        columns = [f for _, f in found if isinstance(f, dict)]
        ready = iter(from_store(self.model, PairStore.of(columns)) if columns else ())
        rows = []
        for record, result in found:
            if isinstance(result, Crystal):  # too large to be sent
                try:
                    y, encoding = next(
                        outputs(self.model, [result], self.max_sites, False, self.merge)
                    )
                except ValueError as error:
                    result = LeftOut(record.id, record.where, str(error))
            elif not isinstance(result, LeftOut):
                y, encoding = next(ready)
            if not isinstance(result, LeftOut) and not np.isfinite(y).all():
                result = LeftOut(record.id, record.where, "the prediction is not a number")
            if isinstance(result, LeftOut):
                rows.append([record.id, record.where, result.reason])
            else:
                rows.append([record.id, record.where, "", *self._cells(y, encoding)])
        return rows

    def _cells(self, y: np.ndarray, encoding: np.ndarray) -> Iterator[str]:
        calibration = self.model.calibration
        for k, target in enumerate(self.model.targets):
            yield number(y[k])
            if target.kind == "value" and calibration is not None:
                yield from map(number, interval(y[k], self.width[k]))
        if calibration is not None:
            yield "yes" if calibration.inside(encoding[None])[0] else "no"

    @staticmethod
    def count(outcome: Outcome, row: list[str]) -> None:
        """Take a row into the outcome's counts."""
        if not row[2]:
            outcome.count += 1
            return
        kind = reason_class(row[2])
        outcome.reasons[kind] = outcome.reasons.get(kind, 0) + 1
        if outcome.out is None or len(outcome.left_out) < 3:
            outcome.left_out.append(LeftOut(*row[:3]))


class _First:
    """Applies a worker to the only chunk of a list of chunks."""

    def __init__(self, work: _Worker) -> None:
        self.work = work

    def __call__(self, chunks: list[list[Record]]) -> list[tuple[Record, Any]]:
        return self.work(chunks[0])


def _chunked(records: Iterator[Record]) -> Iterator[tuple[int, list[Record]]]:
    for k in itertools.count():
        chunk = list(itertools.islice(records, CHUNK))
        if not chunk:
            return
        yield k, chunk


def _to_file(
    job: _Job,
    records: Iterator[Record],
    total: int,
    paths: Sequence[str | Path],
    out: Path,
    workers: int | None,
    reporter: Reporter,
) -> Outcome:
    from sitenet.processes import barrier, rank, world

    out.parent.mkdir(parents=True, exist_ok=True)
    settings = job.settings(paths)
    partial = _partial(out, rank(), world())
    done = _completed(partial, settings)
    with (
        reporter.bar("predicting", total) as advance,
        open(partial, "a", newline="", encoding="utf-8") as file,
    ):
        if not done:
            file.write(json.dumps({"settings": settings}) + "\n")
        advance(min(done * CHUNK * world(), total))
        for k, rows in job.chunks(records, rank(), world(), total, workers, done):
            # One line a chunk: a line that was cut off is the chunk that was under way.
            file.write(json.dumps([k, rows]) + "\n")
            file.flush()
            advance(len(rows) * world())
    barrier()
    outcome = Outcome(job.header, out=out)
    if rank() == 0:
        _join(job, outcome, [_partial(out, r, world()) for r in range(world())])
    barrier()
    partial.unlink()
    return outcome


def _partial(out: Path, rank: int, world: int) -> Path:
    ending = "" if world == 1 else f".{rank}-of-{world}"
    return out.with_name(f".{out.name}{ending}.partial")


def _completed(partial: Path, settings: str) -> int:
    """Chunks that an earlier run completed; what it did not complete is cut off."""
    if not partial.exists():
        return 0
    with open(partial, "rb+") as file:
        first = file.readline()
        if not first.endswith(b"\n") or json.loads(first) != {"settings": settings}:
            file.truncate(0)
            return 0
        count, end = 0, file.tell()
        for line in file:
            if not line.endswith(b"\n"):
                break
            count, end = count + 1, end + len(line)
        file.truncate(end)
    return count


def _join(job: _Job, outcome: Outcome, partials: list[Path]) -> None:
    """One ordered CSV of what the processes left, and one of what they left out."""

    def rows() -> Iterator[list[str]]:
        parts = [_lines(p) for p in partials]
        for _, chunk in heapq.merge(*parts, key=lambda line: line[0]):
            yield from chunk

    def predicted() -> Iterator[list[str]]:
        for row in rows():
            job.count(outcome, row)
            if not row[2]:
                yield [row[0], *row[3:]]

    write_csv(outcome.out, job.header, predicted())
    write_csv(_listed(outcome.out), ("id", "where", "reason"), (r[:3] for r in rows() if r[2]))


def _lines(partial: Path) -> Iterator[list[Any]]:
    with open(partial, encoding="utf-8") as file:
        next(file)
        yield from map(json.loads, file)


def evaluate_data(
    model: SiteNet,
    data: str | Path | Dataset,
    targets: Sequence[str] | None = None,
    primitive: bool = True,
    disorder: str = "error",
    workers: int | None = None,
    reporter: Reporter | None = None,
) -> tuple[Predictions, list[LeftOut]]:
    """Predict crystals whose properties are known.

    Args:
        model: a SiteNet.
        data: a source, a file of ``sitenet prepare``, or a Dataset.
        targets: columns with the true values of the model's targets, in their order; None takes
            those of the same names, or the only one.
        primitive: as in ``predict``.
        disorder: as in ``read_cif``.
        workers: processes that read structures and find pairs; None chooses.
        reporter: is told how far it is.

    Returns:
        The predictions (all in the split "all"), and what was left out.
    """
    reporter = reporter or Reporter()
    names = [t.name for t in model.targets]
    if not isinstance(data, Dataset):
        if is_prepared(data):
            data = load_dataset(data)
        else:
            source = _open_with(data, targets, names)
            with reporter.bar("reading structures", len(source)) as advance:
                data = read(source, Preparation(primitive, disorder), workers, advance)
    if targets is None and set(names) <= set(data.names):
        targets = names
    data = data.with_targets(targets)
    if len(data.names) != len(names):
        raise ValueError(f"the model predicts {', '.join(names)}; got {', '.join(data.names)}")
    with reporter.bar("finding pairs", len(data)) as advance:
        data, store = pairs_of_dataset(data, model.config, workers, advance)
    found = from_store(model, store)
    values = np.array([f[0] for f in found]).reshape(len(found), len(names))
    encodings = np.array([f[1] for f in found])
    parts = {"all": np.arange(len(data))}
    return Predictions.of(model, data, parts, values, encodings), data.left_out


def _open_with(path: Any, targets: Sequence[str] | None, names: list[str]) -> Any:
    """A source with the targets asked for; those of the model's names, or the only one."""
    if targets is not None:
        return open_source(path, targets)
    try:
        return open_source(path, names)
    except ValueError:
        return open_source(path)
