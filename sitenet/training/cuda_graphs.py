"""Training steps as CUDA graphs: the host starts one graph per step instead of many kernels.

A graph has fixed sizes and addresses. So a batch is gathered on the GPU, from crystal numbers in a
buffer, and padded (``PairStore.padded_batch``) to one of a few sizes. The first step of a size runs
eagerly, which loads its kernels; the second one is captured; later ones are replayed.

A step of the published config is some 280 kernels, one of `sphere` 520 and one of `density` 650
(``bench/count_operations.py``), most of them small. At 2.5 us each, one after another in a graph,
they take 0.7, 1.3 and 1.6 ms, several times what the kernels of attention take. So an epoch over
Matbench's 84,890 crystals, 1,326 steps of 64, takes `sphere` 1.7 s, and larger batches save most.
These are predictions, not measurements.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sitenet.model.sitenet import SiteNet
from sitenet.ops.padded_batch import Room
from sitenet.pairs.store import PairStore, placed
from sitenet.system.distributed import world

# (index, room), as ``padded_batch`` takes them -> the loss of the step.
Step = Callable[[Tensor, Room], Tensor]


def check_capture(model: SiteNet, store: PairStore, device: torch.device) -> None:
    """Check that the training steps of a model can be captured.

    Raises:
        ValueError: They cannot; the message gives the reason.
    """
    obstacles = {
        "needs a GPU (device: cuda)": device.type != "cuda",
        "takes one batch per step (accumulate: 1)": model.config.training.accumulate > 1,
        "works in one process": world() > 1,
        "does not support disordered crystals": len(store.columns["mixed_rows"]) > 0,
        "does not support sine distances": "sine_distance" in store.columns,
        "needs the fused kernels": model.blocks[0].plain,
    }
    for obstacle, holds in obstacles.items():
        if holds:
            raise ValueError(f"capture: true {obstacle}")


def rounded(n: int, parts: int) -> int:
    """Round n up to one of ``parts`` evenly spaced numbers per power of two.

    Args:
        n: A number; at most 1/parts of it is added.
        parts: A power of two.
    """
    unit = 1 << max(0, n.bit_length() - parts.bit_length())
    return -(-n // unit) * unit


def padded_size(crystals: int, room: Room) -> tuple[int, Room]:
    """Places and sizes of a padded batch.

    Cheap dimensions are rounded more coarsely. On 85,000 Matbench crystals in batches of 64 there
    are 41 sizes, with 4 % more pairs and 17 % more rows; in batches of 1200 sites there are 94.
    With images there are 66 sizes in batches of 64, with 15 % more images.
    The size depends on the batch alone, so that a resumed run takes the same steps.

    Args:
        crystals: Crystals of the batch.
        room: Their rows, pairs and images.
    """
    places = rounded(crystals + 1, 1)
    rows = rounded(room.rows + places - crystals, 4)
    if not room.images:
        return places, Room(rows, rounded(room.pairs, 8))
    pairs = rounded(room.pairs + 1, 8)
    return places, Room(rows, pairs, rounded(room.images + pairs - room.pairs, 4))


class Graphs(Protocol):
    """Captures work on a device and replays it."""

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        """Run work eagerly where it could be captured."""

    def capture(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        """Capture work, without running it; the result replays it."""


class CudaGraphs:
    """CUDA graphs that share a memory pool.

    Args:
        device: A GPU. Nothing can be captured on its default stream, so eager steps run on the
            same other stream as captures do.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def run(self, work: Callable[[], Tensor]) -> Tensor:
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = work()
        current.wait_stream(self.stream)
        return result

    def capture(self, work: Callable[[], Tensor]) -> Callable[[], Tensor]:
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.current_stream(self.device)
        # The outer context makes the stream current again, which a failed capture does not.
        with (
            torch.cuda.stream(current),
            torch.cuda.graph(graph, pool=self.pool, stream=self.stream),
        ):
            result = work()

        def replay() -> Tensor:
            graph.replay()
            return result.clone()  # the next graph may use its memory

        return lambda: self.run(replay)


@dataclass
class _Size:
    index: Tensor  # buffer that the steps of this size read
    replay: Callable[[], Tensor] | None = None


class CapturedSteps:
    """Takes training steps on batches of crystals, from graphs where possible.

    A capture that fails is reported once as a warning; from then on every step runs eagerly.

    Args:
        store: Pairs of all crystals, on the device.
        step: What is captured; it neither waits for the device nor copies from the host.
        forget: Called after a failed capture: drops the gradients, which may lie in its memory.
        graphs: None runs every step eagerly.
    """

    def __init__(
        self,
        store: PairStore,
        step: Step,
        forget: Callable[[], None],
        graphs: Graphs | None = None,
    ) -> None:
        self.store, self.step, self.forget, self.graphs = store, step, forget, graphs
        self.device = store.columns["sites"].device
        self.sizes: dict[tuple[int, Room], _Size] = {}  # by places, and what the arrays hold

    @property
    def captured(self) -> int:
        """Number of sizes that are replayed."""
        return sum(size.replay is not None for size in self.sizes.values())

    def __call__(self, crystals: np.ndarray) -> Tensor:
        """Take a step; returns its loss."""
        places, room = padded_size(len(crystals), self.store.room(crystals))
        padded = np.full(places, -1, dtype=np.int64)
        padded[: len(crystals)] = crystals
        index = placed(padded, self.device)
        is_new = (places, room) not in self.sizes
        size = self.sizes.setdefault((places, room), _Size(index))
        size.index.copy_(index)

        def work() -> Tensor:
            return self.step(size.index, room)

        if self.graphs is None:
            return work()
        if size.replay is None and not is_new:
            try:
                size.replay = self.graphs.capture(work)
            except RuntimeError as error:
                self._give_up(error)
                return work()
        if size.replay is not None:
            return size.replay()
        with warnings.catch_warnings():  # the optimiser notices that it is not being captured
            warnings.filterwarnings("ignore", "This instance was constructed with capturable")
            return self.graphs.run(work)

    def _give_up(self, error: RuntimeError) -> None:
        """Go on without graphs, whose memory is released."""
        # Ending a capture that an error has broken off raises another one, which hides the reason.
        if isinstance(error.__context__, RuntimeError):
            error = error.__context__
        reason = str(error).partition("\n")[0]
        warnings.warn(
            f"capturing a training step as a CUDA graph failed ({reason}); training continues "
            "without graphs, to the same results but more slowly",
            stacklevel=3,
        )
        self.forget()
        self.graphs = None
        for size in self.sizes.values():
            size.replay = None
