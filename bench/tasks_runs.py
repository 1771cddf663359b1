"""The work of ``tasks.py``: datasets, tested models, rivals and shipped models of properties."""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.parquet as parquet
from predictions import Predictions
from rich.console import Console
from tasks_list import RANDOM, Task

import sitenet
from sitenet.data.dataset import Dataset
from sitenet.data.prepare import open_dataset
from sitenet.data.splits import split
from sitenet.model.ensemble import Model
from sitenet.model.target import Target
from sitenet.pairs.cache import pairs_of_dataset
from sitenet.system.files import fingerprint, new_file, write_text
from sitenet.system.progress import Reporter
from sitenet.training.ridge import ridge_scores
from sitenet.training.train import train
from sitenet.training.validation import outputs

STEPS = ("tested", "rival", "shipped")
PARTS = ("train", "valid", "test")
CONVERSIONS = {
    "": lambda column: column,
    "is_zero": lambda column: compute.cast(compute.equal(column, 0), pa.float64()),
    "power_of_ten": functools.partial(compute.power, 10.0),
}


class Runs:
    """Works on the properties, with everything in one folder.

    Args:
        folder: Holds a folder per property.
        data: Folder of the tables.
        tasks: The properties.
        device: As in ``sitenet.train``.
        changes: Settings that go before those of the properties.
        most: Rows of each table to use, for trials; None uses all.
        starts: Model files to use as tested starts, instead of those in the folder, by property.
        start_tables: Tables of the rows that each of these files learned from, with a column id,
            and reduced_formula unless the ids are those of the property's own table.
    """

    def __init__(
        self,
        folder: Path,
        data: Path,
        tasks: Mapping[str, Task],
        device: str = "cpu",
        changes: Mapping[str, Any] | None = None,
        most: int | None = None,
        starts: Mapping[str, Path] | None = None,
        start_tables: Mapping[str, Path] | None = None,
    ) -> None:
        self.folder, self.data, self.tasks, self.device = folder, data, tasks, device
        self.changes, self.most = dict(changes or {}), most
        self.starts, self.start_tables = dict(starts or {}), dict(start_tables or {})
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
        for column in task.without:
            unseen |= _is(table[column], tested)
        part = np.where(is_test, "test", np.where(unseen, "unseen", "train"))
        values = CONVERSIONS[task.conversion](table[task.column])
        table = table.select(["id", "cif", "reduced_formula"])
        return table.append_column(task.target, values).append_column("split", pa.array(part))

    def dataset(self, task: Task, shipped: bool) -> Dataset:
        """The prepared crystals. Its split column names the parts of the tested model; a shipped
        one learns from all but its validation crystals, which are the same."""
        folder = self.folder / task.name
        folder.mkdir(parents=True, exist_ok=True)
        source = self._source(task.name)
        key = fingerprint(vars(replace(task, settings={}, starts=())), self.most).encode()
        if not source.is_file() or parquet.read_schema(source).metadata.get(b"task") != key:
            table = self.table(task)
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
        seed, group = settings.get("seed", 42), settings.get("group", "none")
        parts = split(dataset, settings["valid"], 0.0, seed, None, group)
        names = np.array(["train" if shipped else x for x in dataset.split], dtype=object)
        names[parts.valid] = "valid"
        return replace(dataset, split=names.tolist())

    def formulas(self, name: str) -> set[str]:
        """Reduced formulas that the tested model of a property learned from, or any of its starts:
        those of training and validation crystals."""
        if name == RANDOM:
            return set()
        if name in self.starts:
            return self._formulas_of_start(name)
        source = parquet.read_table(self._source(name), columns=["reduced_formula", "split"])
        learned = source.filter(compute.equal(source["split"], "train"))["reduced_formula"]
        return {*learned.to_pylist(), *self.formulas(self.result(name, "tested")["start"])}

    def _formulas_of_start(self, name: str) -> set[str]:
        """Formulas of the table that a model file learned from."""
        path, column = self.start_tables[name], "reduced_formula"
        if column in parquet.read_schema(path).names:
            return set(parquet.read_table(path, columns=[column])[column].to_pylist())
        own = parquet.read_table(self.data / self.tasks[name].table, columns=["id", column])
        of_id = dict(zip(own["id"].to_pylist(), own[column].to_pylist(), strict=True))
        ids = parquet.read_table(path, columns=["id"])["id"].to_pylist()
        if unknown := [k for k in ids if k not in of_id]:
            raise ValueError(
                f"{path}: expected a column {column}, or the ids of {self.tasks[name].table}, "
                f"which lacks {unknown[0]}"
            )
        return {of_id[k] for k in ids}

    def chain(self, start: str) -> list[str]:
        """The properties that a start learned, itself and through its own starts; the files of
        ``starts`` are the ends of what is known."""
        if start == RANDOM:
            return []
        if start in self.starts:
            return [start]
        return [start, *self.chain(self.result(start, "tested")["start"])]

    def _tables_of(self, chain: Sequence[str]) -> dict[str, list[Any]]:
        """Name and rows of the tables that the model files in a chain of starts learned from."""
        own = {name: self.start_tables[name] for name in chain if name in self.starts}
        return {k: [path.name, parquet.read_metadata(path).num_rows] for k, path in own.items()}

    def _source(self, name: str) -> Path:
        return self.folder / name / "source.parquet"

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
        return {
            "start": chosen,
            "chain": self.chain(chosen),
            "start_tables": self._tables_of(self.chain(chosen)),
            "valid_errors": errors,
            "rows": rows,
            **results[chosen],
            "unknown": self._unknown(task, chosen),
        }

    def _unknown(self, task: Task, start: str) -> dict[str, float]:
        """Scores on the test crystals whose formula none of the starts learned from."""
        path = self.folder / task.name / "tested" / start / "predictions.csv"
        known = self.formulas(start)
        source = parquet.read_table(self._source(task.name), columns=["id", "reduced_formula"])
        pairs = zip(*(column.to_pylist() for column in source.columns), strict=True)
        new = {name for name, formula in pairs if formula not in known}
        return Predictions.read(path, task.target).only(new).scores(task.is_class, task.log)

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
            shown = None if task.in_log10 else target.shown
            scores = {"start": start, **ridge_scores(x, y, places, task.is_class, shown)}
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
            scores = Predictions.read(out / "predictions.csv", task.target).scores(True, False)
            result.scores["test"][task.target] |= scores
        epochs = [entry["epoch"] for entry in result.history]
        seconds = round(time.monotonic() - begin)
        calibrated = {name: vars(one) for name, one in result.probabilities.items()}
        return {
            "scores": result.scores,
            "probabilities": calibrated,
            "epochs": max(epochs),
            "seconds": seconds,
        }

    def _settings(self, task: Task) -> dict[str, Any]:
        return {**task.settings, **self.changes}

    def _start(self, name: str, step: str) -> Model | None:
        """The tested or shipped model of another property."""
        if name == RANDOM:
            return None
        path = self.folder / name / step
        if step == "tested" and name in self.starts:
            path = self.starts[name]
        elif step == "tested":
            path /= self.result(name, step)["start"]
        return sitenet.load(path)


def _is(column: pa.ChunkedArray, value: str) -> np.ndarray:
    """Where a column has a value, in any type; False where it has none."""
    return np.array([str(x) == value for x in column.to_pylist()], dtype=bool)
