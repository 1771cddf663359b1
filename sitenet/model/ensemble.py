"""Ensembles: models of one config, trained from different initial weights. Their mean is the
prediction, and their spread shows where it is less certain (Lakshminarayanan et al., NeurIPS
2017)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

import torch
from torch import Tensor, nn

import sitenet
from sitenet.config import SiteNetConfig
from sitenet.model.sitenet import SiteNet, Target
from sitenet.pairs.finder import PairFinder
from sitenet.pairs.pairs import Pairs

if TYPE_CHECKING:
    import numpy as np

    from sitenet.model.calibration import Calibration


class Ensemble(nn.Module):
    """A model whose predictions are the means of its members' predictions.

    It predicts, explains, saves and loads as a SiteNet does. The members' site inputs and encodings
    are concatenated along dimension 1, and its blocks are those of all members in order.

    Args:
        members: two or more models, equal in config (but for training) and targets.

    Raises:
        ValueError: they differ, or there are fewer than two.
    """

    def __init__(self, members: Sequence[SiteNet]):
        super().__init__()
        if len(members) < 2:
            raise ValueError(f"an ensemble has two members or more, got {len(members)}")
        first = members[0]
        for number, member in enumerate(members[1:], 2):
            if _without_training(member.config) != _without_training(first.config):
                raise ValueError(f"member {number} of the ensemble has another config than the 1st")
            if member.targets != first.targets:
                raise ValueError(f"member {number} of the ensemble has other targets than the 1st")
            if member.uses_oxidation != first.uses_oxidation:
                raise ValueError(
                    f"member {number} of the ensemble differs from the 1st in uses_oxidation"
                )
        self.members = nn.ModuleList(members)
        self.config = first.config
        self.calibration: Calibration | None = None

    @property
    def each(self) -> list[SiteNet]:
        """The members."""
        return [cast(SiteNet, member) for member in self.members]

    @property
    def first(self) -> SiteNet:
        """The first member."""
        return cast(SiteNet, self.members[0])

    @property
    def uses_oxidation(self) -> bool:
        """Whether oxidation states are part of the input, as in ``SiteNet``."""
        return self.first.uses_oxidation

    @uses_oxidation.setter
    def uses_oxidation(self, value: bool) -> None:
        for member in self.each:
            member.uses_oxidation = value

    @property
    def targets(self) -> list[Target]:
        """What every member predicts."""
        return self.first.targets

    @property
    def element_table(self) -> Tensor:
        return self.first.element_table

    @property
    def lowest(self) -> float:
        """The lowest value that every member can predict, as in ``SiteNet``."""
        return self.first.lowest

    @property
    def num_blocks(self) -> int:
        """Attention blocks of all members together."""
        return self.config.blocks * len(self.members)

    @property
    def encoding_size(self) -> int:
        """Width of an encoding."""
        return self.first.encoding_size * len(self.members)

    def forward(self, pairs: Pairs) -> Tensor:
        """Predict from pairs, as ``SiteNet.forward``."""
        return self.decode(self.encode(self.site_inputs(pairs), self.pair_inputs(pairs), pairs))

    def site_inputs(self, pairs: Pairs) -> Tensor:
        """The members' site inputs: (rows, members * site inputs)."""
        return torch.cat([member.site_inputs(pairs) for member in self.each], 1)

    def pair_inputs(self, pairs: Pairs) -> Tensor:
        """The pair features, the same for every member: (pairs, F)."""
        return self.first.pair_inputs(pairs)

    @overload
    def encode(
        self, x: Tensor, features: Tensor, pairs: Pairs, weights: list[Tensor] | None = None
    ) -> Tensor: ...

    @overload
    def encode(self, x: Iterable[Any] | Any, **options: Any) -> np.ndarray: ...

    def encode(
        self,
        x: Any,
        features: Any = None,
        pairs: Any = None,
        weights: list[Tensor] | None = None,
        **options: Any,
    ) -> Any:
        """Encode pairs or structures as ``SiteNet.encode``: (crystals, members * post_pool[-1])."""
        if features is None:
            return sitenet.encode(self, x, **options)
        parts = zip(self.each, x.chunk(len(self.members), 1), strict=True)
        return torch.cat([m.encode(part, features, pairs, weights) for m, part in parts], 1)

    def encode_by_rows(self, finder: PairFinder, max_pairs: int = 2_000_000) -> Tensor:
        """Encode as ``SiteNet.encode_by_rows``, member by member."""
        return torch.cat([m.encode_by_rows(finder, max_pairs) for m in self.each], 1)

    def decode(self, encoding: Tensor) -> Tensor:
        """Encodings -> means over the members, on the scale of ``SiteNet.decode``:
        (crystals, targets). The mean is taken before the last activation, so that a member's value
        below 0 balances another's above it."""
        return self.first.activate(self.raw(encoding))

    def raw(self, encoding: Tensor) -> Tensor:
        """Encodings -> means over the members before the last activation, as ``SiteNet.raw``."""
        return self._over_members(SiteNet.raw, encoding).mean(0)

    def learned(self, encoding: Tensor) -> Tensor:
        """Encodings -> values as ``decode`` gives them, and means of the members' probabilities of
        class 1."""
        probability = self._over_members(SiteNet.learned, encoding).mean(0)
        return torch.where(self.first.is_class, probability, self.decode(encoding))

    def properties(self, encoding: Tensor) -> Tensor:
        """Encodings -> what is reported: values in their units, and probabilities of class 1."""
        return self.first.in_units(self.learned(encoding))

    @torch.no_grad()
    def spread(self, encoding: Tensor) -> Tensor:
        """Encodings -> standard deviations over the members, on the scale that is learned:
        (crystals, targets)."""
        values = self._over_members(SiteNet.learned, encoding)
        return values.std(0) if len(encoding) else values[0]  # torch warns of an empty one

    def _over_members(
        self, function: Callable[[SiteNet, Tensor], Tensor], encoding: Tensor
    ) -> Tensor:
        """A function of each member and its encodings: (members, crystals, targets)."""
        parts = zip(self.each, encoding.chunk(len(self.members), 1), strict=True)
        return torch.stack([function(member, part) for member, part in parts])

    def save(
        self,
        path: str | Path,
        metadata: Mapping[str, Any] | None = None,
        bits: int | None = None,
    ) -> None:
        """Write all members to one safetensors file; see ``sitenet.save``."""
        sitenet.save(self, path, metadata, bits)

    def predict(self, structures: Iterable[Any] | Any, **options: Any) -> np.ndarray:
        """Predict from structures; see ``sitenet.predict``."""
        return sitenet.predict(self, structures, **options)

    def table(self, structures: Iterable[Any] | Any, **options: Any) -> sitenet.PredictionTable:
        """Predict from structures, with intervals and doubts; see ``sitenet.predict_table``."""
        return sitenet.predict_table(self, structures, **options)

    def neighbours(self, structures: Iterable[Any] | Any, count: int = 5) -> list[Any]:
        """Find the nearest training crystals; see ``sitenet.neighbours``."""
        return sitenet.neighbours(self, structures, count)


Model = SiteNet | Ensemble  # what is trained, saved and predicts


def _without_training(config: SiteNetConfig) -> SiteNetConfig:
    return dataclasses.replace(config, training=SiteNetConfig().training)
