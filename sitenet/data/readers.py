"""Open tables of crystals: folders, files and tables of any of the accepted forms."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sitenet.data.archives import list_files
from sitenet.data.columns import (
    ID_COLUMNS,
    Columns,
    choose_targets,
    column_called,
    identity_of,
    is_index,
    is_numeric,
    may_be_target,
    number,
)
from sitenet.data.failures import printable
from sitenet.data.prepared import is_prepared, load_dataset
from sitenet.data.source import Parts, Record, Source
from sitenet.data.structure_names import ACCEPTED, StructureFolder, form_of, without_suffix
from sitenet.data.structure_tables import frame_records, open_frames, open_parquet
from sitenet.data.text_table import TextTable, read_text_table

_TABLES = (".csv", ".tsv")
_LEFT_OUT = ".left_out.csv"  # what the names of our lists of unusable structures end with


def open_source(
    path: str | Path, targets: Sequence[str] | None = None, split_column: str | None = None
) -> Source:
    """Open a table of crystals.

    Args:
        path: a folder of structure files with a CSV (``id`` or ``file``, then one column per
            property; CGCNN's header-less ``id_prop.csv`` too) or without one; a CSV with a ``file``
            or ``cif`` column; a Parquet file with a ``cif`` column; a Matbench ``*.json.gz``; a
            JARVIS JSON list; a JSON file of pymatgen or OPTIMADE, an extended XYZ file or an ASE
            database, with values beside the structures; a zip archive of structure files, with or
            without a CSV; a file of ``sitenet prepare``; or one CIF or POSCAR. Names and endings
            may be in any case; CSVs may be separated by semicolons or tabs, with decimal commas.
            Without a table, every structure of a file is a row; a table's row names a block as
            ``file#block``.
        targets: columns to predict; None takes the only numeric one, () none at all, and from a
            folder all structure files, whatever its CSV says.
        split_column: column that says which split or fold a row is in; None takes ``split`` or
            ``matbench_fold`` where there is one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is none of these, or its targets are not clear; names what there is.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder: {path}")
    name = path.name.lower()
    if path.is_dir():
        return _open_folder(path, targets, split_column)
    if name.endswith((*_TABLES, ".csv.gz")):
        return _open_csv(path, path.parent, targets, split_column)
    if is_prepared(path):
        return _open_prepared(path, targets)
    if name.endswith((".parquet", ".pq")):
        return open_parquet(path, targets, split_column)
    match form_of(name):
        case "cif" | "vasp":
            return _open_files(path, [path], targets)
        case "zip":
            return _open_archive(path, targets, split_column)
        case None:
            raise ValueError(
                f"{path} is not a table of crystals: expected a folder, a {ACCEPTED}, *.csv, "
                "*.parquet or *.json.gz"
            )
    return open_frames(path, targets, split_column)


def _open_prepared(path: Path, targets: Sequence[str] | None) -> Source:
    """A file written by ``sitenet prepare`` as a source of its crystals."""
    data = load_dataset(path).with_targets(targets)
    columns = data.ids, data.crystals, data.targets.tolist(), data.split
    records = [
        Record(name, printable(f"{path} {name}"), "crystal", crystal, tuple(values), split)
        for name, crystal, values, split in zip(*columns, strict=True)
    ]
    return Source(path, records, data.names, data.units)


def _open_folder(path: Path, targets: Sequence[str] | None, split_column: str | None) -> Source:
    tables = [p for p in sorted(path.iterdir()) if _is_table(p)]
    files = [p for p in sorted(path.rglob("*")) if _is_structure(p)]
    if not tables or (targets is not None and not targets and files):
        if not files:
            raise ValueError(f"{path} holds no structure files: expected a {ACCEPTED}")
        return _open_files(path, files, targets)
    return _open_csv(_only_table(path, tables), path, targets, split_column)


def _open_archive(path: Path, targets: Sequence[str] | None, split_column: str | None) -> Source:
    """An archive, with or without a table in its uppermost folder that has one."""
    tables = [p for p in list_files(path) if _is_table(p) and "__MACOSX" not in p.parts]
    if not tables or (targets is not None and not targets):
        return open_frames(path, targets, split_column)
    depth = min(len(p.parts) for p in tables)
    table = _only_table(path, [p for p in tables if len(p.parts) == depth])
    source = _open_csv(table, table.parent, targets, split_column)
    return Source(path, list(source), source.targets, source.units)


def _only_table(path: Path, tables: Sequence[Path]) -> Path:
    """The table of a folder or an archive that has one or more."""
    named = [t for t in tables if t.name.lower() in ("targets.csv", "id_prop.csv")]
    if len(tables) > 1 and len(named) != 1:
        raise ValueError(
            f"{path} holds several CSV files, none or more than one of them called targets.csv or "
            f"id_prop.csv: {', '.join(t.name for t in tables)}; name the one you mean"
        )
    return (named or tables)[0]


def _is_table(path: Path) -> bool:
    name = path.name.lower()
    ours = name == _LEFT_OUT[1:] or name.endswith(_LEFT_OUT)
    return name.endswith(_TABLES) and not ours and not name.startswith(".")


def _is_structure(path: Path) -> bool:
    """Whether a file of a folder is a structure file: by its name, and JSON by its content too."""
    form = form_of(path.name)
    if form is None or not path.is_file():
        return False
    if form != "json":
        return True
    opened: Any = gzip.open if path.name.lower().endswith(".gz") else open
    try:
        with opened(path, "rb") as file:
            start = file.read(_START)
    except (OSError, EOFError, zlib.error):
        return True  # to be reported
    return b'"lattice' in start or b'"numbers' in start


_START = 1 << 20  # bytes of a JSON file that tell whether it holds structures


def _open_files(path: Path, files: Sequence[Path], targets: Sequence[str] | None) -> Source:
    """Structure files without a table."""
    if targets or targets is None:
        wanted = f" with {', '.join(targets)}" if targets else ""
        raise ValueError(
            f"{path}: to learn from structure files needs a CSV file{wanted} beside them"
        )
    folder = path if path.is_dir() else path.parent
    return Source(path, Parts([_records(file, folder) for file in files], files), ())


def _records(file: Path, folder: Path) -> Any:
    """The records of a file in a folder; of one that cannot be opened, a record that says why."""
    name, where = without_suffix(str(file.relative_to(folder))), printable(str(file))
    if form_of(file.name) in ("cif", "vasp"):
        return [Record(printable(name), where, "file", str(file), several=True)]
    try:
        return frame_records(file, name)
    except (ValueError, OSError, ImportError) as error:
        return [Record(printable(name), where, "error", error)]


def _open_csv(
    path: Path, folder: Path, targets: Sequence[str] | None, split_column: str | None
) -> Source:
    files = StructureFolder(folder)

    def is_header(cells: Sequence[str]) -> bool:
        """Whether a first row names columns, rather than a CIF and its value as in CGCNN."""
        if len(cells) < 2 or not cells[1] or number(cells[1]) is None:
            return True
        if column_called(cells, "cif", *ID_COLUMNS) or is_index(cells[0]):
            return True
        return path.name.lower() != "id_prop.csv" and not files.holds(cells[0])

    table = read_text_table(path, is_header)
    header = table.header
    content = column_called(header, "cif", "file", *ID_COLUMNS) or identity_of(header)
    if content is None:
        raise ValueError(f"{path}: expected a column id, file or cif, got {', '.join(header)}")
    available = [
        name
        for name in header
        if may_be_target(name)
        and name not in (content, split_column)
        and (name in (targets or ()) or _holds_numbers(table, name))
    ]
    names = choose_targets(available, targets, path)
    kind = "cif" if content.lower() == "cif" else "file"
    meaning = Columns(path, header, kind, names, split_column)
    values = {name: table.column(name) for name in names}
    records = []
    for k, (row, texts) in enumerate(table.rows):
        cells = dict(zip(header, texts, strict=True)) | {n: values[n][k] for n in names}
        structure, block = cells[content], ""
        if kind == "file":
            structure = structure.strip()
            if structure:
                file, block = files.find(structure)
                structure = str(file)
        if meaning.identity and meaning.identity.lower() == "file":
            cells[meaning.identity] = without_suffix(cells[meaning.identity].strip())
        records.append(meaning.record(row, cells, structure, block))
    return Source(path, records, names)


def _holds_numbers(table: TextTable, name: str) -> bool:
    try:
        return is_numeric(table.column(name))
    except ValueError:  # with unclear commas, to be reported if the column is chosen
        return True
