"""The crystals in files of any form."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

from sitenet.crystal.cif import CifWarning
from sitenet.crystal.crystal import Crystal, read_cif, read_each
from sitenet.data.failures import Unusable
from sitenet.data.frames import Frame, frames
from sitenet.data.structure_names import form_of, without_suffix
from sitenet.data.structures import crystal_of

Named = tuple[str, Crystal | Exception]  # name in the file, and the crystal or why there is none


def read_structures(
    name: str, source: Path | bytes, disorder: str = "error", only: str = ""
) -> Iterator[Named]:
    """Read the structures of a file one by one, so that one bad one does not lose the others.

    Args:
        name: of the file; it tells the form.
        source: the file, or its content.
        disorder: what to do about partial occupancy, as in ``read_cif``.
        only: name of the only structure to read, where the form has names; "" for all.

    Yields:
        The name of each structure in the file, "" for none, and its crystal, or why it cannot be
        read.

    Raises:
        ImportError: the form needs ASE, which is not installed.
        OSError: there is no such file.
        ValueError: the file holds no structure, or is damaged.
    """
    if form_of(name) == "cif":
        yield from read_each(source, disorder)
        return
    for frame in frames(name, source):
        if frame.kind == "member":
            yield from _of_member(frame, disorder, only)
        elif frame.kind == "error":
            yield _called(frame), frame.content
        else:
            yield _called(frame), _attempt(frame, disorder)


def _called(frame: Frame) -> str:
    name = frame.name or frame.cells.get("id")
    return "" if name is None else str(name)


def _of_member(frame: Frame, disorder: str, only: str) -> Iterator[Named]:
    """The structures of a file in an archive; those of several are called ``file/block``."""
    file = without_suffix(frame.name)
    if only and not f"{only}/".startswith(f"{file}/"):
        return
    try:
        name, data = frame.content
        structures = list(read_structures(name, data, disorder))
    except (ValueError, ImportError) as error:
        yield file, error
        return
    for number, (name, result) in enumerate(structures, 1):
        yield f"{file}/{name or number}" if len(structures) > 1 else file, result


def _attempt(frame: Frame, disorder: str) -> Crystal | Exception:
    try:
        return crystal_of(frame.kind, frame.content, disorder)
    except (ValueError, ImportError) as error:
        return error


def read(source: str | os.PathLike[str] | bytes, disorder: str = "error") -> Crystal:
    """Read the first structure of a file of any form.

    CIFs are read as by ``read_cif``; POSCAR, extended XYZ and ASE databases need ASE.

    Args:
        source: path of a CIF, POSCAR or CONTCAR, extended XYZ file, ASE database, JSON file of
            pymatgen, JARVIS or OPTIMADE, or zip archive of such files, the text ones also gzipped;
            or the text of a CIF.
        disorder: what to do about partial occupancy, as in ``read_cif``.

    Returns:
        The crystal in the cell of the file, named after its file or block.

    Raises:
        ImportError: the form needs ASE, which is not installed.
        OSError: there is no such file.
        ValueError: the structure cannot be used (CifError where it is a CIF), with the reason.

    Warns:
        CifWarning: as in ``read_cif``; also if another file holds more than one structure.
    """
    is_text = isinstance(source, bytes) or re.search(r"[\r\n]|\s_cell", os.fspath(source))
    path = None if is_text else Path(os.fspath(source))  # type: ignore[arg-type]
    if path is None or form_of(path.name) in (None, "cif"):
        return read_cif(source, disorder)
    structures = read_structures(path.name, path, disorder)
    name, crystal = next(structures, ("", Unusable("no structure", f"{path} holds no structure")))
    if isinstance(crystal, ImportError):
        raise crystal
    if isinstance(crystal, Exception):
        kind = getattr(crystal, "kind", "structure not usable")
        raise Unusable(kind, f"{path}: {crystal}") from None
    crystal.name = name or without_suffix(path.name)
    if next(structures, None) is not None:
        text = "the file holds more structures; this is the first"
        crystal.warnings += (text,)
        warnings.warn(f"{path}: {text}", CifWarning, stacklevel=2)
    return crystal
