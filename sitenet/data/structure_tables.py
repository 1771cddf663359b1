"""Tables that hold their structures: Parquet with CIF texts, and files of many structures with
values beside them: extended XYZ, ASE databases, JSON and zip archives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sitenet.data.columns import (
    Columns,
    choose_targets,
    column_called,
    is_numeric,
    may_be_target,
)
from sitenet.data.failures import printable
from sitenet.data.frames import Frame, frames, is_ase_json, json_frames, load_json
from sitenet.data.source import Record, Source
from sitenet.data.structure_names import form_of, without_suffix

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
# Files of many structures

SAMPLE = 1000  # values of a column that tell whether it holds numbers
_CONTENTS = ("structure", "atoms")  # columns of JSON tables that hold no property


class _FrameRecords:
    """The structures of a file as records, read as they are iterated over.

    Args:
        path: the file.
        read: starts to read its frames.
        name: what the ids of structures begin with.

    Attributes:
        columns: the columns of the file and their first values.
        meaning: what the columns mean, once it is known.
    """

    def __init__(self, path: Path, read: Callable[[], Iterator[Frame]], name: str) -> None:
        self.path, self.files, self.name, self._read = path, [path], name, read
        self.columns: dict[str, list[Any]] = {}
        self.meaning: Columns | None = None
        self._count = 0
        for frame in read():
            self._count += 1
            for column, value in frame.cells.items():
                values = self.columns.setdefault(column, [])
                if len(values) < SAMPLE:
                    values.append(value)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Record]:
        meaning = self.meaning or Columns(self.path, list(self.columns), "", (), None)
        for row, frame in enumerate(self._read(), 1):
            record = meaning.record(row, frame.cells, frame.content)
            if frame.kind == "member":
                record = replace(record, id=self._of_archive(frame.name), several=True)
            elif frame.name:
                record = replace(record, id=self._of_archive(frame.name))
            elif meaning.identity is None or frame.cells.get(meaning.identity) is None:
                record = replace(record, id=self.name if self._count == 1 else f"{self.name}/{row}")
            yield replace(record, kind=frame.kind)

    def _of_archive(self, name: str) -> str:
        name = without_suffix(name)
        return f"{self.name}/{name}" if self.name else name


def frame_records(path: Path, name: str, data: bytes | None = None) -> _FrameRecords:
    """The structures of a file as records.

    Args:
        path: the file.
        name: what the ids of structures without one begin with.
        data: the content of the file, which is not read then.
    """
    content = path if data is None else data
    read: Callable[[], Iterator[Frame]] = lambda: frames(path.name, content)  # noqa: E731
    if form_of(path.name) == "json":
        parsed = load_json(str(path), content)
        if not is_ase_json(parsed):  # which is read from the disk again
            entries = list(json_frames(str(path), parsed))
            read = lambda: iter(entries)  # noqa: E731
    return _FrameRecords(path, read, printable(name))


def open_frames(path: Path, targets: Sequence[str] | None, split_column: str | None) -> Source:
    """A file of structures with values beside them; arguments as in ``open_source``."""
    archive = form_of(path.name) == "zip"
    records = frame_records(path, "" if archive else without_suffix(path.name))
    columns = records.columns
    if not len(records):
        raise ValueError(f"{path} holds no structure")
    available = [
        name
        for name, values in columns.items()
        if name not in (*_CONTENTS, split_column)
        and may_be_target(name)
        and (name in (targets or ()) or is_numeric(values))
    ]
    names = choose_targets(available, targets, path)
    records.meaning = Columns(path, list(columns), "", names, split_column)
    return Source(path, records, names)
