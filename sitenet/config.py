"""What a model is made of and how it is trained, as plain data, by name, YAML file or dict.

The named configs are the YAML files in ``sitenet/configs``; a file holds field names of
``SiteNetConfig`` (with ``training:`` for those of ``TrainingConfig``, and ``base:`` to start from
another config), or the keys of a published Site-Net config.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

import sitenet

ACTIVATIONS = ("mish", "relu", "none")
LAST_ACTIVATIONS = ("identity", "relu", "softplus", "trelu")
NORMS = ("layer", "none")
POOLINGS = ("mean", "max")
IMAGES = ("supercell", "sphere")
INTERACTIONS = ("renew", "keep")
SUMMARIES = ("all", "last")
DISORDER = ("error", "average")
GROUPS = ("structure", "formula", "none")
OPTIMIZERS = ("adamw", "muon")
SCHEDULES = ("constant", "cosine", "onecycle")
PRECISIONS = ("float32", "bfloat16")
VALID_MEANS = ("crystals", "batches")
INTERACTION_FEATURES = (
    "distance_matrix",
    "non_sine_coulomb_matrix",
    "coulomb_matrix",
    "reciprocal_square_distance_matrix",
)
SITE_FEATURES = (
    "Number",
    "AtomicWeight",
    "Row",
    "Column",
    "FirstIonizationEnergy",
    "Electronegativity",
    "AtomicRadius",
    "Density",
)


def _fields(cls: type) -> set[str]:
    return {f.name for f in dataclasses.fields(cls)}


def known_keys(values: Mapping[str, Any], names: set[str], where: str) -> None:
    """Raise ValueError if a key is not among the names, with the nearest one as a hint."""
    for key in values:
        if key not in names:
            near = difflib.get_close_matches(str(key), names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"unknown key {key!r} in {where}{hint}")


def _at_least(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{name} must be an integer, got {value!r}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def _one_of(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")


def _setting(default: Any, help: str) -> Any:
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class InteractionFeature:
    """One pair feature: a matrix by its published name, then x ** polynomial_degree, then
    ln(x + 1e-8) if log, then clipped to [-max_clip, max_clip]."""

    name: str
    polynomial_degree: float = 1
    log: bool = False
    max_clip: float = 10000

    def __post_init__(self) -> None:
        _one_of("interaction_features", self.name, INTERACTION_FEATURES)


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained; defaults are the published ones."""

    optimizer: str = _setting("adamw", "adamw, or muon for the matrices of hidden layers")
    learning_rate: float = _setting(8.125971481941902e-4, "highest learning rate")
    weight_decay: float = _setting(1e-4, "weight decay; with muon of matrices only")
    epsilon: float = _setting(1e-7, "epsilon of AdamW")
    amsgrad: bool = _setting(True, "the AMSGrad variant of AdamW")
    clip_norm: float = _setting(1.0, "largest norm of the gradient; 0 does not clip")
    batch_sites: int = _setting(1200, "unique sites a batch; 0 counts crystals instead")
    batch_crystals: int = _setting(0, "crystals a batch, where batch_sites is 0")
    accumulate: int = _setting(1, "batches an optimiser step")
    max_crystals: int = _setting(0, "crystals to train on; 0 takes all")
    members: int = _setting(1, "models of an ensemble, trained from seeds that count up")
    epochs: int = _setting(100, "passes over the training crystals")
    patience: int = _setting(0, "epochs without a better validation error to stop; 0: never")
    schedule: str = _setting("constant", "learning rate over the run: constant, cosine or onecycle")
    warmup: float = _setting(0.0, "part of the run in which the learning rate rises from 0")
    ema: float = _setting(0.0, "decay a step of the averaged weights that are kept; 0: none")
    precision: str = _setting("float32", "factors of the kernels' products: float32 or bfloat16")
    capture: bool = _setting(False, "on a GPU, take training steps as CUDA graphs")
    scale_targets: bool = _setting(False, "learn targets less their mean, in standard deviations")
    seed: int = _setting(42, "seed of the split, the weights and the order of batches")
    valid: float = _setting(0.1, "part of the crystals that chooses the best epoch")
    valid_mean: str = _setting(
        "crystals", "validation error: mean of crystals, or of the means of batches, as published"
    )
    test: float = _setting(0.1, "part of the crystals that only the final error is taken on")
    group: str = _setting(
        "structure",
        "crystals kept on one side of a split: equal structures, equal formulas, or none",
    )

    def __post_init__(self) -> None:
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("schedule", self.schedule, SCHEDULES)
        _one_of("precision", self.precision, PRECISIONS)
        _one_of("valid_mean", self.valid_mean, VALID_MEANS)
        _one_of("group", self.group, GROUPS)
        for name in ("members", "epochs", "accumulate"):
            _at_least(name, getattr(self, name), 1)
        for name in ("batch_sites", "batch_crystals", "max_crystals", "patience", "seed"):
            _at_least(name, getattr(self, name), 0)
        for name in ("warmup", "ema", "valid", "test"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)!r}")
        if self.valid + self.test >= 1:
            raise ValueError(f"valid and test leave nothing to train on: {self.valid}, {self.test}")
        if not self.batch_sites and not self.batch_crystals:
            raise ValueError("batch_sites or batch_crystals must be positive")
        for name in ("learning_rate", "epsilon"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class SiteNetConfig:
    """Everything that fixes a model, its input and how it is trained; defaults are the paper's."""

    embedding: int = _setting(92, "width of the element embedding")
    heads: int = _setting(3, "attention heads")
    blocks: int = _setting(2, "attention blocks")
    site_dim: int = _setting(30, "width of a site's state, per head")
    interaction_dim: int = _setting(16, "width of a pair's interaction features, per head")
    hidden: tuple[int, ...] = _setting((225,), "hidden layers between a pair and its logits")
    pre_pool: tuple[int, ...] = _setting((94,), "layers before pooling")
    post_pool: tuple[int, ...] = _setting((200, 200, 200), "layers after pooling")
    activation: str = _setting("mish", "mish, relu or none")
    norm: str = _setting("layer", "norm of blocks and layers before pooling: layer or none")
    post_pool_norm: str = _setting("layer", "norm of the layers after pooling: layer or none")
    pooling: str = _setting("mean", "how a crystal's sites are pooled: mean or max")
    last_activation: str = _setting("trelu", "identity, relu, softplus or trelu")
    distance_cutoff: float | None = _setting(None, "attend to no pair beyond, in angstrom")
    k_softmax: int | None = _setting(None, "attend to the k largest logits of a row only")
    envelope: bool = _setting(False, "let the weights fall smoothly to 0 at the reach")
    residual: bool = _setting(False, "blocks add to the states of sites, and take them normed")
    interaction: str = _setting(
        "renew", "interaction features: renew them in each block, or keep the first ones"
    )
    summary: str = _setting("all", "pool the states after all blocks, or after the last")
    interaction_features: tuple[InteractionFeature, ...] = _setting(
        (
            InteractionFeature("distance_matrix"),
            InteractionFeature("non_sine_coulomb_matrix", log=True, max_clip=10),
        ),
        "features of a pair; the first one is the distance",
    )
    distance_basis: int = _setting(
        0, "Gaussians of the distance, from 0 to the reach, beside the pair features"
    )
    site_features: tuple[str, ...] = _setting(SITE_FEATURES, "elemental properties of a site")
    scale_site_features: bool = _setting(False, "standardise these properties over the elements")
    missing: str = _setting("error", "elemental values that are not known: error or mean")
    max_norm: bool = _setting(True, "hold the rows of the embedding to a norm of at most 1")
    images: str = _setting("supercell", "sites to attend to: of a supercell, or all in a sphere")
    radius: float = _setting(8.0, "of the sphere, in angstrom")
    max_sites: int = _setting(100, "largest supercell, in sites; 0 takes the cell as it is")
    merge: bool = _setting(True, "compute equal pairs once")
    tolerance: float = _setting(1e-3, "distances that are equal for merging, in angstrom")
    primitive: bool = _setting(True, "find the primitive cell of every structure first")
    disorder: str = _setting("error", "partial occupancy: error refuses it, average averages it")
    training: TrainingConfig = field(default_factory=TrainingConfig)

    @property
    def site_inputs(self) -> int:
        """Width of a site's input: embedding, elemental features, oxidation state."""
        return self.embedding + len(self.site_features) + 1

    @property
    def pair_inputs(self) -> int:
        """Width of a pair's input: interaction features, distance basis."""
        return len(self.interaction_features) + self.distance_basis

    @property
    def reach(self) -> float | None:
        """The distance beyond which no site attends, in angstrom; None if there is none."""
        if self.images != "sphere":
            return self.distance_cutoff
        if self.distance_cutoff is None:
            return self.radius
        return min(self.radius, self.distance_cutoff)

    @property
    def unpublished(self) -> list[str]:
        """Options set to what no published Site-Net has, nor weights can make up for, as
        ``name: value``."""
        published = {
            "envelope": (False,),
            "residual": (False,),
            "interaction": ("renew",),
            "summary": ("all",),
            "distance_basis": (0,),
            "images": ("supercell",),
            "pooling": ("mean", "max"),
        }
        values = {name: getattr(self, name) for name in published}
        return [f"{k}: {v}" for k, v in values.items() if v not in published[k]]

    def __post_init__(self) -> None:
        for name in ("embedding", "heads", "blocks", "site_dim", "interaction_dim"):
            _at_least(name, getattr(self, name), 1)
        for name in ("hidden", "pre_pool", "post_pool"):
            widths = getattr(self, name)
            if not isinstance(widths, (list, tuple)) or not widths:
                raise ValueError(f"{name} must be a list of at least one width, got {widths!r}")
            for width in widths:
                _at_least(name, width, 1)
            object.__setattr__(self, name, tuple(widths))
        for name in self.site_features:
            _one_of("site_features", name, SITE_FEATURES)
        object.__setattr__(self, "site_features", tuple(self.site_features))
        _one_of("activation", self.activation, ACTIVATIONS)
        _one_of("norm", self.norm, NORMS)
        _one_of("post_pool_norm", self.post_pool_norm, NORMS)
        _one_of("pooling", self.pooling, POOLINGS)
        _one_of("last_activation", self.last_activation, LAST_ACTIVATIONS)
        _one_of("missing", self.missing, ("error", "mean"))
        _one_of("images", self.images, IMAGES)
        _one_of("interaction", self.interaction, INTERACTIONS)
        _one_of("summary", self.summary, SUMMARIES)
        _one_of("disorder", self.disorder, DISORDER)
        for name in ("envelope", "residual", "scale_site_features", "max_norm", "primitive"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, got {getattr(self, name)!r}")
        _at_least("distance_basis", self.distance_basis, 0)
        if self.distance_basis == 1:
            raise ValueError("distance_basis must be 0 or at least 2, got 1")
        if not self.radius > 0:
            raise ValueError(f"radius must be positive, got {self.radius!r}")
        if self.distance_cutoff is not None and not self.distance_cutoff >= 0:
            raise ValueError(f"distance_cutoff must be >= 0 or null, got {self.distance_cutoff!r}")
        if self.k_softmax is not None:
            _at_least("k_softmax", self.k_softmax, 1)
        _at_least("max_sites", self.max_sites, 0)
        if not self.tolerance >= 0:
            raise ValueError(f"tolerance must be >= 0, got {self.tolerance!r}")
        if not self.interaction_features:
            raise ValueError("interaction_features must name at least one feature")
        for name in ("envelope", "distance_basis"):
            if getattr(self, name) and not self.reach:
                raise ValueError(f"{name} needs images: sphere or a positive distance_cutoff")

    def replace(self, **changes: Any) -> SiteNetConfig:
        """A copy with other values; names of TrainingConfig are changed there."""
        training = {k: changes.pop(k) for k in tuple(changes) if k in _fields(TrainingConfig)}
        known_keys(changes, _fields(SiteNetConfig), "config")
        if training:
            base = changes.get("training", self.training)
            changes["training"] = dataclasses.replace(base, **training)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML and JSON; ``from_dict`` takes them back."""
        plain = dataclasses.asdict(self)
        for name, value in plain.items():
            if isinstance(value, tuple):
                plain[name] = list(value)
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SiteNetConfig:
        """From field names (``to_dict``), or from the keys of a published config.

        Raises:
            ValueError: an unknown key or a value out of range, by name.
        """
        values = dict(values)
        if sitenet.is_published_config(values):
            return sitenet.from_published_config(values)
        base = values.pop("base", None)
        start = cls() if base is None else load_config(base)
        known_keys(values, _fields(cls), "config")
        if "interaction_features" in values:
            values["interaction_features"] = tuple(
                as_feature(each) for each in values["interaction_features"]
            )
        training = values.pop("training", None) or {}
        if isinstance(training, TrainingConfig):
            training = dataclasses.asdict(training)
        known_keys(training, _fields(TrainingConfig), "config under training")
        return start.replace(**values, **training)


def load_config(source: str | Path | Mapping[str, Any] | SiteNetConfig) -> SiteNetConfig:
    """A config by name, from a YAML file, or from a dict.

    Args:
        source: one of ``config_names()``, a path, or a mapping of field names or published keys.

    Raises:
        ValueError: no such config, or a key or value that is wrong, by name.
    """
    if isinstance(source, SiteNetConfig):
        return source
    if isinstance(source, Mapping):
        return SiteNetConfig.from_dict(source)
    shipped = resources.files("sitenet") / "configs" / f"{source}.yaml"
    path = Path(source)
    if isinstance(source, str) and source in config_names():
        text = shipped.read_text()
    elif path.is_file():
        text = path.read_text()
    else:
        raise ValueError(
            f"no config named {str(source)!r} and no such file; named configs: "
            + ", ".join(config_names())
        )
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is not a YAML file: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{source} must hold `key: value` lines, got {type(values).__name__}")
    try:
        return SiteNetConfig.from_dict(values)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def config_names() -> list[str]:
    """Names of the configs that ship with sitenet."""
    folder = resources.files("sitenet") / "configs"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name[-5:] == ".yaml")


def as_feature(each: InteractionFeature | str | Mapping[str, Any]) -> InteractionFeature:
    """A pair feature from its name or a mapping of its fields, which published configs partly nest
    under ``kwargs``."""
    if isinstance(each, InteractionFeature):
        return each
    if isinstance(each, str):
        return InteractionFeature(each)
    values = dict(each)
    values |= values.pop("kwargs", None) or {}
    known_keys(values, _fields(InteractionFeature), "interaction feature")
    return InteractionFeature(**values)
