"""Training: a source or dataset -> a run folder with the best model.

Under torchrun each batch is divided over the processes and their gradients are summed, so that
several processes take the same steps as one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from sitenet.config import SiteNetConfig, load_config
from sitenet.data.dataset import Dataset, Preparation, Split, split, write_left_out
from sitenet.data.prepare import open_dataset
from sitenet.inference import evaluate as evaluation
from sitenet.model.calibration import calibrate, spread
from sitenet.model.checkpoint import load
from sitenet.model.ensemble import Ensemble, Model
from sitenet.model.sitenet import SiteNet, Target
from sitenet.model.surroundings import Surroundings
from sitenet.pairs.cache import pairs_of_dataset
from sitenet.pairs.store import PairStore
from sitenet.system.devices import choose_device, multiplies_bfloat16
from sitenet.system.distributed import barrier, is_first, process_group, world
from sitenet.system.files import locked, write_text
from sitenet.system.progress import Reporter
from sitenet.training.trainer import MODEL, STATE, Run


class Stopped(KeyboardInterrupt):
    """Training was interrupted; the message says what is saved and how to go on."""


@dataclass(eq=False)
class Result:
    """What a training run leaves.

    Attributes:
        model: the best one; an Ensemble of the best ones where there are several members.
        history: one dict an epoch, as in ``metrics.jsonl``; of an ensemble member after member,
            with "member" in each.
        scores: split -> target -> error measures (``sitenet.inference.metrics``) of the best model.
        left_out: structures that could not be used.
        folder: of the run, or None.
    """

    model: Model
    history: list[dict[str, Any]]
    scores: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    left_out: list[Any] = field(default_factory=list)
    folder: Path | None = None


def train(
    data: str | Path | Dataset,
    out: str | Path | None = None,
    config: str | Path | Mapping[str, Any] | SiteNetConfig = "paper",
    *,
    target: str | Sequence[str] | None = None,
    classes: Sequence[str] = (),
    fold: str | None = None,
    split_column: str | None = None,
    start: str | Path | Model | Sequence[str | Path | Model] | None = None,
    member: int | None = None,
    freeze: bool = False,
    refit: bool = False,
    primitive: bool = True,
    disorder: str = "error",
    device: str | torch.device = "cpu",
    workers: int | None = None,
    reporter: Reporter | None = None,
    after_epoch: Callable[[dict[str, Any]], None] = lambda entry: None,
    **changes: Any,
) -> Result:
    """Train a model.

    Args:
        data: a source (``sitenet.data.readers.open_source``), a file of ``sitenet prepare``, or a
            Dataset.
        out: the run folder: ``model.safetensors`` (the best one), ``config.yaml``,
            ``metrics.jsonl``, ``predictions.csv``, ``left_out.csv``, plots, and the state from
            which the same call goes on after an interruption, to the same bits. Members of an
            ensemble have folders of their own in it.
        config: as in ``SiteNet.from_config``; with ``start`` only how to train is taken from it,
            and the model's own settings are those of ``start``, but for ``changes``.
        target: the property or properties to learn; None takes the only one.
        classes: targets that are 0 or 1.
        fold: the value of the split column whose crystals are the test.
        split_column: of the source.
        start: a model to go on from (fine-tuning): weights, a file or a shipped name; of an
            ensemble, every member goes on. Several models are the members of one ensemble.
        member: number of the one member to train, from 1, so that each can have a process of its
            own; the call without it then puts them together.
        freeze: learn only the layers after pooling and the decoder.
        refit: learn from the test's crystals too, once a run without it has told the error; the
            validation crystals are those of that run, and nothing is tested.
        primitive: whether to find primitive cells first.
        disorder: "error" or "average", as in ``read_cif``.
        device: "cpu" or "cuda".
        workers: processes that read structures and find pairs; None chooses.
        reporter: is told how far it is.
        after_epoch: is given the history's entry after each epoch; what it raises ends the run.
        changes: fields of the config to change.

    Returns:
        The best model with its history and its errors.

    Raises:
        ValueError: the data, the config or the state in the folder cannot be used, or another
            process trains there.
        RuntimeError: the device is not there, or the loss diverged.
        Stopped: interrupted; says how to go on.
    """
    device = choose_device(device)
    config = load_config(config)
    given = _given(start)
    if given:
        config = given[0].config.replace(training=config.training)
        if len(given) > 1:
            config = config.replace(members=len(given))
    elif freeze:
        raise ValueError("freeze needs a model to start from")
    config = config.replace(**changes)
    _check_members(config, given, member, out, changes)
    names = [target] if isinstance(target, str) else target
    folder = None if out is None else Path(out)
    how = Preparation(primitive, disorder)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with process_group(device):
        reporter = Reporter() if reporter is None or not is_first() else reporter
        dataset = open_dataset(
            data,
            names,
            split_column=split_column,
            how=how,
            prepared_as=folder / "dataset.parquet" if folder is not None and world() > 1 else None,
            workers=workers,
            reporter=reporter,
        )
        if config.training.max_crystals and config.training.max_crystals < len(dataset):
            order = np.random.default_rng(config.training.seed).permutation(len(dataset))
            dataset = dataset.select(np.sort(order[: config.training.max_crystals]))
        dataset, store = _pairs(dataset, config, workers, reporter)
        parts = split(
            dataset, config.training.valid, config.training.test, config.training.seed, fold
        )
        if refit:
            parts = parts.without_test()
        targets = _targets(dataset, parts, classes, config)
        if given and _same_properties(given[0].targets, targets):
            targets = given[0].targets  # its decoder was learned in their scale
        reporter.say(
            f"{len(parts.train)} crystals to learn from, {len(parts.valid)} to validate, "
            f"{len(parts.test)} to test; {int(store.num_pairs.sum())} pairs"
        )
        if config.training.precision == "bfloat16" and not multiplies_bfloat16(device):
            reporter.say("products are in float32: this CPU has no instructions for bfloat16")
        _report_left_out(dataset, folder, reporter)
        _refuse_other_layout(folder, config)
        store = store.to(device)  # once for all members
        runs: list[Run] = []
        for number, one, place, first in _members(config, folder, given, member):
            model = _start(one, first, targets, freeze).to(device)
            seen = (dataset.crystals[k].oxidation for k in parts.train)
            charged = any(x is not None and x.any() for x in seen)
            model.uses_oxidation = charged or (first is not None and first.uses_oxidation)
            if not runs:
                _warn_of_negative(model, dataset.targets[parts.train])
            settings = _settings(model, dataset, parts, first, freeze)
            run = Run(model, store, dataset.targets, parts, place, settings, reporter, after_epoch)
            title = f"member {number} of {config.training.members}: "
            _train_one(run, title if config.training.members > 1 else "", reporter)
            runs.append(run)
        if member is not None:
            return Result(runs[0].best, runs[0].history, {}, dataset.left_out, runs[0].folder)
        return _finish(runs, dataset, folder, config, reporter)


def _given(start: str | Path | Model | Sequence[str | Path | Model] | None) -> list[SiteNet]:
    """The models to start from: none, one for all members, or one for each."""
    if start is None:
        return []
    several = [start] if isinstance(start, (str, Path, SiteNet, Ensemble)) else start
    models = [load(x) if isinstance(x, (str, Path)) else x for x in several]
    return [m for model in models for m in getattr(model, "members", [model])]


def _check_members(
    config: SiteNetConfig,
    given: Sequence[SiteNet],
    member: int | None,
    out: str | Path | None,
    changes: Mapping[str, Any],
) -> None:
    count = config.training.members
    if len(given) > 1 and count != len(given):
        raise ValueError(f"the model to start from has {len(given)} members, not {count}")
    for number, model in enumerate(given[1:], 2):
        if model.config.replace(training=config.training).replace(**changes) != config:
            raise ValueError(f"model {number} to start from has another config than the 1st")
    if member is not None:
        if count < 2 or not 1 <= member <= count:
            raise ValueError(f"no member {member}: the ensemble has {count} (members: {count})")
        if out is None:
            raise ValueError("a member alone needs a run folder, from which the ensemble takes it")


def _members(
    config: SiteNetConfig, folder: Path | None, given: Sequence[SiteNet], only: int | None
) -> Iterator[tuple[int, SiteNetConfig, Path | None, SiteNet | None]]:
    """Number, config, folder and start of each model to train."""
    count = config.training.members
    for k in range(count) if only is None else [only - 1]:
        place = folder
        if folder is not None and count > 1:
            place = folder / f"member-{k + 1}"
            place.mkdir(exist_ok=True)
        first = given[k if len(given) > 1 else 0] if given else None
        yield k + 1, config.replace(members=1, seed=config.training.seed + k), place, first


def _refuse_other_layout(folder: Path | None, config: SiteNetConfig) -> None:
    """Members beside a single model's state would not tell whose the results are."""
    if folder is None:
        return
    several = config.training.members > 1
    if (folder / STATE if several else folder / "member-1").exists():
        one, other = "a single model", "an ensemble"
        was, now = (one, other) if several else (other, one)
        raise ValueError(
            f"{folder} holds a run of {was}, this is one of {now}: choose another folder, or "
            "remove it to start anew"
        )


def _train_one(run: Run, title: str, reporter: Reporter) -> None:
    """Train a model to its end, or go on with it."""
    folder = run.folder
    with _alone(folder):
        if run.resume():
            reporter.say(f"{title}goes on after epoch {run.epoch} of {folder}")
        elif folder is not None and is_first():
            _write_config(run.model.config, folder)
        reporter.say(f"{title}{sum(p.numel() for p in run.optimizer.parameters)} parameters")
        try:
            run.run()
        except KeyboardInterrupt:
            if folder is None:
                raise
            where = f"epoch {run.epoch} was under way; what came before it is in {folder}"
            raise Stopped(f"{where}: the same command goes on from there") from None


@contextlib.contextmanager
def _alone(folder: Path | None) -> Iterator[None]:
    """Train in a folder where no other run does (the processes of one count as one)."""
    if folder is None or not is_first():
        yield
        return
    with locked(folder / ".lock", wait=False) as got:
        if not got:
            raise ValueError(f"another process is training in {folder}")
        yield


def _write_config(config: SiteNetConfig, folder: Path) -> None:
    write_text(folder / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False))


def _pairs(
    dataset: Dataset, config: SiteNetConfig, workers: int | None, reporter: Reporter
) -> tuple[Dataset, PairStore]:
    if not is_first():
        barrier()  # the first process fills the cache
    with reporter.bar("finding pairs", len(dataset)) as advance:
        found = pairs_of_dataset(dataset, config, workers, advance)
    if is_first():
        barrier()
    return found


def _targets(
    data: Dataset, parts: Split, classes: Sequence[str], config: SiteNetConfig
) -> list[Target]:
    unknown = [c for c in classes if c not in data.names]
    if unknown:
        raise ValueError(f"no target {', '.join(unknown)}; there is {', '.join(data.names)}")
    targets = []
    for k, name in enumerate(data.names):
        column = data.targets[:, k]
        values = column[parts.train][np.isfinite(column[parts.train])]
        if not len(values):
            raise ValueError(f"no training crystal has a value of {name}")
        if name in classes:
            wrong = column[np.isfinite(column) & (column != 0) & (column != 1)]
            if len(wrong):
                raise ValueError(f"{name} is a class: expected 0 or 1, got {wrong[0]:g}")
            targets.append(Target(name, kind="class"))
        elif config.training.scale_targets:
            std = float(values.std()) or 1.0
            targets.append(Target(name, data.units[k], float(values.mean()), std))
        else:
            targets.append(Target(name, data.units[k]))
    return targets


def _start(
    config: SiteNetConfig, given: SiteNet | None, targets: list[Target], freeze: bool
) -> SiteNet:
    """A new model, or the given one with these targets."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        model = SiteNet(config, targets)
    if given is None:
        return model
    content = given.state_dict()
    decoder = given if _same_properties(given.targets, targets) else model
    content |= _decoder(decoder, targets)
    try:
        model.load_state_dict(content)
    except RuntimeError as error:
        raise ValueError(f"the model to start from does not fit the config: {error}") from None
    if freeze:
        model.requires_grad_(False)
        model.post_pool.requires_grad_(True)
        model.decoder.requires_grad_(True)
    return model


def _same_properties(given: Sequence[Target], targets: Sequence[Target]) -> bool:
    return [(t.name, t.kind) for t in given] == [(t.name, t.kind) for t in targets]


def _decoder(model: SiteNet, targets: Sequence[Target]) -> dict[str, torch.Tensor]:
    """The decoder of a model as one whose output is in the scale of these targets."""
    weight, bias = model.decoder.weight.detach().clone(), model.decoder.bias.detach().clone()
    for k, (old, new) in enumerate(zip(model.targets, targets, strict=True)):
        if old != new:
            weight[k] *= old.std / new.std
            bias[k] = (bias[k] * old.std + old.mean - new.mean) / new.std
    return {"decoder.weight": weight, "decoder.bias": bias}


def _warn_of_negative(model: SiteNet, values: np.ndarray) -> None:
    """Say so where targets are negative and predictions cannot be."""
    name = model.config.last_activation
    for target, column in zip(model.targets, values.T, strict=True):
        if name != "identity" and target.kind == "value" and (column < 0).any():
            warnings.warn(
                f"{target.name} has negative values, of which last_activation: {name} predicts "
                "none; last_activation: identity does",
                stacklevel=3,
            )


def _settings(
    model: SiteNet, data: Dataset, parts: Split, given: SiteNet | None, freeze: bool
) -> str:
    """A hash of what fixes a run of a model that has not learned yet."""
    digest = hashlib.sha256(json.dumps(model.config.to_dict(), sort_keys=True).encode())
    digest.update(f"{model.targets} {freeze} ".encode())
    digest.update("\n".join(data.ids).encode())
    arrays = [data.targets, parts.train, parts.valid, parts.test]
    for crystal in data.crystals:
        arrays += [crystal.cell, crystal.frac, crystal.numbers]
        arrays += [x for x in (crystal.oxidation, crystal.occupancy) if x is not None]
    for values in arrays:
        digest.update(np.ascontiguousarray(values).tobytes())
    for x in given.state_dict().values() if given is not None else ():
        digest.update(x.cpu().numpy().tobytes())
    return digest.hexdigest()


def _report_left_out(data: Dataset, folder: Path | None, reporter: Reporter) -> None:
    if folder is not None and is_first():
        write_left_out(data.left_out, folder / "left_out.csv")
    if data.left_out:
        first = data.left_out[0]
        where = f", listed in {folder / 'left_out.csv'}" if folder is not None else ""
        reporter.say(
            f"{len(data.left_out)} structures left out{where}; the first: {first.where}: "
            f"{first.reason}"
        )


def _finish(
    runs: Sequence[Run],
    data: Dataset,
    folder: Path | None,
    config: SiteNetConfig,
    reporter: Reporter,
) -> Result:
    """Calibrate the best model, or the best ones together, save it, and write what it predicts."""
    run, history = runs[0], runs[0].history
    best: Model = run.best
    if len(runs) > 1:
        best = Ensemble([each.best for each in runs])
        history = [{"member": k, **h} for k, each in enumerate(runs, 1) for h in each.history]
    best.eval()
    parts = run.parts
    sample = parts.train
    if len(sample) > 5000:
        sample = np.random.default_rng(0).choice(sample, 5000, replace=False)
    _, train_encodings = run.outputs(sample, best)
    y, encodings = run.outputs(np.concatenate([parts.valid, parts.test]).astype(int), best)
    count = len(parts.valid)
    best.calibration = calibrate(
        data.targets[parts.valid],
        y[:count],
        encodings[:count],
        train_encodings,
        spread=spread(best, encodings[:count]),
        valid=Surroundings.of(run.store, parts.valid) if count else None,
        train=Surroundings.of(run.store, parts.train),
    )
    predictions = evaluation.Predictions.of(
        best, data, {"valid": parts.valid, "test": parts.test}, y, encodings
    )
    median = np.nanmedian(data.targets[parts.train], axis=0)
    mean = np.nanmean(data.targets[parts.train], axis=0)
    result = Result(best, history, predictions.scores(mean, median), data.left_out, folder)
    if folder is not None and is_first():
        epochs = [each.best_epoch for each in runs]
        facts = {
            "epoch": epochs if len(runs) > 1 else epochs[0],
            "crystals": {k: len(v) for k, v in vars(parts).items()},
            "scores": result.scores,
        }
        if len(runs) > 1:
            _write_config(config, folder)
        best.save(folder / MODEL, facts)
        predictions.write(folder / "predictions.csv")
        predictions.plot(folder, history if len(runs) == 1 else [], reporter)
    return result
