"""The CPU kernels for arm64, cross-compiled and run by qemu under the checks of the CPU ops.

``remote.cpp`` makes a program of the kernels. Here it stands in for ``sitenet._C``, so that the
Python ops run unchanged, and their results are compared with the oracle's.
"""

import ctypes
import shutil
import struct
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pybind11
import pytest
import torch
from attention_blocks import DIMS
from attention_checks import check_attention, check_pair_embedding
from geometry_checks import (
    assert_exact,
    check_batch_is_the_single_crystals,
    check_gradients_are_those_of_plain_torch,
    random_cells,
)

from sitenet.ops import attention, geometry, kernel_calls

ROOT = Path(__file__).resolve().parents[2]
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"
PROCESSORS = {"cortex-a57": "armv8", "max": "armv8_bf16"}
ELEMENT_BYTES = {"f32": (4, 4), "f64": (8, 8), "bf16": (4, 2)}  # of T and of E

pytestmark = pytest.mark.slow


class AttentionShape(NamedTuple):
    pairs: int
    rows: int
    sites: int
    hidden: int
    attention: int
    interaction: int
    width: int
    heads: int
    activation: int
    norm: int
    eps: float

    def bytes(self):
        return struct.pack("@q9id", *self)

    def buffers(self, name, t, e):
        """Bytes of each buffer, in the order of csrc/attention.h."""
        columns = self.hidden + self.attention + self.interaction
        site_i, site_j = t * self.rows * columns, t * self.sites * columns
        each_e, weight = e * self.pairs * self.width, t * columns * self.width
        logit_weight = t * self.heads * self.hidden
        inputs = [site_i, site_j, each_e, weight, logit_weight]
        inputs += [t * self.pairs, 8 * (self.rows + 1), 4 * self.pairs]
        y, logsum = t * self.rows * self.attention * self.heads, t * self.rows * self.heads
        e_out = e * self.pairs * self.interaction
        if "forward" in name:
            return [*inputs, y, e_out, logsum, t * self.pairs * self.heads]
        gradients = [site_i, site_j, each_e, weight, logit_weight]
        return [*inputs, y, logsum, y, e_out, *gradients, 8 * self.pairs, 8 * (self.sites + 1)]


class PairEmbeddingShape(NamedTuple):
    pairs: int
    num_features: int
    width: int
    activation: int
    norm: int
    eps: float

    def bytes(self):
        return struct.pack("@q4id", *self)

    def buffers(self, name, t, e):
        features, bias = t * self.pairs * self.num_features, t * self.width
        weight = bias * self.num_features
        each_e = e * self.pairs * self.width
        outputs = [each_e] if "forward" in name else [each_e, features, weight, bias]
        return [features, weight, bias, *outputs]


class Remote:
    """Functions of ``sitenet._C``, computed by another process."""

    AttentionShape = AttentionShape
    PairEmbeddingShape = PairEmbeddingShape

    def __init__(self, command):
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.level = self._process.stdout.readline().decode().strip()

    def close(self):
        self._process.stdin.close()
        self._process.stdout.close()
        assert self._process.wait() == 0

    def __getattr__(self, name):
        sizes = ELEMENT_BYTES[name.removesuffix("_cpu").rpartition("_")[2]]

        def run_attention(shape, addresses, threads):
            return self._call(name, shape.bytes(), addresses, shape.buffers(name, *sizes))

        def run_distances(*arguments):
            crystals, sites_i, sites_j = arguments[5:8]
            addresses = [*arguments[:5], *arguments[8:-1]]
            offsets = [np.array([0, n]) for n in (sites_i, sites_j)]
            if arguments[3]:
                offsets = [
                    np.ctypeslib.as_array((ctypes.c_int64 * (crystals + 1)).from_address(a))
                    for a in arguments[3:5]
                ]
            pairs = int(np.dot(np.diff(offsets[0]), np.diff(offsets[1])))
            numbers = [9 * crystals, 3 * sites_i, 3 * sites_j]
            outputs = [pairs] if "forward" in name else [pairs, *numbers]
            bytes_of = [sizes[0] * n for n in numbers] + 2 * [8 * (crystals + 1)]
            bytes_of += [sizes[0] * n for n in outputs]
            return self._call(name, struct.pack("@3q", *arguments[5:8]), addresses, bytes_of)

        return run_distances if name.startswith("minimum_image") else run_attention

    def _call(self, name, shape, addresses, buffers):
        send, receive = self._process.stdin.write, self._process.stdout.read
        assert len(addresses) == len(buffers), name
        buffers = [(a, n if a else -1) for a, n in zip(addresses, buffers, strict=True)]
        send(struct.pack("64sq", name.encode(), len(shape)) + shape)
        send(struct.pack("q", len(buffers)))
        for address, size in buffers:
            send(struct.pack("q", size) + (ctypes.string_at(address, size) if address else b""))
        self._process.stdin.flush()
        (result,) = struct.unpack("q", receive(8))
        for address, size in buffers:
            if address:
                ctypes.memmove(address, receive(size), size)
        return result


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    """Cross-compile the kernels with the flags of CMakeLists.txt."""
    for tool in (COMPILER, EMULATOR, "cmake", "ninja"):
        if not shutil.which(tool):
            pytest.skip(f"{tool} is missing: apt install g++-aarch64-linux-gnu qemu-user cmake")
    folder = tmp_path_factory.mktemp("arm64")
    settings = {
        "CMAKE_SYSTEM_NAME": "Linux",
        "CMAKE_SYSTEM_PROCESSOR": "aarch64",
        "CMAKE_CXX_COMPILER": COMPILER,
        "CMAKE_BUILD_TYPE": "Release",
        "SITENET_CUDA": "OFF",
        "SITENET_WERROR": "ON",
        "pybind11_DIR": pybind11.get_cmake_dir(),
        "Python_EXECUTABLE": sys.executable,  # this machine's: the module itself is not built
        "Python_INCLUDE_DIR": sysconfig.get_path("include"),
    }
    configure = ["cmake", "-S", ROOT, "-B", folder, "-G", "Ninja"]
    subprocess.run([*configure, *(f"-D{k}={v}" for k, v in settings.items())], check=True)
    targets = [f"kernels_{level}" for level in PROCESSORS.values()]
    subprocess.run(["cmake", "--build", folder, "--target", *targets], check=True)
    objects = [
        x for target in targets for x in (folder / "CMakeFiles" / f"{target}.dir").rglob("*.o")
    ]
    sources = [ROOT / "tests/kernels/remote.cpp", ROOT / "csrc/cpu/simd_level.cpp"]
    link = [COMPILER, "-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-static", "-fopenmp"]
    subprocess.run([*link, *sources, *objects, "-o", folder / "remote"], check=True)
    return folder / "remote"


@pytest.fixture(scope="module", params=PROCESSORS)
def remote(request, program):
    kernels = Remote([EMULATOR, "-cpu", request.param, program])
    assert kernels.level == PROCESSORS[request.param]
    yield kernels
    kernels.close()


@pytest.fixture(autouse=True)
def ops(remote, monkeypatch):
    """Let the ops call the kernels of the other process."""
    for module in (kernel_calls, attention, geometry):
        monkeypatch.setattr(module, "_C", remote)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.bfloat16], ids=["f64", "f32", "bf16"]
)
@pytest.mark.parametrize("dims", ["paper", "paper-last", "tiny", "heads"])
def test_attention(dims, dtype):
    check_attention(DIMS[dims], (3, 0, 1, 47, 48, 49), dtype)


@pytest.mark.parametrize(("activation", "norm"), [("relu", True), ("none", False)])
def test_other_activations(activation, norm):
    check_attention(DIMS["tiny"], (3, 0, 50), torch.float64, activation=activation, norm=norm)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize(("features", "width"), [(2, 48), (3, 17)])
def test_pair_embedding(features, width, dtype):
    check_pair_embedding(features, width, "mish", True, dtype, "cpu")


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 3e-5)], ids=["f64", "f32"]
)
def test_distances(dtype, tolerance):
    assert_exact(random_cells(np.random.default_rng(0), 20), 0, dtype, tolerance)


def test_distances_of_a_batch():
    check_batch_is_the_single_crystals(0, ((1, 3), (0, 4), (17, 16)), "float64")


def test_gradients_of_distances():
    check_gradients_are_those_of_plain_torch(torch.float64, 1)
