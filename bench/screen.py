"""Screen configs: train arms on the same crystals from paired seeds, and compare their errors.

    python bench/screen.py matbench_mp_gap_folds1234.parquet --target band_gap_eV --out screen \\
        --without matbench_fold=1 --arm sphere --arm "density" --arm "sphere site_dim=64"

Each arm is a named config or file, then changes of its fields. Every arm trains on the same
crystals with the same seeds, and all are judged on the same other crystals, so that differences
between arms are paired. The table gives the mean absolute error over the seeds, the difference from
the first arm with its standard error, the error of the ensemble of all seeds, and the CPU time of
an epoch. Runs are kept in --out: a finished one is not repeated, and several processes with
different --seed share the work.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as parquet
import torch
import yaml

import sitenet
from sitenet.config import SiteNetConfig, load_config
from sitenet.data.splits import Split
from sitenet.inference.predict import from_store
from sitenet.model.sitenet import SiteNet, Target
from sitenet.pairs.maker import PairMaker, pair_options
from sitenet.pairs.store import PairStore
from sitenet.training.data import TrainingData
from sitenet.training.trainer import Trainer


@dataclass(frozen=True)
class Plan:
    """Which crystals an arm learns from and is judged on, and for how long it trains."""

    data: str
    target: str
    without: str
    train: int
    judge: int
    epochs: int


def arm_config(text: str, plan: Plan) -> SiteNetConfig:
    """The config of an arm: a name or file, then ``field=value``."""
    name, *changes = text.split()
    fields = dict(change.split("=", 1) for change in changes)
    values = {field: yaml.safe_load(value) for field, value in fields.items()}
    return load_config(name).replace(**{"epochs": plan.epochs} | values)


def draw(plan: Plan) -> tuple[list[str], np.ndarray]:
    """CIFs and values of the crystals to train on, then of those to judge on."""
    table = parquet.read_table(plan.data)
    rows = np.arange(table.num_rows)
    if plan.without:
        column, value = plan.without.split("=", 1)
        rows = rows[[str(x) != value for x in table[column].to_pylist()]]
    wanted = plan.train + plan.judge
    if len(rows) < wanted:
        raise SystemExit(f"{plan.data} has {len(rows)} usable rows, {wanted} are wanted")
    rows = np.random.default_rng(0).permutation(rows)[:wanted]
    chosen = table.take(rows)
    return chosen["cif"].to_pylist(), chosen[plan.target].to_numpy().astype(np.float64)


def store_of(config: SiteNetConfig, cifs: list[str]) -> PairStore:
    """The pairs that a config asks for."""
    make = PairMaker(config)
    crystals = (sitenet.read_cif(cif) for cif in cifs)
    return PairStore.of([make(c.primitive() if config.primitive else c) for c in crystals])


def train(config: SiteNetConfig, store: PairStore, values: np.ndarray, plan: Plan) -> dict:
    """Train one model and predict the crystals to judge on."""
    learned = values[: plan.train]
    parts = Split(np.arange(plan.train), np.arange(0), np.arange(0))
    torch.manual_seed(config.training.seed)
    model = SiteNet(config, [Target(plan.target, "", learned.mean(), learned.std())])
    trainer = Trainer(model, TrainingData(store, values[:, None], parts))
    begin = time.process_time()
    trainer.run()
    seconds = (time.process_time() - begin) / config.training.epochs
    judged = np.arange(plan.train, plan.train + plan.judge)
    predicted = np.array([y for y, _ in from_store(trainer.best, store, judged)])[:, 0]
    return {
        "predicted": predicted,
        "train_mae": trainer.progress.history[-1]["train_mae"],
        "seconds": seconds,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def report(arms: list[str], results: dict[tuple[str, int], dict], truth: np.ndarray) -> str:
    """The table of all arms, as Markdown; seeds that some arm lacks count for no difference."""
    lines = [
        "| arm | parameters | seeds | training MAE | MAE | difference | ensemble | CPU s/epoch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    errors: dict[str, dict[int, float]] = {}
    for arm in arms:
        runs = {seed: run for (name, seed), run in results.items() if name == arm}
        if not runs:
            continue
        predicted = {seed: run["predicted"] for seed, run in runs.items()}
        errors[arm] = {seed: float(np.abs(p - truth).mean()) for seed, p in predicted.items()}
        ensemble = np.abs(np.mean(list(predicted.values()), 0) - truth).mean()
        shared = sorted(errors[arm].keys() & errors[arms[0]].keys()) if arm != arms[0] else []
        differences = [errors[arm][seed] - errors[arms[0]][seed] for seed in shared]
        difference = f"{np.mean(differences):+.4f}" if shared else ""
        if len(shared) > 1:
            difference += f" ± {np.std(differences, ddof=1) / len(shared) ** 0.5:.4f}"
        means = [np.mean([float(run[key]) for run in runs.values()]) for key in FACTS]
        lines.append(
            f"| {arm} | {means[0]:,.0f} | {len(runs)} | {means[1]:.4f} | "
            f"{np.mean(list(errors[arm].values())):.4f} | {difference} | {ensemble:.4f} | "
            f"{means[2]:.1f} |"
        )
    return "\n".join(lines)


FACTS = ("parameters", "train_mae", "seconds")


def run_file(folder: Path, plan: Plan, config: SiteNetConfig) -> Path:
    """Where the run of a config is kept."""
    key = json.dumps([asdict(plan), config.to_dict()], sort_keys=True)
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"


def main() -> None:
    """Train what is missing, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("data", help="Parquet file with a cif column")
    parser.add_argument("--target", required=True, help="column to learn")
    parser.add_argument("--out", type=Path, required=True, help="folder that keeps the runs")
    parser.add_argument("--arm", action="append", required=True, help="config, then field=value")
    parser.add_argument("--without", default="", help="COLUMN=VALUE of rows to leave out")
    parser.add_argument("--train", type=int, default=8000, help="crystals to train on")
    parser.add_argument("--judge", type=int, default=10000, help="crystals to judge on")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--seed", type=int, action="append", help="train only these seeds")
    options = parser.parse_args()
    fields = Plan.__dataclass_fields__
    plan = Plan(**{name: getattr(options, name) for name in fields})
    options.out.mkdir(parents=True, exist_ok=True)
    cifs, values = draw(plan)
    stores: dict[str, PairStore] = {}
    results = {}
    for seed in range(options.seeds):
        for arm in options.arm:
            config = arm_config(arm, plan).replace(seed=seed)
            path = run_file(options.out, plan, config)
            if not path.is_file() and (options.seed is None or seed in options.seed):
                key = json.dumps([pair_options(config), config.primitive, config.missing])
                if key not in stores:
                    stores[key] = store_of(config, cifs)
                run = train(config, stores[key], values, plan)
                np.savez(path.with_suffix(".tmp.npz"), **run)
                path.with_suffix(".tmp.npz").rename(path)
            if path.is_file():
                with np.load(path) as content:
                    results[arm, seed] = dict(content)
    judged = f"{plan.judge:,} others" + (f" ({plan.without} left out)" if plan.without else "")
    print(f"{plan.train:,} crystals, {plan.epochs} epochs; judged on {judged}\n")
    print(report(options.arm, results, values[plan.train :]))


if __name__ == "__main__":
    main()
