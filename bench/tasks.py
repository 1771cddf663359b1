"""Train and test the models of every property that ships, from ``tasks.yaml``.

    python bench/tasks.py run RUNS --data TABLES [--only NAME ...] [--steps STEP ...]
    python bench/tasks.py table RUNS
    python bench/tasks.py ship RUNS NAME ...

``run`` works through the properties in order, those that others start from first. *Tested* models
learn from all folds at hand but one, less a few percent for validation: one per start, of which the
validation crystals choose. The *rival* is a ridge regression on the encodings of a start. *Shipped*
models learn from all folds, from the shipped model of the start that was chosen. What is finished
is not done again, and an interrupted run goes on where it was. ``table`` writes
``results/tasks.md``, and ``ship`` puts shipped models into ``sitenet/weights``.

RUNS/NAME holds the dataset with its pairs, a run folder per start in ``tested`` (as sitenet train
leaves it), one in ``shipped``, and ``tested.json``, ``rival.json`` and ``shipped.json``.
"""

from __future__ import annotations

import argparse
import csv
import functools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.parquet as parquet
import yaml
from rich.console import Console
from ridge import ridge_scores
from tasks_table import write_table

import sitenet
from sitenet.data.dataset import Dataset
from sitenet.data.prepare import open_dataset
from sitenet.data.splits import split
from sitenet.inference.metrics import roc_auc
from sitenet.model.checkpoint import read_metadata
from sitenet.model.ensemble import Model
from sitenet.model.target import Target
from sitenet.pairs.cache import pairs_of_dataset
from sitenet.system.files import fingerprint, new_file, write_text
from sitenet.system.model_files import weights_folder
from sitenet.system.progress import Reporter
from sitenet.training.train import train
from sitenet.training.validation import outputs

HERE = Path(__file__).resolve().parent
STEPS = ("tested", "rival", "shipped")
RANDOM = "random"  # the start that is none
PARTS = ("train", "valid", "test")
CONVERSIONS = {
    "": lambda column: column,
    "is_zero": lambda column: compute.cast(compute.equal(column, 0), pa.float64()),
    "power_of_ten": functools.partial(compute.power, 10.0),
}


@dataclass(frozen=True)
class Task:
    """A property: see ``tasks.yaml``, whose keys of other names are ``settings``."""

    name: str
    table: str
    column: str
    target: str
    unit: str = ""
    conversion: str = ""
    is_class: bool = False
    log: bool = False
    fold: str = "matbench_fold"
    starts: tuple[str, ...] = (RANDOM,)
    without: Mapping[str, Sequence[str]] = field(default_factory=dict)
    matbench: str = ""
    tested_fold: int = 1
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def measure(self) -> str:
        """The score by which starts are compared, the lower the better."""
        return "log_loss" if self.is_class else "mae_log10" if self.log else "mae"


def read_tasks(path: Path = HERE / "tasks.yaml") -> dict[str, Task]:
    """Read the properties, sorted so that each comes after those that it may start from.

    Raises:
        ValueError: A start is no property, or starts from itself; names it.
    """
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    own = {f.name for f in fields(Task)} - {"name", "settings", "tested_fold"}
    words = {"as": "conversion", "class": "is_class"}
    tasks: dict[str, Task] = {}
    for name, entry in content["tasks"].items():
        entry = {words.get(key, key): value for key, value in entry.items()}
        known = {key: value for key, value in entry.items() if key in own}
        known["starts"] = tuple(known.get("starts", (RANDOM,)))
        settings = content["every"] | {k: v for k, v in entry.items() if k not in own}
        tasks[name] = Task(name, **known, tested_fold=content["fold"], settings=settings)
    order: dict[str, Task] = {}
    while len(order) < len(tasks):
        ready = [t for t in tasks.values() if set(t.starts) <= {RANDOM, *order}]
        new = [task for task in ready if task.name not in order]
        if not new:
            stuck = next(t for t in tasks.values() if t.name not in order)
            raise ValueError(f"{path}: {stuck.name} starts from {', '.join(stuck.starts)}")
        order |= {task.name: task for task in new}
    return order


class Runs:
    """Works on the properties, with everything in one folder.

    Args:
        folder: Holds a folder per property.
        data: Folder of the tables.
        tasks: The properties.
        device: As in ``sitenet.train``.
        changes: Settings that go before those of the properties.
        most: Rows of each table to use, for trials; None uses all.
    """

    def __init__(
        self,
        folder: Path,
        data: Path,
        tasks: Mapping[str, Task],
        device: str = "cpu",
        changes: Mapping[str, Any] | None = None,
        most: int | None = None,
    ) -> None:
        self.folder, self.data, self.tasks, self.device = folder, data, tasks, device
        self.changes, self.most = dict(changes or {}), most
        self.reporter = Reporter(Console(stderr=True))

    def work(self, names: Sequence[str], steps: Sequence[str]) -> None:
        """Do what is missing."""
        for step in steps:
            for name in self.tasks:
                if name in names and not self.result_path(name, step).is_file():
                    self.reporter.say(f"{name}: {step}")
                    result = getattr(self, f"_{step}")(self.tasks[name])
                    write_text(self.result_path(name, step), json.dumps(result, indent=1))

    def result_path(self, name: str, step: str) -> Path:
        """The file with the result of a step."""
        return self.folder / name / f"{step}.json"

    def result(self, name: str, step: str) -> dict[str, Any]:
        """The result of a step.

        Raises:
            FileNotFoundError: The step has not been done.
        """
        path = self.result_path(name, step)
        if not path.is_file():
            raise FileNotFoundError(f"no {path}: run the step {step} of {name} first")
        return json.loads(path.read_text(encoding="utf-8"))

    # -----------------------------------------------------------------------------------------
    # Data

    def table(self, task: Task) -> pa.Table:
        """Rows with a value: id, cif, reduced_formula, target, and which part each is: the fold's
        crystals are ``test``, those the tested model must not learn from ``unseen``."""
        table = parquet.read_table(self.data / task.table)
        table = table.filter(compute.is_valid(table[task.column]))
        if self.most is not None:
            rows = np.random.default_rng(0).permutation(len(table))[: self.most]
            table = table.take(np.sort(rows))
        tested = str(task.tested_fold)
        is_test = _is(table[task.fold], tested)
        unseen = np.zeros(len(table), dtype=bool)
        for column in task.without.get("columns", ()):
            unseen |= _is(table[column], tested)
        for other in task.without.get("formulas", ()):
            formulas = self._tested_formulas(self.tasks[other])
            unseen |= np.array([f in formulas for f in table["reduced_formula"].to_pylist()])
        part = np.where(is_test, "test", np.where(unseen, "unseen", "train"))
        values = CONVERSIONS[task.conversion](table[task.column])
        table = table.select(["id", "cif", "reduced_formula"])
        return table.append_column(task.target, values).append_column("split", pa.array(part))

    def _tested_formulas(self, task: Task) -> set[str]:
        table = parquet.read_table(self.data / task.table, columns=["reduced_formula", task.fold])
        rows = _is(table[task.fold], str(task.tested_fold))
        return set(table["reduced_formula"].filter(pa.array(rows)).to_pylist())

    def dataset(self, task: Task, shipped: bool) -> Dataset:
        """The prepared crystals. Its split column names the parts of the tested model; a shipped
        one learns from all but its validation crystals, which are the same."""
        folder = self.folder / task.name
        folder.mkdir(parents=True, exist_ok=True)
        source = folder / "source.parquet"
        key = fingerprint(vars(replace(task, settings={}, starts=())), self.most).encode()
        if not source.is_file() or parquet.read_schema(source).metadata.get(b"task") != key:
            table = self.table(task).drop(["reduced_formula"])
            with new_file(source) as temporary:
                parquet.write_table(table.replace_schema_metadata({b"task": key}), temporary)
        dataset = open_dataset(
            source,
            [task.target],
            units=[task.unit],
            split_column="split",
            prepared_as=folder / "dataset.parquet",
            reporter=self.reporter,
        )
        settings = self._settings(task)
        parts = split(dataset, settings["valid"], 0.0, settings.get("seed", 42), None, "none")
        names = np.array(["train" if shipped else x for x in dataset.split], dtype=object)
        names[parts.valid] = "valid"
        return replace(dataset, split=names.tolist())

    # -----------------------------------------------------------------------------------------
    # Steps

    def _tested(self, task: Task) -> dict[str, Any]:
        """Train from each start, and choose one by the validation crystals."""
        dataset = self.dataset(task, shipped=False)
        results = {}
        for start in task.starts:
            path = self.folder / task.name / "tested" / start
            results[start] = self._train(task, dataset, path, self._start(start, "tested"))
        errors = {k: r["scores"]["valid"][task.target][task.measure] for k, r in results.items()}
        chosen = min(errors, key=lambda start: errors[start])
        rows = {part: dataset.split.count(part) for part in (*PARTS, "unseen")}
        return {"start": chosen, "valid_errors": errors, "rows": rows, **results[chosen]}

    def _rival(self, task: Task) -> dict[str, Any]:
        """The best ridge regression on the encodings of the starts; nothing without starts."""
        dataset = self.dataset(task, shipped=False)
        places = {part: np.flatnonzero(np.array(dataset.split) == part) for part in PARTS}
        best: dict[str, Any] = {}
        for start in task.starts:
            if start == RANDOM:
                continue
            model = self._start(start, "tested")
            assert model is not None
            model = model.to(self.device)
            whole, store = pairs_of_dataset(dataset, model.config)
            if len(whole) != len(dataset):
                raise ValueError(f"{task.name}: pairs of {len(dataset) - len(whole)} are missing")
            property_, x = outputs(model, store.to(self.device), np.arange(len(dataset)))
            target = Target(task.target, scale="log10" if task.log else "linear")
            y = target.learned(dataset.targets[:, 0])
            scores = {"start": start, **ridge_scores(x, y, places, task.is_class)}
            if task.unit and model.targets[0].unit == task.unit:
                scores["line"] = ridge_scores(property_, y, places, False)["test"]["mae"]
            if not best or scores["valid"] < best["valid"]:
                best = scores
        return best

    def _shipped(self, task: Task) -> dict[str, Any]:
        """Train on all folds, from the start that was chosen."""
        start = self.result(task.name, "tested")["start"]
        dataset = self.dataset(task, shipped=True)
        path = self.folder / task.name / "shipped"
        return {
            "start": start,
            **self._train(task, dataset, path, self._start(start, "shipped")),
        }

    def _train(self, task: Task, dataset: Dataset, out: Path, start: Model | None) -> dict:
        begin = time.monotonic()
        settings = self._settings(task)
        config = settings.pop("config")
        result = train(
            dataset,
            out,
            config if start is None else None,
            target=[task.target],
            classes=[task.target] * task.is_class,
            log=[task.target] * task.log,
            start=start,
            device=self.device,
            reporter=self.reporter,
            test=0.0,  # beside the crystals that the split column names
            **settings,
        )
        if task.is_class and "test" in result.scores:
            auc = _roc_auc_of_labels(out / "predictions.csv", task.target)
            result.scores["test"][task.target]["roc_auc_of_labels"] = auc
        epochs = [entry["epoch"] for entry in result.history]
        seconds = round(time.monotonic() - begin)
        return {"scores": result.scores, "epochs": max(epochs), "seconds": seconds}

    def _settings(self, task: Task) -> dict[str, Any]:
        return {**task.settings, **self.changes}

    def _start(self, name: str, step: str) -> Model | None:
        """The tested or shipped model of another property."""
        if name == RANDOM:
            return None
        path = self.folder / name / step
        if step == "tested":
            path /= self.result(name, step)["start"]
        return sitenet.load(path)


def _is(column: pa.ChunkedArray, value: str) -> np.ndarray:
    """Where a column has a value, in any type; False where it has none."""
    return np.array([str(x) == value for x in column.to_pylist()], dtype=bool)


def _roc_auc_of_labels(path: Path, target: str) -> float:
    """The area under the ROC curve of a run's test crystals as Matbench's leaderboard has it."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == "test"]
    truth, p = (
        np.array([float(r[name]) for r in rows]) for name in (target, f"{target}_predicted")
    )
    return roc_auc(truth > 0.5, (p > 0.5).astype(float))


def ship(runs: Runs, names: Sequence[str]) -> None:
    """Put shipped models into ``sitenet/weights``, with the errors of the tested ones."""
    for name in names:
        path = runs.folder / name / "shipped" / "model.safetensors"
        facts = read_metadata(path)["metadata"] | {"tested": runs.result(name, "tested")}
        out = weights_folder() / f"{name}.safetensors"
        sitenet.load(path).save(out, facts, runs.tasks[name].settings.get("bits"))
        print(f"{out}: {out.stat().st_size:,} bytes")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    tasks = read_tasks()
    run = commands.add_parser("run", help="do what is missing")
    run.add_argument("runs", type=Path)
    run.add_argument("--only", dest="names", nargs="+", default=list(tasks), metavar="NAME")
    run.add_argument("--data", type=Path, required=True, help="folder of the tables")
    run.add_argument("--steps", nargs="+", choices=STEPS, default=STEPS)
    run.add_argument("--device", default="cpu")
    run.add_argument("--rows", type=int, help="of each table, for trials  [default: all]")
    run.add_argument("--set", nargs="*", default=[], metavar="SETTING=VALUE", help="for all tasks")
    table = commands.add_parser("table", help="write the table of results")
    table.add_argument("runs", type=Path)
    table.add_argument("--out", type=Path, default=HERE / "results" / "tasks.md")
    shipping = commands.add_parser("ship", help="put models into sitenet/weights")
    shipping.add_argument("runs", type=Path)
    shipping.add_argument("names", nargs="+", metavar="NAME")
    chosen = parser.parse_args(arguments)
    if unknown := set(getattr(chosen, "names", ())) - set(tasks):
        parser.error(f"no property {min(unknown)}; there is {', '.join(tasks)}")
    if chosen.command == "run":
        changes = {k: yaml.safe_load(v) for k, v in (pair.split("=", 1) for pair in chosen.set)}
        runs = Runs(chosen.runs, chosen.data, tasks, chosen.device, changes, chosen.rows)
        runs.work(chosen.names, chosen.steps)
    elif chosen.command == "table":
        write_table(chosen.runs, tasks, chosen.out)
    else:
        ship(Runs(chosen.runs, Path(), tasks), chosen.names)


if __name__ == "__main__":
    main()
