"""The command line: ``sitenet --help``.

Data go to standard output, messages and progress to standard error. Exit status: 0, 1 if a job
failed, 2 if the command was wrong.
"""

from __future__ import annotations

import gc
import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sitenet.cli import encode, inference, options, serve, training
from sitenet.cli.output import print_json, say


class _Commands(TyperGroup):
    """Turn the errors of a command into one line and exit status 1, unless --debug."""

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
    rich_markup_mode=None,  # its help needs more than 80 columns
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


@app.command(cls=options.Command)
def info(as_json: options.Json = False) -> None:
    """Print the version, SIMD level, threads, torch and CUDA."""
    from sitenet.system.environment import info as describe

    facts = describe()
    if as_json:
        print_json(facts)
        return
    for name, value in facts.items():
        print(f"{name:13} {'-' if value is None else value}")


for command in (
    training.prepare,
    training.train,
    inference.predict,
    encode.encode,
    inference.screen,
    inference.evaluate,
    inference.explain,
    inference.report,
    training.tune,
    training.crossval,
    training.matbench,
    serve.serve,
):
    app.command(cls=options.Command)(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit; errors are a line, not a traceback, unless --debug."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if "--debug" in words:  # in any position
        words = ["--debug", *(word for word in words if word != "--debug")]
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_, **__: say(f"warning: {message}")
        try:
            app(words, prog_name="sitenet")
        except BrokenPipeError:  # the reader of standard output, such as head, has gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        finally:
            gc.freeze()  # at exit, Python need not look through all objects of torch: 0.15 s
