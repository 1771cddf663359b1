"""Prediction from structures in memory, or from a store of their pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

import sitenet
from sitenet.crystal.arrangements import Sampling
from sitenet.crystal.crystal import Crystal
from sitenet.inference.structures import (
    is_single,
    numbered,
    preparation,
    prepared,
    sampling_of,
)
from sitenet.pairs.columns import Columns
from sitenet.pairs.finder import PairFinder
from sitenet.pairs.maker import PairMaker
from sitenet.pairs.store import PairStore

if TYPE_CHECKING:
    from sitenet.model.ensemble import Model

BATCH_PAIRS = 200_000  # pairs per batch
MOST_PAIRS = 4_000_000  # of one crystal in one piece; one that may have more goes row by row
CHUNK = 512  # structures that are held at a time
CHUNK_PAIRS = 4_000_000  # pairs that are held at a time

Output = tuple[np.ndarray, np.ndarray]  # properties (targets,) and encoding (post_pool[-1],)
Held = TypeVar("Held")
Other = TypeVar("Other")


def predict(
    model: Model,
    structures: Iterable[Any] | Any,
    max_sites: int | None = None,
    primitive: bool | None = None,
    merge: bool = True,
    disorder: str | None = None,
    **sampling: int,
) -> np.ndarray:
    """Predict the properties of structures.

    Args:
        model: A SiteNet or an Ensemble.
        structures: One structure, or any number of them: Crystals, paths, CIF texts, pymatgen
            Structures or their ``as_dict()``, or ASE Atoms.
        max_sites: Largest supercell in sites; None takes that of the model's config, 0 the cell
            as it is.
        primitive: Whether to find the primitive cell first; None does as the model's training.
        merge: Whether to compute equal pairs once.
        disorder: What to do about partial occupancy, as in ``read_cif``, or "sample" for the mean
            over ordered arrangements; None does as the model's training.
        sampling: For "sample", the options ``samples``, ``seed`` and ``sites`` of
            ``predict_arrangements``, which also returns the spread.

    Returns:
        (structures,) in the unit of ``model.targets``, or (structures, targets) for several; for a
        target that is a class, the probability of class 1.

    Raises:
        CifError, ValueError, TypeError: A structure cannot be used; says which and why.
    """
    if is_single(structures):
        structures = [structures]
    disorder, drawn = sampling_of(disorder, sampling)
    crystals = prepared(structures, preparation(model.config, primitive, disorder))
    values = [y for y, _ in outputs(model, crystals, max_sites, merge, drawn)]
    y = np.array(values).reshape(len(values), len(model.targets))
    return y[:, 0] if y.shape[1] == 1 else y


def outputs(
    model: Model,
    crystals: Iterable[Crystal],
    max_sites: int | None = None,
    merge: bool = True,
    sampling: Sampling | None = None,
) -> Iterator[Output]:
    """Yield the properties and the encoding of each crystal, in order, holding few in memory.

    Cells are taken as they are. With ``sampling``, the outputs of a disordered crystal are means
    over its arrangements.

    Raises:
        ValueError: A crystal cannot be used; says which and why.
    """
    make = PairMaker(model.config, max_sites, merge)

    def started() -> Iterator[Columns | Output]:
        for number, crystal in enumerate(crystals):
            with numbered(number, crystal):
                if sampling is not None and crystal.occupancy is not None:
                    yield _mean_output(model, crystal, sampling, max_sites)
                else:
                    yield by_rows(model, crystal, make) or make(crystal)

    for held in parts(started(), lambda item: [item]):
        yield from completed(model, held)


def parts(items: Iterable[Held], contents: Callable[[Held], Iterable[Any]]) -> Iterator[list[Held]]:
    """Cut items into lists of at most CHUNK whose pairs fit into memory together.

    Args:
        items: Crystals whose pairs are found, or anything else.
        contents: Returns what an item holds; columns of pairs are counted.
    """
    held: list[Held] = []
    pairs = 0
    for item in items:
        held.append(item)
        pairs += sum(len(x["sites"]) for x in contents(item) if isinstance(x, dict))
        if len(held) == CHUNK or pairs > CHUNK_PAIRS:
            yield held
            held, pairs = [], 0
    if held:
        yield held


def _mean_output(
    model: Model, crystal: Crystal, sampling: Sampling, max_sites: int | None
) -> Output:
    """Mean outputs over the arrangements of a crystal."""
    prediction = sitenet.predict_arrangements(
        model, crystal, **vars(sampling), max_sites=max_sites, primitive=False
    )
    return prediction.mean, prediction.encoding


def completed(model: Model, held: Sequence[Columns | Other]) -> Iterator[Output | Other]:
    """Compute the outputs of held pairs; other items are passed on in their place."""
    columns = [item for item in held if isinstance(item, dict)]
    computed = iter(from_store(model, PairStore.of(columns)))
    for item in held:
        yield next(computed) if isinstance(item, dict) else item


def by_rows(model: Model, crystal: Crystal, make: PairMaker) -> Output | None:
    """Compute a crystal whose pairs may not fit into memory; None for smaller ones."""
    if most_pairs(crystal, make.options) <= MOST_PAIRS:
        return None
    make.check(crystal)
    encoding = model.encode_by_rows(PairFinder(crystal, **make.options))
    return _outputs(model, encoding)[0]


def most_pairs(crystal: Crystal, options: dict[str, Any]) -> int:
    """An upper bound on a crystal's pairs before merging; 0 for spheres, which are small."""
    if "radius" in options:
        return 0
    return len(crystal) * max(options["max_sites"] or 0, len(crystal))


def pair_stores(crystals: Sequence[Crystal], make: PairMaker) -> Iterator[PairStore]:
    """Yield the pairs of crystals in stores that fit into memory, in order.

    Raises:
        ValueError: A crystal cannot be used, or has too many pairs to be predicted beside others.
    """
    held: list[Columns] = []
    pairs = 0
    for crystal in crystals:
        if most_pairs(crystal, make.options) > MOST_PAIRS:
            raise ValueError(f"{len(crystal)} sites have too many pairs to predict many variants")
        held.append(make(crystal))
        pairs += len(held[-1]["sites"])
        if pairs > CHUNK_PAIRS:
            yield PairStore.of(held)
            held, pairs = [], 0
    if held:
        yield PairStore.of(held)


@torch.no_grad()
def from_store(
    model: Model, store: PairStore, crystals: Sequence[int] | np.ndarray | None = None
) -> list[Output]:
    """Compute the properties and the encoding of crystals of a store.

    Args:
        model: A SiteNet or an Ensemble.
        store: Pairs of crystals.
        crystals: Their numbers, in the order of the result; None takes all.

    Raises:
        RuntimeError: A batch does not fit into the GPU's memory; says which.
    """
    index = np.arange(len(store)) if crystals is None else np.asarray(crystals)
    results: list[Output] = []
    device = model.element_table.device
    was_training = model.training
    model.eval()
    try:
        for batch in pair_batches(store, index):
            pairs = store.batch(batch).to(device)
            x, features = model.site_inputs(pairs), model.pair_inputs(pairs)
            results += _outputs(model, model.encode(x, features, pairs))
    except torch.OutOfMemoryError:
        raise RuntimeError(
            f"out of GPU memory with {int(store.num_pairs[batch].sum())} pairs of "
            f"{len(batch)} crystals; free the GPU, or take device cpu"
        ) from None
    finally:
        model.train(was_training)
    return results


@torch.no_grad()
def _outputs(model: Model, encoding: torch.Tensor) -> list[Output]:
    y = model.properties(encoding)
    return list(zip(y.double().cpu().numpy(), encoding.float().cpu().numpy(), strict=True))


def pair_batches(store: PairStore, index: np.ndarray) -> Iterator[np.ndarray]:
    """Cut ``index`` into parts that hold at most BATCH_PAIRS pairs, or one crystal."""
    pairs = store.num_pairs[index]
    first, total = 0, 0
    for k, count in enumerate(pairs):
        if k > first and total + count > BATCH_PAIRS:
            yield index[first:k]
            first, total = k, 0
        total += count
    if first < len(index):
        yield index[first:]
