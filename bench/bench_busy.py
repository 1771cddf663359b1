"""Training and prediction beside another busy process: passes through the example on two cores.

Idle threads that spin hold a core which a working thread needs. Each way of waiting runs in a
process of its own, as the OpenMP runtime reads its variables once; all processes stop but the one
that is measured, with the other busy process stopped ("alone") and running ("beside"), in turn.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).resolve().parents[1] / "examples/semiconductors"
CORES = 2
WAYS = {  # variables, and what is imported first
    "default": ({}, "sitenet"),
    "torch imported first": ({}, "torch"),
    "runtime's own choice": ({"GOMP_SPINCOUNT": "300000", "KMP_BLOCKTIME": "200"}, "sitenet"),
}
VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "OMP_NUM_THREADS")


class Pass:
    """In a measured process: answers each line of standard input with a pass's seconds."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()

    def done(self, _entry: object = None) -> None:
        """Print the seconds since the last request, and wait for the next one."""
        print(time.perf_counter() - self.begin, flush=True)
        if not sys.stdin.readline():
            os._exit(0)
        self.begin = time.perf_counter()


def work(first: str, job: str) -> None:
    """Pass through the example for as long as lines come; importing ``first`` before the rest."""
    __import__(first)
    import sitenet
    from sitenet.config import load_config
    from sitenet.training.train import train

    if job == "predict":
        model = sitenet.load("mp-gap")
        crystals = [sitenet.read_cif(path).primitive() for path in sorted(EXAMPLE.glob("*.cif"))]
        one = Pass()
        while True:
            model.predict(crystals, primitive=False)
            one.done()
    config = load_config(job)
    if config.training.batch_crystals is None:
        config = config.replace(batch_crystals=64)  # as for large datasets
    train(EXAMPLE, config=config, epochs=10**6, workers=1, after_epoch=Pass().done)


class Measured:
    """The process of one way."""

    def __init__(self, way: str, job: str) -> None:
        variables, first = WAYS[way]
        environment = {k: v for k, v in os.environ.items() if k not in VARIABLES} | variables
        command = [sys.executable, __file__, first, job]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.seconds()  # the first pass warms up
        self.process.send_signal(signal.SIGSTOP)

    def seconds(self) -> float:
        assert self.process.stdout is not None
        return float(self.process.stdout.readline())

    def measure(self) -> float:
        assert self.process.stdin is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        seconds = self.seconds()
        self.process.send_signal(signal.SIGSTOP)
        return seconds


@pytest.fixture
def two_cores():
    """This process and those it starts are pinned to two cores."""
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < CORES:
        pytest.skip(f"needs {CORES} cores to pin processes to")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:CORES])
    yield
    os.sched_setaffinity(0, before)


@pytest.mark.parametrize("job", ["sphere", "paper", "predict"])
def test_beside_a_busy_process(job, two_cores, table, full):
    if not full and job != "paper":
        pytest.skip("with --full only")
    measured = {way: Measured(way, job) for way in WAYS}
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    times: dict[tuple[str, bool], list[float]] = {}
    try:
        ways = list(measured.items())
        for _ in range(15 if full else 2):
            ways.append(ways.pop(0))  # none is always the first after a switch
            for beside in (False, True):
                busy.send_signal(signal.SIGCONT if beside else signal.SIGSTOP)
                for way, process in ways:
                    times.setdefault((way, beside), []).append(process.measure())
    finally:
        for process in (busy, *(m.process for m in measured.values())):
            process.kill()
            process.communicate()
    header = ("job", "way", "alone, passes/s", "beside a busy process", "ratio")
    title = "prediction" if job == "predict" else f"training {job}"
    for way in WAYS:
        alone, beside = (1 / np.median(times[way, b]) for b in (False, True))
        cells = (f"{alone:.2f}", f"{beside:.2f}", f"{beside / alone:.2f}")
        table("passes through the example on two cores", header, title, way, *cells)


if __name__ == "__main__":
    work(*sys.argv[1:])
