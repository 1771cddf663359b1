"""Training: a source or dataset -> a run folder with the best model.

Under torchrun each batch is divided over the ranks and their gradients are summed, so that several
processes take the same steps as one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sitenet.config import SiteNetConfig, TrainingConfig
from sitenet.data.dataset import Dataset
from sitenet.data.duplicates import find_duplicates
from sitenet.data.failures import counts_by_kind, write_left_out
from sitenet.data.prepare import open_dataset
from sitenet.data.splits import Split, shared_structures, split
from sitenet.model.packing import check_bits
from sitenet.model.sitenet import SiteNet
from sitenet.model.target import Target, learned_values
from sitenet.pairs.cache import pairs_of_dataset
from sitenet.pairs.store import PairStore
from sitenet.system.devices import choose_device, multiplies_bfloat16
from sitenet.system.distributed import barrier, is_first, process_group, processes
from sitenet.system.files import fingerprint, locked, writable_folder
from sitenet.system.progress import Reporter
from sitenet.training.data import TrainingData
from sitenet.training.finish import Result, finish
from sitenet.training.plan import Member, Start, make_plan, refuse_other_layout
from sitenet.training.start import Choice, any_start, choose_start, is_auto
from sitenet.training.state import write_config
from sitenet.training.targets import (
    negative_targets,
    rescaled_decoder,
    same_properties,
    targets_of,
)
from sitenet.training.trainer import AfterEpoch, Trainer


class Stopped(KeyboardInterrupt):
    """Training was interrupted; the message says what is saved and how to resume."""


def train(
    data: str | Path | Dataset,
    out: str | Path | None = None,
    config: str | Path | Mapping[str, Any] | SiteNetConfig | None = None,
    *,
    target: str | Sequence[str] | None = None,
    unit: str | Sequence[str] | None = None,
    classes: Sequence[str] = (),
    log: Sequence[str] = (),
    fold: str | None = None,
    split_column: str | None = None,
    start: Start = None,
    member: int | None = None,
    freeze: bool = False,
    refit: bool = False,
    bits: int | None = None,
    primitive: bool | None = None,
    disorder: str | None = None,
    device: str | torch.device = "cpu",
    workers: int | None = None,
    reporter: Reporter | None = None,
    after_epoch: AfterEpoch = lambda entry: None,
    **changes: Any,
) -> Result:
    """Train a model.

    Args:
        data: A source (``sitenet.data.readers.open_source``), a file of ``sitenet prepare``, or a
            Dataset.
        out: Run folder: ``model.safetensors`` (the best model), ``config.yaml``,
            ``metrics.jsonl``, ``predictions.csv``, ``left_out.csv``, ``duplicates.csv`` if there
            are any, plots, and the state from which the same call resumes after an interruption,
            to the same bits. A call with more ``epochs`` extends a finished run. Members of an
            ensemble have folders of their own in it. None writes nothing.
        config: As in ``SiteNet.from_config``; None takes the most accurate one
            (``sitenet.config.DEFAULT_CONFIG``). With ``start``, the model's own settings are those
            of ``start``, and this one only says how to train; None then takes the settings that
            trained ``start``, with a lower learning rate and fewer epochs. Batch size and epochs
            follow the number of training crystals where neither it nor ``changes`` sets them.
        target: Property or properties to learn; None takes the only one.
        unit: Unit of each target; None takes those that the columns' names state.
        classes: Targets that are 0 or 1.
        log: Positive targets whose decimal logarithm is learned. Predictions are in their unit
            all the same, with intervals that are symmetric in the logarithm.
        fold: Value of the split column whose crystals are the test set.
        split_column: Column of the source that names the split or fold.
        start: Model to fine-tune: a SiteNet or Ensemble, a file or a shipped name. Every member of
            an ensemble is fine-tuned. Several models become the members of one ensemble. "auto"
            chooses among the weights that ship (``sitenet.training.start``) and says which.
        member: Number of the only member to train, from 1, so that each can have a process of its
            own. The same call without it then combines them.
        freeze: Train only the layers after pooling and the decoder.
        refit: Train on the test crystals too, after a run without it has measured the error. The
            validation crystals are those of that run, and nothing is tested.
        bits: Bits per weight of the finished model, as in ``sitenet.save``; it is rounded before it
            is calibrated and tested. None keeps all 32.
        primitive: Find primitive cells first; None takes the config's setting.
        disorder: "error" or "average", as in ``read_cif``; None takes the config's setting.
        device: "cpu" or "cuda".
        workers: Processes that read structures and find pairs; None chooses.
        reporter: Shows progress.
        after_epoch: Called with the history entry of each epoch; an exception ends the run.
        changes: Fields of the config to change. Unless ``last_activation`` is set here or by a
            config of your own, it is identity where a target has negative values, and not that of
            ``start`` if this is identity and another property without negative values is learned.

    Returns:
        The best model with its history and its errors.

    Raises:
        ValueError: The data, the config or the state in the folder cannot be used, or another
            process trains there.
        OSError: The run folder cannot be written to.
        RuntimeError: The device is not available, or the loss diverged.
        Stopped: Interrupted; the message says how to resume.
    """
    device = choose_device(device)
    if bits is not None:
        check_bits(bits)
    inputs = {"primitive": primitive, "disorder": disorder}
    changes |= {name: value for name, value in inputs.items() if value is not None}
    undecided = False
    if is_auto(start):
        earlier = Choice.read(None if out is None else Path(out))
        undecided = earlier is None
        start = any_start() if earlier is None else earlier.start
    plan = make_plan(config, start, changes, freeze, member)
    if member is not None and out is None:
        raise ValueError("a member alone needs a run folder, from which the ensemble takes it")
    folder = None if out is None else writable_folder(out)
    if folder is not None and not undecided:
        refuse_other_layout(folder, plan.config)
    reporter = Reporter() if reporter is None or not is_first() else reporter
    shared = folder / "dataset.parquet" if folder is not None and processes() > 1 else None
    # Before the processes join: see process_group.
    dataset = open_dataset(
        data,
        [target] if isinstance(target, str) else target,
        units=[unit] if isinstance(unit, str) else unit,
        split_column=split_column,
        how=plan.preparation,
        prepared_as=shared,
        workers=workers,
        reporter=reporter,
    )
    plan = plan.for_dataset(dataset, reporter)
    dataset = _at_most(dataset, plan.config.training)
    if undecided:
        parts = _split(dataset, plan.config.training, fold, refit)
        choice = _choose_start(dataset, parts, classes, log, reporter)
        plan = make_plan(config, choice.start, vars(plan.preparation) | changes, freeze, member)
        if folder is not None:
            refuse_other_layout(folder, plan.config)
            choice.write(folder)
    dataset, store = _find_pairs(dataset, plan.config, workers, reporter)
    with process_group(device):
        parts = _split(dataset, plan.config.training, fold, refit)
        plan = plan.for_size(len(parts.train), folder, reporter)
        targets = targets_of(dataset, parts, classes, log, plan.config.training)
        negative = negative_targets(dataset, parts, classes, log)
        plan = plan.for_signs(negative, targets, reporter)
        if plan.starts and same_properties(plan.starts[0].targets, targets):
            targets = plan.starts[0].targets  # the scale that its decoder has learned
        _report_data(dataset, parts, store, folder, reporter)
        if plan.config.training.precision == "bfloat16" and not multiplies_bfloat16(device):
            reporter.say("products are in float32: this CPU has no instructions for bfloat16")
        learned = learned_values(targets, dataset.targets)
        common = TrainingData(store.to(device), learned, parts)
        data_settings = _fingerprint(dataset, parts, targets)
        charged = _has_oxidation(dataset, parts)
        trainers = []
        for each in plan.members(folder):
            model = _new_model(each, targets, plan.freeze)
            model.uses_oxidation = charged or (each.start is not None and each.start.uses_oxidation)
            settings = fingerprint(data_settings, _model_settings(model, each))
            trainer = Trainer(
                model.to(device), common, each.folder, settings, reporter, after_epoch
            )
            _train_member(trainer, each.number, plan.config.training.members)
            trainers.append(trainer)
        if member is not None:
            only = trainers[0]
            return Result(only.best, only.progress.history, {}, dataset.left_out, only.folder)
        return finish(trainers, dataset, plan.config, folder, reporter, bits)


# ---------------------------------------------------------------------------------------------
# Data


def _at_most(dataset: Dataset, config: TrainingConfig) -> Dataset:
    """The dataset, or ``max_crystals`` of it, drawn at random."""
    if not config.max_crystals or config.max_crystals >= len(dataset):
        return dataset
    order = np.random.default_rng(config.seed).permutation(len(dataset))
    return dataset.select(np.sort(order[: config.max_crystals]))


def _find_pairs(
    dataset: Dataset, config: SiteNetConfig, workers: int | None, reporter: Reporter
) -> tuple[Dataset, PairStore]:
    if not is_first():
        barrier()  # the first process fills the cache
    with reporter.bar("finding pairs", len(dataset)) as advance:
        result = pairs_of_dataset(dataset, config, workers, advance)
    if is_first():
        barrier()
    return result


def _split(dataset: Dataset, config: TrainingConfig, fold: str | None, refit: bool) -> Split:
    parts = split(dataset, config.valid, config.test, config.seed, fold, config.group)
    return parts.without_test() if refit else parts


def _report_data(
    dataset: Dataset, parts: Split, store: PairStore, folder: Path | None, reporter: Reporter
) -> None:
    """Report what is learned from, and list duplicates and what was left out in the run folder."""
    reporter.say(
        f"{len(parts.train)} crystals to learn from, {len(parts.valid)} to validate, "
        f"{len(parts.test)} to test; {int(store.num_pairs.sum())} pairs"
    )
    if not is_first():
        return
    if text := shared_structures(dataset, parts):
        reporter.say(text)
    if folder is not None:
        write_left_out(dataset.left_out, folder / "left_out.csv")
        duplicates = find_duplicates(dataset)
        if duplicates.groups:
            duplicates.write(folder / "duplicates.csv")
    if dataset.left_out:
        first = dataset.left_out[0]
        where = f", listed in {folder / 'left_out.csv'}" if folder is not None else ""
        reporter.say(
            f"{len(dataset.left_out)} structures left out ({counts_by_kind(dataset.left_out)})"
            f"{where}; the first: {first.where}: {first.reason}"
        )


def _choose_start(
    dataset: Dataset,
    parts: Split,
    classes: Sequence[str],
    log: Sequence[str],
    reporter: Reporter,
) -> Choice:
    """Choose a model to start from, in one process."""
    if processes() > 1:
        raise ValueError(
            "start auto is for one process: run the command without torchrun until it says which "
            "start it chose, and name that one"
        )
    return choose_start(dataset, parts, classes, log, reporter)


# ---------------------------------------------------------------------------------------------
# Members


def _new_model(member: Member, targets: list[Target], freeze: bool) -> SiteNet:
    """A model with random weights, or with those of the member's start, for these targets.

    The decoder of other properties than the start's begins at 0, and so at the mean of standardised
    targets: random weights would turn encodings of a trained model into large errors.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(member.config.training.seed)
        model = SiteNet(member.config, targets)
    if member.start is None:
        return model
    weights = member.start.state_dict()
    keeps_decoder = same_properties(member.start.targets, targets)
    weights |= rescaled_decoder(member.start if keeps_decoder else model, targets)
    if not keeps_decoder and member.config.training.scale_targets:
        weights |= {k: torch.zeros_like(x) for k, x in weights.items() if k.startswith("decoder.")}
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ValueError(f"the model to start from does not fit the config: {error}") from None
    if freeze:
        model.requires_grad_(False)
        model.post_pool.requires_grad_(True)
        model.decoder.requires_grad_(True)
    return model


def _has_oxidation(dataset: Dataset, parts: Split) -> bool:
    """Whether any training crystal states oxidation states other than 0."""
    states = (dataset.crystals[k].oxidation for k in parts.train)
    return any(x is not None and bool(x.any()) for x in states)


def _fingerprint(dataset: Dataset, parts: Split, targets: Sequence[Target]) -> str:
    """Hash the data of a run."""
    arrays = [dataset.targets, parts.train, parts.valid, parts.test]
    structures = (
        x for c in dataset.crystals for x in (c.cell, c.frac, c.numbers, c.oxidation, c.occupancy)
    )
    return fingerprint(dataset.ids, [t.to_dict() for t in targets], *arrays, *structures)


def _model_settings(model: SiteNet, member: Member) -> str:
    """Hash the config of a model that has not learned yet, without the length of the run, and the
    weights of its start."""
    weights = member.start.state_dict() if member.start is not None else {}
    learns = [name for name, p in model.named_parameters() if p.requires_grad]
    config = model.config.replace(epochs=1)
    return fingerprint(config.to_dict(), learns, *(x.cpu().numpy() for x in weights.values()))


def _train_member(trainer: Trainer, number: int, members: int) -> None:
    """Train a model to its end, or resume."""
    folder, reporter = trainer.folder, trainer.reporter
    title = f"member {number} of {members}: " if members > 1 else ""
    with _alone(folder):
        if trainer.resume():
            if trainer.progress.epoch > trainer.progress.cycle_epoch:
                reporter.say(f"{title}resumes after epoch {trainer.progress.epoch} of {folder}")
        elif folder is not None and is_first():
            write_config(folder, trainer.model.config)
        reporter.say(f"{title}{sum(p.numel() for p in trainer.optimizer.parameters)} parameters")
        try:
            trainer.run()
        except KeyboardInterrupt:
            if folder is None:
                raise
            raise Stopped(
                f"epoch {trainer.progress.epoch} was in progress; what came before it is in "
                f"{folder}: the same command resumes from there"
            ) from None


@contextlib.contextmanager
def _alone(folder: Path | None) -> Iterator[None]:
    """Train in a folder where no other run does (the ranks of one run count as one)."""
    if folder is None or not is_first():
        yield
        return
    with locked(folder / ".lock", wait=False) as free:
        if not free:
            raise ValueError(f"another process is training in {folder}")
        yield
