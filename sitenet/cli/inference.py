"""Commands that use a trained model: predict, evaluate, explain, report."""

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
        Path | None, typer.Option("--out", help="CSV file to write; an interrupted run resumes.")
    ] = None,
    published: Annotated[
        Path | None,
        typer.Option(
            exists=True, help="Checkpoint of the published Site-Net, used instead of --model."
        ),
    ] = None,
    config: Annotated[
        str, typer.Option(help="Config of the published checkpoint, by name or as a YAML file.")
    ] = "paper",
    coverage: Annotated[
        float, typer.Option(help="Fraction of true values that the intervals should contain.")
    ] = 0.9,
    neighbours: options.Neighbours = 0,
    max_sites: options.MaxSites = None,
    merge: options.Merge = True,
    device: options.Device = "cpu",
    workers: options.Workers = None,
    primitive: options.Primitive = None,
    disorder: options.Disorder = None,
    as_json: options.Json = False,
) -> None:
    """Predict properties of structures.

    Prints a table, or writes a CSV file of any number of crystals with --out.
    """
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
            neighbours=neighbours,
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
    if summary := outcome.summary():
        reporter().say(summary)
    if outcome.count == 0:
        raise typer.Exit(1)


def screen(
    structures: options.Structures,
    where: Annotated[
        str,
        typer.Option(
            metavar="CONDITION",
            help="Condition to meet: NAME > X, NAME >= X, NAME < X, NAME <= X or NAME between X "
            "and Y, joined with 'and'; NAME is a property that the model predicts.",
        ),
    ],
    model: options.Model = "mp-gap",
    out: Annotated[
        Path, typer.Option("--out", help="Folder for ranking.csv, left_out.csv and report.html.")
    ] = Path("screening"),
    coverage: Annotated[
        float, typer.Option(help="Fraction of true values that the intervals should contain.")
    ] = 0.9,
    neighbours: options.Neighbours = 0,
    report: Annotated[bool, typer.Option(help="Write report.html, which needs plotly.")] = True,
    max_sites: options.MaxSites = None,
    device: options.Device = "cpu",
    workers: options.Workers = None,
    primitive: options.Primitive = None,
    disorder: options.Disorder = None,
    as_json: options.Json = False,
) -> None:
    """Rank structures by the probability that they meet a condition.

    Prints the first ten, and writes all of them and a report into a folder.
    """
    from sitenet.inference.screen import screen
    from sitenet.model.checkpoint import load
    from sitenet.report.packages import plotly
    from sitenet.system.devices import choose_device
    from sitenet.system.files import writable_folder

    if report:
        plotly("graph_objects")
    writable_folder(out)
    ranking = screen(
        load(model).to(choose_device(device)).eval(),
        structures,
        where,
        coverage=coverage,
        neighbours=neighbours,
        max_sites=max_sites,
        primitive=primitive,
        disorder=disorder,
        workers=workers,
        reporter=reporter(),
    )
    ranking.write(out, report)
    _say_left_out(ranking.left_out)
    print_rows(ranking.header, ranking.rows[:10], as_json)
    reporter().say(f"{ranking.summary()}\nwritten: {out}")
    if not ranking.rows:
        raise typer.Exit(1)


def evaluate(
    data: options.Data,
    model: options.Model = "mp-gap",
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder for predictions.csv and plots.")
    ] = None,
    target: options.Target = None,
    device: options.Device = "cpu",
    workers: options.Workers = None,
    primitive: options.Primitive = None,
    disorder: options.Disorder = None,
    as_json: options.Json = False,
) -> None:
    """Measure the error on known properties."""
    from sitenet.data.dataset import write_left_out
    from sitenet.inference.evaluate import evaluate
    from sitenet.model.checkpoint import load
    from sitenet.system.devices import choose_device
    from sitenet.system.files import writable_folder

    if out is not None:
        writable_folder(out)
    net = load(model).to(choose_device(device)).eval()
    predictions, left_out = evaluate(
        net, data, target or None, primitive, disorder, workers, reporter()
    )
    if out is not None:
        predictions.write(out / "predictions.csv")
        write_left_out(left_out, out / "left_out.csv")
        predictions.plot(out, [], reporter())
    _say_left_out(left_out)
    if learned := predictions.count_learned():
        reporter().say(
            f"warning: the model was trained on {learned} of these {len(predictions.ids)} crystals "
            "(column learned_from); their errors do not show how well it predicts new ones"
        )
    print_scores(predictions.scores(), net.targets, as_json)


def explain(
    structures: options.Structures,
    model: options.Model = "mp-gap",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="File to write: a table (.csv), a figure (.png, .svg, .pdf), a report on one "
            "crystal (.html), or a folder for all tables and figures.",
        ),
    ] = None,
    rows: Annotated[
        Literal["pairs", "sites", "elements", "distances", "crystals"] | None,
        typer.Option(
            help="What a row of the table stands for  [default: elements for one crystal, crystals "
            "for several]",
        ),
    ] = None,
    max_sites: options.MaxSites = None,
    merge: options.Merge = True,
    device: options.Device = "cpu",
    primitive: options.Primitive = None,
    disorder: options.Disorder = None,
    as_json: options.Json = False,
) -> None:
    """Show which atoms a model attends to, and at which distances."""
    from sitenet.inference.explain_files import explain_files
    from sitenet.model.checkpoint import load
    from sitenet.report.packages import check_format
    from sitenet.system.devices import choose_device
    from sitenet.system.files import writable_file, writable_folder, write_columns

    if out is not None:
        check_format(out)
        (writable_file if out.suffix else writable_folder)(out)
    net = load(model).to(choose_device(device)).eval()
    explained = explain_files(
        net,
        structures,
        max_sites=max_sites,
        merge=merge,
        primitive=primitive,
        disorder=disorder,
        reporter=reporter(),
    )
    _say_left_out(explained.left_out)
    one = explained.single
    shown = explained.explanation if one is None or rows == "crystals" else one
    rows = rows or ("crystals" if one is None else "elements")
    if out is None:
        print_columns(shown.columns(rows), as_json)
        return
    match out.suffix.lower():
        case "":
            explained.write(out, reporter())
        case ".csv":
            write_columns(out, shown.columns(rows))
        case ".html":
            if one is None:
                raise ValueError("an HTML report is on one crystal; name a folder for many")
            from sitenet.report.crystal_page import crystal_report

            settings = {"max_sites": max_sites, "merge": merge, "primitive": False}
            crystal_report(net, one.crystal, out, **settings)
        case _:
            shown.plot(out)
    names = explained.explanation.names
    _say_written(out, as_json, crystals=len(names), left_out=len(explained.left_out))


def report(
    run: Annotated[
        Path,
        typer.Argument(
            exists=True, file_okay=False, metavar="RUN", help="Folder of a training run."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", help="HTML file to write  [default: report.html in the run folder]"),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Write a self-contained HTML page about a training run."""
    from sitenet.report.run_page import run_report

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
