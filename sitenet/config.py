"""What a model is made of and how it is trained, as plain data: by name, YAML file or dict.

The named configs are the YAML files in ``sitenet/configs``. A file holds field names of
``SiteNetConfig`` (with ``training:`` for those of ``TrainingConfig``, and ``base:`` to start from
another config), or the keys of a published Site-Net config.
"""

# ruff: noqa: RUF009  (``setting`` makes a dataclass field)

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_args

import yaml

import sitenet
from sitenet.system.settings import check_fields, check_keys, setting

Activation = Literal["mish", "relu", "none"]
Norm = Literal["layer", "none"]
InteractionFeatureName = Literal[
    "distance_matrix",
    "non_sine_coulomb_matrix",
    "coulomb_matrix",
    "reciprocal_square_distance_matrix",
]
SiteFeatureName = Literal[
    "Number",
    "AtomicWeight",
    "Row",
    "Column",
    "FirstIonizationEnergy",
    "Electronegativity",
    "AtomicRadius",
    "Density",
]
SITE_FEATURES: tuple[SiteFeatureName, ...] = get_args(SiteFeatureName)
Disorder = Literal["error", "average"]
PredictedDisorder = Literal["error", "average", "sample"]
Missing = Literal["error", "mean"]

DEFAULT_CONFIG = "sphere"  # what training uses if no config is named: the most accurate one
MOST_BYTES = 1_000_000  # of a YAML file
WIDTH: dict[str, Any] = {"least": 1, "most": 65_536}  # of a layer


@dataclass(frozen=True)
class InteractionFeature:
    """One pair feature: a matrix by its published name, then x ** polynomial_degree, then
    ln(x + 1e-8) if log, then clipped to [-max_clip, max_clip]."""

    name: InteractionFeatureName = setting("distance_matrix", "Published name of the matrix")
    polynomial_degree: float = setting(1.0, "Power that the entries are raised to")
    log: bool = setting(False, "Take the logarithm of the entries")
    max_clip: float = setting(10000.0, "Largest absolute value of a logarithm", above=0)

    def __post_init__(self) -> None:
        try:
            check_fields(self)
        except ValueError as error:
            raise ValueError(f"interaction_features: {error}") from None


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained; the defaults are the published ones."""

    optimizer: Literal["adamw", "muon"] = setting(
        "adamw", "Optimiser: AdamW, or Muon for hidden matrices and AdamW for the rest"
    )
    learning_rate: float = setting(8.125971481941902e-4, "Highest learning rate", above=0)
    weight_decay: float = setting(1e-4, "Weight decay; with muon, of matrices only", least=0)
    epsilon: float = setting(1e-7, "Epsilon of AdamW", above=0)
    amsgrad: bool = setting(True, "Use the AMSGrad variant of AdamW")
    clip_norm: float = setting(1.0, "Largest norm of the gradient; 0 disables clipping", least=0)
    batch_sites: int = setting(
        1200, "Unique sites per mini-batch; 0 sizes mini-batches by --batch-crystals", least=0
    )
    batch_crystals: int | None = setting(
        0,
        "Crystals per mini-batch, instead of --batch-sites; none follows the number of training "
        "crystals",
        least=0,
    )
    accumulate: int = setting(1, "Mini-batches per optimiser step", least=1)
    max_crystals: int = setting(0, "Train on a random sample of this size; 0 uses all", least=0)
    members: int = setting(
        1, "Models in the ensemble, trained from consecutive seeds", least=1, most=1000
    )
    epochs: int | None = setting(
        100, "Passes over the training crystals; none follows their number", least=1
    )
    patience: int = setting(
        0, "Stop after this many epochs without a lower validation error; 0 never stops", least=0
    )
    schedule: Literal["constant", "cosine", "onecycle"] = setting(
        "constant", "Learning rate schedule"
    )
    warmup: float = setting(
        0.0, "Fraction of the run in which the learning rate rises from 0", least=0, below=1
    )
    ema: float = setting(
        0.0, "Decay per step of the moving average of the weights; 0 disables it", least=0, below=1
    )
    precision: Literal["float32", "bfloat16"] = setting(
        "float32", "Precision of the factors in the kernels' matrix products"
    )
    capture: bool = setting(False, "On a GPU, capture training steps as CUDA graphs")
    scale_targets: bool = setting(
        False, "Train on standardised targets: minus their mean, over their standard deviation"
    )
    seed: int = setting(42, "Seed of the split, the weights and the order of mini-batches", least=0)
    valid: float = setting(
        0.1, "Fraction of the crystals that chooses the best epoch (validation)", least=0, below=1
    )
    valid_mean: Literal["crystals", "batches"] = setting(
        "crystals", "Average the validation error over crystals, or over mini-batches as published"
    )
    test: float = setting(0.1, "Fraction of the crystals for the test", least=0, below=1)
    group: Literal["structure", "formula", "elements", "none"] = setting(
        "structure",
        "Keep crystals with the same structure, formula or set of elements on one side of a split",
    )

    def __post_init__(self) -> None:
        check_fields(self)
        if self.valid + self.test >= 1:
            raise ValueError(
                f"valid and test leave no crystals to train on: {self.valid:g} + {self.test:g}"
            )
        if not self.batch_sites and self.batch_crystals == 0:
            raise ValueError("batch_sites or batch_crystals must be positive")


@dataclass(frozen=True)
class SiteNetConfig:
    """Everything that defines a model, its input and its training; the defaults are the paper's."""

    embedding: int = setting(92, "Width of the element embedding", **WIDTH)
    heads: int = setting(3, "Attention heads", least=1, most=1024)
    blocks: int = setting(2, "Attention blocks", least=1, most=1024)
    site_dim: int = setting(30, "Width of a site's state per head", **WIDTH)
    interaction_dim: int = setting(16, "Width of a pair's interaction features per head", **WIDTH)
    hidden: tuple[int, ...] = setting(
        (225,), "Widths of the hidden layers between a pair and its logits", **WIDTH
    )
    pre_pool: tuple[int, ...] = setting((94,), "Widths of the layers before pooling", **WIDTH)
    post_pool: tuple[int, ...] = setting(
        (200, 200, 200), "Widths of the layers after pooling", **WIDTH
    )
    activation: Activation = setting("mish", "Activation of every hidden layer")
    norm: Norm = setting("layer", "Norm in the blocks and the layers before pooling")
    post_pool_norm: Norm = setting("layer", "Norm in the layers after pooling")
    pooling: Literal["mean", "max"] = setting("mean", "Pooling over the sites of a crystal")
    last_activation: Literal["identity", "relu", "softplus", "trelu"] = setting(
        "trelu", "Activation of the output; all but identity predict no negative values"
    )
    distance_cutoff: float | None = setting(
        None, "Attend to no pair beyond this distance", unit="angstrom", least=0
    )
    k_softmax: int | None = setting(
        None, "Attend only to the pairs with the k largest logits per row", least=1
    )
    envelope: bool = setting(False, "Let the attention weights fall smoothly to 0 at the cutoff")
    residual: bool = setting(False, "Add each block's output to the state of the sites")
    interaction: Literal["renew", "keep"] = setting(
        "renew", "Renew the interaction features in each block, or keep the first ones"
    )
    summary: Literal["all", "last"] = setting(
        "all", "Pool the states after all blocks, or after the last block only"
    )
    interaction_features: tuple[InteractionFeature, ...] = setting(
        (
            InteractionFeature("distance_matrix"),
            InteractionFeature("non_sine_coulomb_matrix", log=True, max_clip=10.0),
        ),
        "Features of a pair, the first of which is the distance",
    )
    distance_basis: int = setting(
        0, "Number of Gaussians that expand the distance; 0 uses none", least=0, most=65_536
    )
    spectrum_channels: int = setting(
        0, "Channels of the density of neighbours in each block; 0 uses no power spectrum", most=128
    )
    spectrum_degree: int = setting(
        4, "Largest degree l of the spherical harmonics in a power spectrum", least=0, most=4
    )
    spectrum_radial: int = setting(
        4, "Radial functions of the density of neighbours", least=2, most=8
    )
    spectrum_mixed: int = setting(
        32, "Numbers that a power spectrum has per degree", least=1, most=1024
    )
    site_features: tuple[SiteFeatureName, ...] = setting(
        SITE_FEATURES, "Elemental properties of a site"
    )
    scale_site_features: bool = setting(
        False, "Standardise the elemental properties over the elements"
    )
    missing: Missing = setting(
        "error", "Refuse elements with an unknown property, or use the mean over the elements"
    )
    max_norm: bool = setting(True, "Limit the norm of each element's embedding to 1")
    images: Literal["supercell", "sphere"] = setting(
        "supercell", "Attend to the sites of a supercell, or to all sites within a sphere"
    )
    radius: float = setting(8.0, "Radius of the sphere", unit="angstrom", above=0, most=1000)
    max_sites: int = setting(
        100, "Sites of the largest supercell; 0 uses the cell as it is", least=0, most=10_000_000
    )
    merge: bool = setting(True, "Compute equal pairs once")
    tolerance: float = setting(
        1e-3, "Largest difference between distances that are merged", unit="angstrom", least=0
    )
    primitive: bool = setting(True, "Reduce every structure to its primitive cell first")
    disorder: Disorder = setting(
        "error", "Refuse structures with partial occupancy, or average over it"
    )
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
        """Largest distance over which a site attends, in angstrom; None if there is no limit."""
        if self.images != "sphere":
            return self.distance_cutoff
        if self.distance_cutoff is None:
            return self.radius
        return min(self.radius, self.distance_cutoff)

    @property
    def unpublished(self) -> list[str]:
        """Options without an equivalent in the published model, as ``name: value``."""
        published = {
            "envelope": (False,),
            "residual": (False,),
            "interaction": ("renew",),
            "summary": ("all",),
            "distance_basis": (0,),
            "spectrum_channels": (0,),
            "images": ("supercell",),
            "pooling": ("mean", "max"),
        }
        values = {name: getattr(self, name) for name in published}
        return [f"{k}: {v}" for k, v in values.items() if v not in published[k]]

    def __post_init__(self) -> None:
        check_fields(self)
        if self.distance_basis == 1:
            raise ValueError("distance_basis must be 0 or at least 2, got 1")
        for name in ("envelope", "distance_basis"):
            if getattr(self, name) and not self.reach:
                raise ValueError(f"{name} needs images: sphere or a positive distance_cutoff")
        if self.spectrum_channels and self.images != "sphere":
            raise ValueError("spectrum_channels needs images: sphere")

    def replace(self, **changes: Any) -> SiteNetConfig:
        """Copy with other values; names of TrainingConfig are changed there. ``batch_crystals``
        alone sets ``batch_sites`` to 0."""
        training = {k: changes.pop(k) for k in tuple(changes) if k in FIELDS[TrainingConfig]}
        if training.get("batch_crystals"):
            training.setdefault("batch_sites", 0)
        check_keys(changes, FIELDS[SiteNetConfig], "config")
        if training:
            base = changes.get("training", self.training)
            changes["training"] = dataclasses.replace(base, **training)
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for YAML and JSON, which ``from_dict`` reads back."""
        plain = dataclasses.asdict(self)
        for name, value in plain.items():
            if isinstance(value, tuple):
                plain[name] = list(value)
        return plain

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> SiteNetConfig:
        """Build from field names (``to_dict``), or from the keys of a published config.

        Raises:
            ValueError: an unknown key, or a value of the wrong type or out of range, by name.
        """
        layers = [dict(values)]
        bases: list[str] = []
        while (base := layers[-1].pop("base", None)) is not None:
            if not isinstance(base, str):
                raise ValueError(f"base must be the name or the file of a config, got {base!r}")
            if base in bases:
                raise ValueError(f"configs start from each other in a circle: {', '.join(bases)}")
            bases.append(base)
            layers.append(read_yaml(_config_file(base)))
        config = cls()
        for layer in reversed(layers):
            config = config._with_layer(layer)
        return config

    def _with_layer(self, values: dict[Any, Any]) -> SiteNetConfig:
        """Copy with the values of one file, published or not."""
        if sitenet.is_published_config(values):
            return sitenet.from_published_config(values)
        check_keys(values, FIELDS[SiteNetConfig], "config")
        if "interaction_features" in values:
            values["interaction_features"] = as_features(values["interaction_features"])
        training = values.pop("training", None) or {}
        if isinstance(training, TrainingConfig):
            training = dataclasses.asdict(training)
        if not isinstance(training, Mapping):
            raise ValueError(f"training must hold `key: value` lines, got {training!r}")
        check_keys(training, FIELDS[TrainingConfig], "config under training")
        return self.replace(**values, **training)


FIELDS: dict[type, frozenset[str]] = {
    cls: frozenset(f.name for f in dataclasses.fields(cls))
    for cls in (InteractionFeature, TrainingConfig, SiteNetConfig)
}


def as_features(listed: Any) -> tuple[InteractionFeature, ...]:
    """Pair features from a list of their names or of mappings of their fields, which published
    configs partly nest under ``kwargs``."""
    if not isinstance(listed, (list, tuple)):
        raise ValueError(f"interaction_features must be a list, got {listed!r}")
    features = []
    for each in listed:
        if isinstance(each, Mapping):
            values = dict(each)
            nested = values.pop("kwargs", None) or {}
            if not isinstance(nested, Mapping):
                raise ValueError(f"kwargs of an interaction feature must be a mapping: {nested!r}")
            values |= nested
            check_keys(values, FIELDS[InteractionFeature], "interaction feature")
            each = InteractionFeature(**values)
        features.append(each if isinstance(each, InteractionFeature) else InteractionFeature(each))
    return tuple(features)


def load_config(source: str | Path | Mapping[str, Any] | SiteNetConfig) -> SiteNetConfig:
    """Load a config by name, from a YAML file, or from a dict.

    Args:
        source: one of ``config_names()``, a path, or a mapping of field names or published keys.

    Raises:
        ValueError: no such config, no YAML mapping, or a wrong key or value, by name.
    """
    if isinstance(source, SiteNetConfig):
        return source
    if isinstance(source, Mapping):
        return SiteNetConfig.from_dict(source)
    values = read_yaml(_config_file(source))
    try:
        return SiteNetConfig.from_dict(values)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _config_file(source: str | Path) -> Path:
    if isinstance(source, str) and source in config_names():
        return Path(str(resources.files("sitenet") / "configs" / f"{source}.yaml"))
    if Path(source).is_file():
        return Path(source)
    raise ValueError(
        f"no config named {str(source)!r} and no such file; named configs: "
        + ", ".join(config_names())
    )


def read_yaml(path: str | Path) -> dict[Any, Any]:
    """Read a YAML file that holds ``key: value`` lines.

    Raises:
        ValueError: the file is too large for a config, no YAML, or no mapping; names the file.
        OSError: the file cannot be read.
    """
    content = Path(path).read_bytes()
    if len(content) > MOST_BYTES:
        raise ValueError(f"{path} is no config: it has {len(content)} bytes")
    try:
        values = yaml.safe_load(content)
    except (yaml.YAMLError, UnicodeError, ValueError, RecursionError, TypeError) as error:
        raise ValueError(f"{path} is not a YAML file: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold `key: value` lines, got {type(values).__name__}")
    return values


def config_names() -> list[str]:
    """Names of the configs that ship with sitenet."""
    folder = resources.files("sitenet") / "configs"
    return sorted(p.name.removesuffix(".yaml") for p in folder.iterdir() if p.name[-5:] == ".yaml")
