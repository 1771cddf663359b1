"""Training: a source or dataset -> a run folder with the best model.

``python -m sitenet.train`` is ``sitenet train``, for torchrun: batches are divided over the
processes and their gradients added up, so that they take the steps of one.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml
from torch import Tensor

from sitenet import evaluation
from sitenet.cache import pairs_of_dataset
from sitenet.checkpoint import load
from sitenet.config import SiteNetConfig, load_config
from sitenet.data import Dataset, Preparation, Split, read, split, write_left_out
from sitenet.files import new_file, write_text
from sitenet.metrics import class_scores, regression_scores
from sitenet.model import SiteNet, Target
from sitenet.optimizer import Average, Optimizer, batches, learning_rate
from sitenet.predict import from_store
from sitenet.prepare import is_prepared, load_dataset, prepare
from sitenet.processes import barrier, choose_device, process_group, rank, world
from sitenet.progress import Reporter
from sitenet.sources import open_source
from sitenet.store import PairStore
from sitenet.uncertainty import calibrate

STATE = "state.safetensors"
MODEL = "model.safetensors"


class Stopped(KeyboardInterrupt):
    """Training was interrupted; the message says what is saved and how to go on."""


@dataclass(eq=False)
class Result:
    """What a training run leaves.

    Attributes:
        model: the best one.
        history: one dict an epoch, as in ``metrics.jsonl``.
        scores: split -> target -> error measures (``sitenet.metrics``) of the best model.
        left_out: structures that could not be used.
        folder: of the run, or None.
    """

    model: SiteNet
    history: list[dict[str, Any]]
    scores: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)
    left_out: list[Any] = field(default_factory=list)
    folder: Path | None = None


# ---------------------------------------------------------------------------------------------
# The loop


class Run:
    """One training run over a store of pairs.

    Args:
        model: starts from its weights; its targets carry the scaling.
        store: pairs of all crystals.
        targets: (crystals, targets) float64, NaN where missing.
        parts: which crystals learn, choose and test.
        folder: where checkpoints go; None keeps the best model in memory alone.
        settings: what fixes the run; a state of other settings is not resumed.
        reporter: is told how far it is.
        after_epoch: is given the history's entry after each epoch; what it raises ends the run.
    """

    def __init__(
        self,
        model: SiteNet,
        store: PairStore,
        targets: np.ndarray,
        parts: Split,
        folder: Path | None = None,
        settings: str = "",
        reporter: Reporter | None = None,
        after_epoch: Callable[[dict[str, Any]], None] = lambda entry: None,
    ) -> None:
        self.model, self.parts, self.folder, self.settings = model, parts, folder, settings
        self.device = model.element_table.device
        self.store = store.to(self.device)
        self.targets = targets
        self.known = torch.as_tensor(targets, dtype=torch.float32, device=self.device)
        self.config = model.config.training
        self.reporter = reporter or Reporter()
        self.after_epoch = after_epoch
        self.optimizer = Optimizer(model, self.config)
        self.average = None
        if self.config.ema:
            self.average = Average(model, copy.deepcopy(model), self.config.ema)
        # Without validation crystals, the last model is the best one.
        self.best = copy.deepcopy(self.judged) if len(parts.valid) else self.judged
        self.best_error, self.best_epoch = math.inf, 0
        self.epoch, self.step = 0, 0
        self.history: list[dict[str, Any]] = []
        sites = self.store.num_sites[parts.train].tolist()
        self.sites = sites
        self.steps = self.config.epochs * math.ceil(self._count() / self.config.accumulate)

    def _batches(self, epoch: int) -> list[list[int]]:
        return list(batches(self.sites, self.config, [self.config.seed, epoch]))

    def _count(self) -> int:
        return len(self._batches(1))  # those of other epochs differ by a few

    @property
    def judged(self) -> SiteNet:
        """The model that is validated and kept: the average, where there is one."""
        return self.model if self.average is None else self.average.average

    def loss(self, output: Tensor, truth: Tensor, counts: Tensor) -> Tensor:
        """Mean absolute error of values, in the targets' scale, and cross-entropy of classes; a
        target's mean is over its known values.

        Args:
            output: (crystals, targets) of the model.
            truth: (crystals, targets), NaN where missing.
            counts: (targets,) known values of the whole batch, of which these may be a part.
        """
        known = ~truth.isnan()
        truth = truth.nan_to_num()
        error = (output - truth).abs() / self.model.target_std
        if any(t.kind == "class" for t in self.model.targets):
            entropy = F.binary_cross_entropy_with_logits(output, truth, reduction="none")
            error = torch.where(self.model.is_class, entropy, error)
        return (error * known / counts.clamp(min=1)).sum()

    def train_epoch(self) -> float:
        """One pass over the training crystals; returns the mean loss of its batches."""
        self.model.train()
        self.epoch += 1
        train = self.parts.train
        losses: list[Tensor] = []
        todo = self._batches(self.epoch)
        first, count = rank(), world()
        with self.reporter.bar(f"epoch {self.epoch}/{self.config.epochs}", len(train)) as advance:
            for k, batch in enumerate(todo):
                numbers = train[batch]
                truth = self.known[torch.as_tensor(numbers, device=self.device)]
                counts = (~truth.isnan()).sum(0)
                loss = truth.new_zeros(())
                mine = numbers[first::count]
                if len(mine):
                    output = self._forward(self.store.batch(mine))
                    loss = self.loss(output, truth[first::count], counts)
                    (loss / self.config.accumulate).backward()
                losses.append(loss.detach())
                if (k + 1) % self.config.accumulate == 0 or k + 1 == len(todo):
                    self._add_up_gradients()
                    self.optimizer.step(learning_rate(self.step, self.steps, self.config))
                    self.step += 1
                    if self.average is not None:
                        self.average.update(self.step)
                advance(len(batch))
        total = torch.stack(losses)
        if count > 1:
            dist.all_reduce(total)
        if not bool(total.isfinite().all()):
            raise RuntimeError(
                f"the loss is not finite in epoch {self.epoch}; lower learning_rate (now "
                f"{self.config.learning_rate:g}) or use precision: float32"
            )
        return float(total.mean())

    def _forward(self, pairs: Any) -> Tensor:
        low = self.config.precision == "bfloat16"
        try:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
                return self.model(pairs)
        except torch.OutOfMemoryError:
            size = self.config.batch_sites or self.config.batch_crystals
            name = "batch_sites" if self.config.batch_sites else "batch_crystals"
            raise RuntimeError(
                f"out of GPU memory with {pairs.num_pairs} pairs in a batch; try {name} "
                f"{max(1, size // 2)} with accumulate {2 * self.config.accumulate}"
            ) from None

    def _add_up_gradients(self) -> None:
        """Sum the gradients of the processes."""
        if world() == 1:
            return
        parameters = self.optimizer.parameters
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
        flat = torch.cat([p.grad.view(-1) for p in parameters])
        dist.all_reduce(flat)
        torch._foreach_copy_(
            [p.grad.view(-1) for p in parameters], flat.split([p.numel() for p in parameters])
        )

    def outputs(self, index: np.ndarray, model: SiteNet | None = None) -> tuple[Any, Any]:
        """Properties (crystals, targets) and encodings of some crystals, divided over the
        processes."""
        model = model or self.judged
        first, count = rank(), world()
        found = from_store(model, self.store, index[first::count])
        width = model.decoder.in_features
        y = torch.zeros(len(index), len(model.targets), dtype=torch.float64)
        encoding = torch.zeros(len(index), width)
        if found:
            y[first::count] = torch.from_numpy(np.stack([f[0] for f in found]))
            encoding[first::count] = torch.from_numpy(np.stack([f[1] for f in found]))
        if count > 1:
            for x in (y, encoding):
                on_device = x.to(self.device)
                dist.all_reduce(on_device)
                x.copy_(on_device)
        return y.numpy(), encoding.numpy()

    def validate(self) -> dict[str, float]:
        """Errors on the validation crystals: of each target, and as one number to choose by."""
        index = self.parts.valid
        y, _ = self.outputs(index)
        found: dict[str, float] = {}
        chosen = 0.0
        for k, target in enumerate(self.model.targets):
            scores = (class_scores if target.kind == "class" else regression_scores)(
                self.targets[index, k], y[:, k]
            )
            if target.kind == "class":
                found[f"valid_{target.name}_roc_auc"] = scores["roc_auc"]
                chosen += scores["log_loss"] if scores["crystals"] else 0.0
            else:
                found[f"valid_{target.name}_mae"] = scores["mae"]
                chosen += scores["mae"] / target.std if scores["crystals"] else 0.0
        found["valid_error"] = chosen
        return found

    def run(self) -> None:
        """Train to the end, or until validation gets no better; saves after every epoch."""
        while self.epoch < self.config.epochs and not self._is_stale():
            begin = time.perf_counter()
            loss = self.train_epoch()
            seconds = time.perf_counter() - begin
            valid = self.validate() if len(self.parts.valid) else {}
            if not valid:
                self.best_epoch = self.epoch
            elif valid["valid_error"] < self.best_error:
                self.best_error, self.best_epoch = valid["valid_error"], self.epoch
                self.best.load_state_dict(self.judged.state_dict())
            self._record(loss, valid, seconds)
            self.save()
            self.after_epoch(self.history[-1])

    def _is_stale(self) -> bool:
        patience = self.config.patience
        return bool(patience) and self.epoch - self.best_epoch >= patience

    def _record(self, loss: float, valid: dict[str, float], seconds: float) -> None:
        rate = len(self.parts.train) / seconds
        last = learning_rate(max(self.step - 1, 0), self.steps, self.config)
        entry: dict[str, Any] = {"epoch": self.epoch, "train_loss": loss}
        if len(self.model.targets) == 1 and self.model.targets[0].kind == "value":
            entry["train_mae"] = loss * self.model.targets[0].std
            if valid:
                entry["valid_mae"] = valid[f"valid_{self.model.targets[0].name}_mae"]
        entry |= {**valid, "learning_rate": last, "seconds": seconds, "crystals_per_second": rate}
        self.history.append({k: _plain(v) for k, v in entry.items()})
        errors = ", ".join(
            f"{k.removeprefix('valid_').replace('_', ' ')} {v:.4g}"
            for k, v in valid.items()
            if k != "valid_error"
        )
        errors = errors and f"  validation: {errors}{' *' * (self.best_epoch == self.epoch)}"
        self.reporter.say(
            f"epoch {self.epoch}/{self.config.epochs}  loss {loss:.4f}{errors}"
            f"  {seconds:.1f} s, {rate:.0f} crystals/s"
        )

    # -----------------------------------------------------------------------------------------
    # On disk

    def save(self) -> None:
        """The whole state, in one file, so that it is of one moment; metrics beside it."""
        if self.folder is None or rank():
            return
        models = {"model": self.model, "best": self.best}
        if self.average is not None:
            models["average"] = self.average.average
        tensors = {
            f"{kind}:{name}": x for kind, m in models.items() for name, x in m.state_dict().items()
        }
        tensors |= {f"optimizer:{name}": x for name, x in self.optimizer.tensors().items()}
        facts = {
            "settings": self.settings,
            "epoch": self.epoch,
            "step": self.step,
            "best_error": _plain(self.best_error),
            "best_epoch": self.best_epoch,
            "history": self.history,
        }
        content = safetensors.torch.save(
            {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
            {"sitenet": json.dumps(facts)},
        )
        with new_file(self.folder / STATE) as temporary:
            temporary.write_bytes(content)
        lines = [json.dumps(entry) for entry in self.history]
        write_text(self.folder / "metrics.jsonl", "".join(line + "\n" for line in lines))
        if self.best_epoch == self.epoch:
            self.best.save(self.folder / MODEL, {"epoch": self.epoch})

    def resume(self) -> bool:
        """Take up the state in the folder, if there is one.

        Raises:
            ValueError: it is of a run with other settings, or damaged.
        """
        path = None if self.folder is None else self.folder / STATE
        if path is None or not path.exists():
            return False
        try:
            with safetensors.safe_open(path, "pt") as file:
                facts = json.loads(file.metadata()["sitenet"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except (safetensors.SafetensorError, TypeError, KeyError, ValueError) as error:
            raise ValueError(f"{path} is damaged: {error}") from None
        if facts["settings"] != self.settings:
            raise ValueError(
                f"{self.folder} holds a run with other data or settings: choose another folder, or "
                "remove it to start anew"
            )

        def part(kind: str) -> dict[str, Tensor]:
            prefix = f"{kind}:"
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model"))
        self.best.load_state_dict(part("best"))
        if self.average is not None:
            self.average.average.load_state_dict(part("average"))
        self.optimizer.load(part("optimizer"))
        self.epoch, self.step, self.history = facts["epoch"], facts["step"], facts["history"]
        self.best_error = math.inf if facts["best_error"] is None else facts["best_error"]
        self.best_epoch = facts["best_epoch"]
        return True


def _plain(value: Any) -> Any:
    """For JSON, which knows no NaN: None instead."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


# ---------------------------------------------------------------------------------------------
# From data to a run folder


def train(
    data: str | Path | Dataset,
    out: str | Path | None = None,
    config: str | Path | dict[str, Any] | SiteNetConfig = "paper",
    *,
    target: str | Sequence[str] | None = None,
    classes: Sequence[str] = (),
    fold: str | None = None,
    split_column: str | None = None,
    start: str | Path | SiteNet | None = None,
    freeze: bool = False,
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
        data: a source (``sitenet.sources.open_source``), a file of ``sitenet prepare``, or a
            Dataset.
        out: the run folder: ``model.safetensors`` (the best one), ``config.yaml``,
            ``metrics.jsonl``, ``predictions.csv``, ``left_out.csv``, plots, and the state from
            which the same call goes on after an interruption, to the same bits.
        config: as in ``SiteNet.from_config``.
        target: the property or properties to learn; None takes the only one.
        classes: targets that are 0 or 1.
        fold: the value of the split column whose crystals are the test.
        split_column: of the source.
        start: a model to go on from (fine-tuning): weights, a file or a shipped name.
        freeze: learn only the layers after pooling and the decoder.
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
        ValueError: the data, the config or the state in the folder cannot be used.
        RuntimeError: the device is not there, or the loss diverged.
        Stopped: interrupted; says how to go on.
    """
    reporter = reporter if reporter is not None and not rank() else Reporter()
    device = choose_device(device)
    config = load_config(config).replace(**changes)
    names = [target] if isinstance(target, str) else target
    folder = None if out is None else Path(out)
    how = Preparation(primitive, disorder)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with process_group(device):
        dataset = _load(data, names, split_column, how, folder, workers, reporter)
        if config.training.max_crystals and config.training.max_crystals < len(dataset):
            order = np.random.default_rng(config.training.seed).permutation(len(dataset))
            dataset = dataset.select(np.sort(order[: config.training.max_crystals]))
        dataset, store = _pairs(dataset, config, workers, reporter)
        parts = split(
            dataset, config.training.valid, config.training.test, config.training.seed, fold
        )
        model = _start(config, start, _targets(dataset, parts, classes, config), freeze).to(device)
        _warn_of_negative(model, dataset.targets[parts.train])
        settings = _settings(model.config, dataset, parts, start, freeze)
        run = Run(model, store, dataset.targets, parts, folder, settings, reporter, after_epoch)
        if run.resume():
            reporter.say(f"goes on after epoch {run.epoch} of {folder}")
        elif folder is not None and not rank():
            text = yaml.safe_dump(model.config.to_dict(), sort_keys=False)
            write_text(folder / "config.yaml", text)
        reporter.say(
            f"{len(parts.train)} crystals to learn from, {len(parts.valid)} to validate, "
            f"{len(parts.test)} to test; {int(store.num_pairs.sum())} pairs; "
            f"{sum(p.numel() for p in run.optimizer.parameters)} parameters"
        )
        _report_left_out(dataset, folder, reporter)
        try:
            run.run()
        except KeyboardInterrupt:
            where = f"epoch {run.epoch} was under way; what came before it is in {folder}"
            raise Stopped(f"{where}: the same command goes on from there") from None
        return _finish(run, dataset, reporter)


def _load(
    data: str | Path | Dataset,
    names: Sequence[str] | None,
    split_column: str | None,
    how: Preparation,
    folder: Path | None,
    workers: int | None,
    reporter: Reporter,
) -> Dataset:
    if isinstance(data, Dataset):
        return data.with_targets(names)
    if is_prepared(data):
        return load_dataset(data).with_targets(names)
    source = open_source(data, names, split_column)
    if world() == 1:
        with reporter.bar("reading structures", len(source)) as advance:
            found = read(source, how, workers, advance)
        if not len(found):
            reason = f": {found.left_out[0].where}: {found.left_out[0].reason}"
            raise ValueError(
                f"{data}: not one structure can be used{reason if found.left_out else ''}"
            )
        return found
    # Several processes: one reads, the others map what it leaves.
    if folder is None:
        raise ValueError("training in several processes needs a run folder")
    path = folder / "dataset.parquet"
    if not rank():
        with reporter.bar("reading structures", len(source)) as advance:
            prepare(source, path, names, how, workers, advance)
    barrier()
    return load_dataset(path)


def _pairs(
    dataset: Dataset, config: SiteNetConfig, workers: int | None, reporter: Reporter
) -> tuple[Dataset, PairStore]:
    if rank():
        barrier()  # the first process fills the cache
    with reporter.bar("finding pairs", len(dataset)) as advance:
        found = pairs_of_dataset(dataset, config, workers, advance)
    if not rank():
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
        values = data.targets[parts.train, k]
        values = values[np.isfinite(values)]
        if not len(values):
            raise ValueError(f"no training crystal has a value of {name}")
        if name in classes:
            if not np.isin(values, (0, 1)).all():
                raise ValueError(f"{name} is a class: expected 0 or 1, got {values.max():g}")
            targets.append(Target(name, kind="class"))
        elif config.training.scale_targets:
            std = float(values.std()) or 1.0
            targets.append(Target(name, data.units[k], float(values.mean()), std))
        else:
            targets.append(Target(name, data.units[k]))
    return targets


def _start(
    config: SiteNetConfig,
    start: str | Path | SiteNet | None,
    targets: list[Target],
    freeze: bool,
) -> SiteNet:
    torch.manual_seed(config.training.seed)
    if start is None:
        if freeze:
            raise ValueError("freeze needs a model to start from")
        return SiteNet(config, targets)
    given = start if isinstance(start, SiteNet) else load(start)
    model = SiteNet(given.config.replace(training=config.training), targets)
    content = given.state_dict()
    if [t.name for t in given.targets] == [t.name for t in targets]:
        model.targets = given.targets  # the decoder was learned in their scale
    else:
        own = model.state_dict()
        content |= {k: own[k] for k in ("decoder.weight", "decoder.bias")}
    model.load_state_dict(content)
    if freeze:
        model.requires_grad_(False)
        model.post_pool.requires_grad_(True)
        model.decoder.requires_grad_(True)
    return model


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


def _settings(config: SiteNetConfig, data: Dataset, parts: Split, start: Any, freeze: bool) -> str:
    """A hash of what fixes a run."""
    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    digest.update(
        f"{data.names} {freeze} {start if isinstance(start, (str, Path)) else ''}".encode()
    )
    digest.update("\n".join(data.ids).encode())
    for values in (data.targets, parts.train, parts.valid, parts.test):
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _report_left_out(data: Dataset, folder: Path | None, reporter: Reporter) -> None:
    if folder is not None and not rank():
        write_left_out(data.left_out, folder / "left_out.csv")
    if data.left_out:
        first = data.left_out[0]
        where = f", listed in {folder / 'left_out.csv'}" if folder is not None else ""
        reporter.say(
            f"{len(data.left_out)} structures left out{where}; the first: {first.where}: "
            f"{first.reason}"
        )


def _finish(run: Run, data: Dataset, reporter: Reporter) -> Result:
    """Calibrate the best model, save it, and write what it predicts."""
    best = run.best.eval()
    parts = run.parts
    sample = parts.train
    if len(sample) > 5000:
        sample = np.random.default_rng(0).choice(sample, 5000, replace=False)
    _, train_encodings = run.outputs(sample, best)
    y, encodings = run.outputs(np.concatenate([parts.valid, parts.test]).astype(int), best)
    count = len(parts.valid)
    best.calibration = calibrate(
        data.targets[parts.valid], y[:count], encodings[:count], train_encodings
    )
    predictions = evaluation.Predictions.of(
        best, data, {"valid": parts.valid, "test": parts.test}, y, encodings
    )
    median = np.nanmedian(data.targets[parts.train], axis=0)
    mean = np.nanmean(data.targets[parts.train], axis=0)
    result = Result(best, run.history, predictions.scores(mean, median), data.left_out, run.folder)
    if run.folder is not None and not rank():
        facts = {
            "epoch": run.best_epoch,
            "crystals": {k: len(v) for k, v in vars(parts).items()},
            "scores": result.scores,
        }
        best.save(run.folder / MODEL, facts)
        predictions.write(run.folder / "predictions.csv")
        predictions.plot(run.folder, run.history, reporter)
    return result


if __name__ == "__main__":
    import sys

    from sitenet.cli import main

    main(["train", *sys.argv[1:]])
