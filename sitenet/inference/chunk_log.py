"""A log of finished chunks that survives a kill, a power cut or a full disk at any moment.

Each line is a CRC-32 in hexadecimal and the JSON of one chunk; the first line holds the settings
that fix the chunks. What follows the first damaged line is computed again.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class ChunkLog:
    """Append chunks to a log, after those that an earlier run with the same settings left.

    Use as a context manager.

    Args:
        path: The log; created if absent.
        settings: What fixes the content. A log with other settings is emptied.

    Attributes:
        count: Chunks in the log when it was opened.

    Raises:
        OSError: The log cannot be written; the error names it.
    """

    def __init__(self, path: Path, settings: str) -> None:
        self.path = path
        self.count, end = _sound_part(path, settings) if path.exists() else (0, 0)
        self._file = open(path, "ab", buffering=0)  # a line is with the system once written
        self._file.truncate(end)
        if not end:
            self._write(_line(settings))

    def __enter__(self) -> ChunkLog:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def append(self, content: Any) -> None:
        """Add a chunk: anything that JSON can hold."""
        self._write(_line(content))

    def _write(self, line: bytes) -> None:
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError as error:  # a full disk is reported without a name
            raise OSError(error.errno, error.strerror, str(self.path)) from None


def read_chunks(path: Path) -> Iterator[Any]:
    """The chunks of a log, in the order in which they were appended."""
    with open(path, "rb") as file:
        next(file)
        yield from map(_content, file)


def _line(content: Any) -> bytes:
    text = json.dumps(content).encode()
    return b"%08x %b\n" % (zlib.crc32(text), text)


def _content(line: bytes) -> Any:
    """The content of a line.

    Raises:
        ValueError: The line is cut off or damaged.
    """
    checksum, text = line[:8], line[9:-1]
    if line[-1:] != b"\n" or checksum != b"%08x" % zlib.crc32(text):
        raise ValueError("a line does not match its checksum")
    return json.loads(text)


def _sound_part(path: Path, settings: str) -> tuple[int, int]:
    """How many chunks of these settings a log begins with, and where the last one ends."""
    count, end = -1, 0
    with open(path, "rb") as file:
        try:
            for line in file:
                content = _content(line)
                if count < 0 and content != settings:
                    break
                count, end = count + 1, end + len(line)
        except ValueError:
            pass
    return (count, end) if count >= 0 else (0, 0)
