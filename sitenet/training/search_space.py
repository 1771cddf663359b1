"""The settings that a search may vary: fields of a config with their choices or ranges."""

from __future__ import annotations

import json
import typing
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from sitenet.config import SiteNetConfig, TrainingConfig

if TYPE_CHECKING:
    import optuna

SPACE: dict[str, Any] = {
    "learning_rate": {"low": 2e-4, "high": 4e-3, "log": True},
    "weight_decay": {"low": 1e-6, "high": 1e-1, "log": True},
    "batch_crystals": [8, 16, 32, 64],
    "schedule": ["constant", "cosine", "onecycle"],
    "ema": [0.0, 0.99, 0.999],
    "blocks": {"low": 1, "high": 4},
    "heads": {"low": 2, "high": 6},
    "site_dim": [16, 30, 48],
    "interaction_dim": [8, 16, 24],
    "hidden": [[64], [128], [225]],
}


def read_space(space: str | Path | Mapping[str, Any] | None) -> dict[str, Any]:
    """Check a space: field -> list of choices, or low, high and log.

    Raises:
        ValueError: The config has no such field, or the values are neither of the two.
    """
    where, space = "space", SPACE if space is None else space
    if not isinstance(space, Mapping):
        where = str(space)
        try:
            space = yaml.safe_load(Path(space).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{where} is not a YAML file: {error}") from None
    if not isinstance(space, Mapping) or not space:
        raise ValueError(f"{where} must hold `field: [choice, ...]` or `field: {{low, high}}`")
    kinds = _kinds()
    checked: dict[str, Any] = {}
    for name, values in space.items():
        if name not in kinds:
            raise ValueError(f"{where}: unknown field {name!r}")
        if isinstance(values, list) and values:
            checked[name] = values
        elif isinstance(values, Mapping) and {"low", "high"} <= set(values) <= _RANGE:
            checked[name] = _range(values, kinds[name], f"{where}: {name}")
        else:
            raise ValueError(f"{where}: {name} must be a list, or low and high, got {values!r}")
    return checked


_RANGE = {"low", "high", "log"}


def _range(values: Mapping[str, Any], kind: Any, where: str) -> dict[str, Any]:
    """Check a range of numbers of one kind."""
    if kind not in (int, float):
        raise ValueError(f"{where} is no number: give a list of choices")
    try:
        low, high = (kind(float(values[end])) for end in ("low", "high"))  # YAML reads 1e-4 as text
    except (TypeError, ValueError):
        raise ValueError(f"{where}: low and high must be numbers, got {dict(values)}") from None
    if not low < high:
        raise ValueError(f"{where}: low must be below high, got {low}, {high}")
    return {"low": low, "high": high, "log": bool(values.get("log", False))}


def _kinds() -> dict[str, Any]:
    """The type of every field of a config."""
    kinds = typing.get_type_hints(SiteNetConfig) | typing.get_type_hints(TrainingConfig)
    names = {f.name for cls in (SiteNetConfig, TrainingConfig) for f in fields(cls)}
    return {name: kinds[name] for name in names - {"training", "members", "valid", "test", "seed"}}


def suggest(trial: optuna.Trial, name: str, choices: Any) -> Any:
    if isinstance(choices, list):
        return json.loads(trial.suggest_categorical(name, [json.dumps(x) for x in choices]))
    suggest = trial.suggest_int if isinstance(choices["low"], int) else trial.suggest_float
    return suggest(name, choices["low"], choices["high"], log=choices["log"])


def values_of(trial: optuna.trial.FrozenTrial, space: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a trial, as the config has them."""
    return {
        name: json.loads(x) if isinstance(space[name], list) else x
        for name, x in trial.params.items()
    }
