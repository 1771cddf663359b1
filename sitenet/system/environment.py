"""What is installed and in use: version, SIMD level, threads, torch, CUDA."""

import platform
import sys
from typing import Any

import torch

import sitenet
from sitenet.system import devices, waiting
from sitenet.system.compiled import _C


def info() -> dict[str, Any]:
    """What this installation of sitenet is and runs on.

    Returns:
        A dict: ``version``, ``python``, ``machine``, ``simd`` (SIMD level of the CPU kernels in
        use; the environment variable SITENET_SIMD overrides the choice), ``openmp`` (whether the
        CPU kernels were built with it; if not, they run on one thread), ``threads``, ``waiting``
        (how idle threads wait: "short spin"; "sleep" where torch was imported before sitenet;
        "environment" where OMP_WAIT_POLICY, GOMP_SPINCOUNT or KMP_BLOCKTIME is set), ``torch``,
        ``cuda_kernels`` (whether this build has them), ``cuda_driver_needed`` (by the kernels, or
        None without them), ``cuda_driver`` (the highest version of CUDA that the installed driver
        supports, or None), ``cuda_runtime`` (of torch, or None) and ``device`` (name of the GPU, or
        None).
    """
    has_device = torch.cuda.is_available()
    return {
        "version": sitenet.__version__,
        "python": sys.version.split()[0],
        "machine": f"{platform.system()} {platform.machine()}",
        "simd": _C.level,
        "openmp": _C.openmp,
        "threads": torch.get_num_threads(),
        "waiting": waiting.POLICY,
        "torch": torch.__version__,
        "cuda_kernels": _C.with_cuda,
        "cuda_driver_needed": devices.driver_needed(),
        "cuda_driver": devices.driver_cuda(),
        "cuda_runtime": torch.version.cuda,
        "device": torch.cuda.get_device_name() if has_device else None,
    }
