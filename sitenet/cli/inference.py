"""Commands that use a trained model: predict, evaluate, explain, report."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sitenet.cli import options
from sitenet.cli.options import configured
from sitenet.cli.output import (
    print_columns,
    print_json,
    print_paragraphs,
    print_rows,
    print_scores,
    reporter,
)
from sitenet.report.packages import check_format
from sitenet.system.distributed import is_first
from sitenet.system.files import writable_file, writable_folder, write_columns
from sitenet.system.model_files import find_model, find_models

if TYPE_CHECKING:
    from sitenet.inference.chunked_job import Outcome
    from sitenet.inference.explain_files import Survey
    from sitenet.inference.explanation import Explanation
    from sitenet.model.ensemble import Model


def predict(
    structures: options.Structures,
    model: options.Models = ("mp-gap",),  # type: ignore[assignment]
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
    coverage: options.Coverage = 0.9,
    neighbours: options.Neighbours = 0,
    max_sites: options.MaxSites = None,
    merge: options.Merge = True,
    device: options.Device = "cpu",
    workers: options.Workers = None,
    primitive: options.Primitive = None,
    disorder: options.PredictedDisorder = None,
    samples: options.Samples = None,
    seed: options.Seed = None,
    arrangement_sites: options.ArrangementSites = None,
    as_json: options.Json = False,
) -> None:
    """Predict properties of structures.

    Prints a table, or writes a CSV file of any number of crystals with --out. Columns that several
    models have begin with the model's name.
    """
    settings = configured(config, {})
    if published is None:
        find_models(model)
    if out is not None:
        writable_file(out)
    from sitenet.inference.predict_files import predict_files
    from sitenet.inference.several import models_of
    from sitenet.published.checkpoint import from_published
    from sitenet.system.devices import choose_device
    from sitenet.system.distributed import process_group, world

    sampling = options.sampling(disorder, samples, seed, arrangement_sites)
    place = choose_device(device)
    nets = models_of(model) if published is None else {"": from_published(settings, published)}
    only = next(iter(nets.values())) if len(nets) == 1 else None
    for net in nets.values():
        net.to(place).eval()
    with process_group(place):
        if world() > 1 and out is None:
            raise typer.BadParameter("several processes need a file to write", param_hint="--out")
        outcome = predict_files(
            only or nets,
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
            **sampling,
        )
    if is_first():
        _show(outcome, nets, out, as_json)


def _show(outcome: Outcome, nets: Mapping[str, Model], out: Path | None, as_json: bool) -> None:
    """Print predictions, or what was written; exits with 1 if nothing could be predicted."""
    from sitenet.inference.several import named_targets
    from sitenet.inference.table_text import WIDTH, table_text

    if out is None and sys.stdout.isatty() and not as_json and outcome.results:
        width = shutil.get_terminal_size().columns
        targets = [target for each in named_targets(nets).values() for target in each]
        print(table_text(outcome.results, targets, max(width, WIDTH)))
    elif out is None:
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
    find_model(model)
    writable_folder(out)
    from sitenet.inference.screen import screen
    from sitenet.model.checkpoint import load
    from sitenet.report.packages import plotly
    from sitenet.system.devices import choose_device

    if report:
        plotly("graph_objects")
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
    disorder: options.PredictedDisorder = None,
    samples: options.Samples = None,
    seed: options.Seed = None,
    arrangement_sites: options.ArrangementSites = None,
    as_json: options.Json = False,
) -> None:
    """Measure the error on known properties."""
    find_model(model)
    if out is not None:
        writable_folder(out)
    from sitenet.data.dataset import write_left_out
    from sitenet.inference.evaluate import evaluate
    from sitenet.model.checkpoint import load
    from sitenet.system.devices import choose_device

    sampling = options.sampling(disorder, samples, seed, arrangement_sites)
    net = load(model).to(choose_device(device)).eval()
    predictions, left_out = evaluate(
        net, data, target or None, primitive, disorder, workers, reporter(), **sampling
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
    heads: Annotated[
        bool, typer.Option("--heads", help="Add a column per block and head to the table.")
    ] = False,
    substitute: Annotated[
        bool,
        typer.Option(
            "--substitute",
            help="Instead of attention, show how the prediction for one crystal changes with "
            "another element on a site, a missing site, and strain; added to a report (.html).",
        ),
    ] = False,
    max_sites: options.MaxSites = None,
    merge: options.Merge = True,
    device: options.Device = "cpu",
    primitive: options.Primitive = None,
    disorder: options.Disorder = None,
    as_json: options.Json = False,
) -> None:
    """Show which atoms a model attends to, and at which distances.

    On a terminal, a few sentences say what the table shows.
    """
    find_model(model)
    if substitute and out is not None and out.suffix.lower() not in (".csv", ".html"):
        raise typer.BadParameter("with --substitute, a .csv or .html file", param_hint="--out")
    if out is not None:
        check_format(out)
        (writable_file if out.suffix else writable_folder)(out)
    from sitenet.inference.explain_files import explain_files
    from sitenet.model.checkpoint import load
    from sitenet.system.devices import choose_device

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
    if substitute:
        _substitute(net, one, out, max_sites, merge, as_json)
        return
    shown = explained.explanation if one is None or rows == "crystals" else one
    has_summary = out is None and rows is None and not as_json and sys.stdout.isatty()
    rows = rows or ("crystals" if one is None else "elements")
    columns = shown.columns(rows) if heads else shown.narrow_columns(rows)
    if has_summary:
        print_paragraphs([_heading(explained), *explained.described.summary().splitlines(), ""])
    if out is None:
        print_columns(columns, as_json)
        return
    match out.suffix.lower():
        case "":
            explained.write(out, reporter())
        case ".csv":
            write_columns(out, columns)
        case ".html":
            if one is None:
                raise ValueError("an HTML report is on one crystal; name a folder for many")
            from sitenet.report.crystal_page import crystal_report

            crystal_report(net, one.crystal, out, max_sites=max_sites, merge=merge, primitive=False)
        case _:
            shown.plot(out)
    names = explained.explanation.names
    _say_written(out, as_json, crystals=len(names), left_out=len(explained.left_out))


def _substitute(
    net: Model,
    explanation: Explanation | None,
    out: Path | None,
    max_sites: int | None,
    merge: bool,
    as_json: bool,
) -> None:
    """Print or write what would change the prediction for an explained crystal."""
    from sitenet.inference.changes import what_changes
    from sitenet.report.crystal_page import crystal_report
    from sitenet.system.files import write_columns

    if explanation is None:
        raise ValueError("--substitute is for one crystal, got several")
    crystal = explanation.crystal
    if out is not None and out.suffix.lower() == ".html":
        crystal_report(
            net, crystal, out, substitute=True, max_sites=max_sites, merge=merge, primitive=False
        )
    else:
        changes = what_changes(net, crystal, max_sites=max_sites, primitive=False)
        if out is None:
            print_columns(changes.columns(), as_json)
            return
        write_columns(out, changes.columns())
    _say_written(out, as_json)


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


def _heading(explained: Survey) -> str:
    """What was explained, and what the model predicts for it."""
    from sitenet.data.units import titled
    from sitenet.inference.table_text import number_text

    one = explained.single
    if one is None:
        return f"{len(explained.explanation.names):,} crystals"
    values = (
        f"{titled(target.name, target.unit)} {number_text(float(value))}"
        for target, value in zip(one.targets, one.predicted, strict=True)
    )
    sites = len(one.crystal)
    formula = f"{one.crystal.reduced_formula}, {sites} site{'s' * (sites != 1)} in the cell"
    return f"{one.name} ({formula}): {', '.join(values)}"


def _say_left_out(left_out: Sequence[Any]) -> None:
    if left_out:
        first = left_out[0]
        reporter().say(f"{len(left_out)} left out; the first: {first.where}: {first.reason}")


def _say_written(out: Path, as_json: bool, **facts: Any) -> None:
    if as_json:
        print_json({"out": str(out), **facts})
    else:
        reporter().say(f"written: {out}")
