"""Where crystals and their properties come from: folders, tables, and lists of others.

A source is read record by record; a record knows where it stands and how to make its crystal, so
that a structure that cannot be used is named and the rest goes on.
"""

from __future__ import annotations

import csv
import gzip
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet

from sitenet.crystal import CifError, Crystal, read_cif
from sitenet.elements import NUMBERS

CIF_SUFFIXES = (".cif", ".mcif", ".cif.gz", ".mcif.gz")
ID_COLUMNS = ("id", "file", "material_id", "mpid", "jid", "name", "index")
SPLIT_COLUMNS = ("split", "matbench_fold")
# What a column's name ends with -> its unit.
UNITS = {
    "eV_per_atom": "eV/atom",
    "eV/atom": "eV/atom",
    "eV": "eV",
    "GPa": "GPa",
    "K": "K",
    "A3": "Å³",
    "A": "Å",
    "bandgap": "eV",
    "gap pbe": "eV",
    "e_form": "eV/atom",
}


@dataclass(frozen=True)
class Record:
    """One row of a source.

    Attributes:
        id: what it is called in results.
        where: file and row, for messages.
        kind: what ``content`` is: "file", "cif", "pymatgen", "jarvis" or "crystal".
        content: a path, CIF text, a dict, or a Crystal.
        targets: one number a target, NaN where missing.
        split: the value of the source's split column, or "".
    """

    id: str
    where: str
    kind: str
    content: Any
    targets: tuple[float, ...] = ()
    split: str = ""

    def crystal(self, disorder: str = "error") -> Crystal:
        """The structure, as it stands in the source.

        Raises:
            ValueError: it cannot be used (CifError where it is a CIF), with the reason.
        """
        match self.kind:
            case "file":
                crystal = read_cif(Path(self.content), disorder)
            case "cif":
                try:
                    crystal = read_cif(_text(self.content), disorder)
                except CifError as error:
                    raise CifError(self.where, error.block, error.reason) from None
            case "pymatgen" | "jarvis":
                make = _from_pymatgen_dict if self.kind == "pymatgen" else _from_jarvis_dict
                try:
                    crystal = make(self.content, disorder)
                except (KeyError, TypeError, IndexError, AttributeError) as error:
                    raise ValueError(f"no {self.kind} structure: {error!r}") from None
            case _:
                crystal = self.content
        return crystal


def _text(content: Any) -> str:
    if not isinstance(content, str) or not content.strip():
        raise CifError("", None, f"expected CIF text, got {content!r}")
    return content if "\n" in content else content + "\n"


class Source:
    """A table of crystals: iterate over it to get its records.

    Attributes:
        path: what it was opened from.
        targets: names of the properties its records carry.
        units: their units, "" where the name does not say.
    """

    def __init__(self, path: Path, records: Sequence[Record] | Any, targets: Sequence[str]) -> None:
        self.path = path
        self.targets = tuple(targets)
        self.units = tuple(map(unit_of, targets))
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)


def unit_of(name: str) -> str:
    """The unit that the name of a column ends with, or ""."""
    for ending, unit in UNITS.items():
        if name == ending or name.endswith(("_" + ending, " " + ending)):
            return unit
    return ""


def open_source(
    path: str | Path, targets: Sequence[str] | None = None, split_column: str | None = None
) -> Source:
    """Open a table of crystals.

    Args:
        path: a folder of CIFs with a CSV (``id`` or ``file``, then a column a property; CGCNN's
            header-less ``id_prop.csv`` too) or without one; a CSV with a ``file`` or ``cif``
            column; a Parquet file with a ``cif`` column; a Matbench ``*.json.gz``; a JARVIS JSON
            list; or one CIF.
        targets: columns to predict; None takes the only numeric one, () none at all.
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
        return Source(path, [Record(_stem(path), str(path), "file", str(path))], ())
    if name.endswith(".csv"):
        return _open_csv(path, path.parent, targets, split_column)
    if name.endswith((".parquet", ".pq")):
        return _open_parquet(path, targets, split_column)
    if name.endswith((".json", ".json.gz")):
        return _open_json(path, targets)
    raise ValueError(
        f"{path} is no table of crystals: expected a folder, a CIF, *.csv, *.parquet, *.json.gz "
        "or *.json"
    )


def _stem(path: Path) -> str:
    for suffix in sorted(CIF_SUFFIXES, key=len, reverse=True):
        if path.name.lower().endswith(suffix):
            return path.name[: -len(suffix)]
    return path.stem


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
    return tuple(wanted)


# ---------------------------------------------------------------------------------------------
# Folders and CSV


def _open_folder(path: Path, targets: Sequence[str] | None, split_column: str | None) -> Source:
    tables = sorted(path.glob("*.csv"))
    named = [t for t in tables if t.name in ("targets.csv", "id_prop.csv")]
    if len(tables) > 1 and len(named) != 1:
        raise ValueError(
            f"{path} holds several CSV files, none or more than one of them called targets.csv or "
            f"id_prop.csv: {', '.join(t.name for t in tables)}; name the one you mean"
        )
    if tables:
        return _open_csv((named or tables)[0], path, targets, split_column)
    if targets:
        raise ValueError(f"{path} holds no CSV file with {', '.join(targets)}")
    files = [p for p in sorted(path.rglob("*")) if p.name.lower().endswith(CIF_SUFFIXES)]
    if not files:
        raise ValueError(f"{path} holds no CIF files")
    names = [str(p.relative_to(path).parent / _stem(p)) for p in files]
    records = [Record(n, str(p), "file", str(p)) for n, p in zip(names, files, strict=True)]
    return Source(path, records, ())


def _open_csv(
    path: Path, folder: Path, targets: Sequence[str] | None, split_column: str | None
) -> Source:
    with open(path, newline="", encoding="utf-8-sig") as file:
        rows = [row for row in csv.reader(file) if any(cell.strip() for cell in row)]
    if not rows:
        raise ValueError(f"{path} is empty")
    header = [cell.strip() for cell in rows[0]]
    first = 2
    if len(header) >= 2 and _number(header[1]) is not None:  # CGCNN: id, value
        header = ["id", *(f"target{k or ''}" for k in range(len(header) - 1))]
        first = 1
    else:
        rows = rows[1:]
    identity = next((c for c in ID_COLUMNS if c in header), None)
    if identity is None and "cif" not in header:
        raise ValueError(f"{path}: expected a column id, file or cif, got {', '.join(header)}")
    for k, row in enumerate(rows):
        if len(row) != len(header):
            raise ValueError(f"{path} row {k + first}: expected {len(header)} cells: {row}")
    split = _split_column(header, split_column, path)
    other = {identity, "cif", split} | set(ID_COLUMNS)
    columns = dict(zip(header, zip(*rows, strict=True), strict=True)) if rows else {}
    numeric = [c for c in header if c not in other and _is_numeric(columns.get(c, ()))]
    wanted = targets or ()
    numeric += [c for c in wanted if c in header and c not in numeric]
    names = _choose(numeric, targets, path)
    records = []
    for k, row in enumerate(rows):
        cells = dict(zip(header, row, strict=True))
        where = f"{path} row {k + first}"
        name = cells[identity].strip() if identity else str(k + first)
        values = tuple(_value(cells[c], c, where) for c in names)
        if "cif" in cells:
            kind, content = "cif", cells["cif"]
        else:
            kind, content = "file", str(_cif_of(folder, name))
            name = _stem(Path(name)) if identity == "file" else name
        records.append(Record(name, where, kind, content, values, cells.get(split, "").strip()))
    return Source(path, records, names)


def _cif_of(folder: Path, name: str) -> Path:
    """The file that a row names, with or without its ending."""
    path = folder / name
    if path.name.lower().endswith(CIF_SUFFIXES):
        return path
    ends = [path.with_name(path.name + suffix) for suffix in CIF_SUFFIXES]
    return next((p for p in ends if p.exists()), ends[0])


def _split_column(header: Sequence[str], wanted: str | None, path: Path) -> str:
    if wanted is None:
        return next((c for c in SPLIT_COLUMNS if c in header), "")
    if wanted not in header:
        raise ValueError(f"{path}: no column {wanted!r}; there is {', '.join(header)}")
    return wanted


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None


def _is_numeric(cells: Sequence[str]) -> bool:
    values = [cell for cell in cells if cell.strip()]
    return bool(values) and all(_number(cell) is not None for cell in values)


def _value(cell: Any, column: str, where: str) -> float:
    """A target's value; an empty cell is a missing one."""
    if cell is None or (isinstance(cell, str) and not cell.strip()):
        return math.nan
    if isinstance(cell, bool):
        return float(cell)
    try:
        value = float(cell)
    except (TypeError, ValueError):
        raise ValueError(f"{where}: expected a number for {column}, got {cell!r}") from None
    return value if math.isfinite(value) else math.nan


# ---------------------------------------------------------------------------------------------
# Parquet


class _ParquetRecords:
    """Rows of a Parquet file, a part of them in memory at a time."""

    def __init__(self, path: Path, identity: str | None, targets: Sequence[str], split: str):
        self.path, self.identity, self.targets, self.split = path, identity, targets, split

    def __len__(self) -> int:
        return parquet.read_metadata(self.path).num_rows

    def __iter__(self) -> Iterator[Record]:
        columns = list(dict.fromkeys(["cif", *self.targets]))
        columns += [c for c in (self.identity, self.split) if c]
        row = 0
        with parquet.ParquetFile(self.path) as file:
            for batch in file.iter_batches(1000, columns=columns):
                for values in batch.to_pylist():
                    row += 1
                    where = f"{self.path} row {row}"
                    split = values[self.split] if self.split else None
                    yield Record(
                        str(values[self.identity]) if self.identity else str(row),
                        where,
                        "cif",
                        values["cif"],
                        tuple(_value(values[c], c, where) for c in self.targets),
                        "" if split is None else str(split),
                    )


def _open_parquet(path: Path, targets: Sequence[str] | None, split_column: str | None) -> Source:
    try:
        schema = parquet.read_schema(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged or no Parquet file: {error}") from None
    if "cif" not in schema.names:
        raise ValueError(f"{path}: expected a column cif, got {', '.join(schema.names)}")
    identity = next((c for c in ID_COLUMNS if c in schema.names), None)
    split = _split_column(schema.names, split_column, path)
    kinds = {f.name: str(f.type) for f in schema}
    numeric = [
        c
        for c, kind in kinds.items()
        if kind.startswith(("float", "double", "int", "uint", "bool", "decimal"))
        and c not in (identity, split, "__index_level_0__")
    ]
    names = _choose(numeric, targets, path)
    return Source(path, _ParquetRecords(path, identity, names, split), names)


# ---------------------------------------------------------------------------------------------
# JSON of Matbench and of JARVIS


def _open_json(path: Path, targets: Sequence[str] | None) -> Source:
    try:
        opened = gzip.open if path.name.lower().endswith(".gz") else open
        with opened(path, "rt", encoding="utf-8") as file:
            content = json.load(file)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is damaged or no JSON file: {error}") from None
    if isinstance(content, dict) and {"columns", "data"} <= set(content):
        return _open_matbench(path, content, targets)
    if isinstance(content, list) and content and isinstance(content[0], dict):
        return _open_jarvis(path, content, targets)
    raise ValueError(
        f"{path}: expected a Matbench table (columns, index, data) or a JARVIS list of dicts"
    )


def _open_matbench(path: Path, content: dict, targets: Sequence[str] | None) -> Source:
    columns = content["columns"]
    if "structure" not in columns:
        raise ValueError(f"{path}: expected a column structure, got {', '.join(columns)}")
    numeric = [c for c in columns if c != "structure"]
    names = _choose(numeric, targets, path)
    structure = columns.index("structure")
    places = [columns.index(c) for c in names]
    index = content.get("index") or list(range(len(content["data"])))
    records = []
    for k, (name, row) in enumerate(zip(index, content["data"], strict=True)):
        where = f"{path} row {k}"
        values = tuple(_value(row[p], c, where) for p, c in zip(places, names, strict=True))
        records.append(Record(str(name), where, "pymatgen", row[structure], values))
    return Source(path, records, names)


def _open_jarvis(path: Path, content: list, targets: Sequence[str] | None) -> Source:
    first = content[0]
    if "atoms" not in first:
        raise ValueError(f"{path}: expected dicts with atoms, got {', '.join(first)}")
    numeric = [k for k, v in first.items() if isinstance(v, (int, float)) or v == "na" or v is None]
    names = _choose(numeric, targets, path)
    records = []
    for k, row in enumerate(content):
        where = f"{path} row {k}"
        missing = ("na", "")
        values = tuple(
            _value(None if row.get(c) in missing else row.get(c), c, where) for c in names
        )
        records.append(Record(str(row.get("jid", k)), where, "jarvis", row["atoms"], values))
    return Source(path, records, names)


def _from_pymatgen_dict(content: dict, disorder: str) -> Crystal:
    """A crystal from the dict of a pymatgen Structure, without pymatgen."""
    numbers, frac, oxidation, occupancy = [], [], [], []
    for k, site in enumerate(content["sites"]):
        for species in site["species"]:
            element = str(species["element"])
            if element not in NUMBERS:
                raise ValueError(f"site {k}: unknown element {element!r}")
            numbers.append(NUMBERS[element])
            frac.append(site["abc"])
            oxidation.append(species.get("oxidation_state") or 0.0)
            occupancy.append(species.get("occu", 1.0))
    partial = any(o < 1 for o in occupancy)
    if partial and disorder == "error":
        raise ValueError('partial occupancy; disorder="average" averages over it')
    return Crystal(
        content["lattice"]["matrix"],
        frac,
        np.array(numbers),
        np.array(oxidation) if any(oxidation) else None,
        np.array(occupancy) if partial else None,
    )


def _from_jarvis_dict(content: dict, disorder: str) -> Crystal:
    """A crystal from the dict of a JARVIS Atoms, which are ordered, without jarvis-tools."""
    cell = np.array(content["lattice_mat"], dtype=np.float64)
    coords = np.array(content["coords"], dtype=np.float64)
    if content.get("cartesian"):
        coords = coords @ np.linalg.inv(cell)
    unknown = [e for e in content["elements"] if e.strip() not in NUMBERS]
    if unknown:
        raise ValueError(f"unknown element {unknown[0]!r}")
    return Crystal(cell, coords, np.array([NUMBERS[e.strip()] for e in content["elements"]]))
