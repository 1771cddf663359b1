"""Files that are complete or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import csv
import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np


@contextmanager
def new_file(path: str | Path, sync: bool = True) -> Iterator[Path]:
    """A temporary name beside ``path``, renamed to it once the block has written it.

    Args:
        path: of the file.
        sync: whether to wait until it is on the disk, so that it outlasts a power cut.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if sync:
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def locked(path: str | Path, wait: bool = True) -> Iterator[bool]:
    """Hold a file's lock, which the system gives back however the process ends.

    Args:
        path: of the file, made where there is none.
        wait: for another process that holds it; the block is told False otherwise.
    """
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True


def write_text(path: str | Path, text: str) -> None:
    """Write a text file as a whole."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file as a whole."""
    with new_file(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def write_columns(path: str | Path, columns: Mapping[str, np.ndarray]) -> None:
    """Write equally long columns as a CSV file."""
    write_csv(path, list(columns), text_rows(columns))


def text_rows(columns: Mapping[str, np.ndarray]) -> list[list[str]]:
    """The rows of equally long columns as text, numbers with seven digits."""
    texts = [
        [f"{x:.7g}" for x in column] if column.dtype.kind == "f" else [str(x) for x in column]
        for column in columns.values()
    ]
    return [list(row) for row in zip(*texts, strict=True)]
