"""The command line: ``sitenet --help``.

Data goes to standard output, talk and progress to standard error. Exit status: 0, 1 where a job
failed, 2 where the command is wrong.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sitenet.cli import inference as cli_use
from sitenet.cli import options
from sitenet.cli import training as cli_learn
from sitenet.cli.output import print_json, say


class _Commands(TyperGroup):
    """Turns the errors of a command into a line and exit status 1, unless --debug."""

    def invoke(self, context: Any) -> Any:
        try:
            return super().invoke(context)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except KeyboardInterrupt as error:
            say(f"stopped: {error}" if str(error) else "stopped")
        except (ValueError, OSError, RuntimeError, ImportError) as error:
            if context.params["debug"]:
                raise
            say(f"error: {error}", style="red")
        raise typer.Exit(1)


app = typer.Typer(
    cls=_Commands,
    help="Properties of crystals from their structure files.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _app(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    if version:
        import sitenet

        print(sitenet.__version__)
        raise typer.Exit


@app.command()
def info(as_json: options.Json = False) -> None:
    """Print version, SIMD level, threads, torch and CUDA."""
    from sitenet.system.environment import info as find

    facts = find()
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        print(f"{name:13} {'-' if value is None else value}")


for command in (
    cli_learn.prepare,
    cli_learn.train,
    cli_use.predict,
    cli_use.evaluate,
    cli_use.explain,
    cli_use.report,
    cli_learn.tune,
    cli_learn.matbench,
):
    app.command()(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; errors are a line, not a traceback, unless --debug."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if "--debug" in given:  # wherever it stands
        given = ["--debug", *(a for a in given if a != "--debug")]
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
        app(given, prog_name="sitenet")
