"""What a model attended to: attention by distance, by elements and by sites, in one crystal or in
many."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

import sitenet
from sitenet.crystal.elements import SYMBOLS
from sitenet.inference.attention_histograms import DistanceTally, ElementTally, weight_names
from sitenet.inference.predict import as_crystal
from sitenet.pairs.finder import find_pairs
from sitenet.pairs.pairs import Pairs
from sitenet.pairs.store import pair_options

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from sitenet.crystal.crystal import Crystal
    from sitenet.model.ensemble import Model
    from sitenet.model.sitenet import Target

MAX_PAIRS = 200_000  # of the crystals that are computed together


class Explained(ABC):
    """What a model attended to, in one crystal or in many."""

    @property
    @abstractmethod
    def by_distance(self) -> DistanceTally:
        """Pairs of sites, counted by distance and weight."""

    @property
    @abstractmethod
    def by_elements(self) -> ElementTally:
        """Attention between elements, by distance."""

    @abstractmethod
    def columns(self, rows: str | None = None) -> dict[str, np.ndarray]:
        """A table as columns of equal length, by name; ``rows`` says what a row is."""

    def table(self, rows: str | None = None) -> pandas.DataFrame:
        """``columns`` as a pandas DataFrame."""
        try:
            import pandas
        except ImportError:
            raise ImportError(
                "table() needs pandas: pip install pandas; columns() does without"
            ) from None
        return pandas.DataFrame(self.columns(rows))

    def plot(self, path: str | Path | None = None, **options: Any) -> Figure:
        """Plot attention against distance; see ``sitenet.plot_attention``."""
        return sitenet.plot_attention(self, path, **options)


@dataclass(eq=False)
class Explanation(Explained):
    """What a model attended to in one crystal.

    Attributes:
        name: of the crystal.
        crystal: the cell that was computed, primitive if that was asked for.
        pairs: of its sites, on the CPU.
        weights: (pairs, blocks, heads), the attention weight of each of the ``multiplicity``
            supercell sites of a pair; those of a site's pairs, each times its multiplicity, add up
            to 1.
        predicted: (targets,), in the units of ``targets``; for a class, the probability of 1.
        targets: what the model predicts.
        encoding: (post_pool[-1],), what the model predicts from.
    """

    name: str
    crystal: Crystal
    pairs: Pairs
    weights: np.ndarray
    predicted: np.ndarray
    targets: list[Target]
    encoding: np.ndarray

    @property
    def long_range(self) -> np.ndarray:
        """The long-range coefficient: the largest distance times weight of all pairs of sites.

        Returns:
            (blocks, heads) in angstrom.

        Source: SPEC of the published analysis, LR = max_i max_j d_ij w_ij.
        """
        return (self._distance[:, None, None] * self.weights).max(0)

    @property
    def received(self) -> np.ndarray:
        """The attention that each site receives from all sites of the cell, itself included.

        Returns:
            (sites, blocks, heads); their mean over the sites is 1.
        """
        pairs = self.pairs
        total = np.zeros((pairs.num_rows, *self.weights.shape[1:]))
        np.add.at(total, pairs.sites.numpy(), self.weights * self._copies[:, None, None])
        return (total / pairs.count.numpy()[:, None, None])[pairs.orbit.numpy()]

    @property
    def kept(self) -> np.ndarray:
        """The attention that each site pays to itself: (sites, blocks, heads)."""
        itself = self._distance == 0
        total = np.zeros((self.pairs.num_rows, *self.weights.shape[1:]))
        np.add.at(total, self._rows[itself], self.weights[itself])
        return total[self.pairs.orbit.numpy()]

    @property
    def by_distance(self) -> DistanceTally:
        tally = DistanceTally(*self.weights.shape[1:])
        tally.add(self._distance, self.weights, self._copies)
        return tally

    @property
    def by_elements(self) -> ElementTally:
        tally = ElementTally(*self.weights.shape[1:])
        self._count_elements(tally)
        return tally

    def columns(self, rows: str | None = None) -> dict[str, np.ndarray]:
        """A table as columns of equal length, by name.

        Args:
            rows: what a row is:
                "pairs" (default): a pair with ``site`` and ``neighbour`` (for merged pairs, the
                first site of each orbit), their elements, ``distance`` (angstrom),
                ``multiplicity`` and the weight of each block and head;
                "sites": a site of the cell, its element, fractional coordinates, the attention it
                receives (1 on average) and pays to itself, as means over blocks and heads, and the
                attention it receives for each block and head;
                "elements", "distances": an element and a neighbour's element, for all distances
                or for every 0.5 angstrom; see ``ElementTally.columns``.

        Raises:
            ValueError: there is no such table.
        """
        names = weight_names(*self.weights.shape[1:])
        symbols = np.array(SYMBOLS)[self.pairs.numbers.numpy()]
        match rows:
            case None | "pairs":
                first = np.unique(self.pairs.orbit.numpy(), return_index=True)[1]
                i, j = self._rows, self.pairs.sites.numpy()
                return {
                    "site": first[i],
                    "element": symbols[i],
                    "neighbour": first[j],
                    "neighbour_element": symbols[j],
                    "distance": self._distance,
                    "multiplicity": self.pairs.multiplicity.numpy(),
                } | dict(zip(names, self.weights.reshape(len(i), -1).T, strict=True))
            case "sites":
                received, frac = self.received.reshape(-1, len(names)), self.crystal.frac
                return {
                    "site": np.arange(len(received)),
                    "element": symbols[self.pairs.orbit.numpy()],
                    **dict(zip("xyz", np.asarray(frac).T, strict=True)),
                    "received": received.mean(1),
                    "kept": self.kept.mean((1, 2)),
                } | dict(zip(names, received.T, strict=True))
            case "elements" | "distances":
                return self.by_elements.columns(rows == "distances")
        raise ValueError(f"rows must be 'pairs', 'sites', 'elements' or 'distances', got {rows!r}")

    @cached_property
    def _distance(self) -> np.ndarray:
        return self.pairs.distance.numpy()

    @cached_property
    def _rows(self) -> np.ndarray:
        return self.pairs.rows.numpy()

    @cached_property
    def _copies(self) -> np.ndarray:
        """Pairs of sites that each pair stands for."""
        count = self.pairs.count.numpy().astype(np.int64)
        return count[self._rows] * self.pairs.multiplicity.numpy()

    def _count_elements(self, tally: ElementTally) -> None:
        numbers, count = self.pairs.numbers.numpy(), self.pairs.count.numpy()
        sizes = np.bincount(self._rows, self.pairs.multiplicity.numpy())  # of whole rows
        tally.add(
            self._distance,
            self.weights,
            self._copies,
            uniform=1 / sizes[self._rows],
            elements=np.stack([numbers[self._rows], numbers[self.pairs.sites.numpy()]], 1),
            sites={z: int(count[numbers == z].sum()) for z in set(numbers.tolist())},
        )


class DatasetExplanation(Explained):
    """What a model attended to in many crystals, added up as they are computed.

    Its memory does not grow with the pairs, and by some 100 bytes with each crystal.

    Attributes:
        names: of the crystals.
        targets: what the model predicts.
    """

    def __init__(self, model: Model) -> None:
        shape = model.num_blocks, model.config.heads
        self.names: list[str] = []
        self.targets = model.targets
        self._predicted: list[np.ndarray] = []
        self._long_range: list[np.ndarray] = []
        self._by_distance = DistanceTally(*shape)
        self._by_elements = ElementTally(*shape)

    def add(self, explanation: Explanation) -> None:
        """Add a crystal."""
        self.names.append(explanation.name)
        self._predicted.append(explanation.predicted)
        self._long_range.append(explanation.long_range)
        self._by_distance.add(explanation._distance, explanation.weights, explanation._copies)
        explanation._count_elements(self._by_elements)

    @property
    def by_distance(self) -> DistanceTally:
        return self._by_distance

    @property
    def by_elements(self) -> ElementTally:
        return self._by_elements

    @property
    def predicted(self) -> np.ndarray:
        """(crystals, targets), in the units of ``targets``."""
        return np.array(self._predicted).reshape(len(self.names), len(self.targets))

    @property
    def long_range(self) -> np.ndarray:
        """Each crystal's long-range coefficient: (crystals, blocks, heads) in angstrom."""
        return np.array(self._long_range).reshape(-1, *self.by_distance.self_attention.shape)

    def columns(self, rows: str | None = None) -> dict[str, np.ndarray]:
        """A table as columns of equal length, by name.

        Args:
            rows: what a row is:
                "crystals" (default): a crystal with its predictions and the long-range coefficient
                of each block and head, in angstrom;
                "elements", "distances": as ``Explanation.columns``, over all crystals.

        Raises:
            ValueError: there is no such table.
        """
        match rows:
            case None | "crystals":
                shape = self.by_distance.self_attention.shape
                names = [f"long_range_{name}" for name in weight_names(*shape)]
                return {
                    "name": np.array(self.names, dtype=object),
                    **{t.name: self.predicted[:, k] for k, t in enumerate(self.targets)},
                } | dict(zip(names, self.long_range.reshape(-1, len(names)).T, strict=True))
            case "elements" | "distances":
                return self.by_elements.columns(rows == "distances")
        raise ValueError(f"rows must be 'crystals', 'elements' or 'distances', got {rows!r}")


def explain(
    model: Model,
    structures: Any,
    max_sites: int | None = None,
    primitive: bool = True,
    merge: bool = True,
    disorder: str = "error",
) -> Explanation | DatasetExplanation:
    """Say what a model attends to in a crystal, or in many.

    Args:
        model: the model; the blocks of an ensemble are those of its members, one after another.
        structures: a Crystal, a path, CIF text, a pymatgen Structure or ASE Atoms; or a list or an
            iterator of them, of which any number can be explained in the memory of a few.
        max_sites: most sites of the supercell; None takes that of the model's config, 0 the cell
            as it is.
        primitive: whether to explain the primitive cell instead of the cell as it is.
        merge: whether to compute equal pairs once; attention is that of single sites either way.
        disorder: what to do about partial occupancy, as in ``read_cif``.

    Returns:
        The explanation of one crystal, or of a list or iterator.

    Raises:
        CifError, ValueError, TypeError: a structure cannot be used; says which and why.
    """
    options: dict[str, Any] = {
        "max_sites": max_sites,
        "primitive": primitive,
        "merge": merge,
        "disorder": disorder,
    }
    if not isinstance(structures, (list, tuple, Iterator)):
        return next(explain_each(model, [structures], **options))
    dataset = DatasetExplanation(model)
    for each in explain_each(model, structures, **options):
        dataset.add(each)
    return dataset


def explain_each(
    model: Model,
    structures: Iterable[Any],
    max_sites: int | None = None,
    primitive: bool = True,
    merge: bool = True,
    disorder: str = "error",
) -> Iterator[Explanation]:
    """Explain crystals one by one, in their order; arguments as ``explain``."""
    # Of equal pairs, k_softmax keeps some and drops others.
    merge = merge and model.config.k_softmax is None
    options = pair_options(model.config, max_sites, merge)
    known = model.element_table.isfinite().all(1).cpu().numpy()
    waiting: list[tuple[str, Crystal, Pairs]] = []
    for structure in structures:
        crystal = as_crystal(structure, disorder)
        name = crystal.name or crystal.reduced_formula
        if unknown := set(crystal.numbers[~known[crystal.numbers]].tolist()):
            raise ValueError(
                f"{name} holds {', '.join(SYMBOLS[z] for z in sorted(unknown))}, whose elemental "
                "properties are not known; a config with missing: mean fills them in"
            )
        crystal = crystal.primitive() if primitive else crystal
        pairs = find_pairs(crystal, **options)
        waiting.append((name, crystal, pairs))
        if sum(p.num_pairs for _, _, p in waiting) >= MAX_PAIRS:
            yield from _explain_together(model, waiting)
            waiting = []
    if waiting:
        yield from _explain_together(model, waiting)


@torch.no_grad()
def _explain_together(
    model: Model, crystals: Sequence[tuple[str, Crystal, Pairs]]
) -> Iterator[Explanation]:
    batch = Pairs.batch([pairs for _, _, pairs in crystals]).to(model.element_table.device)
    per_block: list[torch.Tensor] = []
    encoding = model.encode(model.site_inputs(batch), model.pair_inputs(batch), batch, per_block)
    values = model.properties(encoding).double().cpu().numpy()
    weights = torch.stack(per_block, 1).double() / batch.multiplicity[:, None, None]
    parts = weights.cpu().split([pairs.num_pairs for _, _, pairs in crystals])
    for k, (name, crystal, pairs) in enumerate(crystals):
        found = encoding[k].cpu().numpy()
        yield Explanation(name, crystal, pairs, parts[k].numpy(), values[k], model.targets, found)
