"""The keys of published Site-Net configs, read into a ``SiteNetConfig``.

Source: the YAML files of github.com/lrcfmd/Site-Net, commit 18c0218.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sitenet.config import (
    SITE_FEATURES,
    InteractionFeature,
    SiteNetConfig,
    TrainingConfig,
    as_features,
)
from sitenet.system.settings import check_keys

_RENAMED = {
    "embedding_size": "embedding",
    "attention_heads": "heads",
    "attention_blocks": "blocks",
    "site_dim_per_head": "site_dim",
    "attention_dim_interaction": "interaction_dim",
    "attention_hidden_layers": "hidden",
    "pre_pool_layers": "pre_pool",
    "post_pool_layers": "post_pool",
    "activation_function": "activation",
    "set_norm": "norm",
    "lin_norm": "post_pool_norm",
    "sym_func": "pooling",
    "last_af_func": "last_activation",
}
# What the published encoder takes where a key is absent.
_ABSENT = {
    "embedding": 100,
    "heads": 4,
    "blocks": 4,
    "site_dim": 64,
    "interaction_dim": 64,
    "hidden": (256, 256),
    "pre_pool": (256, 256),
    "post_pool": (256, 256),
    "activation": "relu",
    "norm": "none",
    "post_pool_norm": "none",
    "pooling": "mean",
    "last_activation": "identity",
}
# Read otherwise below.
_READ = {
    "distance_cutoff",
    "k_softmax",
    "interaction_feature_size",
    "site_feature_size",
    "Interaction_Features",
    "Site_Features",
    "dynamic_batch",
    "Batch_Size",
    "Learning_Rate",
    "Optimizer",
    "Trainer kwargs",
    "Max_Samples",
}
# Found in published files without effect on the model.
_WITHOUT_EFFECT = {
    "label",
    "h5_file",
    "pipeline_name",
    "alpha",
    "beta",
    "attention_dim_per_head",
    "attention_hidden_layers_n",
    "attention_hidden_layers_size",
    "decoder_hidden_layers",
    "global_embedding_dim_per_block_per_head",
    "pool_strat",
    "pooling_heads",
    "pooling_seeds",
    "post_pool_layers_n",
    "post_pool_layers_size",
    "pre_pool_layers_n",
    "pre_pool_layers_size",
    "regularization strategy",
    "sample_dropout",
    "seed_dim_per_head",
    "sparse_rho",
}
_REFUSED_WHEN = {"tdot": True, "Learnt_Atomic_Embedding": False, "False_Sample": True}
_PUBLISHED_KEYS = (set(_RENAMED) | _READ | set(_REFUSED_WHEN)) - {"distance_cutoff", "k_softmax"}


def is_published_config(values: Mapping[str, Any]) -> bool:
    """Whether a mapping has keys that only published configs have."""
    return not _PUBLISHED_KEYS.isdisjoint(values)


def from_published_config(values: Mapping[str, Any]) -> SiteNetConfig:
    """The config that the keys of a published YAML describe.

    Raises:
        ValueError: a key that no published config has, or an option that is not supported, by name.
    """
    known = set(_RENAMED) | _READ | _WITHOUT_EFFECT | set(_REFUSED_WHEN)
    check_keys(values, known, "published config")
    for key, refused in _REFUSED_WHEN.items():
        if values.get(key, not refused) == refused:
            raise ValueError(f"{key}: {refused} is not supported")
    new: dict[str, Any] = dict(_ABSENT)
    new |= {ours: values[theirs] for theirs, ours in _RENAMED.items() if theirs in values}
    new["last_activation"] = str(new["last_activation"]).lower()
    if new["post_pool_norm"] == "instance" or new["norm"] == "instance":
        raise ValueError("norm 'instance' is not supported (lin_norm, set_norm: layer or none)")
    cutoff, k = values.get("distance_cutoff", -1), values.get("k_softmax", -1)
    new["distance_cutoff"] = cutoff if cutoff >= 0 else None
    new["k_softmax"] = k if k != -1 else None
    new["interaction_features"] = _published_interaction_features(values)
    new["site_features"] = _published_site_features(values)
    return SiteNetConfig(**new, training=_published_training(values))


def _published_interaction_features(values: Mapping[str, Any]) -> tuple[InteractionFeature, ...]:
    listed = values.get("Interaction_Features")
    size = values.get("interaction_feature_size")
    if listed is None:
        features = SiteNetConfig().interaction_features
        # The size alone does not name the others; these are the published ones, in their order.
        more = ("reciprocal_square_distance_matrix", "coulomb_matrix")
        features += as_features(more[: max(0, (size or 2) - 2)])
        features = features[: size or 2]
    else:
        features = as_features(listed)
    if size is not None and size != len(features):
        raise ValueError(
            f"interaction_feature_size is {size}, but Interaction_Features names {len(features)}"
        )
    return features


def _published_site_features(values: Mapping[str, Any]) -> tuple[str, ...]:
    listed = values.get("Site_Features")
    size = values.get("site_feature_size")
    if listed is None:
        return SITE_FEATURES[: len(SITE_FEATURES) if size is None else size]
    names: list[str] = []
    for each in listed:
        if each.get("name") != "SiteElementalProperty":
            raise ValueError(f"site featuriser {each.get('name')!r} is not supported")
        names += (each.get("Featurizer_KArgs") or {}).get("properties") or ()
    if size is not None and size != len(names):
        raise ValueError(f"site_feature_size is {size}, but Site_Features names {len(names)}")
    return tuple(names)


def _published_training(values: Mapping[str, Any]) -> TrainingConfig:
    new: dict[str, Any] = {}
    optimizer = values.get("Optimizer") or {}
    if optimizer.get("Name", "AdamW") != "AdamW":
        raise ValueError(f"Optimizer Name {optimizer['Name']!r} is not supported (AdamW is)")
    renamed = {"amsgrad": "amsgrad", "eps": "epsilon", "weight_decay": "weight_decay"}
    kwargs = optimizer.get("Kwargs") or {}
    check_keys(kwargs, set(renamed), "Optimizer Kwargs")
    new |= {renamed[k]: v for k, v in kwargs.items()}
    if "Learning_Rate" in values:
        new["learning_rate"] = values["Learning_Rate"]
    if "Batch_Size" in values:
        by_sites = values.get("dynamic_batch", True)
        new["batch_sites"] = values["Batch_Size"] if by_sites else 0
        new["batch_crystals"] = 0 if by_sites else values["Batch_Size"]
    new["accumulate"] = (values.get("Trainer kwargs") or {}).get("accumulate_grad_batches", 1)
    most = int(values.get("Max_Samples", 0))
    new["max_crystals"] = most if most < 1_000_000 else 0  # published files say "all" as 10^9
    return TrainingConfig(**new)
