"""Models on disk: safetensors files, which hold numbers and text only."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

import sitenet
from sitenet.config import SiteNetConfig
from sitenet.model.calibration import Calibration
from sitenet.model.ensemble import Ensemble, Model
from sitenet.model.sitenet import SiteNet, Target
from sitenet.system.files import new_file

_CALIBRATION = "calibration."  # prefix of the tensors of a Calibration
FORMAT = 2  # of the safetensors metadata; raised when an older sitenet could not read a new file


def load_exactly(
    model: Model, state: Mapping[str, Any], where: str, name: Callable[[str], str] = lambda key: key
) -> None:
    """Load exactly the model's parameters, or raise ValueError with every key that is wrong."""
    own = model.state_dict()
    missing = [name(k) for k in own if k not in state]
    extra = [k for k in state if k not in own]
    wrong = []
    for key, have in own.items():
        given = state.get(key)
        if given is None:
            continue
        if not isinstance(given, Tensor):
            wrong.append(f"{name(key)} is a {type(given).__name__}, not a tensor")
        elif given.shape != have.shape:
            wrong.append(f"{name(key)} has shape {tuple(given.shape)}, not {tuple(have.shape)}")
    problems = [
        f"{title}: {', '.join(map(str, keys))}"
        for title, keys in (("missing", missing), ("extra", extra), ("wrong", wrong))
        if keys
    ]
    if problems:
        raise ValueError(f"{where} does not fit the config; {'; '.join(problems)}")
    model.load_state_dict(dict(state))


def save(model: Model, path: str | Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a model to a safetensors file, under a temporary name first.

    Args:
        model: weights, config and targets are saved.
        path: the file.
        metadata: anything JSON holds, kept beside (``read_metadata`` gives it back).
    """
    path = Path(path)
    members = len(getattr(model, "members", ())) or 1
    header = {
        "format": FORMAT if members > 1 else 1,
        "members": members,
        "sitenet": sitenet.__version__,
        "config": model.config.to_dict(),
        "targets": [dataclasses.asdict(t) for t in model.targets],
        "metadata": dict(metadata or {}),
    }
    tensors = {k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}
    if model.calibration is not None:
        for name, value in vars(model.calibration).items():
            if value is None:
                continue
            value = torch.as_tensor(np.ascontiguousarray(value))
            tensors[_CALIBRATION + name] = value.float() if value.is_floating_point() else value
    content = safetensors.torch.save(tensors, {"sitenet": json.dumps(header)})
    with new_file(path) as temporary:
        temporary.write_bytes(content)


def read_metadata(path: str | Path) -> dict[str, Any]:
    """What stands beside the weights: format, sitenet, config, targets, metadata.

    Raises:
        ValueError: the file is damaged, no sitenet model, or of a later format.
    """
    try:
        with safetensors.safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get("sitenet")
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file: {error}") from None
    if text is None:
        raise ValueError(f"{path} is a safetensors file, but not a sitenet model")
    header = json.loads(text)
    if header["format"] > FORMAT:
        raise ValueError(
            f"{path} has format {header['format']}, written by sitenet {header['sitenet']}; this "
            f"is sitenet {sitenet.__version__}, which reads up to {FORMAT}: upgrade sitenet"
        )
    return header


def load(name_or_path: str | Path) -> Model:
    """A saved model, or an ensemble of them.

    Args:
        name_or_path: the name of shipped weights, or a file that ``save`` wrote.

    Raises:
        FileNotFoundError: neither weights of that name ship, nor is there such a file.
        ValueError: the file is damaged, no sitenet model, or of a later format.
    """
    shipped = shipped_weights()
    path = shipped.get(str(name_or_path), Path(name_or_path))
    if not path.is_file():
        names = f"weights that ship with sitenet: {', '.join(shipped)}"
        none = (
            "no weights ship with this sitenet: name the model.safetensors that sitenet train left"
        )
        raise FileNotFoundError(
            f"no model file {str(name_or_path)!r}; {names if shipped else none}"
        )
    header = read_metadata(path)
    targets = [Target(**t) for t in header["targets"]]
    config = SiteNetConfig.from_dict(header["config"])
    members = [SiteNet(config, targets) for _ in range(header.get("members", 1))]
    model = Ensemble(members) if len(members) > 1 else members[0]
    tensors = safetensors.torch.load_file(path)
    found: dict[str, Any] = {
        name.removeprefix(_CALIBRATION): tensors.pop(name).numpy()
        for name in list(tensors)
        if name.startswith(_CALIBRATION)
    }
    if found:
        model.calibration = Calibration(**found | {"threshold": float(found["threshold"].item())})
    load_exactly(model, tensors, str(path))
    return model.eval()


def shipped_weights() -> dict[str, Path]:
    """Files of the weights that ship with sitenet, by name."""
    folder = Path(__file__).parents[1] / "weights"
    return {p.stem: p for p in sorted(folder.glob("*.safetensors"))}
