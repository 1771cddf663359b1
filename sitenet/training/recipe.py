"""Settings of training that a config leaves open, and those of fine-tuning.

The rules come from the trials in ``bench/results/defaults.md``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from sitenet.config import DEFAULT_CONFIG, TrainingConfig, load_config

STEPS = 20  # optimiser steps per epoch, about, where batches may shrink
LEAST_BATCH, MOST_BATCH = 4, 64  # crystals
EPOCHS, CRYSTALS = 40, 3200  # a run over this many crystals takes this many epochs
MOST_EPOCHS = 300
FINE_TUNING = 1.5  # a start needs so many times fewer epochs


def batch_for(crystals: int) -> int:
    """Crystals per mini-batch: the power of two, from 4 to 64, that gives about 20 steps per
    epoch."""
    size = min(max(crystals / STEPS, LEAST_BATCH), MOST_BATCH)
    return 2 ** round(math.log2(size))


def epochs_for(crystals: int, has_start: bool) -> int:
    """Epochs: 40 from 3,200 crystals on, and for fewer ones more, in inverse proportion to the
    square root of their number; two thirds of that for fine-tuning."""
    epochs = EPOCHS * math.sqrt(CRYSTALS / max(crystals, 1))
    epochs = min(max(epochs, EPOCHS), MOST_EPOCHS)
    return round(epochs / FINE_TUNING if has_start else epochs)


def open_settings(training: TrainingConfig, crystals: int, has_start: bool) -> dict[str, Any]:
    """Choose the settings that follow the number of training crystals, unless the config sets them.

    Args:
        training: As the config and the user set it.
        crystals: Number of training crystals.
        has_start: Whether training begins from a model.

    Returns:
        ``batch_crystals`` and ``epochs``, each only where it is open.
    """
    chosen: dict[str, Any] = {}
    if not training.batch_sites and training.batch_crystals is None:
        chosen["batch_crystals"] = batch_for(crystals)
    if training.epochs is None:
        chosen["epochs"] = epochs_for(crystals, has_start)
    return chosen


def described(crystals: int, chosen: Mapping[str, int], as_begun: bool = False) -> str:
    """One line on what ``open_settings`` chose.

    Args:
        crystals: Number of training crystals.
        chosen: The settings.
        as_begun: Whether they are those with which a run began that is resumed.
    """
    words = {"batch_crystals": "batches of {}", "epochs": "{} epochs"}
    line = f"{crystals} crystals: "
    line += ", ".join(words[name].format(value) for name, value in chosen.items())
    if as_begun:
        return f"{line}, as this run began"
    flags = ", ".join(f"--{name.replace('_', '-')}" for name in chosen)
    return f"{line}; set {flags} to change"


def fine_tuning(training: TrainingConfig) -> TrainingConfig:
    """The settings by which a model is fine-tuned, from those that trained it.

    Its optimiser and learning rate stay; the rate warms up and falls to 0. Batches and epochs
    follow the number of crystals, targets are standardised, and the rest is as in the default
    config.
    """
    optimizer = ("optimizer", "learning_rate", "weight_decay", "epsilon", "amsgrad", "clip_norm")
    return dataclasses.replace(
        load_config(DEFAULT_CONFIG).training,
        **{name: getattr(training, name) for name in (*optimizer, "precision")},
        schedule="cosine",
        warmup=0.1,
        scale_targets=True,
        batch_sites=0,
        batch_crystals=None,
        epochs=None,
    )
