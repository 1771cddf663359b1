"""The command that encodes structures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sitenet.cli import options
from sitenet.cli.output import print_json, reporter
from sitenet.system.distributed import is_first
from sitenet.system.model_files import find_model


def encode(
    structures: options.Structures,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            help="File to write: .parquet, or .npz with the arrays ids and encodings; an "
            "interrupted run resumes.",
        ),
    ],
    model: options.Model = "mp-gap",
    max_sites: options.MaxSites = None,
    merge: options.Merge = True,
    device: options.Device = "cpu",
    workers: options.Workers = None,
    primitive: options.Primitive = None,
    disorder: options.Disorder = None,
    as_json: options.Json = False,
) -> None:
    """Write the vectors from which a model predicts, one per structure."""
    find_model(model)
    from sitenet.inference.encode import check_format, encode_files
    from sitenet.model.checkpoint import load
    from sitenet.system.devices import choose_device
    from sitenet.system.distributed import process_group

    check_format(out)
    place = choose_device(device)
    net = load(model)
    with process_group(place):
        outcome = encode_files(
            net.to(place).eval(),
            structures,
            out,
            max_sites=max_sites,
            merge=merge,
            primitive=primitive,
            disorder=disorder,
            workers=workers,
            reporter=reporter(),
        )
    if not is_first():
        return
    if as_json:
        print_json({"out": str(out), "encoded": outcome.count, "left_out": outcome.reasons})
    if summary := outcome.summary():
        reporter().say(summary)
    if outcome.count == 0:
        raise typer.Exit(1)
