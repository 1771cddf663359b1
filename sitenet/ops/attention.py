"""The attention block of Site-Net over CSR rows of pairs, and the embedding of pair features.

``csrc/attention.h`` states the formulas and layouts, ``sitenet/reference.py`` is the same in plain
torch. Both functions differentiate with respect to all their floating-point tensors but
``log_multiplicity``. In bfloat16 (under ``torch.autocast``, or with ``e`` given in it) the products
with ``weight`` take bfloat16 factors and sum in float32; everything else stays float32. On CUDA
they take tf32 factors where torch allows it (``torch.set_float32_matmul_precision``, or
``torch.backends.cuda.matmul.fp32_precision``).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sitenet.ops import _C, checks, launch, library, need_cuda, scratch

ACTIVATIONS = {"none": 0, "relu": 1, "mish": 2}

_SUFFIX = {
    (torch.float32, torch.float32): "f32",
    (torch.float64, torch.float64): "f64",
    (torch.float32, torch.bfloat16): "bf16",
}

library.define(
    "pair_embedding_forward(Tensor features, Tensor weight, Tensor bias, ScalarType dtype,"
    " int activation, bool norm, float eps) -> Tensor"
)
library.define(
    "pair_embedding_backward(Tensor features, Tensor weight, Tensor bias, Tensor grad_e,"
    " int activation, bool norm, float eps, bool need_features) -> (Tensor, Tensor, Tensor)"
)
library.define(
    "attention_forward(Tensor site_i, Tensor site_j, Tensor e, Tensor weight, Tensor logit_weight,"
    " Tensor log_multiplicity, Tensor offsets, Tensor sites, int attention_dim, int activation,"
    " bool norm, float eps, bool need_logits) -> (Tensor, Tensor, Tensor, Tensor)"
)
library.define(
    "attention_backward(Tensor site_i, Tensor site_j, Tensor e, Tensor weight, Tensor logit_weight,"
    " Tensor log_multiplicity, Tensor offsets, Tensor sites, Tensor y, Tensor logsum,"
    " Tensor grad_y, Tensor? grad_e_out, int attention_dim, int activation, bool norm, float eps)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)


@torch.library.register_fake("sitenet::pair_embedding_forward", lib=library)
def _(features, weight, bias, dtype, activation, norm, eps):
    return features.new_empty((features.shape[0], weight.shape[0]), dtype=dtype)


@torch.library.register_fake("sitenet::pair_embedding_backward", lib=library)
def _(features, weight, bias, grad_e, activation, norm, eps, need_features):
    num_pairs = features.shape[0] if need_features else 0
    return (
        features.new_empty((num_pairs, features.shape[1])),
        torch.empty_like(weight),
        torch.empty_like(bias),
    )


@torch.library.register_fake("sitenet::attention_forward", lib=library)
def _(
    site_i,
    site_j,
    e,
    weight,
    logit_weight,
    log_multiplicity,
    offsets,
    sites,
    attention_dim,
    activation,
    norm,
    eps,
    need_logits,
):
    heads, hidden = logit_weight.shape
    rows, columns = site_i.shape
    num_pairs = e.shape[0]
    return (
        site_i.new_empty((rows, attention_dim * heads)),
        e.new_empty((num_pairs, columns - hidden - attention_dim)),
        site_i.new_empty((rows, heads)),
        site_i.new_empty((num_pairs if need_logits else 0, heads)),
    )


@torch.library.register_fake("sitenet::attention_backward", lib=library)
def _(
    site_i,
    site_j,
    e,
    weight,
    logit_weight,
    log_multiplicity,
    offsets,
    sites,
    y,
    logsum,
    grad_y,
    grad_e_out,
    attention_dim,
    activation,
    norm,
    eps,
):
    return tuple(torch.empty_like(x) for x in (site_i, site_j, e, weight, logit_weight))


def _suffix(name: str, x: Tensor, e_dtype: torch.dtype) -> str:
    suffix = _SUFFIX.get((x.dtype, e_dtype))
    if suffix is None:
        raise TypeError(
            f"{name} takes float32, float64, or float32 with e in bfloat16;"
            f" got {x.dtype} with e in {e_dtype}"
        )
    return suffix


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _run_cpu(name: str, x: Tensor, e_dtype: torch.dtype, shape: Any, *tensors: Tensor | None):
    kernel = getattr(_C, f"{name}_{_suffix(name, x, e_dtype)}_cpu")
    kernel(shape, *map(_address, tensors), torch.get_num_threads())


def _run_cuda(name: str, x: Tensor, e_dtype: torch.dtype, shape: Any, *tensors: Tensor | None):
    need_cuda()
    suffix = _suffix(name, x, e_dtype)
    if suffix == "f32" and name.startswith("attention") and allows_tf32():
        suffix = "tf32"
    room = getattr(_C, f"{name}_scratch_{suffix}_cuda", None)
    if room is not None:
        tensors = (*tensors, scratch(room(shape), x))
    launch(getattr(_C, f"{name}_{suffix}_cuda"), x, shape, *map(_address, tensors))


def allows_tf32() -> bool:
    """Whether torch lets products of float32 take tf32 factors on a GPU."""
    matmul = torch.backends.cuda.matmul
    if hasattr(matmul, "fp32_precision"):  # once it is set, the older question is an error
        return matmul.fp32_precision == "tf32"
    return torch.get_float32_matmul_precision() != "highest"


def _embedding_shape(features: Tensor, weight: Tensor, activation: int, norm: bool, eps: float):
    num_pairs, num_features = features.shape
    return _C.EmbeddingShape(num_pairs, num_features, weight.shape[0], activation, norm, eps)


def _pair_embedding_forward(run, features, weight, bias, dtype, activation, norm, eps):
    checks.check_pair_embedding(features, weight, bias, eps)
    e = features.new_empty((features.shape[0], weight.shape[0]), dtype=dtype)
    shape = _embedding_shape(features, weight, activation, norm, eps)
    run("embedding_forward", features, dtype, shape, features, weight, bias, e)
    return e


def _pair_embedding_backward(
    run, features, weight, bias, grad_e, activation, norm, eps, need_features
):
    grad_e = grad_e.contiguous()
    checks.check_pair_embedding(features, weight, bias, eps)
    num_pairs, num_features = features.shape
    checks.check(grad_e, "grad_e", (num_pairs, weight.shape[0]))
    grad_features = features.new_empty((num_pairs if need_features else 0, num_features))
    grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(bias)
    run(
        "embedding_backward",
        features,
        grad_e.dtype,
        _embedding_shape(features, weight, activation, norm, eps),
        *(features, weight, bias, grad_e),
        *(grad_features if need_features else None, grad_weight, grad_bias),
    )
    return grad_features, grad_weight, grad_bias


def _attention_shape(site_i, site_j, e, logit_weight, attention_dim, activation, norm, eps) -> Any:
    heads, hidden = logit_weight.shape
    rows, columns = site_i.shape
    num_pairs, width = e.shape
    return _C.AttentionShape(
        num_pairs,
        rows,
        site_j.shape[0],
        hidden,
        attention_dim,
        columns - hidden - attention_dim,
        width,
        heads,
        activation,
        norm,
        eps,
    )


def _attention_forward(
    run,
    site_i,
    site_j,
    e,
    weight,
    logit_weight,
    log_multiplicity,
    offsets,
    sites,
    attention_dim,
    activation,
    norm,
    eps,
    need_logits,
):
    checks.check_attention(
        *(site_i, site_j, e, weight, logit_weight, log_multiplicity, offsets, sites),
        *(attention_dim, eps),
    )
    heads, hidden = logit_weight.shape
    rows, columns = site_i.shape
    num_pairs = e.shape[0]
    y = site_i.new_empty((rows, attention_dim * heads))
    e_out = e.new_empty((num_pairs, columns - hidden - attention_dim))
    logsum = site_i.new_empty((rows, heads))
    logits = site_i.new_empty((num_pairs if need_logits else 0, heads))
    run(
        "attention_forward",
        site_i,
        e.dtype,
        _attention_shape(site_i, site_j, e, logit_weight, attention_dim, activation, norm, eps),
        *(site_i, site_j, e, weight, logit_weight, log_multiplicity, offsets, sites),
        *(y, e_out, logsum, logits if need_logits else None),
    )
    return y, e_out, logsum, logits


def _attention_backward(
    run,
    site_i,
    site_j,
    e,
    weight,
    logit_weight,
    log_multiplicity,
    offsets,
    sites,
    y,
    logsum,
    grad_y,
    grad_e_out,
    attention_dim,
    activation,
    norm,
    eps,
):
    grad_y = grad_y.contiguous()
    grad_e_out = grad_e_out.contiguous() if grad_e_out is not None else None
    checks.check_attention(
        *(site_i, site_j, e, weight, logit_weight, log_multiplicity, offsets, sites),
        *(attention_dim, eps),
    )
    checks.check_attention_gradients(
        site_i, e, logit_weight, y, logsum, grad_y, grad_e_out, attention_dim
    )
    gradients = tuple(torch.empty_like(x) for x in (site_i, site_j, e, weight, logit_weight))
    run(
        "attention_backward",
        site_i,
        e.dtype,
        _attention_shape(site_i, site_j, e, logit_weight, attention_dim, activation, norm, eps),
        *(site_i, site_j, e, weight, logit_weight, log_multiplicity, offsets, sites),
        *(y, logsum, grad_y, grad_e_out),
        *gradients,
    )
    return gradients


def _attention_backward_cuda(*inputs):
    """With the pairs listed by site, so that the sums of grad_site_j have one order."""
    num_sites, sites = inputs[1].shape[0], inputs[7]
    sorted_sites, pairs_of_site = torch.sort(sites, stable=True)
    bounds = torch.arange(num_sites + 1, dtype=sites.dtype, device=sites.device)
    offsets_of_site = torch.searchsorted(sorted_sites, bounds)

    def run(*arguments):
        _run_cuda(*arguments, pairs_of_site, offsets_of_site)

    return _attention_backward(run, *inputs)


def _with(run, implementation):
    return lambda *inputs: implementation(run, *inputs)


CPU_IMPLEMENTATIONS = {
    "pair_embedding_forward": _with(_run_cpu, _pair_embedding_forward),
    "pair_embedding_backward": _with(_run_cpu, _pair_embedding_backward),
    "attention_forward": _with(_run_cpu, _attention_forward),
    "attention_backward": _with(_run_cpu, _attention_backward),
}
CUDA_IMPLEMENTATIONS = {
    "pair_embedding_forward": _with(_run_cuda, _pair_embedding_forward),
    "pair_embedding_backward": _with(_run_cuda, _pair_embedding_backward),
    "attention_forward": _with(_run_cuda, _attention_forward),
    "attention_backward": _attention_backward_cuda,
}
for _device, _implementations in (("CPU", CPU_IMPLEMENTATIONS), ("CUDA", CUDA_IMPLEMENTATIONS)):
    for _name, _implementation in _implementations.items():
        library.impl(_name, _implementation, _device)

_ops = torch.ops.sitenet


class _PairEmbedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, weight, bias, dtype, *options):
        ctx.save_for_backward(features, weight, bias)
        ctx.options = options
        return _ops.pair_embedding_forward(features, weight, bias, dtype, *options)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_e):
        need_features = ctx.needs_input_grad[0]
        grad_features, grad_weight, grad_bias = _ops.pair_embedding_backward(
            *ctx.saved_tensors, grad_e, *ctx.options, need_features
        )
        return grad_features if need_features else None, grad_weight, grad_bias, *[None] * 4


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, *inputs):
        tensors, options, need_logits = inputs[:8], inputs[8:-1], inputs[-1]
        y, e_out, logsum, logits = _ops.attention_forward(*tensors, *options, need_logits)
        ctx.save_for_backward(*tensors, y, logsum)
        ctx.options = options
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(logits)
        return y, e_out, logits

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_y, grad_e_out, _):
        if grad_y is None:
            grad_y = torch.zeros_like(ctx.saved_tensors[8])
        if grad_e_out is not None and grad_e_out.shape[1] == 0:
            grad_e_out = None
        gradients = _ops.attention_backward(*ctx.saved_tensors, grad_y, grad_e_out, *ctx.options)
        return *gradients, *[None] * 8


def _need_grad(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def _work_dtypes(x: Tensor) -> tuple[torch.dtype, torch.dtype]:
    """Dtype of the sums and of e: as given, or float32 and bfloat16 under autocast."""
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
    eps: float = 1e-5,
) -> Tensor:
    """Embed the features of pairs: normalise(activation(features weight^T + bias)).

    Args:
        features: (pairs, features), float32 or float64.
        weight: (width, features).
        bias: (width,).
        activation: "mish", "relu" or "none".
        norm: normalise each row (LayerNorm without affine).
        eps: of the norm.

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
    arguments = (features, weight, bias, e_dtype, _activation_id(activation), norm, eps)
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
    eps: float = 1e-5,
    need_logits: bool = False,
    check_indices: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """One attention block over CSR rows of pairs.

    With z = site_i[row] + site_j[sites] + e weight^T and m = activation(z), whose columns are
    [hidden | attention features | interaction features], each group normalised by itself: the
    logits are m_hidden logit_weight^T + log_multiplicity, their softmax is over the row, per head.

    Args:
        site_i: (rows, columns), float32 or float64: what the row's site adds to z, with the bias.
        site_j: (sites, columns): what the pair's other site adds.
        e: (pairs, width): interaction features, in the dtype of site_i or in bfloat16.
        weight: (columns, width).
        logit_weight: (heads, hidden).
        log_multiplicity: (pairs,): ln of how many equal pairs each stands for; -inf leaves a pair
            out. Not differentiated.
        offsets: (rows + 1,) int64: row r holds pairs offsets[r] to offsets[r + 1].
        sites: (pairs,) int32: row of site_j of each pair.
        attention_dim: number of attention features.
        activation: "mish", "relu" or "none".
        norm: normalise each group of columns (LayerNorm without affine).
        eps: of the norms.
        need_logits: return the logits too.
        check_indices: read ``offsets`` and ``sites`` to check them, for which a GPU is waited for.
            False only where they have been checked, as a model's have (``Pairs.check``): the
            kernels would read foreign memory. Values are never read while a CUDA graph is captured.

    Returns:
        y (rows, attention_dim * heads), the attention-weighted sums, feature a of head h at
        a * heads + h (zero for a row with nothing to attend to); the next interaction features
        (pairs, columns - hidden - attention_dim), or None where that is 0; the logits
        (pairs, heads), or None. The logits carry no gradient.

    Raises:
        TypeError, ValueError: an argument of the wrong dtype, shape or device, or an index out of
            range.
        RuntimeError: CUDA tensors in a build without CUDA kernels.

    Source:
        Site-Net, attention block: g^W, g^A and g^I of the paper's Methods on [x_i, x_j, e_ij].
    """
    checks.check_tensors(
        site_i=site_i,
        site_j=site_j,
        e=e,
        weight=weight,
        logit_weight=logit_weight,
        log_multiplicity=log_multiplicity,
        offsets=offsets,
        sites=sites,
    )
    if site_i.is_cuda:
        need_cuda()
    work, e_dtype = _work_dtypes(site_i)
    if e.dtype == torch.bfloat16:
        e_dtype = torch.bfloat16
    site_i, site_j, weight, logit_weight, log_multiplicity = (
        x.to(work).contiguous() for x in (site_i, site_j, weight, logit_weight, log_multiplicity)
    )
    e, offsets, sites = e.to(e_dtype).contiguous(), offsets.contiguous(), sites.contiguous()
    if check_indices:
        checks.check_attention(
            *(site_i, site_j, e, weight, logit_weight, log_multiplicity, offsets, sites),
            *(attention_dim, eps),
        )
        checks.check_indices(offsets, sites, site_j.shape[0])
    arguments = (
        *(site_i, site_j, e, weight, logit_weight, log_multiplicity, offsets, sites),
        *(attention_dim, _activation_id(activation), norm, eps, need_logits),
    )
    if _need_grad(site_i, site_j, e, weight, logit_weight):
        y, e_out, logits = _Attention.apply(*arguments)
    else:
        y, e_out, _, logits = _ops.attention_forward(*arguments)
    return y, e_out if e_out.shape[1] else None, logits if need_logits else None
