"""The end of a training run: the best model, rounded, calibrated, judged and saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sitenet.config import SiteNetConfig, TrainingConfig
from sitenet.data.dataset import Dataset
from sitenet.data.failures import LeftOut
from sitenet.inference import evaluate as evaluation
from sitenet.model.calibration import calibrate, errors_of, spread
from sitenet.model.ensemble import Ensemble, Model
from sitenet.model.neighbours import Fingerprints, TrainingIndex
from sitenet.model.packing import pack, unpack
from sitenet.model.surroundings import Surroundings
from sitenet.model.target import learned_values
from sitenet.system.distributed import is_first, local_world
from sitenet.system.progress import Reporter
from sitenet.system.workers import default_workers
from sitenet.training.data import TrainingData
from sitenet.training.platt import Platt, calibrate_probabilities
from sitenet.training.state import write_config
from sitenet.training.trainer import MODEL, Trainer
from sitenet.training.validation import outputs, properties

SAMPLE = 5000  # training crystals that calibrate the distance to the training set


@dataclass(eq=False)
class Result:
    """What a training run leaves.

    Attributes:
        model: The best model; an Ensemble of the best ones if there are several members.
        history: One dict per epoch, as in ``metrics.jsonl``; for an ensemble, member after member,
            with "member" in each.
        scores: Split -> target -> error measures (``sitenet.inference.metrics``) of the best model.
        left_out: Structures that could not be used.
        folder: Run folder, or None.
        probabilities: How the probabilities of each class were calibrated.
    """

    model: Model
    history: list[dict[str, Any]]
    scores: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    left_out: list[LeftOut] = field(default_factory=list)
    folder: Path | None = None
    probabilities: dict[str, Platt] = field(default_factory=dict)


def finish(
    trainers: Sequence[Trainer],
    dataset: Dataset,
    config: SiteNetConfig,
    folder: Path | None,
    reporter: Reporter,
    bits: int | None,
) -> Result:
    """Round the best model, or the best members together, to so many bits and calibrate it; save it
    and its predictions."""
    parts = trainers[0].data.parts
    best, history = _combined(trainers)
    y, encodings, probabilities = _calibrate(best, trainers[0].data, bits)
    for name, one in probabilities.items():
        reporter.say(one.described(name))
    if best.calibration is not None and len(parts.train):
        best.calibration.index = _index(best, dataset, trainers[0].data)
    evaluated = {"valid": parts.valid, "test": parts.test}
    predictions = evaluation.Predictions.of(best, dataset, evaluated, y, encodings)
    learned = dataset.targets[parts.train]
    mean, median = np.nanmean(learned, axis=0), np.nanmedian(learned, axis=0)
    scores = predictions.scores(mean, median)
    if folder is not None and is_first():
        epochs = [each.progress.best_epoch for each in trainers]
        facts = {
            "epoch": epochs if len(trainers) > 1 else epochs[0],
            "crystals": {k: len(v) for k, v in vars(parts).items()},
            "scores": scores,
        }
        if probabilities:
            facts["probabilities"] = {name: vars(one) for name, one in probabilities.items()}
        if len(trainers) > 1:
            write_config(folder, config)
        best.save(folder / MODEL, facts, bits)
        predictions.write(folder / "predictions.csv")
        predictions.plot(folder, history if len(trainers) == 1 else [], reporter)
    for line in no_better_than_a_constant(scores, config.training, len(parts.train)):
        reporter.say(line)
    return Result(best, history, scores, dataset.left_out, folder, probabilities)


def _combined(trainers: Sequence[Trainer]) -> tuple[Model, list[dict[str, Any]]]:
    """The best model of the members, and the history of all of them."""
    if len(trainers) == 1:
        return trainers[0].best.eval(), trainers[0].progress.history
    history = [
        {"member": number, **entry}
        for number, trainer in enumerate(trainers, 1)
        for entry in trainer.progress.history
    ]
    return Ensemble([each.best for each in trainers]).eval(), history


def _calibrate(
    model: Model, data: TrainingData, bits: int | None
) -> tuple[np.ndarray, np.ndarray, dict[str, Platt]]:
    """Round a model to so many bits and calibrate it.

    Returns:
        Properties and encodings of the validation and then the test crystals, and how the
        probabilities of classes were calibrated.
    """
    parts = data.parts
    _round(model, bits)
    sample = parts.train
    if len(sample) > SAMPLE:
        sample = np.random.default_rng(0).choice(sample, SAMPLE, replace=False)
    _, train_encodings = outputs(model, data.store, sample)
    evaluated = np.concatenate([parts.valid, parts.test]).astype(int)
    y, encodings = outputs(model, data.store, evaluated)
    count = len(parts.valid)
    probabilities = calibrate_probabilities(model, encodings[:count], data.targets[parts.valid])
    if probabilities:
        _round(model, bits)
        y = properties(model, encodings)
    model.calibration = calibrate(
        data.targets[parts.valid],
        learned_values(model.targets, y[:count]),
        encodings[:count],
        train_encodings,
        spread=spread(model, encodings[:count]),
        valid=Surroundings.of(data.store, parts.valid) if count else None,
        train=Surroundings.of(data.store, parts.train),
    )
    if count:
        model.calibration.errors = errors_of(model, encodings[:count], data.targets[parts.valid])
    return y, encodings, probabilities


def _round(model: Model, bits: int | None) -> None:
    if bits is not None:
        model.load_state_dict(unpack(pack(model.state_dict(), bits)))


def _index(model: Model, dataset: Dataset, data: TrainingData) -> TrainingIndex:
    """Index the training crystals, so that a prediction can name the nearest ones."""
    rows = data.parts.train
    _, encodings = outputs(model, data.store, rows)
    crystals = [dataset.crystals[k] for k in rows]
    return TrainingIndex.fit(
        encodings,
        dataset.targets[rows],
        [dataset.ids[k] for k in rows],
        [crystal.reduced_formula for crystal in crystals],
        Fingerprints.of(crystals, max(1, default_workers(len(crystals)) // local_world())),
    )


def no_better_than_a_constant(
    scores: Mapping[str, Mapping[str, Mapping[str, float]]], config: TrainingConfig, crystals: int
) -> list[str]:
    """Warnings for targets that the model predicts no better than a constant would.

    Args:
        scores: As in ``Result``; the test crystals count if there are any, else the validation
            crystals.
        config: Settings of the training.
        crystals: Number of training crystals.

    Returns:
        One line per target; empty for a model that has learned.
    """
    advice = (
        f"Try more epochs (now {config.epochs}), another learning_rate (now "
        f"{config.learning_rate:g}), more crystals (now {crystals})"
    )
    if not config.scale_targets:
        advice += ", or scale_targets: true"
    part = "test" if "test" in scores else "valid"
    title = {"test": "test", "valid": "validation"}[part]
    lines = []
    for name, values in scores.get(part, {}).items():
        constants = {x: values.get(f"mae_of_{x}", np.inf) for x in ("mean", "median")}
        best = min(constants, key=lambda x: constants[x])
        if values.get("mae", -np.inf) >= constants[best]:
            comparison = (
                f"MAE {values['mae']:.4g}, against {constants[best]:.4g} from always predicting "
                f"the {best}"
            )
        elif values.get("roc_auc", 1.0) <= 0.5:
            comparison = f"ROC AUC {values['roc_auc']:.4g}, against 0.5 from chance"
        else:
            continue
        lines.append(
            f"WARNING: the model has not learned {name}: on the {title} crystals, {comparison}. "
            f"{advice}"
        )
    return lines
