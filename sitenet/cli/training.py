"""Commands that train: prepare, train, tune, crossval, matbench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sitenet.cli import options
from sitenet.cli.options import ALL_FIELDS, TRAINING, configured, with_fields
from sitenet.cli.output import print_json, print_rows, print_scores, reporter
from sitenet.config import DEFAULT_CONFIG
from sitenet.system.distributed import is_first


def prepare(
    data: options.Data,
    out: Annotated[Path, typer.Option("--out", help="Parquet file to write.")],
    target: options.Target = None,
    unit: options.Unit = None,
    workers: options.Workers = None,
    primitive: options.Primitive = None,
    disorder: options.Disorder = None,
    as_json: options.Json = False,
) -> None:
    """Read structures into one dataset file.

    An interrupted run resumes where it stopped.
    """
    from sitenet.data.dataset import Preparation, write_left_out
    from sitenet.data.prepare import prepare as run
    from sitenet.data.prepared import count_without_value
    from sitenet.data.readers import open_source

    source = open_source(data, target)
    out.parent.mkdir(parents=True, exist_ok=True)
    how = Preparation(primitive is not False, disorder or "error")
    with reporter().bar("reading structures", len(source)) as advance:
        count, left_out = run(source, out, None, how, workers, advance, unit or None)
    listed = out.with_name(f"{out.stem}.left_out.csv")
    write_left_out(left_out, listed)
    unknown = count_without_value(out)
    if as_json:
        facts = {"out": str(out), "crystals": count, "left_out": len(left_out)}
        print_json({**facts, "without_value": unknown})
        return
    without = f" ({unknown} without a value, on which no model is trained)" if unknown else ""
    print(f"{out}: {count} crystals{without}, {len(left_out)} left out (reasons in {listed})")


def _bits(bits: int | None) -> int | None:
    if bits not in (None, 8, 10):
        raise typer.BadParameter(f"expected 8 or 10, got {bits}")
    return bits


@with_fields(*ALL_FIELDS)
def train(
    data: options.Data,
    out: Annotated[
        Path, typer.Option("--out", help="Run folder; an unfinished run in it resumes.")
    ],
    target: options.Target = None,
    unit: options.Unit = None,
    config: options.StartConfig = None,
    classes: options.Classes = None,
    log: options.Log = None,
    fold: Annotated[
        str | None, typer.Option(help="Value of the split column that marks the test set.")
    ] = None,
    split_column: options.SplitColumn = None,
    start: options.Start = None,
    member: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Train only this member of the ensemble, in parallel with such commands for the "
            "others; the command without --member then combines them.",
        ),
    ] = None,
    freeze: options.Freeze = False,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit",
            help="Also train on the test set, after a first run has measured its error.",
        ),
    ] = False,
    bits: Annotated[
        int | None,
        typer.Option(
            callback=_bits,
            help="Bits per weight of the finished model, 8 or 10, for a smaller file  "
            "[default: all 32]",
        ),
    ] = None,
    device: options.Device = "cpu",
    workers: options.Workers = None,
    as_json: options.Json = False,
    changes: dict[str, Any] | None = None,
) -> None:
    """Train a model.

    The run folder receives model.safetensors, config.yaml, metrics.jsonl, predictions.csv and
    plots. An interrupted run resumes where it stopped; a finished one goes on if --epochs asks for
    more.
    """
    how = {k: v for k, v in (changes or {}).items() if not start or k in TRAINING}
    configured(config, how)  # what is wrong with it is a usage error
    from sitenet.training.train import train as run

    result = run(
        data,
        out,
        config,
        target=target or None,
        unit=unit or None,
        classes=tuple(classes or ()),
        log=tuple(log or ()),
        fold=fold,
        split_column=split_column,
        start=start or None,
        member=member,
        freeze=freeze,
        refit=refit,
        bits=bits,
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
            f"member {member} is in {result.folder}; once every member is there, combine them with "
            "the same command without --member"
        )
        return
    print_scores(result.scores, result.model.targets, as_json)
    reporter().say(f"everything is in {out}")
    reporter().say(f"next: sitenet predict FILE... --model {out}")


@with_fields(*ALL_FIELDS)
def tune(
    data: options.Data,
    out: Annotated[
        Path, typer.Option("--out", help="Folder of the study; an unfinished study in it resumes.")
    ],
    target: options.Target = None,
    unit: options.Unit = None,
    config: options.Config = DEFAULT_CONFIG,
    classes: options.Classes = None,
    fold: Annotated[
        str | None,
        typer.Option(help="Value of the split column that marks the test set, which stays unseen."),
    ] = None,
    split_column: options.SplitColumn = None,
    trials: Annotated[int, typer.Option(min=1, help="Number of trials in the study.")] = 50,
    timeout: Annotated[
        float | None, typer.Option(help="Time after which no further trial starts, in seconds.")
    ] = None,
    sampler: Annotated[
        Literal["tpe", "random"], typer.Option(help="How trials are chosen.")
    ] = "tpe",
    pruner: Annotated[
        Literal["median", "hyperband", "none"],
        typer.Option(help="Which rule stops unpromising trials early."),
    ] = "median",
    space: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            help="YAML file of the search space, with lines `field: [choice, ...]` or "
            "`field: {low: , high: , log: true}`.",
        ),
    ] = None,
    device: options.Device = "cpu",
    workers: options.Workers = None,
    as_json: options.Json = False,
    changes: dict[str, Any] | None = None,
) -> None:
    """Search for the best settings with Optuna.

    The folder receives best.yaml, a config for sitenet train.
    """
    configured(config, changes)  # what is wrong with it is a usage error
    from sitenet.training.tune import tune as run

    best = run(
        data,
        out,
        config,
        target=target or None,
        unit=unit or None,
        classes=tuple(classes or ()),
        split_column=split_column,
        fold=fold,
        trials=trials,
        timeout=timeout,
        sampler=sampler,
        pruner=pruner,
        space=space,
        device=device,
        workers=workers,
        reporter=reporter(),
        **changes or {},
    )
    if as_json:
        facts = {"trial": best.number, "valid_error": best.valid_error, "values": best.values}
        print_json({**facts, "trials": best.trials, "config": str(best.path)})
        return
    print(f"trial {best.number} of {best.trials}: validation error {best.valid_error:.4g}")
    for name, value in best.values.items():
        print(f"{name:18} {value}")
    reporter().say(f"next: {best.command}")


@with_fields(*ALL_FIELDS, leave_out=["test"])
def crossval(
    data: options.Data,
    out: Annotated[
        Path,
        typer.Option("--out", help="Folder for the predictions, the scores and a run per fold."),
    ],
    target: options.Target = None,
    unit: options.Unit = None,
    config: options.StartConfig = None,
    folds: Annotated[int, typer.Option(min=2, help="Number of folds.")] = 5,
    classes: options.Classes = None,
    log: options.Log = None,
    start: options.Start = None,
    freeze: options.Freeze = False,
    device: options.Device = "cpu",
    workers: options.Workers = None,
    as_json: options.Json = False,
    changes: dict[str, Any] | None = None,
) -> None:
    """Measure the error by cross-validation.

    Every crystal is predicted by a model that was trained without its fold. An interrupted run
    resumes where it stopped.
    """
    configured(config, {k: v for k, v in (changes or {}).items() if not start or k in TRAINING})
    from sitenet.training.crossval import crossval as run
    from sitenet.training.crossval import score_rows

    result = run(
        data,
        out,
        config,
        folds=folds,
        target=target or None,
        unit=unit or None,
        classes=tuple(classes or ()),
        log=tuple(log or ()),
        start=start or None,
        freeze=freeze,
        device=device,
        workers=workers,
        reporter=reporter(),
        **changes or {},
    )
    if not is_first():
        return
    if as_json:
        print_json({"folds": result.scores, "out": str(out), "left_out": len(result.left_out)})
    else:
        header, rows = score_rows(result.scores)
        texts = [[x if isinstance(x, str) else f"{x:.4g}" for x in row] for row in rows]
        print_rows(header, texts, False)
    for line in result.summary():
        reporter().say(line)
    reporter().say(f"predictions of all crystals are in {out / 'predictions.csv'}")


@with_fields(*ALL_FIELDS, leave_out=["test"])
def matbench(
    data: Annotated[
        Path,
        typer.Argument(
            exists=True,
            metavar="DATA",
            help="File matbench_*.json.gz, a table with a column matbench_fold, or a folder with "
            "such files of several tasks.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="Folder for results.json and one run per fold; of several tasks, for results.md "
            "and such a folder per task.",
        ),
    ],
    target: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of the property.")
    ] = None,
    config: options.Config = DEFAULT_CONFIG,
    classes: options.Classes = None,
    task: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            help="Matbench's name of the task; for a folder, repeat for several, or name all  "
            "[default: the file's name, or all in a folder]",
        ),
    ] = None,
    folds: Annotated[
        list[int] | None,
        typer.Option("--fold", help="Number of a fold to run; repeat for several  [default: all]"),
    ] = None,
    device: options.Device = "cpu",
    workers: options.Workers = None,
    as_json: options.Json = False,
    changes: dict[str, Any] | None = None,
) -> None:
    """Train and test on the folds of Matbench.

    The folder receives the results in Matbench's format.
    """
    configured(config, changes)  # what is wrong with it is a usage error
    if data.is_dir():
        for option, value in (("--target", target), ("--class", classes)):
            if value:
                raise typer.BadParameter("is for one task, not a folder", param_hint=option)
        _matbench_tasks(
            data,
            out,
            config,
            as_json,
            tasks=task or "all",
            folds=folds or None,
            device=device,
            workers=workers,
            **changes or {},
        )
        return
    if task and len(task) > 1:
        raise typer.BadParameter("a file is of one task; name a folder", param_hint="--task")
    from sitenet.training.matbench import matbench as run

    benchmark = run(
        data,
        out,
        config,
        task=task[0] if task else None,
        target=target,
        classes=tuple(classes or ()),
        folds=folds or None,
        device=device,
        workers=workers,
        reporter=reporter(),
        **changes or {},
    )
    if not is_first():
        return
    if as_json:
        print_json({"task": benchmark.task, "unit": benchmark.unit, "folds": benchmark.scores})
    else:
        names = list(next(iter(benchmark.scores.values())))
        rows = [[str(k), *(f"{s[n]:.4f}" for n in names)] for k, s in benchmark.scores.items()]
        over = [benchmark.over_folds(n) for n in names]
        rows.append(["mean", *(f"{mean:.4f}" for mean, _ in over)])
        rows.append(["std", *(f"{std:.4f}" for _, std in over)])
        print_rows(["fold", *names], rows, False)
    reporter().say(f"results of {benchmark.task} are in {benchmark.path}")


def _matbench_tasks(data: Path, out: Path, config: str, as_json: bool, **options: Any) -> None:
    """Run several tasks, and print a score of each."""
    from sitenet.training.matbench_tasks import PAGE, matbench_tasks, measure_of

    results = matbench_tasks(data, out, config, reporter=reporter(), **options)
    if not is_first():
        return
    if as_json:
        print_json({name: {"unit": r.unit, "folds": r.scores} for name, r in results.items()})
    else:
        rows = []
        for name, result in results.items():
            measure = measure_of(name)
            mean, std = result.over_folds(measure)
            folds = " ".join(map(str, result.scores))
            rows.append([name, measure, f"{mean:.4g}", f"{std:.2g}", result.unit, folds])
        print_rows(["task", "measure", "mean", "std", "unit", "folds"], rows, False)
    reporter().say(f"the table against the leaderboard is in {out / PAGE}")
