"""Crystals with ids and targets as arrays: read from a source, and split."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sitenet.crystal.crystal import Crystal
from sitenet.data.source import Record, Source
from sitenet.system.files import write_csv
from sitenet.system.workers import default_workers, in_order


@dataclass(frozen=True)
class LeftOut:
    """A structure that could not be used, and why."""

    id: str
    where: str
    reason: str


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
        left_out: what the source held beside these.
        key: hash of the content, of prepared datasets.
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
        )

    def with_targets(self, names: Sequence[str] | None) -> Dataset:
        """The same crystals with some of the targets; None takes the only one.

        Raises:
            ValueError: there is no such target, or there are several and none is named.
        """
        if names is None:
            if len(self.names) != 1:
                found = ", ".join(self.names) or "none"
                raise ValueError(f"say which target to learn; there is {found}")
            return self
        missing = [n for n in names if n not in self.names]
        if missing:
            found = ", ".join(self.names) or "none"
            raise ValueError(f"no target {', '.join(missing)}; there is {found}")
        columns = [self.names.index(n) for n in names]
        units = tuple(self.units[c] for c in columns)
        return replace(self, targets=self.targets[:, columns], names=tuple(names), units=units)


# ---------------------------------------------------------------------------------------------
# Reading


@dataclass(frozen=True)
class Preparation:
    """How structures are made into a dataset: whether cells are made primitive, and what is done
    about partial occupancy."""

    primitive: bool = True
    disorder: str = "error"


USUAL = Preparation()


def read_records(records: list[Record], how: Preparation) -> list[tuple[Record, Crystal | LeftOut]]:
    """The crystal of each record, or why there is none; the records without their content."""
    done: list[tuple[Record, Crystal | LeftOut]] = []
    for record in records:
        slim = replace(record, content=None)  # the content need not travel back
        try:
            crystal = record.crystal(how.disorder)
            if how.primitive:
                crystal = crystal.primitive()
            crystal.name = record.id
            done.append((slim, crystal))
        except (ValueError, OSError) as error:
            done.append((slim, LeftOut(record.id, record.where, str(error))))
        except Exception as error:  # no structure may end a run over many
            reason = f"{type(error).__name__}: {error}"
            done.append((slim, LeftOut(record.id, record.where, reason)))
    return done


class Reader:
    """``read_records`` with its settings, for processes to receive."""

    def __init__(self, how: Preparation) -> None:
        self.how = how

    def __call__(self, records: list[Record]) -> list[tuple[Record, Crystal | LeftOut]]:
        return read_records(records, self.how)


def read(
    source: Source,
    how: Preparation = USUAL,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> Dataset:
    """All crystals of a source in memory.

    Args:
        source: see ``open_source``.
        how: settings.
        workers: processes; None chooses.
        advance: is told how many more records have been read.

    Returns:
        A dataset; what could not be used is in its ``left_out``.
    """
    workers = default_workers(len(source)) if workers is None else workers
    parts = in_order(Reader(how), source, workers)
    return collect(parts, source, advance)


def collect(parts: Iterable[list], source: Source, advance: Callable[[int], None]) -> Dataset:
    """What a ``Reader`` made of a source's records, part by part, as a dataset."""
    records: list[Record] = []
    crystals: list[Crystal] = []
    left_out: list[LeftOut] = []
    for part in parts:
        for record, result in part:
            if isinstance(result, LeftOut):
                left_out.append(result)
            else:
                records.append(record)
                crystals.append(result)
        advance(len(part))
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


# ---------------------------------------------------------------------------------------------
# Splits


@dataclass(frozen=True)
class Split:
    """Numbers of the crystals to learn from, to choose the best epoch by, and to test on."""

    train: np.ndarray
    valid: np.ndarray
    test: np.ndarray

    def without_test(self) -> Split:
        """The same, but to learn from the test's crystals too."""
        return Split(np.sort(np.concatenate([self.train, self.test])), self.valid, self.test[:0])


def split(data: Dataset, valid: float, test: float, seed: int, fold: str | None = None) -> Split:
    """Divide a dataset.

    Args:
        data: where its split column says ``train`` of some crystals, that holds, and so do
            ``valid`` (or ``val``) and ``test``; what it says of the others leaves them out.
        valid: part of the crystals for validation, drawn from those to learn from where the column
            names none.
        test: likewise for the test.
        seed: of the random order, the same for the same number of crystals.
        fold: the value of the split column whose rows are the test.

    Raises:
        ValueError: no crystal is in that fold, or none is left to learn from.
    """
    names = np.array([_PARTS.get(s.lower(), s.lower()) for s in data.split], dtype=object)
    order = np.random.default_rng(seed).permutation(len(data))
    rest, parts = order, {}
    if fold is not None:
        held = names == str(fold).lower()
        if not held.any():
            found = ", ".join(sorted(set(data.split) - {""})) or "nothing"
            raise ValueError(f"no crystal is in fold {fold!r}; the split column says {found}")
        parts["test"] = np.flatnonzero(held)
        rest = order[~held[order]]
    elif (names == "train").any():
        rest = order[(names == "train")[order]]
        parts = {n: np.flatnonzero(names == n) for n in ("valid", "test") if (names == n).any()}
    for name, share in (("test", test), ("valid", valid)):
        if name not in parts:
            count = max(round(share * len(data)), 1) if share else 0
            parts[name], rest = np.sort(rest[:count]), rest[count:]
    if not len(rest):
        raise ValueError(
            f"nothing is left to learn from: {len(parts['valid'])} crystals for validation, "
            f"{len(parts['test'])} for the test"
        )
    return Split(np.sort(rest), parts["valid"], parts["test"])


_PARTS = {"val": "valid", "validation": "valid", "training": "train", "testing": "test"}


def write_left_out(left_out: Sequence[LeftOut], path: Path) -> None:
    """A CSV of what could not be used: id, where, reason."""
    write_csv(path, ("id", "where", "reason"), ((x.id, x.where, x.reason) for x in left_out))
