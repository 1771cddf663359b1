"""Optimisers, learning rates, averaged weights and batches: AdamW as published, or Muon."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn

from sitenet.config import TrainingConfig
from sitenet.model.sitenet import SiteNet
from sitenet.training.muon import Muon


class Optimizer:
    """One or two optimisers for the parameters of a model.

    ``adamw`` is the published one, with weight decay on all parameters. ``muon`` takes the matrices
    between hidden layers (``Muon``), and leaves the embedding, logits, decoder, biases and norms to
    AdamW, with weight decay on matrices only.

    Args:
        model: Its parameters that require a gradient are trained.
        config: Settings of the training.
    """

    def __init__(self, model: SiteNet, config: TrainingConfig) -> None:
        named = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in named]
        self.clip_norm = config.clip_norm
        self.parts: list[torch.optim.Optimizer]
        if config.optimizer == "adamw":
            self.parts = [_adamw([{"params": self.parameters}], config)]
            return
        hidden = [p for n, p in named if p.ndim == 2 and not _is_outer(n)]
        rest = [p for n, p in named if p.ndim == 2 and _is_outer(n)]
        vectors = [p for p in self.parameters if p.ndim != 2]
        groups: list[dict] = [{"params": rest}, {"params": vectors, "weight_decay": 0.0}]
        self.parts = [_adamw(groups, config), Muon(hidden, config)]

    def step(self, learning_rate: float | Tensor) -> None:
        """Clip the gradients, take one step, and drop them.

        Args:
            learning_rate: A tensor in a CUDA graph, so that its value can change.
        """
        if self.clip_norm:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = learning_rate
            part.step()
        self.forget()

    def forget(self) -> None:
        """Drop the gradients."""
        for part in self.parts:
            part.zero_grad()

    def tensors(self) -> dict[str, Tensor]:
        """The state as named tensors, for a file."""
        tensors: dict[str, Tensor] = {}
        for k, part in enumerate(self.parts):
            for i, state in part.state_dict()["state"].items():
                tensors |= {f"{k}.{i}.{name}": torch.as_tensor(x) for name, x in state.items()}
        return tensors

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Restore a state from what ``tensors`` returned."""
        for k, part in enumerate(self.parts):
            content = part.state_dict()
            content["state"] = {}
            for key, value in tensors.items():
                number, i, name = key.split(".", 2)
                if int(number) == k:
                    content["state"].setdefault(int(i), {})[name] = value
            part.load_state_dict(content)


def _adamw(groups: list[dict], config: TrainingConfig) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        eps=config.epsilon,
        amsgrad=config.amsgrad,
        fused=True,
        capturable=config.capture,
    )


def _is_outer(name: str) -> bool:
    return name.startswith(("embedding.", "decoder.")) or ".logits." in name


def learning_rate(step: int, steps: int, config: TrainingConfig) -> float:
    """The learning rate of a step.

    It rises linearly over the warm-up, then stays (``constant``) or falls to 0 as half a cosine
    (``cosine``). With ``onecycle`` it rises and falls as cosines; the rise takes three tenths of
    the run unless a warm-up is set.

    Args:
        step: Number of the step, from 0.
        steps: Steps of the whole run.
        config: Settings of the training.
    """
    rise = config.warmup or (0.3 if config.schedule == "onecycle" else 0.0)
    done = (step + 0.5) / max(steps, 1)
    if done < rise:
        part = done / rise
        if config.schedule == "onecycle":
            part = 0.5 - 0.5 * math.cos(math.pi * part)
        return config.learning_rate * max(part, 1e-3)
    if config.schedule == "constant":
        return config.learning_rate
    part = min(1.0, (done - rise) / (1 - rise))
    return config.learning_rate * max(0.5 + 0.5 * math.cos(math.pi * part), 1e-4)


class Average:
    """An exponential moving average (EMA) of a model's parameters, kept in a model of its own.

    Args:
        model: The model that is trained.
        average: A copy of it, which receives the average.
        decay: Decay per step; lower in the first steps, so that the initial weights are forgotten.
    """

    def __init__(self, model: SiteNet, average: SiteNet, decay: float) -> None:
        self.model, self.average, self.decay = model, average.eval().requires_grad_(False), decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Add the parameters after a step."""
        weight = 1 - min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.parameters()), list(self.model.parameters()), weight)


def batches(num_sites: list[int], config: TrainingConfig, seed: list[int]) -> Iterator[list[int]]:
    """Batches of an epoch, as published: crystals in random order, up to ``batch_sites`` sites per
    batch; or ``batch_crystals`` crystals per batch.

    Args:
        num_sites: Sites of each crystal's cell.
        config: Settings of the training.
        seed: Seed of the order.
    """
    order = np.random.default_rng(seed).permutation(len(num_sites)).tolist()
    if not config.batch_sites:
        remaining = iter(order)
        yield from iter(lambda: list(itertools.islice(remaining, config.batch_crystals)), [])
        return
    batch: list[int] = []
    total = 0
    for k in order:
        if batch and total + num_sites[k] > config.batch_sites:
            yield batch
            batch, total = [], 0
        batch.append(k)
        total += num_sites[k]
    if batch:
        yield batch
