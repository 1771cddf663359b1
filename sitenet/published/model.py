"""The published model, computed as published: padded to the longest crystal, with the concatenated
features of every pair in memory, under the published parameter names.

The baseline of the benches, and in float64 an oracle of the tests.

Source: Moran et al., Digital Discovery 2023, arXiv 2209.08190, and its code.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sitenet.config import SiteNetConfig

ACTIVATIONS = {
    "mish": lambda x: x * torch.tanh(F.softplus(x)),
    "relu": torch.relu,
    "none": lambda x: x,
}


@dataclass
class PaddedBatch:
    """Crystals as the published code batches them: j padded with zeros to the longest crystal.

    ``features`` (sites, longest, F), ``site_j`` (sites, longest) the unique site of each j,
    ``padding`` (sites, longest) True beyond the crystal, ``crystal`` (sites,), ``numbers``
    (sites,), ``site_features`` (sites, features + 1) with the oxidation state last.
    """

    features: Tensor
    site_j: Tensor
    padding: Tensor
    crystal: Tensor
    numbers: Tensor
    site_features: Tensor

    @classmethod
    def from_rows(
        cls,
        features: Tensor,
        offsets: Tensor,
        sites: Tensor,
        crystals: Tensor,
        numbers: Tensor,
        site_features: Tensor,
    ) -> PaddedBatch:
        """Pad CSR rows without multiplicities: features (pairs, F), offsets (rows + 1,),
        sites (pairs,), crystals (crystals + 1,) row offsets, numbers and site_features by row."""
        length = offsets.diff()
        longest = int(length.max())
        column = torch.arange(longest, device=offsets.device)
        padding = column >= length[:, None]
        pair = (offsets[:-1, None] + column).masked_fill(padding, 0)
        return cls(
            features=features[pair].masked_fill(padding[..., None], 0.0),
            site_j=sites.long()[pair].masked_fill(padding, 0),
            padding=padding,
            crystal=torch.arange(len(crystals) - 1).to(crystals).repeat_interleave(crystals.diff()),
            numbers=numbers,
            site_features=site_features,
        )


class _Norm(nn.Module):
    """LayerNorm under the published name ``.Norm``, or nothing."""

    def __init__(self, kind: str, width: int):
        super().__init__()
        self.Norm = nn.LayerNorm(width) if kind == "layer" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.Norm(x)


class _PairMLP(nn.Module):
    """Linear -> activation -> norm, once for each width."""

    def __init__(self, inputs: int, widths: tuple[int, ...], config: SiteNetConfig):
        super().__init__()
        steps = list(zip((inputs, *widths), widths, strict=False))
        self.linear_layers = nn.ModuleList(nn.Linear(a, b) for a, b in steps)
        self.norm_layers = nn.ModuleList(_Norm(config.norm, b) for b in widths)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        for linear, norm in zip(self.linear_layers, self.norm_layers, strict=True):
            x = norm(self.activation(linear(x)))
        return x


class PublishedBlock(nn.Module):
    """One attention block computed as published: everything of size pairs x width in memory."""

    def __init__(self, config: SiteNetConfig):
        super().__init__()
        sites = config.heads * config.site_dim
        interaction = config.heads * config.interaction_dim
        width = 2 * sites + interaction
        self.k_softmax = config.k_softmax
        self.ije_to_multihead = _PairMLP(width, config.hidden, config)
        self.pre_softmax_linear = nn.Linear(config.hidden[-1], config.heads)
        self.ije_to_Interaction_Features = _PairMLP(width, (interaction,), config)
        self.ije_to_attention_features = _PairMLP(width, (config.site_dim,), config)
        self.global_linear = _PairMLP(sites, (sites,), config)

    def forward(
        self, x: Tensor, e: Tensor, site_j: Tensor, masked: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (sites, D), e (sites, longest, E), site_j and masked (sites, longest) -> the next x and
        e, and the attention weights (sites, longest, heads)."""
        x_i = x[:, None, :].expand(-1, e.shape[1], -1)
        b = torch.cat([x_i, x[site_j], e], 2)  # (sites, longest, 2 D + E)
        logits = self.pre_softmax_linear(self.ije_to_multihead(b))
        logits = logits.masked_fill(masked[..., None], -torch.inf)
        if self.k_softmax is not None:
            kept = torch.topk(logits, min(self.k_softmax, logits.shape[1]), 1).indices
            left_out = torch.ones_like(logits, dtype=torch.bool).scatter(1, kept, False)
            logits = logits.masked_fill(left_out, -torch.inf)
        weights = torch.softmax(logits, 1)  # (sites, longest, heads)
        a = self.ije_to_attention_features(b)  # (sites, longest, A)
        y = torch.einsum("ijk,ije->iek", weights, a).flatten(1)  # (sites, A * heads)
        return self.global_linear(y), self.ije_to_Interaction_Features(b), weights


class PublishedEncoder(nn.Module):
    """Site and pair features -> attention blocks -> pooling -> encoding, as published."""

    def __init__(self, config: SiteNetConfig):
        super().__init__()
        self.config = config
        sites = config.heads * config.site_dim
        interaction = config.heads * config.interaction_dim
        self.activation = ACTIVATIONS[config.activation]
        self.site_featurization = nn.Linear(config.site_inputs, sites)
        self.site_featurization_norm = _Norm(config.norm, sites)
        self.interaction_featurization = nn.Linear(len(config.interaction_features), interaction)
        self.interaction_featurization_norm = _Norm(config.norm, interaction)
        self.Attention_Blocks = nn.ModuleList(PublishedBlock(config) for _ in range(config.blocks))
        pre = (config.blocks * sites, *config.pre_pool)
        self.pre_pool_layers = nn.ModuleList(map(nn.Linear, pre[:-1], pre[1:]))
        self.pre_pool_layers_norm = nn.ModuleList(_Norm(config.norm, n) for n in pre[1:])
        post = (pre[-1], *config.post_pool)
        self.post_pool_layers = nn.ModuleList(map(nn.Linear, post[:-1], post[1:]))
        self.post_pool_layers_norm = nn.ModuleList(
            nn.LayerNorm(n) if config.post_pool_norm == "layer" else nn.Identity() for n in post[1:]
        )

    def forward(self, x: Tensor, batch: PaddedBatch) -> Tensor:
        """x (sites, inputs) -> (crystals, post_pool[-1])."""
        x = self.site_featurization_norm(self.activation(self.site_featurization(x)))
        e = self.activation(self.interaction_featurization(batch.features))
        e = self.interaction_featurization_norm(e)
        masked = batch.padding
        if self.config.distance_cutoff is not None:
            masked = masked | (batch.features[..., 0] > self.config.distance_cutoff)
        summary = []
        for block in self.Attention_Blocks:
            x, e, _ = block(x, e, batch.site_j, masked)
            summary.append(x)
        x = torch.cat(summary, 1)
        for linear, norm in zip(self.pre_pool_layers, self.pre_pool_layers_norm, strict=True):
            x = norm(self.activation(linear(x)))
        counts = torch.bincount(batch.crystal)
        parts = x.split(counts.tolist())
        if self.config.pooling == "mean":
            x = torch.stack([part.mean(0) for part in parts])
        else:
            x = torch.stack([part.max(0).values for part in parts])
        for linear, norm in zip(self.post_pool_layers, self.post_pool_layers_norm, strict=True):
            x = norm(self.activation(linear(x)))
        return x


class _TReLU(torch.autograd.Function):
    """max(x, 0), with the gradient of x."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return grad


LAST_ACTIVATIONS = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "softplus": F.softplus,
    "trelu": _TReLU.apply,
}


class PublishedSiteNet(nn.Module):
    """The published model under the published parameter names (``load_state_dict`` takes them)."""

    def __init__(self, config: SiteNetConfig):
        super().__init__()
        self.config = config
        self.encoder = PublishedEncoder(config)
        self.decoder = nn.Linear(config.post_pool[-1], 1)
        self.Elemental_Embeddings = nn.Embedding(200, config.embedding, max_norm=1.0)

    def forward(self, batch: PaddedBatch) -> Tensor:
        """-> (crystals,)"""
        embedded = self.Elemental_Embeddings(batch.numbers)
        encoding = self.encoder(torch.cat([embedded, batch.site_features], 1), batch)
        return LAST_ACTIVATIONS[self.config.last_activation](self.decoder(encoding)).squeeze(1)
