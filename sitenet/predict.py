"""Structures in, properties out: a few at hand, or any number from a source.

``python -m sitenet.predict`` is ``sitenet predict``, for torchrun.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sitenet.crystal import Crystal, read_cif
from sitenet.pairs import PairFinder, find_pairs
from sitenet.store import PairStore, columns_of, pair_options

if TYPE_CHECKING:
    from sitenet.model import SiteNet

BATCH_PAIRS = 200_000  # pairs of a batch
MOST_PAIRS = 4_000_000  # of one crystal at once; one that may have more goes row by row
CHUNK = 512  # structures whose pairs are held at a time


def as_crystal(structure: Any, disorder: str = "error") -> Crystal:
    """A crystal from a Crystal, a path, CIF text, or a structure of pymatgen or ASE.

    Args:
        structure: any of these.
        disorder: of CIFs, as in ``read_cif``.

    Raises:
        CifError: a CIF holds no sound structure.
        OSError: there is no such file.
        TypeError: it is none of these.
    """
    if isinstance(structure, Crystal):
        return structure
    if isinstance(structure, (str, os.PathLike)):
        return read_cif(structure, disorder)
    module = type(structure).__module__.partition(".")[0]
    if module == "pymatgen":
        return Crystal.from_pymatgen(structure)
    if module == "ase":
        return Crystal.from_ase(structure)
    raise TypeError(
        "expected a Crystal, a path, CIF text, a pymatgen Structure or ASE Atoms, "
        f"got {type(structure).__name__}"
    )


def predict(
    model: SiteNet,
    structures: Iterable[Any] | Any,
    max_sites: int | None = None,
    primitive: bool = True,
    merge: bool = True,
) -> np.ndarray:
    """Predict the properties of structures.

    Args:
        model: a SiteNet.
        structures: Crystals, paths, CIF texts, pymatgen Structures or ASE Atoms; or one of them.
        max_sites: largest supercell in sites; None takes that of the model's config, 0 the cell as
            it is.
        primitive: whether to find the primitive cell first, as in training.
        merge: whether to compute equal pairs once.

    Returns:
        (structures,) in the unit of ``model.targets``, or (structures, targets) for several; for a
        target that is a class, the probability of class 1.

    Raises:
        CifError, ValueError, TypeError: a structure cannot be used; says which and why.
    """
    if isinstance(structures, (Crystal, str, os.PathLike)) or not isinstance(structures, Iterable):
        structures = [structures]
    values = [
        y for y, _ in outputs(model, map(as_crystal, structures), max_sites, primitive, merge)
    ]
    y = np.array(values).reshape(len(values), len(model.targets))
    return y[:, 0] if y.shape[1] == 1 else y


def outputs(
    model: SiteNet,
    crystals: Iterable[Crystal],
    max_sites: int | None = None,
    primitive: bool = True,
    merge: bool = True,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The properties (targets,) and the encoding (post_pool[-1],) of each crystal, in order, a
    bounded number of them in memory."""
    options = pair_options(model.config, max_sites, merge)
    crystals = iter(crystals)
    while chunk := list(itertools.islice(crystals, CHUNK)):
        found: list[tuple[np.ndarray, np.ndarray] | None] = [None] * len(chunk)
        small, columns = [], []
        for k, crystal in enumerate(chunk):
            if primitive:
                crystal = crystal.primitive()
            try:
                if most_pairs(crystal, options) > MOST_PAIRS:
                    finder = PairFinder(crystal, **options)
                    found[k] = _numpy(model, model.encode_by_rows(finder))[0]
                else:
                    columns.append(columns_of(find_pairs(crystal, **options)))
                    small.append(k)
            except ValueError as error:
                raise ValueError(f"{crystal.name or crystal.formula}: {error}") from None
        if small:
            store = PairStore.of(columns)
            for k, result in zip(small, from_store(model, store), strict=True):
                found[k] = result
        yield from found  # type: ignore[misc]


def most_pairs(crystal: Crystal, options: dict[str, Any]) -> int:
    """A bound on a crystal's pairs before merging; spheres bound themselves."""
    if "radius" in options:
        return 0
    return len(crystal) * max(options["max_sites"] or 0, len(crystal))


@torch.no_grad()
def from_store(
    model: SiteNet, store: PairStore, crystals: Sequence[int] | np.ndarray | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The properties and the encoding of some crystals of a store, in their order."""
    index = np.arange(len(store)) if crystals is None else np.asarray(crystals)
    found: list[tuple[np.ndarray, np.ndarray]] = []
    device = model.element_table.device
    was_training = model.training
    model.eval()
    for batch in pair_batches(store, index):
        pairs = store.batch(batch).to(device)
        x, features = model.site_inputs(pairs), model.pair_inputs(pairs)
        found += _numpy(model, model.encode(x, features, pairs))
    model.train(was_training)
    return found


def _numpy(model: SiteNet, encoding: torch.Tensor) -> list[tuple[np.ndarray, np.ndarray]]:
    y = model.properties(encoding)
    return list(zip(y.double().cpu().numpy(), encoding.float().cpu().numpy(), strict=True))


def pair_batches(store: PairStore, index: np.ndarray) -> Iterator[np.ndarray]:
    """Parts of ``index`` that hold no more than BATCH_PAIRS pairs, or one crystal."""
    pairs = store.num_pairs[index]
    first, total = 0, 0
    for k, count in enumerate(pairs):
        if k > first and total + count > BATCH_PAIRS:
            yield index[first:k]
            first, total = k, 0
        total += count
    if first < len(index):
        yield index[first:]


if __name__ == "__main__":
    import sys

    from sitenet.cli import main

    main(["predict", *sys.argv[1:]])
