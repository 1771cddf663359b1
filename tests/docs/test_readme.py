"""The README's commands and snippet work as they stand; CI runs its first two blocks itself."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    """The README's blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def commands(block):
    """The commands of a block, with lines that end in && or a backslash continued."""
    lines = [line for line in block.splitlines() if line.strip()]
    return re.sub(r"(&&|\\)\n\s*", r"\1 ", "\n".join(lines)).splitlines()


@pytest.fixture
def folder(tmp_path):
    """A folder that looks like the repository's to the commands."""
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return tmp_path


def run(arguments, folder):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ci_runs_the_first_two_blocks():
    install, test = blocks("bash")[:2]
    assert "pip install" in install
    assert "sitenet train" in install
    assert "pytest" in test
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "for n in 1 2; do" in script


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [c for block in blocks("bash")[2:] for c in commands(block)],
    ids=lambda c: " ".join(c.split()[:2]),
)
def test_commands(command, folder):
    run(["bash", "-euo", "pipefail", "-c", command], folder)


@pytest.mark.slow
@pytest.mark.parametrize("snippet", blocks("python"))
def test_snippets(snippet, folder):
    assert run([sys.executable, "-W", "error", "-c", snippet], folder)
