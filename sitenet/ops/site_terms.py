"""The terms that both sites of a pair add to a block's first layer: products over sites.

On a CPU they are two products in plain torch. On a GPU an op forms them as one batched product,
since products so small take less time than starting them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sitenet.ops import fuses, library
from sitenet.ops.kernel_calls import flat, schema


class Rows(NamedTuple):
    """The sites of the rows: ``number`` of them, from ``first`` on."""

    first: int
    number: int


def _outputs(x: Tensor, weight: Tensor, bias: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    columns = weight.shape[1]
    return bias.new_empty((rows.number, columns)), bias.new_empty((x.shape[0], columns))


def _gradients(
    x: Tensor, weight: Tensor, rows: Rows, grad_i: Tensor, grad_j: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of the rows' sites, of all sites, of the weight and of the bias."""
    return (
        grad_i.new_empty((rows.number, x.shape[1])),
        grad_i.new_empty(x.shape),
        torch.empty_like(weight),
        grad_i.new_empty(weight.shape[1]),
    )


_OUTPUTS: dict[str, Callable] = {
    "site_terms_forward": _outputs,
    "site_terms_backward": _gradients,
}
for _name, _allocate in _OUTPUTS.items():
    library.define(schema(_name, _allocate))
    torch.library.register_fake(f"sitenet::{_name}", flat(_allocate, _allocate), lib=library)


def _of_rows(x: Tensor, rows: Rows) -> Tensor:
    return x[rows.first : rows.first + rows.number]


def _forward_cpu(x: Tensor, weight: Tensor, bias: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    site_i = F.linear(_of_rows(x, rows), weight[0], bias.to(x.dtype))
    return site_i.to(bias.dtype), F.linear(x, weight[1]).to(bias.dtype)


def _backward_cpu(
    x: Tensor, weight: Tensor, rows: Rows, grad_i: Tensor, grad_j: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    low_i, low_j = grad_i.to(x.dtype), grad_j.to(x.dtype)
    of_i, of_j = (low_i @ weight[0]).to(grad_i.dtype), (low_j @ weight[1]).to(grad_j.dtype)
    return of_i, of_j, torch.stack([low_i.mT @ _of_rows(x, rows), low_j.mT @ x]), grad_i.sum(0)


def _forward_cuda(x: Tensor, weight: Tensor, bias: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    terms = torch.bmm(x.expand(2, -1, -1), weight.mT)
    return _of_rows(terms[0], rows) + bias, terms[1].to(bias.dtype, copy=True)


def _backward_cuda(
    x: Tensor, weight: Tensor, rows: Rows, grad_i: Tensor, grad_j: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    if rows.number < x.shape[0]:
        return _backward_cpu(x, weight, rows, grad_i, grad_j)
    grad = x.new_empty((2, *grad_i.shape))
    torch._foreach_copy_(list(grad.unbind()), [grad_i, grad_j])
    of_i, of_j = torch.bmm(grad, weight).to(grad_i.dtype).unbind()
    return of_i, of_j.clone(), torch.bmm(grad.mT, x.expand(2, -1, -1)), grad_i.sum(0)


CPU_IMPLEMENTATIONS: dict[str, Callable] = {
    "site_terms_forward": flat(_forward_cpu, _outputs),
    "site_terms_backward": flat(_backward_cpu, _gradients),
}
CUDA_IMPLEMENTATIONS: dict[str, Callable] = {
    "site_terms_forward": flat(_forward_cuda, _outputs),
    "site_terms_backward": flat(_backward_cuda, _gradients),
}
for _device, _functions in (("CPU", CPU_IMPLEMENTATIONS), ("CUDA", CUDA_IMPLEMENTATIONS)):
    for _name, _function in _functions.items():
        library.impl(_name, _function, _device)

_ops = torch.ops.sitenet


class _SiteTerms(torch.autograd.Function):
    """Takes x twice, for its two gradients."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, again: Tensor, weight: Tensor, bias: Tensor, rows: Rows
    ) -> tuple[Tensor, Tensor]:
        low = x.to(weight.dtype)
        ctx.save_for_backward(low, weight)
        ctx.dtype, ctx.rows = x.dtype, rows
        return _ops.site_terms_forward(low, weight, bias, *rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_i: Tensor, grad_j: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        gradients = _ops.site_terms_backward(x, weight, *ctx.rows, grad_i, grad_j)
        of_i, of_j, of_weight, of_bias = gradients
        first, number = ctx.rows
        if number < x.shape[0]:
            of_i = F.pad(of_i, (0, 0, first, x.shape[0] - first - number))
        return of_j.to(ctx.dtype), of_i.to(ctx.dtype), of_weight, of_bias, None


def site_terms(
    x: Tensor, weight: Tensor, bias: Tensor, first: int = 0, rows: int | None = None
) -> tuple[Tensor, Tensor]:
    """Compute x weight[0]^T + bias for the rows' sites, and x weight[1]^T for all.

    Args:
        x: (sites, features).
        weight: (2, columns, features). In bfloat16 the products take bfloat16 factors, and their
            sums are rounded to it.
        bias: (columns,); on a GPU, in the dtype of the results.
        first: the site of the first row.
        rows: how many there are; None takes all sites.

    Returns:
        (rows, columns) and (sites, columns).
    """
    sites = Rows(first, x.shape[0] if rows is None else rows)
    if not fuses(x):
        site_i = F.linear(_of_rows(x, sites), weight[0], bias)
        return site_i, F.linear(x, weight[1])
    with torch.autocast(x.device.type, enabled=False):
        if torch.is_grad_enabled() and any(t.requires_grad for t in (x, weight, bias)):
            return _SiteTerms.apply(x, x, weight, bias, sites)
        return _ops.site_terms_forward(x.to(weight.dtype), weight, bias, *sites)
