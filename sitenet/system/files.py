"""Files that are complete or absent: written under a temporary name, then renamed."""

from __future__ import annotations

import csv
import functools
import hashlib
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

_TEMPORARY = re.compile(r"\..+\.(\d+)\.tmp")  # .NAME.PID.tmp


@contextmanager
def new_file(path: str | Path, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary name beside ``path``, and rename it once the block has written it.

    Args:
        path: Name of the finished file.
        sync: Wait until the content is on the disk, so that it survives a power cut.

    Raises:
        OSError: The file cannot be written; the error names ``path``.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    _sweep_once(path.parent.absolute())
    try:
        yield temporary
        if sync:
            with open(temporary, "rb+") as file:  # Windows flushes only what it may write to
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:  # a full disk is reported without a name
        if error.errno is None or error.filename not in (None, str(temporary)):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Remove the temporary files that killed processes left in a folder."""
    if not folder.is_dir():
        return
    for path in folder.iterdir():
        match = _TEMPORARY.fullmatch(path.name)
        if match and not _is_running(int(match[1])):
            path.unlink(missing_ok=True)


_sweep_once = functools.cache(sweep)


def _is_running(pid: int) -> bool:
    if sys.platform == "win32":  # where os.kill would end the process
        import ctypes

        query = 0x1000  # PROCESS_QUERY_LIMITED_INFORMATION
        handle = ctypes.windll.kernel32.OpenProcess(query, False, pid)
        if handle:
            ctypes.windll.kernel32.CloseHandle(handle)
        return bool(handle)
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True


def writable_folder(path: str | Path) -> Path:
    """Create a folder unless it exists, and check that files can be written there.

    Raises:
        OSError: It is a file, or cannot be created or written to; the error names it.
    """
    path = Path(path)
    path.mkdir(parents=True, exist_ok=True)
    sweep(path)
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
    """Hold the lock of a file; the system releases it however the process ends.

    Args:
        path: Lock file, created if absent.
        wait: Wait while another process holds the lock.

    Yields:
        True; or False if another process holds the lock and ``wait`` is False.
    """
    lock = filelock.FileLock(path)
    try:
        lock.acquire(blocking=wait)
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def write_text(path: str | Path, text: str, sync: bool = True) -> None:
    """Write a text file as a whole; ``sync`` as in ``new_file``."""
    with new_file(path, sync) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")  # the same bytes everywhere


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
    """Write columns of equal length as a CSV file."""
    write_csv(path, list(columns), text_rows(columns))


def text_rows(columns: Mapping[str, np.ndarray]) -> list[list[str]]:
    """Rows of columns of equal length as text, numbers with seven digits."""
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


_CHECKSUM = "sha256"  # key of the metadata of a safetensors file


def save_tensors(
    path: str | Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    sync: bool = True,
) -> None:
    """Write a safetensors file whose metadata hold a checksum of everything else in it.

    Args:
        path: The file.
        tensors: Named tensors on any device.
        metadata: Named texts.
        sync: As in ``new_file``.
    """
    import safetensors.torch

    tensors = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
    facts = {**metadata, _CHECKSUM: _checksum(tensors, metadata)}
    with new_file(path, sync) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors, facts))


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a safetensors file and verify its checksum, if it has one.

    Returns:
        The tensors and the metadata.

    Raises:
        ValueError: The file is damaged or no safetensors file; the error names it.
    """
    import safetensors

    try:
        with safetensors.safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except FileNotFoundError:
        raise
    except Exception as error:  # of many classes: damaged headers hold wrong types and sizes
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from None
    checksum = metadata.pop(_CHECKSUM, None)
    if checksum is not None and checksum != _checksum(tensors, metadata):
        raise ValueError(f"{path} is damaged: its content does not match its checksum")
    return tensors, metadata


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """SHA-256 over the metadata and over the names, dtypes, shapes and bytes of the tensors."""
    import torch

    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, x in sorted(tensors.items()):
        digest.update(json.dumps([name, str(x.dtype), list(x.shape)]).encode())
        digest.update(x.reshape(-1).view(torch.uint8).numpy().data)  # numpy has no bfloat16
    return digest.hexdigest()
