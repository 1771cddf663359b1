"""Errors of a model on its validation crystals."""

from __future__ import annotations

import numpy as np
import torch
import torch.distributed as dist

from sitenet.config import TrainingConfig
from sitenet.inference.metrics import class_scores, regression_scores
from sitenet.inference.predict import from_store
from sitenet.model.ensemble import Model
from sitenet.model.target import learned_values
from sitenet.pairs.store import PairStore
from sitenet.system.distributed import rank, world
from sitenet.training.data import TrainingData
from sitenet.training.optimizer import batches


def outputs(model: Model, store: PairStore, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predict crystals, divided over the ranks.

    Args:
        model: The model.
        store: Pairs of all crystals.
        index: (crystals,) their numbers.

    Returns:
        Properties (crystals, targets) float64 and encodings (crystals, encoding), on every rank.
    """
    first, count = rank(), world()
    predictions = from_store(model, store, index[first::count])
    y = torch.zeros(len(index), len(model.targets), dtype=torch.float64)
    encoding = torch.zeros(len(index), model.encoding_size)
    if predictions:
        y[first::count] = torch.from_numpy(np.stack([p[0] for p in predictions]))
        encoding[first::count] = torch.from_numpy(np.stack([p[1] for p in predictions]))
    if count > 1:
        for x in (y, encoding):
            on_device = x.to(store.columns["sites"].device)
            dist.all_reduce(on_device)
            x.copy_(on_device)
    return y.numpy(), encoding.numpy()


@torch.no_grad()
def properties(model: Model, encodings: np.ndarray) -> np.ndarray:
    """Properties, (crystals, targets) float64, from encodings, (crystals, encoding)."""
    z = torch.as_tensor(encodings, device=model.element_table.device)
    return model.properties(z).double().cpu().numpy()


def validation_errors(
    model: Model, data: TrainingData, config: TrainingConfig, epoch: int
) -> dict[str, float]:
    """Errors on the validation crystals.

    Args:
        model: The model.
        data: Whose validation crystals are predicted.
        config: ``valid_mean: batches`` takes the mean over batches, as published.
        epoch: Seeds the order of those batches.

    Returns:
        ``valid_TARGET_MEASURE`` for each target, on the scale that is learned, and
        ``valid_error``, by which the best epoch is chosen: the sum over targets, in units of their
        standard deviations. Empty if no value is known.
    """
    index = data.parts.valid
    y = learned_values(model.targets, outputs(model, data.store, index)[0])
    truth = data.targets[index]
    if not np.isfinite(truth).any():
        return {}
    in_batches = config.valid_mean == "batches"
    parts = validation_batches(data, config, epoch) if in_batches else []
    errors: dict[str, float] = {}
    total = 0.0
    for k, target in enumerate(model.targets):
        is_class = target.kind == "class"
        scores = class_scores if is_class else regression_scores
        error, shown = ("log_loss", "roc_auc") if is_class else ("mae", "mae")
        overall = scores(truth[:, k], y[:, k])
        errors[f"valid_{target.name}_{shown}"] = overall[shown]
        if not overall["crystals"]:
            continue
        mean = overall[error]
        if parts:
            each = [scores(truth[part, k], y[part, k]) for part in parts]
            mean = float(np.mean([one[error] for one in each if one["crystals"]]))
            errors[f"valid_{target.name}_{error}_of_batches"] = mean
        total += mean / target.std
    return errors | {"valid_error": total}


def validation_batches(data: TrainingData, config: TrainingConfig, epoch: int) -> list[list[int]]:
    """Places among the validation crystals, in batches; the published code shuffles them in each
    epoch."""
    sites = data.store.num_sites[data.parts.valid].tolist()
    return list(batches(sites, config, [config.seed, epoch, 1]))
