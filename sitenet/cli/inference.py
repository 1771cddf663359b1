"""Commands that use a model: predict, evaluate, explain, report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sitenet.cli import options
from sitenet.cli.options import configured
from sitenet.cli.output import (
    print_columns,
    print_json,
    print_rows,
    print_scores,
    reporter,
)
from sitenet.system.distributed import is_first


def predict(
    structures: options.Structures,
    model: options.Model = "mp-gap",
    out: Annotated[
        Path | None, typer.Option("--out", help="CSV to write; goes on where it was stopped.")
    ] = None,
    published: Annotated[
        Path | None,
        typer.Option(exists=True, help="A published Site-Net checkpoint, instead of --model."),
    ] = None,
    config: Annotated[
        str, typer.Option(help="Config of the published checkpoint: a name or a YAML file.")
    ] = "paper",
    coverage: Annotated[float, typer.Option(help="Part of true values the interval holds.")] = 0.9,
    max_sites: options.MaxSites = None,
    merge: options.Merge = True,
    device: options.Device = "cpu",
    workers: options.Workers = None,
    primitive: options.Primitive = True,
    disorder: options.Disorder = "error",
    as_json: options.Json = False,
) -> None:
    """Predict properties; prints a table, or writes a CSV of any number of crystals."""
    from sitenet.inference.predict_files import predict_files
    from sitenet.model.checkpoint import load
    from sitenet.published.checkpoint import from_published
    from sitenet.system.devices import choose_device
    from sitenet.system.distributed import process_group, world

    place = choose_device(device)
    net = load(model) if published is None else from_published(configured(config, {}), published)
    with process_group(place):
        if world() > 1 and out is None:
            raise typer.BadParameter("several processes need a file to write", param_hint="--out")
        outcome = predict_files(
            net.to(place).eval(),
            structures,
            out,
            coverage=coverage,
            max_sites=max_sites,
            merge=merge,
            primitive=primitive,
            disorder=disorder,
            workers=workers,
            reporter=reporter(),
        )
    if not is_first():
        return
    if out is None:
        print_rows(outcome.header, outcome.rows, as_json)
    elif as_json:
        print_json({"out": str(out), "predicted": outcome.count, "left_out": outcome.reasons})
    if outcome.left_out:
        reporter().say(outcome.summary())
    if outcome.count == 0:
        raise typer.Exit(1)


def evaluate(
    data: options.Data,
    model: options.Model = "mp-gap",
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for predictions.csv, plots.")
    ] = None,
    target: options.Target = None,
    device: options.Device = "cpu",
    workers: options.Workers = None,
    primitive: options.Primitive = True,
    disorder: options.Disorder = "error",
    as_json: options.Json = False,
) -> None:
    """Predict crystals whose properties are known, and print the errors."""
    from sitenet.data.dataset import write_left_out
    from sitenet.inference.evaluate import evaluate
    from sitenet.model.checkpoint import load
    from sitenet.system.devices import choose_device

    net = load(model).to(choose_device(device)).eval()
    predictions, left_out = evaluate(
        net, data, target or None, primitive, disorder, workers, reporter()
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        predictions.write(out / "predictions.csv")
        write_left_out(left_out, out / "left_out.csv")
        predictions.plot(out, [], reporter())
    _say_left_out(left_out)
    print_scores(predictions.scores(), net.targets, as_json)


def explain(
    structures: options.Structures,
    model: options.Model = "mp-gap",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="A table (.csv), figure (.png, .svg, .pdf), report on one crystal (.html), or "
            "folder for the tables and the figures: attention by distance, and parity where "
            "properties are known.",
        ),
    ] = None,
    rows: Annotated[
        Literal["pairs", "sites", "elements", "distances", "crystals"] | None,
        typer.Option(
            help="What a row of the table is; default: elements of one crystal, crystals of many."
        ),
    ] = None,
    max_sites: options.MaxSites = None,
    merge: options.Merge = True,
    device: options.Device = "cpu",
    primitive: options.Primitive = True,
    disorder: options.Disorder = "error",
    as_json: options.Json = False,
) -> None:
    """Say what a model attends to, in a crystal or in many."""
    from sitenet.inference.explain_files import explain_files
    from sitenet.model.checkpoint import load
    from sitenet.system.devices import choose_device
    from sitenet.system.files import write_columns

    net = load(model).to(choose_device(device)).eval()
    found = explain_files(
        net,
        structures,
        max_sites=max_sites,
        merge=merge,
        primitive=primitive,
        disorder=disorder,
        reporter=reporter(),
    )
    _say_left_out(found.left_out)
    one = found.single
    shown = found.explanation if one is None or rows == "crystals" else one
    rows = rows or ("crystals" if one is None else "elements")
    if out is None:
        print_columns(shown.columns(rows), as_json)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    match out.suffix.lower():
        case "":
            found.write(out, reporter())
        case ".csv":
            write_columns(out, shown.columns(rows))
        case ".html":
            if one is None:
                raise ValueError("an HTML report is on one crystal; name a folder for many")
            from sitenet.report.report import crystal_report

            settings = {"max_sites": max_sites, "merge": merge, "primitive": False}
            crystal_report(net, one.crystal, out, **settings)
        case _:
            shown.plot(out)
    names = found.explanation.names
    _say_written(out, as_json, crystals=len(names), left_out=len(found.left_out))


def report(
    run: Annotated[
        Path, typer.Argument(exists=True, file_okay=False, help="The folder of a training run.")
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="HTML file; default: report.html in the folder.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Write one HTML page on a training run, which opens without a network."""
    from sitenet.report.report import run_report

    out = out or run / "report.html"
    run_report(run, out)
    _say_written(out, as_json)


def _say_left_out(left_out: Sequence[Any]) -> None:
    if left_out:
        first = left_out[0]
        reporter().say(f"{len(left_out)} left out; the first: {first.where}: {first.reason}")


def _say_written(out: Path, as_json: bool, **facts: Any) -> None:
    if as_json:
        print_json({"out": str(out), **facts})
    else:
        reporter().say(f"written: {out}")
