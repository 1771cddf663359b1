"""The attention block of Site-Net over CSR rows of pairs, and the embedding of pair features.

``csrc/attention.h`` states the formulas and layouts; ``sitenet/reference.py`` computes the same in
plain torch. Both functions are differentiable in every floating-point tensor except
``log_multiplicity``. In bfloat16 (under ``torch.autocast``, or with a bfloat16 ``e``) the products
with ``weight`` take bfloat16 factors and sum in float32; so do, on CUDA, the sums over pairs in the
gradient of ``logit_weight``. Everything else stays in float32. Products with ``weight`` in float32
take tf32 factors on CUDA where torch allows it (``torch.set_float32_matmul_precision``, or
``torch.backends.cuda.matmul.fp32_precision``).

The arguments of the ops stand once, in the tuples below. The schema of an op, its fake
implementation and the addresses that its kernel gets all follow from them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sitenet.ops import _C, checks, library, need_cuda
from sitenet.ops.kernel_calls import Run, by_site_for, flat, run_cpu, run_cuda, schema
from sitenet.ops.kernel_calls import allows_tf32 as allows_tf32
from sitenet.ops.rows import EPSILON, BySite

ACTIVATIONS = {"none": 0, "relu": 1, "mish": 2}

# ------------------------------------------------------------------------------------------------
# Arguments of the ops. The order of the tensors is that of the structs in csrc/attention.h.


class Block(NamedTuple):
    """Tensors that both passes of an attention block read."""

    site_i: Tensor
    site_j: Tensor
    e: Tensor
    weight: Tensor
    logit_weight: Tensor
    log_multiplicity: Tensor
    offsets: Tensor
    sites: Tensor

    @property
    def differentiable(self) -> tuple[Tensor, ...]:
        return self[:5]


class BlockOptions(NamedTuple):
    attention_dim: int
    activation: int
    norm: bool
    eps: float


class BlockGradients(NamedTuple):
    """Tensors that only the backward pass reads: two outputs, and the gradients of two."""

    y: Tensor
    logsum: Tensor
    grad_y: Tensor
    grad_e_out: Tensor | None


class Layer(NamedTuple):
    """Tensors that both passes of the embedding of pair features read."""

    features: Tensor
    weight: Tensor
    bias: Tensor


class LayerOptions(NamedTuple):
    activation: int
    norm: bool
    eps: float


# ------------------------------------------------------------------------------------------------
# Outputs of the ops, allocated: the fake implementations, and the first step of the others.


def _pair_embedding_outputs(layer: Layer, dtype: torch.dtype, options: LayerOptions) -> Tensor:
    features, weight, _ = layer
    return features.new_empty((features.shape[0], weight.shape[0]), dtype=dtype)


def _pair_embedding_gradients(
    layer: Layer, grad_e: Tensor, options: LayerOptions, need_features: bool
) -> tuple[Tensor, Tensor, Tensor]:
    num_pairs, num_features = layer.features.shape
    return (
        layer.features.new_empty((num_pairs if need_features else 0, num_features)),
        torch.empty_like(layer.weight),
        torch.empty_like(layer.bias),
    )


def _attention_outputs(
    block: Block, options: BlockOptions, need_logits: bool, need_statistics: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """y, e_out, logsum, logits, and what a backward pass on a GPU reads of each pair: (pairs,
    2 + heads), the mean and rstd of its hidden columns and its logits without multiplicity."""
    heads, hidden = block.logit_weight.shape
    rows, columns = block.site_i.shape
    num_pairs = block.e.shape[0]
    return (
        block.site_i.new_empty((rows, options.attention_dim * heads)),
        block.e.new_empty((num_pairs, columns - hidden - options.attention_dim)),
        block.site_i.new_empty((rows, heads)),
        block.site_i.new_empty((num_pairs if need_logits else 0, heads)),
        block.site_i.new_empty((num_pairs if need_statistics else 0, 2 + heads)),
    )


def _attention_gradients(
    block: Block,
    gradients: BlockGradients,
    options: BlockOptions,
    by_site: BySite,
    statistics: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    site_i, site_j, e, weight, logit_weight = map(torch.empty_like, block.differentiable)
    return site_i, site_j, e, weight, logit_weight


_OUTPUTS: dict[str, Callable] = {
    "pair_embedding_forward": _pair_embedding_outputs,
    "pair_embedding_backward": _pair_embedding_gradients,
    "attention_forward": _attention_outputs,
    "attention_backward": _attention_gradients,
}
for _name, _outputs in _OUTPUTS.items():
    library.define(schema(_name, _outputs))
    torch.library.register_fake(f"sitenet::{_name}", flat(_outputs, _outputs), lib=library)

# ------------------------------------------------------------------------------------------------
# Calls of the kernels.


def _layer_shape(layer: Layer, options: LayerOptions) -> Any:
    num_pairs, num_features = layer.features.shape
    return _C.PairEmbeddingShape(
        pairs=num_pairs,
        num_features=num_features,
        width=layer.weight.shape[0],
        **options._asdict(),
    )


def _block_shape(block: Block, options: BlockOptions) -> Any:
    heads, hidden = block.logit_weight.shape
    rows, columns = block.site_i.shape
    num_pairs, width = block.e.shape
    return _C.AttentionShape(
        pairs=num_pairs,
        rows=rows,
        sites=block.site_j.shape[0],
        hidden=hidden,
        attention=options.attention_dim,
        interaction=columns - hidden - options.attention_dim,
        width=width,
        heads=heads,
        activation=options.activation,
        norm=options.norm,
        eps=options.eps,
    )


def _pair_embedding_forward(
    run: Run, layer: Layer, dtype: torch.dtype, options: LayerOptions
) -> Tensor:
    checks.check_pair_embedding(*layer, options.eps)
    e = _pair_embedding_outputs(layer, dtype, options)
    dtypes = layer.features.dtype, dtype
    run("pair_embedding_forward", dtypes, _layer_shape(layer, options), (*layer, e))
    return e


def _pair_embedding_backward(
    run: Run, layer: Layer, grad_e: Tensor, options: LayerOptions, need_features: bool
) -> tuple[Tensor, Tensor, Tensor]:
    checks.check_pair_embedding(*layer, options.eps)
    checks.check(grad_e, "grad_e", (layer.features.shape[0], layer.weight.shape[0]))
    gradients = _pair_embedding_gradients(layer, grad_e, options, need_features)
    wanted = (gradients[0] if need_features else None, *gradients[1:])
    dtypes = layer.features.dtype, grad_e.dtype
    tensors = (*layer, grad_e.contiguous(), *wanted)
    run("pair_embedding_backward", dtypes, _layer_shape(layer, options), tensors)
    return gradients


def _attention_forward(
    run: Run, block: Block, options: BlockOptions, need_logits: bool, need_statistics: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    checks.check_attention(*block, options.attention_dim, options.eps)
    if need_statistics and run is not run_cuda:
        raise ValueError("need_statistics: only the backward kernels of a GPU read statistics")
    outputs = _attention_outputs(block, options, need_logits, need_statistics)
    y, e_out, logsum, logits, statistics = outputs
    dtypes = block.site_i.dtype, block.e.dtype
    tensors = [*block, y, e_out, logsum, logits if need_logits else None]
    if run is run_cuda:
        tensors.append(statistics if need_statistics else None)
    run("attention_forward", dtypes, _block_shape(block, options), tensors)
    return outputs


def _attention_backward(
    run: Run,
    block: Block,
    gradients: BlockGradients,
    options: BlockOptions,
    by_site: BySite,
    statistics: Tensor | None,
) -> tuple[Tensor, ...]:
    grad_y = gradients.grad_y.contiguous()
    grad_e_out = None if gradients.grad_e_out is None else gradients.grad_e_out.contiguous()
    gradients = gradients._replace(grad_y=grad_y, grad_e_out=grad_e_out)
    checks.check_attention(*block, options.attention_dim, options.eps)
    checks.check_attention_gradients(
        block.site_i, block.e, block.logit_weight, *gradients, options.attention_dim
    )
    by_site = by_site_for(run, by_site, block.sites, block.site_j.shape[0])
    results = _attention_gradients(block, gradients, options, by_site, statistics)
    dtypes = block.site_i.dtype, block.e.dtype
    tensors = [*block, *gradients, *results, *by_site]
    if run is run_cuda:
        shape = block.e.shape[0], 2 + block.logit_weight.shape[0]
        checks.check(cast(Tensor, statistics), "statistics", shape, like=block.site_i)
        tensors.append(statistics)
    run("attention_backward", dtypes, _block_shape(block, options), tensors)
    return results


def _implementations(run: Run) -> dict[str, Callable]:
    functions: dict[str, Callable] = {
        "pair_embedding_forward": _pair_embedding_forward,
        "pair_embedding_backward": _pair_embedding_backward,
        "attention_forward": _attention_forward,
        "attention_backward": _attention_backward,
    }
    return {name: flat(function, _OUTPUTS[name], run) for name, function in functions.items()}


CPU_IMPLEMENTATIONS = _implementations(run_cpu)
CUDA_IMPLEMENTATIONS = _implementations(run_cuda)
for _device, _functions in (("CPU", CPU_IMPLEMENTATIONS), ("CUDA", CUDA_IMPLEMENTATIONS)):
    for _name, _function in _functions.items():
        library.impl(_name, _function, _device)

_ops = torch.ops.sitenet

# ------------------------------------------------------------------------------------------------
# Gradients, and the public functions.

_NUM_TENSORS = len(Block._fields)
_NUM_ARGUMENTS = _NUM_TENSORS + len(BlockOptions._fields) + 2  # of the forward op


class _PairEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, bias: Tensor, *rest: Any) -> Tensor:
        ctx.save_for_backward(features, weight, bias)
        ctx.options = rest[1:]
        return _ops.pair_embedding_forward(features, weight, bias, *rest)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_e: Tensor) -> tuple[Tensor | None, ...]:
        need_features = ctx.needs_input_grad[0]
        grad_features, grad_weight, grad_bias = _ops.pair_embedding_backward(
            *ctx.saved_tensors, grad_e, *ctx.options, need_features
        )
        no_gradients = [None] * (1 + len(ctx.options))
        return grad_features if need_features else None, grad_weight, grad_bias, *no_gradients


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
        arguments, by_site = arguments[:_NUM_ARGUMENTS], arguments[_NUM_ARGUMENTS:]
        y, e_out, logsum, logits, statistics = _ops.attention_forward(*arguments)
        ctx.save_for_backward(*arguments[:_NUM_TENSORS], y, logsum, *by_site, statistics)
        ctx.options = arguments[_NUM_TENSORS:-2]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(logits)
        return y, e_out, logits

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_y: Tensor | None, grad_e_out: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        *block, y, logsum, of_site, offsets_of_site, statistics = ctx.saved_tensors
        kept = of_site, offsets_of_site, statistics
        if grad_y is None:
            grad_y = torch.zeros_like(y)
        if grad_e_out is not None and grad_e_out.shape[1] == 0:
            grad_e_out = None
        read = y, logsum, grad_y, grad_e_out
        gradients = _ops.attention_backward(*block, *read, *ctx.options, *kept)
        num_arguments = _NUM_ARGUMENTS + len(BySite._fields)
        return *gradients, *[None] * (num_arguments - len(gradients))


def _keeps_statistics(x: Tensor) -> bool:
    """Return whether backward kernels on the device of x read statistics of the forward pass."""
    return x.is_cuda


def _need_grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def _work_dtypes(x: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """Return the dtypes of the sums and of e: that of x, or float32 and bfloat16 in autocast."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.float32, torch.bfloat16
    return x.dtype, x.dtype


def _activation_id(activation: str) -> int:
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    return ACTIVATIONS[activation]


def pair_embedding(
    features: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    activation: str = "mish",
    norm: bool = True,
    eps: float = EPSILON,
) -> Tensor:
    """Embed the features of pairs: normalise(activation(features weight^T + bias)).

    Args:
        features: (pairs, features), float32 or float64.
        weight: (width, features).
        bias: (width,).
        activation: "mish", "relu" or "none".
        norm: normalise each row (LayerNorm without affine parameters).
        eps: added to the variance in the norm.

    Returns:
        (pairs, width), in the dtype of ``features``; bfloat16 under autocast.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape or device.
        RuntimeError: CUDA tensors in a build without CUDA kernels.

    Source:
        Site-Net, interaction features e_ij before the first block (SI, "Site and interaction
        featurization").
    """
    checks.check_tensors(features=features, weight=weight, bias=bias)
    if features.is_cuda:
        need_cuda()
    work, e_dtype = _work_dtypes(features)
    features, weight, bias = (x.to(work).contiguous() for x in (features, weight, bias))
    options = LayerOptions(_activation_id(activation), norm, eps)
    arguments = (features, weight, bias, e_dtype, *options)
    if _need_grad(features, weight, bias):
        return _PairEmbedding.apply(*arguments)
    return _ops.pair_embedding_forward(*arguments)


def attention(
    site_i: Tensor,
    site_j: Tensor,
    e: Tensor,
    weight: Tensor,
    logit_weight: Tensor,
    log_multiplicity: Tensor,
    offsets: Tensor,
    sites: Tensor,
    *,
    attention_dim: int,
    activation: str = "mish",
    norm: bool = True,
    eps: float = EPSILON,
    need_logits: bool = False,
    check_indices: bool = True,
    by_site: BySite | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """One attention block over CSR rows of pairs.

    z = site_i[row] + site_j[sites] + e weight^T, and m = activation(z). The columns of m are
    [hidden | attention features | interaction features], and each group is normalised separately.
    The logits are m_hidden logit_weight^T + log_multiplicity; their softmax runs over each row,
    per head.

    Args:
        site_i: (rows, columns), float32 or float64: the row's term of z, including the bias.
        site_j: (sites, columns): the term of the pair's other site.
        e: (pairs, width): interaction features, in the dtype of site_i or in bfloat16.
        weight: (columns, width).
        logit_weight: (heads, hidden).
        log_multiplicity: (pairs,): ln of the number of equal pairs that a pair stands for; -inf
            leaves it out. Not differentiable.
        offsets: (rows + 1,) int64: row r holds the pairs offsets[r] to offsets[r + 1] - 1.
        sites: (pairs,) int32: row of site_j for each pair.
        attention_dim: number of attention features.
        activation: "mish", "relu" or "none".
        norm: normalise each group of columns (LayerNorm without affine parameters).
        eps: added to the variance in the norms.
        need_logits: also return the logits.
        check_indices: check the values of ``offsets`` and ``sites``, which waits for a GPU. False
            only if they have been checked (``Pairs.check``): the kernels would access foreign
            memory. Values are never read while a CUDA graph is captured.
        by_site: what ``sorted_by_site`` returns for ``sites``, so that several blocks share it. A
            GPU's backward pass needs it, and makes it if it is not given.

    Returns:
        y (rows, attention_dim * heads), the attention-weighted sums, with feature a of head h at
        a * heads + h, and zeros for a row with nothing to attend to; the next interaction features
        (pairs, columns - hidden - attention_dim), or None if there are none; the logits
        (pairs, heads), or None. The logits carry no gradient.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape or device, or an index out of
            range.
        RuntimeError: CUDA tensors in a build without CUDA kernels.

    Source:
        Site-Net, attention block: g^W, g^A and g^I of the paper's Methods on [x_i, x_j, e_ij].
    """
    block = Block(site_i, site_j, e, weight, logit_weight, log_multiplicity, offsets, sites)
    checks.check_tensors(**block._asdict())
    if site_i.is_cuda:
        need_cuda()
    work, e_dtype = _work_dtypes(site_i)
    if e.dtype == torch.bfloat16:
        e_dtype = torch.bfloat16
    site_i, site_j, weight, logit_weight, log_multiplicity = (
        x.to(work).contiguous() for x in (site_i, site_j, weight, logit_weight, log_multiplicity)
    )
    e, offsets, sites = e.to(e_dtype).contiguous(), offsets.contiguous(), sites.contiguous()
    block = Block(site_i, site_j, e, weight, logit_weight, log_multiplicity, offsets, sites)
    options = BlockOptions(attention_dim, _activation_id(activation), norm, eps)
    if check_indices:
        checks.check_attention(*block, attention_dim, eps)
        checks.check_indices(offsets, sites, site_j.shape[0])
        checks.check_by_site(by_site or BySite(), sites, site_j.shape[0], read=True)
    need_grad = _need_grad(*block.differentiable)
    arguments = (*block, *options, need_logits, need_grad and _keeps_statistics(site_i))
    if need_grad:
        y, e_out, logits = _Attention.apply(*arguments, *(by_site or BySite()))
    else:
        y, e_out, _, logits, _ = _ops.attention_forward(*arguments)
    return y, e_out if e_out.shape[1] else None, logits if need_logits else None
