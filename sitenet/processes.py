"""The processes that torchrun started: this one's number among them, and how they wait."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist

from sitenet.ops import need_cuda


def rank() -> int:
    """Number of this process, 0 where there is one only."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started; nothing where it did not."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def choose_device(device: str | torch.device) -> torch.device:
    """The device of this name; under torchrun each process has a GPU of its own.

    Raises:
        RuntimeError: CUDA is asked for and this build or machine has none; says what to do.
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
