"""One table a bench, printed when all have run, under a line that says what they ran on."""

import os

import pytest
import torch

from sitenet.system.environment import info

TABLES: dict[str, list[tuple[str, ...]]] = {}


def pytest_addoption(parser):
    parser.addoption(
        "--full", action="store_true", help="the sizes of the paper, not the quick ones"
    )
    parser.addoption(
        "--no-compiled",
        action="store_true",
        help="leave out what torch.compile makes of a baseline",
    )
    parser.addoption("--threads", type=int, default=1, help="threads of the CPU kernels")


@pytest.fixture
def full(request):
    """Whether to measure everything."""
    return request.config.getoption("--full")


@pytest.fixture(autouse=True)
def threads(request):
    """The number of threads, pinned."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.config.getoption("--threads"))
    yield torch.get_num_threads()
    torch.set_num_threads(before)


@pytest.fixture
def table():
    """Adds a row to a table: ``table(title, header, *cells)``."""

    def add(title, header, *cells):
        TABLES.setdefault(title, [tuple(header)]).append(tuple(map(str, cells)))

    return add


def pytest_terminal_summary(terminalreporter, config):
    if not TABLES:
        return
    facts = info()
    terminalreporter.section("benches")
    terminalreporter.write_line(
        f"sitenet {facts['version']}, torch {facts['torch']}, {facts['machine']}, {_processor()}, "
        f"{facts['simd']}, {config.getoption('--threads')} of {os.cpu_count()} threads"
    )
    for title, rows in TABLES.items():
        terminalreporter.write_line(f"\n{title}")
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            line = "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
            terminalreporter.write_line(line)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(x.split(":")[1].strip() for x in lines if x.startswith("model name"))
    except (OSError, StopIteration):
        return "unknown processor"
