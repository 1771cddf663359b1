"""Dataclass fields with a help text, a unit and a range, and the checks that follow from them.

The annotation of a field is its type: ``int``, ``float``, ``bool``, a ``Literal`` of choices, a
tuple of one of these, or an optional one. The command line builds its options from the same fields.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import typing
from collections.abc import Iterable, Mapping
from typing import Any, Literal


def setting(
    default: Any,
    help: str,
    *,
    unit: str = "",
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
) -> Any:
    """A dataclass field with a help text.

    Args:
        default: the default value.
        help: one sentence without its final dot, understood without its neighbours.
        unit: unit of the value, as in "angstrom".
        least: smallest value allowed; ``above`` excludes the bound itself.
        most: largest value allowed; ``below`` excludes the bound itself.
        above: bound that the value must exceed.
        below: bound that the value must stay under.
    """
    limits = {"least": least, "most": most, "above": above, "below": below}
    return dataclasses.field(default=default, metadata={"help": help, "unit": unit, **limits})


def field_types(cls: type) -> dict[str, Any]:
    """The annotated type of every field of a dataclass."""
    if cls not in _TYPES:
        hints = typing.get_type_hints(cls)
        _TYPES[cls] = {f.name: hints[f.name] for f in dataclasses.fields(cls)}
    return _TYPES[cls]


_TYPES: dict[type, dict[str, Any]] = {}


def choices_of(kind: Any) -> tuple[Any, ...]:
    """The choices of a Literal type, optional or not; () for other types."""
    kind = required(kind)
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def required(kind: Any) -> Any:
    """A type without its None."""
    parts = [part for part in typing.get_args(kind) if part is not type(None)]
    return parts[0] if len(parts) == 1 and type(None) in typing.get_args(kind) else kind


def check_fields(instance: Any) -> None:
    """Check every field of a frozen dataclass against its type and range.

    Numbers that YAML reads as text, such as ``1e-3``, become numbers, and lists become tuples.

    Raises:
        ValueError: a value of the wrong type or out of range, by the name of its field.
    """
    types = field_types(type(instance))
    for f in dataclasses.fields(instance):
        kind, value = types[f.name], getattr(instance, f.name)
        if "help" in f.metadata:
            object.__setattr__(instance, f.name, _checked(f.name, value, kind, f.metadata))


def _checked(name: str, value: Any, kind: Any, limits: Mapping[str, Any]) -> Any:
    if kind != required(kind):
        if value is None:
            return None
        kind = required(kind)
    choices = choices_of(kind)
    if choices:
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")
        return value
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)[0]
        least = 0 if choices_of(inner) else 1
        if not isinstance(value, (list, tuple)) or not least <= len(value) <= 64:
            raise ValueError(f"{name} must be a list of {least} to 64 values, got {value!r}")
        return tuple(_checked(name, each, inner, limits) for each in value)
    if kind is bool:
        if not isinstance(value, bool):
            raise ValueError(f"{name} must be true or false, got {value!r}")
        return value
    if kind in (int, float):
        return _number(name, value, kind, limits)
    if not isinstance(value, kind):
        raise ValueError(f"{name} must be of type {kind.__name__}, got {value!r}")
    return value


def _number(name: str, value: Any, kind: type, limits: Mapping[str, Any]) -> Any:
    number = value
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            number = None
    if kind is int and isinstance(number, float) and number.is_integer():
        number = int(number)
    allowed = (int,) if kind is int else (int, float)
    if isinstance(number, bool) or not isinstance(number, allowed) or not math.isfinite(number):
        article = "an integer" if kind is int else "a number"
        raise ValueError(f"{name} must be {article}, got {value!r}")
    if not (limits["least"] <= number <= limits["most"]):
        bound = "at least" if number < limits["least"] else "at most"
        limit = limits["least"] if number < limits["least"] else limits["most"]
        raise ValueError(f"{name} must be {bound} {limit:g}, got {value}")
    if not limits["above"] < number < limits["below"]:
        word = "above" if number <= limits["above"] else "below"
        raise ValueError(f"{name} must be {word} {limits[word]:g}, got {value}")
    return kind(number)


def check_keys(values: Mapping[Any, Any], names: Iterable[str], where: str) -> None:
    """Raise ValueError if a key is not among the names, with the nearest one as a hint."""
    names = set(names)
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown key {key!r} in {where}{hint}")
