"""The processes that ``torchrun`` started: rank, world size, barrier and process group.

Importing this module does not import torch, so that the command line can ask which process it is
before it loads anything heavy.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import itertools
import os
import sys
from collections.abc import Iterator, Sequence
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


def processes() -> int:
    """Number of processes that work together, whether they have joined a group yet or not."""
    return max(world(), launched())


def is_first() -> bool:
    """Whether this process is the one that prints and writes: rank 0, which torchrun assigns
    before the processes join a group."""
    return (rank() if _group() else int(os.environ.get("RANK", 0))) == 0


@functools.cache
def _store() -> Any:
    """The key-value store through which the processes of torchrun find each other."""
    from torch.distributed.rendezvous import rendezvous

    store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
    return store


_meetings = itertools.count()  # each process counts the same ones


def barrier() -> None:
    """Wait until every process gets here, those that torchrun started if there is no group yet."""
    group = _group()
    if group:
        group.barrier()
    elif launched() > 1:
        name, store = f"sitenet/meeting-{next(_meetings)}", _store()
        if store.add(name, 1) == launched():
            store.set(f"{name}/complete", "")
        store.wait([f"{name}/complete"], PATIENCE)


def gathered(value: Any) -> list[Any]:
    """The values of all ranks, in order; they are pickled."""
    group = _group()
    if not group:
        return [value]
    values = [None] * world()
    group.all_gather_object(values, value)
    return values


def copy_from_first(tensors: Sequence[torch.Tensor]) -> None:
    """Overwrite tensors of one dtype by those of rank 0, in place."""
    group = _group()
    if not group or not tensors:
        return
    import torch

    with torch.no_grad():
        flat = torch.cat([x.reshape(-1) for x in tensors])
        group.broadcast(flat, 0)
        parts = flat.split([x.numel() for x in tensors])
        torch._foreach_copy_(
            list(tensors), [y.view_as(x) for x, y in zip(tensors, parts, strict=True)]
        )


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started; does nothing without torchrun, or if they have
    already joined.

    Structures are best read before: worker processes that are forked afterwards inherit what NCCL
    has opened, which InfiniBand does not allow.
    """
    if launched() == 1 or _group():
        yield
        return
    import torch.distributed as dist

    options: dict[str, Any] = {"backend": "gloo"}
    if device.type == "cuda":
        options = {"backend": "nccl", "device_id": device}
    dist.init_process_group(
        store=dist.PrefixStore(f"sitenet/group-{next(_meetings)}", _store()),
        rank=int(os.environ["RANK"]),
        world_size=launched(),
        timeout=PATIENCE,
        **options,
    )
    try:
        yield
    finally:
        dist.destroy_process_group()
