"""Prediction of any number of crystals from files and tables: in bounded memory, resumable, with
what was left out listed by reason.

Under torchrun the processes share the crystals out, and the first one joins what they found.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sitenet.crystal.crystal import Crystal
from sitenet.data.dataset import LeftOut, Preparation, read_records
from sitenet.data.readers import open_source
from sitenet.data.source import Record
from sitenet.inference.evaluate import COVERAGE, interval, number
from sitenet.inference.predict import Output, by_rows, from_store, most_pairs
from sitenet.model.calibration import half_widths
from sitenet.model.ensemble import Model
from sitenet.pairs.store import PairMaker, PairStore
from sitenet.system.distributed import barrier, is_first, local_world, rank, world
from sitenet.system.files import write_csv
from sitenet.system.progress import Reporter
from sitenet.system.workers import default_workers, in_order

CHUNK = 32  # crystals that a process takes at a time
SENT_PAIRS = 100_000  # of a crystal that may have more, a worker sends the crystal instead

_Chunk = tuple[int, list[Record]]  # with its number


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


_WHERE = re.compile(r"^.*(?:cif|cif\.gz|CIF text| row \d+)(?:, data_[^:]*)?: ", re.IGNORECASE)
# Remarks in brackets; quotes, numbers and labels.
_OF_ONE = re.compile(r" ?\((?:[^()]|\([^()]*\))*\)|'[^']*'|\[[^]]*\]|\S*\d[^\s;:,]*")


def reason_class(reason: str) -> str:
    """A reason without what is of one file only, so that equal ones can be counted."""
    reason = _WHERE.sub("", reason)
    return _OF_ONE.sub(lambda found: "" if "(" in found[0] else "...", reason)


class _Worker:
    """A numbered chunk of records -> its number and the pairs; for workers to receive."""

    def __init__(self, how: Preparation, make: PairMaker) -> None:
        self.how, self.make = how, make

    def __call__(self, chunks: list[_Chunk]) -> tuple[int, list[tuple[Record, Any]]]:
        ((number, records),) = chunks
        done: list[tuple[Record, Any]] = []
        found: Any
        for record, found in read_records(records, self.how):
            if isinstance(found, Crystal) and most_pairs(found, self.make.options) <= SENT_PAIRS:
                found = _made(record, found, self.make)
            done.append((record, found))
        return number, done


def _made(record: Record, crystal: Crystal, make: Callable[[Crystal], Any]) -> Any:
    """What is made of a record's crystal, or why it cannot be."""
    try:
        return make(crystal)
    except ValueError as error:
        return LeftOut(record.id, record.where, str(error))


def predict_files(
    model: Model,
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
        model: a SiteNet or an Ensemble.
        paths: CIFs, folders of CIFs, tables (``sitenet.data.readers.open_source``) or files of
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
    sources = [open_source(path, ()) for path in paths]
    total, records = sum(map(len, sources)), itertools.chain.from_iterable(sources)
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
    settings = job.settings("".join(source.fingerprint() for source in sources))
    return _to_file(job, records, total, settings, Path(out), workers, reporter)


class _Job:
    """Turns records into rows: id, where, reason (empty if predicted), then values."""

    def __init__(
        self,
        model: Model,
        coverage: float,
        how: Preparation,
        max_sites: int | None,
        merge: bool,
    ) -> None:
        self.model, self.how = model, how
        self.make = PairMaker(model.config, max_sites, merge)
        self.coverage = coverage
        self.header = ["id"]
        for target in model.targets:
            self.header.append(f"{target.name}_predicted")
            if target.kind == "value" and model.calibration is not None:
                self.header += [f"{target.name}_low", f"{target.name}_high"]
        if model.calibration is not None:
            self.header.append("like_training")

    def settings(self, fingerprint: str) -> str:
        """A hash of what fixes the rows."""
        model = self.model
        told = (self.make.options, self.how, self.header, model.config, model.targets)
        digest = hashlib.sha256(repr(told).encode())
        digest.update(fingerprint.encode())
        for name, value in model.state_dict().items():
            digest.update(name.encode() + value.cpu().numpy().tobytes())
        if model.calibration is not None:
            digest.update(repr(self.coverage).encode())
            for part in vars(model.calibration).values():
                digest.update(np.asarray(0.0 if part is None else part).tobytes())
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
        mine = itertools.islice(_chunked(records), rank + skip * world, None, world)
        if workers is None:
            workers = max(1, default_workers(total) // local_world())
        for place, found in in_order(_Worker(self.how, self.make), mine, workers, chunk=1):
            yield place, self._rows(found)

    def _rows(self, found: list[tuple[Record, Any]]) -> list[list[str]]:
        columns = [f for _, f in found if isinstance(f, dict)]
        ready = iter(from_store(self.model, PairStore.of(columns)))
        results = []
        for record, result in found:
            if isinstance(result, Crystal):  # too large to be sent
                result = _made(record, result, self._large)
            elif isinstance(result, dict):
                result = next(ready)
            if not isinstance(result, LeftOut) and not np.isfinite(result[0]).all():
                result = LeftOut(record.id, record.where, "the prediction is not a number")
            results.append(result)
        cells = self._cells([r for r in results if not isinstance(r, LeftOut)])
        rows = []
        for (record, _), result in zip(found, results, strict=True):
            said = [result.reason] if isinstance(result, LeftOut) else ["", *next(cells)]
            rows.append([record.id, record.where, *said])
        return rows

    def _large(self, crystal: Crystal) -> Output:
        found = by_rows(self.model, crystal, self.make)
        if found is None:
            (found,) = from_store(self.model, PairStore.of([self.make(crystal)]))
        return found

    def _cells(self, results: Sequence[Output]) -> Iterator[list[str]]:
        """What a row says of each prediction."""
        if not results:
            return
        model, encodings = self.model, np.stack([encoding for _, encoding in results])
        widths = half_widths(model, encodings, self.coverage)
        inside = None if model.calibration is None else model.calibration.inside(encodings)
        for i, (y, _) in enumerate(results):
            cells = []
            for k, target in enumerate(model.targets):
                cells.append(number(y[k]))
                if target.kind == "value" and inside is not None:
                    cells += map(number, interval(y[k], widths[i, k], model.lowest))
            if inside is not None:
                cells.append("yes" if inside[i] else "no")
            yield cells

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


def _chunked(records: Iterator[Record]) -> Iterator[_Chunk]:
    for k in itertools.count():
        chunk = list(itertools.islice(records, CHUNK))
        if not chunk:
            return
        yield k, chunk


def _to_file(
    job: _Job,
    records: Iterator[Record],
    total: int,
    settings: str,
    out: Path,
    workers: int | None,
    reporter: Reporter,
) -> Outcome:
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(out, rank(), world())
    done = _completed(partial, settings)
    with (
        reporter.bar("predicting", total) as advance,
        open(partial, "a", newline="", encoding="utf-8") as file,
    ):
        if not file.tell():
            file.write(json.dumps({"settings": settings}) + "\n")
        advance(min(done * CHUNK * world(), total))
        for k, rows in job.chunks(records, rank(), world(), total, workers, done):
            # One line a chunk: a line that was cut off is the chunk that was under way.
            file.write(json.dumps([k, rows]) + "\n")
            file.flush()
            advance(len(rows) * world())
    barrier()
    outcome = Outcome(job.header, out=out)
    if is_first():
        _join(job, outcome, out, [_partial(out, r, world()) for r in range(world())])
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


def _join(job: _Job, outcome: Outcome, out: Path, partials: list[Path]) -> None:
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

    write_csv(out, job.header, predicted())
    write_csv(_listed(out), ("id", "where", "reason"), (r[:3] for r in rows() if r[2]))


def _lines(partial: Path) -> Iterator[list[Any]]:
    with open(partial, encoding="utf-8") as file:
        next(file)
        yield from map(json.loads, file)
