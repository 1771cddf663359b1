"""A search for settings: trials of an Optuna study, the best of which becomes a config.

The study is kept in an SQLite file, so that an interrupted search resumes. Once the data have been
read, several processes may run the same command on it. Trials are ranked by their validation
error; the test crystals stay unseen.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml

from sitenet.config import DEFAULT_CONFIG, SiteNetConfig, load_config
from sitenet.data.dataset import Dataset, Preparation
from sitenet.data.failures import write_left_out
from sitenet.data.prepare import open_dataset
from sitenet.data.splits import split
from sitenet.system.distributed import launched
from sitenet.system.files import fingerprint, writable_folder, write_csv, write_text
from sitenet.system.progress import Reporter
from sitenet.training.recipe import described, open_settings
from sitenet.training.search_space import read_space, suggest, values_of
from sitenet.training.study import STUDY, complete, finished, named_failures, open_study
from sitenet.training.targets import sets_last_activation
from sitenet.training.train import Stopped, train

if TYPE_CHECKING:
    import optuna

BEST = "best.yaml"


@dataclass(eq=False)
class Tuned:
    """The best trial so far.

    Attributes:
        config: The config with its settings.
        values: The settings that were searched for.
        valid_error: Its validation error: the sum over targets, in their scales.
        number: Its number.
        trials: Number of trials that are finished, pruned ones included.
        path: YAML file of the config.
        command: Shell command that trains with this config.
    """

    config: SiteNetConfig
    values: dict[str, Any]
    valid_error: float
    number: int
    trials: int
    path: Path
    command: str


def tune(
    data: str | Path,
    out: str | Path,
    config: str | Path | Mapping[str, Any] | SiteNetConfig = DEFAULT_CONFIG,
    *,
    target: str | Sequence[str] | None = None,
    unit: str | Sequence[str] | None = None,
    classes: Sequence[str] = (),
    split_column: str | None = None,
    fold: str | None = None,
    trials: int = 50,
    timeout: float | None = None,
    sampler: str = "tpe",
    pruner: str = "median",
    space: str | Path | Mapping[str, Any] | None = None,
    primitive: bool | None = None,
    disorder: str | None = None,
    device: str | torch.device = "cpu",
    workers: int | None = None,
    reporter: Reporter | None = None,
    **changes: Any,
) -> Tuned:
    """Search for settings.

    Args:
        data: As in ``train``.
        out: Folder for ``study.db``, ``best.yaml`` (a config for ``train``), ``trials.csv``, and
            the dataset with its pairs. The same call resumes the study there.
        config: What the trials start from, with ``changes``.
        target: As in ``train``.
        unit: As in ``train``.
        classes: As in ``train``.
        split_column: As in ``train``.
        fold: As in ``train``; its crystals stay unseen.
        trials: Number of trials of the whole study.
        timeout: Time after which no trial starts, in seconds.
        sampler: What chooses trials: "tpe" or "random".
        pruner: What ends hopeless trials early: "median", "hyperband" or "none".
        space: Field of the config -> list of choices, or a mapping of ``low``, ``high`` and
            optionally ``log: true``; or a YAML file of these. None takes ``SPACE``.
        primitive: As in ``train``.
        disorder: As in ``train``.
        device: As in ``train``.
        workers: As in ``train``.
        reporter: Shows progress.
        changes: Fields of the config to change. ``epochs`` and ``max_crystals`` here are for the
            search only: ``best.yaml`` has those of ``config``, and leaves open what ``config``
            does.

    Raises:
        ImportError: Optuna is not installed.
        ValueError: The data, the config or the space cannot be used, or the folder holds another
            study or a damaged one.
        OSError: The folder cannot be written to.
        RuntimeError: No trial succeeded.
        Stopped: Interrupted; the message says how to resume.
    """
    try:
        import optuna
    except ImportError:
        raise ImportError("tune needs Optuna: pip install 'sitenet[tune]'") from None
    if launched() > 1:
        raise ValueError("a trial runs in one process: start tune itself several times")
    reporter = reporter or Reporter()
    inputs = {"primitive": primitive, "disorder": disorder}
    changes |= {name: value for name, value in inputs.items() if value is not None}
    search = _Search(config, changes, space, classes, fold, device, workers)
    out = writable_folder(out)
    targets = [target] if isinstance(target, str) else target
    units = [unit] if isinstance(unit, str) else unit
    dataset = open_dataset(
        data,
        targets,
        units=units,
        split_column=split_column,
        how=Preparation(search.base.primitive, search.base.disorder),
        prepared_as=out / "dataset.parquet",  # beside which the pairs of all trials are kept
        workers=workers,
        reporter=reporter,
    )
    write_left_out(dataset.left_out, out / "left_out.csv")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    settings = search.settings(dataset)
    search.choose_size(dataset, reporter)
    with open_study(out, settings, sampler, pruner, search.trial_base.training) as study:
        _run_trials(study, search, dataset, out, trials, timeout, reporter)
        best = study.best_trial
        options: dict[str, str | Sequence[str] | None] = {"--target": targets, "--unit": units}
        options |= {"--class": classes, "--split-column": split_column, "--fold": fold}
        return Tuned(
            search.config(best),
            values_of(best, search.space),
            study.best_value,
            best.number,
            len(finished(study)),
            out / BEST,
            _command(data, out, options, search.base),
        )


class _Search:
    """What the trials of a study share.

    Args:
        config: As in ``tune``, like all others.
        changes: With ``primitive`` and ``disorder``.
        space: As in ``tune``.
        classes: As in ``tune``.
        fold: As in ``tune``.
        device: As in ``tune``.
        workers: As in ``tune``.
    """

    def __init__(
        self,
        config: str | Path | Mapping[str, Any] | SiteNetConfig,
        changes: Mapping[str, Any],
        space: str | Path | Mapping[str, Any] | None,
        classes: Sequence[str],
        fold: str | None,
        device: str | torch.device,
        workers: int | None,
    ) -> None:
        original = load_config(config)
        self.base = original.replace(**changes)
        if not self.base.training.valid:
            raise ValueError("tune chooses by the validation crystals: valid must be above 0")
        self.trial_base = self.base  # see choose_size
        training = original.training
        self.kept = {"epochs": training.epochs, "max_crystals": training.max_crystals}  # at the end
        self.space = read_space(space)
        self.classes, self.fold, self.device, self.workers = classes, fold, device, workers
        activation_is_set = sets_last_activation(config, changes) or "last_activation" in self.space
        self.fixed: dict[str, Any] = {}  # changes of every trial
        if activation_is_set and "last_activation" not in self.space:
            self.fixed["last_activation"] = self.base.last_activation

    def choose_size(self, dataset: Dataset, reporter: Reporter) -> None:
        """Choose the batch size and the epochs of all trials where the config leaves them open."""
        training = self.base.training
        parts = split(
            dataset, training.valid, training.test, training.seed, self.fold, training.group
        )
        sampled = min(1.0, (training.max_crystals or len(dataset)) / len(dataset))
        count = round(len(parts.train) * sampled)
        chosen = open_settings(training, count, has_start=False)
        if chosen:
            reporter.say(described(count, chosen))
        self.trial_base = self.base.replace(**chosen)

    def settings(self, dataset: Dataset) -> str:
        """Hash what fixes the study."""
        return fingerprint(
            self.base.to_dict(),
            self.space,
            list(self.classes),
            self.fold,
            dataset.key,
            dataset.names,
        )

    def objective(self, trial: optuna.Trial, dataset: Dataset) -> float:
        """Train with the settings of a trial; returns the lowest validation error."""
        import optuna

        values = {name: suggest(trial, name, choices) for name, choices in self.space.items()}

        def judge(entry: dict[str, Any]) -> None:
            trial.report(_error(entry), entry["epoch"])
            if trial.should_prune():
                raise optuna.TrialPruned(f"hopeless after epoch {entry['epoch']}")

        try:
            result = train(
                dataset,
                None,
                self.trial_base.replace(members=1),
                target=dataset.names,
                classes=self.classes,
                fold=self.fold,
                device=self.device,
                workers=self.workers,
                after_epoch=judge,
                **{**self.fixed, **values},
            )
        except (ValueError, RuntimeError) as error:  # impossible settings, or a loss that diverged
            trial.set_user_attr("reason", str(error))
            raise optuna.TrialPruned(str(error)) from None
        trial.set_user_attr("last_activation", result.model.config.last_activation)
        lowest = min(_error(entry) for entry in result.history)
        trial.set_user_attr("checksum", fingerprint(trial.params, lowest))
        return lowest

    def config(self, trial: optuna.trial.FrozenTrial) -> SiteNetConfig:
        """The config of a trial, to train with: for as long as the search's config says."""
        activation = {"last_activation": trial.user_attrs["last_activation"]}
        values = {**self.kept, **activation, **values_of(trial, self.space)}
        return self.base.replace(**values)


def _run_trials(
    study: optuna.Study,
    search: _Search,
    dataset: Dataset,
    out: Path,
    trials: int,
    timeout: float | None,
    reporter: Reporter,
) -> None:
    """Run the trials that are missing, and write the table and the best config after each."""

    def after_trial(study: optuna.Study, trial: optuna.trial.FrozenTrial) -> None:
        _report(reporter, study, trial, search)
        _write(study, search, out)
        if len(finished(study)) >= trials:
            study.stop()

    done = len(finished(study))
    if done:
        reporter.say(f"resumes after {done} trials of {out}")
    try:
        if done < trials:
            with named_failures(out / STUDY):
                study.optimize(
                    lambda trial: search.objective(trial, dataset),
                    timeout=timeout,
                    callbacks=[after_trial],
                )
    except KeyboardInterrupt:
        raise Stopped(
            f"{len(finished(study))} trials are in {out}: the same command resumes from there"
        ) from None
    if not complete(study):
        reasons = [t.user_attrs["reason"] for t in study.trials if "reason" in t.user_attrs]
        raise RuntimeError(f"no trial succeeded{': ' + reasons[-1] if reasons else ''}")


def _command(data: str | Path, out: Path, options: Mapping[str, Any], config: SiteNetConfig) -> str:
    """The shell command that trains with the best config."""
    words = ["sitenet", "train", str(data), "--config", str(out / BEST), "--out", str(out / "run")]
    for option, values in options.items():
        for value in [values] if isinstance(values, str) else values or ():
            words += [option, value]
    if not config.primitive:
        words.append("--no-primitive")
    if config.disorder != "error":
        words += ["--disorder", config.disorder]
    return shlex.join(words)


def _error(entry: Mapping[str, Any]) -> float:
    """The validation error of an epoch; infinite if it is not a number."""
    error = entry["valid_error"]
    return float("inf") if error is None else error


def _report(
    reporter: Reporter, study: optuna.Study, trial: optuna.trial.FrozenTrial, search: _Search
) -> None:
    """Report the outcome of a trial in one line."""
    settings = ", ".join(
        f"{k} {x:.3g}" if isinstance(x, float) else f"{k} {x}"
        for k, x in values_of(trial, search.space).items()
    )
    if trial.state.name == "COMPLETE":
        best = " (best so far)" if study.best_trial.number == trial.number else ""
        outcome = f"validation error {trial.value:.4g}{best}"
    else:
        reason = trial.user_attrs.get("reason")
        outcome = f"given up: {reason}" if reason else "given up"
    reporter.say(f"trial {trial.number}: {outcome}  {settings}")


def _write(study: optuna.Study, search: _Search, out: Path) -> None:
    """Write the table of trials, and the best one's config."""
    header = ["trial", "state", "epochs", "valid_error", "seconds", *search.space]
    rows = []
    for t in study.trials:
        seconds = t.duration.total_seconds() if t.duration else ""
        error = t.value if t.value is not None else ""
        row = [t.number, t.state.name.lower(), t.last_step or 0, error, seconds]
        rows.append(row + [t.params.get(name, "") for name in search.space])
    write_csv(out / "trials.csv", header, rows)
    if complete(study):
        best = search.config(study.best_trial)
        write_text(out / BEST, yaml.safe_dump(best.to_dict(), sort_keys=False))
