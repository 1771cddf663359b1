"""The pairs of a dataset; those of a file of ``sitenet prepare`` are kept beside it.

They lie in ``NAME.pairs/KEY``, mapped into memory and shared by processes, under a key of the
file's content and the settings.
"""

from __future__ import annotations

import hashlib
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from sitenet.config import SiteNetConfig
from sitenet.crystal.crystal import Crystal
from sitenet.data.dataset import Dataset
from sitenet.data.failures import LeftOut
from sitenet.pairs.columns import Columns
from sitenet.pairs.maker import PairMaker
from sitenet.pairs.store import PairStore, StoreWriter
from sitenet.system.files import locked
from sitenet.system.workers import default_workers, in_order

Advance = Callable[[int], None]


def pairs_of_dataset(
    data: Dataset,
    config: SiteNetConfig,
    workers: int | None = None,
    advance: Advance = lambda done: None,
) -> tuple[Dataset, PairStore]:
    """The pairs of all crystals as the config asks for them.

    Those of a prepared dataset are mapped from its cache if that holds them. A warning names a
    damaged cache, which is written again, and a cache that cannot be written, without which the
    pairs are kept in memory.

    Args:
        data: the crystals.
        config: of the model.
        workers: processes; None chooses.
        advance: called with the number of crystals done since the last call.

    Returns:
        The dataset without the crystals whose pairs cannot be found (they are in its
        ``left_out``), and the pairs of the others.
    """
    make = PairMaker(config)
    workers = default_workers(len(data)) if workers is None else workers
    if data.key is None or data.path is None or not len(data):
        return _in_memory(data, make, workers, advance)
    folder = _folder(data, data.path, make)
    store: PairStore | None
    try:
        store = _cached(folder, data, make, workers, advance)
    except OSError as error:
        store = _open(folder)  # a cache that is complete needs no lock
        if store is None:
            warnings.warn(
                f"the pairs are kept in memory: their cache {folder} cannot be written "
                f"({error.strerror or error})",
                stacklevel=2,
            )
            return _in_memory(data, make, workers, advance)
        advance(len(data))
    bad = {int(k): LeftOut(**x) for k, x in store.facts["left_out"].items()}
    return _without(data, bad), store


def _in_memory(
    data: Dataset, make: PairMaker, workers: int, advance: Advance
) -> tuple[Dataset, PairStore]:
    columns: list[Columns] = []
    bad = _find(data.crystals, make, workers, columns.append, advance)
    return _without(data, bad), PairStore.of(columns)


def _cached(
    folder: Path, data: Dataset, make: PairMaker, workers: int, advance: Advance
) -> PairStore:
    """The pairs in a folder, written by the first process that needs them."""
    folder.parent.mkdir(exist_ok=True)
    _remove_abandoned(folder)
    with locked(_lock(folder)):
        store = _open(folder)
        if store is not None:
            advance(len(data))
            return store
        with StoreWriter(folder, folder.name) as writer:
            bad = _find(data.crystals, make, workers, writer.add, advance)
            writer.facts = {"left_out": {k: vars(x) for k, x in bad.items()}}
        return PairStore.open(folder, folder.name)


def _lock(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes had begun to write in other folders of the cache."""
    for unfinished in folder.parent.glob(".*.tmp"):
        other = unfinished.with_name(unfinished.name[1:].removesuffix(".tmp"))
        if other != folder:
            with locked(_lock(other), wait=False) as abandoned:
                if abandoned:
                    shutil.rmtree(unfinished, ignore_errors=True)


def _folder(data: Dataset, path: Path, make: PairMaker) -> Path:
    """Where the pairs of these crystals with these settings lie. How elements without a value are
    treated counts only if there are some."""
    unusable = make.unusable(np.concatenate([c.numbers for c in data.crystals]))
    content = f"{data.key} {sorted(make.options.items())} {unusable}"
    key = hashlib.sha256(content.encode()).hexdigest()[:16]
    return path.with_name(f"{path.stem}.pairs") / key


def _open(folder: Path) -> PairStore | None:
    if not folder.exists():
        return None
    try:
        return PairStore.open(folder, folder.name)
    except ValueError as error:
        warnings.warn(f"the cached pairs are computed again: {error}", stacklevel=4)
        return None


def _find(
    crystals: list[Crystal],
    make: PairMaker,
    workers: int,
    keep: Callable[[Columns], None],
    advance: Advance,
) -> dict[int, LeftOut]:
    """Find pairs and keep them; returns the crystals that have none, by number."""
    bad, number = {}, 0
    for part in in_order(_Finder(make), crystals, workers):
        for result in part:
            if isinstance(result, LeftOut):
                bad[number] = result
            else:
                keep(result)
            number += 1
        advance(len(part))
    return bad


class _Finder:
    """Crystals -> their pairs, or why there are none; sent to workers."""

    def __init__(self, make: PairMaker) -> None:
        self.make = make

    def __call__(self, crystals: list[Crystal]) -> list[Columns | LeftOut]:
        results: list[Columns | LeftOut] = []
        for crystal in crystals:
            try:
                results.append(self.make(crystal))
            except ValueError as error:
                name = crystal.name or crystal.formula
                results.append(LeftOut.of(name, name, error))
        return results


def _without(data: Dataset, bad: dict[int, LeftOut]) -> Dataset:
    if not bad:
        return data
    kept = data.select([k for k in range(len(data)) if k not in bad])
    return replace(kept, left_out=[*data.left_out, *bad.values()])
