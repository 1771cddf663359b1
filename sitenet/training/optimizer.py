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
from sitenet.system.devices import multiplies_bfloat16


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


class Muon(torch.optim.Optimizer):
    """Momentum with an orthogonalised update, as large as AdamW's.

    Products are in bfloat16 where the hardware multiplies it, else in float32: on a CPU without
    bfloat16 instructions ``torch.optim.Muon`` takes some thirty times as long
    (``bench/bench_optimizer.py``). Matrices of the same shape, or its transpose, are processed
    together.

    Args:
        matrices: Parameters to train.
        config: Settings of the training.

    Source: Jordan et al., 2024 (https://kellerjordan.github.io/posts/muon); the size of the update
    and the weight decay as in Liu et al., arXiv 2502.16982, eq. 4.
    """

    def __init__(self, matrices: list[nn.Parameter], config: TrainingConfig) -> None:
        super().__init__(
            matrices, {"lr": config.learning_rate, "weight_decay": config.weight_decay}
        )

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step; a matrix without a gradient stays unchanged."""
        for group in self.param_groups:
            rate = group["lr"]
            shapes: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    is_wide = p.shape[0] <= p.shape[1]
                    update = self._update(p, p.grad)
                    pair = (p, update) if is_wide else (p.T, update.T)
                    shapes.setdefault(tuple(pair[0].shape), []).append(pair)
            for (_, longest), pairs in shapes.items():
                updates = torch.stack([update for _, update in pairs])
                updates = orthogonal(updates, _product_dtype(updates))
                for (p, _), update in zip(pairs, updates, strict=True):
                    p.mul_(1 - rate * group["weight_decay"])
                    p.sub_(update * (0.2 * math.sqrt(longest) * rate))

    def _update(self, p: Tensor, gradient: Tensor) -> Tensor:
        """Nesterov momentum."""
        state = self.state[p]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(p)
        return gradient.lerp(state["momentum_buffer"].lerp_(gradient, 1 - _MOMENTUM), _MOMENTUM)


_MOMENTUM = 0.95


def _product_dtype(x: Tensor) -> torch.dtype:
    fast = x.dtype == torch.float32 and multiplies_bfloat16(x.device)
    return torch.bfloat16 if fast else x.dtype


def orthogonal(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Orthogonalise matrices: keep their singular vectors, and bring their singular values to
    some 0.7 to 1.2, by five Newton-Schulz steps with the coefficients of Jordan et al.

    Args:
        x: (n, rows, columns), no more rows than columns.
        dtype: Type of the products.

    Returns:
        (n, rows, columns) in the dtype of x; zeros stay zeros.
    """
    y = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    y = y.to(dtype)
    for _ in range(5):
        gram = y @ y.mT
        gram = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        y = torch.baddbmm(y, gram, y, beta=3.4445)
    return y.to(x.dtype)


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
