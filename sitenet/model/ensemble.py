"""Several models of one config that differ in their first weights, taken together: their mean
predicts, and how far they are apart says where the prediction is less sure (Lakshminarayanan et
al., NeurIPS 2017)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

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
    """A model whose predictions are the means of its members'.

    It predicts, explains, saves and loads as a SiteNet does. What stands beside each other in one
    tensor for all members: the inputs of sites, the encodings (crystals, members * post_pool[-1]).
    Blocks are counted through the members.

    Args:
        members: two models or more, equal in config (but for training) and targets.

    Raises:
        ValueError: they are not.
    """

    def __init__(self, members: Sequence[SiteNet]):
        super().__init__()
        if len(members) < 2:
            raise ValueError(f"an ensemble has two members or more, got {len(members)}")
        first = members[0]
        for number, member in enumerate(members[1:], 2):
            if _what_counts(member.config) != _what_counts(first.config):
                raise ValueError(f"member {number} of the ensemble has another config than the 1st")
            if member.targets != first.targets:
                raise ValueError(f"member {number} of the ensemble has other targets than the 1st")
        self.members: Any = nn.ModuleList(members)
        self.config = first.config
        self.calibration: Calibration | None = None

    @property
    def first(self) -> SiteNet:
        return cast(SiteNet, self.members[0])

    @property
    def targets(self) -> list[Target]:
        """What every member predicts."""
        return self.first.targets

    @property
    def element_table(self) -> Tensor:
        return self.first.element_table

    @property
    def lowest(self) -> float:
        """The lowest value that every member can predict."""
        return self.first.lowest

    @property
    def num_blocks(self) -> int:
        """Blocks of all members."""
        return self.config.blocks * len(self.members)

    @property
    def encoding_size(self) -> int:
        """Width of an encoding."""
        return self.first.encoding_size * len(self.members)

    def forward(self, pairs: Pairs) -> Tensor:
        """Predict from pairs, as ``SiteNet.forward``: the mean of the members."""
        return torch.stack([member(pairs) for member in self.members]).mean(0)

    def site_inputs(self, pairs: Pairs) -> Tensor:
        """Of each member, side by side: (rows, members * site inputs)."""
        return torch.cat([member.site_inputs(pairs) for member in self.members], 1)

    def pair_inputs(self, pairs: Pairs) -> Tensor:
        """As of every member: (pairs, F)."""
        return self.first.pair_inputs(pairs)

    def encode(
        self, x: Tensor, features: Tensor, pairs: Pairs, weights: list[Tensor] | None = None
    ) -> Tensor:
        """As ``SiteNet.encode``; (crystals, members * post_pool[-1])."""
        parts = zip(self.members, x.chunk(len(self.members), 1), strict=True)
        return torch.cat([m.encode(part, features, pairs, weights) for m, part in parts], 1)

    def encode_by_rows(self, finder: PairFinder, max_pairs: int = 2_000_000) -> Tensor:
        """As ``SiteNet.encode_by_rows``, member by member."""
        return torch.cat([m.encode_by_rows(finder, max_pairs) for m in self.members], 1)

    def properties(self, encoding: Tensor) -> Tensor:
        """Encodings -> means of the members' properties: (crystals, targets)."""
        return self._each(encoding).mean(0)

    @torch.no_grad()
    def spread(self, encoding: Tensor) -> Tensor:
        """Encodings -> standard deviations of the members' properties: (crystals, targets)."""
        return self._each(encoding).std(0)

    def _each(self, encoding: Tensor) -> Tensor:
        parts = zip(self.members, encoding.chunk(len(self.members), 1), strict=True)
        return torch.stack([member.properties(part) for member, part in parts])

    def save(self, path: str | Path, metadata: Mapping[str, Any] | None = None) -> None:
        """Write all members to one safetensors file; see ``sitenet.save``."""
        sitenet.save(self, path, metadata)

    def predict(self, structures: Iterable[Any] | Any, **options: Any) -> np.ndarray:
        """Predict from structures; see ``sitenet.predict``."""
        return sitenet.predict(self, structures, **options)


Model = SiteNet | Ensemble  # what is trained, saved and predicts


def _what_counts(config: SiteNetConfig) -> SiteNetConfig:
    return dataclasses.replace(config, training=SiteNetConfig().training)
