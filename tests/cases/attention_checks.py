"""Checks of the attention block and the pair embedding, for every implementation of the ops."""

import torch
from attention_blocks import DIMS, inputs, outputs_and_gradients
from rounding import errors, limits

from sitenet import reference
from sitenet.ops import attention as ops

OPTIONS = [("mish", True), ("mish", False), ("relu", True), ("none", True), ("none", False)]


def compare(function, oracle, tensors, num_differentiable, **options):
    """Compare with the oracle in float64, within the rounding errors of the inputs' precision."""
    tensors64 = [x.double() if x.is_floating_point() else x for x in tensors]
    exact = outputs_and_gradients(oracle, tensors64, num_differentiable, **options)
    got = outputs_and_gradients(function, tensors, num_differentiable, **options)
    ours = errors(got, exact)
    if tensors[0].dtype == torch.float64:
        # In float32 no error exceeds 2e-4, 1,700 units in the last place: 4e-13 in float64.
        assert max(ours, default=0) < 1e-11
        return

    def plain(inputs):
        return outputs_and_gradients(oracle, inputs, num_differentiable, **options)

    allowed = limits(plain, tensors, exact)
    assert all(x <= y for x, y in zip(ours, allowed, strict=True)), (ours, allowed)


def check_attention(
    dims, rows, dtype, device="cpu", activation="mish", norm=True, need_logits=True
):
    """Compare the attention block with the oracle, within the rounding of its products' factors."""
    tensors = inputs(dims, rows, dtype, device)
    exact = inputs(dims, rows, torch.float64, device)
    options = dict(attention_dim=dims[1], activation=activation, norm=norm, need_logits=need_logits)
    functions = ops.attention, reference.attention
    if dtype != torch.bfloat16 and torch.get_float32_matmul_precision() == "highest":
        compare(*functions, tensors, 5, **options)
        return
    got, want = (
        outputs_and_gradients(f, x, 5, **options)
        for f, x in zip(functions, (tensors, exact), strict=True)
    )
    # Factors of products are rounded by 2^-9 each in bfloat16, as on the CPU; by 2^-12 in TF32.
    limit = 0.04 if dtype == torch.bfloat16 else 0.005
    assert max(errors(got, want), default=0) < limit


def check_pair_embedding(features, width, activation, norm, dtype, device):
    """Compare the pair embedding with the oracle for no, one and many pairs."""
    for num_pairs in (0, 1, 300):
        generator = torch.Generator().manual_seed(0)
        tensors = [
            torch.randn(*shape, generator=generator, dtype=torch.float64).to(device, dtype)
            for shape in ((num_pairs, features), (width, features), (width,))
        ]
        if norm and width == 1:
            continue  # a single column normalises to zero
        options = dict(activation=activation, norm=norm)
        compare(ops.pair_embedding, reference.pair_embedding, tensors, 3, **options)


def check_autocast_makes_the_products_bfloat16(device):
    """Check that autocast rounds the factors of products and returns sums in float32."""
    tensors = inputs(DIMS["paper"], (50, 60), torch.float32, device)
    with torch.autocast(device.type, torch.bfloat16):
        y, e, _ = ops.attention(*tensors, attention_dim=30)
        embedded = ops.pair_embedding(tensors[2][:, :2], tensors[3][:, :2], tensors[3][:, 2])
    assert (y.dtype, e.dtype, embedded.dtype) == (torch.float32, torch.bfloat16, torch.bfloat16)
    tensors[2] = tensors[2].bfloat16()
    torch.testing.assert_close(y, ops.attention(*tensors, attention_dim=30)[0], rtol=0, atol=0)


def check_gradcheck(device):
    """Check both ops against finite differences in float64."""
    tensors = inputs(DIMS["tiny"], (4, 0, 7), torch.float64, device)

    def attend(*leaves):
        return ops.attention(*leaves, *tensors[5:], attention_dim=3)[:2]

    leaves = [x.requires_grad_() for x in tensors[:5]]
    assert torch.autograd.gradcheck(attend, leaves)
    small = [torch.randn(*s, dtype=torch.float64, device=device) for s in ((6, 2), (5, 2), (5,))]
    assert torch.autograd.gradcheck(ops.pair_embedding, [x.requires_grad_() for x in small])


def check_sliced_and_transposed_inputs(device):
    """Check that strided views give the bits of contiguous tensors."""
    tensors = inputs(DIMS["tiny"], (5, 9), torch.float32, device)
    expected = ops.attention(*tensors, attention_dim=3)
    views = [torch.stack([x, x], -1)[..., 0] for x in tensors]
    for x, y in zip(ops.attention(*views, attention_dim=3), expected, strict=True):
        assert x is y is None or torch.equal(x, y)


def check_a_row_left_out_entirely_is_zero(device):
    """Check that a row whose pairs all have weight 0 is zero, with finite gradients."""
    tensors = inputs(DIMS["tiny"], (5, 9), torch.float32, device)
    tensors[5][:5] = -torch.inf
    got = outputs_and_gradients(ops.attention, tensors, 5, attention_dim=3)
    assert got[0][0].eq(0).all()
    assert all(x is None or x.isfinite().all() for x in got)


def check_nan_stays_in_its_row(device):
    """Check that NaN in one pair reaches its own row only."""
    tensors = inputs(DIMS["paper"], (20, 30, 40), torch.float32, device)
    clean = ops.attention(*tensors, attention_dim=30)[0]
    tensors[2][25, 7] = torch.nan
    tensors[5][25] = 0.0
    y = ops.attention(*tensors, attention_dim=30)[0]
    assert y[1].isnan().all()
    assert torch.equal(y[[0, 2]], clean[[0, 2]])


def step(features, tensors):
    """Run an embedding and a block; return their outputs and all gradients."""
    leaves = [x.detach().requires_grad_() for x in (features, *tensors[:2], *tensors[3:5])]
    features, site_i, site_j, weight, logit_weight = leaves
    e = ops.pair_embedding(features, weight[:5, :2], weight[:5, 2])
    y, e, _ = ops.attention(site_i, site_j, e, weight, logit_weight, *tensors[5:], attention_dim=3)
    loss = y.square().sum() + e.float().square().sum()
    return [y, e, *torch.autograd.grad(loss, leaves)]
