"""Work on the crystals of files and tables: in bounded memory, resumable, with a list of what was
left out.

Under torchrun the ranks share the crystals, and rank 0 joins their results.
"""

from __future__ import annotations

import contextlib
import glob
import heapq
import itertools
import json
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sitenet.data.dataset import LeftOut, write_left_out
from sitenet.data.readers import open_source
from sitenet.data.source import Record
from sitenet.inference import predict_chunks
from sitenet.inference.chunk_log import ChunkLog, read_chunks
from sitenet.inference.predict_chunks import Chunk, NumberedRecords, chunked
from sitenet.inference.table import Row
from sitenet.system.distributed import barrier, is_first, local_world, rank, world
from sitenet.system.files import file_checksum, locked, writable_file, write_text
from sitenet.system.progress import Reporter
from sitenet.system.workers import default_workers

NAMED = 3  # crystals left out that the summary names one by one; with more, it counts kinds


class JobPredictor(Protocol):
    """Computes and writes the results of a job, as ``Predictor`` does."""

    header: list[str]

    def chunks(
        self, records: Iterator[NumberedRecords], workers: int
    ) -> Generator[Chunk, None, None]: ...

    def row(self, prediction: Any, /) -> Row: ...

    def chunk_of(self, content: dict[str, Any]) -> Chunk: ...

    def write(self, path: Path, results: Callable[[], Iterator[Any]]) -> None: ...

    def settings(self, sources: list[str]) -> str: ...


@dataclass(eq=False)
class Outcome:
    """Result of ``run``.

    Attributes:
        header: Columns of the table.
        rows: Rows of the table, unless they were written to a file.
        results: What the rows show, likewise.
        count: Number of crystals that were predicted.
        left_out: The others, in order; the first few if they were listed in a file.
        reasons: Kind of failure -> number of crystals left out.
        out: The file with the table, if any.
        is_old: Whether an earlier run with the same settings had finished the file.
    """

    header: list[str]
    rows: list[Row] = field(default_factory=list)
    results: list[Any] = field(default_factory=list)
    count: int = 0
    left_out: list[LeftOut] = field(default_factory=list)
    reasons: dict[str, int] = field(default_factory=dict)
    out: Path | None = None
    is_old: bool = False

    def summary(self) -> str:
        """How many rows were written where, and how many crystals were left out for which reasons,
        on a line each; "" if there is nothing to say."""
        lines, where = [], ""
        if self.out is not None:
            rows = f"{self.count} row{'s' * (self.count != 1)}"
            done = "left as they are" if self.is_old else "written"
            lines.append(f"{rows} {done}: {self.out}")
            where = f", listed in {_listing(self.out)}"
        total = sum(self.reasons.values())
        if not total:
            return "\n".join(lines)
        lines.append(f"{total} left out{where}")
        if total <= NAMED:
            return "\n".join([*lines, *(f"  {x.where}: {x.reason}" for x in self.left_out)])
        counts = sorted(self.reasons.items(), key=lambda item: -item[1])
        lines += [f"  {count} x {kind}" for kind, count in counts[:10]]
        first = self.left_out[0]
        return "\n".join([*lines, f"  the first: {first.where}: {first.reason}"])

    def add_left_out(self, one: LeftOut) -> None:
        """Count a crystal that could not be used."""
        self.reasons[one.kind] = self.reasons.get(one.kind, 0) + 1
        if self.out is None or len(self.left_out) < NAMED:
            self.left_out.append(one)


def run(
    predictor: JobPredictor,
    paths: Sequence[str | Path],
    out: str | Path | None,
    workers: int | None,
    reporter: Reporter | None,
) -> Outcome:
    """Compute results for all crystals of files, folders and tables.

    Args:
        predictor: Computes and writes the results.
        paths: As in ``predict_files``.
        out: File to write, or None to keep the rows in memory.
        workers: Worker processes; None chooses.
        reporter: Shows progress.

    Raises:
        FileNotFoundError, ValueError: A path is none of these, or another process writes ``out``.
        OSError: ``out`` cannot be written; raised before anything is computed.
    """
    reporter = reporter or Reporter()
    if out is not None:
        out = writable_file(out)
    sources = [open_source(path, ()) for path in paths]
    total = sum(map(len, sources))
    if workers is None:
        workers = max(1, default_workers(total) // local_world())
    job = _Job(predictor, itertools.chain.from_iterable(sources), total, workers, reporter)
    if out is None:
        return job.in_memory()
    settings = predictor.settings([source.fingerprint() for source in sources])
    with _only_writer(out):
        return _finished(out, settings, predictor) or job.to_file(out, settings)


# ---------------------------------------------------------------------------------------------
# Rows in memory or in a file


@dataclass(eq=False)
class _Job:
    """Records to predict, and how.

    Attributes:
        predictor: Predicts them.
        records: All of them, in order.
        total: Their number.
        workers: Worker processes.
        reporter: Shows progress.
    """

    predictor: JobPredictor
    records: Iterator[Record]
    total: int
    workers: int
    reporter: Reporter

    def chunks(self, first: int, step: int) -> Generator[Chunk, None, None]:
        """Yield the results of every ``step``-th chunk of records from number ``first`` on."""
        mine = itertools.islice(chunked(self.records), first, None, step)
        return self.predictor.chunks(mine, self.workers)

    def in_memory(self) -> Outcome:
        """Predict and keep the rows."""
        outcome = Outcome(self.predictor.header)
        with (
            self.reporter.bar("predicting", self.total) as advance,
            contextlib.closing(self.chunks(0, 1)) as chunks,
        ):
            for chunk in chunks:
                outcome.rows += map(self.predictor.row, chunk.predictions)
                outcome.results += chunk.predictions
                for one in chunk.left_out:
                    outcome.add_left_out(one)
                advance(chunk.records)
        outcome.count = len(outcome.rows)
        return outcome

    def to_file(self, out: Path, settings: str) -> Outcome:
        """Predict this rank's chunks into its log; rank 0 then joins the logs of all ranks."""
        ranks = world()
        with (
            self.reporter.bar("predicting", self.total) as advance,
            ChunkLog(_log(out, rank(), ranks), settings) as log,
            contextlib.closing(self.chunks(rank() + log.count * ranks, ranks)) as chunks,
        ):
            done = min(log.count * predict_chunks.CHUNK * ranks, self.total)
            advance(done)
            try:
                for chunk in chunks:
                    log.append(chunk.plain())
                    advance(chunk.records * ranks)
                    done += chunk.records * ranks
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    f"{min(done, self.total):,} of {self.total:,} crystals are done; "
                    "the same command resumes there"
                ) from None
        barrier()
        outcome = Outcome(self.predictor.header, out=out)
        if is_first():
            _join([_log(out, r, ranks) for r in range(ranks)], self.predictor, outcome)
            _note_finished(outcome, settings)
            for path in out.parent.glob(f".{glob.escape(out.name)}*.partial"):
                path.unlink()
        barrier()
        return outcome


def _join(logs: list[Path], predictor: JobPredictor, outcome: Outcome) -> None:
    """Write the results, and the list of what was left out, from the logs of all ranks."""

    def chunks() -> Iterator[Chunk]:
        parts = [map(predictor.chunk_of, read_chunks(log)) for log in logs]
        return heapq.merge(*parts, key=lambda chunk: chunk.number)

    def results() -> Iterator[Any]:
        outcome.count = 0
        for chunk in chunks():
            outcome.count += len(chunk.predictions)
            yield from chunk.predictions

    def left_out() -> Iterator[LeftOut]:
        for chunk in chunks():
            for one in chunk.left_out:
                outcome.add_left_out(one)
                yield one

    assert outcome.out is not None
    predictor.write(outcome.out, results)
    write_left_out(left_out(), _listing(outcome.out))


def _listing(out: Path) -> Path:
    return out.with_name(f"{out.stem}.left_out.csv")


def _log(out: Path, rank: int, world: int) -> Path:
    ending = "" if world == 1 else f".{rank}-of-{world}"
    return out.with_name(f".{out.name}{ending}.partial")


@contextlib.contextmanager
def _only_writer(out: Path) -> Iterator[None]:
    """Refuse to write a file that another process is writing; the ranks of one run count as one.

    Raises:
        ValueError: Another process is writing it.
    """
    if not is_first():
        barrier()  # rank 0 holds the lock
        yield
        return
    path = out.with_name(f".{out.name}.lock")
    with locked(path, wait=False) as mine:
        if not mine:
            raise ValueError(f"another process is writing {out}: wait for it, or name another file")
        barrier()
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------------
# Finished files


def _note_finished(outcome: Outcome, settings: str) -> None:
    """Note beside a finished file what it was computed from, so that it is not computed again."""
    assert outcome.out is not None
    facts = {
        "settings": settings,
        "files": [file_checksum(outcome.out), file_checksum(_listing(outcome.out))],
        "count": outcome.count,
        "left_out": list(map(vars, outcome.left_out)),
        "reasons": outcome.reasons,
    }
    write_text(_note(outcome.out), json.dumps(facts))


def _finished(out: Path, settings: str, predictor: JobPredictor) -> Outcome | None:
    """The outcome of an earlier run with these settings, if its files are still as it left them."""
    try:
        facts = json.loads(_note(out).read_text(encoding="utf-8"))
        if facts["settings"] != settings:
            return None
        if facts["files"] != [file_checksum(out), file_checksum(_listing(out))]:
            return None
        left_out = [LeftOut(**fields) for fields in facts["left_out"]]
        count, reasons = facts["count"], facts["reasons"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    header = predictor.header
    return Outcome(header, count=count, left_out=left_out, reasons=reasons, out=out, is_old=True)


def _note(out: Path) -> Path:
    return out.with_name(f".{out.name}.finished")
