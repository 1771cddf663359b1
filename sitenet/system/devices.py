"""CPU or GPU: which device to use and what it can do."""

from __future__ import annotations

import ctypes
import functools
import os
import sys

import torch

from sitenet.system.compiled import _C

# The lowest drivers of a CUDA major version; they run programs of all its minor versions.
# Source: CUDA Compatibility, "Minor Version Compatibility", table 1.
_FIRST_DRIVERS = {12: 525, 13: 580}


def _major(version: str) -> int:
    return int(version.partition(".")[0])


@functools.cache
def driver_cuda() -> str | None:
    """The highest version of CUDA that the installed NVIDIA driver supports, such as "12.8"; None
    without a driver."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    version = ctypes.c_int()
    try:
        failed = ctypes.CDLL(library).cuDriverGetVersion(ctypes.byref(version))
    except (OSError, AttributeError):
        return None
    return None if failed else f"{version.value // 1000}.{version.value % 1000 // 10}"


def driver_needed() -> str | None:
    """The driver that this build's CUDA kernels need, in words; None if it has no kernels. They
    bring their own CUDA runtime, whichever one torch has."""
    if not _C.with_cuda:
        return None
    major = _major(_C.cuda_version)
    first = f" ({_FIRST_DRIVERS[major]} or later)" if major in _FIRST_DRIVERS else ""
    return f"for CUDA {major}{first}"


def _driver_there() -> str:
    version = driver_cuda()
    return (
        "no NVIDIA driver is installed" if version is None else f"the driver is for CUDA {version}"
    )


def need_cuda() -> None:
    """Raise RuntimeError if this build has no CUDA kernels, or the driver is too old for them."""
    if not _C.with_cuda:
        drivers = ", ".join(f"{d} with CUDA {c}" for c, d in _FIRST_DRIVERS.items())
        raise RuntimeError(
            "this build of sitenet has no CUDA kernels; install it where nvcc is found: "
            "pip install --config-settings=cmake.define.SITENET_CUDA=ON .  "
            f"The kernels need a driver of the version of nvcc ({drivers}, or later); here, "
            f"{_driver_there()}"
        )
    version = driver_cuda()
    if version is not None and _major(version) < _major(_C.cuda_version):
        raise RuntimeError(
            f"the CUDA kernels of this build need a driver {driver_needed()}, but "
            f"{_driver_there()}: update the driver, or build sitenet with nvcc of CUDA "
            f"{_major(version)}"
        )


def choose_device(device: str | torch.device) -> torch.device:
    """The device of this name; under torchrun each process gets its own GPU.

    Raises:
        RuntimeError: CUDA is requested but this build or machine lacks it; says what to do.
    """
    device = torch.device(device)
    if device.type == "cuda":
        need_cuda()
        if not torch.cuda.is_available():
            raise RuntimeError(
                "no CUDA device: torch finds none (torch.cuda.is_available() is False), and "
                f"{_driver_there()}; install a CUDA build of torch and a driver {driver_needed()}, "
                "or use --device cpu"
            )
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    return device


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware. On a CPU that does not, torch's bfloat16
    products are many times slower than float32."""
    return device.type != "cpu" or _C.level.endswith("_bf16")
