"""Files that are complete or not there: written under a temporary name, then renamed."""

from __future__ import annotations

import csv
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

_CHECKSUM = "sha256"  # key in the metadata of a safetensors file


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


def writable_folder(path: str | Path) -> Path:
    """Create a folder unless it exists, and check that files can be written there.

    Raises:
        OSError: It is a file, or cannot be created or written to; the error names it.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f".probe.{os.getpid()}.tmp"
    try:
        probe.write_bytes(b"")
    except OSError as error:
        raise OSError(error.errno, os.strerror(error.errno or 0), str(path)) from error
    finally:
        probe.unlink(missing_ok=True)
    return path


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


def writable_file(path: str | Path) -> Path:
    """Check that a file can be written, before the work whose results it is for.

    Creates its folder if absent.

    Raises:
        OSError: The path is a folder, or the file cannot be written; the error names it.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"expected a file to write, got a folder: {path}")
    writable_folder(path.parent)
    if path.exists() and not os.access(path, os.W_OK):
        raise PermissionError(f"the file is read-only: {path}")
    return path


def cell_text(value: Any) -> str:
    """The text of a table's cell: numbers with seven digits, "" for None and NaN."""
    if isinstance(value, (float, np.floating)):
        return f"{value:.7g}" if np.isfinite(value) else ""
    return "" if value is None else str(value)


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


# ---------------------------------------------------------------------------------------------
# Checksums


def fingerprint(*parts: Any) -> str:
    """Hash whatever fixes a result: a SHA-256 in hexadecimal.

    Args:
        parts: Arrays, bytes, or values that JSON can hold (other objects count by their
            ``repr``). The type, shape and order of the parts count.
    """
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            kind, content = f"{part.dtype.str} {part.shape}", np.ascontiguousarray(part).tobytes()
        elif isinstance(part, bytes):
            kind, content = "bytes", part
        else:
            kind, content = "json", json.dumps(part, sort_keys=True, default=repr).encode()
        digest.update(f"{kind} {len(content)}:".encode())
        digest.update(content)
    return digest.hexdigest()


def file_checksum(path: str | Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], sync: bool = True
) -> None:
    """Write a safetensors file as a whole, with a checksum over all that it holds.

    Args:
        path: of the file.
        tensors: by name.
        metadata: texts by name; ``sha256`` is taken.
        sync: as in ``new_file``.
    """
    import safetensors.torch  # takes a second, and this module serves commands that need no torch

    tensors = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    checksum = {_CHECKSUM: _checksum(tensors, metadata)}
    content = safetensors.torch.save(tensors, {**metadata, **checksum})
    with new_file(path, sync) as temporary:
        temporary.write_bytes(content)


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file and verify its checksum; files without one are read as they are.

    Returns:
        The tensors and the metadata, both by name.

    Raises:
        ValueError: the file is damaged or no safetensors file.
    """
    import safetensors

    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise
    except Exception as error:  # of many classes, as damaged headers hold dtypes and sizes
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from None
    expected = metadata.pop(_CHECKSUM, None)
    if expected is not None and expected != _checksum(tensors, metadata):
        raise ValueError(f"{path} is damaged: its content does not match its checksum")
    return tensors, metadata


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 over the metadata and over the names, dtypes, shapes and bytes of the tensors."""
    import torch

    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, x in sorted(tensors.items()):
        digest.update(json.dumps([name, str(x.dtype), list(x.shape)]).encode())
        digest.update(x.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
