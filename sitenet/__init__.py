"""sitenet: properties of crystals from their structure files.

Site-Net (Moran et al., Digital Discovery 2023, arXiv 2209.08190) with fused kernels. The names
below are the public interface; each is loaded with its module when it is first used.
"""

import importlib
import sys
from importlib.metadata import version as _version
from pathlib import Path as _Path
from typing import Any

__version__ = _version("sitenet")

# Python that is started beside a source tree imports that, which has no compiled module: it is then
# taken from where the package is installed.
if not any(_Path(__file__).parent.glob("_C.*")):
    _installed = (_Path(entry, "sitenet") for entry in sys.path)
    __path__ += [str(folder) for folder in _installed if any(folder.glob("_C.*"))][:1]

_MODULE_OF = {
    "CifError": "crystal.crystal",
    "Limits": "crystal.crystal",
    "Crystal": "crystal.crystal",
    "read_cif": "crystal.crystal",
    "read_cifs": "crystal.crystal",
    "minimum_image_distances": "ops.geometry",
    "Pairs": "pairs.pairs",
    "find_pairs": "pairs.pairs",
    "SiteNet": "model.sitenet",
    "Ensemble": "model.ensemble",
    "load": "model.checkpoint",
    "explain": "inference.explain",
    "SiteNetClassifier": "estimator",
    "SiteNetRegressor": "estimator",
    "info": "system.environment",
}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'sitenet' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"sitenet.{_MODULE_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
