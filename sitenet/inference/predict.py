"""Structures in, properties out, for structures at hand or in a store."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sitenet.crystal.crystal import CifError, Crystal, read_cif
from sitenet.crystal.exchange import package_of, refusal
from sitenet.pairs.finder import PairFinder
from sitenet.pairs.store import Columns, PairMaker, PairStore

if TYPE_CHECKING:
    from sitenet.model.ensemble import Model

BATCH_PAIRS = 200_000  # pairs of a batch
MOST_PAIRS = 4_000_000  # of one crystal at once; one that may have more goes row by row
CHUNK = 512  # structures that are held at a time
CHUNK_PAIRS = 4_000_000  # pairs of theirs

Output = tuple[np.ndarray, np.ndarray]  # properties (targets,) and encoding (post_pool[-1],)


def as_crystal(structure: Any, disorder: str = "error") -> Crystal:
    """A crystal from a Crystal, a path, CIF text, or a structure of pymatgen or ASE.

    Args:
        structure: any of these.
        disorder: of CIFs and pymatgen Structures, as in ``read_cif``.

    Raises:
        CifError: a CIF holds no sound structure.
        OSError: there is no such file.
        TypeError: it is none of these.
    """
    if isinstance(structure, Crystal):
        return structure
    if isinstance(structure, (str, bytes, os.PathLike)):
        return read_cif(structure, disorder)
    package = package_of(structure)
    if package == "pymatgen":
        return Crystal.from_pymatgen(structure, disorder)
    if package == "ase":
        return Crystal.from_ase(structure)
    expected = "a Crystal, a path, CIF text, a pymatgen Structure or ASE Atoms"
    raise refusal(structure, expected)


def predict(
    model: Model,
    structures: Iterable[Any] | Any,
    max_sites: int | None = None,
    primitive: bool = True,
    merge: bool = True,
    disorder: str = "error",
) -> np.ndarray:
    """Predict the properties of structures.

    Args:
        model: a SiteNet or an Ensemble.
        structures: Crystals, paths, CIF texts, pymatgen Structures or ASE Atoms; or one of them.
        max_sites: largest supercell in sites; None takes that of the model's config, 0 the cell as
            it is.
        primitive: whether to find the primitive cell first, as in training.
        merge: whether to compute equal pairs once.
        disorder: what to do about partial occupancy, as in ``read_cif``.

    Returns:
        (structures,) in the unit of ``model.targets``, or (structures, targets) for several; for a
        target that is a class, the probability of class 1.

    Raises:
        CifError, ValueError, TypeError: a structure cannot be used; says which and why.
    """
    single = isinstance(structures, (Crystal, str, bytes, dict, os.PathLike))
    package = type(structures).__module__.partition(".")[0]  # their structures are iterable
    if single or package in ("pymatgen", "ase") or not isinstance(structures, Iterable):
        structures = [structures]
    crystals = _crystals(structures, primitive, disorder)
    values = [y for y, _ in outputs(model, crystals, max_sites, merge)]
    y = np.array(values).reshape(len(values), len(model.targets))
    return y[:, 0] if y.shape[1] == 1 else y


def _crystals(structures: Iterable[Any], primitive: bool, disorder: str) -> Iterator[Crystal]:
    for number, structure in enumerate(structures):
        try:
            crystal = as_crystal(structure, disorder)
        except CifError as error:
            file = f"structure {number}: {error.file}"
            raise CifError(file, error.block, error.reason) from None
        except (TypeError, ValueError) as error:
            raise type(error)(f"structure {number}: {error}") from None
        yield crystal.primitive() if primitive else crystal


def outputs(
    model: Model, crystals: Iterable[Crystal], max_sites: int | None = None, merge: bool = True
) -> Iterator[Output]:
    """The properties and the encoding of each crystal, in order, a bounded number of them in
    memory; the cells are taken as they stand.

    Raises:
        ValueError: a crystal cannot be used; says which and why.
    """
    make = PairMaker(model.config, max_sites, merge)
    held: list[Columns | Output] = []
    pairs = 0
    for number, crystal in enumerate(crystals):
        try:
            found = by_rows(model, crystal, make) or make(crystal)
        except ValueError as error:
            name = crystal.name or crystal.formula
            raise ValueError(f"structure {number} ({name}): {error}") from None
        held.append(found)
        pairs += len(found["sites"]) if isinstance(found, dict) else 0
        if len(held) == CHUNK or pairs > CHUNK_PAIRS:
            yield from _finished(model, held)
            held, pairs = [], 0
    yield from _finished(model, held)


def _finished(model: Model, held: Sequence[Columns | Output]) -> Iterator[Output]:
    columns = [item for item in held if isinstance(item, dict)]
    found = iter(from_store(model, PairStore.of(columns)))
    for item in held:
        yield next(found) if isinstance(item, dict) else item


def by_rows(model: Model, crystal: Crystal, make: PairMaker) -> Output | None:
    """The properties and the encoding of a crystal whose pairs may not fit into memory; None for
    smaller ones."""
    if most_pairs(crystal, make.options) <= MOST_PAIRS:
        return None
    make.check(crystal)
    encoding = model.encode_by_rows(PairFinder(crystal, **make.options))
    return _outputs(model, encoding)[0]


def most_pairs(crystal: Crystal, options: dict[str, Any]) -> int:
    """A bound on a crystal's pairs before merging; spheres bound themselves."""
    if "radius" in options:
        return 0
    return len(crystal) * max(options["max_sites"] or 0, len(crystal))


@torch.no_grad()
def from_store(
    model: Model, store: PairStore, crystals: Sequence[int] | np.ndarray | None = None
) -> list[Output]:
    """The properties and the encoding of some crystals of a store, in their order.

    Raises:
        RuntimeError: a batch does not fit into the GPU's memory; says which.
    """
    index = np.arange(len(store)) if crystals is None else np.asarray(crystals)
    found: list[Output] = []
    device = model.element_table.device
    was_training = model.training
    model.eval()
    try:
        for batch in pair_batches(store, index):
            pairs = store.batch(batch).to(device)
            x, features = model.site_inputs(pairs), model.pair_inputs(pairs)
            found += _outputs(model, model.encode(x, features, pairs))
    except torch.OutOfMemoryError:
        raise RuntimeError(
            f"out of GPU memory with {int(store.num_pairs[batch].sum())} pairs of "
            f"{len(batch)} crystals; free the GPU, or take device cpu"
        ) from None
    finally:
        model.train(was_training)
    return found


@torch.no_grad()
def _outputs(model: Model, encoding: torch.Tensor) -> list[Output]:
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
