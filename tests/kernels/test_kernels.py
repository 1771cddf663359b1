"""The CUDA kernels without a GPU: run on the CPU through an emulator, and compiled by nvcc.

``cuda_emu.h`` stands in for CUDA, so the sources of ``csrc/cuda`` and the Python ops around them
run here unchanged, tensor cores included, under the checks of the CPU ops.
"""

import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from attention_blocks import DIMS, inputs, outputs_and_gradients
from attention_checks import (
    OPTIONS,
    check_a_row_left_out_entirely_is_zero,
    check_attention,
    check_autocast_makes_the_products_bfloat16,
    check_gradcheck,
    check_nan_stays_in_its_row,
    check_pair_embedding,
    check_sliced_and_transposed_inputs,
)
from emulated_builds import SANITIZERS, SLAB, SOURCES
from geometry_checks import (
    GEOMETRY,
    assert_exact,
    check_batch_is_the_single_crystals,
    random_cells,
)
from spectrum_checks import (
    ROWS,
    SIZES,
    check_power_spectrum,
    check_spectrum_gradcheck,
    check_spectrum_sliced_inputs,
)
from spectrum_checks import inputs as spectrum_inputs
from step_checks import (
    BLOCKS,
    NORMS,
    check_block_weights,
    check_block_weights_gradcheck,
    check_block_weights_in_bfloat16,
    check_log_multiplicity,
    check_pair_inputs,
)
from toy_crystals import toy_crystals, toy_dataset
from trainers import DENSITY, SPHERE, padded, store_of, trainer_of, weights

from sitenet.model import sitenet as model_module
from sitenet.model import spectrum as spectrum_module
from sitenet.ops import attention, kernel_calls, padded_batch, power_spectrum
from sitenet.ops.padded_batch import Room
from sitenet.ops.rows import sorted_by_site

CPU = torch.device("cpu")
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["f64", "f32", "bf16"]
)


# "wider" is wider than the 64 columns of e that stay in registers, and "many" has more than the 16
# heads of one product over pairs. "three" and "four" have kernels of their own in bfloat16
# (test_known_shapes.py), as "paper" has.
KNOWN = {"three": (20, 17, 9, 35, 3), "four": (33, 20, 0, 32, 4)}
WIDTHS = {**DIMS, **KNOWN, "wider": (20, 40, 33, 75, 4), "many": (20, 5, 3, 12, 21)}
EDGES = (3, 0, 1, 31, 32, 33)


@DTYPES
@pytest.mark.parametrize("dims", WIDTHS)
def test_sizes(emulated, dims, dtype):
    check_attention(WIDTHS[dims], EDGES, dtype)


@pytest.fixture
def tf32():
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("dims", WIDTHS)
def test_tf32(emulated, tf32, dims):
    check_attention(WIDTHS[dims], EDGES, torch.float32)


@DTYPES
@pytest.mark.parametrize("rows", [(), (0, 0), (1,)], ids=["none", "empty", "one"])
def test_nearly_nothing(emulated, rows, dtype):
    check_attention(DIMS["tiny"], rows, dtype)


# A warp takes spans of 64 pairs in groups of 16, or a group of few pairs. These rows end before, at
# and after the borders of both, or cover several spans.
SPANS = {
    "groups": (15, 16, 17),
    "several": (33, 1, 64, 2),
    "spans": (63, 1, 64, 65),
    "first": (200, 30),
    "last": (10, 250),
}


@DTYPES
@pytest.mark.parametrize("rows", SPANS)
def test_rows_around_the_spans(emulated, rows, dtype):
    check_attention(DIMS["vectors"], SPANS[rows], dtype)


@DTYPES
@pytest.mark.parametrize(
    "rows",
    [(SLAB,), (SLAB + 1,), (40, SLAB, 30), (9,) * 40 + (SLAB,) + (0, 5) * 20],
    ids=["one", "more", "across", "many"],  # many: more rows than blocks
)
def test_slabs_of_the_backward(emulated, rows, dtype):
    check_attention(DIMS["tiny"], rows, dtype)


@pytest.mark.parametrize(("activation", "norm"), OPTIONS[1:])
@pytest.mark.parametrize("dims", ["tiny", "heads"])
def test_activations_and_norms(emulated, dims, activation, norm):
    check_attention(DIMS[dims], (47, 0, 2), torch.float64, CPU, activation, norm)


@pytest.mark.parametrize(("activation", "norm"), OPTIONS)
@pytest.mark.parametrize(("features", "width"), [(1, 1), (2, 48), (3, 17), (17, 48), (20, 160)])
def test_pair_embedding(emulated, features, width, activation, norm):
    for dtype in (torch.float64, torch.float32):
        check_pair_embedding(features, width, activation, norm, dtype, CPU)


@pytest.mark.parametrize(
    "check",
    [
        check_gradcheck,
        check_autocast_makes_the_products_bfloat16,
        check_sliced_and_transposed_inputs,
        check_a_row_left_out_entirely_is_zero,
        check_nan_stays_in_its_row,
    ],
    ids=lambda check: check.__name__,
)
def test_promises_of_attention(emulated, check):
    check(CPU)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("sizes", SIZES)
def test_power_spectrum(emulated, sizes, rows, dtype):
    check_power_spectrum(SIZES[sizes], ROWS[rows], dtype, CPU)


@pytest.mark.parametrize(
    "check",
    [check_spectrum_gradcheck, check_spectrum_sliced_inputs],
    ids=lambda check: check.__name__,
)
def test_promises_of_power_spectra(emulated, check):
    check(CPU)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("norms", NORMS)
@pytest.mark.parametrize("sizes", BLOCKS)
def test_block_weights(emulated, sizes, norms, dtype):
    check_block_weights(BLOCKS[sizes], NORMS[norms], dtype)


@pytest.mark.parametrize(
    "check",
    [check_block_weights_gradcheck, check_block_weights_in_bfloat16],
    ids=lambda check: check.__name__,
)
def test_promises_of_block_weights(emulated, check):
    check()


@pytest.mark.parametrize(
    ("dtype", "stored"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float64, torch.float32),
        (torch.float32, torch.float64),
    ],
    ids=str,
)
@pytest.mark.parametrize("rows", [(3, 0, 1, 400), (0, 0), ()], ids=str)
def test_pair_inputs(emulated, rows, dtype, stored):
    check_pair_inputs(rows, dtype, stored)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
def test_log_multiplicity(emulated, dtype):
    check_log_multiplicity(dtype)


# hidden, attention, interaction, width of e, heads: one warp takes more than the 48 KiB that a
# kernel has unasked, for logit sums in the backward pass (65 KiB), or features in the forward (58).
LARGE = {"hidden": (1000, 3, 0, 4, 16), "attention": (8, 800, 0, 4, 2)}


@pytest.mark.parametrize("dims", LARGE)
def test_models_beyond_48_kib_of_shared_memory(emulated, dims):
    check_attention(LARGE[dims], (17, 0, 2), torch.float32)


def test_layers_beyond_48_kib_of_shared_memory(emulated):
    check_pair_embedding(90, 150, "mish", True, torch.float32, CPU)  # 58 KiB a warp


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ((4000, 3, 0, 4, 16), "16 heads x 4000 hidden units take 253 KiB"),
        ((8, 4000, 5, 4, 2), "2 heads x 4000 attention features and 5 interaction features take"),
    ],
    ids=["hidden", "attention"],
)
def test_models_beyond_the_shared_memory_of_a_gpu_are_refused(emulated, dims, message):
    text = f"{message} .*of shared memory, and a block of this GPU has 227 KiB"
    with pytest.raises(RuntimeError, match=text):
        check_attention(dims, (2,), torch.float32)


def test_blocks_share_the_list_of_pairs_by_site(emulated, monkeypatch):
    """It is made once, by whoever knows that several calls need it, and gives the same bits."""
    made = []

    def counted(sites, num_sites):
        made.append(len(sites))
        return sorted_by_site(sites, num_sites)

    monkeypatch.setattr(kernel_calls, "sorted_by_site", counted)
    block = inputs(DIMS["tiny"], (70, 9), torch.float32)
    spectrum = spectrum_inputs((3, 2, 3, 5), (7, 2), torch.float32)
    for function, tensors, leaves, options in (
        (attention.attention, block, 5, {"attention_dim": 3}),
        (power_spectrum.power_spectrum, spectrum, 2, {}),
    ):
        without = outputs_and_gradients(function, tensors, leaves, **options)
        assert made.pop() == len(tensors[-1]) and not made
        num_sites = len(tensors[1 if leaves == 5 else 0])
        by_site = sorted_by_site(tensors[-1], num_sites)
        given = outputs_and_gradients(function, tensors, leaves, **options, by_site=by_site)
        assert not made
        for x, y in zip(without, given, strict=True):
            assert x is y is None or torch.equal(x, y)


@pytest.mark.parametrize("extra", [(0, 0, 0), (1, 1, 1), (9, 2, 50), (3, 100, 17)], ids=str)
@pytest.mark.parametrize("places", [1, 2, 30])
@pytest.mark.parametrize("config", [SPHERE, DENSITY], ids=["pairs", "vectors"])
def test_padded_batches(emulated, monkeypatch, config, places, extra):
    """The kernels gather what plain torch does on a CPU, bit for bit."""
    store = store_of(config, toy_crystals(12))
    rng = np.random.default_rng(places)
    for crystals in (rng.permutation(12)[:5], rng.integers(0, 12, 70)):
        rows, pairs, images = store.room(crystals)
        room = Room(rows + places + extra[0], pairs + extra[1])
        if images:
            room = Room(room.rows, room.pairs + 1, images + extra[1] + 1 + extra[2])
        index = torch.tensor([*crystals, *[-1] * places])
        batches = []
        for device in ("CPU", "CUDA"):
            gather = padded_batch.IMPLEMENTATIONS[device]
            monkeypatch.setattr(padded_batch, "_ops", SimpleNamespace(padded_batch=gather))
            batches.append(store.padded_batch(index, room))
        for name in padded_batch.GATHERED:
            x, y = (getattr(batch, name) for batch in batches)
            assert x is y is None or (x.dtype == y.dtype and torch.equal(x, y)), name


@pytest.mark.parametrize("config", [SPHERE, DENSITY], ids=["sphere", "density"])
def test_training_on_the_kernels(request, monkeypatch, config):
    """Padded steps take the weights where they go on a CPU, with the lists by site made once.

    Sums are in float64 and in another order, and rates as floats: 1e-9 of weights near 1, for which
    epsilon keeps AdamW from dividing by gradients near 0.
    """
    config = config.replace(precision="float32", epsilon=1e-2, batch_crystals=6)
    results = []
    for kernels in ("CPU", "CUDA"):
        trainer = padded(trainer_of(config, toy_dataset(12), double=True))
        if kernels == "CUDA":
            request.getfixturevalue("emulated")
            gather = padded_batch.IMPLEMENTATIONS["CUDA"]
            monkeypatch.setattr(padded_batch, "_ops", SimpleNamespace(padded_batch=gather))
            monkeypatch.setattr(kernel_calls, "sorted_by_site", None)  # nobody else makes one
            for maker in (model_module, spectrum_module):
                monkeypatch.setattr(maker, "by_site_for_backward", sorted_by_site)
        losses = [trainer.train_epoch() for _ in range(2)]
        results.append((losses, weights(trainer.model)))
    (losses, want), (other_losses, got) = results
    assert other_losses == pytest.approx(losses, rel=1e-6)  # of losses in float32
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=0, atol=1e-9, equal_nan=True)


def test_two_runs_give_equal_bits(emulated):
    tensors = inputs(DIMS["heads"], (70, 80), torch.float32)
    first, second = (
        outputs_and_gradients(attention.attention, tensors, 5, attention_dim=17) for _ in range(2)
    )
    assert all(x is y is None or torch.equal(x, y) for x, y in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 3e-5)], ids=str
)
def test_distances_of_random_cells(emulated, dtype, tolerance):
    cells = random_cells(np.random.default_rng(0), 500)
    assert_exact(cells, 0, dtype, tolerance)


def test_distances_of_batches(emulated):
    for dtype in ("float32", "float64"):
        check_batch_is_the_single_crystals(
            0, [(3, 5), (0, 4), (8, 8), (4, 0), (1, 1), (17, 31)], dtype
        )
        check_batch_is_the_single_crystals(0, [], dtype)


@GEOMETRY
def test_promises_of_geometry(emulated, check, arguments):
    check(*arguments)


SANITIZED = " or ".join(
    [
        *("test_sizes[tiny-", "test_sizes[heads-bf16]", "test_sizes[wider-bf16]"),
        *("test_sizes[three-bf16]", "test_sizes[four-bf16]", "test_sizes[many-bf16]"),
        *("test_tf32[tiny]", "test_tf32[wider]", "test_nearly_nothing"),
        *("test_rows_around_the_spans[last-f32]", "test_slabs_of_the_backward[many-f32]"),
        *("test_pair_embedding[3-17-mish-True]", "test_distances_of_batches"),
        *("test_power_spectrum[tiny-edges-f32]", "test_power_spectrum[odd-edges-f32]"),
        *("test_padded_batches[vectors-2-", "test_block_weights[odd-", "test_log_multiplicity"),
        "check_gradients_are_those_of_plain_torch",
    ]
)


def run_sanitized(builds, name, *command):
    """Run Python on a sanitizer's build of the kernels. A finding makes the exit status nonzero."""
    libraries = {"address": ("asan", "ubsan"), "thread": ("tsan",)}[name]
    paths = [
        subprocess.check_output(["g++", f"-print-file-name=lib{x}.so"], text=True).strip()
        for x in libraries
    ]
    environment = {
        **os.environ,
        "SITENET_EMULATED": str(builds[name].result()),
        "LD_PRELOAD": ":".join(paths),
        "ASAN_OPTIONS": "detect_leaks=0",
        "TSAN_OPTIONS": "exitcode=66",
        "OMP_NUM_THREADS": "1",  # the sanitizer cannot see how torch's own threads synchronise
    }
    return subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True
    )


OUTSIDE = pytest.mark.skipif("SITENET_EMULATED" in os.environ, reason="this is the sanitized run")


@pytest.mark.slow
@OUTSIDE
@pytest.mark.parametrize("name", SANITIZERS)
def test_sanitizers_find_nothing(builds, name):
    """Run small cases of this file under the address, undefined-behaviour and thread sanitizers."""
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", SANITIZED, __file__]
    run = run_sanitized(builds, name, *command)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-4000:]


@pytest.mark.slow
@OUTSIDE
@pytest.mark.parametrize("hand", range(3), ids=["warp", "block", "grid"])
def test_races_are_found(builds, hand):
    """A value read without waiting for its writer is reported, one read after waiting is not.

    Blocks cannot wait for each other.
    """
    load = "import importlib.util as u, os; s = u.spec_from_file_location('emulated', "
    load += "os.environ['SITENET_EMULATED']); m = u.module_from_spec(s); s.loader.exec_module(m); "
    for wait in (False, True):
        run = run_sanitized(builds, "thread", "-c", f"{load}m.race({hand}, {wait})")
        racy = hand == 2 or not wait
        assert run.returncode == (66 if racy else 0), run.stderr[-4000:]
        assert ("data race" in run.stderr) == racy


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="needs nvcc of CUDA 12 or later")
@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.name)
def test_nothing_spills(builds, source):
    """Each kernel keeps its variables in registers, on A100 (80) and on H100 and H200 (90)."""
    report = builds[source.name].result()
    kernels = re.findall(r"Compiling entry function '(\S+)' for '(\w+)'", report)
    spills = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", report)
    assert {target for _, target in kernels} == {"sm_80", "sm_90"}
    assert len(kernels) <= len(spills)  # those of functions that kernels call, such as pow, too
    assert all(x == ("0", "0") for x in spills), report
