"""The processes that ``torchrun`` started: rank, world size, barrier and process group.

Importing this module does not import torch, so that the command line can ask which process it is
before it loads anything heavy.
"""

from __future__ import annotations

import contextlib
import datetime
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

PATIENCE = datetime.timedelta(days=1)  # other ranks wait this long while rank 0 reads structures


def _group() -> Any:
    """``torch.distributed`` once this process has joined a group, else None."""
    module = sys.modules.get("torch.distributed")
    return module if module and module.is_available() and module.is_initialized() else None


def rank() -> int:
    """Rank of this process in its group; 0 without one."""
    group = _group()
    return group.get_rank() if group else 0


def world() -> int:
    """Number of processes in the group; 1 without one."""
    group = _group()
    return group.get_world_size() if group else 1


def local_world() -> int:
    """Number of processes of the group on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if _group() else 1


def launched() -> int:
    """Number of processes that torchrun started, whether they have joined a group or not."""
    return int(os.environ.get("WORLD_SIZE", 1))


def is_first() -> bool:
    """Whether this process is the one that prints and writes: rank 0, which torchrun assigns
    before the processes join a group."""
    return (rank() if _group() else int(os.environ.get("RANK", 0))) == 0


def barrier() -> None:
    """Wait until every process of the group gets here."""
    group = _group()
    if group:
        group.barrier()


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started; does nothing without torchrun, or if they have
    already joined."""
    if launched() == 1 or _group():
        yield
        return
    import torch.distributed as dist

    if device.type == "cuda":
        dist.init_process_group("nccl", timeout=PATIENCE, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)
    try:
        yield
    finally:
        dist.destroy_process_group()
