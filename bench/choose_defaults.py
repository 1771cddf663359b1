"""Trials from which the defaults of training were chosen, as a table.

    python bench/choose_defaults.py matbench_mp_gap_sample_4000.parquet \\
        matbench_phonons.parquet bench/results/defaults.md

The first table has a column ``band_gap_eV``, the second ``last_phdos_peak_per_cm``. Trials
run on one thread and take some 15 minutes of CPU time together. ``OUT.jsonl`` beside the table
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

TESTED = 800  # crystals of each table's test
GAP, PEAK = "band_gap_eV", "last_phdos_peak_per_cm"
START = "mp-eform"
HEAD = """# Defaults of training: trials

The config is `sphere`. Eight tenths of the crystals train and one validates; 800 others are the
test (701 or more for `last_phdos_peak_per_cm`). A start is the first member of `mp-eform`, which
has seen some of these crystals with their formation energy. One seed, one thread of two shared
cores. CPU seconds include the search for pairs and the test; they double where other work shares
the cores.

    python bench/choose_defaults.py matbench_mp_gap_sample_4000.parquet \\
        matbench_phonons.parquet bench/results/defaults.md
"""
CONCLUSIONS = "## Conclusions"
SCRATCH = [  # target, crystals, crystals per batch, epochs
    (GAP, 300, 64, 40),
    (GAP, 300, 16, 40),
    (GAP, 300, 16, 150),
    (GAP, 1000, 64, 40),
    (GAP, 1000, 32, 40),
    (PEAK, 300, 16, 40),
]
TUNED = [  # target, epochs, freeze, learning rate
    (GAP, 20, False, 1e-3),
    (GAP, 40, False, 3e-3),
    (GAP, 73, False, 1e-3),
    (PEAK, 40, False, 3e-3),
    (PEAK, 40, False, 1e-3),
]


def trials() -> list[dict[str, Any]]:
    """Every trial, as the facts that fix it."""
    listed: list[dict[str, Any]] = [
        {"target": target, "crystals": crystals, "batch": batch, "epochs": epochs, "settings": {}}
        for target, crystals, batch, epochs in SCRATCH
    ]
    for target, epochs, freeze, rate in TUNED:
        facts = {"target": target, "crystals": 300, "batch": 16, "epochs": epochs}
        facts |= {"settings": {"learning_rate": rate}, "start": START, "freeze": freeze}
        listed.append(facts)
    return listed


def divided(data: Dataset, crystals: int) -> Dataset:
    """The first crystals in a fixed random order, to train and validate on, and the last to test
    on."""
    order = np.random.default_rng(0).permutation(len(data))
    train_count, valid_count = round(0.8 * crystals), round(0.1 * crystals)
    test = order[max(len(data) - TESTED, train_count + valid_count) :]
    chosen = np.concatenate([order[: train_count + valid_count], test])
    split = ["train"] * train_count + ["valid"] * valid_count + ["test"] * len(test)
    return replace(data.select(chosen), split=split)


def run(trial: dict[str, Any], data: Dataset) -> dict[str, Any]:
    """Train one model; returns its errors and its CPU time in seconds."""
    start = trial.get("start")
    begin = time.process_time()
    result = train(
        divided(data, trial["crystals"]),
        None,
        "sphere",
        start=load(start).members[0] if start else None,
        freeze=trial.get("freeze", False),
        batch_sites=0,
        batch_crystals=trial["batch"],
        epochs=trial["epochs"],
        workers=1,
        **trial["settings"],
    )
    seconds = time.process_time() - begin
    scores = result.scores["test"][trial["target"]]
    best = min(result.history, key=lambda entry: entry["valid_error"])
    return {
        "valid": best["valid_mae"],
        "test": scores["mae"],
        "median": scores["mae_of_median"],
        "best": best["epoch"],
        "seconds": seconds,
    }


def table(done: list[dict[str, Any]]) -> str:
    """The trials as Markdown."""
    header = (
        "target",
        "start",
        "crystals",
        "per batch",
        "epochs (best)",
        "other settings",
        "MAE, validation",
        "MAE, test",
        "of the median",
        "CPU seconds",
    )
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    for trial in done:
        start = trial.get("start", "random weights")
        settings = [f"{name} {value:g}" for name, value in trial["settings"].items()]
        settings += ["freeze"] * trial.get("freeze", False)
        cells = [trial["target"], start, trial["crystals"], trial["batch"]]
        cells += [f"{trial['epochs']} ({trial['best']})", ", ".join(settings)]
        cells += [f"{trial[name]:.3f}" for name in ("valid", "test", "median")]
        lines.append("| " + " | ".join(map(str, [*cells, f"{trial['seconds']:.0f}"])) + " |")
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
        result = next((other for other in known if trial.items() <= other.items()), None)
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
