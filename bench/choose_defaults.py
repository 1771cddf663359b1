"""Trials from which the defaults of training were chosen, as a table.

    python bench/choose_defaults.py matbench_mp_gap_sample_4000.parquet \\
        matbench_phonons.parquet bench/results/defaults.md

The first table has a column ``band_gap_eV``, the second ``last_phdos_peak_per_cm``. Trials
run on one thread and take some 10 minutes of CPU time together. ``OUT.jsonl`` beside the table
keeps those that are done, so that the command resumes. The conclusions below the table are kept.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sitenet.data.dataset import Dataset
from sitenet.data.prepare import open_dataset
from sitenet.model.checkpoint import load
from sitenet.training.train import train

TRAINED, VALIDATED = 240, 30  # crystals
TESTED = 800  # at most
GAP, PEAK = "band_gap_eV", "last_phdos_peak_per_cm"
START = "mp-eform"
HEAD = """# Defaults of training: trials

Config `sphere`, 240 training crystals, 30 that choose the best epoch, and 800 of the test (731 for
`last_phdos_peak_per_cm`). A start is the first member of `mp-eform`, which has seen some of these
crystals with their formation energy. One seed; one thread of two cores that other work shared, so
CPU seconds may be double. They include the search for pairs and the test.

    python bench/choose_defaults.py matbench_mp_gap_sample_4000.parquet \\
        matbench_phonons.parquet bench/results/defaults.md
"""
CONCLUSIONS = "## Conclusions"
SCRATCH = [  # target, crystals per batch, epochs, epoch that is kept
    (GAP, 64, 40, "best"),
    (GAP, 16, 40, "best"),
    (GAP, 16, 150, "best"),
    (GAP, 16, 40, "last"),
    (PEAK, 16, 40, "best"),
]
TUNED = [  # target, epochs, learning rate, epoch that is kept
    (GAP, 20, 1e-3, "best"),
    (GAP, 20, 1e-3, "last"),
]


def trials() -> list[dict[str, Any]]:
    """Every trial, as the facts that fix it."""
    listed: list[dict[str, Any]] = [
        {"target": target, "batch": batch, "epochs": epochs, "rate": 3e-3, "kept": kept}
        for target, batch, epochs, kept in SCRATCH
    ]
    for target, epochs, rate, kept in TUNED:
        facts = {"target": target, "batch": 16, "epochs": epochs, "rate": rate, "kept": kept}
        listed.append(facts | {"start": START})
    return listed


def divided(data: Dataset, kept: str) -> Dataset:
    """The first crystals in a fixed random order, to train and validate on, and the last to test
    on. Without a choice of the best epoch, none validates; the training crystals are the same."""
    order = np.random.default_rng(0).permutation(len(data))
    test = order[max(len(data) - TESTED, TRAINED + VALIDATED) :]
    chosen = np.concatenate([order[: TRAINED + VALIDATED], test])
    second = "valid" if kept == "best" else "unused"
    split = ["train"] * TRAINED + [second] * VALIDATED + ["test"] * len(test)
    return replace(data.select(chosen), split=split)


def run(trial: dict[str, Any], data: Dataset) -> dict[str, Any]:
    """Train one model; returns its errors and its CPU time in seconds."""
    start = trial.get("start")
    begin = time.process_time()
    result = train(
        divided(data, trial["kept"]),
        None,
        "sphere",
        start=load(start).members[0] if start else None,
        batch_crystals=trial["batch"],
        epochs=trial["epochs"],
        learning_rate=trial["rate"],
        valid=0.1 if trial["kept"] == "best" else 0.0,
        workers=1,
    )
    seconds = time.process_time() - begin
    scores = result.scores["test"][trial["target"]]
    best = min(result.history, key=lambda entry: entry.get("valid_error", -entry["epoch"]))
    return {
        "valid": best.get("valid_mae"),
        "test": scores["mae"],
        "median": scores["mae_of_median"],
        "epoch": best["epoch"],
        "seconds": seconds,
    }


def table(done: list[dict[str, Any]]) -> str:
    """The trials as Markdown."""
    header = (
        "target",
        "start",
        "crystals per batch",
        "epochs",
        "learning rate",
        "epoch kept",
        "MAE, validation",
        "MAE, test",
        "of the median",
        "CPU seconds",
    )
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for trial in done:
        valid = "" if trial["valid"] is None else f"{trial['valid']:.3f}"
        cells = [trial["target"], trial.get("start", "random weights"), trial["batch"]]
        cells += [trial["epochs"], f"{trial['rate']:g}", f"{trial['epoch']} ({trial['kept']})"]
        cells += [valid, f"{trial['test']:.3f}", f"{trial['median']:.3f}"]
        lines.append(f"| {' | '.join(map(str, cells))} | {trial['seconds']:.0f} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("gaps", type=Path, help="table with band_gap_eV")
    parser.add_argument("peaks", type=Path, help="table with last_phdos_peak_per_cm")
    parser.add_argument("out", type=Path, help="Markdown file to write")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    data = {}
    for name, path in ((GAP, arguments.gaps), (PEAK, arguments.peaks)):
        data[name] = open_dataset(path, [name], workers=1)
    record = arguments.out.with_suffix(".jsonl")
    lines = record.read_text().splitlines() if record.exists() else []
    known = [json.loads(line) for line in lines]
    done = []
    for trial in trials():
        same = (other for other in known if {**other, **trial} == other)
        result = next((x for x in same if x.get("start") == trial.get("start")), None)
        if result is None:
            result = trial | run(trial, data[trial["target"]])
            with record.open("a") as file:
                file.write(json.dumps(result) + "\n")
        done.append(result)
        print(table(done[-1:]).splitlines()[-1], flush=True)
    kept = arguments.out.read_text().partition(CONCLUSIONS)[2] if arguments.out.exists() else "\n"
    arguments.out.write_text(f"{HEAD}\n{table(done)}\n{CONCLUSIONS}{kept}")


if __name__ == "__main__":
    main()
