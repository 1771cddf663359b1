"""Loss and gradients of an optimiser step, summed over its batches and over the ranks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from sitenet.model.layers import in_bfloat16
from sitenet.model.sitenet import SiteNet
from sitenet.ops import fuses
from sitenet.ops.padded_batch import Room
from sitenet.pairs.pairs import Pairs
from sitenet.pairs.store import placed
from sitenet.system.devices import multiplies_bfloat16
from sitenet.system.distributed import rank, world
from sitenet.training.data import TrainingData


def step_loss(model: SiteNet, output: Tensor, truth: Tensor, counts: Tensor) -> Tensor:
    """Mean absolute error of values, in the scale of the targets, plus cross-entropy of classes.

    Each target's mean is over its known values.

    Args:
        model: Supplies the targets' kinds and scales.
        output: (crystals, targets) from the model.
        truth: (crystals, targets), NaN where missing.
        counts: (targets,) number of known values in the whole step, of which these crystals may
            be a part.
    """
    known = ~truth.isnan()
    truth = truth.nan_to_num()
    error = (output - truth).abs() / model.target_std
    if any(t.kind == "class" for t in model.targets):
        entropy = F.binary_cross_entropy_with_logits(output, truth, reduction="none")
        error = torch.where(model.is_class, entropy, error)
    return (error * known / counts.clamp(min=1)).sum()


class Gradients:
    """Adds up the gradients of a model's parameters.

    Args:
        model: The model that learns.
        data: Crystals to learn from.
        parameters: Parameters that learn.
    """

    def __init__(
        self, model: SiteNet, data: TrainingData, parameters: Sequence[nn.Parameter]
    ) -> None:
        self.model, self.data, self.parameters = model, data, parameters
        self.device = data.known.device
        low = model.config.training.precision == "bfloat16"
        self.bfloat16 = low and multiplies_bfloat16(self.device)

    def of_step(self, batches: Sequence[np.ndarray]) -> Tensor:
        """Add the gradients of the batches of a step; each rank computes its share of every batch.

        Returns:
            This rank's part of the loss.
        """
        known = self.data.known
        truths = [known[placed(batch, self.device)] for batch in batches]
        counts = torch.stack([(~truth.isnan()).sum(0) for truth in truths]).sum(0)
        total = known.new_zeros(())
        for batch, truth in zip(batches, truths, strict=True):
            mine = slice(rank(), None, world())
            self._scale_embedding(batch)
            if len(batch[mine]):
                total += self._backward(self.data.store.batch(batch[mine]), truth[mine], counts)
        self._sum_over_ranks()
        return total

    def of_padded_batch(self, index: Tensor, room: Room) -> Tensor:
        """Add the gradients of a step on padded batches, each rank its share. Nothing here waits
        for the device or copies from the host.

        Args:
            index: (ranks, places) crystals of each rank, as ``PairStore.padded_batch`` takes them.
            room: Sizes of each rank's arrays.

        Returns:
            This rank's part of the loss.
        """
        truth = self.data.known[index.clamp(min=0)].masked_fill((index < 0)[..., None], torch.nan)
        counts = (~truth.isnan()).sum((0, 1))
        pairs = self.data.store.padded_batch(index[rank()], room)
        self._scale_embedding_of(pairs.numbers)
        loss = self._backward(pairs, truth[rank()], counts)
        self._sum_over_ranks()
        return loss

    def _backward(self, pairs: Pairs, truth: Tensor, counts: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bfloat16):
            output = self._forward(pairs)
        loss = step_loss(self.model, output, truth, counts)
        loss.backward()
        return loss.detach()

    def _forward(self, pairs: Pairs) -> Tensor:
        """The model's output; on a GPU with its parameters cast all at once."""
        if not self.bfloat16 or not fuses(self.data.known):
            return self.model(pairs)
        named = self.model.parameters_in_bfloat16()
        low = dict(zip(named, in_bfloat16(list(named.values())), strict=True))
        return functional_call(self.model, low, (pairs,), tie_weights=False)

    @property
    def _scales(self) -> bool:
        """Whether max-norm must be applied for the elements of the other ranks, too, so that
        weights stay equal."""
        learns = self.model.embedding.weight.requires_grad
        return world() > 1 and self.model.config.max_norm and learns

    def _scale_embedding(self, batch: np.ndarray) -> None:
        if self._scales:
            self.model.embedding.scale_rows(self.data.store.elements(batch))

    def _scale_embedding_of(self, numbers: Tensor) -> None:
        """Apply max-norm for these elements of this rank, and those of the others."""
        if self._scales:
            embedding = self.model.embedding
            used = embedding.weight.new_zeros(len(embedding.weight))
            dist.all_reduce(used.index_fill_(0, numbers, 1.0), dist.ReduceOp.MAX)
            embedding.scale(used[:, None] > 0)

    def _sum_over_ranks(self) -> None:
        if world() == 1:
            return
        gradients = []
        for p in self.parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            gradients.append(p.grad.view(-1))
        flat = torch.cat(gradients)
        dist.all_reduce(flat)
        torch._foreach_copy_(gradients, flat.split([p.numel() for p in self.parameters]))


def out_of_memory(batches: Sequence[np.ndarray], data: TrainingData, model: SiteNet) -> str:
    """What to try when a step does not fit into a GPU's memory."""
    config = model.config.training
    shares = [batch[rank() :: world()] for batch in batches]
    largest = max(shares, key=lambda share: data.store.num_pairs[share].sum())
    pairs = int(data.store.num_pairs[largest].sum())
    text = f"out of GPU memory with {pairs} pairs in a batch of {len(largest)} crystals; "
    if len(largest) == 1:
        return text + "this crystal is too large for this GPU: try device cpu"
    name = "batch_sites" if config.batch_sites else "batch_crystals"
    text += f"try {name} {max(1, getattr(config, name) // 2)}"
    if config.capture:  # which takes one batch per step
        return text
    return f"{text} with accumulate {2 * config.accumulate}"
