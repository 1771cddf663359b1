"""CPU or GPU: which device to use and what it can do."""

from __future__ import annotations

import os

import torch

from sitenet.system.compiled import _C


def need_cuda() -> None:
    """Raise RuntimeError if this build has no CUDA kernels."""
    if not _C.with_cuda:
        raise RuntimeError(
            "this build of sitenet has no CUDA kernels; install it where nvcc is found: "
            "pip install --config-settings=cmake.define.SITENET_CUDA=ON ."
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
                "no CUDA device: torch finds none (torch.cuda.is_available() is False); install a "
                "CUDA build of torch and the driver, or use --device cpu"
            )
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    return device


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 in hardware. On a CPU that does not, torch's bfloat16
    products are many times slower than float32."""
    return device.type != "cpu" or _C.level.endswith("_bf16")
