"""The state of a training run on disk, from which it resumes to the same bits."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from sitenet.config import SiteNetConfig
from sitenet.system.files import load_tensors, save_tensors, write_text
from sitenet.system.progress import Reporter

STATE = "state.safetensors"
METRICS = "metrics.jsonl"
CONFIG = "config.yaml"
FORMAT = 3  # of the state; a state of another format is refused


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        epoch: Epochs that are complete, or the one in progress.
        step: Optimiser steps taken.
        best_error: Lowest validation error so far.
        best_epoch: The epoch that reached it.
        cycle_epoch: Epochs that were complete when the learning rate last began its schedule: 0, or
            those of a finished run that is being extended.
        cycle_step: Steps that were taken by then.
        history: One entry per epoch, as in ``metrics.jsonl``.
    """

    epoch: int = 0
    step: int = 0
    best_error: float = math.inf
    best_epoch: int = 0
    cycle_epoch: int = 0
    cycle_step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(eq=False)
class State:
    """Everything that a run needs to resume.

    Attributes:
        settings: Fingerprint of what fixes the run, except for its length.
        epochs: Its length.
        progress: How far it is.
        groups: Tensors by group ("model", "average", "best", "optimizer") and name.
    """

    settings: str
    epochs: int
    progress: Progress
    groups: Mapping[str, Mapping[str, Tensor]]


def save_state(folder: Path, state: State) -> None:
    """Write the state as one file, so that all of it stems from one moment, and the metrics.

    Neither waits for the disk: a power cut may cost epochs, a sync would slow down each of them.
    """
    tensors = {f"{group}:{k}": x for group, named in state.groups.items() for k, x in named.items()}
    progress = asdict(state.progress) | {"best_error": finite(state.progress.best_error)}
    facts = {"format": FORMAT, "settings": state.settings, "epochs": state.epochs}
    facts["progress"] = progress
    save_tensors(folder / STATE, tensors, {"sitenet": json.dumps(facts)}, sync=False)
    write_text(folder / METRICS, _lines(state.progress.history), sync=False)


def load_state(folder: Path) -> State | None:
    """Read the state in a run folder, if there is one.

    Raises:
        ValueError: It is damaged, or another version of sitenet wrote it.
    """
    path = folder / STATE
    if not path.exists():
        return None
    tensors, metadata = load_tensors(path)
    try:
        facts = json.loads(metadata["sitenet"])
        version = facts.get("format", 1)
    except (KeyError, ValueError, AttributeError):
        raise ValueError(f"{path} is damaged: its metadata are missing or unreadable") from None
    if version != FORMAT:
        raise ValueError(
            f"{path} has format {version}, from another version of sitenet; this one resumes runs "
            f"of format {FORMAT} only: choose another folder, or remove it to start over"
        )
    progress = Progress(**facts["progress"])
    if progress.best_error is None:
        progress.best_error = math.inf
    groups: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        group, _, name = name.partition(":")
        groups.setdefault(group, {})[name] = tensor
    return State(facts["settings"], facts["epochs"], progress, groups)


def write_config(folder: Path, config: SiteNetConfig) -> None:
    """Write ``config.yaml``."""
    write_text(folder / CONFIG, _yaml(config))


def restore_texts(
    folder: Path, config: SiteNetConfig, progress: Progress, reporter: Reporter
) -> None:
    """Write ``config.yaml`` and ``metrics.jsonl`` again if they do not match the verified state.

    Metrics that lack the last epochs are no reason for a message: a kill may come between the
    state and them.
    """
    for name, text in ((CONFIG, _yaml(config)), (METRICS, _lines(progress.history))):
        path = folder / name
        content = path.read_bytes() if path.exists() else b""
        if content == text.encode():
            continue
        write_text(path, text)
        if not text.encode().startswith(content):
            reporter.say(f"{path} was damaged or edited; it is restored from {STATE}")


def earlier_settings(folder: Path) -> dict[str, Any]:
    """The training settings of the run in a folder, for an ensemble those of its first member; {}
    if there is none or its config cannot be read."""
    for path in (folder / CONFIG, *sorted(folder.glob(f"member-*/{CONFIG}"))):
        if (path.parent / STATE).exists():
            try:
                config = SiteNetConfig.from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
            except _UNREADABLE:
                return {}
            return asdict(config.training)
    return {}


def differences(folder: Path, config: SiteNetConfig) -> str:
    """Name the settings that differ from those of the run in a folder, in parentheses; "" where
    there are none."""
    path = folder / CONFIG
    try:
        theirs = _flat(SiteNetConfig.from_dict(yaml.safe_load(path.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        return ""
    except _UNREADABLE:
        return f" ({path} is damaged, so that they cannot be compared)"
    ours = _flat(config)
    changed = [f"{k}: {theirs[k]} there, {v} here" for k, v in ours.items() if v != theirs[k]]
    return f" ({'; '.join(changed)})" if changed else ""


_UNREADABLE = (OSError, ValueError, TypeError, AttributeError, yaml.YAMLError)  # a damaged config


def finite(value: Any) -> Any:
    """The value, or None for a float that is not finite, which JSON cannot hold."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines(history: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in history)


def _yaml(config: SiteNetConfig) -> str:
    return yaml.safe_dump(config.to_dict(), sort_keys=False)


def _flat(config: SiteNetConfig) -> dict[str, Any]:
    values = config.to_dict()
    return values | values.pop("training")
