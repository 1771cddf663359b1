"""The README's commands and snippets run as they are; CI runs the first two blocks itself."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    """Blocks of code in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.M | re.S)


def commands(block):
    """Commands of a block; a line that ends in && or a backslash goes on in the next."""
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


def test_the_first_block_installs_what_the_others_use():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert "pip install -e '.[all]'" in blocks("bash")[0]
    (every,) = extras["all"]
    chosen = set(every.removeprefix("sitenet[").removesuffix("]").split(","))
    assert chosen == extras.keys() - {"all", "test", "docs", "lint", "dev"}


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
