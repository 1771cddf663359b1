"""The command line: ``sitenet --help``.

Data goes to standard output, talk and progress to standard error. Exit status: 0, 1 where a job
failed, 2 where the command is wrong.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from sitenet.config import SiteNetConfig, TrainingConfig

app = typer.Typer(
    help="Properties of crystals from their structure files.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
talk = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Target = Annotated[
    list[str] | None,
    typer.Option("--target", help="Property to learn: a column; repeat for several."),
]
ModelOption = Annotated[
    str, typer.Option("--model", help="A model file, or the name of weights that ship.")
]
Device = Annotated[str, typer.Option(help="cpu or cuda.")]
Workers = Annotated[int | None, typer.Option(help="Processes that read structures; default: all.")]
Primitive = Annotated[bool, typer.Option(help="Find primitive cells first.")]
Disorder = Annotated[
    str, typer.Option(help="What to do about partial occupancy: error or average.")
]


def _reporter() -> Any:
    from sitenet.progress import Reporter

    return Reporter(talk)


def with_fields(*classes: type, leave_out: Sequence[str] = ()) -> Callable:
    """Give a command the fields of config classes as options of the same names, with the same
    help; those that are given arrive as the keyword argument ``changes``."""

    def decorate(command: Callable) -> Callable:
        signature = inspect.signature(command)
        hints = typing.get_type_hints(command, include_extras=True)
        parameters = [
            p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY)
            for p in signature.parameters.values()
            if p.name != "changes"
        ]
        taken = {p.name for p in parameters} | set(leave_out)
        names = []
        for cls in classes:
            kinds = typing.get_type_hints(cls)
            for f in dataclasses.fields(cls):
                kind = kinds[f.name]
                if f.name in taken or kind not in (int, float, str, bool):
                    continue
                names.append(f.name)
                help = f"{f.metadata['help'][0].upper()}{f.metadata['help'][1:]}."
                option = typer.Option(
                    f"--{f.name.replace('_', '-')}"
                    + (f"/--no-{f.name.replace('_', '-')}" if kind is bool else ""),
                    help=help,
                    show_default=False,
                    rich_help_panel=cls.__name__.removesuffix("Config") + " settings",
                )
                parameters.append(
                    inspect.Parameter(
                        f.name,
                        inspect.Parameter.KEYWORD_ONLY,
                        default=None,
                        annotation=Annotated[kind | None, option],
                    )
                )

        def run(**options: Any) -> Any:
            changes = {n: options.pop(n) for n in names if options.get(n) is not None}
            rest = {k: v for k, v in options.items() if k not in names}
            return command(**rest, changes=changes)

        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


@app.callback(invoke_without_command=True)
def _app(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    if version:
        import sitenet

        print(sitenet.__version__)
        raise typer.Exit


@app.command()
def info(as_json: Json = False) -> None:
    """Print version, SIMD level, threads, torch and CUDA."""
    from sitenet.environment import info as find

    facts = find()
    if as_json:
        print(json.dumps(facts))
        return
    for name, value in facts.items():
        print(f"{name:13} {'-' if value is None else value}")


@app.command()
def prepare(
    data: Annotated[Path, typer.Argument(help="Folder, CSV, Parquet or JSON of crystals.")],
    out: Annotated[Path, typer.Option("--out", help="The dataset to write: a Parquet file.")],
    target: Target = None,
    workers: Workers = None,
    primitive: Primitive = True,
    disorder: Disorder = "error",
    as_json: Json = False,
) -> None:
    """Turn CIFs and a table into one dataset file; goes on where it was stopped."""
    from sitenet.data import Preparation, write_left_out
    from sitenet.prepare import prepare as run
    from sitenet.sources import open_source

    reporter = _reporter()
    source = open_source(data, target)
    out.parent.mkdir(parents=True, exist_ok=True)
    how = Preparation(primitive, disorder)
    with reporter.bar("reading structures", len(source)) as advance:
        count, left_out = run(source, out, None, how, workers, advance)
    listed = out.with_name(f"{out.stem}.left_out.csv")
    write_left_out(left_out, listed)
    if as_json:
        facts = {"out": str(out), "crystals": count, "left_out": len(left_out)}
        print(json.dumps(facts))
        return
    print(f"{out}: {count} crystals, {len(left_out)} left out (reasons in {listed})")


@app.command()
@with_fields(TrainingConfig, SiteNetConfig)
def train(
    data: Annotated[
        Path, typer.Argument(help="Folder with a CSV, CSV, Parquet, JSON, or a prepared dataset.")
    ],
    out: Annotated[Path, typer.Option("--out", help="Run folder; an unfinished run goes on.")],
    target: Target = None,
    config: Annotated[
        str, typer.Option(help="Named config (paper, ...) or YAML file, published ones too.")
    ] = "paper",
    classes: Annotated[
        list[str] | None, typer.Option("--class", help="A target that is 0 or 1; repeatable.")
    ] = None,
    fold: Annotated[
        str | None, typer.Option(help="Value of the split column whose rows are the test.")
    ] = None,
    split_column: Annotated[
        str | None, typer.Option(help="Column that says fold or split of a row.")
    ] = None,
    start: Annotated[
        str | None, typer.Option(help="Fine-tune this model: a file, or a shipped name.")
    ] = None,
    freeze: Annotated[
        bool, typer.Option(help="Learn only the layers after pooling; needs --start.")
    ] = False,
    device: Device = "cpu",
    workers: Workers = None,
    primitive: Primitive = True,
    disorder: Disorder = "error",
    as_json: Json = False,
    changes: dict[str, Any] | None = None,
) -> None:
    """Train a model; leaves model.safetensors, predictions.csv, metrics and plots in a folder."""
    from sitenet.train import train as run

    result = run(
        data,
        out,
        config,
        target=target or None,
        classes=tuple(classes or ()),
        fold=fold,
        split_column=split_column,
        start=start,
        freeze=freeze,
        primitive=primitive,
        disorder=disorder,
        device=device,
        workers=workers,
        reporter=_reporter(),
        **(changes or {}),
    )
    print_scores(result.scores, result.model.targets, as_json)
    talk.print(f"everything is in {out}", highlight=False, soft_wrap=True)


@app.command()
def predict(
    structures: Annotated[
        list[Path], typer.Argument(help="CIFs, folders of CIFs, or tables of crystals.")
    ],
    model: ModelOption = "mp-gap",
    out: Annotated[
        Path | None, typer.Option("--out", help="CSV to write; goes on where it was stopped.")
    ] = None,
    published: Annotated[
        Path | None, typer.Option(help="A published Site-Net checkpoint, instead of --model.")
    ] = None,
    config: Annotated[
        str, typer.Option(help="Config of the published checkpoint: a name or a YAML file.")
    ] = "paper",
    coverage: Annotated[float, typer.Option(help="Part of true values the interval holds.")] = 0.9,
    max_sites: Annotated[
        int | None, typer.Option(help="Largest supercell in sites; default: the model's.")
    ] = None,
    merge: Annotated[bool, typer.Option(help="Compute equal pairs once.")] = True,
    device: Device = "cpu",
    workers: Workers = None,
    primitive: Primitive = True,
    disorder: Disorder = "error",
    as_json: Json = False,
) -> None:
    """Predict properties; prints a table, or writes a CSV of any number of crystals."""
    from sitenet.batch import predict_sources
    from sitenet.checkpoint import from_published, load
    from sitenet.processes import choose_device

    device = choose_device(device)
    net = load(model) if published is None else from_published(config, published)
    outcome = predict_sources(
        net.to(device).eval(),
        structures,
        out,
        coverage=coverage,
        max_sites=max_sites,
        merge=merge,
        primitive=primitive,
        disorder=disorder,
        workers=workers,
        reporter=_reporter(),
    )
    if out is None:
        print_rows(outcome.header, outcome.rows, as_json)
    elif as_json:
        facts = {"out": str(out), "predicted": outcome.count, "left_out": outcome.reasons}
        print(json.dumps(facts))
    if outcome.left_out:
        talk.print(outcome.summary(), highlight=False, markup=False, soft_wrap=True)
    if outcome.count == 0:
        raise typer.Exit(1)


@app.command()
def evaluate(
    data: Annotated[Path, typer.Argument(help="Crystals with known properties, as for train.")],
    model: ModelOption = "mp-gap",
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for predictions.csv, plots.")
    ] = None,
    target: Target = None,
    device: Device = "cpu",
    workers: Workers = None,
    primitive: Primitive = True,
    disorder: Disorder = "error",
    as_json: Json = False,
) -> None:
    """Predict crystals whose properties are known, and print the errors."""
    from sitenet.batch import evaluate_data
    from sitenet.checkpoint import load
    from sitenet.processes import choose_device

    reporter = _reporter()
    net = load(model).to(choose_device(device)).eval()
    predictions, left_out = evaluate_data(
        net, data, target or None, primitive, disorder, workers, reporter
    )
    if out is not None:
        from sitenet.data import write_left_out

        out.mkdir(parents=True, exist_ok=True)
        predictions.write(out / "predictions.csv")
        write_left_out(left_out, out / "left_out.csv")
        predictions.plot(out, [], reporter)
    if left_out:
        first = left_out[0]
        reporter.say(f"{len(left_out)} left out; the first: {first.where}: {first.reason}")
    print_scores(predictions.scores(), net.targets, as_json)


def print_scores(scores: dict, targets: Sequence[Any], as_json: bool) -> None:
    """Errors by split and target, on standard output."""
    if as_json:
        print(json.dumps(scores))
        return
    units = {t.name: t.unit for t in targets}
    for split, by_target in scores.items():
        for name, values in by_target.items():
            unit = f" {units[name]}" if units.get(name) else ""
            crystals = values["crystals"]
            if "mae" not in values:
                rest = ", ".join(f"{k} {v:.3f}" for k, v in values.items() if k != "crystals")
                print(f"{split}: {name}: {rest} on {crystals} crystals")
                continue
            line = f"{split}: {name}: MAE {values['mae']:.3f}{unit}"
            for key, title in (("mae_of_mean", "mean"), ("mae_of_median", "median")):
                if key in values:
                    line += f", {values[key]:.3f}{unit} if predicting the {title}"
            line += f"; RMSE {values['rmse']:.3f}, R2 {values['r2']:.3f} on {crystals} crystals"
            if "coverage" in values:
                line += f"; {values['coverage']:.0%} within ±{values['interval']:.3f}{unit}"
            print(line)


def print_rows(header: Sequence[str], rows: Sequence[Sequence[str]], as_json: bool) -> None:
    """A table on standard output: for people on a terminal, CSV in a pipe."""
    if as_json:
        print(json.dumps([dict(zip(header, row, strict=True)) for row in rows]))
    elif sys.stdout.isatty():
        table = Table(box=None, pad_edge=False)
        for k, name in enumerate(header):
            table.add_column(name, justify="left" if k == 0 else "right")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
    else:
        import csv

        csv.writer(sys.stdout, lineterminator="\n").writerows([header, *rows])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; errors are a line, not a traceback, unless --debug."""
    from sitenet.crystal import CifError

    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    try:
        app(arguments, standalone_mode=True)
    except KeyboardInterrupt as error:
        talk.print(f"stopped: {error}" if str(error) else "stopped", highlight=False, markup=False, soft_wrap=True)
        sys.exit(1)
    except (ValueError, OSError, RuntimeError, ImportError, CifError) as error:
        if debug:
            raise
        talk.print(f"error: {error}", highlight=False, markup=False, style="red", soft_wrap=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
