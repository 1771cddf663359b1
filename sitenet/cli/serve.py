"""The command that serves a web page."""

from __future__ import annotations

from typing import Annotated

import typer

from sitenet.cli import options
from sitenet.cli.output import say
from sitenet.system.model_files import find_model

_MODELS = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        help="Model file, run folder or name of shipped weights; repeat for several  [default: all "
        "shipped weights]",
    ),
]


def serve(
    model: _MODELS = None,
    host: Annotated[
        str,
        typer.Option(help="Address to listen on; others than loopback let other machines in."),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    device: options.Device = "cpu",
    megabytes: Annotated[int, typer.Option(min=1, help="Largest request, in megabytes.")] = 20,
    structures: Annotated[int, typer.Option(min=1, help="Most structures per request.")] = 2000,
    sites: Annotated[int, typer.Option(min=1, help="Most sites of a structure's cell.")] = 1000,
    seconds: Annotated[int, typer.Option(min=1, help="Longest request, in seconds.")] = 60,
) -> None:
    """Serve a page to drop structure files on, and a JSON API."""
    for name in model or ():
        find_model(name)
    from sitenet.serve.run import LOOPBACK, make_server
    from sitenet.serve.uploads import Bounds
    from sitenet.system.devices import choose_device

    bounds = Bounds(megabytes=megabytes, structures=structures, sites=sites, seconds=seconds)
    server = make_server(model or (), host, port, choose_device(device), bounds)
    shown = f"[{host}]" if ":" in host else host
    say(f"serving http://{shown}:{port} until Ctrl-C")
    if host not in LOOPBACK:
        say("every machine that reaches this address can use the models", style="yellow")
    server.run()
