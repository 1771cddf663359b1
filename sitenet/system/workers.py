"""Worker processes on this machine: chunks of items, processed in parallel, results in order."""

from __future__ import annotations

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

CHUNK = 64  # items per task
PARALLEL = 256  # with fewer items, starting workers costs more than it saves


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
