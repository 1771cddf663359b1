"""Muon, the optimiser of the matrices between hidden layers."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sitenet.config import TrainingConfig
from sitenet.system.devices import multiplies_bfloat16


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
