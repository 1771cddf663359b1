"""Options of the commands: those that several share, and those made from the config's fields."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from sitenet import config as configs
from sitenet.config import (
    DEFAULT_CONFIG,
    SiteNetConfig,
    TrainingConfig,
    config_names,
    load_config,
)
from sitenet.system.settings import choices_of, field_types, required


def _device(name: str) -> str:
    if name.partition(":")[0] not in ("cpu", "cuda"):
        raise typer.BadParameter(f"expected cpu, cuda or cuda:NUMBER, got {name!r}")
    return name


def _coverage(fraction: float) -> float:
    if not 0 < fraction < 1:
        raise typer.BadParameter(f"expected a fraction between 0 and 1, got {fraction:g}")
    return fraction


Data = Annotated[
    Path,
    typer.Argument(
        exists=True,
        metavar="DATA",
        help="Crystals with their properties: a folder of structure files with a CSV, a CSV, "
        "Parquet or JSON table, or a file written by sitenet prepare.",
    ),
]
Structures = Annotated[
    list[Path],
    typer.Argument(
        exists=True,
        metavar="FILE",
        help="Structure files, folders of them, or tables of crystals.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Target = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        metavar="COLUMN",
        help="Column of the property; repeat for several  [default: the only numeric column]",
    ),
]
Unit = Annotated[
    list[str] | None,
    typer.Option(
        "--unit",
        metavar="UNIT",
        help="Unit of the property, such as eV or S/cm; repeat in the order of --target  "
        "[default: what the column's name states]",
    ),
]
Classes = Annotated[
    list[str] | None,
    typer.Option(
        "--class", metavar="TARGET", help="Target with the values 0 and 1; repeat for several."
    ),
]
Log = Annotated[
    list[str] | None,
    typer.Option(
        "--log",
        metavar="TARGET",
        help="Positive target whose decimal logarithm is learned; repeat for several. Predictions "
        "are in its unit all the same.",
    ),
]
SplitColumn = Annotated[
    str | None,
    typer.Option(
        help="Column that names the split or fold of each row  [default: split or matbench_fold]"
    ),
]
_CONFIG_HELP = f"Config by name ({', '.join(config_names())}), or a YAML file."
Config = Annotated[str, typer.Option(help=_CONFIG_HELP, autocompletion=config_names)]
StartConfig = Annotated[
    str | None,
    typer.Option(
        "--config",
        help=f"{_CONFIG_HELP} With --start, it only says how to train.  [default: "
        f"{DEFAULT_CONFIG}, or what suits the model of --start]",
        autocompletion=config_names,
    ),
]
Start = Annotated[
    list[str] | None,
    typer.Option(
        "--start",
        metavar="MODEL",
        help="Fine-tune this model file or shipped model; repeat to fine-tune an ensemble, or name "
        "auto to choose among the weights that ship by the validation crystals.",
    ),
]
Freeze = Annotated[
    bool,
    typer.Option(
        "--freeze/--no-freeze", help="Train only the layers after pooling; needs --start."
    ),
]
Model = Annotated[
    str,
    typer.Option(
        "--model", help="Model file, run folder of sitenet train, or name of shipped weights."
    ),
]
Models = Annotated[
    list[str],
    typer.Option(
        "--model",
        help="Model file, run folder of sitenet train, or name of shipped weights; repeat for "
        "several in one table, or name all for all weights that ship.",
    ),
]
Coverage = Annotated[
    float,
    typer.Option(
        callback=_coverage,
        metavar="FRACTION",
        help="Fraction of true values that the intervals should contain.",
    ),
]
Neighbours = Annotated[
    int,
    typer.Option(
        min=0, help="Number of nearest training crystals to name, with their true values."
    ),
]
MaxSites = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Sites of the largest supercell; 0 uses the cell as it is  [default: the model's]",
    ),
]
Merge = Annotated[bool, typer.Option(help="Compute equal pairs once.")]
Device = Annotated[
    str, typer.Option(callback=_device, help="Device to run on: cpu, cuda or cuda:NUMBER.")
]
Workers = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Processes that read structures  [default: one per core, or one for few structures]",
    ),
]
Primitive = Annotated[
    bool | None,
    typer.Option(
        "--primitive/--no-primitive",
        help="Reduce every structure to its primitive cell first  [default: as in training]",
    ),
]
Disorder = Annotated[
    configs.Disorder | None,
    typer.Option(
        help="Refuse structures with partial occupancy, or average over it "
        " [default: as in training]"
    ),
]


PredictedDisorder = Annotated[
    configs.PredictedDisorder | None,
    typer.Option(
        "--disorder",
        help="Refuse structures with partial occupancy, average over it, or predict the mean over "
        "sampled ordered arrangements  [default: as in training]",
    ),
]
Samples = Annotated[
    int | None,
    typer.Option(min=1, help="Arrangements per structure, with --disorder sample  [default: 200]"),
]
Seed = Annotated[
    int | None,
    typer.Option(min=0, help="Seed of the arrangements, with --disorder sample  [default: 0]"),
]
ArrangementSites = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Sites of the largest supercell that arrangements are drawn in, with --disorder "
        "sample; 0 uses the cell as it is  [default: 40]",
    ),
]


def sampling(
    disorder: str | None, samples: int | None, seed: int | None, sites: int | None
) -> dict[str, Any]:
    """The options of sampling that the user set; without --disorder sample, a usage error."""
    values = {"samples": samples, "seed": seed, "sites": sites}
    chosen = {name: value for name, value in values.items() if value is not None}
    if chosen and disorder != "sample":
        raise typer.BadParameter("--samples, --seed and --arrangement-sites need --disorder sample")
    return chosen


class Command(TyperCommand):
    """A command whose help lists its options in sections, readable in 80 columns."""

    # Any: some versions of typer bring a click of their own.
    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is None:
                continue
            title = getattr(parameter, "rich_help_panel", None) or "Options"
            if parameter.param_type_name == "argument":
                title, record = "Arguments", (str(parameter.metavar), record[1])
            sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records, col_max=26)


def with_fields(
    *classes: type, leave_out: Sequence[str] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the fields of config classes as options of the same names. Those that the
    user sets arrive as the keyword argument ``changes``."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)
        hints = typing.get_type_hints(command, include_extras=True)
        parameters = [
            p.replace(annotation=hints[p.name], kind=inspect.Parameter.KEYWORD_ONLY)
            for p in signature.parameters.values()
            if p.name != "changes"
        ]
        taken = {p.name for p in parameters} | set(leave_out)
        fields = [f for cls in classes for f in _options_of(cls) if f.name not in taken]

        def run(**options: Any) -> None:
            values = {f.name: options.pop(f.name) for f in fields}
            command(**options, changes={k: v for k, v in values.items() if v is not None})

        parameters += fields
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        return run

    return decorate


def _options_of(cls: type) -> list[inspect.Parameter]:
    """The fields of a config class that hold one number, choice or switch, as options."""
    kinds = field_types(cls)
    title = cls.__name__.removesuffix("Config")
    panel = f"{title} settings (defaults: those of the config {DEFAULT_CONFIG})"
    options = []
    for f in dataclasses.fields(cls):
        kind = required(kinds[f.name])
        if kind not in (int, float, str, bool) and not choices_of(kind):
            continue
        flag = f"--{f.name.replace('_', '-')}"
        option = typer.Option(
            f"{flag}/--no-{flag[2:]}" if kind is bool else flag,
            help=help_of(f),
            show_default=False,
            rich_help_panel=panel,
        )
        annotation: Any = Annotated[kind | None, option]
        keyword = inspect.Parameter.KEYWORD_ONLY
        options.append(inspect.Parameter(f.name, keyword, default=None, annotation=annotation))
    return options


_DEFAULTS = load_config(DEFAULT_CONFIG)


def help_of(f: dataclasses.Field) -> str:
    """The help text of a field, with its unit and its value in the default config."""
    unit = f", in {f.metadata['unit']}" if f.metadata["unit"] else ""
    holder = _DEFAULTS if hasattr(_DEFAULTS, f.name) else _DEFAULTS.training
    match getattr(holder, f.name):
        case bool(value):
            default = "on" if value else "off"
        case float(value):
            default = f"{value:.4g}"
        case None:
            default = "none"
        case value:
            default = str(value)
    return f"{f.metadata['help']}{unit}  [default: {default}]"


def configured(config: str | None, changes: Mapping[str, Any] | None) -> SiteNetConfig:
    """The config, or the default one, with the changes made on the command line; a wrong one is a
    usage error."""
    try:
        return load_config(DEFAULT_CONFIG if config is None else config).replace(**changes or {})
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


ALL_FIELDS = (TrainingConfig, SiteNetConfig)
TRAINING = {f.name for f in dataclasses.fields(TrainingConfig)}
