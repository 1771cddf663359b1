"""The fused attention block and pair embedding against sitenet.reference in float64."""

import itertools
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from attention_blocks import DIMS, ROWS, inputs, outputs_and_gradients
from attention_checks import (
    OPTIONS,
    check_a_row_left_out_entirely_is_zero,
    check_autocast_makes_the_products_bfloat16,
    check_gradcheck,
    check_nan_stays_in_its_row,
    check_pair_embedding,
    check_sliced_and_transposed_inputs,
    compare,
)
from rounding import errors, limits

from sitenet import reference
from sitenet.ops import attention as ops
from sitenet.ops.rows import row_of_pair
from sitenet.system.environment import info

CASES = Path(__file__).parents[1] / "cases"


def near_a_kink(tensors):
    """Return whether some z is so close to 0 that its rounding may pick the other side of relu.

    The gradients jump there. The rounding of z, a sum of up to 66 terms near 1, is 1e-6 at most.
    """
    site_i, site_j, e, weight, *_, offsets, sites = tensors
    z = site_i[row_of_pair(offsets, len(sites))] + site_j[sites.long()] + e @ weight.T
    return bool((z.abs() < 2e-6).any())


@pytest.mark.levels
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize(("activation", "norm"), OPTIONS)
@pytest.mark.parametrize("dims", DIMS)
def test_attention(dims, activation, norm, dtype, device):
    for rows in ROWS.values():
        seeds = itertools.count()
        tensors = inputs(DIMS[dims], rows, dtype, device, next(seeds))
        while activation == "relu" and near_a_kink(tensors):
            tensors = inputs(DIMS[dims], rows, dtype, device, next(seeds))
        options = dict(
            attention_dim=DIMS[dims][1], activation=activation, norm=norm, need_logits=True
        )
        compare(ops.attention, reference.attention, tensors, 5, **options)


WRONG = {  # a term of the kernel, changed through arguments that the ops accept
    "no eps": lambda x, options: (x, options | {"eps": 0.0}),
    "eps beside the root": lambda x, options: (x, options | {"eps": 1e-10}),
    "no multiplicity": lambda x, options: ([*x[:5], x[5].clamp(max=0), *x[6:]], options),
    "logits of the wrong sign": lambda x, options: ([*x[:4], -x[4], *x[5:]], options),
    "logits scaled by 1.001": lambda x, options: ([*x[:4], x[4] * 1.001, *x[5:]], options),
    "e of the wrong sign": lambda x, options: ([*x[:2], -x[2], *x[3:]], options),
    "factors in bfloat16": lambda x, options: (
        [*x[:3], x[3].bfloat16().to(x[3].dtype), *x[4:]],
        options,
    ),
    "the row's state left out": lambda x, options: ([0 * x[0], *x[1:]], options),
    "no norm": lambda x, options: (x, options | {"norm": False}),
    "relu for mish": lambda x, options: (x, options | {"activation": "relu"}),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("term", WRONG)
def test_a_wrong_term_is_caught(term, dtype, device):
    """The tolerance is no wider than it must be.

    A wrong eps shows in float32 only where groups are almost constant: here two columns, whose
    difference is small in some of the pairs.
    """
    dims = (2, 2, 2, 5, 1) if "eps" in term else DIMS["heads"]
    tensors = inputs(dims, (100, 33, 200), dtype, device)
    options = dict(attention_dim=dims[1], activation="mish", norm=True, eps=1e-5, need_logits=True)

    def wrong(*leaves, **options):
        leaves, options = WRONG[term](list(leaves), options)
        return ops.attention(*leaves, **options)

    compare(ops.attention, reference.attention, tensors, 5, **options)
    with pytest.raises(AssertionError):
        compare(wrong, reference.attention, tensors, 5, **options)


@pytest.mark.levels
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize(("activation", "norm"), OPTIONS)
@pytest.mark.parametrize(("features", "width"), [(1, 1), (2, 48), (3, 17), (2, 64), (20, 160)])
def test_pair_embedding(features, width, activation, norm, dtype, device):
    check_pair_embedding(features, width, activation, norm, dtype, device)


@pytest.mark.levels
@pytest.mark.parametrize("dims", DIMS)
def test_attention_in_bfloat16(dims, device):
    """Errors are within those of the plain formula on factors changed by a unit of bfloat16.

    Products round their factors by up to half a unit, which costs as much as copies of e and weight
    that differ by up to a unit; the backward pass rounds dz too. Over 30 seeds, at SIMD levels with
    and without bfloat16 instructions, the largest ratio was 1.3.
    """
    options = dict(attention_dim=DIMS[dims][1], need_logits=True)

    def plain(copy):
        copy[2], copy[3] = copy[2].float(), copy[3].float()
        return outputs_and_gradients(reference.attention, copy, 5, **options)

    for rows in ROWS.values():
        tensors = inputs(DIMS[dims], rows, torch.bfloat16, device)
        tensors64 = [x.double() if x.is_floating_point() else x for x in tensors]
        exact = outputs_and_gradients(reference.attention, tensors64, 5, **options)
        got = outputs_and_gradients(ops.attention, tensors, 5, **options)
        assert got[0].dtype == torch.float32
        assert got[1] is None or got[1].dtype == torch.bfloat16
        rounded = [*tensors[:3], tensors[3].bfloat16(), *tensors[4:]]
        allowed = limits(plain, rounded, exact, factor=3)
        ours = errors(got, exact)
        assert all(x <= y for x, y in zip(ours, allowed, strict=True)), (ours, allowed)


@pytest.mark.levels
def test_the_mish_beside_bfloat16_products(device):
    """Mish and its derivative are accurate for factors in bfloat16.

    Rows of one pair, without a norm, pass the activation through: y is Mish of site_j. The absolute
    error is small compared with the 4e-3 that rounding costs factors near 1.
    """
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
    check_autocast_makes_the_products_bfloat16(device)


def test_bfloat16_without_its_instructions_agrees(tmp_path):
    """Every SIMD level gives the same numbers up to rounding."""
    script = tmp_path / "levels.py"
    script.write_text(
        "import sys, torch\n"
        f"sys.path.insert(0, {str(CASES)!r})\n"
        "from attention_blocks import DIMS, inputs, outputs_and_gradients\n"
        "from sitenet.ops import attention as ops\n"
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
    is_gpu = device.type == "cuda"  # whose forward pass keeps what its backward pass reads
    forward = (*tensors, 3, ops.ACTIVATIONS["mish"], True, 1e-5, True, is_gpu)
    torch.library.opcheck(torch.ops.sitenet.attention_forward.default, forward)
    y, e, logsum, _, statistics = torch.ops.sitenet.attention_forward(*forward)
    for grad_e in (e, None):
        options = (3, ops.ACTIVATIONS["mish"], True, 1e-5)
        backward = (*tensors, y, logsum, y, grad_e, *options, None, None, statistics)
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
    check_gradcheck(device)


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
    check_sliced_and_transposed_inputs(device)


def test_a_row_left_out_entirely_is_zero(device):
    check_a_row_left_out_entirely_is_zero(device)


def test_nan_stays_in_its_row(device):
    check_nan_stays_in_its_row(device)


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
