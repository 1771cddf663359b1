"""Options of the commands: those that several share, and the fields of config classes."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from sitenet.config import SiteNetConfig, TrainingConfig, config_names, load_config


def _device(name: str) -> str:
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise typer.BadParameter(f"expected cpu, cuda or cuda:NUMBER, got {name!r}")
    return name


Data = Annotated[
    Path,
    typer.Argument(
        exists=True, help="Folder with a CSV, CSV, Parquet, JSON, or a prepared dataset."
    ),
]
Structures = Annotated[
    list[Path], typer.Argument(exists=True, help="CIFs, folders of CIFs, or tables of crystals.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Target = Annotated[
    list[str] | None,
    typer.Option("--target", help="Property to learn: a column; repeat for several."),
]
Classes = Annotated[
    list[str] | None, typer.Option("--class", help="A target that is 0 or 1; repeatable.")
]
SplitColumn = Annotated[str | None, typer.Option(help="Column that says fold or split of a row.")]
Config = Annotated[
    str,
    typer.Option(
        help="Named config (paper, ...) or YAML file, published ones too.",
        autocompletion=config_names,
    ),
]
Model = Annotated[
    str, typer.Option("--model", help="A model file, or the name of weights that ship.")
]
MaxSites = Annotated[
    int | None, typer.Option(min=0, help="Largest supercell in sites; default: the model's.")
]
Merge = Annotated[bool, typer.Option(help="Compute equal pairs once.")]
Device = Annotated[str, typer.Option(callback=_device, help="cpu or cuda.")]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Processes that read structures; default: all.")
]
Primitive = Annotated[bool, typer.Option(help="Find primitive cells first.")]
Disorder = Annotated[
    Literal["error", "average"], typer.Option(help="What to do about partial occupancy.")
]


def with_fields(
    *classes: type, leave_out: Sequence[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the fields of config classes as options of the same names, with the same
    help; those that are given arrive as the keyword argument ``changes``."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        # Of a function, Python 3.10 would wrap the hints of options that default to None.
        of_class = type("Hints", (), {"__annotations__": command.__annotations__})
        hints = typing.get_type_hints(of_class, command.__globals__, include_extras=True)
        parameters = [
            p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY)
            for p in signature.parameters.values()
            if p.name != "changes"
        ]
        taken = {p.name for p in parameters} | set(leave_out)
        fields = [f for cls in classes for f in _fields(cls) if f.name not in taken]

        def run(**options: Any) -> None:
            given = {f.name: options.pop(f.name) for f in fields}
            command(**options, changes={k: v for k, v in given.items() if v is not None})

        parameters += fields
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _fields(cls: type) -> list[inspect.Parameter]:
    """The numbers, words and switches among a config class's fields, as options."""
    kinds = typing.get_type_hints(cls)
    found = []
    for f in dataclasses.fields(cls):
        kind = kinds[f.name]
        given = [k for k in typing.get_args(kind) if k is not type(None)]
        kind = given[0] if len(given) == 1 else kind  # of a number that may be left out
        if kind not in (int, float, str, bool):
            continue
        flag = f"--{f.name.replace('_', '-')}"
        option = typer.Option(
            f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
            help=f"{f.metadata['help'][0].upper()}{f.metadata['help'][1:]}.",
            show_default=False,
            rich_help_panel=cls.__name__.removesuffix("Config") + " settings",
        )
        annotation: Any = Annotated[kind | None, option]  # type: ignore[valid-type]
        keyword = inspect.Parameter.KEYWORD_ONLY
        found.append(inspect.Parameter(f.name, keyword, default=None, annotation=annotation))
    return found


def configured(config: str, changes: Mapping[str, Any] | None) -> SiteNetConfig:
    """The config that a command was asked for; what is wrong with it is a usage error."""
    try:
        return load_config(config).replace(**changes or {})
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


ALL_FIELDS = (TrainingConfig, SiteNetConfig)
TRAINING = {f.name for f in dataclasses.fields(TrainingConfig)}
