"""A search for settings: trials of an Optuna study, the best of which becomes a config.

The study lies in an SQLite file, so that it goes on after an interruption; once the data are read,
the same command may work on it in several processes. Trials are chosen by the validation error; the
test crystals stay unseen.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from sitenet.config import SiteNetConfig, TrainingConfig, load_config
from sitenet.data.dataset import Preparation, write_left_out
from sitenet.data.prepare import open_dataset
from sitenet.system.distributed import launched
from sitenet.system.files import write_csv, write_text
from sitenet.system.progress import Reporter
from sitenet.training.train import Stopped, train

if TYPE_CHECKING:
    import optuna

SAMPLERS = ("tpe", "random")
PRUNERS = ("median", "hyperband", "none")
STARTUP = 5  # trials before the median prunes
SPACE: dict[str, Any] = {
    "learning_rate": {"low": 2e-4, "high": 4e-3, "log": True},
    "weight_decay": {"low": 1e-6, "high": 1e-1, "log": True},
    "batch_sites": [300, 600, 1200, 2400],
    "schedule": ["constant", "cosine", "onecycle"],
    "ema": [0.0, 0.99, 0.999],
    "blocks": {"low": 1, "high": 4},
    "heads": {"low": 2, "high": 6},
    "site_dim": [16, 30, 48],
    "interaction_dim": [8, 16, 24],
    "hidden": [[64], [128], [225]],
}


@dataclass(eq=False)
class Tuned:
    """The best trial so far.

    Attributes:
        config: with its settings.
        values: the settings that were searched for.
        valid_error: mean over targets of the validation error in their scale.
        number: of the trial.
        trials: that were finished, pruned ones too.
        path: of the config's YAML file.
    """

    config: SiteNetConfig
    values: dict[str, Any]
    valid_error: float
    number: int
    trials: int
    path: Path


def tune(
    data: str | Path,
    out: str | Path,
    config: str | Path | Mapping[str, Any] | SiteNetConfig = "paper",
    *,
    target: str | Sequence[str] | None = None,
    classes: Sequence[str] = (),
    split_column: str | None = None,
    fold: str | None = None,
    trials: int = 50,
    timeout: float | None = None,
    sampler: str = "tpe",
    pruner: str = "median",
    space: str | Path | Mapping[str, Any] | None = None,
    primitive: bool = True,
    disorder: str = "error",
    device: str | torch.device = "cpu",
    workers: int | None = None,
    reporter: Reporter | None = None,
    **changes: Any,
) -> Tuned:
    """Search for settings.

    Args:
        data: as in ``train``.
        out: a folder: ``study.db``, ``best.yaml`` (a config for ``train``), ``trials.csv``, and the
            dataset with its pairs. The same call goes on with the study there.
        config: what the trials start from; ``changes`` apply to it.
        target: as in ``train``.
        classes: as in ``train``.
        split_column: as in ``train``.
        fold: as in ``train``: its crystals stay unseen.
        trials: of the whole study.
        timeout: seconds after which no trial is started.
        sampler: "tpe" or "random".
        pruner: "median", "hyperband" or "none": what ends hopeless trials early.
        space: field of the config -> list of choices, or a mapping of ``low`` and ``high``, perhaps
            ``log: true``; or a YAML file of these; None takes ``SPACE``.
        primitive: as in ``train``.
        disorder: as in ``train``.
        device: as in ``train``.
        workers: as in ``train``.
        reporter: is told of each trial.
        changes: fields of the config to change.

    Raises:
        ImportError: Optuna is not installed.
        ValueError: the data, the config or the space cannot be used, or the folder holds a study
            of others.
        RuntimeError: no trial succeeded.
        Stopped: interrupted; says how to go on.
    """
    try:
        import optuna
    except ImportError:
        raise ImportError("tune needs Optuna: pip install 'sitenet[tune]'") from None
    if launched() > 1:
        raise ValueError("a trial runs in one process: start tune itself several times")
    reporter = reporter or Reporter()
    base = load_config(config).replace(**changes)
    if not base.training.valid:
        raise ValueError("tune chooses by the validation crystals: valid must be above 0")
    wanted = read_space(space)
    names = [target] if isinstance(target, str) else target
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    how = Preparation(primitive, disorder)
    dataset = open_dataset(
        data,
        names,
        split_column=split_column,
        how=how,
        prepared_as=out / "dataset.parquet",  # beside which the pairs of all trials lie
        workers=workers,
        reporter=reporter,
    )
    write_left_out(dataset.left_out, out / "left_out.csv")
    told = [base.to_dict(), wanted, list(classes), fold, dataset.key, dataset.names]
    settings = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with _study(out, settings, sampler, pruner, base.training) as study:

        def objective(trial: optuna.Trial) -> float:
            values = {name: _suggest(trial, name, of) for name, of in wanted.items()}

            def judge(entry: dict[str, Any]) -> None:
                trial.report(_error(entry), entry["epoch"])
                if trial.should_prune():
                    raise optuna.TrialPruned(f"hopeless after epoch {entry['epoch']}")

            try:
                settled = base.replace(members=1, **values)
                result = train(
                    dataset,
                    None,
                    settled,
                    target=dataset.names,
                    classes=classes,
                    fold=fold,
                    device=device,
                    workers=workers,
                    after_epoch=judge,
                )
            except (ValueError, RuntimeError) as error:  # settings that cannot be, or diverge
                trial.set_user_attr("reason", str(error))
                raise optuna.TrialPruned(str(error)) from None
            return min(_error(entry) for entry in result.history)

        def after_trial(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
            _say(reporter, study, trial)
            _write(study, base, wanted, out)
            if len(_finished(study)) >= trials:
                study.stop()

        done = len(_finished(study))
        if done:
            reporter.say(f"goes on after {done} trials of {out}")
        try:
            if done < trials:
                study.optimize(objective, timeout=timeout, callbacks=[after_trial])
        except KeyboardInterrupt:
            raise Stopped(
                f"{len(_finished(study))} trials are in {out}: the same command goes on from there"
            ) from None
        if not _complete(study):
            reasons = [t.user_attrs["reason"] for t in study.trials if "reason" in t.user_attrs]
            raise RuntimeError(f"no trial succeeded{': ' + reasons[-1] if reasons else ''}")
        best = study.best_trial
        values = _values(best, wanted)
        count = len(_finished(study))
        path = out / "best.yaml"
        return Tuned(base.replace(**values), values, study.best_value, best.number, count, path)


def _error(entry: Mapping[str, Any]) -> float:
    """The validation error of an epoch; infinite where it is not a number."""
    error = entry["valid_error"]
    return float("inf") if error is None else error


# ---------------------------------------------------------------------------------------------
# The space


def read_space(space: str | Path | Mapping[str, Any] | None) -> dict[str, Any]:
    """Check a space: field -> list of choices, or low, high and log.

    Raises:
        ValueError: a field that the config does not have, or values that are no such thing.
    """
    where, space = "space", SPACE if space is None else space
    if not isinstance(space, Mapping):
        where = str(space)
        try:
            space = yaml.safe_load(Path(space).read_text())
        except yaml.YAMLError as error:
            raise ValueError(f"{where} is not a YAML file: {error}") from None
    if not isinstance(space, Mapping) or not space:
        raise ValueError(f"{where} must hold `field: [choice, ...]` or `field: {{low, high}}`")
    kinds = _kinds()
    found: dict[str, Any] = {}
    for name, of in space.items():
        if name not in kinds:
            raise ValueError(f"{where}: unknown field {name!r}")
        if isinstance(of, list) and of:
            found[name] = of
        elif isinstance(of, Mapping) and {"low", "high"} <= set(of) <= {"low", "high", "log"}:
            kind = kinds[name]
            if kind not in (int, float):
                raise ValueError(f"{where}: {name} is no number: give a list of choices")
            # YAML takes 1e-4, without a dot, for a word.
            low, high = kind(float(of["low"])), kind(float(of["high"]))
            if not low < high:
                raise ValueError(f"{where}: {name}: low must be below high, got {low}, {high}")
            found[name] = {"low": low, "high": high, "log": bool(of.get("log", False))}
        else:
            raise ValueError(f"{where}: {name} must be a list, or low and high, got {of!r}")
    return found


def _kinds() -> dict[str, Any]:
    """The type of every field of a config."""
    kinds = typing.get_type_hints(SiteNetConfig) | typing.get_type_hints(TrainingConfig)
    names = {f.name for cls in (SiteNetConfig, TrainingConfig) for f in fields(cls)}
    return {name: kinds[name] for name in names - {"training", "members", "valid", "test", "seed"}}


def _suggest(trial: optuna.Trial, name: str, of: Any) -> Any:
    if isinstance(of, list):
        return json.loads(trial.suggest_categorical(name, [json.dumps(x) for x in of]))
    suggest = trial.suggest_int if isinstance(of["low"], int) else trial.suggest_float
    return suggest(name, of["low"], of["high"], log=of["log"])


def _values(trial: optuna.trial.FrozenTrial, space: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a trial as the config has them."""
    return {
        name: json.loads(x) if isinstance(space[name], list) else x
        for name, x in trial.params.items()
    }


# ---------------------------------------------------------------------------------------------
# The study


@contextlib.contextmanager
def _study(
    out: Path, settings: str, sampler: str, pruner: str, training: TrainingConfig
) -> Iterator[optuna.Study]:
    """The study in a folder, new or not, whose file is closed in the end."""
    import optuna

    for name, value, known in (("sampler", sampler, SAMPLERS), ("pruner", pruner, PRUNERS)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    storage = optuna.storages.RDBStorage(f"sqlite:///{(out / 'study.db').absolute()}")
    try:
        study = optuna.create_study(storage=storage, study_name="sitenet", load_if_exists=True)
        if study.user_attrs.setdefault("settings", settings) != settings:
            raise ValueError(
                f"{out} holds a study with other data, config or space: choose another folder, or "
                "remove it to start anew"
            )
        study.set_user_attr("settings", settings)
        seed = training.seed + len(study.trials)  # not the same trials again
        of = optuna.samplers.TPESampler if sampler == "tpe" else optuna.samplers.RandomSampler
        study.sampler = of(seed=seed)
        if pruner == "median":
            study.pruner = optuna.pruners.MedianPruner(STARTUP)
        elif pruner == "hyperband":
            study.pruner = optuna.pruners.HyperbandPruner(max_resource=training.epochs)
        else:
            study.pruner = optuna.pruners.NopPruner()
        yield study
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _complete(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return [t for t in study.trials if t.state.name == "COMPLETE"]


def _finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Trials that count: not those that were interrupted."""
    return [t for t in study.trials if t.state.name in ("COMPLETE", "PRUNED")]


def _say(reporter: Reporter, study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
    settings = ", ".join(
        f"{k} {x:.3g}" if isinstance(x, float) else f"{k} {x}" for k, x in trial.params.items()
    )
    if trial.state.name == "COMPLETE":
        star = " *" if study.best_trial.number == trial.number else ""
        how = f"validation error {trial.value:.4g}{star}"
    else:
        how = f"given up{': ' + trial.user_attrs['reason'] if trial.user_attrs else ''}"
    reporter.say(f"trial {trial.number}: {how}  {settings}")


def _write(study: optuna.Study, base: SiteNetConfig, space: Mapping[str, Any], out: Path) -> None:
    """The table of trials, and the best one's config."""
    header = ["trial", "state", "epochs", "valid_error", "seconds", *space]
    rows = []
    for t in study.trials:
        seconds = t.duration.total_seconds() if t.duration else ""
        last = t.value if t.value is not None else ""
        row = [t.number, t.state.name.lower(), t.last_step or 0, last, seconds]
        rows.append(row + [t.params.get(name, "") for name in space])
    write_csv(out / "trials.csv", header, rows)
    if _complete(study):
        best = base.replace(**_values(study.best_trial, space))
        write_text(out / "best.yaml", yaml.safe_dump(best.to_dict(), sort_keys=False))
