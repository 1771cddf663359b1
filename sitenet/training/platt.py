"""Probabilities of classes, calibrated on the validation crystals (Platt, 1999).

A model's logit z of class 1 is replaced by slope * z + offset, with which the log loss on the
validation crystals is least. As in Platt's paper, the classes count there as (n + 1) / (n + 2) and
1 / (n + 2) instead of 1 and 0, n being the number of crystals of that class, so that few crystals
do not lead to certainty. The two numbers are folded into the decoder, and a model file needs
nothing else. The members of an ensemble, whose mean is its probability, share them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sitenet.inference.metrics import class_scores
from sitenet.model.ensemble import Ensemble, Model
from sitenet.model.sitenet import SiteNet

LEAST = 20  # validation crystals of each class, for two numbers to be fitted
PARTS = 5  # of the validation crystals; each is judged by a fit to the others
MEASURES = ("log_loss", "calibration_error")


@dataclass(frozen=True)
class Platt:
    """What calibration did to the probabilities of a class.

    Attributes:
        slope: Of the logit; 1 if the probabilities were left as they are.
        offset: Added to the logit, likewise 0.
        crystals: Number of validation crystals.
        before: ``log_loss`` and ``calibration_error`` on these without calibration.
        after: The same with it, each crystal judged by a fit to the other parts.
    """

    slope: float
    offset: float
    crystals: int
    before: dict[str, float]
    after: dict[str, float]

    def described(self, name: str) -> str:
        """One line on it."""
        (loss, error), (new_loss, new_error) = (
            [scores[m] for m in MEASURES] for scores in (self.before, self.after)
        )
        line = (
            f"probabilities of {name}, cross-validated on {self.crystals} validation crystals: log "
            f"loss {loss:.4f} -> {new_loss:.4f}, calibration error {error:.4f} -> {new_error:.4f}"
        )
        return line if (self.slope, self.offset) != (1, 0) else f"{line}; left as they are"


def calibrate_probabilities(
    model: Model, encodings: np.ndarray, truth: np.ndarray
) -> dict[str, Platt]:
    """Calibrate a model's probabilities of classes, where that lowers the cross-validated log loss.

    Args:
        model: Its decoder is changed.
        encodings: (crystals, encoding) of the validation crystals by the model.
        truth: (crystals, targets); 0 or 1 for a class, NaN where unknown.

    Returns:
        What was done, by target; only classes with enough crystals.
    """
    done: dict[str, Platt] = {}
    for k, target in enumerate(model.targets):
        known = np.isfinite(truth[:, k])
        y = truth[known, k]
        if target.kind != "class" or min(y.sum(), (1 - y).sum()) < LEAST:
            continue
        logits = _logits(model, encodings[known], k)
        part = np.random.default_rng(0).permutation(len(y)) % PARTS
        judged = np.empty(len(y))
        for number in range(PARTS):
            mine = part == number
            slope, offset = _fit(logits[:, ~mine], y[~mine])
            judged[mine] = _probability(logits[:, mine], slope, offset)
        before, after = (class_scores(y, p) for p in (_probability(logits, 1, 0), judged))
        slope, offset = 1.0, 0.0
        if after["log_loss"] < before["log_loss"]:
            slope, offset = _fit(logits, y)
            _fold(model, k, slope, offset)
        shown = ({m: scores[m] for m in MEASURES} for scores in (before, after))
        done[target.name] = Platt(slope, offset, len(y), *shown)
    return done


def _members(model: Model) -> list[SiteNet]:
    return model.each if isinstance(model, Ensemble) else [model]


@torch.no_grad()
def _logits(model: Model, encodings: np.ndarray, k: int) -> np.ndarray:
    """Logits of a target by each member, (members, crystals)."""
    z = torch.as_tensor(encodings, device=model.element_table.device)
    members = _members(model)
    parts = zip(members, z.chunk(len(members), 1), strict=True)
    return np.stack([m.raw(part)[:, k].double().cpu().numpy() for m, part in parts])


def _probability(logits: np.ndarray, slope: float, offset: float) -> np.ndarray:
    """The mean over members, (crystals,)."""
    return torch.sigmoid(torch.from_numpy(slope * logits + offset)).mean(0).numpy()


def _fit(logits: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The slope, which stays positive, and the offset of least log loss.

    Args:
        logits: (members, crystals).
        y: (crystals,) 0 or 1.
    """
    ones = y.sum()
    zeros = len(y) - ones
    soft = np.where(y > 0.5, (ones + 1) / (ones + 2), 1 / (zeros + 2))
    z, want = torch.from_numpy(logits), torch.from_numpy(soft)
    values = torch.zeros(2, dtype=torch.float64, requires_grad=True)  # log of the slope, offset
    optimizer = torch.optim.LBFGS([values], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        scaled = values[0].exp() * z + values[1]
        # logarithms of the means over members of both probabilities
        log_p, log_q = (
            torch.logsumexp(torch.nn.functional.logsigmoid(x), 0) for x in (scaled, -scaled)
        )
        total = np.log(len(z)) - (want * log_p + (1 - want) * log_q).mean()
        total.backward()
        return total

    optimizer.step(loss)
    slope, offset = values[0].exp().item(), values[1].item()
    if not np.isfinite([slope, offset]).all():
        return 1.0, 0.0
    return slope, offset


@torch.no_grad()
def _fold(model: Model, k: int, slope: float, offset: float) -> None:
    """Make the decoder give slope * logit + offset of a target."""
    for member in _members(model):
        member.decoder.weight[k] *= slope
        member.decoder.bias[k] = slope * member.decoder.bias[k] + offset
