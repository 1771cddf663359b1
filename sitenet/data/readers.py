"""Where crystals and their properties come from: folders, tables, and lists of others."""

from __future__ import annotations

import csv
import gzip
import json
import math
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from sitenet.data.prepared import is_prepared, load_dataset
from sitenet.data.source import Record, Source

CIF_SUFFIXES = (".cif.gz", ".mcif.gz", ".cif", ".mcif")
ID_COLUMNS = ("id", "file", "material_id", "mpid", "jid", "name", "index")
SPLIT_COLUMNS = ("split", "matbench_fold")
MISSING = ("", "na", "n/a", "nan", "none", "null")  # cells without a value, in any case
LEFT_OUT = ".left_out.csv"  # what the names of our lists of unusable structures end with


def open_source(
    path: str | Path, targets: Sequence[str] | None = None, split_column: str | None = None
) -> Source:
    """Open a table of crystals.

    Args:
        path: a folder of CIFs with a CSV (``id`` or ``file``, then a column a property; CGCNN's
            header-less ``id_prop.csv`` too) or without one; a CSV with a ``file`` or ``cif``
            column; a Parquet file with a ``cif`` column; a Matbench ``*.json.gz``; a JARVIS JSON
            list; or one CIF. Of a CIF with several structures the first is taken.
        targets: columns to predict; None takes the only numeric one, () none at all, and of a
            folder all CIFs, whatever its CSV says.
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
    if name.endswith(CIF_SUFFIXES):
        return _open_files(path, [path], targets)
    if name.endswith(".csv"):
        return _open_csv(path, path.parent, targets, split_column)
    if is_prepared(path):
        return _open_prepared(path, targets)
    if name.endswith((".parquet", ".pq")):
        return _open_parquet(path, targets, split_column)
    if name.endswith((".json", ".json.gz")):
        return _open_json(path, targets, split_column)
    raise ValueError(
        f"{path} is no table of crystals: expected a folder, a CIF, *.csv, *.parquet, *.json.gz "
        "or *.json"
    )


def _open_prepared(path: Path, targets: Sequence[str] | None) -> Source:
    """A file written by ``sitenet prepare`` as a source of its crystals."""
    data = load_dataset(path).with_targets(targets)
    columns = data.ids, data.crystals, data.targets.tolist(), data.split
    records = [
        Record(name, f"{path} {name}", "crystal", crystal, tuple(values), split)
        for name, crystal, values, split in zip(*columns, strict=True)
    ]
    return Source(path, records, data.names)


def _choose(
    available: Sequence[str], wanted: Sequence[str] | None, where: Path | str
) -> tuple[str, ...]:
    """The targets asked for, or the only one there is."""
    if wanted is None:
        if len(available) == 1:
            return tuple(available)
        found = ", ".join(available) or "no numeric column"
        raise ValueError(f"{where}: say which target to learn; there is {found}")
    missing = [name for name in wanted if name not in available]
    if missing:
        raise ValueError(
            f"{where}: no target {', '.join(missing)}; there is {', '.join(available) or 'none'}"
        )
    return tuple(dict.fromkeys(wanted))


class _Columns:
    """What the columns of a table mean, and so what record a row makes.

    Args:
        path: of the table.
        names: of all columns.
        kind: of the records.
        targets: the columns to predict.
        split: the column that says which split or fold a row is in; None takes a usual one.
    """

    def __init__(
        self,
        path: Path,
        names: Sequence[str],
        kind: str,
        targets: Sequence[str],
        split: str | None,
    ) -> None:
        if split is not None and split not in names:
            raise ValueError(f"{path}: no column {split!r}; there is {', '.join(names)}")
        self.path, self.kind, self.targets = path, kind, targets
        self.identity = next((c for c in ID_COLUMNS if c in names), None)
        self.split = split or next((c for c in SPLIT_COLUMNS if c in names), None)

    def record(self, row: int, cells: Mapping[str, Any], content: Any) -> Record:
        """The record of a row with this structure."""
        where = f"{self.path} row {row}"
        name = cells.get(self.identity) if self.identity else None
        split = cells.get(self.split) if self.split else None
        return Record(
            str(row) if name is None else str(name).strip(),
            where,
            self.kind,
            content,
            tuple(_value(cells.get(c), c, where) for c in self.targets),
            "" if split is None else str(split).strip(),
        )


def _number(cell: Any) -> float | None:
    """The number in a cell, NaN if it is empty; None if it holds something else."""
    if isinstance(cell, str):
        cell = cell.strip().lower()
        cell = {"true": 1, "false": 0}.get(cell, math.nan if cell in MISSING else cell)
    try:
        return math.nan if cell is None else float(cell)
    except (TypeError, ValueError):
        return None


def _value(cell: Any, column: str, where: str) -> float:
    """A target's value, NaN where it is missing."""
    value = _number(cell)
    if value is None or math.isinf(value):
        raise ValueError(f"{where}: expected a number for {column}, got {cell!r}")
    return value


def _is_numeric(cells: Sequence[Any]) -> bool:
    """Whether a column holds numbers; a few wrong cells are an error to be named later."""
    values = [_number(cell) for cell in cells]
    numbers = sum(x is not None and not math.isnan(x) for x in values)
    return numbers > values.count(None)


def _may_be_target(name: str) -> bool:
    return name not in ID_COLUMNS and name not in SPLIT_COLUMNS


# ---------------------------------------------------------------------------------------------
# Folders and CSV


def _open_folder(path: Path, targets: Sequence[str] | None, split_column: str | None) -> Source:
    tables = [p for p in sorted(path.glob("*.csv")) if not p.name.endswith(LEFT_OUT)]
    files = [p for p in sorted(path.rglob("*")) if _is_cif(p)]
    if not tables or (targets is not None and not targets and files):
        if not files:
            raise ValueError(f"{path} holds no CIF files")
        return _open_files(path, files, targets)
    named = [t for t in tables if t.name in ("targets.csv", "id_prop.csv")]
    if len(tables) > 1 and len(named) != 1:
        raise ValueError(
            f"{path} holds several CSV files, none or more than one of them called targets.csv or "
            f"id_prop.csv: {', '.join(t.name for t in tables)}; name the one you mean"
        )
    return _open_csv((named or tables)[0], path, targets, split_column)


def _is_cif(path: Path) -> bool:
    return path.name.lower().endswith(CIF_SUFFIXES) and not path.name.startswith(".")


def _open_files(path: Path, files: Sequence[Path], targets: Sequence[str] | None) -> Source:
    """CIFs without a table."""
    if targets or targets is None:
        wanted = f" with {', '.join(targets)}" if targets else ""
        raise ValueError(f"{path}: to learn from CIFs needs a CSV file{wanted} beside them")
    folder = path if path.is_dir() else path.parent
    records = [
        Record(_without_suffix(str(f.relative_to(folder))), str(f), "file", str(f)) for f in files
    ]
    return Source(path, records, ())


def _without_suffix(name: str) -> str:
    suffix = next((s for s in CIF_SUFFIXES if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)]


def _open_csv(
    path: Path, folder: Path, targets: Sequence[str] | None, split_column: str | None
) -> Source:
    header, rows = _read_csv(path)
    content = next((c for c in ("cif", "file", *ID_COLUMNS) if c in header), None)
    if content is None:
        raise ValueError(f"{path}: expected a column id, file or cif, got {', '.join(header)}")
    columns = dict(zip(header, zip(*(row for _, row in rows), strict=True), strict=False))
    available = [
        c
        for c in header
        if _may_be_target(c)
        and c not in ("cif", split_column)
        and (c in (targets or ()) or _is_numeric(columns.get(c, ())))
    ]
    names = _choose(available, targets, path)
    kind = "cif" if content == "cif" else "file"
    meaning = _Columns(path, header, kind, names, split_column)
    records = []
    for number, row in rows:
        cells = dict(zip(header, row, strict=True))
        structure = cells[content]
        if kind == "file":
            structure = str(_cif_of(folder, structure.strip()))
        if meaning.identity == "file":
            cells["file"] = _without_suffix(cells["file"].strip())
        records.append(meaning.record(number, cells, structure))
    return Source(path, records, names)


def _read_csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of the columns, and the rows with their numbers, counted from 1."""
    limit = csv.field_size_limit(sys.maxsize)  # of a CIF in a cell
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows = [
                (k, row) for k, row in enumerate(csv.reader(file), 1) if any(map(str.strip, row))
            ]
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or no CSV file: {error}") from None
    finally:
        csv.field_size_limit(limit)
    if not rows:
        raise ValueError(f"{path} is empty")
    header = [cell.strip() for cell in rows[0][1]]
    if len(header) >= 2 and _number(header[1]) is not None:  # CGCNN's: name, value
        header = ["id", *(f"target{k or ''}" for k in range(len(header) - 1))]
    else:
        rows = rows[1:]
    if len(set(header)) < len(header):
        raise ValueError(f"{path}: two columns have one name: {', '.join(header)}")
    for number, row in rows:
        if len(row) != len(header):
            raise ValueError(f"{path} row {number}: expected {len(header)} cells, got {len(row)}")
    return header, rows


def _cif_of(folder: Path, name: str) -> Path:
    """The file that a row names, with or without its ending."""
    path = folder / name
    if path.name.lower().endswith(CIF_SUFFIXES):
        return path
    ends = [path.with_name(path.name + suffix) for suffix in CIF_SUFFIXES]
    return next((p for p in ends if p.exists()), path.with_name(path.name + ".cif"))


# ---------------------------------------------------------------------------------------------
# Parquet


class _ParquetRecords:
    """Rows of a Parquet file, a part of them in memory at a time."""

    def __init__(self, path: Path, meaning: _Columns) -> None:
        self.path, self.meaning = path, meaning

    def __len__(self) -> int:
        return parquet.read_metadata(self.path).num_rows

    def __iter__(self) -> Iterator[Record]:
        meaning = self.meaning
        columns = dict.fromkeys(("cif", meaning.identity, meaning.split, *meaning.targets))
        row = 0
        try:
            with parquet.ParquetFile(self.path) as file:
                for batch in file.iter_batches(1000, columns=[c for c in columns if c]):
                    for cells in batch.to_pylist():
                        row += 1
                        yield meaning.record(row, cells, cells["cif"])
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{self.path} is damaged after row {row}: {error}") from None


def _open_parquet(path: Path, targets: Sequence[str] | None, split_column: str | None) -> Source:
    try:
        schema = parquet.read_schema(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged or no Parquet file: {error}") from None
    if "cif" not in schema.names:
        raise ValueError(f"{path}: expected a column cif, got {', '.join(schema.names)}")
    kinds = ("float", "double", "halffloat", "int", "uint", "bool", "decimal")
    available = [
        field.name
        for field in schema
        if str(field.type).startswith(kinds)
        and _may_be_target(field.name)
        and field.name not in (split_column, "__index_level_0__")
    ]
    names = _choose(available, targets, path)
    meaning = _Columns(path, schema.names, "cif", names, split_column)
    return Source(path, _ParquetRecords(path, meaning), names)


# ---------------------------------------------------------------------------------------------
# JSON of Matbench and of JARVIS


def _open_json(path: Path, targets: Sequence[str] | None, split_column: str | None) -> Source:
    try:
        opened = gzip.open if path.name.lower().endswith(".gz") else open
        with opened(path, "rt", encoding="utf-8") as file:
            content = json.load(file, object_hook=_packed)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path} is damaged or no JSON file: {error}") from None
    if isinstance(content, dict) and {"columns", "data"} <= set(content):
        rows = [dict(zip(content["columns"], row, strict=True)) for row in content["data"]]
        for name, row in zip(content.get("index", ()), rows, strict=False):
            row.setdefault("id", name)
        return _of_dicts(path, rows, "structure", "pymatgen", targets, split_column)
    if isinstance(content, list) and content and all(isinstance(row, dict) for row in content):
        return _of_dicts(path, content, "atoms", "jarvis", targets, split_column)
    raise ValueError(
        f"{path}: expected a Matbench table (columns, index, data) or a JARVIS list of dicts"
    )


def _packed(content: dict[str, Any]) -> Any:
    """A pymatgen Structure as text again, without what is not used: far less memory than dicts."""
    if "abc" in content and "species" in content:
        return {"species": content["species"], "abc": content["abc"]}
    if "sites" in content and "lattice" in content:
        return json.dumps({"lattice": content["lattice"], "sites": content["sites"]})
    return content


def _of_dicts(
    path: Path,
    rows: Sequence[dict[str, Any]],
    structure: str,
    kind: str,
    targets: Sequence[str] | None,
    split_column: str | None,
) -> Source:
    columns = dict.fromkeys(key for row in rows for key in row)
    if structure not in columns:
        raise ValueError(f"{path}: expected a column {structure}, got {', '.join(columns)}")
    available = [
        c
        for c in columns
        if c not in (structure, split_column)
        and _may_be_target(c)
        and (c in (targets or ()) or _is_numeric([row.get(c) for row in rows[:1000]]))
    ]
    names = _choose(available, targets, path)
    meaning = _Columns(path, list(columns), kind, names, split_column)
    records = [meaning.record(k, row, row.get(structure)) for k, row in enumerate(rows, 1)]
    return Source(path, records, names)
