"""Work over several processes: those that torchrun started, and workers of this one."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import multiprocessing
import os
import signal
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch
import torch.distributed as dist

from sitenet.ops import _C, need_cuda

CHUNK = 64  # items that a worker takes at a time
PARALLEL = 256  # items: fewer are not worth starting workers for
PATIENCE = datetime.timedelta(days=1)  # while the first process reads all structures


def rank() -> int:
    """Number of this process, 0 where there is one only."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_world() -> int:
    """How many of them there are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if dist.is_initialized() else 1


def barrier() -> None:
    """Wait until all processes are here."""
    if dist.is_initialized():
        dist.barrier()


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started; nothing where it did not, or they are joined."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 or dist.is_initialized():
        yield
        return
    if device.type == "cuda":
        dist.init_process_group("nccl", timeout=PATIENCE, device_id=device)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)
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


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products in bfloat16; a CPU without them takes those
    of torch many times slower than in float32."""
    return device.type != "cpu" or _C.level.endswith("_bf16")


# ---------------------------------------------------------------------------------------------
# Workers


def default_workers(items: int) -> int:
    """Workers for this many items: one a core, or only this process for few."""
    if items < PARALLEL:
        return 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(
    function: Callable[[list], Any], items: Iterable, workers: int, chunk: int = CHUNK
) -> Iterator[Any]:
    """function(chunk) for chunks of the items, in order, a bounded number of them under way.

    Raises:
        RuntimeError: a worker was killed.
    """
    remaining = iter(items)
    chunks = iter(lambda: list(itertools.islice(remaining, chunk)), [])
    if workers <= 1:
        yield from map(function, chunks)
        return
    # Forked where that is possible: a spawned process would import a user's script once more.
    method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(method)
    pool = ProcessPoolExecutor(workers, context, _start_worker)
    try:
        with warnings.catch_warnings():  # threads are left alone by the workers
            warnings.filterwarnings("ignore", "This process .* is multi-threaded")
            waiting = deque(pool.submit(function, c) for c in itertools.islice(chunks, 3 * workers))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(function, c) for c in itertools.islice(chunks, 1))
    except BrokenProcessPool:
        raise RuntimeError(
            "a worker process was killed, perhaps for want of memory: try fewer workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    torch.set_num_threads(1)  # a second thread would hang in a forked process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
