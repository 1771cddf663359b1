"""Builds of the CUDA kernels without a GPU: for the emulator, and by nvcc."""

import subprocess
import sysconfig
from pathlib import Path

import pybind11

ROOT = Path(__file__).resolve().parents[2]
SOURCES = sorted((ROOT / "csrc" / "cuda").rglob("*.cu"))
SANITIZERS = {
    "address": ("-O0", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"),
    "thread": ("-O1", "-fsanitize=thread"),
}
SLAB = 1024  # pairs per slab of the backward pass; 50,688 on a GPU
FEW = 150  # pairs below which a warp takes fewer; 100,000 on a GPU


def build(folder: Path, *flags: str) -> Path:
    """Compile the emulated kernels into a Python module."""
    module = folder / "emulated.so"
    includes = (ROOT / "tests" / "kernels", pybind11.get_include(), sysconfig.get_path("include"))
    command = ["g++", "-std=c++17", "-shared", "-fPIC", "-fvisibility=hidden", *flags]
    command += [f"-I{path}" for path in includes]
    command += [
        f"-DSITENET_SLAB={SLAB}",
        f"-DSITENET_FEW_PAIRS={FEW}",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-unknown-pragmas",
    ]
    subprocess.run([*command, ROOT / "tests/kernels/emulated.cpp", "-o", module], check=True)
    return module


def compile_for_gpu(source: Path, folder: Path) -> str:
    """Return nvcc's report on the resources of each kernel of a file, for both architectures."""
    targets = [f"-gencode=arch=compute_{n},code=sm_{n}" for n in (80, 90)]
    command = ["nvcc", "-std=c++17", "-O3", *targets, "-Xptxas", "-v", "-c", source]
    run = subprocess.run(
        [*command, "-o", folder / f"{source.stem}.o"], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return run.stderr
