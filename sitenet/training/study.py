"""The Optuna study in the folder of a search: opened, checked, and closed."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sitenet.config import TrainingConfig
from sitenet.system.files import fingerprint

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("tpe", "random")
PRUNERS = ("median", "hyperband", "none")
STUDY = "study.db"
STARTUP = 5  # trials before the median prunes


@contextlib.contextmanager
def open_study(
    out: Path, settings: str, sampler: str, pruner: str, training: TrainingConfig
) -> Iterator[optuna.Study]:
    """Open the study in a folder, or create it, and close its file at the end."""
    import optuna

    for name, value, allowed in (("sampler", sampler, SAMPLERS), ("pruner", pruner, PRUNERS)):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
    path = out / STUDY
    _check_database(path)
    with named_failures(path):
        storage = optuna.storages.RDBStorage(f"sqlite:///{path.absolute()}")
    try:
        with named_failures(path):
            study = optuna.create_study(storage=storage, study_name="sitenet", load_if_exists=True)
            known = study.user_attrs.get("settings", settings)
            study.set_user_attr("settings", known)
            trials = study.trials
        if known != settings:
            raise ValueError(
                f"{out} holds a study with other data, config or space: choose another folder, or "
                "remove it to start over"
            )
        for trial in trials:
            checksum = fingerprint(trial.params, trial.value)
            if trial.state.name == "COMPLETE" and trial.user_attrs.get("checksum") != checksum:
                raise ValueError(
                    f"{path} is damaged: trial {trial.number} does not match its checksum"
                )
        seed = training.seed + len(trials)  # so that trials do not repeat
        sampler_class = {
            "tpe": optuna.samplers.TPESampler,
            "random": optuna.samplers.RandomSampler,
        }[sampler]
        study.sampler = sampler_class(seed=seed)
        if pruner == "median":
            study.pruner = optuna.pruners.MedianPruner(STARTUP)
        elif pruner == "hyperband":
            study.pruner = optuna.pruners.HyperbandPruner(max_resource=training.epochs or "auto")
        else:
            study.pruner = optuna.pruners.NopPruner()
        yield study
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _check_database(path: Path) -> None:
    """Check the structure of an SQLite file, if it exists.

    Raises:
        ValueError: It is damaged; the message names it.
    """
    if not path.exists():
        return
    try:
        with contextlib.closing(sqlite3.connect(path)) as database:
            (result,) = database.execute("PRAGMA integrity_check(1)").fetchone()
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged or no study: {error}") from None
    if result != "ok":
        raise ValueError(f"{path} is damaged: {result}")


@contextlib.contextmanager
def named_failures(path: Path) -> Iterator[None]:
    """Report failures of the database by the name of its file.

    After such a failure Optuna raises an AssertionError of its own; the chain of causes holds the
    first one.
    """
    import sqlalchemy.exc

    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, (sqlalchemy.exc.SQLAlchemyError, sqlite3.Error)):
                detail = str(getattr(cause, "orig", None) or cause).partition("\n")[0]
                raise RuntimeError(f"{path} cannot be read or written: {detail}") from error
            cause = cause.__cause__ or cause.__context__
        raise


def complete(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return [t for t in study.trials if t.state.name == "COMPLETE"]


def finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials that count: all but the interrupted ones."""
    return [t for t in study.trials if t.state.name in ("COMPLETE", "PRUNED")]
