"""What a model attends to, in one crystal or in many."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from sitenet.inference.explanation import DatasetExplanation, Explanation, count_members
from sitenet.inference.structures import is_single, numbered, preparation, prepared, title
from sitenet.pairs.finder import find_pairs
from sitenet.pairs.maker import PairMaker
from sitenet.pairs.pairs import Pairs

if TYPE_CHECKING:
    from sitenet.crystal.crystal import Crystal
    from sitenet.model.ensemble import Model

MAX_PAIRS = 200_000  # pairs of the crystals that are computed together


def explain(
    model: Model,
    structures: Any,
    max_sites: int | None = None,
    primitive: bool | None = None,
    merge: bool = True,
    disorder: str | None = None,
) -> Explanation | DatasetExplanation:
    """Explain what a model attends to in a crystal, or in many.

    Args:
        model: A SiteNet or an Ensemble, whose blocks are those of its members, one after another.
        structures: One structure, or any number of them, as in ``predict``; an iterator is
            explained in the memory of a few crystals.
        max_sites: As in ``predict``.
        primitive: As in ``predict``.
        merge: Whether to compute equal pairs once; weights are those of single sites either way.
        disorder: As in ``predict``.

    Returns:
        An Explanation of one structure, or a DatasetExplanation of several.

    Raises:
        CifError, ValueError, TypeError: A structure cannot be used; says which and why.
    """
    options: dict[str, Any] = {
        "max_sites": max_sites,
        "primitive": primitive,
        "merge": merge,
        "disorder": disorder,
    }
    if is_single(structures):
        return next(explain_each(model, [structures], **options))
    dataset = DatasetExplanation(model)
    for each in explain_each(model, structures, **options):
        dataset.add(each)
    return dataset


def explain_each(
    model: Model,
    structures: Iterable[Any],
    max_sites: int | None = None,
    primitive: bool | None = None,
    merge: bool = True,
    disorder: str | None = None,
) -> Iterator[Explanation]:
    """Explain crystals one by one, in order; arguments as in ``explain``."""
    find = PairsOfModel(model, max_sites, merge)
    waiting: list[_Found] = []
    crystals = prepared(structures, preparation(model.config, primitive, disorder))
    for number, crystal in enumerate(crystals):
        with numbered(number, crystal):
            waiting.append(_Found(crystal, find(crystal)))
        if sum(one.pairs.num_pairs for one in waiting) >= MAX_PAIRS:
            yield from _explain_together(model, waiting)
            waiting = []
    if waiting:
        yield from _explain_together(model, waiting)


def explain_crystal(model: Model, crystal: Crystal, find: PairsOfModel) -> Explanation:
    """Explain one crystal in the cell that it is in.

    Raises:
        ValueError: The crystal cannot be used.
    """
    return next(_explain_together(model, [_Found(crystal, find(crystal))]))


class PairsOfModel:
    """Find the pairs of crystals as a model needs them to be explained.

    Args:
        model: A SiteNet or an Ensemble.
        max_sites: As in ``explain``.
        merge: As in ``explain``.
    """

    def __init__(self, model: Model, max_sites: int | None, merge: bool) -> None:
        # k_softmax keeps some of several equal pairs and drops the others.
        self.make = PairMaker(model.config, max_sites, merge and model.config.k_softmax is None)

    def __call__(self, crystal: Crystal) -> Pairs:
        """Find the pairs of a crystal.

        Raises:
            ValueError: The model knows too little of an element, or sites coincide.
        """
        self.make.check(crystal)
        return find_pairs(crystal, **self.make.options)


class _Found(NamedTuple):
    crystal: Crystal
    pairs: Pairs


@torch.no_grad()
def _explain_together(model: Model, batch: Sequence[_Found]) -> Iterator[Explanation]:
    pairs = Pairs.batch([one.pairs for one in batch]).to(model.element_table.device)
    per_block: list[torch.Tensor] = []
    encodings = model.encode(model.site_inputs(pairs), model.pair_inputs(pairs), pairs, per_block)
    values = model.properties(encodings).double().cpu().numpy()
    weights = torch.stack(per_block, 1).double() / pairs.multiplicity[:, None, None]
    parts = weights.cpu().split([one.pairs.num_pairs for one in batch])
    for k, one in enumerate(batch):
        yield Explanation(
            title(one.crystal),
            one.crystal,
            one.pairs,
            parts[k].numpy(),
            values[k],
            model.targets,
            encodings[k].cpu().numpy(),
            count_members(model),
        )
