"""The loop of training: epochs over a store of pairs, validated, and saved so that it can go on."""

from __future__ import annotations

import copy
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml
from torch import Tensor

from sitenet.config import SiteNetConfig
from sitenet.data.dataset import Split
from sitenet.inference.metrics import class_scores, regression_scores
from sitenet.inference.predict import from_store
from sitenet.model.ensemble import Model
from sitenet.model.sitenet import SiteNet
from sitenet.pairs.pairs import Pairs
from sitenet.pairs.store import PairStore, placed
from sitenet.system.devices import multiplies_bfloat16
from sitenet.system.distributed import is_first, rank, world
from sitenet.system.files import new_file
from sitenet.system.progress import Reporter
from sitenet.training.cuda_graphs import CapturedSteps
from sitenet.training.optimizer import Average, Optimizer, batches, learning_rate
from sitenet.training.tensorboard import events

STATE = "state.safetensors"
MODEL = "model.safetensors"


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
        self.captured = self._captured() if self.config.capture else None
        self.rate = torch.zeros((), device=self.device)  # the learning rate that graphs read
        self.average = None
        if self.config.ema:
            self.average = Average(model, copy.deepcopy(model), self.config.ema)
        # Without validation crystals, the last model is the best one.
        self.best = copy.deepcopy(self.judged) if len(parts.valid) else self.judged
        self.best_error, self.best_epoch = math.inf, 0
        self.epoch, self.step = 0, 0
        self.history: list[dict[str, Any]] = []
        self.sites = self.store.num_sites[parts.train].tolist()
        # Of the whole run; other epochs than the first take a few steps more or less.
        self.steps = self.config.epochs * len(self._steps(1))

    def _steps(self, epoch: int) -> list[list[np.ndarray]]:
        """The batches of crystals of each step of an epoch."""
        order = batches(self.sites, self.config, [self.config.seed, epoch])
        todo = [self.parts.train[batch] for batch in order]
        count = self.config.accumulate
        return [todo[k : k + count] for k in range(0, len(todo), count)]

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
            counts: (targets,) known values of the whole step, of which these may be a part.
        """
        known = ~truth.isnan()
        truth = truth.nan_to_num()
        error = (output - truth).abs() / self.model.target_std
        if any(t.kind == "class" for t in self.model.targets):
            entropy = F.binary_cross_entropy_with_logits(output, truth, reduction="none")
            error = torch.where(self.model.is_class, entropy, error)
        return (error * known / counts.clamp(min=1)).sum()

    def train_epoch(self) -> float:
        """One pass over the training crystals; returns the mean loss of its steps."""
        self.model.train()
        self.epoch += 1
        losses: list[Tensor] = []
        title = f"epoch {self.epoch}/{self.config.epochs}"
        with self.reporter.bar(title, len(self.parts.train)) as advance:
            for step in self._steps(self.epoch):
                losses.append(self._take_step(step))
                advance(sum(map(len, step)))
        total = torch.stack(losses)
        if world() > 1:
            dist.all_reduce(total)
        if not bool(total.isfinite().all()):
            raise RuntimeError(
                f"the loss is not finite in epoch {self.epoch}; lower learning_rate (now "
                f"{self.config.learning_rate:g}) or use precision: float32"
            )
        return float(total.mean())

    def _captured(self) -> CapturedSteps:
        """Steps as CUDA graphs.

        Raises:
            ValueError: they cannot be; says why.
        """
        reasons = {
            "needs a GPU (device: cuda)": self.device.type != "cuda",
            "takes one batch a step (accumulate: 1)": self.config.accumulate > 1,
            "works in one process": world() > 1,
            "knows no disordered crystals": len(self.store.columns["mixed_rows"]) > 0,
            "knows no sine distances": "sine_distance" in self.store.columns,
            "needs the fused kernels": self.model.blocks[0].plain,
        }
        for reason, holds in reasons.items():
            if holds:
                raise ValueError(f"capture: true {reason}")
        return CapturedSteps(self.store, self.padded_step)

    def padded_step(self, index: Tensor, num_rows: int, num_pairs: int) -> Tensor:
        """One step of the optimiser on a batch of ``PairStore.padded_batch``; returns its loss.
        Nothing here waits for the device or copies from the host."""
        truth = self.known[index.clamp(min=0)].masked_fill((index < 0)[:, None], torch.nan)
        counts = (~truth.isnan()).sum(0)
        loss = self._backward(self.store.padded_batch(index, num_rows, num_pairs), truth, counts)
        self.optimizer.step(self.rate)
        return loss

    def _take_step(self, step: list[np.ndarray]) -> Tensor:
        """One step of the optimiser on the batches of crystals together; returns this process's
        part of their loss."""
        rate = learning_rate(self.step, self.steps, self.config)
        try:
            if self.captured is not None:
                self.rate.fill_(rate)
                total = self.captured(step[0])
            else:
                total = self._add_up_batches(step)
                self._add_up_gradients()
                self.optimizer.step(rate)
        except torch.OutOfMemoryError:
            raise RuntimeError(self._out_of_memory(step)) from None
        self.step += 1
        if self.average is not None:
            self.average.update(self.step)
        return total

    def _add_up_batches(self, step: list[np.ndarray]) -> Tensor:
        """Add the gradients of a step's batches; returns this process's part of their loss."""
        truths = [self.known[placed(batch, self.device)] for batch in step]
        counts = torch.stack([(~truth.isnan()).sum(0) for truth in truths]).sum(0)
        total = self.known.new_zeros(())
        for batch, truth in zip(step, truths, strict=True):
            mine = slice(rank(), None, world())
            self._scale_embedding(batch)
            if len(batch[mine]):
                total += self._backward(self.store.batch(batch[mine]), truth[mine], counts)
        return total

    def _backward(self, pairs: Pairs, truth: Tensor, counts: Tensor) -> Tensor:
        """Add the gradients of a batch; returns its loss."""
        low = self.config.precision == "bfloat16" and multiplies_bfloat16(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=low):
            output = self.model(pairs)
        loss = self.loss(output, truth, counts)
        loss.backward()
        return loss.detach()

    def _out_of_memory(self, step: list[np.ndarray]) -> str:
        """What to do where a step does not fit."""
        parts = [batch[rank() :: world()] for batch in step]
        largest = max(parts, key=lambda part: self.store.num_pairs[part].sum())
        pairs = int(self.store.num_pairs[largest].sum())
        said = f"out of GPU memory with {pairs} pairs in a batch of {len(largest)} crystals; "
        if len(largest) == 1:
            return said + "this crystal is too large for this GPU: try device cpu"
        name = "batch_sites" if self.config.batch_sites else "batch_crystals"
        said += f"try {name} {max(1, getattr(self.config, name) // 2)}"
        if self.config.capture:  # one batch a step
            return said
        return f"{said} with accumulate {2 * self.config.accumulate}"

    def _scale_embedding(self, batch: np.ndarray) -> None:
        """What the model does to its embedding for the crystals of this process, for those of the
        others, so that the weights stay equal."""
        embedding = self.model.embedding
        if world() > 1 and self.model.config.max_norm and embedding.weight.requires_grad:
            embedding.scale_rows(self.store.elements(batch))

    def _add_up_gradients(self) -> None:
        """Sum the gradients of the processes."""
        if world() == 1:
            return
        parameters = self.optimizer.parameters
        gradients = []
        for p in parameters:
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            gradients.append(p.grad.view(-1))
        flat = torch.cat(gradients)
        dist.all_reduce(flat)
        torch._foreach_copy_(gradients, flat.split([p.numel() for p in parameters]))

    def outputs(self, index: np.ndarray, model: Model | None = None) -> tuple[Any, Any]:
        """Properties (crystals, targets) and encodings of some crystals, divided over the
        processes."""
        model = model or self.judged
        first, count = rank(), world()
        found = from_store(model, self.store, index[first::count])
        width = model.encoding_size
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
        """Errors on the validation crystals: of each target, and as one number to choose by;
        nothing where none of their values is known. Where the mean of batches is asked for, the
        number is made of it, and it stands beside the mean of crystals."""
        index = self.parts.valid
        y, _ = self.outputs(index)
        truth = self.targets[index]
        if not np.isfinite(truth).any():
            return {}
        parts = self._valid_batches() if self.config.valid_mean == "batches" else []
        found: dict[str, float] = {}
        chosen = 0.0
        for k, target in enumerate(self.model.targets):
            classes = target.kind == "class"
            scores = class_scores if classes else regression_scores
            error, shown = ("log_loss", "roc_auc") if classes else ("mae", "mae")
            whole = scores(truth[:, k], y[:, k])
            found[f"valid_{target.name}_{shown}"] = whole[shown]
            if not whole["crystals"]:
                continue
            mean = whole[error]
            if parts:
                each = [scores(truth[part, k], y[part, k]) for part in parts]
                mean = float(np.mean([one[error] for one in each if one["crystals"]]))
                found[f"valid_{target.name}_{error}_of_batches"] = mean
            chosen += mean / target.std
        return found | {"valid_error": chosen}

    def _valid_batches(self) -> list[list[int]]:
        """Places among the validation crystals by batches, shuffled anew in each epoch, as the
        published code draws them."""
        sites = self.store.num_sites[self.parts.valid].tolist()
        return list(batches(sites, self.config, [self.config.seed, self.epoch, 1]))

    def run(self) -> None:
        """Train to the end, or until validation gets no better; saves after every epoch."""
        with events(self.folder if is_first() else None) as log:
            while self.epoch < self.config.epochs and not self._is_stale():
                begin = time.perf_counter()
                loss = self.train_epoch()
                seconds = time.perf_counter() - begin
                valid = self.validate() if len(self.parts.valid) else {}
                if not valid or valid["valid_error"] < self.best_error:
                    self.best_error = valid.get("valid_error", math.inf)
                    self.best_epoch = self.epoch
                    if self.best is not self.judged:
                        self.best.load_state_dict(self.judged.state_dict())
                self._record(loss, valid, seconds)
                self.save()
                log(self.history[-1])
                self.after_epoch(self.history[-1])
        self.captured = None  # an ensemble's next member needs the memory of its graphs

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
        if self.folder is None or not is_first():
            return
        models = {"model": self.model}
        if self.average is not None:
            models["average"] = self.average.average
        if self.best not in models.values():
            models["best"] = self.best
        tensors = {
            f"{kind}:{k}": x for kind, m in models.items() for k, x in m.state_dict().items()
        }
        tensors |= {f"optimizer:{name}": x for name, x in self.optimizer.tensors().items()}
        tensors = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
        facts = {
            "settings": self.settings,
            "epoch": self.epoch,
            "step": self.step,
            "best_error": _plain(self.best_error),
            "best_epoch": self.best_epoch,
            "history": self.history,
        }
        # First the model: one from after the state will come again, one from before would lag.
        if self.best_epoch == self.epoch:
            self.best.save(self.folder / MODEL, {"epoch": self.epoch})
        # A state that a power cut takes away costs epochs, a sync costs some of each.
        with new_file(self.folder / STATE, sync=False) as temporary:
            temporary.write_bytes(safetensors.torch.save(tensors, {"sitenet": json.dumps(facts)}))
        with new_file(self.folder / "metrics.jsonl", sync=False) as temporary:
            temporary.write_text("".join(json.dumps(entry) + "\n" for entry in self.history))

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
                f"{path.parent} holds a run with other data or settings"
                f"{self._differences(path.parent)}: choose another folder, or remove it to start "
                "anew"
            )

        def part(kind: str) -> dict[str, Tensor]:
            prefix = f"{kind}:"
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model"))
        if self.average is not None:
            self.average.average.load_state_dict(part("average"))
        if part("best"):
            self.best.load_state_dict(part("best"))
        self.optimizer.load(part("optimizer"))
        self.epoch, self.step, self.history = facts["epoch"], facts["step"], facts["history"]
        self.best_error = math.inf if facts["best_error"] is None else facts["best_error"]
        self.best_epoch = facts["best_epoch"]
        return True

    def _differences(self, folder: Path) -> str:
        """Which settings differ from those of the run in the folder."""
        try:
            content = yaml.safe_load((folder / "config.yaml").read_text())
            theirs = _flat(SiteNetConfig.from_dict(content).to_dict())
        except (OSError, ValueError, yaml.YAMLError):
            return ""
        ours = _flat(self.model.config.to_dict())
        found = [f"{k}: {theirs[k]} there, {v} here" for k, v in ours.items() if v != theirs.get(k)]
        return f" ({'; '.join(found)})" if found else ""


def _flat(config: dict[str, Any]) -> dict[str, Any]:
    return config | config["training"] | {"training": None}


def _plain(value: Any) -> Any:
    """For JSON, which knows no NaN: None instead."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
