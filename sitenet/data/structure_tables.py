"""Tables that hold their structures: Parquet with CIF texts, JSON of Matbench and of JARVIS."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sitenet.data.columns import (
    Columns,
    choose_targets,
    column_called,
    is_numeric,
    may_be_target,
)
from sitenet.data.source import Record, Source

# ---------------------------------------------------------------------------------------------
# Parquet


class _ParquetRecords:
    """Rows of a Parquet file, read a part at a time."""

    def __init__(self, path: Path, meaning: Columns, content: str) -> None:
        self.path, self.meaning, self.content = path, meaning, content

    def __len__(self) -> int:
        from pyarrow import parquet

        return parquet.read_metadata(self.path).num_rows

    def __iter__(self) -> Iterator[Record]:
        import pyarrow as pa
        from pyarrow import parquet

        meaning = self.meaning
        columns = dict.fromkeys((self.content, meaning.identity, meaning.split, *meaning.targets))
        row = 0
        try:
            with parquet.ParquetFile(self.path) as file:
                for batch in file.iter_batches(1000, columns=[c for c in columns if c]):
                    for cells in batch.to_pylist():
                        row += 1
                        yield meaning.record(row, cells, cells[self.content])
        except (OSError, pa.ArrowException) as error:
            raise ValueError(f"{self.path} is damaged after row {row}: {error}") from None


def open_parquet(path: Path, targets: Sequence[str] | None, split_column: str | None) -> Source:
    """A Parquet file with a column ``cif`` of texts; arguments as in ``open_source``."""
    from pyarrow import parquet

    try:
        schema = parquet.read_schema(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged or not a Parquet file: {error}") from None
    content = column_called(schema.names, "cif")
    if content is None:
        raise ValueError(f"{path}: expected a column cif, got {', '.join(schema.names)}")
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: two columns have one name: {', '.join(twice)}")
    kinds = ("float", "double", "halffloat", "int", "uint", "bool", "decimal")
    available = [
        field.name
        for field in schema
        if may_be_target(field.name)
        and field.name not in (content, split_column)
        and (field.name in (targets or ()) or str(field.type).startswith(kinds))
    ]
    names = choose_targets(available, targets, path)
    meaning = Columns(path, schema.names, "cif", names, split_column)
    return Source(path, _ParquetRecords(path, meaning, content), names)


# ---------------------------------------------------------------------------------------------
# JSON


def open_json(path: Path, targets: Sequence[str] | None, split_column: str | None) -> Source:
    """A Matbench table or a JARVIS list; arguments as in ``open_source``."""
    try:
        opened = gzip.open if path.name.lower().endswith(".gz") else open
        with opened(path, "rt", encoding="utf-8-sig") as file:
            content = json.load(file, object_hook=_packed)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ValueError(f"{path} is damaged or not a JSON file: {error}") from None
    if isinstance(content, dict) and {"columns", "data"} <= set(content):
        rows = _matbench_rows(path, content)
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


def _matbench_rows(path: Path, content: dict[str, Any]) -> list[dict[str, Any]]:
    names, table = content["columns"], content["data"]
    for number, row in enumerate(table, 1):
        count = len(row) if isinstance(row, list) else 0
        if count != len(names):
            raise ValueError(
                f"{path} row {number}: expected {len(names)} cells ({', '.join(names)}), "
                f"got {count}"
            )
    rows = [dict(zip(names, row, strict=True)) for row in table]
    labels = content.get("index")
    if labels is None:
        return rows
    if len(labels) != len(rows):
        raise ValueError(f"{path}: index holds {len(labels)} ids, data holds {len(rows)} rows")
    for label, row in zip(labels, rows, strict=True):
        row.setdefault("id", label)
    return rows


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
        name
        for name in columns
        if name not in (structure, split_column)
        and may_be_target(name)
        and (name in (targets or ()) or is_numeric([row.get(name) for row in rows[:1000]]))
    ]
    names = choose_targets(available, targets, path)
    meaning = Columns(path, list(columns), kind, names, split_column)
    records = [meaning.record(k, row, row.get(structure)) for k, row in enumerate(rows, 1)]
    return Source(path, records, names)
