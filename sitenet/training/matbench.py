"""Matbench (Dunn et al., npj Comput. Mater. 6, 138, 2020): its folds, and results in its format.

The official folds of matbench_v0.1 are those of scikit-learn's KFold, stratified for classes, with
five shuffled splits and the seed 18012019, over the rows in their order. ``results.json`` is what
``MatbenchBenchmark.from_file`` of the matbench package reads once it holds all five folds.
"""

from __future__ import annotations

import csv
import datetime
import hashlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sitenet
from sitenet.config import DEFAULT_CONFIG, SiteNetConfig, load_config
from sitenet.data.dataset import Dataset, Preparation
from sitenet.data.failures import write_left_out
from sitenet.data.prepare import open_dataset
from sitenet.data.readers import open_source
from sitenet.data.source import Record, Source
from sitenet.inference.metrics import class_scores, regression_scores, roc_auc
from sitenet.system.devices import choose_device
from sitenet.system.distributed import is_first, process_group
from sitenet.system.files import writable_folder, write_text
from sitenet.system.progress import Reporter
from sitenet.training.train import train

FOLDS = 5
SEED = 18012019
VERSION = "0.6"  # of the matbench package whose format this is
RESULTS = "results.json"
# The matbench package turns probabilities into labels before it takes the area under the curve.
ROCAUC_NOTE = (
    "scores.rocauc is taken of labels (probability > 0.5), as the matbench package computes it for "
    "the leaderboard (github.com/materialsproject/matbench/issues/358); "
    "parameters.rocauc_of_probabilities is the area under the curve of the probabilities"
)
# Tasks whose input is a structure: rows, unit.
TASKS = {
    "matbench_dielectric": (4764, ""),
    "matbench_jdft2d": (636, "meV/atom"),
    "matbench_log_gvrh": (10987, "log10(GPa)"),
    "matbench_log_kvrh": (10987, "log10(GPa)"),
    "matbench_mp_e_form": (132752, "eV/atom"),
    "matbench_mp_gap": (106113, "eV"),
    "matbench_mp_is_metal": (106113, ""),
    "matbench_perovskites": (18928, "eV/unit cell"),
    "matbench_phonons": (1265, "cm^-1"),
}


@dataclass(eq=False)
class Benchmark:
    """Results of a benchmark.

    Attributes:
        task: Matbench's name of the task.
        unit: Unit of the target.
        scores: Scores of each fold, by its number: ``mae``, ``rmse``, ``mape`` and ``max_error``;
            or ``accuracy``, ``balanced_accuracy``, ``f1``, ``rocauc`` of the probabilities, and
            ``rocauc_of_labels``, which Matbench's package and leaderboard call ``rocauc``.
        path: File of results.
        existing: Numbers of the folds that the data have.
    """

    task: str
    unit: str
    scores: dict[int, dict[str, float]]
    path: Path
    existing: tuple[int, ...] = ()

    def over_folds(self, name: str) -> tuple[float, float]:
        """Mean and standard deviation of a score over the folds."""
        values = [scores[name] for scores in self.scores.values()]
        return float(np.mean(values)), float(np.std(values))


def matbench(
    data: str | Path | Source,
    out: str | Path,
    config: str | Path | Mapping[str, Any] | SiteNetConfig = DEFAULT_CONFIG,
    *,
    task: str | None = None,
    target: str | None = None,
    classes: Sequence[str] = (),
    folds: Sequence[int] | None = None,
    primitive: bool | None = None,
    disorder: str | None = None,
    device: str | torch.device = "cpu",
    workers: int | None = None,
    reporter: Reporter | None = None,
    **changes: Any,
) -> Benchmark:
    """Train and test a model on each fold.

    For structures that cannot be used, the mean of the training crystals counts as predicted.

    Args:
        data: A ``matbench_*.json.gz``, or a table with a column ``matbench_fold``, the fold in
            which a row is tested; or such a source, opened.
        out: Folder for ``results.json`` in Matbench's format, a run folder per fold, and the
            dataset with its pairs. The same call resumes from there.
        config: As in ``train``.
        task: Matbench's name of the task; None takes the name of the file.
        target: Column; None takes the only one.
        classes: ``(target,)`` if it is a class; that of matbench_mp_is_metal always is.
        folds: Numbers of the folds to run; None runs all.
        primitive: As in ``train``.
        disorder: As in ``train``.
        device: As in ``train``.
        workers: As in ``train``.
        reporter: Shows progress.
        changes: Fields of the config to change.

    Raises:
        ImportError: scikit-learn, which makes the folds, is not installed.
        ValueError: The data, the config or the content of the folder cannot be used.
        OSError: The folder cannot be written to.
        Stopped: Interrupted; the message says how to resume.
    """
    reporter = reporter if reporter is not None and is_first() else Reporter()
    inputs = {"primitive": primitive, "disorder": disorder}
    changes |= {name: value for name, value in inputs.items() if value is not None}
    settings = load_config(config).replace(**changes)
    device, out = choose_device(device), writable_folder(out)
    source = data
    if not isinstance(source, Source):
        source = open_source(source, None if target is None else [target])
    data = source.path
    if len(source.targets) != 1:
        raise ValueError(f"{data}: expected one target, got {', '.join(source.targets) or 'none'}")
    name, task = source.targets[0], task or _task(Path(data))
    is_class = name in classes or task == "matbench_mp_is_metal"
    records = folded(list(source), task, is_class)
    existing = sorted({int(r.split) for r in records})
    folds = existing if folds is None else folds
    if missing := set(folds) - set(existing):
        raise ValueError(
            f"{data}: no fold {min(missing)}; there is {', '.join(map(str, existing))}"
        )
    results = _Results(out / RESULTS, task, settings)
    how = Preparation(settings.primitive, settings.disorder)
    dataset = _prepare(Source(source.path, records, source.targets), out, how, workers, reporter)
    with process_group(device):
        unit = TASKS[task][1] if task in TASKS else dataset.units[0]
        for fold in folds:
            reporter.say(f"fold {fold}")
            result = train(
                replace(dataset, units=(unit,)),
                out / f"fold_{fold}",
                config,
                classes=[name] if is_class else [],
                fold=str(fold),
                device=device,
                workers=workers,
                reporter=reporter,
                **changes,
            )
            if is_first():
                predicted = _predicted(out / f"fold_{fold}" / "predictions.csv", name)
                facts = {"epochs": len(result.history)}
                used = result.model.config
                results.config = used.replace(members=settings.training.members)
                results.record(fold, records, predicted, is_class, facts)
    return Benchmark(task, unit, results.scores(), results.path, tuple(existing))


def _task(path: Path) -> str:
    """The task that a file's name begins with, or else the name."""
    stem = path.name.partition(".")[0]
    return max((t for t in TASKS if stem.startswith(t)), key=len, default=stem)


def folded(records: Sequence[Record], task: str, is_class: bool) -> list[Record]:
    """Records with Matbench's ids, and with their fold as split: that of the source, or else the
    official one."""
    prefix = task.replace("matbench", "mb").replace("_", "-")
    width = math.floor(math.log10(len(records))) + 1
    ids = [f"{prefix}-{int(r.id) + 1:0{width}d}" if r.id.isdecimal() else r.id for r in records]
    if all(r.split.isdecimal() for r in records):
        folds = [int(r.split) for r in records]
    else:
        folds = official_folds(np.array([r.targets[0] for r in records]), is_class)
        rows = TASKS.get(task, (len(records), ""))[0]
        if len(records) != rows:
            warnings.warn(
                f"{len(records)} rows, but {task} has {rows}: the folds are not the official ones",
                stacklevel=3,
            )
    return [
        replace(r, id=name, split=str(fold))
        for r, name, fold in zip(records, ids, folds, strict=True)
    ]


def official_folds(values: np.ndarray, is_class: bool) -> list[int]:
    """The fold in which each row is tested.

    Args:
        values: (rows,) of the target.
        is_class: Whether it is a class, whose share is kept in each fold.
    """
    try:
        from sklearn.model_selection import KFold, StratifiedKFold
    except ImportError:
        raise ImportError(
            "the folds of Matbench need scikit-learn: pip install 'sitenet[sklearn]'"
        ) from None
    split = (StratifiedKFold if is_class else KFold)(FOLDS, shuffle=True, random_state=SEED)
    fold = np.zeros(len(values), dtype=int)
    for k, (_, test) in enumerate(split.split(values, values)):
        fold[test] = k
    return fold.tolist()


def _prepare(
    source: Source, out: Path, how: Preparation, workers: int | None, reporter: Reporter
) -> Dataset:
    """Prepare a dataset file, beside which the pairs of all folds are kept."""
    dataset = open_dataset(
        source, how=how, prepared_as=out / "dataset.parquet", workers=workers, reporter=reporter
    )
    if is_first():
        write_left_out(dataset.left_out, out / "left_out.csv")
    return dataset


def _predicted(path: Path, name: str) -> dict[str, float]:
    """The predictions of a run's test crystals, by id."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    return {row["id"]: float(row[f"{name}_predicted"]) for row in rows}


# ---------------------------------------------------------------------------------------------
# Results


class _Results:
    """The file of results, as the matbench package writes it.

    Raises:
        ValueError: The file is damaged, or holds results of another task.
    """

    def __init__(self, path: Path, task: str, config: SiteNetConfig) -> None:
        self.path, self.task, self.config = path, task, config
        self.folds: dict[str, Any] = {}
        if not path.is_file():
            return
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            checksum = content.pop("hash")
            tasks = content["tasks"]
        except (ValueError, KeyError, AttributeError, TypeError):
            raise ValueError(f"{path} is damaged or no file of Matbench's results") from None
        if checksum != _hash(content):
            raise ValueError(f"{path} is damaged: its content does not match its hash")
        if task not in tasks:
            raise ValueError(f"{path} holds results of {', '.join(tasks)}, not of {task}")
        self.folds = tasks[task]["results"]

    def record(
        self,
        fold: int,
        records: Sequence[Record],
        predicted: Mapping[str, float],
        is_class: bool,
        facts: Mapping[str, Any],
    ) -> None:
        """Add the predictions of a fold, and write the file."""
        test = [r for r in records if r.split == str(fold)]
        mean = float(np.nanmean([r.targets[0] for r in records if r.split != str(fold)]))
        y = np.array([predicted.get(r.id, mean) for r in test])
        truth = np.array([r.targets[0] for r in test])
        missing = [r.id for r in test if r.id not in predicted]
        parameters = {**facts, "predicted_by_the_mean": missing}
        scores = (_class_scores if is_class else _value_scores)(truth, y)
        if is_class:
            parameters[_OF_PROBABILITIES] = scores["rocauc"]
            scores["rocauc"] = scores.pop("rocauc_of_labels")
        self.folds[f"fold_{fold}"] = {
            "data": dict(zip((r.id for r in test), y.tolist(), strict=True)),
            "parameters": parameters,
            "scores": scores,
        }
        content = {
            "@module": "matbench.bench",
            "@class": "MatbenchBenchmark",
            "version": VERSION,
            "benchmark_name": "matbench_v0.1",
            "tasks": {
                self.task: {
                    "@module": "matbench.task",
                    "@class": "MatbenchTask",
                    "benchmark_name": "matbench_v0.1",
                    "dataset_name": self.task,
                    "results": self.folds,
                }
            },
            "user_metadata": {
                "algorithm": "Site-Net",
                "sitenet": sitenet.__version__,
                "config": self.config.to_dict(),
                **({"rocauc": ROCAUC_NOTE} if is_class else {}),
            },
            "datestamp": datetime.datetime.now(datetime.UTC).strftime("%Y.%m.%d %H:%M.%S"),
        }
        content = json.loads(json.dumps(content, sort_keys=True))
        write_text(self.path, json.dumps({**content, "hash": _hash(content)}))

    def scores(self) -> dict[int, dict[str, float]]:
        """Scores of each fold, by its number."""
        numbers = sorted(int(name.removeprefix("fold_")) for name in self.folds)
        return {k: _scores_of(self.folds[f"fold_{k}"]) for k in numbers}


_OF_PROBABILITIES = "rocauc_of_probabilities"


def _scores_of(fold: Mapping[str, Any]) -> dict[str, float]:
    """Scores of a fold, with both areas under the curve if the target is a class."""
    scores = dict(fold["scores"])
    if _OF_PROBABILITIES in fold["parameters"]:
        scores["rocauc_of_labels"] = scores["rocauc"]
        scores["rocauc"] = fold["parameters"][_OF_PROBABILITIES]
    elif "rocauc" in scores:  # written by sitenet 0.1.0, where rocauc was of the probabilities
        known = not math.isnan(scores["rocauc"])
        scores["rocauc_of_labels"] = scores["balanced_accuracy"] if known else math.nan
    return scores


def _hash(content: Mapping[str, Any]) -> str:
    """The hash of sorted content, as the matbench package computes it."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _value_scores(truth: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Matbench's scores of values, (crystals,) each; its ``mape`` ignores true values of 0."""
    known = np.abs(truth) > 1e-5
    share = np.abs(y - truth)[known] / np.abs(truth[known])
    scores = regression_scores(truth, y)
    scores["mape"] = float(share.mean()) if known.any() else math.nan
    return {name: scores[name] for name in ("mae", "rmse", "mape", "max_error")}


def _class_scores(truth: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Matbench's scores of probabilities of class 1, (crystals,) each, and both areas."""
    ones, called = truth > 0.5, y > 0.5
    recalls = [(called == ones)[part].mean() for part in (ones, ~ones) if part.any()]
    scores = class_scores(truth, y)
    return {
        "accuracy": scores["accuracy"],
        "balanced_accuracy": float(np.mean(recalls)),
        "f1": scores["f1"],
        "rocauc": scores["roc_auc"],
        "rocauc_of_labels": roc_auc(ones, called.astype(float)),
    }
