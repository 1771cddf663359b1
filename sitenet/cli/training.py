"""Commands that learn: prepare, train, tune, matbench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sitenet.cli import options
from sitenet.cli.options import ALL_FIELDS, TRAINING, configured, with_fields
from sitenet.cli.output import print_json, print_rows, print_scores, reporter
from sitenet.system.distributed import is_first


def prepare(
    data: options.Data,
    out: Annotated[Path, typer.Option("--out", help="The dataset to write: a Parquet file.")],
    target: options.Target = None,
    workers: options.Workers = None,
    primitive: options.Primitive = True,
    disorder: options.Disorder = "error",
    as_json: options.Json = False,
) -> None:
    """Turn CIFs and a table into one dataset file; goes on where it was stopped."""
    from sitenet.data.dataset import Preparation, write_left_out
    from sitenet.data.prepare import prepare as run
    from sitenet.data.readers import open_source

    source = open_source(data, target)
    out.parent.mkdir(parents=True, exist_ok=True)
    how = Preparation(primitive, disorder)
    with reporter().bar("reading structures", len(source)) as advance:
        count, left_out = run(source, out, None, how, workers, advance)
    listed = out.with_name(f"{out.stem}.left_out.csv")
    write_left_out(left_out, listed)
    if as_json:
        print_json({"out": str(out), "crystals": count, "left_out": len(left_out)})
    else:
        print(f"{out}: {count} crystals, {len(left_out)} left out (reasons in {listed})")


@with_fields(*ALL_FIELDS)
def train(
    data: options.Data,
    out: Annotated[Path, typer.Option("--out", help="Run folder; an unfinished run goes on.")],
    target: options.Target = None,
    config: options.Config = "paper",
    classes: options.Classes = None,
    fold: Annotated[
        str | None, typer.Option(help="Value of the split column whose rows are the test.")
    ] = None,
    split_column: options.SplitColumn = None,
    start: Annotated[
        list[str] | None,
        typer.Option(
            help="Fine-tune this model: a file, or a shipped name; repeat for an ensemble of them."
        ),
    ] = None,
    member: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Train only this member of the ensemble, beside other such commands; then the "
            "command without it puts them together.",
        ),
    ] = None,
    freeze: Annotated[
        bool, typer.Option(help="Learn only the layers after pooling; needs --start.")
    ] = False,
    refit: Annotated[
        bool,
        typer.Option("--refit", help="Learn from the test's crystals too, their error once known."),
    ] = False,
    device: options.Device = "cpu",
    workers: options.Workers = None,
    primitive: options.Primitive = True,
    disorder: options.Disorder = "error",
    as_json: options.Json = False,
    changes: dict[str, Any] | None = None,
) -> None:
    """Train a model; leaves model.safetensors, predictions.csv, metrics and plots in a folder."""
    how = {k: v for k, v in (changes or {}).items() if not start or k in TRAINING}
    configured(config, how)  # what is wrong with it is a usage error
    from sitenet.training.train import train as run

    result = run(
        data,
        out,
        config,
        target=target or None,
        classes=tuple(classes or ()),
        fold=fold,
        split_column=split_column,
        start=start or None,
        member=member,
        freeze=freeze,
        refit=refit,
        primitive=primitive,
        disorder=disorder,
        device=device,
        workers=workers,
        reporter=reporter(),
        **changes or {},
    )
    if not is_first():
        return
    if member is not None:
        if as_json:
            print_json({"member": member, "out": str(result.folder)})
        reporter().say(
            f"member {member} is in {result.folder}; once all are there, the same command without "
            "--member puts them together"
        )
        return
    print_scores(result.scores, result.model.targets, as_json)
    reporter().say(f"everything is in {out}")


@with_fields(*ALL_FIELDS)
def tune(
    data: options.Data,
    out: Annotated[
        Path, typer.Option("--out", help="Folder of the study, which goes on if it is there.")
    ],
    target: options.Target = None,
    config: options.Config = "paper",
    classes: options.Classes = None,
    fold: Annotated[
        str | None, typer.Option(help="Value of the split column whose rows stay unseen.")
    ] = None,
    split_column: options.SplitColumn = None,
    trials: Annotated[int, typer.Option(min=1, help="Trials of the whole study.")] = 50,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds after which no trial is started.")
    ] = None,
    sampler: Annotated[Literal["tpe", "random"], typer.Option(help="What chooses trials.")] = "tpe",
    pruner: Annotated[
        Literal["median", "hyperband", "none"], typer.Option(help="What ends hopeless ones early.")
    ] = "median",
    space: Annotated[
        Path | None,
        typer.Option(
            exists=True, help="YAML: `field: [choice, ...]` or `field: {low: , high: , log: true}`."
        ),
    ] = None,
    device: options.Device = "cpu",
    workers: options.Workers = None,
    primitive: options.Primitive = True,
    disorder: options.Disorder = "error",
    as_json: options.Json = False,
    changes: dict[str, Any] | None = None,
) -> None:
    """Search for settings with Optuna; leaves best.yaml, a config for train."""
    settings = configured(config, changes)
    from sitenet.training.tune import tune as run

    best = run(
        data,
        out,
        settings,
        target=target or None,
        classes=tuple(classes or ()),
        split_column=split_column,
        fold=fold,
        trials=trials,
        timeout=timeout,
        sampler=sampler,
        pruner=pruner,
        space=space,
        primitive=primitive,
        disorder=disorder,
        device=device,
        workers=workers,
        reporter=reporter(),
    )
    if as_json:
        facts = {"trial": best.number, "valid_error": best.valid_error, "values": best.values}
        print_json({**facts, "trials": best.trials, "config": str(best.path)})
        return
    print(f"trial {best.number} of {best.trials}: validation error {best.valid_error:.4g}")
    for name, value in best.values.items():
        print(f"{name:18} {value}")
    reporter().say(f"sitenet train {data} --config {best.path} learns with them")


@with_fields(*ALL_FIELDS, leave_out=["test"])
def matbench(
    data: Annotated[
        Path,
        typer.Argument(
            exists=True, dir_okay=False, help="matbench_*.json.gz, or a table with matbench_fold."
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", help="Folder of results.json and a run for each fold.")
    ],
    target: Annotated[str | None, typer.Option(help="Property: a column.")] = None,
    config: options.Config = "paper",
    classes: options.Classes = None,
    task: Annotated[
        str | None, typer.Option(help="As Matbench calls it; default: the file's name.")
    ] = None,
    folds: Annotated[
        list[int] | None, typer.Option("--fold", help="Number of a fold to run; repeat; all.")
    ] = None,
    device: options.Device = "cpu",
    workers: options.Workers = None,
    primitive: options.Primitive = True,
    disorder: options.Disorder = "error",
    as_json: options.Json = False,
    changes: dict[str, Any] | None = None,
) -> None:
    """Train and test on Matbench's folds; leaves results in Matbench's format."""
    settings = configured(config, changes)
    from sitenet.training.matbench import matbench as run

    found = run(
        data,
        out,
        settings,
        task=task,
        target=target,
        classes=tuple(classes or ()),
        folds=folds or None,
        primitive=primitive,
        disorder=disorder,
        device=device,
        workers=workers,
        reporter=reporter(),
    )
    if not is_first():
        return
    if as_json:
        print_json({"task": found.task, "unit": found.unit, "folds": found.scores})
    else:
        names = list(next(iter(found.scores.values())))
        rows = [[str(k), *(f"{s[n]:.4f}" for n in names)] for k, s in found.scores.items()]
        over = [found.over_folds(n) for n in names]
        rows.append(["mean", *(f"{mean:.4f}" for mean, _ in over)])
        rows.append(["std", *(f"{std:.4f}" for _, std in over)])
        print_rows(["fold", *names], rows, False)
    reporter().say(f"results of {found.task} are in {found.path}")
