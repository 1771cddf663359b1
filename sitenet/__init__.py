"""sitenet: properties of crystals from their structure files.

Site-Net (Moran et al., Digital Discovery 2023, arXiv 2209.08190) with fused kernels. The names
below are the public interface. Each is imported with its module when it is first used, so that
``import sitenet`` takes no time and imports between the packages point one way: a method that
leads to a later package, such as ``model.predict``, calls its function here.
"""

import importlib
from typing import TYPE_CHECKING, Any

import sitenet.system.waiting as _waiting  # noqa: F401  before torch

_MODULE_OF = {
    "CifError": "crystal.cif",
    "CifWarning": "crystal.cif",
    "Crystal": "crystal.crystal",
    "Limits": "crystal.crystal",
    "Arrangements": "crystal.arrangements",
    "sample_arrangements": "crystal.arrangements",
    "read_cif": "crystal.crystal",
    "read_cifs": "crystal.crystal",
    "read_each": "crystal.crystal",
    "minimum_image_distances": "ops.geometry",
    "prepare": "data.prepare",
    "read": "data.structure_files",
    "Pairs": "pairs.pairs",
    "find_pairs": "pairs.finder",
    "SiteNet": "model.sitenet",
    "Target": "model.target",
    "Ensemble": "model.ensemble",
    "load": "model.checkpoint",
    "save": "model.checkpoint",
    "Calibration": "model.calibration",
    "from_published": "published.checkpoint",
    "to_published": "published.checkpoint",
    "SiteNetConfig": "config",
    "TrainingConfig": "config",
    "load_config": "config",
    "predict": "inference.predict",
    "predict_files": "inference.predict_files",
    "predict_table": "inference.prediction_table",
    "PredictionTable": "inference.prediction_table",
    "JoinedTable": "inference.prediction_table",
    "predict_arrangements": "inference.arrangements",
    "what_changes": "inference.changes",
    "Changes": "inference.changes",
    "ArrangedPrediction": "inference.arrangements",
    "encode": "inference.encode",
    "encode_files": "inference.encode",
    "evaluate": "inference.evaluate",
    "neighbours": "inference.evidence",
    "Neighbour": "model.neighbours",
    "screen": "inference.screen",
    "Screening": "inference.screen",
    "explain": "inference.explain",
    "explain_files": "inference.explain_files",
    "Explanation": "inference.explanation",
    "DatasetExplanation": "inference.explanation",
    "train": "training.train",
    "tune": "training.tune",
    "crossval": "training.crossval",
    "matbench": "training.matbench",
    "matbench_tasks": "training.matbench_tasks",
    "plot_attention": "report.plots",
    "crystal_report": "report.crystal_page",
    "run_report": "report.run_page",
    "screen_report": "report.screen_page",
    "SiteNetClassifier": "estimator",
    "SiteNetRegressor": "estimator",
    "info": "system.environment",
}

__all__ = ["__version__", *_MODULE_OF]

# Called by earlier packages, not by users.
_MODULE_OF |= {
    "is_published_config": "published.config",
    "from_published_config": "published.config",
    "plot_predictions": "report.plots",
}

if TYPE_CHECKING:
    __version__: str
    from sitenet.config import SiteNetConfig as SiteNetConfig
    from sitenet.config import TrainingConfig as TrainingConfig
    from sitenet.config import load_config as load_config
    from sitenet.crystal.arrangements import Arrangements as Arrangements
    from sitenet.crystal.arrangements import sample_arrangements as sample_arrangements
    from sitenet.crystal.cif import CifError as CifError
    from sitenet.crystal.cif import CifWarning as CifWarning
    from sitenet.crystal.crystal import Crystal as Crystal
    from sitenet.crystal.crystal import Limits as Limits
    from sitenet.crystal.crystal import read_cif as read_cif
    from sitenet.crystal.crystal import read_cifs as read_cifs
    from sitenet.crystal.crystal import read_each as read_each
    from sitenet.data.prepare import prepare as prepare
    from sitenet.data.structure_files import read as read
    from sitenet.estimator import SiteNetClassifier as SiteNetClassifier
    from sitenet.estimator import SiteNetRegressor as SiteNetRegressor
    from sitenet.inference.arrangements import ArrangedPrediction as ArrangedPrediction
    from sitenet.inference.arrangements import predict_arrangements as predict_arrangements
    from sitenet.inference.changes import Changes as Changes
    from sitenet.inference.changes import what_changes as what_changes
    from sitenet.inference.encode import encode as encode
    from sitenet.inference.encode import encode_files as encode_files
    from sitenet.inference.evaluate import evaluate as evaluate
    from sitenet.inference.evidence import neighbours as neighbours
    from sitenet.inference.explain import explain as explain
    from sitenet.inference.explain_files import explain_files as explain_files
    from sitenet.inference.explanation import DatasetExplanation as DatasetExplanation
    from sitenet.inference.explanation import Explanation as Explanation
    from sitenet.inference.predict import predict as predict
    from sitenet.inference.predict_files import predict_files as predict_files
    from sitenet.inference.prediction_table import JoinedTable as JoinedTable
    from sitenet.inference.prediction_table import PredictionTable as PredictionTable
    from sitenet.inference.prediction_table import predict_table as predict_table
    from sitenet.inference.screen import Screening as Screening
    from sitenet.inference.screen import screen as screen
    from sitenet.model.calibration import Calibration as Calibration
    from sitenet.model.checkpoint import load as load
    from sitenet.model.checkpoint import save as save
    from sitenet.model.ensemble import Ensemble as Ensemble
    from sitenet.model.neighbours import Neighbour as Neighbour
    from sitenet.model.sitenet import SiteNet as SiteNet
    from sitenet.model.target import Target as Target
    from sitenet.ops.geometry import minimum_image_distances as minimum_image_distances
    from sitenet.pairs.finder import find_pairs as find_pairs
    from sitenet.pairs.pairs import Pairs as Pairs
    from sitenet.published.checkpoint import from_published as from_published
    from sitenet.published.checkpoint import to_published as to_published
    from sitenet.published.config import from_published_config as from_published_config
    from sitenet.published.config import is_published_config as is_published_config
    from sitenet.report.crystal_page import crystal_report as crystal_report
    from sitenet.report.plots import plot_attention as plot_attention
    from sitenet.report.plots import plot_predictions as plot_predictions
    from sitenet.report.run_page import run_report as run_report
    from sitenet.report.screen_page import screen_report as screen_report
    from sitenet.system.environment import info as info
    from sitenet.training.crossval import crossval as crossval
    from sitenet.training.matbench import matbench as matbench
    from sitenet.training.matbench_tasks import matbench_tasks as matbench_tasks
    from sitenet.training.train import train as train
    from sitenet.training.tune import tune as tune


def __getattr__(name: str) -> Any:
    value: Any
    if name == "__version__":
        from importlib.metadata import version

        value = version("sitenet")
    elif name in _MODULE_OF:
        value = getattr(importlib.import_module(f"sitenet.{_MODULE_OF[name]}"), name)
    else:
        raise AttributeError(f"module 'sitenet' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
