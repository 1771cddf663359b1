"""The commands run where Python has nothing of POSIX, such as fork, fcntl and resource.

No Windows is at hand: these processes lose what it lacks, and refuse to guess an encoding. What
they keep, such as POSIX paths and the renaming of open files, is not tested by this.
"""

import os
import subprocess
import sys

import pytest
import yaml
from toy_crystals import SMALL, cif_of, toy_crystals, toy_targets

from sitenet.system.files import write_csv, write_text

pytestmark = pytest.mark.slow
# Python imports this module at every start, also in spawned workers. Other packages keep their uses
# of POSIX: what stands for it in them on Windows is their own.
BLOCK = """
import builtins, os, signal, sys, warnings

MISSING = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios"}
really_import = builtins.__import__

def imports(name, globals=None, *rest, **more):
    caller = (globals or {}).get("__name__", "")
    if name.partition(".")[0] in MISSING and caller.partition(".")[0] == "sitenet":
        raise ImportError(f"{name} is blocked in {caller}")
    return really_import(name, globals, *rest, **more)

builtins.__import__ = imports
for name in ("fork", "forkpty", "killpg", "mkfifo", "sched_getaffinity"):
    delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "setitimer", "pthread_sigmask"):
    delattr(signal, name)
warnings.filterwarnings("error", category=EncodingWarning, module="sitenet")
"""


@pytest.fixture
def run(tmp_path):
    """Run Python without POSIX in an empty folder; return its standard output."""
    (tmp_path / "blocked").mkdir()
    (tmp_path / "blocked" / "sitecustomize.py").write_text(BLOCK)
    paths = [str(tmp_path / "blocked"), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "PYTHONWARNDEFAULTENCODING": "1",
    }

    def run_python(*arguments):
        done = subprocess.run(
            [sys.executable, *map(str, arguments)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run_python


def test_the_block_blocks(run):
    check = """
import os, signal
assert not hasattr(os, "fork") and not hasattr(signal, "SIGKILL")
try:
    exec("import fcntl", {"__name__": "sitenet.system.files"})
except ImportError:
    print("blocked")
"""
    assert run("-c", check) == "blocked\n"


def test_commands(run, tmp_path):
    """Prepare, train, resume, predict, evaluate and explain, in two spawned workers each."""
    source = tmp_path / "source"
    source.mkdir()
    crystals = toy_crystals(300)  # enough for more than one chunk of work
    for k, crystal in enumerate(crystals):
        write_text(source / f"{k}.cif", cif_of(crystal), sync=False)
    write_csv(source / "targets.csv", ("id", "size_A"), enumerate(toy_targets(crystals).tolist()))
    write_text(tmp_path / "small.yaml", yaml.safe_dump(SMALL.to_dict()))
    sitenet = ("-m", "sitenet")
    workers = ("--workers", 2)
    run(*sitenet, "prepare", "source", "--out", "data.parquet", *workers)
    train = (*sitenet, "train", "data.parquet", "--config", "small.yaml", "--out", "run", *workers)
    run(*train, "--epochs", 1)
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    run(*train, "--epochs", 1)  # the run is complete: nothing is trained
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before
    model = ("--model", "run/model.safetensors")
    run(*sitenet, "predict", "source", *model, "--out", "predicted.csv", *workers)
    assert len((tmp_path / "predicted.csv").read_text().splitlines()) == 301
    assert "MAE" in run(*sitenet, "evaluate", "data.parquet", *model, *workers)
    run(*sitenet, "explain", "source/0.cif", *model, "--out", "0.html")
    assert (tmp_path / "0.html").is_file()
