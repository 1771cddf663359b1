"""The compiled kernels, ``sitenet._C``, whose functions take addresses and sizes."""

import importlib
from typing import Any

import torch  # noqa: F401  before _C, so that the process has one OpenMP runtime

from sitenet.system import waiting

try:
    _C: Any = importlib.import_module("sitenet._C")
except ImportError as error:
    raise ImportError(
        f"sitenet's compiled kernels are missing or cannot be loaded ({error}). In a source tree, "
        "build them in place with: pip install --no-build-isolation -e .  Elsewhere, reinstall "
        "sitenet. If Python was started in the root of a source tree, start it in another folder."
    ) from error

if waiting.POLICY == "sleep":
    _C.shorten_waiting()
