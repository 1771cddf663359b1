"""Uploaded files as crystals. No file is written under a name that a request chooses."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sitenet.crystal.crystal import Crystal
from sitenet.data.dataset import LeftOut, Preparation
from sitenet.data.failures import Unusable
from sitenet.data.source import Record
from sitenet.data.structure_names import ACCEPTED, form_of, without_suffix
from sitenet.data.structure_tables import frame_records

NAME_LENGTH = 120  # characters of a file name that are kept


class Refused(Exception):
    """A request that is not answered.

    Attributes:
        status: of HTTP.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Bounds:
    """What a request may ask for.

    Attributes:
        megabytes: size of a request.
        files: files per request.
        structures: structures per request.
        sites: sites of a structure's cell.
        seconds: time that a request may take, and its upload.
        waiting: requests that are answered or wait at a time.
    """

    megabytes: int = 20
    files: int = 500
    structures: int = 2000
    sites: int = 1000
    seconds: int = 60
    waiting: int = 200


class Upload(NamedTuple):
    """A file of a request: its name, made harmless, and its content."""

    name: str
    data: bytes


class Read(NamedTuple):
    """A structure of an upload: the number of its file, and the crystal or why there is none."""

    file: int
    record: Record
    result: Crystal | LeftOut


def harmless(name: str | None) -> str:
    """The last part of a file's name, of printable characters and moderate length."""
    last = (name or "").replace("\\", "/").rpartition("/")[2].replace("%22", '"')  # by browsers
    shown = "".join(x if x.isprintable() else "\N{REPLACEMENT CHARACTER}" for x in last)
    if len(shown) > NAME_LENGTH:
        shown = f"{shown[: NAME_LENGTH // 2]}…{shown[-NAME_LENGTH // 2 :]}"
    return shown or "unnamed"


def read_uploads(uploads: Sequence[Upload], how: Preparation, bounds: Bounds) -> Iterator[Read]:
    """Read the structures of uploads one by one, prepared as a model expects them.

    Raises:
        Refused: there are more structures than the bounds allow.
    """
    count = 0
    for file, upload in enumerate(uploads):
        if upload.data.count(b"data_") > 10 * bounds.structures:
            raise _too_many(bounds)
        for record, result in _structures(upload, how.disorder):
            count += 1
            if count > bounds.structures:
                raise _too_many(bounds)
            yield Read(file, *_prepared(record, result, how, bounds))


def _too_many(bounds: Bounds) -> Refused:
    return Refused(413, f"more than {bounds.structures} structures; send them in several requests")


def _structures(upload: Upload, disorder: str) -> Iterator[tuple[Record, Crystal | Exception]]:
    stem = without_suffix(upload.name)
    whole = Record(stem, upload.name, "member", (upload.name, upload.data), several=True)
    match form_of(upload.name):
        case "cif" | "vasp":
            yield from whole.crystals(disorder)
            return
        case None:
            reason = f"{upload.name}: expected a {ACCEPTED}"
            yield whole, Unusable("not a structure file", reason)
            return
    try:
        records = frame_records(Path(upload.name), stem, upload.data)
        for record in records:
            yield from record.crystals(disorder)
    except (ValueError, ImportError) as error:
        yield whole, error


def _prepared(
    record: Record, result: Crystal | Exception, how: Preparation, bounds: Bounds
) -> tuple[Record, Crystal | LeftOut]:
    """The crystal of a record in the cell that a model expects, unless it is too large."""
    record = dataclasses.replace(record, content=None)
    try:
        if isinstance(result, Exception):
            raise result
        if len(result) > bounds.sites:
            reason = f"{len(result)} sites, the limit here is {bounds.sites}"
            raise Unusable("too many sites", reason)
        crystal = result.primitive() if how.primitive else result
    except Exception as error:  # no structure may end a request with others
        return record, LeftOut.of(record.id, record.where, error)
    crystal.name = record.id
    return record, crystal


def batch(reads: Iterator[Read], most: int, seconds: float) -> list[Read]:
    """Some of the structures: at most so many, and no more once so many seconds have passed."""
    start = time.monotonic()
    part: list[Read] = []
    for read in itertools.islice(reads, most):
        part.append(read)
        if time.monotonic() - start > seconds:
            break
    return part
