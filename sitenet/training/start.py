"""The choice of a model to start from, among the weights that ship."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sitenet.crystal.crystal import Crystal
from sitenet.data.dataset import Dataset
from sitenet.data.splits import Split
from sitenet.inference.evidence import learned_from
from sitenet.inference.predict import outputs
from sitenet.model.checkpoint import load
from sitenet.model.ensemble import Model
from sitenet.model.target import Target
from sitenet.system.files import write_text
from sitenet.system.model_files import shipped_weights
from sitenet.system.progress import Reporter
from sitenet.training.ridge import ridge_scores

AUTO = "auto"
GENERAL = ("mp-eform", "mp-gap")  # learned from many crystals of all kinds
TRAIN, VALID = 1000, 500  # crystals that are encoded to compare starts
LEAST = 10  # of each, for a comparison
CHOICE = "start.json"  # of a run folder


@dataclass(frozen=True)
class Choice:
    """A start, and why it was chosen.

    Attributes:
        start: Name of shipped weights.
        reason: In words.
    """

    start: str
    reason: str

    def write(self, folder: Path) -> None:
        """Note the choice in a run folder, so that a resumed run keeps it."""
        write_text(folder / CHOICE, json.dumps(vars(self)))

    @classmethod
    def read(cls, folder: Path | None) -> Choice | None:
        """The choice of the run in a folder; None if it made none."""
        if folder is None or not (folder / CHOICE).is_file():
            return None
        path = folder / CHOICE
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            raise ValueError(f"{path} is damaged: remove it to choose again") from None


def is_auto(start: Any) -> bool:
    """Whether the start is to be chosen.

    Raises:
        ValueError: It is to be chosen, and another one is named beside.
    """
    if isinstance(start, (list, tuple)) and AUTO in [x for x in start if isinstance(x, str)]:
        if len(start) > 1:
            raise ValueError("start auto chooses one model: name no other beside it")
        return True
    return isinstance(start, str) and start == AUTO


def any_start() -> str:
    """The name of some weights that ship, whose settings hold until the choice is made.

    Raises:
        ValueError: None ship.
    """
    shipped = shipped_weights()
    if not shipped:
        raise ValueError("start auto chooses among the weights that ship, and none do")
    return next((name for name in GENERAL if name in shipped), next(iter(shipped)))


def choose_start(
    dataset: Dataset,
    parts: Split,
    classes: Sequence[str],
    logarithms: Sequence[str],
    reporter: Reporter,
) -> Choice:
    """Choose the shipped weights to start from.

    Weights of the same property win. Else the candidates are weights of a property in the same
    unit, and those of GENERAL. Among these, the one from whose encodings a ridge regression, fitted
    to a sample of the training crystals, best predicts the validation crystals.

    Args:
        dataset: Crystals and targets.
        parts: Which of them train and validate; the test crystals are not looked at.
        classes: Targets that are 0 or 1.
        logarithms: Targets whose logarithm is learned.
        reporter: Is told the choice.
    """
    targets = [
        Target(
            name,
            unit,
            kind="class" if name in classes else "value",
            scale="log10" if name in logarithms else "linear",
        )
        for name, unit in zip(dataset.names, dataset.units, strict=True)
    ]
    shipped = {name: load(path) for name, path in shipped_weights().items()}
    rng = np.random.default_rng(0)
    train, valid = (
        np.sort(rng.permutation(rows)[:most])
        for rows, most in ((parts.train, TRAIN), (parts.valid, VALID))
    )
    same = [name for name, model in shipped.items() if _properties(model) == _kinds(targets)]
    if same:
        reason = _same_property(shipped[same[0]], [dataset.crystals[k] for k in valid])
        choice = Choice(same[0], reason)
    else:
        units = {t.unit for t in targets if t.kind == "value"} - {""}
        candidates = [
            name
            for name, model in shipped.items()
            if name in GENERAL or any(t.unit in units for t in model.targets)
        ] or list(shipped)
        choice = _by_ridge(
            {name: shipped[name] for name in candidates}, dataset, train, valid, targets
        )
    reporter.say(f"start: {choice.start}, {choice.reason}; --start NAME takes another")
    return choice


def _properties(model: Model) -> list[tuple[str, str]]:
    return _kinds(model.targets)


def _kinds(targets: Sequence[Target]) -> list[tuple[str, str]]:
    return [(target.name, target.kind) for target in targets]


def _same_property(model: Model, crystals: Sequence[Crystal]) -> str:
    """Why a model of the same property is chosen, and what that means for the errors."""
    reason = "which predicts the same property"
    if not len(crystals):
        return reason
    encodings = np.stack([z for _, z in outputs(model, crystals)])
    same = learned_from(model, crystals, encodings)
    if same is None:
        return reason
    share = float(np.mean([name != "" for name in same]))
    if share == 0:
        return f"{reason} and learned from none of the validation crystals"
    return (
        f"{reason} and learned from {share:.0%} of the validation crystals, so that errors will be "
        "too low"
    )


def _by_ridge(
    models: dict[str, Model],
    dataset: Dataset,
    train: np.ndarray,
    valid: np.ndarray,
    targets: Sequence[Target],
) -> Choice:
    """The model whose encodings predict the validation crystals best."""
    if min(len(train), len(valid)) < LEAST:
        start = next((name for name in GENERAL if name in models), next(iter(models)))
        return Choice(start, f"as fewer than {LEAST} crystals validate")
    rows = np.concatenate([train, valid])
    crystals = [dataset.crystals[k] for k in rows]
    is_train = np.arange(len(rows)) < len(train)
    errors = {}
    for name, model in models.items():
        x = np.stack([z for _, z in outputs(model, crystals)])
        total = 0.0
        for k, target in enumerate(targets):
            y = target.learned(dataset.targets[rows, k])
            total += _error(x, y, is_train, target.kind == "class")
        errors[name] = total / len(targets)
    best = min(errors, key=lambda name: errors[name])
    listed = ", ".join(f"{name} {error:.3f}" for name, error in errors.items())
    return Choice(
        best,
        f"by the validation error of ridge regressions on encodings of {len(train):,} crystals, in "
        f"standard deviations ({listed})",
    )


def _error(x: np.ndarray, y: np.ndarray, is_train: np.ndarray, is_class: bool) -> float:
    """The validation error of a ridge regression, in standard deviations of the training values; of
    a class, twice the area above the ROC curve, which is 1 for chance."""
    known = np.isfinite(y)
    parts = {
        "train": np.flatnonzero(known & is_train),
        "valid": np.flatnonzero(known & ~is_train),
    }
    if min(map(len, parts.values())) < LEAST:
        return 1.0
    scores = ridge_scores(x, y, {**parts, "test": parts["valid"]}, is_class)["valid"]
    if is_class:
        return 2 * scores if np.isfinite(scores) else 1.0
    return float(scores / (y[parts["train"]].std() or 1.0))
