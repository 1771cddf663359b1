"""Crystals with ids and targets as arrays, read from a source."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sitenet.crystal.crystal import Crystal
from sitenet.data.failures import NO_VALUE, UnclearTarget
from sitenet.data.failures import LeftOut as LeftOut
from sitenet.data.failures import write_left_out as write_left_out
from sitenet.data.groups import element_groups, formula_groups, structure_groups
from sitenet.data.source import Record, Source
from sitenet.data.splits import Split as Split
from sitenet.data.splits import split as split
from sitenet.system.workers import default_workers, in_order


@dataclass(eq=False)
class Dataset:
    """Crystals in arrays.

    Attributes:
        ids: (crystals,) names.
        crystals: the structures.
        targets: (crystals, targets) float64, NaN where missing.
        names: of the targets.
        units: of the targets.
        split: (crystals,) value of the source's split column, "" where there is none.
        left_out: structures of the source that could not be used.
        key: hash of the content, for prepared datasets.
        path: the file it was loaded from, if any.
    """

    ids: list[str]
    crystals: list[Crystal]
    targets: np.ndarray
    names: tuple[str, ...]
    units: tuple[str, ...]
    split: list[str]
    left_out: list[LeftOut] = field(default_factory=list)
    key: str | None = None
    path: Path | None = None
    _groups: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, index: Sequence[int] | np.ndarray) -> Dataset:
        """Some of the crystals."""
        index = np.asarray(index, dtype=np.int64)
        pick = lambda values: [values[i] for i in index]  # noqa: E731
        return replace(
            self,
            ids=pick(self.ids),
            crystals=pick(self.crystals),
            targets=self.targets[index],
            split=pick(self.split),
            key=None,
            path=None,
            _groups={kind: _first_of_each(groups[index]) for kind, groups in self._groups.items()},
        )

    def with_targets(self, names: Sequence[str] | None) -> Dataset:
        """The same crystals with some of the targets; None takes the only one.

        Raises:
            ValueError: there is no such target, or there are several and none is named.
        """
        if names is None:
            if len(self.names) != 1:
                raise UnclearTarget(self.names)
            return self
        missing = [n for n in names if n not in self.names]
        if missing:
            listed = ", ".join(self.names) or "none"
            raise ValueError(f"no target {', '.join(missing)}; there is {listed}")
        columns = [self.names.index(n) for n in names]
        units = tuple(self.units[c] for c in columns)
        return replace(self, targets=self.targets[:, columns], names=tuple(names), units=units)

    def with_values(self) -> Dataset:
        """The crystals that have a value of at least one target; the others are left out."""
        has_value = np.isfinite(self.targets).any(1)
        if has_value.all() or not self.names:
            return self
        reason = f"no value of {', '.join(self.names)}"
        lost = [self.ids[k] for k in np.flatnonzero(~has_value)]
        kept = self.select(np.flatnonzero(has_value))
        left_out = [*self.left_out, *(LeftOut(name, name, reason, NO_VALUE) for name in lost)]
        key = self.key
        if key is not None:  # that of the crystals that are left, to cache their pairs by
            key = hashlib.sha256(key.encode() + np.packbits(has_value).tobytes()).hexdigest()
        return replace(kept, left_out=left_out, key=key, path=self.path)

    def groups(self, kind: str) -> np.ndarray:
        """The number of each crystal's first equal one, (crystals,).

        Args:
            kind: what to compare: "structure", "formula", "elements" or "none".
        """
        if kind == "none":
            return np.arange(len(self))
        compare = _GROUPS.get(kind)
        if compare is None:
            names = ", ".join(map(repr, _GROUPS))
            raise ValueError(f"group must be {names} or 'none', got {kind!r}")
        if kind not in self._groups:
            self._groups[kind] = compare(self.crystals)
        return self._groups[kind]


_GROUPS = {
    "structure": structure_groups,
    "formula": formula_groups,
    "elements": element_groups,
}


def _first_of_each(groups: np.ndarray) -> np.ndarray:
    """Groups numbered by the first member that is left."""
    _, first, number = np.unique(groups, return_index=True, return_inverse=True)
    return first[number]


# ---------------------------------------------------------------------------------------------
# Reading


@dataclass(frozen=True)
class Preparation:
    """Settings by which structures are turned into a dataset.

    Attributes:
        primitive: whether to find the primitive cell of each.
        disorder: what to do about partial occupancy, "error" or "average".
    """

    primitive: bool = True
    disorder: str = "error"


USUAL = Preparation()


def read_records(records: list[Record], how: Preparation) -> list[tuple[Record, Crystal | LeftOut]]:
    """The crystals of records, or why there are none; the records without their content.

    A record of a file with several structures yields several.
    """
    results: list[tuple[Record, Crystal | LeftOut]] = []
    for record in records:
        for row, result in record.crystals(how.disorder):
            slim = replace(row, content=None)  # the content need not travel back
            results.append((slim, _finished(row, result, how)))
    return results


def _finished(row: Record, result: Crystal | Exception, how: Preparation) -> Crystal | LeftOut:
    if isinstance(result, Exception):
        return LeftOut.of(row.id, row.where, result)
    try:
        crystal = result.primitive() if how.primitive else result
    except Exception as error:  # no structure may end a run over many
        return LeftOut.of(row.id, row.where, error)
    crystal.name = row.id
    return crystal


class Reader:
    """``read_records`` with its settings, to be sent to processes."""

    def __init__(self, how: Preparation) -> None:
        self.how = how

    def __call__(self, records: list[Record]) -> Part:
        return len(records), read_records(records, self.how)


Part = tuple[int, list[tuple[Record, Crystal | LeftOut]]]  # with the number of records


def read(
    source: Source,
    how: Preparation = USUAL,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> Dataset:
    """Read all crystals of a source into memory.

    Args:
        source: see ``open_source``.
        how: settings.
        workers: processes; None chooses.
        advance: called with the number of records that have been read since the last call.

    Returns:
        A dataset; what could not be used is in its ``left_out``.
    """
    workers = default_workers(len(source)) if workers is None else workers
    parts = in_order(Reader(how), source, workers)
    return collect(parts, source, advance)


def collect(parts: Iterable[Part], source: Source, advance: Callable[[int], None]) -> Dataset:
    """Assemble a dataset from the results of a ``Reader``, part by part."""
    records: list[Record] = []
    crystals: list[Crystal] = []
    left_out: list[LeftOut] = []
    for count, results in parts:
        for record, result in results:
            if isinstance(result, LeftOut):
                left_out.append(result)
            else:
                records.append(record)
                crystals.append(result)
        advance(count)
    shape = len(records), len(source.targets)
    targets = np.array([r.targets for r in records], dtype=np.float64).reshape(shape)
    return Dataset(
        [r.id for r in records],
        crystals,
        targets,
        source.targets,
        source.units,
        [r.split for r in records],
        left_out,
    )
