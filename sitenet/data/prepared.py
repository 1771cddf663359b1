"""Prepared datasets: Parquet files with one row per crystal.

The metadata name the format, the source and the settings, and hold a hash of the content. pyarrow
is imported where a file is read or written: the prediction of a CIF saves the 50 ms that it takes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sitenet.crystal.crystal import Crystal
from sitenet.data.dataset import Dataset, LeftOut

if TYPE_CHECKING:
    import pyarrow as pa

FORMAT = 2

_COLUMNS = ("id", "cell", "frac", "numbers", "oxidation", "occupancy", "split")
_TARGET = "target:"  # prefix of the targets' columns
_WARNINGS = "warnings"  # absent from files of versions that kept none; one per line


def table_of(data: Dataset) -> pa.Table:
    """The crystals as rows, in the order of columns by which they are hashed."""
    import pyarrow as pa

    numbers = pa.large_list(pa.float64())
    kinds = {
        "id": pa.string(),
        "cell": pa.list_(pa.float64(), 9),
        "frac": numbers,
        "numbers": pa.large_list(pa.uint8()),
        "oxidation": numbers,
        "occupancy": numbers,
        "split": pa.string(),
    }

    def plain(values: np.ndarray | None) -> list | None:
        return None if values is None else values.ravel().tolist()

    columns = {
        "id": data.ids,
        "cell": [plain(c.cell) for c in data.crystals],
        "frac": [plain(c.frac) for c in data.crystals],
        "numbers": [plain(c.numbers) for c in data.crystals],
        "oxidation": [plain(c.oxidation) for c in data.crystals],
        "occupancy": [plain(c.occupancy) for c in data.crystals],
        "split": data.split,
    }
    arrays = {name: pa.array(values, kinds[name]) for name, values in columns.items()}
    for k, name in enumerate(data.names):
        arrays[_TARGET + name] = pa.array(data.targets[:, k])
    warnings = ["\n".join(c.warnings) for c in data.crystals]
    arrays[_WARNINGS] = pa.array(warnings, pa.string())
    return pa.table(arrays)


def _crystals(table: pa.Table) -> Iterator[Crystal]:
    for batch in table.to_batches():
        columns = {name: batch.column(name) for name in _COLUMNS}
        cells = columns["cell"].flatten().to_numpy().reshape(-1, 3, 3)
        has_warnings = _WARNINGS in batch.schema.names
        warnings = batch.column(_WARNINGS).to_pylist() if has_warnings else [""] * len(batch)
        for i in range(len(batch)):
            oxidation, occupancy = columns["oxidation"][i], columns["occupancy"][i]
            yield Crystal(
                cells[i],
                columns["frac"][i].values.to_numpy().reshape(-1, 3),
                columns["numbers"][i].values.to_numpy().astype(np.int64),
                oxidation.values.to_numpy() if oxidation.is_valid else None,
                occupancy.values.to_numpy() if occupancy.is_valid else None,
                columns["id"][i].as_py(),
                tuple(filter(None, warnings[i].split("\n"))),
            )


def content_hash(table: pa.Table) -> bytes:
    """A hash of the values, however they lie in memory and in files."""
    import pyarrow as pa
    from pyarrow import compute

    digest = hashlib.sha256()
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        digest.update(f"{name} {len(column)} ".encode())
        if pa.types.is_string(column.type):
            digest.update(json.dumps(column.to_pylist()).encode())
            continue
        if not pa.types.is_floating(column.type):  # lists
            digest.update(column.is_valid().to_numpy(zero_copy_only=False))
            if pa.types.is_large_list(column.type):
                digest.update(compute.list_value_length(column).fill_null(0).to_numpy())
            column = column.flatten()
        digest.update(np.ascontiguousarray(column.to_numpy()).data)
    return digest.digest()


def file_key(parts: list[bytes], facts: dict[str, Any]) -> str:
    """A hash of a dataset file: of its row groups and of what its metadata say."""
    settings = json.dumps({k: v for k, v in facts.items() if k != "key"}, sort_keys=True)
    return hashlib.sha256(b"".join(parts) + settings.encode()).hexdigest()


def is_prepared(path: str | Path) -> bool:
    """Whether a file is a dataset that ``prepare`` wrote."""
    path = Path(path)
    if not path.is_file() or path.suffix.lower() not in (".parquet", ".pq"):
        return False
    from pyarrow import parquet

    try:
        return b"sitenet" in (parquet.read_metadata(path).metadata or {})
    except (OSError, ValueError):
        return False


def read_whole(path: Path) -> tuple[dict[str, Any], pa.Table]:
    """The metadata of a dataset file and its rows, both checked.

    Raises:
        ValueError: the file is damaged or was altered, is not a dataset, or has another format.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            content = (file.metadata.metadata or {}).get(b"sitenet")
            if content is None:
                raise ValueError(f"{path} was not written by sitenet prepare")
            facts = json.loads(content)
            if facts["format"] != FORMAT:
                raise ValueError(
                    f"{path} has format {facts['format']}, this sitenet reads {FORMAT}: prepare it "
                    "again with sitenet prepare"
                )
            columns = _in_order(file.schema_arrow.names, facts["names"])
            groups = [file.read_row_group(k).select(columns) for k in range(file.num_row_groups)]
    except (OSError, pa.ArrowException, json.JSONDecodeError, KeyError) as error:
        raise ValueError(f"{path} is damaged or not a dataset: {error}") from None
    if facts.get("key") != file_key(list(map(content_hash, groups)), facts):
        raise ValueError(f"{path} was altered: its content does not match its checksum")
    return facts, pa.concat_tables(groups)


def _in_order(names: list[str], targets: list[str]) -> list[str]:
    """The columns of a file in the order of ``table_of``, whatever theirs is."""
    expected = [*_COLUMNS, *(_TARGET + name for name in targets)]
    expected += [_WARNINGS] * (_WARNINGS in names)
    if sorted(expected) != sorted(names):
        raise KeyError(f"expected the columns {', '.join(expected)}, got {', '.join(names)}")
    return expected


def count_without_value(path: str | Path) -> int:
    """Number of crystals of a dataset file that have a value of none of its targets, on which no
    model is trained; 0 if the file has no targets."""
    from pyarrow import parquet

    schema = parquet.read_schema(path)
    names = [name for name in schema.names if name.startswith(_TARGET)]
    if not names:
        return 0
    columns = parquet.read_table(path, columns=names).columns
    known = [np.isfinite(column.to_numpy()) for column in columns]
    return int((~np.any(known, axis=0)).sum())


def load_dataset(path: str | Path) -> Dataset:
    """Load a dataset that ``prepare`` wrote.

    Raises:
        ValueError: the file is damaged or was altered, is not a dataset, or has another format.
    """
    path = Path(path)
    facts, table = read_whole(path)
    columns = [table.column(_TARGET + name).to_numpy() for name in facts["names"]]
    return Dataset(
        table.column("id").to_pylist(),
        list(_crystals(table)),
        np.stack(columns, 1) if columns else np.empty((len(table), 0)),
        tuple(facts["names"]),
        tuple(facts["units"]),
        table.column("split").to_pylist(),
        [LeftOut(**x) for x in facts["left_out"]],
        facts["key"],
        path,
    )
