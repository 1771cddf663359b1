"""The training loop: epochs over a store of pairs, validated, and saved so that it can resume."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from sitenet.data.units import titled
from sitenet.model.sitenet import SiteNet
from sitenet.ops.padded_batch import Room
from sitenet.system.distributed import copy_from_first, is_first, world
from sitenet.system.progress import Reporter, duration
from sitenet.training.cuda_graphs import CapturedSteps, CudaGraphs, Graphs, check_capture
from sitenet.training.data import TrainingData
from sitenet.training.gradients import Gradients, out_of_memory
from sitenet.training.optimizer import Average, Optimizer, batches, learning_rate
from sitenet.training.recipe import open_settings
from sitenet.training.state import (
    Progress,
    State,
    differences,
    finite,
    load_state,
    restore_texts,
    save_state,
    write_config,
)
from sitenet.training.tensorboard import events
from sitenet.training.validation import validation_errors

MODEL = "model.safetensors"
AfterEpoch = Callable[[dict[str, Any]], None]


class Trainer:
    """Trains one model.

    Args:
        model: Training starts from its weights; its targets carry the scaling.
        data: Crystals to learn from and to validate on.
        folder: Where checkpoints go; None keeps the best model in memory only.
        settings: Fingerprint of what fixes the run, except for its length; a state with another
            one is not resumed.
        reporter: Shows progress.
        after_epoch: Called with the history entry of each epoch; an exception ends the run.

    Attributes:
        best: The best model so far, where the learning rate falls one of its second half; without
            validation crystals, the last one.
        progress: How far the run is.
        epochs: Length of the run.
        captured: Takes the steps if they are captured as CUDA graphs.
    """

    def __init__(
        self,
        model: SiteNet,
        data: TrainingData,
        folder: Path | None = None,
        settings: str = "",
        reporter: Reporter | None = None,
        after_epoch: AfterEpoch = lambda entry: None,
    ) -> None:
        self.model, self.data, self.folder, self.settings = model, data, folder, settings
        training = model.config.training
        self.config = replace(training, **open_settings(training, len(data.parts.train), False))
        self.epochs = self.config.epochs or 0  # open_settings leaves no None
        self.reporter = reporter or Reporter()
        self.after_epoch = after_epoch
        self.optimizer = Optimizer(model, self.config)
        self.gradients = Gradients(model, data, self.optimizer.parameters)
        self.average = None
        if self.config.ema:
            self.average = Average(model, copy.deepcopy(model), self.config.ema)
        self.best = copy.deepcopy(self.judged) if len(data.parts.valid) else self.judged
        self.progress = Progress()
        self.steps_per_epoch = len(self.batches_of_steps(1))
        self.rate = torch.zeros((), device=data.known.device)  # the learning rate that graphs read
        self.captured: CapturedSteps | None = None
        if self.config.capture:
            check_capture(model, data.store, data.known.device)
            self.captured = self.padded_steps(CudaGraphs(data.known.device))

    @property
    def judged(self) -> SiteNet:
        """The model that is validated and kept: the average of the weights, if there is one."""
        return self.model if self.average is None else self.average.average

    # -----------------------------------------------------------------------------------------
    # Epochs

    def run(self) -> None:
        """Train until the last epoch, or until validation stops improving; save every epoch."""
        progress = self.progress
        begin, done_before = time.perf_counter(), progress.epoch
        seconds_left = None
        with events(self.folder if is_first() else None) as log:
            while not self.has_ended(self.epochs):
                epoch_begin = time.perf_counter()
                loss = self.train_epoch(seconds_left)
                seconds = time.perf_counter() - epoch_begin
                errors = self.validate() if len(self.data.parts.valid) else {}
                self._keep_if_best(errors)
                per_epoch = (time.perf_counter() - begin) / (progress.epoch - done_before)
                seconds_left = per_epoch * (self.epochs - progress.epoch)
                progress.history.append(self._entry(loss, errors, seconds))
                self._report(loss, errors, seconds, seconds_left)
                self.save()
                log(progress.history[-1])
                self.after_epoch(progress.history[-1])
        self.captured = None  # an ensemble's next member needs the memory of its graphs

    def train_epoch(self, seconds_left: float | None = None) -> float:
        """Train on every training crystal once.

        Args:
            seconds_left: Time to the end of the run, shown beside the bar.

        Returns:
            The mean loss of the steps.

        Raises:
            RuntimeError: The loss is not finite, or a step does not fit into a GPU's memory.
        """
        self.model.train()
        self._copy_weights()
        self.progress.epoch += 1
        losses: list[Tensor] = []
        title = f"epoch {self.progress.epoch}/{self.epochs}"
        if seconds_left is not None:
            title += f" (run: {duration(seconds_left)} left)"
        with self.reporter.bar(title, len(self.data.parts.train)) as advance:
            for step in self.batches_of_steps(self.progress.epoch):
                losses.append(self.take_step(step))
                advance(sum(map(len, step)))
        total = torch.stack(losses)
        if world() > 1:
            dist.all_reduce(total)
        if not bool(total.isfinite().all()):
            raise RuntimeError(
                f"the loss is not finite in epoch {self.progress.epoch}; lower learning_rate (now "
                f"{self.config.learning_rate:g}) or use precision: float32"
            )
        return float(total.mean())

    def _copy_weights(self) -> None:
        """Take over the weights of rank 0. Equal arithmetic keeps those of all ranks equal, but not
        every GPU rounds alike."""
        copy_from_first(list(self.model.parameters()))
        if self.average is not None:
            copy_from_first(list(self.average.average.parameters()))

    def batches_of_steps(self, epoch: int) -> list[list[np.ndarray]]:
        """The batches of crystals of each step of an epoch."""
        train = self.data.parts.train
        sites = self.data.store.num_sites[train].tolist()
        order = [train[batch] for batch in batches(sites, self.config, [self.config.seed, epoch])]
        count = self.config.accumulate
        return [order[k : k + count] for k in range(0, len(order), count)]

    def take_step(self, step: list[np.ndarray]) -> Tensor:
        """Take one optimiser step on several batches of crystals together; returns this rank's
        part of their loss."""
        rate = self.rate_of(self.progress.step)
        try:
            if self.captured is not None:
                self.rate.fill_(rate)
                loss = self.captured(step[0])
            else:
                loss = self.gradients.of_step(step)
                self.optimizer.step(rate)
        except torch.OutOfMemoryError:
            raise RuntimeError(out_of_memory(step, self.data, self.model)) from None
        self.progress.step += 1
        if self.average is not None:
            self.average.update(self.progress.step)
        return loss

    def padded_step(self, index: Tensor, room: Room) -> Tensor:
        """Take one optimiser step on padded batches, as ``Gradients.of_padded_batch`` takes them;
        returns this rank's part of the loss. Nothing here waits for the device or copies from the
        host."""
        loss = self.gradients.of_padded_batch(index, room)
        self.optimizer.step(self.rate)
        return loss

    def padded_steps(self, graphs: Graphs | None) -> CapturedSteps:
        """Steps on padded batches, from graphs or eagerly."""
        return CapturedSteps(self.data.store, self.padded_step, self.optimizer.forget, graphs)

    def validate(self) -> dict[str, float]:
        """Errors on the validation crystals; see ``validation_errors``."""
        return validation_errors(self.judged, self.data, self.config, self.progress.epoch)

    def _keep_if_best(self, errors: dict[str, float]) -> None:
        progress = self.progress
        if self._settles():
            progress.best_error = math.inf
        if errors and not errors["valid_error"] < progress.best_error:
            return
        progress.best_error = errors.get("valid_error", math.inf)
        progress.best_epoch = progress.epoch
        if self.best is not self.judged:
            self.best.load_state_dict(self.judged.state_dict())

    def _settles(self) -> bool:
        """Whether this epoch begins the second half of a falling learning rate. Earlier epochs no
        longer count as the best then: few validation crystals may favour one by chance."""
        falls = self.config.schedule != "constant" and not self.progress.cycle_epoch
        return falls and self.progress.epoch == self.epochs // 2 + 1

    def has_ended(self, epochs: int) -> bool:
        """Whether a run of so many epochs is complete, or its patience has run out."""
        patience, progress = self.config.patience, self.progress
        since = progress.epoch - max(progress.best_epoch, progress.cycle_epoch)
        return progress.epoch >= epochs or (bool(patience) and since >= patience)

    def rate_of(self, step: int) -> float:
        """The learning rate of a step; its schedule covers the run, or what extends it, as if all
        epochs were as long as the first."""
        progress = self.progress
        steps = (self.epochs - progress.cycle_epoch) * self.steps_per_epoch
        return learning_rate(step - progress.cycle_step, steps, self.config)

    def _entry(self, loss: float, errors: dict[str, float], seconds: float) -> dict[str, Any]:
        """The history entry of an epoch."""
        entry: dict[str, Any] = {"epoch": self.progress.epoch, "train_loss": loss}
        targets = self.model.targets
        if len(targets) == 1 and targets[0].kind == "value":
            entry["train_mae"] = loss * targets[0].std
            if errors:
                entry["valid_mae"] = errors[f"valid_{targets[0].name}_mae"]
        entry |= errors
        entry["learning_rate"] = self.rate_of(max(self.progress.step - 1, 0))
        entry["seconds"] = seconds
        entry["crystals_per_second"] = len(self.data.parts.train) / seconds
        return {k: finite(v) for k, v in entry.items()}

    def _report(
        self, loss: float, errors: dict[str, float], seconds: float, seconds_left: float
    ) -> None:
        line = f"epoch {self.progress.epoch}/{self.epochs}  loss {loss:.4g}"
        shown = ", ".join(
            f"{self._title(k)} {v:.4g}" for k, v in errors.items() if k != "valid_error"
        )
        if shown:
            best = " (best so far)" if self.progress.best_epoch == self.progress.epoch else ""
            line += f"  validation: {shown}{best}"
        line += f"  {seconds:.1f} s, {len(self.data.parts.train) / seconds:.0f} crystals/s"
        if self.progress.epoch < self.epochs:
            line += f", {duration(seconds_left)} left"
        self.reporter.say(line)

    def _title(self, error: str) -> str:
        """What ``valid_TARGET_MEASURE`` stands for: ``band_gap (eV) MAE``."""
        targets = {f"valid_{t.name}_": titled(t.name, t.learned_unit) for t in self.model.targets}
        start = max(filter(error.startswith, targets), key=len)
        measure = error.removeprefix(start).replace("mae", "MAE").replace("roc_auc", "ROC AUC")
        return f"{targets[start]} {measure.replace('_', ' ')}"

    # -----------------------------------------------------------------------------------------
    # On disk

    def save(self) -> None:
        """Write the best model, the state and the metrics; rank 0 only."""
        if self.folder is None or not is_first():
            return
        models = {"model": self.model}
        if self.average is not None:
            models["average"] = self.average.average
        if self.best not in models.values():
            models["best"] = self.best
        groups = {name: model.state_dict() for name, model in models.items()}
        groups["optimizer"] = self.optimizer.tensors()
        # The model comes first: a model newer than the state will be reached again, one that is
        # older would stay.
        if self.progress.best_epoch == self.progress.epoch:
            self.best.save(self.folder / MODEL, {"epoch": self.progress.epoch})
        save_state(self.folder, State(self.settings, self.epochs, self.progress, groups))

    def resume(self) -> bool:
        """Take over the state in the folder; returns whether there is one.

        Raises:
            ValueError: It is damaged, belongs to a run with other settings, or to one of another
                length that cannot be extended to this one.
        """
        state = None if self.folder is None else load_state(self.folder)
        if state is None or self.folder is None:
            return False
        if state.settings != self.settings:
            raise ValueError(
                f"{self.folder} holds a run with other data or settings"
                f"{differences(self.folder, self.model.config)}: choose another folder, or remove "
                "it to start over"
            )
        self.model.load_state_dict(state.groups["model"])
        if self.average is not None:
            self.average.average.load_state_dict(state.groups["average"])
        if "best" in state.groups:
            self.best.load_state_dict(state.groups["best"])
        self.optimizer.load(state.groups.get("optimizer", {}))
        self.progress = state.progress
        if state.epochs != self.epochs:
            self._extend(state.epochs)
        if is_first():
            restore_texts(self.folder, self.model.config, self.progress, self.reporter)
        return True

    def _extend(self, earlier: int) -> None:
        """Begin a new cycle of the learning rate after a finished run.

        Args:
            earlier: Length of that run.

        Raises:
            ValueError: It is not finished, or the length asked for adds nothing to it.
        """
        folder, progress, epochs = self.folder, self.progress, self.epochs
        assert folder is not None
        if not self.has_ended(earlier):
            raise ValueError(
                f"{folder} holds a run of {earlier} epochs that is at epoch {progress.epoch}, this "
                f"is one of {epochs}: finish it with --epochs {earlier}, then extend it with "
                f"--epochs {epochs}; or choose another folder"
            )
        if epochs <= progress.epoch:
            raise ValueError(
                f"{folder} holds a finished run of {progress.epoch} epochs, this is one of "
                f"{epochs}: ask for more epochs to extend it, or choose another folder"
            )
        self.reporter.say(
            f"the run in {folder} ended after {progress.epoch} epochs and goes on to {epochs}; the "
            f"learning rate begins its schedule ({self.config.schedule}) again"
        )
        progress.cycle_epoch, progress.cycle_step = progress.epoch, progress.step
        if is_first():
            write_config(folder, self.model.config)
