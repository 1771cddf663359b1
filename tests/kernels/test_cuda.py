"""With a GPU: graphs, streams, slabs, races, geometry. Without one: the error messages.

Other tests reach the GPU through the ``device`` fixture; ``pytest -m cuda`` runs all of them.
"""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import geometry_checks
import numpy as np
import pytest
import torch
from attention_blocks import DIMS, inputs
from attention_checks import check_attention, step
from geometry_checks import GEOMETRY, assert_exact, random_cells
from toy_crystals import toy_dataset
from trainers import CONFIGS, trainer_of

from sitenet import ops
from sitenet.ops import attention, geometry
from sitenet.system.environment import info

cuda = pytest.mark.cuda
SANITIZER_CASES = Path(__file__).parents[1] / "cases" / "sanitizer_cases.py"
NO_DEVICE = not torch.cuda.is_available() or not info()["cuda_kernels"]


@pytest.fixture
def gpu():
    if NO_DEVICE:
        pytest.skip("needs a CUDA device and a build with CUDA kernels")
    return torch.device("cuda")


def test_the_module_needs_no_library_of_cuda():
    """The runtime is linked statically, so the package imports where there is no driver."""
    assert b"libcudart.so" not in Path(ops._C.__file__).read_bytes()
    code = "from sitenet.system.environment import info; print(info()['cuda_kernels'])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == str(info()["cuda_kernels"]), run.stderr


@pytest.mark.parametrize("name", attention.CUDA_IMPLEMENTATIONS)
def test_a_build_without_kernels_says_how_to_get_them(monkeypatch, name):
    monkeypatch.setattr(ops._C, "with_cuda", False)
    tensors = inputs(DIMS["tiny"], (5, 9), torch.float32)
    forward = torch.ops.sitenet.attention_forward
    y, e, logsum, *_ = forward(*tensors, 3, 2, True, 1e-5, False, False)
    options = 3, 2, True, 1e-5
    kept = None, None, torch.rand(len(e), 3)
    weight, bias = torch.rand(4, e.shape[1]), torch.rand(4)
    arguments = {
        "pair_embedding_forward": (e, weight, bias, e.dtype, 2, True, 1e-5),
        "pair_embedding_backward": (e, weight, bias, e @ weight.T, 2, True, 1e-5, True),
        "attention_forward": (*tensors, *options, False, True),
        "attention_backward": (*tensors, y, logsum, y, None, *options, *kept),
    }
    with pytest.raises(RuntimeError, match=r"pip install .*SITENET_CUDA=ON \."):
        attention.CUDA_IMPLEMENTATIONS[name](*arguments[name])


def test_a_build_without_kernels_says_so_of_distances(monkeypatch):
    monkeypatch.setattr(ops._C, "with_cuda", False)
    with pytest.raises(RuntimeError, match="SITENET_CUDA=ON"):
        geometry._forward_cuda(
            torch.eye(3)[None], torch.rand(2, 3), torch.rand(4, 3), *2 * [None], 8
        )


@cuda
def test_warnings_of_a_newer_torch_fail_no_test_on_a_gpu():
    """An "error" filter would raise here."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.warn("this function has a new name", FutureWarning, stacklevel=1)
    assert len(caught) == 1


# ------------------------------------------------------------------------------------------------
# Minimum-image distances: the checks of the CPU ops, with their inputs moved to the GPU.


@pytest.fixture
def geometry_on_gpu(gpu, monkeypatch):
    def moved(function):
        def call(*tensors):
            out = function(*(x.to(gpu) if isinstance(x, torch.Tensor) else x for x in tensors))
            return tuple(x.cpu() for x in out) if isinstance(out, tuple) else out.cpu()

        return call

    for name in ("minimum_image_distances", "minimum_image_distances_batch"):
        monkeypatch.setattr(geometry_checks, name, moved(getattr(geometry, name)))


@cuda
@GEOMETRY
def test_geometry_on_gpu(geometry_on_gpu, check, arguments):
    check(*arguments)


@cuda
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 3e-5)])
def test_random_cells_on_gpu(geometry_on_gpu, dtype, tolerance):
    cells = random_cells(np.random.default_rng(0), 20_000)
    assert_exact(cells, 0, dtype, tolerance)


# ------------------------------------------------------------------------------------------------
# Attention.


@cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
def test_slabs_of_the_backward(gpu, dtype):
    """More pairs than a slab (50,688), a row across its border, more rows than blocks (792)."""
    check_attention(DIMS["paper"], (250,) * 250 + (9,) * 1200, dtype, gpu, need_logits=False)


@cuda
@pytest.mark.parametrize("low", [False, True], ids=["f32", "bf16"])
def test_a_graph_computes_the_same(gpu, low):
    """A graph captured once gives the eager results on other values."""
    tensors = inputs(DIMS["tiny"], (5, 0, 90), torch.float32, gpu)
    features = tensors[2][:, :2].contiguous()
    stream = torch.cuda.Stream()
    with torch.autocast("cuda", torch.bfloat16, enabled=low):
        with torch.cuda.stream(stream):
            step(features, tensors)  # warm-up: first use loads the kernels
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            got = step(features, tensors)
        for factor in (1.0, -0.7):
            features.mul_(factor)
            graph.replay()
            for x, y in zip(got, step(features, tensors), strict=True):
                assert torch.equal(x, y)


@cuda
def test_a_graph_computes_the_same_distances(gpu):
    cell, frac = 5 * torch.eye(3, device=gpu), torch.rand(40, 3, device=gpu)
    geometry.minimum_image_distances(cell, frac, frac)  # warm-up: first use loads the kernels
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        got = geometry.minimum_image_distances(cell, frac, frac)
    frac.mul_(0.7)
    graph.replay()
    assert torch.equal(got, geometry.minimum_image_distances(cell, frac, frac))


@cuda
def test_kernels_run_on_the_current_stream(gpu):
    """Kernels run on torch's current stream, after the work that is already queued there."""
    tensors = inputs(DIMS["paper"], (90, 100), torch.float32, gpu)
    want = attention.attention(*tensors, attention_dim=30)[0]
    late = [torch.zeros_like(x) for x in tensors]
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        for x, y in zip(late, tensors, strict=True):
            x.copy_(y)
        got = attention.attention(*late, attention_dim=30)[0]
    stream.synchronize()
    assert torch.equal(got, want)


@cuda
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_captured_training_is_training(gpu, config, precision):
    """Training from CUDA graphs gives the losses of eager training."""
    data = toy_dataset(23)
    config = config.replace(precision=precision)
    losses = []
    for capture in (False, True):
        run = trainer_of(config.replace(capture=capture), data, device=gpu)
        losses.append([run.train_epoch() for _ in range(6)])
    assert losses[0][-1] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3 if precision == "float32" else 0.05)
    assert run.captured.captured > 1


@cuda
@pytest.mark.slow
@pytest.mark.parametrize("tool", ["memcheck", "racecheck"])
def test_compute_sanitizer_finds_nothing(gpu, tool):
    if shutil.which("compute-sanitizer") is None:
        pytest.skip("needs compute-sanitizer from the CUDA toolkit")
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable]
    # One allocation per tensor: an overrun would otherwise land in another tensor.
    alone = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    run = subprocess.run([*command, SANITIZER_CASES], capture_output=True, text=True, env=alone)
    output = run.stdout[-4000:] + run.stderr[-4000:]
    if "Device not supported" in output:
        pytest.skip("compute-sanitizer does not support this device")
    assert run.returncode == 0, output
