"""Train and test the models of every property that ships, from ``tasks.yaml``.

    python bench/tasks.py run RUNS --data TABLES [--only NAME ...] [--steps STEP ...]
        [--start NAME=FILE --start-table NAME=PARQUET] ...
    python bench/tasks.py table RUNS
    python bench/tasks.py ship RUNS NAME ...
    python bench/tasks.py card RUNS NAME ...

``run`` works through the properties in order, those that others start from first. *Tested* models
learn from all folds at hand but one, less a few percent for validation: one per start, of which the
validation crystals choose. The *rival* is a ridge regression on the encodings of a start. *Shipped*
models learn from all folds, from the shipped model of the start that was chosen. What is finished
is not done again, and an interrupted run goes on where it was. ``--start`` names a model file to
use as the tested start of a property, and ``--start-table`` the rows it learned from. ``table``
writes ``results/tasks.md``, ``ship`` puts shipped models into ``sitenet/weights``, and ``card``
writes their cards, ``docs/models/NAME.md``.

RUNS/NAME holds the dataset with its pairs, a run folder per start in ``tested`` (as sitenet train
leaves it), one in ``shipped``, and ``tested.json``, ``rival.json`` and ``shipped.json``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import yaml
from tasks_card import write_card
from tasks_list import read_tasks
from tasks_runs import STEPS, Runs
from tasks_table import write_table

import sitenet
from sitenet.model.checkpoint import read_metadata
from sitenet.system.model_files import weights_folder

HERE = Path(__file__).resolve().parent


def ship(runs: Runs, names: Sequence[str]) -> None:
    """Put shipped models into ``sitenet/weights``, with the errors of the tested ones.

    Raises:
        ValueError: A model lacks what its training leaves: errors on the validation crystals, and
            an index of the training crystals.
    """
    for name in names:
        path = runs.folder / name / "shipped" / "model.safetensors"
        model = sitenet.load(path)
        kept = model.calibration
        if kept is None or kept.errors is None or kept.index is None:
            raise ValueError(f"{path} holds no errors on validation crystals, or no index")
        facts = read_metadata(path)["metadata"] | {"tested": runs.result(name, "tested")}
        out = weights_folder() / f"{name}.safetensors"
        model.save(out, facts, runs.tasks[name].settings.get("bits"))
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
    for option, kind in (("--start", "FILE"), ("--start-table", "PARQUET")):
        text = "model to use as the tested start" if kind == "FILE" else "rows it learned from"
        run.add_argument(
            option, action="append", default=[], metavar=f"NAME={kind}", help=f"{text}; repeatable"
        )
    run.add_argument("--rows", type=int, help="of each table, for trials  [default: all]")
    run.add_argument("--set", nargs="*", default=[], metavar="SETTING=VALUE", help="for all tasks")
    table = commands.add_parser("table", help="write the table of results")
    table.add_argument("runs", type=Path)
    table.add_argument("--out", type=Path, default=HERE / "results" / "tasks.md")
    for name, text in (
        ("ship", "put models into sitenet/weights"),
        ("card", "write the cards of models that ship"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("runs", type=Path)
        command.add_argument("names", nargs="+", metavar="NAME")
    chosen = parser.parse_args(arguments)
    if unknown := set(getattr(chosen, "names", ())) - set(tasks):
        parser.error(f"no property {min(unknown)}; there is {', '.join(tasks)}")
    if chosen.command == "run":
        changes = {k: yaml.safe_load(v) for k, v in _named(parser, chosen.set).items()}
        starts, start_tables = (
            {k: Path(v) for k, v in _named(parser, pairs).items()}
            for pairs in (chosen.start, chosen.start_table)
        )
        if unknown := (starts.keys() | start_tables.keys()) - set(tasks):
            parser.error(f"no property {min(unknown)}; there is {', '.join(tasks)}")
        if alone := starts.keys() ^ start_tables.keys():
            parser.error(f"{min(alone)} needs both --start and --start-table")
        runs = Runs(
            chosen.runs,
            chosen.data,
            tasks,
            chosen.device,
            changes,
            chosen.rows,
            starts,
            start_tables,
        )
        runs.work(chosen.names, chosen.steps)
    elif chosen.command == "table":
        write_table(chosen.runs, tasks, chosen.out)
    elif chosen.command == "ship":
        ship(Runs(chosen.runs, Path(), tasks), chosen.names)
    else:
        for name in chosen.names:
            print(write_card(Runs(chosen.runs, Path(), tasks), name))


def _named(parser: argparse.ArgumentParser, pairs: Sequence[str]) -> dict[str, str]:
    """Texts NAME=VALUE as a dict."""
    for pair in pairs:
        if "=" not in pair:
            parser.error(f"expected NAME=VALUE, got {pair!r}")
    return dict(pair.split("=", 1) for pair in pairs)


if __name__ == "__main__":
    main()
