"""Explanations: attention weights by distance, by elements and by sites, in one crystal or in
many."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import sitenet
from sitenet.crystal.disorder import find_places
from sitenet.inference.attention_histograms import (
    DistanceHistogram,
    ElementHistogram,
    weight_names,
)
from sitenet.inference.explanation_text import sentences
from sitenet.pairs.pairs import Pairs

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from sitenet.crystal.crystal import Crystal
    from sitenet.model.ensemble import Model
    from sitenet.model.sitenet import Target


class Explained(ABC):
    """What a model attends to, in one crystal or in many.

    Attributes:
        targets: What the model predicts.
        members: Members of the ensemble whose blocks are counted one after another; 1 for a single
            model.
    """

    targets: list[Target]
    members: int

    @property
    @abstractmethod
    def by_distance(self) -> DistanceHistogram:
        """Pairs of sites, counted by distance and weight."""

    @property
    @abstractmethod
    def by_elements(self) -> ElementHistogram:
        """Attention between elements, by distance."""

    @property
    @abstractmethod
    def long_range(self) -> np.ndarray:
        """Long-range coefficient per block and head, (..., blocks, heads) in angstrom."""

    @abstractmethod
    def columns(self, rows: str | None = None) -> dict[str, np.ndarray]:
        """Return a table as columns of equal length, by name; ``rows`` says what a row is."""

    def narrow_columns(self, rows: str | None = None) -> dict[str, np.ndarray]:
        """Return ``columns`` without those per block and head, which has their means only."""
        names = weight_names(*self.by_distance.self_attention.shape)
        per_head = {*names, *(f"long_range_{name}" for name in names)}
        return {n: column for n, column in self.columns(rows).items() if n not in per_head}

    def summary(self) -> str:
        """Say in about six sentences, a line each, which elements attend to which, how far the
        attention reaches, and how the heads differ."""
        return "\n".join(sentences(self))

    def table(self, rows: str | None = None) -> pandas.DataFrame:
        """Return ``columns`` as a pandas DataFrame."""
        try:
            import pandas
        except ImportError:
            raise ImportError(
                "table() needs pandas: pip install 'sitenet[table]'; columns() works without"
            ) from None
        return pandas.DataFrame(self.columns(rows))

    def plot(self, path: str | Path | None = None, **options: Any) -> Figure:
        """Plot attention against distance; see ``sitenet.plot_attention``."""
        return sitenet.plot_attention(self, path, **options)


@dataclass(eq=False)
class Explanation(Explained):
    """What a model attends to in one crystal.

    Attributes:
        name: Name of the crystal, or its formula.
        crystal: The cell that was computed: the primitive one, unless another was asked for.
        pairs: Pairs of its sites, on the CPU.
        weights: (pairs, blocks, heads), the attention weight of each of a pair's ``multiplicity``
            supercell sites. The weights of a site, times their multiplicities, add up to 1.
        predicted: (targets,) in the units of ``targets``; for a class, the probability of class 1.
        targets: What the model predicts.
        encoding: (post_pool[-1],), the vector that the prediction is computed from.
        members: Members of the ensemble; 1 for a single model.
    """

    name: str
    crystal: Crystal
    pairs: Pairs
    weights: np.ndarray
    predicted: np.ndarray
    targets: list[Target]
    encoding: np.ndarray
    members: int = 1

    @property
    def long_range(self) -> np.ndarray:
        """The long-range coefficient: the largest product of distance and weight of any pair.

        Returns:
            (blocks, heads) in angstrom.

        Source: the published analysis, LR = max_i max_j d_ij w_ij.
        """
        return (self._distance[:, None, None] * self.weights).max(0)

    @property
    def received(self) -> np.ndarray:
        """The attention that each site receives from all sites of the cell, itself included.

        Returns:
            (sites, blocks, heads); the mean over the sites is 1.
        """
        pairs = self.pairs
        total = np.zeros((pairs.num_rows, *self.weights.shape[1:]))
        np.add.at(total, pairs.sites.numpy(), self.weights * self._copies[:, None, None])
        return (total / pairs.count.numpy()[:, None, None])[self._orbit]

    @property
    def kept(self) -> np.ndarray:
        """The attention that each site pays to itself: (sites, blocks, heads)."""
        itself = self._distance == 0
        total = np.zeros((self.pairs.num_rows, *self.weights.shape[1:]))
        np.add.at(total, self._rows[itself], self.weights[itself])
        return total[self._orbit]

    @property
    def by_distance(self) -> DistanceHistogram:
        histogram = DistanceHistogram(*self.weights.shape[1:])
        histogram.add(self._distance, self.weights, self._copies)
        return histogram

    @property
    def by_elements(self) -> ElementHistogram:
        histogram = ElementHistogram(*self.weights.shape[1:])
        self._count_elements(histogram)
        return histogram

    def columns(self, rows: str | None = None) -> dict[str, np.ndarray]:
        """Return a table as columns of equal length, by name.

        Blocks of an ensemble are counted through its members.

        Args:
            rows: What a row is:
                "pairs" (default): a pair with ``site`` and ``neighbour`` (for merged pairs, the
                first site of each orbit), their elements, ``distance`` in angstrom,
                ``multiplicity``, the mean ``weight``, and the weight per block and head;
                "sites": a site of the cell with its element, fractional coordinates, the attention
                that it receives (1 on average) and pays to itself, averaged over blocks and heads,
                and the attention that it receives per block and head;
                "elements", "distances": an element and a neighbour's element, for all distances
                or per 0.5 angstrom; see ``ElementHistogram.columns``.
                The element of a site that several species share is all of them: ``Fe0.5Ni0.5``.

        Raises:
            ValueError: There is no such table.
        """
        names = weight_names(*self.weights.shape[1:])
        match rows:
            case None | "pairs":
                i, j, labels = self._rows, self.pairs.sites.numpy(), np.array(self._row_labels)
                return {
                    "site": self._first_sites[i],
                    "element": labels[i],
                    "neighbour": self._first_sites[j],
                    "neighbour_element": labels[j],
                    "distance": self._distance,
                    "multiplicity": self.pairs.multiplicity.numpy(),
                    "weight": self.weights.mean((1, 2)),
                } | dict(zip(names, self.weights.reshape(len(i), -1).T, strict=True))
            case "sites":
                received = self.received.reshape(-1, len(names))
                frac = self.crystal.frac[find_places(self.crystal).first]
                return {
                    "site": np.arange(len(received)),
                    "element": np.array(self.crystal.site_labels()),
                    **dict(zip("xyz", frac.T, strict=True)),
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
        """The row of each pair."""
        return self.pairs.rows.numpy()

    @cached_property
    def _first_sites(self) -> np.ndarray:
        """The first site of each row's orbit."""
        return np.unique(self._orbit, return_index=True)[1]

    @cached_property
    def _orbit(self) -> np.ndarray:
        """The row that stands for each site, which several species may share."""
        orbit = self.pairs.orbit.numpy()
        if self.pairs.mixed_rows is None:
            return orbit
        return orbit[find_places(self.crystal).first]  # it has an entry per species

    @cached_property
    def _row_labels(self) -> list[str]:
        labels = self.crystal.site_labels()
        return [labels[site] for site in self._first_sites]

    @cached_property
    def _copies(self) -> np.ndarray:
        """Number of pairs of sites that each pair stands for."""
        count = self.pairs.count.numpy().astype(np.int64)
        return count[self._rows] * self.pairs.multiplicity.numpy()

    def _count_elements(self, histogram: ElementHistogram) -> None:
        labels, kind = np.unique(self._row_labels, return_inverse=True)
        sizes = np.bincount(self._rows, self.pairs.multiplicity.numpy())  # of whole rows
        sites = np.bincount(kind, self.pairs.count.numpy()).astype(int)
        histogram.add(
            self._distance,
            self.weights,
            self._copies,
            even=1 / sizes[self._rows],
            kinds=np.stack([kind[self._rows], kind[self.pairs.sites.numpy()]], 1),
            labels=labels.tolist(),
            sites=sites.tolist(),
        )


class DatasetExplanation(Explained):
    """What a model attends to in many crystals, added up as they are computed.

    Memory does not grow with the pairs, and by about 100 bytes per crystal.

    Attributes:
        names: Names of the crystals.
        targets: What the model predicts.
        members: Members of the ensemble; 1 for a single model.
    """

    def __init__(self, model: Model) -> None:
        shape = model.num_blocks, model.config.heads
        self.names: list[str] = []
        self.targets = model.targets
        self.members = count_members(model)
        self._predicted: list[np.ndarray] = []
        self._long_range: list[np.ndarray] = []
        self._by_distance = DistanceHistogram(*shape)
        self._by_elements = ElementHistogram(*shape)

    def add(self, explanation: Explanation) -> None:
        """Add a crystal."""
        self.names.append(explanation.name)
        self._predicted.append(explanation.predicted)
        self._long_range.append(explanation.long_range)
        self._by_distance.add(explanation._distance, explanation.weights, explanation._copies)
        explanation._count_elements(self._by_elements)

    @property
    def by_distance(self) -> DistanceHistogram:
        return self._by_distance

    @property
    def by_elements(self) -> ElementHistogram:
        return self._by_elements

    @property
    def predicted(self) -> np.ndarray:
        """(crystals, targets), in the units of ``targets``."""
        return np.array(self._predicted).reshape(len(self.names), len(self.targets))

    @property
    def long_range(self) -> np.ndarray:
        """Long-range coefficient of each crystal: (crystals, blocks, heads) in angstrom."""
        return np.array(self._long_range).reshape(-1, *self.by_distance.self_attention.shape)

    def columns(self, rows: str | None = None) -> dict[str, np.ndarray]:
        """Return a table as columns of equal length, by name.

        Args:
            rows: What a row is:
                "crystals" (default): a crystal with its predictions and its long-range coefficient
                in angstrom, on average and per block and head;
                "elements", "distances": as in ``Explanation.columns``, over all crystals.

        Raises:
            ValueError: There is no such table.
        """
        match rows:
            case None | "crystals":
                shape = self.by_distance.self_attention.shape
                names = [f"long_range_{name}" for name in weight_names(*shape)]
                return {
                    "name": np.array(self.names, dtype=object),
                    **{t.name: self.predicted[:, k] for k, t in enumerate(self.targets)},
                    "long_range": self.long_range.mean((1, 2)),
                } | dict(zip(names, self.long_range.reshape(-1, len(names)).T, strict=True))
            case "elements" | "distances":
                return self.by_elements.columns(rows == "distances")
        raise ValueError(f"rows must be 'crystals', 'elements' or 'distances', got {rows!r}")


def count_members(model: Model) -> int:
    """Members of an ensemble; 1 for a single model."""
    return model.num_blocks // model.config.blocks
