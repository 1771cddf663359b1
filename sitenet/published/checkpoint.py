"""Weights of the published Site-Net: their names, and Lightning checkpoints.

Nothing is unpickled: a checkpoint is read by ``torch.load(weights_only=True)`` or refused.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sitenet.config import SiteNetConfig, load_config
from sitenet.crystal.elements import element_scale
from sitenet.model.checkpoint import load_exactly
from sitenet.model.sitenet import SiteNet

# Our names and the published ones, up to .weight and .bias; {b} and {k} stand for numbers.
_BLOCK = "encoder.Attention_Blocks.{b}"
_PUBLISHED_NAMES = {
    "embedding": "Elemental_Embeddings",
    "site_layer.linear": "encoder.site_featurization",
    "site_layer.norm": "encoder.site_featurization_norm.Norm",
    "pair_layer.linear": "encoder.interaction_featurization",
    "pair_layer.norm": "encoder.interaction_featurization_norm.Norm",
    "blocks.{b}.hidden.{k}.linear": f"{_BLOCK}.ije_to_multihead.linear_layers.{{k}}",
    "blocks.{b}.hidden.{k}.norm": f"{_BLOCK}.ije_to_multihead.norm_layers.{{k}}.Norm",
    "blocks.{b}.logits": f"{_BLOCK}.pre_softmax_linear",
    "blocks.{b}.attention.linear": f"{_BLOCK}.ije_to_attention_features.linear_layers.0",
    "blocks.{b}.attention.norm": f"{_BLOCK}.ije_to_attention_features.norm_layers.0.Norm",
    "blocks.{b}.interaction.linear": f"{_BLOCK}.ije_to_Interaction_Features.linear_layers.0",
    "blocks.{b}.interaction.norm": f"{_BLOCK}.ije_to_Interaction_Features.norm_layers.0.Norm",
    "blocks.{b}.out.linear": f"{_BLOCK}.global_linear.linear_layers.0",
    "blocks.{b}.out.norm": f"{_BLOCK}.global_linear.norm_layers.0.Norm",
    "pre_pool.{k}.linear": "encoder.pre_pool_layers.{k}",
    "pre_pool.{k}.norm": "encoder.pre_pool_layers_norm.{k}.Norm",
    "post_pool.{k}.linear": "encoder.post_pool_layers.{k}",
    "post_pool.{k}.norm": "encoder.post_pool_layers_norm.{k}",
    "decoder": "decoder",
}
_PATTERNS = [
    (re.compile(re.sub(r"\\\{(\w)\\\}", r"(?P<\1>\\d+)", re.escape(ours))), theirs)
    for ours, theirs in _PUBLISHED_NAMES.items()
]


def published_name(name: str) -> str:
    """The published name of one of a SiteNet's parameters."""
    stem, _, kind = name.rpartition(".")
    for pattern, theirs in _PATTERNS:
        if match := pattern.fullmatch(stem):
            return f"{theirs.format(**match.groupdict())}.{kind}"
    raise ValueError(f"parameter {name!r} has no published name")


def to_published(model: SiteNet) -> dict[str, Tensor]:
    """Rename a model's weights to their published names.

    What the published code does not do to its input and output is folded into the weights:
    standardised site features and an embedding without a largest norm into the first layer, the
    targets' mean and standard deviation into the decoder.

    Returns:
        Copies of the parameters, by published name (the ``state_dict`` of the published code).

    Raises:
        ValueError: the model has options that the published one lacks; names them.
    """
    if model.config.unpublished:
        raise ValueError(
            f"the published Site-Net has no counterpart of {', '.join(model.config.unpublished)}"
        )
    state = {k: v.detach().clone() for k, v in model.state_dict().items()}
    width = model.config.embedding
    weight, bias = state["site_layer.linear.weight"], state["site_layer.linear.bias"]
    if model.config.scale_site_features:
        mean, std = (torch.as_tensor(x).to(weight) for x in element_scale(model.config))
        features = weight[:, width : width + len(mean)]
        features /= std
        bias -= features @ mean
    if not model.config.max_norm:
        embedding = state["embedding.weight"]
        longest = torch.linalg.vector_norm(embedding, dim=1).max() * (1 + 1e-6)
        if longest > 1:
            embedding /= longest
            weight[:, :width] *= longest
    state["decoder.weight"] *= model.target_std[:, None]
    state["decoder.bias"] *= model.target_std
    state["decoder.bias"] += model.target_mean
    return {published_name(k): v for k, v in state.items()}


def from_published(
    config: str | Path | Mapping[str, Any] | SiteNetConfig, state: str | Path | Mapping[str, Any]
) -> SiteNet:
    """Build a model with published weights.

    Args:
        config: as in ``SiteNet.from_config``.
        state: a Lightning checkpoint file (or any file of ``torch.save``), its content, or its
            ``state_dict``.

    Raises:
        ValueError: keys are missing, extra or of the wrong shape (all of them are listed), the
            file is damaged, or it cannot be read without running code from it.
    """
    where, content = "the state_dict", state
    if isinstance(content, (str, Path)):
        where = str(content)
        content = _read_torch_file(Path(content))
    if isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    model = SiteNet(load_config(config))
    names = {published_name(k): k for k in model.state_dict()}
    load_exactly(model, {names.get(k, k): v for k, v in content.items()}, where, published_name)
    return model


class _StandIn:
    """Stands in for Lightning's own classes, which a checkpoint holds beside the weights."""


def _read_torch_file(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint file {str(path)!r}")
    _need_intact_zip(path)
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # no zip archive; torch.load says what is wrong
        names = []
    harmless = [name for name in names if name.startswith(("pytorch_lightning.", "lightning."))]
    if strange := sorted(set(names) - set(harmless)):
        raise ValueError(
            f"{path} is refused: reading it would run code, as it asks for {', '.join(strange)}. "
            "If you trust its origin, load it with torch.load(weights_only=False) yourself and "
            'save its "state_dict" alone, which holds only tensors.'
        )
    stand_ins: list[Any] = [
        (OrderedDict if name.endswith("AttributeDict") else _StandIn, name) for name in harmless
    ]
    try:
        with torch.serialization.safe_globals(stand_ins):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is refused: it is damaged, or reading it would run code. "
            f"torch.load(weights_only=True) says: {_reason(error)}."
        ) from None
    except Exception as error:  # torch raises many kinds for files that are no checkpoint
        raise ValueError(f"{path} is not a readable checkpoint: {_reason(error)}") from None
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a state_dict")
    return content


def _need_intact_zip(path: Path) -> None:
    """Raise ValueError if a part of a zip archive does not match its checksum, which torch does not
    look at. Files of torch before 1.6 are no archives and have none."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            part = archive.testzip()
    except Exception as error:  # of many classes, as damaged archives hold sizes and methods
        raise ValueError(f"{path} is not a readable checkpoint: {_reason(error)}") from None
    if part is not None:
        raise ValueError(f"{path} is damaged: {part} does not match its checksum")


def _reason(error: Exception) -> str:
    """The line that says what torch does not read, without its advice."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    telling = [line for line in lines if "WeightsUnpickler error:" in line]
    return (telling or lines)[0].strip().removeprefix("WeightsUnpickler error: ").rstrip(".")
