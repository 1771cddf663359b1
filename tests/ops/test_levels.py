"""The kernels at every SIMD level that this machine has, by tests marked ``levels``.

A process chooses its level when it loads the kernels, so each level below the one in use is a
pytest of its own; the level in use is tested by the session itself.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sitenet.system.environment import info

HERE = Path(__file__).parent
FILES = ("test_attention.py", "test_geometry.py", "test_power_spectrum.py")
LEVELS = ("x86_64_v2", "x86_64_v3", "x86_64_v4", "x86_64_v4_bf16")
IN_USE = info()["simd"]
LOWER = LEVELS[: LEVELS.index(IN_USE)] if IN_USE in LEVELS else ()


@pytest.mark.parametrize("level", LOWER)
def test_kernels_at_a_lower_level(level):
    files = [str(HERE / name) for name in FILES]
    command = [sys.executable, "-m", "pytest", "-q", "-m", "levels and not slow", *files]
    run = subprocess.run(
        [*command, "-p", "no:cacheprovider", "-k", "not paper-last and not wide"],
        cwd=HERE.parents[1],
        env=os.environ | {"SITENET_SIMD": level},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert " passed" in run.stdout
