"""Site-Net, top to bottom as in the paper (Moran et al., Digital Discovery 2023, arXiv 2209.08190).

Every site of a crystal attends to every site of a supercell, guided by the pair's features. Pairs
come as CSR rows (``sitenet.Pairs``), so nothing is padded and equal pairs are computed once. Where
the published code differs from the paper, this follows the code and says so.

Two rearrangements, made in ``blocks.py``, change no number:

- The first layer on [x_i, x_j, e_ij] is W_i x_i + W_j x_j + W_e e_ij. The first two are products
  per site; only the last one is per pair.
- LayerNorm's affine part (scale, shift) moves into what follows it. Interaction features travel
  without theirs, which goes into the next block's W_e and bias; the hidden layer's goes into the
  weights of the logits, where the shift and the bias cancel in the softmax; that of the attention
  features is applied after the weighted sum, whose weights add up to 1.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sitenet
from sitenet.config import SiteNetConfig, load_config
from sitenet.crystal.elements import NUM_ELEMENTS, element_table
from sitenet.model.blocks import Block, Rows
from sitenet.model.layers import Embedding, Layer, norm_of, with_gradient_of
from sitenet.model.spectrum import Images
from sitenet.model.target import Target as Target
from sitenet.ops.attention import pair_embedding
from sitenet.ops.pair_inputs import log_multiplicity
from sitenet.ops.rows import EPSILON, by_site_for_backward, row_of_pair
from sitenet.pairs.features import pair_features
from sitenet.pairs.finder import PairFinder
from sitenet.pairs.pairs import Pairs

if TYPE_CHECKING:
    import numpy as np

    from sitenet.model.calibration import Calibration


class SiteNet(nn.Module):
    """The model: pairs of a batch of crystals -> their properties.

    Args:
        config: sizes and options; the paper's by default.
        targets: what it predicts, one decoder output each.

    Attributes:
        uses_oxidation: whether oxidation states are part of the input. A model whose training
            crystals had none never learned what they do: it takes them for 0.
        calibration: of a trained model.
    """

    blocks: nn.ModuleList  # of Block
    element_table: Tensor  # buffers
    target_mean: Tensor
    target_std: Tensor
    is_class: Tensor
    is_log: Tensor

    def __init__(
        self, config: SiteNetConfig | None = None, targets: Sequence[Target] = (Target(),)
    ):
        super().__init__()
        self.config = config = config or SiteNetConfig()
        sites = config.heads * config.site_dim
        layer = functools.partial(Layer, activation=config.activation, norm=config.norm)
        self.embedding = Embedding(NUM_ELEMENTS, config.embedding, config.max_norm)
        self.site_layer = layer(config.site_inputs, sites)
        self.pair_layer = layer(config.pair_inputs, config.heads * config.interaction_dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.blocks))
        if config.residual:
            self.norm = norm_of(config.norm, sites)
        summarised = config.blocks if config.summary == "all" else 1
        widths = (summarised * sites, *config.pre_pool)
        self.pre_pool = nn.ModuleList(map(layer, widths[:-1], widths[1:]))
        widths = (config.pre_pool[-1], *config.post_pool)
        layer = functools.partial(layer, norm=config.post_pool_norm)
        self.post_pool = nn.ModuleList(map(layer, widths[:-1], widths[1:]))
        self.decoder = nn.Linear(config.post_pool[-1], len(targets))
        # Nothing reads the last block's interaction features: it computes none, and these
        # parameters exist for the published names alone.
        last = self.each_block[-1]
        if last.renews:
            last.interaction.requires_grad_(False)
        features = torch.tensor(element_table(config), dtype=torch.get_default_dtype())
        self.register_buffer("element_table", features, persistent=False)
        self.register_buffer("target_mean", torch.zeros(len(targets)), persistent=False)
        self.register_buffer("target_std", torch.ones(len(targets)), persistent=False)
        is_class = torch.zeros(len(targets), dtype=torch.bool)
        self.register_buffer("is_class", is_class, persistent=False)
        self.register_buffer("is_log", is_class.clone(), persistent=False)
        self.targets = targets
        self.uses_oxidation = True
        self.calibration: Calibration | None = None
        if last.plain:
            why = f"hidden: {list(config.hidden)}" if config.k_softmax is None else "k_softmax"
            warnings.warn(
                f"this model runs without the fused kernels, more slowly and with more memory: "
                f"they have one hidden layer and a full softmax, and this config has {why}",
                stacklevel=2,
            )

    @property
    def each_block(self) -> list[Block]:
        """The attention blocks."""
        return [cast(Block, block) for block in self.blocks]

    @property
    def targets(self) -> list[Target]:
        """What the model predicts; assigning sets the scaling of the decoder's output, too."""
        return list(self._targets)

    @targets.setter
    def targets(self, targets: Sequence[Target]) -> None:
        if len(targets) != self.decoder.out_features:
            raise ValueError(f"expected {self.decoder.out_features} targets, got {len(targets)}")
        self._targets = tuple(targets)
        self.target_mean.copy_(torch.tensor([t.mean for t in targets]))
        self.target_std.copy_(torch.tensor([t.std for t in targets]))
        self.is_class.copy_(torch.tensor([t.kind == "class" for t in targets]))
        self.is_log.copy_(torch.tensor([t.scale == "log10" for t in targets]))

    @property
    def lowest(self) -> float:
        """The lowest value that the model can predict, on the scale that it learns: 0, or minus
        infinity."""
        return -math.inf if self.config.last_activation == "identity" else 0.0

    @property
    def num_blocks(self) -> int:
        """Attention blocks whose weights ``encode`` hands out."""
        return self.config.blocks

    @property
    def encoding_size(self) -> int:
        """Width of an encoding."""
        return self.decoder.in_features

    def forward(self, pairs: Pairs) -> Tensor:
        """Predict from pairs on the model's device: (crystals, targets), as ``decode``."""
        learns = torch.is_grad_enabled() and self.embedding.weight.requires_grad
        if self.config.max_norm and self.training and learns:
            self.embedding.scale_rows(pairs.numbers)
            if pairs.mixed_numbers is not None:
                self.embedding.scale_rows(pairs.mixed_numbers)
        return self.decode(self.encode(self.site_inputs(pairs), self.pair_inputs(pairs), pairs))

    def parameters_in_bfloat16(self) -> dict[str, nn.Parameter]:
        """The parameters, by name, that autocast would cast one by one: those of linear layers on
        the states of sites. Other products take theirs from ops, or stay in full precision."""
        modules: dict[str, nn.Module] = {}
        for number, block in enumerate(self.each_block):
            modules[f"blocks.{number}.out.linear"] = block.out.linear
            if block.residual:
                modules[f"blocks.{number}.add"] = block.add
            if block.spectrum is not None:
                modules[f"blocks.{number}.spectrum.layer.linear"] = block.spectrum.layer.linear
        for number, layer in enumerate(self.pre_pool):
            modules[f"pre_pool.{number}.linear"] = cast(Layer, layer).linear
        named = (
            (f"{m}.{n}", p) for m, module in modules.items() for n, p in module.named_parameters()
        )
        return dict(named)

    def site_inputs(self, pairs: Pairs) -> Tensor:
        """Embedding, elemental features and oxidation state of each row: (rows, site inputs). A
        disordered site has their means over its species."""
        pairs.check()
        elements = self.element_inputs(pairs.numbers)
        if pairs.mixed_numbers is not None:
            elements = pairs.mix(elements, self.element_inputs(pairs.mixed_numbers))
        oxidation = pairs.oxidation.to(elements.dtype)
        if not self.uses_oxidation:
            oxidation = torch.zeros_like(oxidation)
        return torch.cat([elements, oxidation[:, None]], 1)

    def element_inputs(self, numbers: Tensor) -> Tensor:
        """Embedding and elemental features of elements: (n, site inputs - 1)."""
        return torch.cat([self.embedding(numbers), self.element_table[numbers]], 1)

    def pair_inputs(self, pairs: Pairs) -> Tensor:
        """The pair features that the config names, and the distance basis: (pairs, F)."""
        config, dtype = self.config, self.element_table.dtype
        basis, reach = config.distance_basis, config.reach or 0.0
        return pair_features(pairs, config.interaction_features, dtype, basis, reach)

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
        """Attend, then pool.

        Args:
            x: (rows, site inputs); or, without the other arguments, structures as in ``predict``,
                whose options it takes then: see ``sitenet.encode``.
            features: (pairs, F), the first one the distance.
            pairs: which sites are paired.
            weights: a list that receives each block's attention weights, (pairs, heads); a merged
                pair has the sum over the pairs that it stands for.
            options: max_sites, primitive, merge and disorder, with structures only.

        Returns:
            (crystals, encoding_size): a tensor for pairs, a numpy array for structures.
        """
        if features is None:
            return sitenet.encode(self, x, **options)
        rows = self.rows(pairs, features)
        x = self.embed_sites(x)  # (rows, D)
        e, e_layer = self.embed(features), self.pair_layer  # (pairs, E)
        summary = []
        blocks = self.each_block
        for block in blocks:
            last = block is blocks[-1]
            x, e, w = block(
                x, e, e_layer, rows, need_interaction=not last, need_weights=weights is not None
            )
            if block.renews:
                e_layer = block.interaction
            summary.append(x)
            if weights is not None:
                weights.append(w)
        return self.pool(self.summarise(summary), pairs)

    def summarise(self, states: list[Tensor]) -> Tensor:
        """The states after each block -> the input of pooling, (rows, blocks * D) or (rows, D)."""
        x = torch.stack(states[-1:] if self.config.summary == "last" else states, 1)
        return (self.norm(x) if self.config.residual else x).flatten(1)

    def rows(self, pairs: Pairs, features: Tensor) -> Rows:
        """The pairs as the blocks see them. The cutoff is strict and on the unscaled first feature,
        so that the self pair always stays."""
        pairs.check()
        weights = log_multiplicity(
            pairs.multiplicity,
            pairs.distance,
            features,
            cutoff=self.config.distance_cutoff,
            reach=(self.config.reach or 0.0) if self.config.envelope else 0.0,
        )
        images = None
        if self.config.spectrum_channels:
            images = Images.of(pairs, self.config, features.dtype)
        by_site = by_site_for_backward(pairs.sites, pairs.num_rows)
        return Rows(pairs.offsets, pairs.sites, weights, images, by_site)

    def embed_sites(self, x: Tensor) -> Tensor:
        """Site inputs -> the first states, (rows, D); in full precision, which elemental features
        and sums of residual states need."""
        with torch.autocast(x.device.type, enabled=False):
            return self.site_layer(x)

    def embed(self, features: Tensor) -> Tensor:
        """Pair features (pairs, F) -> interaction features without the affine part of their norm,
        (pairs, E)."""
        layer = self.pair_layer
        return pair_embedding(
            features,
            layer.linear.weight,
            layer.linear.bias,
            activation=layer.activation,
            norm=layer.norm is not None,
            eps=EPSILON,
        )

    def pool(self, x: Tensor, pairs: Pairs) -> Tensor:
        """States of the rows -> encodings of the crystals. A row counts for ``pairs.count`` sites;
        images are equal, so the mean is over unique sites, as published."""
        for layer in self.pre_pool:
            x = layer(x)
        crystal = row_of_pair(pairs.crystals, x.shape[0])
        num_crystals = pairs.crystals.shape[0] - 1
        x = x.to(self.decoder.weight.dtype)  # sums lose too much in bfloat16
        if self.config.pooling == "mean":
            count = pairs.count.to(x.dtype)
            total = count.new_zeros(num_crystals).index_add(0, crystal, count)
            x = x.new_zeros(num_crystals, x.shape[1]).index_add(0, crystal, count[:, None] * x)
            x = x / total[:, None]
        else:
            index = crystal[:, None].expand_as(x)
            lowest = x.new_full((num_crystals, x.shape[1]), -torch.inf)
            x = lowest.scatter_reduce(0, index, x, "amax")
        with torch.autocast(x.device.type, enabled=False):
            for layer in self.post_pool:
                x = layer(x)
        return x  # (crystals, post_pool[-1])

    def decode(self, encoding: Tensor) -> Tensor:
        """Encodings -> properties on the scale that is learned (their units, or logarithms of
        them), logits of classes: (crystals, targets)."""
        return self.activate(self.raw(encoding))

    def raw(self, encoding: Tensor) -> Tensor:
        """Encodings -> as ``decode``, before the last activation."""
        with torch.autocast(encoding.device.type, enabled=False):
            return self.decoder(encoding) * self.target_std + self.target_mean

    def activate(self, y: Tensor) -> Tensor:
        """Apply the last activation to properties that are values."""
        z = y
        match self.config.last_activation:
            case "relu":
                z = torch.relu(y)
            case "softplus":
                z = F.softplus(y)
            case "trelu":  # a negative prediction still learns
                z = with_gradient_of(y.clamp(min=0), y)
        if all(target.kind == "value" for target in self._targets):
            return z
        return torch.where(self.is_class, y, z)

    def learned(self, encoding: Tensor) -> Tensor:
        """Encodings -> values on the scale that is learned, and probabilities of class 1."""
        y = self.decode(encoding)
        return torch.where(self.is_class, torch.sigmoid(y), y)

    def in_units(self, y: Tensor) -> Tensor:
        """Convert values from the scale that is learned to their units; leave probabilities."""
        return torch.where(self.is_log, 10**y, y)

    def properties(self, encoding: Tensor) -> Tensor:
        """Encodings -> what is reported: values in their units, and probabilities of class 1."""
        return self.in_units(self.learned(encoding))

    def spread(self, encoding: Tensor) -> Tensor | None:
        """None: only an ensemble has a spread."""
        return None

    @torch.no_grad()
    def encode_by_rows(self, finder: PairFinder, max_pairs: int = 2_000_000) -> Tensor:
        """Encode one crystal whose pairs do not fit into memory, some rows at a time.

        Nothing of the size of all pairs is kept: for every block, the pairs of each part are
        searched for again and their interaction features computed from the start, with the states
        that earlier blocks left.

        Args:
            finder: the crystal's pairs.
            max_pairs: largest number of pairs held at a time; one row's are always held.

        Returns:
            (1, post_pool[-1]), as ``encode`` of all the pairs.
        """
        step = max(1, max_pairs // finder.row_size)
        device = self.element_table.device
        whole = finder.rows(0, 0).to(device)  # what rows have, without their pairs
        states = [self.embed_sites(self.site_inputs(whole))]
        for _ in self.blocks:
            parts = [
                self._attend_part(finder.rows(i, min(i + step, finder.num_rows)).to(device), states)
                for i in range(0, finder.num_rows, step)
            ]
            states.append(torch.cat(parts))
        return self.pool(self.summarise(states[1:]), whole)

    def _attend_part(self, pairs: Pairs, states: list[Tensor]) -> Tensor:
        """The next states of a part's rows, given the states before each of the first blocks."""
        features = self.pair_inputs(pairs)
        rows = self.rows(pairs, features)
        e, e_layer = self.embed(features), self.pair_layer
        for number, (block, x) in enumerate(zip(self.each_block, states, strict=False), 1):
            need = number < len(states)
            x, e, _ = block(x, e, e_layer, rows, pairs.first_row, need_interaction=need)
            if block.renews:
                e_layer = block.interaction
        return x

    @classmethod
    def from_config(
        cls,
        config: str | Path | Mapping[str, Any] | SiteNetConfig,
        targets: Sequence[Target] = (Target(),),
        **changes: Any,
    ) -> SiteNet:
        """A model with random weights.

        Args:
            config: a named config ("paper", ...), a YAML file, a dict of field names or of
                published keys, or a SiteNetConfig.
            targets: what it predicts.
            changes: fields of the config to change.
        """
        return cls(load_config(config).replace(**changes), targets)

    @classmethod
    def from_published(
        cls,
        config: str | Path | Mapping[str, Any] | SiteNetConfig,
        state: str | Path | Mapping[str, Any],
    ) -> SiteNet:
        """Build a model with published weights; see ``sitenet.from_published``."""
        return sitenet.from_published(config, state)

    def to_published(self) -> dict[str, Tensor]:
        """The weights under their published names; see ``sitenet.to_published``."""
        return sitenet.to_published(self)

    def save(
        self,
        path: str | Path,
        metadata: Mapping[str, Any] | None = None,
        bits: int | None = None,
    ) -> None:
        """Write the model to a safetensors file; see ``sitenet.save``."""
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
