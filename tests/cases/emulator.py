"""The CUDA kernels on the CPU, through the emulator."""

import importlib.util
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from emulated_builds import SANITIZERS, SOURCES, build, compile_for_gpu

from sitenet.ops import (
    _C,
    attention,
    block_weights,
    geometry,
    kernel_calls,
    padded_batch,
    pair_inputs,
    power_spectrum,
    site_terms,
)
from sitenet.training import gradients


@pytest.fixture(scope="session")
def builds(request, tmp_path_factory):
    """Compile what the selected tests need, two at a time, while tests that need none of it run."""
    if os.environ.get("SITENET_EMULATED"):  # built already: this is a sanitized run
        yield {}
        return
    pool, jobs, items = ThreadPoolExecutor(2), {}, request.session.items
    if any("emulated" in item.fixturenames for item in items):
        jobs["emulated"] = pool.submit(build, tmp_path_factory.mktemp("emulated"), "-O1")
    slow = any(item.get_closest_marker("slow") for item in items)
    for name, flags in SANITIZERS.items() if slow else ():
        jobs[name] = pool.submit(build, tmp_path_factory.mktemp(name), *flags)
    if slow and shutil.which("nvcc"):
        folder = tmp_path_factory.mktemp("nvcc")
        jobs |= {x.name: pool.submit(compile_for_gpu, x, folder) for x in SOURCES}
    yield jobs
    pool.shutdown(cancel_futures=True)


@pytest.fixture(scope="session")
def module(builds):
    path = os.environ.get("SITENET_EMULATED") or builds["emulated"].result()
    spec = importlib.util.spec_from_file_location("emulated", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


SHAPES = ("AttentionShape", "PairEmbeddingShape", "PowerSpectrumShape")


@pytest.fixture
def emulated(module, monkeypatch):
    """Run the public functions on CPU tensors through the CUDA implementations of the ops."""
    functions = {name: getattr(module, name) for name in dir(module) if name.endswith("_cuda")}
    shapes = {name: getattr(_C, name) for name in SHAPES}
    for name in ("PaddedBatch", "BlockWeights", "PairInputs", "LogMultiplicity"):
        shapes[f"{name}Shape"] = getattr(module, f"{name}Shape")
    families = attention, block_weights, pair_inputs, power_spectrum
    for calls in (*families, kernel_calls, geometry, padded_batch):
        monkeypatch.setattr(calls, "_C", SimpleNamespace(**functions, **shapes))
    for calls in (attention, kernel_calls, geometry, power_spectrum):
        monkeypatch.setattr(calls, "need_cuda", lambda: None)
    for calls in (block_weights, pair_inputs, site_terms, gradients):
        monkeypatch.setattr(calls, "fuses", lambda x: True)
    for calls in (kernel_calls, geometry):
        monkeypatch.setattr(calls, "launch", lambda kernel, like, *args: kernel(*args, 0))
    for calls in (*families, site_terms):
        monkeypatch.setattr(calls, "_ops", SimpleNamespace(**calls.CUDA_IMPLEMENTATIONS))
    monkeypatch.setattr(attention, "_keeps_statistics", lambda x: True)
    monkeypatch.setattr(geometry, "_forward", geometry._forward_cuda)
    monkeypatch.setattr(geometry, "_backward", geometry._backward_cuda)
