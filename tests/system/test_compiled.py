"""A source tree without its compiled kernels says how to build them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import sitenet


def test_a_source_tree_without_kernels_says_how_to_build_them(tmp_path):
    """Also where another sitenet with kernels is installed, whose binary must not be used."""
    package = Path(sitenet.__file__).parent
    ignored = shutil.ignore_patterns("_C.*", "weights", "__pycache__")
    shutil.copytree(package, tmp_path / "sitenet", ignore=ignored)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    code = "import sitenet; print(sitenet.__file__); sitenet.find_pairs"
    command = [sys.executable, "-S", "-c", f"import sys; sys.path += {sys.path!r}; {code}"]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert run.returncode == 1
    assert run.stdout.strip() == str(tmp_path / "sitenet" / "__init__.py")
    assert "compiled kernels are missing" in run.stderr
    assert "pip install --no-build-isolation -e ." in run.stderr
