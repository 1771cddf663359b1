"""The pairs of a dataset; those of a file of ``sitenet prepare`` are kept beside it.

They lie in ``NAME.pairs/KEY``, mapped into memory and shared by processes, under a key of the
file's content and the settings.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from sitenet.config import SiteNetConfig
from sitenet.crystal.crystal import Crystal
from sitenet.data.dataset import Dataset, LeftOut
from sitenet.pairs.store import Columns, PairMaker, PairStore, StoreWriter
from sitenet.system.files import locked
from sitenet.system.workers import default_workers, in_order


def pairs_of_dataset(
    data: Dataset,
    config: SiteNetConfig,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> tuple[Dataset, PairStore]:
    """The pairs of all crystals as the config asks for them.

    Those of a prepared dataset are mapped from its cache where that holds them; a damaged cache is
    named in a warning and made anew.

    Returns:
        The dataset without the crystals whose pairs cannot be found (they are in its
        ``left_out``), and the pairs of the others.
    """
    make = PairMaker(config)
    folder = None if data.key is None or data.path is None else _folder(data, data.path, make)
    workers = default_workers(len(data)) if workers is None else workers
    if folder is None:
        found: list[Columns] = []
        bad = _find(data.crystals, make, workers, found.append, advance)
        return _without(data, bad), PairStore.of(found)
    folder.parent.mkdir(exist_ok=True)
    with locked(folder.with_name(f".{folder.name}.lock")):
        store = _open(folder)
        if store is not None:
            advance(len(data))
        else:
            with StoreWriter(folder, folder.name) as writer:
                bad = _find(data.crystals, make, workers, writer.add, advance)
                writer.facts = {"left_out": {k: vars(x) for k, x in bad.items()}}
            store = PairStore.open(folder, folder.name)
    bad = {int(k): LeftOut(**x) for k, x in store.facts["left_out"].items()}
    return _without(data, bad), store


def _folder(data: Dataset, path: Path, make: PairMaker) -> Path:
    """Where the pairs of these crystals with these settings lie. How elements without a value are
    treated counts only where there are some."""
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
        warnings.warn(f"the cached pairs are made anew: {error}", stacklevel=3)
        return None


def _find(
    crystals: list[Crystal],
    make: PairMaker,
    workers: int,
    keep: Callable[[Columns], None],
    advance: Callable[[int], None],
) -> dict[int, LeftOut]:
    """Find pairs and keep them; returns those that have none, by number."""
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
    """Crystals -> their pairs, or why there are none; for workers to receive."""

    def __init__(self, make: PairMaker) -> None:
        self.make = make

    def __call__(self, crystals: list[Crystal]) -> list[Columns | LeftOut]:
        done: list[Columns | LeftOut] = []
        for crystal in crystals:
            try:
                done.append(self.make(crystal))
            except ValueError as error:
                name = crystal.name or crystal.formula
                done.append(LeftOut(name, name, str(error)))
        return done


def _without(data: Dataset, bad: dict[int, LeftOut]) -> Dataset:
    if not bad:
        return data
    kept = data.select([k for k in range(len(data)) if k not in bad])
    return replace(kept, left_out=[*data.left_out, *bad.values()])
