"""Attention blocks of Site-Net."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sitenet.config import SiteNetConfig
from sitenet.model.layers import Layer, norm_of
from sitenet.model.spectrum import Images, Spectrum
from sitenet.ops.attention import attention
from sitenet.ops.block_weights import BlockParameters, BlockWeights, block_weights
from sitenet.ops.rows import EPSILON, BySite, row_of_pair, row_softmax, weighted_sums
from sitenet.ops.site_terms import site_terms


@dataclass
class Rows:
    """The pairs as the blocks see them: CSR offsets (rows + 1,), each pair's site (pairs,), and
    ln(multiplicity), (pairs,), -inf beyond the cutoff; the images that they stand for, if the model
    has a power spectrum; and the pairs by site, for the backward pass on a GPU."""

    offsets: Tensor
    sites: Tensor
    log_multiplicity: Tensor
    images: Images | None = None
    by_site: BySite | None = None


class Block(nn.Module):
    """One attention block: g^W weighs the pairs, g^A computes what they pass on, g^I renews e_ij,
    and g^S renews the states, from the attention features and the power spectrum if there is one.
    """

    hidden: nn.ModuleList  # of Layer, g^W
    interaction: Layer  # g^I, where the block renews e_ij

    def __init__(self, config: SiteNetConfig):
        super().__init__()
        self.sites = config.heads * config.site_dim
        self.width = config.heads * config.interaction_dim
        self.heads = config.heads
        self.k_softmax = config.k_softmax
        inputs = 2 * self.sites + self.width
        layer = functools.partial(Layer, activation=config.activation, norm=config.norm)
        self.residual = config.residual
        self.renews = config.interaction == "renew"
        widths = (inputs, *config.hidden)
        hidden = list(map(layer, widths[:-1], widths[1:]))
        self.hidden = nn.ModuleList(hidden)
        self.logits = nn.Linear(config.hidden[-1], config.heads)
        self.attention = layer(inputs, config.site_dim)  # g^A
        if self.renews:
            self.interaction = layer(inputs, self.width)
        self.spectrum = Spectrum(config) if config.spectrum_channels else None
        joined = self.sites + (self.spectrum.width if self.spectrum else 0)
        if self.residual:
            self.norm = norm_of(config.norm, self.sites)
            self.out = layer(self.sites + joined, 2 * self.sites)
            self.add = nn.Linear(2 * self.sites, self.sites)
        else:
            self.out = layer(joined, self.sites)  # g^S
        self.plain = config.k_softmax is not None or len(config.hidden) > 1
        self.logits.bias.requires_grad_(False)  # cancels in the softmax
        if hidden[0].norm is not None and not self.plain:
            hidden[0].norm.bias.requires_grad_(False)  # so does this

    def forward(
        self,
        x: Tensor,
        e: Tensor,
        e_layer: Layer,
        rows: Rows,
        first: int = 0,
        need_interaction: bool = True,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Let the rows' sites attend to their pairs.

        Args:
            x: (sites, D) states of all sites.
            e: (pairs, E) interaction features, without the affine part of their norm.
            e_layer: the layer that e comes from, whose affine part is still to be applied.
            rows: the pairs.
            first: the site of the first row; the rows' sites are contiguous.
            need_interaction: whether to return the next interaction features.
            need_weights: whether to return the attention weights.

        Returns:
            The new states (rows, D); the next interaction features (pairs, E), again without
            their affine part, or None; the attention weights (pairs, heads) or None. A block that
            keeps the interaction features returns e.
        """
        before = x
        if self.residual:
            x = self.norm(x)
        weights = self.weights(e_layer, need_interaction)
        number = rows.offsets.shape[0] - 1
        site_i, site_j = site_terms(x, weights.sites, weights.bias, first, number)
        if number != x.shape[0]:
            before, x = before[first : first + number], x[first : first + number]

        compute = self.attend_plainly if self.plain else self.attend_fused
        y, renewed, attended = compute(site_i, site_j, e, weights, rows, need_weights)
        y = self.attention.affine(y.unflatten(1, (-1, self.heads)).mT)  # (rows, heads, A)
        y = y.mT.flatten(1)
        if self.spectrum and rows.images:
            y = torch.cat([y, self.spectrum(x, rows.images)], 1)
        if self.residual:
            y = before + self.add(self.out(torch.cat([x, y], 1)))
        else:
            y = self.out(y)
        return y, renewed if self.renews else e, attended

    def weights(self, e_layer: Layer, need_interaction: bool) -> BlockWeights:
        """The first layers' weights on the states of both sites, on e and on the hidden columns.

        Args:
            e_layer: the layer that e comes from, whose affine part goes into the weights on e.
            need_interaction: whether e is renewed.
        """
        hidden, attention = self.first_hidden, self.attention
        interaction = self.interaction.linear if need_interaction and self.renews else None
        folds = hidden.norm is not None and not self.plain
        parameters = BlockParameters(
            hidden.linear.weight,
            attention.linear.weight,
            None if interaction is None else interaction.weight,
            hidden.linear.bias,
            attention.linear.bias,
            None if interaction is None else interaction.bias,
            self.logits.weight,
            None if e_layer.norm is None else e_layer.norm.weight,
            None if e_layer.norm is None else e_layer.norm.bias,
            hidden.norm.weight if folds and hidden.norm is not None else None,
        )
        return block_weights(parameters, self.width)

    @property
    def first_hidden(self) -> Layer:
        """The hidden layer on the pair's input."""
        return cast(Layer, self.hidden[0])

    def attend_fused(
        self,
        site_i: Tensor,
        site_j: Tensor,
        e: Tensor,
        weights: BlockWeights,
        rows: Rows,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Let the fused op compute the whole block, which has one hidden layer.

        Args:
            site_i: (rows, columns) linear part of the rows' sites, bias included.
            site_j: (sites, columns) linear part of all sites.
            e: (pairs, E) interaction features.
            weights: of the block.
            rows: the pairs.
            need_weights: whether to return the attention weights.

        Returns:
            The weighted sums (rows, A * heads), the renewed interaction features or None, and the
            attention weights or None, the first two without the affine part of their norms.
        """
        y, renewed, logits = attention(
            site_i,
            site_j,
            e,
            weights.pairs,
            weights.logits,
            rows.log_multiplicity,
            rows.offsets,
            rows.sites,
            attention_dim=self.attention.linear.out_features,
            activation=self.attention.activation,
            norm=self.attention.norm is not None,
            eps=EPSILON,
            need_logits=need_weights,
            check_indices=False,  # Pairs.check has
            by_site=rows.by_site,
        )
        if not need_weights:
            return y, renewed, None
        row = row_of_pair(rows.offsets, rows.sites.shape[0])
        return y, renewed, row_softmax(cast(Tensor, logits), row, site_i.shape[0])

    def attend_plainly(
        self,
        site_i: Tensor,
        site_j: Tensor,
        e: Tensor,
        weights: BlockWeights,
        rows: Rows,
        need_weights: bool,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Do the same as ``attend_fused`` in plain torch, with every pair's layers in memory, for
        several hidden layers or k_softmax."""
        row = row_of_pair(rows.offsets, rows.sites.shape[0])
        z = site_i[row] + site_j[rows.sites.long()] + F.linear(e, weights.pairs)  # (pairs, columns)
        hidden = self.first_hidden.linear.out_features
        a_dim = self.attention.linear.out_features
        m, a, interaction = z.split([hidden, a_dim, z.shape[1] - hidden - a_dim], 1)
        m = self.first_hidden.affine(self.first_hidden.finish(m))
        for layer in self.hidden[1:]:
            m = layer(m)
        logits = F.linear(m, weights.logits)  # (pairs, heads)
        log_multiplicity = rows.log_multiplicity[:, None]
        if self.k_softmax is not None:
            left = places_left(logits, rows, row, self.k_softmax)
            log_multiplicity = log_multiplicity + left
        logits = logits + log_multiplicity
        attended = row_softmax(logits, row, site_i.shape[0])
        y = weighted_sums(attended, self.attention.finish(a), row, site_i.shape[0])
        renewed = self.interaction.finish(interaction) if interaction.shape[1] else None
        return y, renewed, attended if need_weights else None


def places_left(logits: Tensor, rows: Rows, row: Tensor, k: int) -> Tensor:
    """Compute what to add to ln(multiplicity) so that a row keeps its k largest logits.

    A pair of multiplicity m stands for m equal logits: going down from a row's largest logit, it
    keeps as many of them as places are left, and they are equal, so it does not matter which.

    Args:
        logits: (pairs, heads).
        rows: the pairs.
        row: (pairs,) the row of each pair.
        k: logits that a row keeps.

    Returns:
        (pairs, heads), -inf for pairs that are dropped.
    """
    multiplicity = rows.log_multiplicity.exp()  # 0 beyond the cutoff
    left = torch.empty_like(logits)
    for head in range(logits.shape[1]):
        key = logits[:, head].detach().masked_fill(multiplicity == 0, -torch.inf)
        order = torch.argsort(key, descending=True, stable=True)
        order = order[torch.argsort(row[order], stable=True)]  # by row, then by falling logit
        count = multiplicity[order].to(torch.float64).round()
        before = count.cumsum(0) - count
        before = before - before[rows.offsets[:-1]][row]
        kept = torch.minimum((k - before).clamp(min=0), count) / count.clamp(min=1)
        left[order, head] = kept.to(logits.dtype)
    return left.log()
