"""The structures of a file one by one, not yet read, with the values that the file gives of each.

Files are read as a stream where their form allows it, so that a large one takes little memory.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import itertools
import json
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import IO, Any, NamedTuple

from sitenet.crystal.cif_blocks import Limits, Unreadable, read_text
from sitenet.data.failures import Unusable, printable
from sitenet.data.structure_names import ACCEPTED, form_of

LIMITS = Limits()
MOST_UNPACKED = 200  # a zip archive's content over its size; CIFs shrink to a tenth or so


class Frame(NamedTuple):
    """A structure of a file.

    Attributes:
        name: what the file calls it, "" for nothing.
        kind: form of ``content``, as in ``crystal_of``; or "member", a file in an archive: its name
            and its bytes; or "error", an exception that says why there is no structure.
        content: the structure, not yet read.
        cells: single values that the file gives beside it, by name.
    """

    name: str
    kind: str
    content: Any
    cells: Mapping[str, Any] = {}


def frames(name: str, source: Path | bytes) -> Iterator[Frame]:
    """Yield the structures of a file that is no CIF.

    Args:
        name: of the file; it tells the form.
        source: the file, or its content.

    Raises:
        ImportError: the form needs ASE, which is not installed.
        OSError: there is no such file.
        ValueError: the file is damaged, or of another form than its name says.
    """
    match form_of(name):
        case "vasp":
            yield Frame("", "vasp", _text(source))
        case "xyz":
            yield from _xyz_frames(source)
        case "json":
            content = load_json(name, source)
            if is_ase_json(content):
                yield from _database_frames(name, source)
            else:
                yield from json_frames(name, content)
        case "database":
            yield from _database_frames(name, source)
        case "zip":
            yield from _zip_frames(name, source)
        case _:
            raise Unusable("not a structure file", f"{name}: expected a {ACCEPTED}")


def ase(module: str) -> Any:
    """Import a module of ASE.

    Raises:
        ImportError: it is not installed; says how to install it.
    """
    try:
        return import_module(f"ase.{module}")
    except ImportError:
        raise ImportError(
            "POSCAR, extended XYZ and ASE databases are read by ASE: pip install ase"
        ) from None


def _text(source: Path | bytes) -> str:
    """The text of a file of reasonable size, or of its content, which may be gzipped."""
    try:
        return read_text(source, LIMITS)
    except Unreadable as error:
        raise Unusable(error.kind, str(error)) from None


# ---------------------------------------------------------------------------------------------
# Extended XYZ


def _xyz_frames(source: Path | bytes) -> Iterator[Frame]:
    """Cut a file into its frames, which end where the number of atoms says."""
    values = ase("io.extxyz").key_val_str_to_dict
    line = 0
    with _lines(source) as file:
        for number in itertools.count(1):
            head = next(file, None)
            if head is None or not head.strip():
                return
            if not head.strip().isdecimal() or len(head) > 20 or int(head) > LIMITS.sites:
                reason = (
                    f"line {line + 1}: expected a number of atoms up to {LIMITS.sites}, "
                    f"got {head.strip()[:40]!r}"
                )
                yield Frame("", "error", Unusable("not an extended XYZ file", reason))
                return
            comment = next(file, "")
            text = "".join([head, comment, *itertools.islice(file, int(head))])
            line += 2 + int(head)
            try:
                cells = {k: v for k, v in values(comment).items() if is_single(v)}
            except Exception as error:  # of many classes, for a comment of another form
                reason = f"frame {number}: unreadable comment line: {error!r}"
                yield Frame("", "error", Unusable("not an extended XYZ file", reason))
                continue
            yield Frame("", "extxyz", text, cells)


@contextlib.contextmanager
def _lines(source: Path | bytes) -> Iterator[Iterator[str]]:
    """The lines of a file, read as they are asked for; or of its content."""
    if isinstance(source, bytes):
        yield io.StringIO(_text(source))
        return
    opened: Any = gzip.open if source.name.lower().endswith(".gz") else open
    with opened(source, "rt", encoding="utf-8", errors="replace") as file:
        yield file


def is_single(value: Any) -> bool:
    """Whether a value may be the cell of a table: a number, a truth value or a text."""
    return isinstance(value, (str, bool, int, float)) or getattr(value, "shape", None) == ()


# ---------------------------------------------------------------------------------------------
# ASE databases

_SQLITE = b"SQLite format 3\0"


def _database_frames(name: str, source: Path | bytes) -> Iterator[Frame]:
    import sqlite3

    connect = ase("db").connect
    if isinstance(source, bytes):
        reason = f"{name}: a database is read from a disk only"
        raise Unusable("database in an archive or upload", reason)
    if form_of(source.name) == "database":
        with open(source, "rb") as file:
            if file.read(len(_SQLITE)) != _SQLITE:
                raise Unusable("damaged file", f"{name} is no SQLite database")
    try:
        for row in connect(source, use_lock_file=False).select():
            cells = dict(row.key_value_pairs)
            with contextlib.suppress(AttributeError):
                cells["energy"] = row.energy
            yield Frame("", "ase", row.toatoms(), cells)
    except (sqlite3.Error, KeyError, AttributeError) as error:
        raise Unusable("damaged file", f"{name} is no ASE database: {error!r}") from None


# ---------------------------------------------------------------------------------------------
# Archives


def _zip_frames(name: str, source: Path | bytes) -> Iterator[Frame]:
    """The structure files in an archive, in its order; nothing is unpacked onto the disk."""
    file: IO[bytes] = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")
    with file:
        try:
            archive = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
            raise Unusable("damaged file", f"{name} is no zip archive: {error}") from None
        size = file.seek(0, io.SEEK_END)
        budget = max(LIMITS.file_bytes, MOST_UNPACKED * size)
        for member in archive.infolist():
            last = member.filename.rpartition("/")[2]
            shown = printable(member.filename)
            if form_of(last) in (None, "zip", "database") or "__MACOSX/" in member.filename:
                continue
            try:
                with archive.open(member) as content:
                    data = content.read(min(LIMITS.file_bytes, budget) + 1)
            except Exception as error:  # of many classes: encrypted, damaged, of another method
                yield Frame(shown, "error", Unusable("damaged file", f"{shown}: {error}"))
                continue
            budget -= len(data)
            if len(data) > LIMITS.file_bytes:
                reason = f"{shown}: larger than {LIMITS.file_bytes} bytes (limit)"
                yield Frame(shown, "error", Unusable("file too large", reason))
            elif budget < 0:
                reason = f"{shown}: the archive unpacks to more than {MOST_UNPACKED} times its size"
                yield Frame(shown, "error", Unusable("file too large", reason))
                return
            else:
                yield Frame(shown, "member", (shown, data))


# ---------------------------------------------------------------------------------------------
# JSON


def load_json(name: str, source: Path | bytes) -> Any:
    """The content of a JSON file, pymatgen's Structures in it as texts.

    Raises:
        ValueError: it is damaged or not JSON.
    """
    try:
        if isinstance(source, bytes):
            content = json.loads(_text(source), object_hook=_packed)
        else:
            opened: Any = gzip.open if source.name.lower().endswith(".gz") else open
            with opened(source, "rt", encoding="utf-8-sig") as file:
                content = json.load(file, object_hook=_packed)
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{name} is damaged or not a JSON file: {error}") from None
    return content


def _packed(content: dict[str, Any]) -> Any:
    """A pymatgen Structure as text again, without what is not used: far less memory than dicts."""
    if "abc" in content and "species" in content:
        return {"species": content["species"], "abc": content["abc"]}
    if "sites" in content and "lattice" in content:
        return json.dumps({"lattice": content["lattice"], "sites": content["sites"]})
    return content


def is_ase_json(content: Any) -> bool:
    """Whether the content of a JSON file is an ASE database."""
    return isinstance(content, dict) and {"ids", "nextid"} <= set(content)


def json_frames(name: str, content: Any) -> Iterator[Frame]:
    """The structures in the content of a JSON file.

    Raises:
        ValueError: it holds no structures.
    """
    if isinstance(content, dict):
        data = content.get("data")
        if {"columns", "data"} <= set(content):
            yield from matbench_frames(name, content)
            return
        # An answer of OPTIMADE or of the Materials Project, or one structure.
        content = data if isinstance(data, list) else [data if _is_entry(data) else content]
    elif isinstance(content, str):
        content = [content]
    if not isinstance(content, list) or not content:
        raise ValueError(_unknown_json(name))
    columns = {key for row in content if isinstance(row, dict) for key in row}
    kind = next((k for k, column in _COLUMNS.items() if column in columns), "")
    frames = [_frame(row, kind) for row in content]
    if all(frame is None for frame in frames):
        names = ", ".join(dict.fromkeys(k for r in content if isinstance(r, dict) for k in r))
        raise ValueError(
            f"{name}: expected a column structure or atoms, got {names}"
            if names
            else _unknown_json(name)
        )
    for number, frame in enumerate(frames, 1):
        error = Unusable("not a structure", f"{name}: entry {number} holds no structure")
        yield Frame("", "error", error) if frame is None else frame


_COLUMNS = {"pymatgen": "structure", "jarvis": "atoms"}  # kind -> key of an entry


def _unknown_json(name: str) -> str:
    return (
        f"{name}: expected a Matbench table (columns, index, data), a JARVIS list of dicts, "
        "pymatgen's Structures or ComputedStructureEntries, or OPTIMADE's structures"
    )


def _is_entry(data: Any) -> bool:
    return isinstance(data, dict) and "attributes" in data


def _frame(row: Any, kind: str) -> Frame | None:
    """An entry of a list; ``kind`` where its structure is under a key. None for no structure."""
    if isinstance(row, str):  # a packed Structure
        return Frame("", "pymatgen", row)
    if not isinstance(row, dict):
        return None
    if _is_entry(row):
        attributes = row["attributes"]
        if not isinstance(attributes, dict):
            return None
        return Frame("", "optimade", attributes, {"id": row.get("id")} | _cells(attributes))
    if "lattice_mat" in row:
        return Frame("", "jarvis", row)
    if not kind:
        return None
    cells = _cells(row)
    if "entry_id" in row:  # a ComputedStructureEntry
        data = row.get("data")
        cells = {"id": row["entry_id"]} | cells | (_cells(data) if isinstance(data, dict) else {})
    return Frame("", kind, row.get(_COLUMNS[kind]), cells)


def _cells(row: Mapping[str, Any]) -> dict[str, Any]:
    """What may be cells of a table, without names of classes and the structure itself."""
    return {
        key: value
        for key, value in row.items()
        if (value is None or is_single(value))
        and not key.startswith("@")
        and key not in ("entry_id", *_COLUMNS.values())
    }


def matbench_frames(name: str, content: Mapping[str, Any]) -> Iterator[Frame]:
    """The rows of a Matbench table."""
    names, table = content["columns"], content["data"]
    for number, row in enumerate(table, 1):
        count = len(row) if isinstance(row, list) else 0
        if count != len(names):
            raise ValueError(
                f"{name} row {number}: expected {len(names)} cells ({', '.join(names)}), "
                f"got {count}"
            )
    if "structure" not in names:
        raise ValueError(f"{name}: expected a column structure, got {', '.join(names)}")
    labels = content.get("index")
    if labels is not None and len(labels) != len(table):
        raise ValueError(f"{name}: index holds {len(labels)} ids, data holds {len(table)} rows")
    for number, row in enumerate(table):
        cells = dict(zip(names, row, strict=True))
        structure = cells.pop("structure")
        if labels is not None:
            cells.setdefault("id", labels[number])
        yield Frame("", "pymatgen", structure, cells)
