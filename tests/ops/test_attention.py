"""The fused attention block and pair embedding against sitenet.reference in float64."""

import multiprocessing
import os
import subprocess
import sys

import pytest
import torch

from sitenet import reference
from sitenet.ops import attention as ops
from sitenet.system.environment import info

# hidden, attention, interaction out, width of e, heads
DIMS = {
    "paper": (225, 30, 48, 48, 3),
    "paper-last": (225, 30, 0, 48, 3),
    "tiny": (7, 3, 5, 5, 1),
    "vectors": (16, 16, 16, 16, 2),
    "heads": (33, 17, 1, 9, 8),
    "wide": (70, 40, 64, 20, 5),
}
ROWS = {
    "edges": (100, 3, 0, 31, 32, 33, 47, 48, 49, 1, 200, 0),
    "one": (1,),
    "long": (1000, 2000),
    "empty": (0, 0),
    "none": (),
}


def inputs(dims, rows, dtype, device="cpu", seed=0):
    hidden, a_dim, interaction, width, heads = dims
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    offsets = torch.tensor((0, *rows)).cumsum(0)
    num_pairs, num_sites, columns = int(offsets[-1]), len(rows) + 2, hidden + a_dim + interaction
    log_multiplicity = torch.randint(1, 9, (num_pairs,), generator=generator).double().log()
    log_multiplicity[::7] = -torch.inf
    sites = torch.randint(0, num_sites, (num_pairs,), generator=generator, dtype=torch.int32)
    tensors = (
        random(len(rows), columns),
        random(num_sites, columns),
        random(num_pairs, width),
        random(columns, width) / width**0.5,
        3 * random(heads, hidden) / hidden**0.5,
        log_multiplicity,
    )
    e_dtype, dtype = dtype, torch.float32 if dtype == torch.bfloat16 else dtype
    tensors = [x.to(e_dtype if i == 2 else dtype) for i, x in enumerate(tensors)]
    return [x.to(device) for x in (*tensors, offsets, sites)]


def outputs_and_gradients(function, tensors, num_differentiable, **options):
    """Every output, then the gradient of a fixed random combination of them by every input."""
    leaves = [x.clone().requires_grad_(i < num_differentiable) for i, x in enumerate(tensors)]
    outputs = function(*leaves, **options)
    outputs = list(outputs) if isinstance(outputs, tuple) else [outputs]
    generator = torch.Generator().manual_seed(1)
    loss = 0.0
    for y in outputs[:2]:  # the logits carry no gradient
        if y is not None and y.requires_grad:
            g = torch.randn(y.shape, generator=generator, dtype=torch.float64)
            loss = loss + (y * g.to(y.device, y.dtype)).sum()
    if isinstance(loss, float):
        return outputs
    return [*outputs, *torch.autograd.grad(loss, leaves[:num_differentiable])]


def errors(got, oracle):
    """Largest differences relative to the oracle's largest entry, NaN for another pattern."""
    result = []
    for x, y in zip(got, oracle, strict=True):
        assert (x is None) == (y is None)
        if y is None or not y.numel():
            continue
        assert x.shape == y.shape
        assert torch.equal(torch.isinf(x).cpu(), torch.isinf(y).cpu())
        finite = torch.isfinite(y)
        if finite.any():
            scale = y[finite].abs().max()
            result.append(((x.double() - y)[finite].abs().max() / scale.clamp(min=1e-3)).item())
    return result


def compare(function, oracle, tensors, tensors64, num_differentiable, dtype, **options):
    exact = outputs_and_gradients(oracle, tensors64, num_differentiable, **options)
    got = outputs_and_gradients(function, tensors, num_differentiable, **options)
    ours = errors(got, exact)
    if dtype == torch.float64:
        assert max(ours, default=0) < 1e-11
        return
    plain = errors(outputs_and_gradients(oracle, tensors, num_differentiable, **options), exact)
    # Sums of n products in another order: errors of a few ulp either way, so 2 x the plain one
    # and 5e-6 for the tensors on which the plain one happens to be exact. Where relu leaves a group
    # almost constant its norm multiplies the rounding of z (2^-24) by up to eps^-1/2 = 316.
    floor = 4e-5 if options["activation"] == "relu" and options["norm"] else 5e-6
    assert all(x <= 2 * y + floor for x, y in zip(ours, plain, strict=True)), (ours, plain)


OPTIONS = [("mish", True), ("mish", False), ("relu", True), ("none", True), ("none", False)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize(("activation", "norm"), OPTIONS)
@pytest.mark.parametrize("dims", DIMS)
def test_attention(dims, activation, norm, dtype, device):
    for rows in ROWS.values():
        tensors = inputs(DIMS[dims], rows, dtype, device)
        tensors64 = inputs(DIMS[dims], rows, torch.float64, device)
        options = dict(
            attention_dim=DIMS[dims][1], activation=activation, norm=norm, need_logits=True
        )
        compare(ops.attention, reference.attention, tensors, tensors64, 5, dtype, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize(("activation", "norm"), OPTIONS)
@pytest.mark.parametrize(("features", "width"), [(1, 1), (2, 48), (3, 17), (2, 64), (20, 160)])
def test_pair_embedding(features, width, activation, norm, dtype, device):
    for num_pairs in (0, 1, 300):
        generator = torch.Generator().manual_seed(0)
        tensors64 = [
            torch.randn(*shape, generator=generator, dtype=torch.float64).to(device)
            for shape in ((num_pairs, features), (width, features), (width,))
        ]
        tensors = [x.to(dtype) for x in tensors64]
        if norm and width == 1:
            continue  # one column normalises to nothing
        options = dict(activation=activation, norm=norm)
        compare(
            ops.pair_embedding, reference.pair_embedding, tensors, tensors64, 3, dtype, **options
        )


@pytest.mark.parametrize("dims", DIMS)
def test_attention_in_bfloat16(dims, device):
    """e in bfloat16: outputs within the rounding of the products' factors (2^-9 each)."""
    for rows in ROWS.values():
        tensors = inputs(DIMS[dims], rows, torch.bfloat16, device)
        options = dict(attention_dim=DIMS[dims][1], need_logits=True)
        exact = outputs_and_gradients(
            reference.attention, inputs(DIMS[dims], rows, torch.float64, device), 5, **options
        )
        got = outputs_and_gradients(ops.attention, tensors, 5, **options)
        assert got[0].dtype == torch.float32
        assert got[1] is None or got[1].dtype == torch.bfloat16
        assert max(errors(got, exact), default=0) < 0.04


def test_the_mish_beside_bfloat16_products(device):
    """Rows of one pair, without a norm, hand the activation through: y is Mish of site_j, and its
    gradient the derivative. The absolute error is small beside the 4e-3 of factors near 1."""
    z = torch.cat([torch.linspace(-40, 40, 20_001), torch.tensor([1e4, -1e4, 0.0])]).to(device)
    n = len(z)
    site_j = z[:, None].expand(n, 2).clone().requires_grad_()
    y, _, _ = ops.attention(
        torch.zeros(n, 2, device=device),
        site_j,
        torch.zeros(n, 2, dtype=torch.bfloat16, device=device),
        torch.zeros(2, 2, device=device),
        torch.zeros(1, 1, device=device),
        torch.zeros(n, device=device),
        torch.arange(n + 1, device=device),
        torch.arange(n, dtype=torch.int32, device=device),
        attention_dim=1,
        activation="mish",
        norm=False,
        eps=1e-5,
        need_logits=False,
    )
    y.sum().backward()
    exact = z.double().requires_grad_()
    mish = torch.nn.functional.mish(exact)
    mish.sum().backward()
    torch.testing.assert_close(y[:, 0].double(), mish, rtol=2e-4, atol=3e-4)
    torch.testing.assert_close(site_j.grad[:, 1].double(), exact.grad, rtol=2e-4, atol=3e-4)


def test_autocast_makes_the_products_bfloat16(device):
    tensors = inputs(DIMS["paper"], (50, 60), torch.float32, device)
    with torch.autocast(device.type, torch.bfloat16):
        y, e, _ = ops.attention(*tensors, attention_dim=30)
        embedded = ops.pair_embedding(tensors[2][:, :2], tensors[3][:, :2], tensors[3][:, 2])
    assert (y.dtype, e.dtype, embedded.dtype) == (torch.float32, torch.bfloat16, torch.bfloat16)
    tensors[2] = tensors[2].bfloat16()
    torch.testing.assert_close(y, ops.attention(*tensors, attention_dim=30)[0], rtol=0, atol=0)


def test_bfloat16_without_its_instructions_agrees(tmp_path):
    """Every level of SIMD gives the same numbers to rounding."""
    script = tmp_path / "levels.py"
    script.write_text(
        "import sys, torch\n"
        f"sys.path.insert(0, {str(os.path.dirname(__file__))!r})\n"
        "from test_attention import DIMS, inputs, ops, outputs_and_gradients\n"
        "result = [\n"
        "    outputs_and_gradients(ops.attention, inputs(DIMS['paper'], (70, 9, 130), d), 5,\n"
        "                          attention_dim=30)\n"
        "    for d in (torch.float32, torch.bfloat16)\n"
        "]\n"
        "torch.save([[x for x in r if x is not None] for r in result], sys.argv[1])\n"
    )
    if not info()["simd"].startswith("x86_64"):
        pytest.skip("this processor has one SIMD level")
    levels = ["x86_64_v2", "x86_64_v3", "x86_64_v4", "x86_64_v4_bf16"]
    results = []
    for level in levels[: levels.index(info()["simd"]) + 1]:
        path = tmp_path / f"{level}.pt"
        environment = {**os.environ, "SITENET_SIMD": level}
        subprocess.run([sys.executable, str(script), str(path)], check=True, env=environment)
        results.append(torch.load(path))
    for other in results[1:]:
        for precision, tolerance in ((0, 1e-5), (1, 2e-2)):
            for x, y in zip(results[0][precision], other[precision], strict=True):
                scale = x.detach().abs().max().item()
                assert (x - y).abs().max().item() <= tolerance * scale


def test_an_unknown_level_is_an_error():
    environment = {**os.environ, "SITENET_SIMD": "x86_64_v9"}
    run = subprocess.run(
        [sys.executable, "-c", "from sitenet.ops import _C"],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert run.returncode != 0
    assert "SITENET_SIMD=x86_64_v9 is not a SIMD level of this machine" in run.stderr


def test_opcheck(device):
    tensors = inputs(DIMS["tiny"], (5, 9), torch.float32, device)
    forward = (*tensors, 3, ops.ACTIVATIONS["mish"], True, 1e-5, True)
    torch.library.opcheck(torch.ops.sitenet.attention_forward.default, forward)
    y, e, logsum, _ = torch.ops.sitenet.attention_forward(*forward)
    for grad_e in (e, None):
        backward = (*tensors, y, logsum, y, grad_e, 3, ops.ACTIVATIONS["mish"], True, 1e-5)
        torch.library.opcheck(torch.ops.sitenet.attention_backward.default, backward)
    features, weight, bias = tensors[2], tensors[3], tensors[3][:, 0].contiguous()
    options = (ops.ACTIVATIONS["relu"], False, 1e-5)
    forward = (features, weight, bias, torch.float32, *options)
    torch.library.opcheck(torch.ops.sitenet.pair_embedding_forward.default, forward)
    e = torch.ops.sitenet.pair_embedding_forward(*forward)
    for need_features in (True, False):
        backward = (features, weight, bias, e, *options, need_features)
        torch.library.opcheck(torch.ops.sitenet.pair_embedding_backward.default, backward)


def test_gradcheck(device):
    tensors = inputs(DIMS["tiny"], (4, 0, 7), torch.float64, device)

    def attend(*leaves):
        return ops.attention(*leaves, *tensors[5:], attention_dim=3)[:2]

    leaves = [x.requires_grad_() for x in tensors[:5]]
    assert torch.autograd.gradcheck(attend, leaves)
    small = [torch.randn(*s, dtype=torch.float64, device=device) for s in ((6, 2), (5, 2), (5,))]
    assert torch.autograd.gradcheck(ops.pair_embedding, [x.requires_grad_() for x in small])


# torch.compile itself makes an instance of every autograd.Function it traces.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiles_without_a_graph_break(device):
    tensors = inputs(DIMS["tiny"], (5, 9), torch.float32, device)

    def step(features, *tensors):
        e = ops.pair_embedding(features, tensors[3][:5, :2], tensors[3][:5, 2])
        y, e, _ = ops.attention(*tensors[:2], e, *tensors[3:], attention_dim=3)
        return y.sum() + e.square().sum()

    features = tensors[2][:, :2].clone().requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    (expected,) = torch.autograd.grad(step(features, *tensors), features)
    (got,) = torch.autograd.grad(compiled(features, *tensors), features)
    torch.testing.assert_close(got, expected)


def test_sliced_and_transposed_inputs(device):
    tensors = inputs(DIMS["tiny"], (5, 9), torch.float32, device)
    expected = ops.attention(*tensors, attention_dim=3)
    views = [torch.stack([x, x], -1)[..., 0] for x in tensors]
    for x, y in zip(ops.attention(*views, attention_dim=3), expected, strict=True):
        assert x is y is None or torch.equal(x, y)


def test_a_row_left_out_entirely_is_zero(device):
    tensors = inputs(DIMS["tiny"], (5, 9), torch.float32, device)
    tensors[5][:5] = -torch.inf
    got = outputs_and_gradients(ops.attention, tensors, 5, attention_dim=3)
    assert got[0][0].eq(0).all()
    assert all(x is None or x.isfinite().all() for x in got)


def test_nan_stays_in_its_row(device):
    tensors = inputs(DIMS["paper"], (20, 30, 40), torch.float32, device)
    clean = ops.attention(*tensors, attention_dim=30)[0]
    tensors[2][25, 7] = torch.nan
    tensors[5][25] = 0.0
    y = ops.attention(*tensors, attention_dim=30)[0]
    assert y[1].isnan().all()
    assert torch.equal(y[[0, 2]], clean[[0, 2]])


def test_two_runs_give_equal_bits(device):
    tensors = inputs(DIMS["paper"], (200, 300, 400), torch.float32, device)
    first, second = (
        outputs_and_gradients(ops.attention, tensors, 5, attention_dim=30) for _ in range(2)
    )
    assert all(x is y is None or torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_the_number_of_threads_is_honoured():
    tensors = inputs(DIMS["paper"], (200, 300, 400), torch.float32)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(outputs_and_gradients(ops.attention, tensors, 5, attention_dim=30))
    torch.set_num_threads(before)
    for other in results[1:]:
        for x, y in zip(results[0], other, strict=True):
            if x is not None:
                torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


ASKS = """
import torch
from sitenet.ops.attention import allows_tf32
assert not allows_tf32()
for precision in ("high", "medium", "highest"):
    torch.set_float32_matmul_precision(precision)
    assert allows_tf32() == (precision != "highest")
matmul = torch.backends.cuda.matmul
for precision in ("tf32", "ieee") if hasattr(matmul, "fp32_precision") else ():
    matmul.fp32_precision = precision
    assert allows_tf32() == (precision == "tf32")
"""


def test_tf32_is_asked_for_in_either_way_of_torch():
    subprocess.run([sys.executable, "-c", ASKS], check=True)


def _attend_in_worker(tensors):
    return float(ops.attention(*tensors, attention_dim=30)[0].abs().sum())


def test_a_forked_worker_does_not_hang():
    tensors = inputs(DIMS["paper"], (200, 300, 400), torch.float32)
    expected = _attend_in_worker(tensors)  # the parent has used its threads
    with multiprocessing.get_context("fork").Pool(1) as pool:
        got = pool.apply_async(_in_one_thread, (tensors,)).get(timeout=60)
    assert got == pytest.approx(expected, rel=1e-4)


def _in_one_thread(tensors):
    torch.set_num_threads(1)  # as a DataLoader's worker does
    return _attend_in_worker(tensors)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (dict(site_j=torch.zeros(4, 3)), ValueError, r"site_j must have shape \(sites, 15\)"),
        (dict(weight=torch.zeros(15, 4)), ValueError, r"weight must have shape \(15, 5\)"),
        (dict(site_i=torch.zeros(2, 15).half()), TypeError, "site_i must be float32 or float64"),
        (dict(sites=torch.zeros(14)), TypeError, "sites must be int32, got float32"),
        (dict(offsets=torch.zeros(2).long()), ValueError, r"offsets must have shape \(3,\)"),
        (dict(attention_dim=9), ValueError, "at least hidden"),
        (dict(activation="gelu"), ValueError, "activation must be one of none, relu, mish"),
    ],
)
def test_a_wrong_argument_is_named(change, error, message):
    names = "site_i site_j e weight logit_weight log_multiplicity offsets sites".split()
    arguments = dict(zip(names, inputs(DIMS["tiny"], (5, 9), torch.float32), strict=True))
    with pytest.raises(error, match=message):
        ops.attention(**{**arguments, "attention_dim": 3, **change})
