"""Files in zip archives, by paths that lead into them: ``cifs.zip/deep/NaCl.cif``."""

from __future__ import annotations

import functools
import os
import zipfile
from pathlib import Path

from sitenet.crystal.cif_blocks import Limits
from sitenet.data.failures import Unusable


def list_names(folder: Path) -> list[str]:
    """The names in a folder or an archive, sorted; none where there is no such folder."""
    place = _split(folder)
    try:
        if place is None:
            return sorted(os.listdir(folder))
        archive, inside = place
        start = f"{inside}/" if inside else ""
        names = (name[len(start) :] for name in _members(archive) if name.startswith(start))
        return sorted({name.partition("/")[0] for name in names} - {""})
    except OSError:
        return []


def list_files(archive: Path) -> list[Path]:
    """The paths of all files in an archive, sorted.

    Raises:
        ValueError: it is damaged or no zip archive.
    """
    return sorted(archive / name for name in _members(archive) if not name.endswith("/"))


def stored(path: Path) -> Path | bytes:
    """The content of a file in an archive; the path itself for other files.

    Raises:
        FileNotFoundError: there is no such file in the archive.
        ValueError: the archive or the file in it is damaged, encrypted, or too large.
    """
    place = _split(path)
    if place is None or not place[1]:
        return path
    archive, name = place
    limit = Limits().file_bytes
    try:
        with _opened(archive).open(name) as file:
            data = file.read(limit + 1)
    except KeyError:
        raise FileNotFoundError(f"no file {name!r} in {archive}") from None
    except Exception as error:  # of many classes: encrypted, damaged, of another method
        raise Unusable("damaged file", f"{path}: {error}") from None
    if len(data) > limit:
        raise Unusable("file too large", f"{path}: larger than {limit} bytes (limit)")
    return data


def _split(path: Path) -> tuple[Path, str] | None:
    """The archive that a path leads into, and the name in it; None for other paths."""
    for parent in (path, *path.parents):
        if parent.suffix.lower() == ".zip" and parent.is_file():
            inside = path.relative_to(parent).as_posix()
            return parent, "" if inside == "." else inside
    return None


def _members(archive: Path) -> list[str]:
    return _opened(archive).namelist()


def _opened(archive: Path) -> zipfile.ZipFile:
    facts = archive.stat()
    return _open(archive, facts.st_size, facts.st_mtime_ns, os.getpid())


@functools.lru_cache(maxsize=1)  # a forked process must not share the place in the file
def _open(archive: Path, size: int, time: int, process: int) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise Unusable("damaged file", f"{archive} is no zip archive: {error}") from None
