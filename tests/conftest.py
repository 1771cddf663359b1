"""Folders of shared data and the devices that tests run on."""

import os
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
GOLDEN = Path(os.environ.get("SITENET_GOLDEN", SHARED / "golden"))
GOLDEN_E2E = Path(os.environ.get("SITENET_GOLDEN_E2E", SHARED / "golden_e2e"))

# Tests import the installed sitenet where the source tree has no compiled kernels, although
# "python -m pytest" looks in the working directory first.
if not any((ROOT / "sitenet").glob("_C.*")):
    sys.path[:] = [path for path in sys.path if Path(path).resolve() != ROOT]

# Python processes that tests start import the installed sitenet, not the source tree that they may
# be started in, which has no compiled kernels unless it is the installed one.
os.environ.setdefault("PYTHONSAFEPATH", "1")

# The options of this run are not those of a pytest that a test starts.
os.environ.pop("PYTEST_ADDOPTS", None)

# Their assertions show the values compared, as those of a test do.
pytest.register_assert_rewrite("attention_checks", "geometry_checks", "rounding")

pytest_plugins = ["emulator"]  # fixtures


def pytest_collection_modifyitems(items):
    """Let no warning fail a test on a GPU, where torch is of a version that its image brings."""
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.filterwarnings("default"), append=False)


@pytest.fixture(scope="session", autouse=True)
def threads():
    """Use two threads at most, so that results and times depend less on the machine."""
    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    """Run the test once per kind of device; skip the GPU where there is none."""
    if request.param == "cuda":
        from sitenet.system.environment import info

        if not torch.cuda.is_available() or not info()["cuda_kernels"]:
            pytest.skip("needs a CUDA device and a build with CUDA kernels")
    return torch.device(request.param)
