"""Layers of Site-Net: linear, activation and norm; the element embedding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sitenet.ops.attention import pair_embedding
from sitenet.ops.rows import EPSILON, normalise

ACTIVATIONS = {"mish": F.mish, "relu": torch.relu, "none": lambda x: x}


class Layer(nn.Module):
    """Linear -> activation -> norm, in the order of the published code."""

    norm: nn.LayerNorm | None

    def __init__(self, inputs: int, outputs: int, activation: str, norm: str):
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.activation = activation
        self.norm = nn.LayerNorm(outputs, EPSILON) if norm == "layer" else None

    def forward(self, x: Tensor) -> Tensor:
        if self._is_fused(x):
            x = pair_embedding(
                x,
                self.linear.weight,
                self.linear.bias,
                activation=self.activation,
                norm=self.norm is not None,
                eps=EPSILON,
            )
            return x if self.norm is None else torch.addcmul(self.norm.bias, x, self.norm.weight)
        x = ACTIVATIONS[self.activation](self.linear(x))
        return x if self.norm is None else self.norm(x)

    def _is_fused(self, x: Tensor) -> bool:
        """Whether a kernel computes the whole layer: for predictions in full precision on a CPU,
        where torch would take longer over the activation and the norm than over the product."""
        is_cpu = x.device.type == "cpu" and x.dim() == 2 and x.dtype == self.linear.weight.dtype
        return is_cpu and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")

    def finish(self, z: Tensor) -> Tensor:
        """Activation and norm, without its affine part, of the linear part z."""
        return normalise(ACTIVATIONS[self.activation](z), self.norm is not None, EPSILON)

    def affine(self, x: Tensor) -> Tensor:
        """Apply the norm's affine part to an x that lacks it."""
        return x if self.norm is None else x * self.norm.weight + self.norm.bias


def norm_of(kind: str, width: int) -> nn.Module:
    """LayerNorm, or nothing."""
    return nn.LayerNorm(width, EPSILON) if kind == "layer" else nn.Identity()


class _WithGradientOf(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, x: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, grad


def with_gradient_of(value: Tensor, x: Tensor) -> Tensor:
    """Return the value, and pass its gradient to x unchanged."""
    return _WithGradientOf.apply(value.detach(), x)


class _InBfloat16(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.dtypes = [x.dtype for x in tensors]
        ctx.set_materialize_grads(False)
        return _cast(tensors, [torch.bfloat16] * len(tensors))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        known = [k for k, grad in enumerate(grads) if grad is not None]
        cast = _cast([grads[k] for k in known], [ctx.dtypes[k] for k in known])
        of = dict(zip(known, cast, strict=True))
        return tuple(of.get(k) for k in range(len(grads)))


def _cast(tensors: Sequence[Tensor | None], dtypes: Sequence[torch.dtype]) -> tuple[Tensor, ...]:
    given = [x for x in tensors if x is not None]
    copies = [torch.empty_like(x, dtype=dtype) for x, dtype in zip(given, dtypes, strict=True)]
    if copies:
        torch._foreach_copy_(copies, given)
    return tuple(copies)


def in_bfloat16(tensors: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Cast tensors to bfloat16 all at once, and their gradients back."""
    return _InBfloat16.apply(*tensors)


class Embedding(nn.Embedding):
    """Element embedding.

    Args:
        number: rows.
        width: columns.
        bounded: whether to hold the rows to a norm of at most 1; otherwise they start near 1.

    The published code scales the rows that it looks up in place, and its gradient ignores the
    scaling. The look-up here gives the same values and gradients but leaves the stored rows alone;
    ``scale_rows`` scales them as the published look-up does.
    """

    def __init__(self, number: int, width: int, bounded: bool):
        super().__init__(number, width)
        self.bounded = bounded
        if not bounded:
            nn.init.normal_(self.weight, std=width**-0.5)

    def forward(self, numbers: Tensor) -> Tensor:
        rows = super().forward(numbers)
        if not self.bounded:
            return rows
        return with_gradient_of(rows * self._factor(rows), rows)

    @torch.no_grad()
    def scale_rows(self, numbers: Tensor) -> None:
        """Scale the stored rows of these elements to a norm of at most 1, in place."""
        used = torch.zeros(len(self.weight), 1, dtype=torch.bool, device=self.weight.device)
        self.scale(used.index_fill_(0, numbers, True))

    @torch.no_grad()
    def scale(self, used: Tensor) -> None:
        """Scale the stored rows that are used, a mask (rows, 1), to a norm of at most 1."""
        self.weight.mul_(torch.where(used, self._factor(self.weight), 1))

    @staticmethod
    def _factor(rows: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        return torch.where(norm > 1, 1 / (norm + 1e-7), 1).to(rows.dtype)
