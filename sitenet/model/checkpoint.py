"""Models on disk: safetensors files, which hold numbers and text only.

A file is read in the order of trust: checksum, types of the metadata, the config against the shapes
of the tensors, and only then is a model of that size built.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import sitenet
from sitenet.config import SiteNetConfig
from sitenet.model.calibration import Calibration
from sitenet.model.ensemble import Ensemble, Model
from sitenet.model.packing import pack, unpack
from sitenet.model.sitenet import SiteNet, Target
from sitenet.system.files import load_tensors, save_tensors
from sitenet.system.model_files import find_model
from sitenet.system.model_files import shipped_weights as shipped_weights

_CALIBRATION = "calibration."  # prefix of the tensors of a Calibration
# Format of the metadata, raised when an older sitenet could not read a new file: 2 brought
# ensembles, 3 what a calibration keeps of the training crystals, 4 errors on the validation
# crystals and an index of the training crystals, 5 weights of fewer bits, a compressed index and
# targets that are learned as logarithms.
FORMAT = 5
LISTED = 20  # names of parameters that a message lists


@dataclass(frozen=True)
class Header:
    """The metadata of a model file.

    Attributes:
        format: see ``FORMAT``.
        members: models in the file.
        sitenet: version that wrote it.
        config: of the model, as ``SiteNetConfig.to_dict`` gives it.
        targets: fields of each ``Target``.
        uses_oxidation: see ``SiteNet.uses_oxidation``.
        metadata: whatever the writer noted.
    """

    format: int
    config: dict[str, Any]
    targets: list[dict[str, Any]]
    members: int = 1
    sitenet: str = "unknown"
    uses_oxidation: bool = True
    metadata: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, path: Path) -> Header:
        """Read the metadata's text.

        Raises:
            ValueError: a key is missing or its value has a wrong type, or the format is a later
                one; names the file and the key.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path}: the metadata is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise ValueError(f"{path}: the metadata must be an object, got {_kind(values)}")
        version = values.get("format")
        if type(version) is int and version > FORMAT:
            raise ValueError(
                f"{path} has format {version}, written by sitenet {values.get('sitenet')}; this "
                f"is sitenet {sitenet.__version__}, which reads up to {FORMAT}: upgrade sitenet"
            )
        kinds = {"members": int, "sitenet": str, "uses_oxidation": bool, "metadata": dict}
        for key, kind in {"format": int, "config": dict, "targets": list, **kinds}.items():
            if key not in values and key in kinds:
                continue
            if type(values.get(key)) is not kind:
                came = _kind(values[key]) if key in values else "nothing"
                raise ValueError(f"{path}: {key} must be of type {kind.__name__}, got {came}")
        return cls(**{f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values})

    def model_config(self, path: Path) -> SiteNetConfig:
        """The config, checked."""
        try:
            if "base" in self.config:
                raise ValueError("base belongs into YAML files")
            return SiteNetConfig.from_dict(self.config)
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"{path}: config: {error}") from None

    def model_targets(self, path: Path) -> list[Target]:
        """The targets, checked."""
        targets = []
        for number, values in enumerate(self.targets, 1):
            try:
                targets.append(Target(**values))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}: target {number}: {error}") from None
        return targets


def _kind(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.40}"


def load_exactly(
    model: nn.Module,
    state: Mapping[str, Any],
    where: str,
    name: Callable[[str], str] = lambda key: key,
) -> None:
    """Load exactly the model's parameters.

    Args:
        model: takes the values over.
        state: tensors by name.
        where: what holds the state, for the message.
        name: a parameter's name in the message.

    Raises:
        ValueError: names are missing, extra or of a wrong shape; lists them.
    """
    need_shapes({k: v.shape for k, v in model.state_dict().items()}, state, where, name)
    model.load_state_dict(dict(state))


def need_shapes(
    shapes: Mapping[str, torch.Size],
    state: Mapping[str, Any],
    where: str,
    name: Callable[[str], str] = lambda key: key,
) -> None:
    """Raise ValueError unless the state has exactly these names and shapes; lists what differs.

    Args:
        shapes: expected, by name.
        state: as in ``load_exactly``, like the other arguments.
    """
    missing = [name(k) for k in shapes if k not in state]
    extra = [k for k in state if k not in shapes]
    wrong = []
    for key in shapes.keys() & state.keys():
        value, shape = state[key], tuple(shapes[key])
        if not isinstance(value, Tensor):
            wrong.append(f"{name(key)} is a {type(value).__name__}, not a tensor")
        elif value.shape != shape:
            wrong.append(f"{name(key)} has shape {tuple(value.shape)}, not {shape}")
    problems = [
        f"{title}: {', '.join(map(str, keys[:LISTED]))}"
        + (f" and {len(keys) - LISTED} more" if len(keys) > LISTED else "")
        for title, keys in (("missing", missing), ("extra", extra), ("wrong", sorted(wrong)))
        if keys
    ]
    if problems:
        raise ValueError(f"{where} does not fit the config; {'; '.join(problems)}")


def save(
    model: Model,
    path: str | Path,
    metadata: Mapping[str, Any] | None = None,
    bits: int | None = None,
) -> None:
    """Write a model to a safetensors file, complete or not at all.

    Args:
        model: weights, config, targets and calibration are saved.
        path: the file.
        metadata: anything JSON holds, kept beside the weights (``read_metadata`` returns it).
        bits: bits per weight, to which the matrices are rounded; None keeps all 32. Ten make the
            weights a third of the size and change predictions by less than a hundredth of their
            error.
    """
    members = len(model.members) if isinstance(model, Ensemble) else 1
    calibration = model.calibration
    header = Header(
        format=_format(model, bits),
        config=model.config.to_dict(),
        targets=[target.to_dict() for target in model.targets],
        members=members,
        sitenet=sitenet.__version__,
        uses_oxidation=model.uses_oxidation,
        metadata=dict(metadata or {}),
    )
    tensors: dict[str, Tensor] = model.state_dict()
    if bits is not None:
        tensors = pack(tensors, bits)
    if calibration is not None:
        kept = calibration.to_tensors()
        tensors |= {_CALIBRATION + name: value for name, value in kept.items()}
    save_tensors(path, tensors, {"sitenet": json.dumps(dataclasses.asdict(header))})


def _format(model: Model, bits: int | None) -> int:
    """The first format that holds all of a model."""
    calibration = model.calibration
    is_log = any(target.scale == "log10" for target in model.targets)
    if bits or is_log or (calibration is not None and calibration.index is not None):
        return FORMAT
    if calibration is None:
        return 2 if isinstance(model, Ensemble) else 1
    return 3 if calibration.errors is None else 4


def read_metadata(path: str | Path) -> dict[str, Any]:
    """The metadata of a model file: the fields of ``Header`` by name.

    Raises:
        ValueError: the file is damaged, no sitenet model, or of a later format.
    """
    return dataclasses.asdict(_read(Path(path))[1])


def load(name_or_path: str | Path) -> Model:
    """Load a saved model, or an ensemble.

    Args:
        name_or_path: the name of shipped weights, a file that ``save`` wrote, or the folder of a
            training run, whose ``model.safetensors`` is taken.

    Raises:
        FileNotFoundError: neither weights of that name ship, nor is there such a file.
        ValueError: the file is damaged, no sitenet model, or of a later format.
    """
    path = find_model(name_or_path)
    tensors, header = _read(path)
    config, targets = header.model_config(path), header.model_targets(path)
    kept = {
        name.removeprefix(_CALIBRATION): tensors.pop(name)
        for name in list(tensors)
        if name.startswith(_CALIBRATION)
    }
    try:
        tensors = unpack(tensors)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    _need_size(config, targets, header, tensors, path)
    members = [SiteNet(config, targets) for _ in range(header.members)]
    for member in members:
        member.uses_oxidation = header.uses_oxidation
    model = Ensemble(members) if len(members) > 1 else members[0]
    load_exactly(model, tensors, str(path))
    if kept:
        try:
            model.calibration = Calibration.from_tensors(kept, model.encoding_size, len(targets))
        except ValueError as error:
            raise ValueError(f"{path}: calibration: {error}") from None
    return model.eval()


def _read(path: Path) -> tuple[dict[str, Tensor], Header]:
    """The tensors and the metadata of a model file."""
    tensors, metadata = load_tensors(path)
    if "sitenet" not in metadata:
        raise ValueError(f"{path} is a safetensors file, but not a sitenet model")
    return tensors, Header.parse(metadata["sitenet"], path)


def _need_size(
    config: SiteNetConfig,
    targets: list[Target],
    header: Header,
    tensors: Mapping[str, Tensor],
    path: Path,
) -> None:
    """Raise ValueError unless the tensors are those of such a model; allocates nothing."""
    layers = {name: len(getattr(config, name)) for name in ("hidden", "pre_pool", "post_pool")}
    counts = {"members": header.members, "config: blocks": config.blocks, "targets": len(targets)}
    for key, count in (counts | {f"config: layers of {k}": n for k, n in layers.items()}).items():
        most = sum(map(Tensor.numel, tensors.values())) if key == "targets" else len(tensors)
        if not 1 <= count <= most:
            raise ValueError(
                f"{path}: {key}: {count} cannot be, as the file holds {len(tensors)} tensors"
            )
    try:
        with torch.device("meta"), _Uninitialised(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the model itself will warn
            shapes = {k: v.shape for k, v in SiteNet(config, targets).state_dict().items()}
    except (RuntimeError, TypeError, OverflowError) as error:
        raise ValueError(f"{path}: config: sizes that no model can have: {error}") from None
    if header.members > 1:
        members = range(header.members)
        shapes = {f"members.{k}.{name}": shape for k in members for name, shape in shapes.items()}
    need_shapes(shapes, tensors, str(path))


class _Uninitialised(TorchFunctionMode):
    """Leave new parameters as they are: on the meta device, torch draws random numbers through its
    compiler, which takes 0.7 s to import."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))
