"""Worker processes on this machine: chunks of items, processed in parallel, results in order."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import sys
import threading
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
    """Number of workers for this many items: one per core, or only this process for few items."""
    if items < PARALLEL:
        return 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(
    function: Callable[[list], Any], items: Iterable, workers: int, chunk: int = CHUNK
) -> Iterator[Any]:
    """Yield function(chunk) for chunks of the items, in order, with few chunks in progress.

    Args:
        function: Called in the workers, to which it is pickled where processes cannot be forked.
        items: What the chunks are cut from.
        workers: Number of processes; with 1, everything happens in this process.
        chunk: Items per chunk.

    Raises:
        RuntimeError: A worker was killed.
    """
    remaining = iter(items)
    chunks = iter(lambda: list(itertools.islice(remaining, chunk)), [])
    if workers <= 1:
        yield from map(function, chunks)
        return
    method = start_method()
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context(method), _start_worker)
    try:
        with warnings.catch_warnings():  # workers leave the threads of this process alone
            warnings.filterwarnings("ignore", "This process .* is multi-threaded")
            waiting = deque(pool.submit(function, c) for c in itertools.islice(chunks, 3 * workers))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(function, c) for c in itertools.islice(chunks, 1))
    except BrokenProcessPool:
        advice = "a worker process was killed, perhaps for want of memory: try fewer workers"
        if method != "fork":
            advice += "; a script must guard what it runs with if __name__ == '__main__':"
        raise RuntimeError(advice) from None
    finally:
        pool.shutdown(cancel_futures=True)


def start_method() -> str:
    """How workers start: forked on Linux, spawned elsewhere.

    A spawned worker imports torch and the user's script again. A forked one does not, but macOS's
    own libraries may crash in it, and Windows cannot fork.
    """
    can_fork = hasattr(os, "fork") and "fork" in multiprocessing.get_all_start_methods()
    return "fork" if can_fork and sys.platform == "linux" else "spawn"


def _start_worker() -> None:
    torch.set_num_threads(1)  # a second thread of torch would hang in a forked process
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that waits
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker once its parent is gone, also if the parent was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    parent.join()
    os._exit(1)
