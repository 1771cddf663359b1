"""Training steps as CUDA graphs: the host starts one graph a step instead of its many kernels.

A graph has fixed sizes and addresses. So a batch is gathered on the GPU, from the crystals' numbers
in a buffer, and padded (``PairStore.padded_batch``) to one of a few sizes. A size is run kernel by
kernel when it comes first, which loads them, captured when it comes again, and replayed from then
on.

An epoch of the published config over Matbench's 84,890 crystals is 2,166 steps of 39,000 merged
pairs in 550 rows. A step is some 350 kernels, counted by a dispatch mode on a CPU, most of them
small. At 2.5 us each, one after another in a graph, they take 0.9 ms; two blocks at the 0.56 G
pairs/s that csrc/cuda predicts 0.14 ms: some 2.2 s an epoch, of which larger batches save most. Not
measured: no GPU was at hand.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sitenet.pairs.store import PairStore, placed

# (index, num_rows, num_pairs), as of ``padded_batch``, -> the loss of the step that it takes.
Step = Callable[[Tensor, int, int], Tensor]


def rounded(n: int, parts: int) -> int:
    """n or up to 1/parts more: of the numbers from a power of two to the next, one of ``parts``,
    which is a power of two itself."""
    unit = 1 << max(0, n.bit_length() - parts.bit_length())
    return -(-n // unit) * unit


def padded_size(crystals: int, rows: int, pairs: int) -> tuple[int, int, int]:
    """Places, rows and pairs of a padded batch. What costs less is rounded up further: by 85,000
    crystals of Matbench, 64 a batch, there are 41 sizes, with 4 % more pairs and 17 % more rows; in
    batches of 1200 sites there are 94. Nothing but the batch matters, so that a run which goes on
    takes the same steps."""
    places = rounded(crystals + 1, 1)
    return places, rounded(rows + places - crystals, 4), rounded(pairs, 8)


@dataclass
class _Graph:
    index: Tensor  # what the steps of this size read
    graph: torch.cuda.CUDAGraph | None = None
    loss: Tensor | None = None  # where the graph leaves it


class CapturedSteps:
    """Takes training steps on batches of crystals, from CUDA graphs where it can.

    Args:
        store: pairs of all crystals, on the device.
        step: what is captured; neither waits for the device nor copies from the host.
        capture: whether to make graphs; otherwise every step is run kernel by kernel.
    """

    def __init__(self, store: PairStore, step: Step, capture: bool = True) -> None:
        self.store, self.step = store, step
        self.graphs: dict[tuple[int, int, int], _Graph] = {}  # by crystals, rows and pairs
        self.device = store.columns["sites"].device
        self.stream = self.pool = None
        if capture:  # nothing can be captured on the default stream; the first runs are there too
            self.stream = torch.cuda.Stream(self.device)
            self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, crystals: np.ndarray) -> Tensor:
        """Take a step; returns its loss."""
        if self.stream is None:
            return self._take(crystals)
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            loss = self._take(crystals)
        current.wait_stream(self.stream)
        return loss

    def _take(self, crystals: np.ndarray) -> Tensor:
        size = padded_size(len(crystals), *self.store.room(crystals))
        padded = np.full(size[0], -1, dtype=np.int64)
        padded[: len(crystals)] = crystals
        index = placed(padded, self.device)
        known = self.graphs.get(size)
        if known is None:
            known = self.graphs[size] = _Graph(index)
            with warnings.catch_warnings():
                # Of the optimiser, that it is not captured.
                warnings.filterwarnings("ignore", "This instance was constructed with capturable")
                return self.step(index, *size[1:])
        known.index.copy_(index)
        if self.stream is None:
            return self.step(known.index, *size[1:])
        if known.graph is None:
            known.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(known.graph, pool=self.pool, stream=self.stream):
                known.loss = self.step(known.index, *size[1:])
        known.graph.replay()
        assert known.loss is not None
        return known.loss.clone()  # the next graph may take its memory
