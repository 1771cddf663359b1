"""The weights of an attention block as its products take them.

``csrc/block_weights.h`` states the formulas and layouts. On a CPU plain torch computes them; on a
GPU one kernel per pass does, in place of some thirty operations. The op runs on a CPU, too, so that
tests and ``bench/count_operations.py`` can use it there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sitenet.ops import _C, check, checks, fuses, library, need_cuda
from sitenet.ops.kernel_calls import flat, run_cuda, schema

# ------------------------------------------------------------------------------------------------
# Arguments of the ops. The order of the tensors is that of the structs in csrc/block_weights.h.


class BlockParameters(NamedTuple):
    """The first layers of a block's groups, the logits' weights, the affine part of the norm that
    interaction features travel without, and the scale of the hidden layer's norm."""

    hidden: Tensor
    attention: Tensor
    interaction: Tensor | None
    hidden_bias: Tensor
    attention_bias: Tensor
    interaction_bias: Tensor | None
    logit: Tensor
    gain: Tensor | None
    shift: Tensor | None
    hidden_gain: Tensor | None

    @property
    def groups(self) -> list[Tensor]:
        """The matrices that are stacked."""
        every = self.hidden, self.attention, self.interaction
        return [x for x in every if x is not None]

    @property
    def biases(self) -> list[Tensor]:
        every = self.hidden_bias, self.attention_bias, self.interaction_bias
        return [x for x in every if x is not None]


class BlockWeights(NamedTuple):
    """Weights of both sites of a pair (2, columns, D), the bias (columns,), the weights of
    interaction features (columns, width), and those of the logits (heads, hidden)."""

    sites: Tensor
    bias: Tensor
    pairs: Tensor
    logits: Tensor


_Gradients = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]


def _outputs(
    block: BlockParameters, width: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    columns = sum(x.shape[0] for x in block.groups)
    sites = (block.hidden.shape[1] - width) // 2
    return (
        block.hidden.new_empty((2, columns, sites), dtype=dtype),
        block.hidden.new_empty(columns),
        block.hidden.new_empty((columns, width)),
        torch.empty_like(block.logit),
    )


def _gradients(block: BlockParameters, grad: BlockWeights) -> _Gradients:
    """As the parameters; empty for those that there are none of."""

    def like(x: Tensor | None) -> Tensor:
        return block.hidden.new_empty(0) if x is None else torch.empty_like(x)

    return cast(_Gradients, tuple(map(like, block)))


_OUTPUTS: dict[str, Callable] = {
    "block_weights_forward": _outputs,
    "block_weights_backward": _gradients,
}
for _name, _allocate in _OUTPUTS.items():
    library.define(schema(_name, _allocate))
    torch.library.register_fake(f"sitenet::{_name}", flat(_allocate, _allocate), lib=library)

# ------------------------------------------------------------------------------------------------
# In plain torch.


def _plain(block: BlockParameters, width: int) -> BlockWeights:
    """Views of what is stacked, where nothing is folded in."""
    weight, bias = torch.cat(block.groups), torch.cat(block.biases)
    w_sites, w_e = weight.split([weight.shape[1] - width, width], 1)
    sites = w_sites.unflatten(1, (2, -1))
    if block.gain is not None and block.shift is not None:
        bias = bias + w_e @ block.shift
        w_e = w_e * block.gain
    logits = block.logit
    if block.hidden_gain is not None:
        logits = logits * block.hidden_gain
        logits = logits - logits.mean(1, keepdim=True)
    return BlockWeights(sites.transpose(0, 1), bias, w_e, logits)


def _plain_forward(
    block: BlockParameters, width: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    with torch.autocast(block.hidden.device.type, enabled=False):
        sites, *others = _plain(block, width)
    bias, pairs, logits = (x.clone(memory_format=torch.contiguous_format) for x in others)
    return sites.to(dtype).contiguous(), bias, pairs, logits


def _plain_backward(block: BlockParameters, grad: BlockWeights) -> _Gradients:
    w_e = torch.cat(block.groups)[:, -grad.pairs.shape[1] :]
    _, of_bias, of_pairs, of_logits = grad
    of_gain = of_shift = of_hidden_gain = w_e.new_empty(0)
    if block.gain is not None and block.shift is not None:
        of_gain = (of_pairs * w_e).sum(0)
        of_shift = w_e.mT @ of_bias
        of_pairs = of_pairs * block.gain + of_bias[:, None] * block.shift
    if block.hidden_gain is not None:
        of_logits = of_logits + (-of_logits).sum(1, keepdim=True) / of_logits.shape[1]
        of_hidden_gain = (of_logits * block.logit).sum(0)
        of_logits = of_logits * block.hidden_gain
    of_weight = torch.cat([*grad.sites.to(w_e.dtype), of_pairs], 1)
    sizes = [0 if x is None else x.shape[0] for x in block[:3]]

    def parts(x: Tensor) -> list[Tensor]:
        return [part.clone() if len(part) else x.new_empty(0) for part in x.split(sizes)]

    of_parameters = *parts(of_weight), *parts(of_bias), of_logits.clone()
    return cast(_Gradients, (*of_parameters, of_gain, of_shift, of_hidden_gain))


# ------------------------------------------------------------------------------------------------
# Calls of the kernels.


def _check(block: BlockParameters, width: int) -> None:
    """Raise TypeError or ValueError unless the tensors fit together."""
    check(block.hidden, "hidden", ("columns", "inputs"), (torch.float32, torch.float64))
    inputs = block.hidden.shape[1]
    if width < 0 or (inputs - width) % 2:
        raise ValueError(f"hidden must have an even number of columns beside {width}, got {inputs}")
    groups = "hidden", "attention", "interaction"
    sizes: dict[str, tuple[int | str, ...]] = {"logit": ("heads", block.hidden.shape[0])}
    for name in groups:
        x = getattr(block, name)
        if (x is None) != (getattr(block, f"{name}_bias") is None):
            raise ValueError(f"{name} and {name}_bias must both be given, or neither")
        if x is not None:
            sizes |= {name: (x.shape[0], inputs), f"{name}_bias": (x.shape[0],)}
    if (block.gain is None) != (block.shift is None):
        raise ValueError("gain and shift must both be given, or neither")
    sizes |= {"gain": (width,), "shift": (width,), "hidden_gain": (block.hidden.shape[0],)}
    every = {name: x for name, x in block._asdict().items() if x is not None}
    for name, x in every.items():
        check(x, name, sizes[name], like=block.hidden)
    checks.check_contiguous(**every)


def _shape(block: BlockParameters, width: int) -> Any:
    return _C.BlockWeightsShape(
        hidden=block.hidden.shape[0],
        attention=block.attention.shape[0],
        interaction=0 if block.interaction is None else block.interaction.shape[0],
        sites=(block.hidden.shape[1] - width) // 2,
        width=width,
        heads=block.logit.shape[0],
    )


def _forward_cuda(
    block: BlockParameters, width: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check(block, width)
    outputs = _outputs(block, width, dtype)
    dtypes = block.hidden.dtype, dtype
    run_cuda("block_weights_forward", dtypes, _shape(block, width), (*block, *outputs))
    return outputs


def _backward_cuda(block: BlockParameters, grad: BlockWeights) -> _Gradients:
    width = grad.pairs.shape[1]
    _check(block, width)
    like = _outputs(block, width, grad.sites.dtype)
    for name, x, y in zip(grad._fields, grad, like, strict=True):
        check(x, f"grad of {name}", y.shape, like=y)
    gradients = _gradients(block, grad)
    wanted = (None if x is None else y for x, y in zip(block, gradients, strict=True))
    dtypes = block.hidden.dtype, grad.sites.dtype
    tensors = (*block, *(x.contiguous() for x in grad), *wanted)
    run_cuda("block_weights_backward", dtypes, _shape(block, width), tensors)
    return gradients


CPU_IMPLEMENTATIONS: dict[str, Callable] = {
    "block_weights_forward": flat(_plain_forward, _outputs),
    "block_weights_backward": flat(_plain_backward, _gradients),
}
CUDA_IMPLEMENTATIONS: dict[str, Callable] = {
    "block_weights_forward": flat(_forward_cuda, _outputs),
    "block_weights_backward": flat(_backward_cuda, _gradients),
}
for _device, _functions in (("CPU", CPU_IMPLEMENTATIONS), ("CUDA", CUDA_IMPLEMENTATIONS)):
    for _name, _function in _functions.items():
        library.impl(_name, _function, _device)

_ops = torch.ops.sitenet

# ------------------------------------------------------------------------------------------------
# Gradients, and the public function.


class _BlockWeights(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*arguments[:-2])
        return tuple(_ops.block_weights_forward(*arguments))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor | None, ...]:
        block = ctx.saved_tensors
        gradients = _ops.block_weights_backward(*block, *grad)
        none = None, None
        return *(None if x is None else y for x, y in zip(block, gradients, strict=True)), *none


def block_weights(block: BlockParameters, width: int) -> BlockWeights:
    """Stack and fold the weights of an attention block.

    Args:
        block: the parameters, float32 or float64. Each group has the same columns: twice the
            features of a site, then ``width``.
        width: interaction features.

    Returns:
        Weights in the dtype of the parameters; on a GPU, those over sites in bfloat16 under
        autocast.

    Raises:
        TypeError, ValueError: on a GPU, a parameter of another dtype or shape.
        RuntimeError: CUDA tensors in a build without CUDA kernels.
    """
    if not fuses(block.hidden):
        return _plain(block, width)
    dtype, device = block.hidden.dtype, block.hidden.device.type
    if block.hidden.is_cuda:
        need_cuda()
    if dtype == torch.float32 and torch.is_autocast_enabled(device):
        dtype = torch.bfloat16
    block = BlockParameters._make(None if x is None else x.contiguous() for x in block)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in block):
        return BlockWeights(*_BlockWeights.apply(*block, width, dtype))
    return BlockWeights(*_ops.block_weights_forward(*block, width, dtype))
