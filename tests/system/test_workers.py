"""Workers return what one process returns, in order, in bounded number, and end with it."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from sitenet.system.workers import default_workers, in_order, start_method


def squares(numbers):
    return [n * n for n in numbers]


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("count", [0, 1, 50])
def test_chunks_come_in_order(workers, count):
    parts = list(in_order(squares, range(count), workers, chunk=7))
    assert [x for part in parts for x in part] == [n * n for n in range(count)]
    assert all(len(part) == 7 for part in parts[:-1])


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bounded_number_of_chunks_is_under_way(workers):
    taken = []
    parts = in_order(squares, (taken.append(k) or k for k in range(10_000)), workers, chunk=10)
    for _ in range(3):
        next(parts)
    assert len(taken) <= (3 + 3 * workers) * 10
    parts.close()


def _threaded(matrices):
    """Work that hangs in a forked process with more than one thread of torch."""
    return [(torch.get_num_threads(), float((m @ m).sum())) for m in matrices]


def test_workers_do_not_hang_after_torch_used_threads():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        matrices = [torch.ones(300, 300) for _ in range(4)]
        assert (matrices[0] @ matrices[1]).sum() == 300**3
        parts = in_order(_threaded, matrices, 2, chunk=1)
        assert list(parts) == [[(1, float(300**3))]] * 4
    finally:
        torch.set_num_threads(before)


def _fail(numbers):
    raise ValueError(f"not {numbers[0]}")


def _die(numbers):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_comes_back(workers):
    with pytest.raises(ValueError, match="not 3"):
        list(in_order(_fail, [3], workers))


def test_a_killed_worker_is_reported():
    with pytest.raises(RuntimeError, match="worker process was killed"):
        list(in_order(_die, [3], 2))


def test_few_items_take_no_workers():
    assert default_workers(10) == 1
    assert default_workers(10_000) >= 1


SLOW = """
import sys, time
from sitenet.system.workers import in_order

def wait(numbers):
    time.sleep(0.05)
    return numbers

try:
    for part in in_order(wait, range(100_000), 2, chunk=1):
        print(part[0], flush=True)
except KeyboardInterrupt:
    sys.exit(7)
"""


def test_ctrl_c_stops_quietly():
    """All processes of a terminal receive it; only the parent reports it."""
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        # A process that a shell starts in the background ignores SIGINT, and so do its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout.readline()
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 7
    assert errors == b""


ORPHANS = """
import os, time
from sitenet.system.workers import in_order

def wait(numbers):
    os.write(1, f"{os.getpid()}\\n".encode())
    time.sleep(600)

list(in_order(wait, range(4), 2, chunk=1))
"""


def is_running(pid):
    """Whether a process runs; one that has ended may be a zombie until its parent asks for it."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_workers_end_when_their_parent_is_killed():
    process = subprocess.Popen([sys.executable, "-c", ORPHANS], stdout=subprocess.PIPE)
    with process:
        workers = [int(process.stdout.readline()) for _ in range(2)]
        assert all(map(is_running, workers))
        process.kill()
    deadline = time.monotonic() + 60
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(map(is_running, workers))


def test_workers_start_where_processes_cannot_be_forked(monkeypatch):
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["spawn"])
    assert start_method() == "spawn"
    assert list(in_order(squares, range(5), 2, chunk=3)) == [[0, 1, 4], [9, 16]]


@pytest.mark.parametrize(("system", "method"), [("linux", "fork"), ("darwin", "spawn")])
def test_processes_are_forked_on_linux_only(monkeypatch, system, method):
    monkeypatch.setattr("multiprocessing.get_all_start_methods", lambda: ["fork", "spawn"])
    monkeypatch.setattr("sys.platform", system)
    assert start_method() == method
