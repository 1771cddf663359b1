"""The kernels at every SIMD level that this machine has, by tests marked ``levels``.

A process chooses its level when it loads the kernels, so each level below the one in use is a
pytest of its own; the level in use is tested by the session itself.
"""

import os
import platform
import re
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


FLAGS = {  # as Linux names what each x86-64 level needs beyond the one before it
    "x86_64_v3": {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe"},
    "x86_64_v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86_64_v4_bf16": {"avx512_bf16"},
}


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="/proc/cpuinfo lists these features of x86-64 processors on Linux",
)
def test_the_level_is_what_the_system_says_of_the_processor():
    flags = set(re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)[1].split())
    expected = "x86_64_v2"
    for level, needed in FLAGS.items():
        if not needed <= flags:
            break
        expected = level
    environment = {k: v for k, v in os.environ.items() if k != "SITENET_SIMD"}
    code = "from sitenet.system.environment import info; print(info()['simd'])"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert run.stdout.strip() == expected
