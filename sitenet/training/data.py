"""What a model learns from: pairs and targets of all crystals, and which part each belongs to."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sitenet.data.splits import Split
from sitenet.pairs.store import PairStore


@dataclass(eq=False)
class TrainingData:
    """Crystals as a training loop needs them.

    Attributes:
        store: Pairs of all crystals, on the device that trains.
        targets: (crystals, targets) float64 on the scales that are learned, NaN where missing.
        parts: Numbers of the crystals that train, validate and test.
        known: The targets as a float32 tensor on the store's device.
    """

    store: PairStore
    targets: np.ndarray
    parts: Split
    known: Tensor = field(init=False)

    def __post_init__(self) -> None:
        device = self.store.columns["sites"].device
        self.known = torch.as_tensor(self.targets, dtype=torch.float32, device=device)
