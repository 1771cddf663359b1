"""What a model learns to predict: the scale of its targets, its decoder, its last activation."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

import sitenet
from sitenet.config import SiteNetConfig, TrainingConfig, config_names
from sitenet.data.dataset import Dataset
from sitenet.data.splits import Split
from sitenet.model.sitenet import SiteNet, Target


def targets_of(
    data: Dataset,
    parts: Split,
    classes: Sequence[str],
    logarithms: Sequence[str],
    config: TrainingConfig,
) -> list[Target]:
    """Targets with their units and, if ``scale_targets``, the scale of the training crystals.

    Args:
        data: The crystals.
        parts: Which of them train.
        classes: Targets that are 0 or 1.
        logarithms: Targets whose logarithm is learned.
        config: Settings of the training.

    Raises:
        ValueError: A class or logarithm does not exist or has other values than it may have, or
            no training crystal has a value.
    """
    unknown = [name for name in (*classes, *logarithms) if name not in data.names]
    if unknown:
        raise ValueError(f"no target {', '.join(unknown)}; there is {', '.join(data.names)}")
    if both := set(classes) & set(logarithms):
        raise ValueError(f"{min(both)} is a class: it has no logarithm")
    targets = []
    for k, name in enumerate(data.names):
        column = data.targets[:, k]
        values = column[parts.train][np.isfinite(column[parts.train])]
        if not len(values):
            raise ValueError(f"no training crystal has a value of {name}")
        if name in classes:
            wrong = column[np.isfinite(column) & (column != 0) & (column != 1)]
            if len(wrong):
                raise ValueError(f"{name} is a class: expected 0 or 1, got {wrong[0]:g}")
            targets.append(Target(name, kind="class"))
            continue
        target = Target(name, data.units[k], scale="log10" if name in logarithms else "linear")
        if name in logarithms and (wrong := column[column <= 0]).size:
            raise ValueError(
                f"{name} is learned as a logarithm: expected values above 0, got {wrong[0]:g}"
            )
        if config.scale_targets:
            values = target.learned(values)
            target = replace(target, mean=float(values.mean()), std=float(values.std()) or 1.0)
        targets.append(target)
    return targets


def same_properties(targets: Sequence[Target], others: Sequence[Target]) -> bool:
    """Whether two lists name the same properties, of the same kinds, whatever their means and
    standard deviations."""
    kinds = ([(t.name, t.kind, t.scale) for t in each] for each in (targets, others))
    return operator.eq(*kinds)


def rescaled_decoder(model: SiteNet, targets: Sequence[Target]) -> dict[str, torch.Tensor]:
    """The weights of a model's decoder, converted to the scale of these targets."""
    weight, bias = model.decoder.weight.detach().clone(), model.decoder.bias.detach().clone()
    for k, (old, new) in enumerate(zip(model.targets, targets, strict=True)):
        if old != new:
            weight[k] *= old.std / new.std
            bias[k] = (bias[k] * old.std + old.mean - new.mean) / new.std
    return {"decoder.weight": weight, "decoder.bias": bias}


def negative_targets(
    data: Dataset, parts: Split, classes: Sequence[str], logarithms: Sequence[str] = ()
) -> list[str]:
    """The targets, other than classes, with negative values, or logarithms, among the crystals
    that train or validate: their names, as for a message."""
    seen = data.targets[np.concatenate([parts.train, parts.valid]).astype(int)]
    negative = []
    for name, column in zip(data.names, seen.T, strict=True):
        if name in logarithms and (column < 1).any():
            negative.append(f"log10 of {name}")
        elif name not in classes and (column < 0).any():
            negative.append(name)
    return negative


def sets_last_activation(
    config: str | Path | Mapping[str, Any] | SiteNetConfig, changes: Mapping[str, Any]
) -> bool:
    """Whether the user chose the last activation, rather than a default or a named config.

    Args:
        config: As in ``load_config``, which has accepted it.
        changes: Fields of the config to change.
    """
    if "last_activation" in changes:
        return True
    if isinstance(config, SiteNetConfig):
        return config.last_activation not in ("identity", SiteNetConfig().last_activation)
    if isinstance(config, Mapping):
        values = config
    elif config in config_names():
        return False
    else:
        values = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    if "last_activation" in values or sitenet.is_published_config(values):
        return True
    return "base" in values and sets_last_activation(values["base"], {})
