"""Training steps as CUDA graphs: the host starts one graph per step instead of many kernels.

A graph has fixed sizes and addresses. So a batch is gathered on the GPU, from crystal numbers in a
buffer, and padded (``PairStore.padded_batch``) to one of a few sizes. The first step of a size runs
eagerly, which loads its kernels; the second one is captured; later ones are replayed.

A step of the published config is some 210 kernels, one of `sphere` 330 and one of `density` 450
(``bench/count_operations.py``), most of them small. At 2.5 us each, one after another in a graph,
they take 0.5, 0.8 and 1.1 ms, several times what the kernels of attention take. So an epoch over
Matbench's 84,890 crystals, 1,326 steps of 64, takes `sphere` 1.1 s, and larger batches save most.
These are predictions, not measurements.

Several ranks pad their shares of a batch to one size, so that each captures and replays the same
graphs, with the sum of the gradients over the ranks inside.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from sitenet.model.sitenet import SiteNet
from sitenet.ops.padded_batch import Room
from sitenet.pairs.store import PairStore, placed
from sitenet.system.distributed import gathered, rank, world

# (index, room) -> this rank's part of the loss. The index is (ranks, places), each row as
# ``padded_batch`` takes it: a rank computes its own row, and knows all targets of the step.
Step = Callable[[Tensor, Room], Tensor]


def check_capture(model: SiteNet, store: PairStore, device: torch.device) -> None:
    """Check that the training steps of a model can be captured.

    Raises:
        ValueError: They cannot; the message gives the reason.
    """
    obstacles = {
        "needs a GPU (device: cuda)": device.type != "cuda",
        "takes one batch per step (accumulate: 1)": model.config.training.accumulate > 1,
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
    """Places and sizes of a padded batch; see ``common_size``."""
    return common_size([crystals], [room])


def common_size(crystals: Sequence[int], rooms: Sequence[Room]) -> tuple[int, Room]:
    """Places and sizes into which the share of each rank fits.

    Cheap dimensions are rounded more coarsely. On 85,000 Matbench crystals in batches of 64 there
    are 41 sizes, with 4 % more pairs and 17 % more rows; in batches of 1200 sites there are 94.
    With images there are 66 sizes in batches of 64, with 15 % more images.
    The size depends on the batch alone, so that a resumed run takes the same steps, and ranks that
    know all shares agree without a message.

    Args:
        crystals: Crystals of each share, of which some may have none.
        rooms: Their rows, pairs and images.
    """
    places = rounded(max(crystals) + 1, 1)
    # Each place of padding takes a row, and a pair of padding an image, if there are images.
    rows = max(room.rows + places - n for n, room in zip(crystals, rooms, strict=True))
    pairs, images = max(x.pairs for x in rooms), max(x.images for x in rooms)
    if not images:
        return places, Room(rounded(rows, 4), rounded(pairs, 8))
    pairs = rounded(pairs + 1, 8)
    images = max(room.images + pairs - room.pairs for room in rooms)
    return places, Room(rounded(rows, 4), pairs, rounded(images, 4))


def padded_index(shares: Sequence[np.ndarray], places: int) -> np.ndarray:
    """The crystals of each rank's share, and padding that repeats the first crystal of the step:
    (ranks, places), as ``PairStore.padded_batch`` takes each row."""
    first = next(int(share[0]) for share in shares if len(share))
    index = np.full((len(shares), places), -1 - first, dtype=np.int64)
    for row, share in zip(index, shares, strict=True):
        row[: len(share)] = share
    return index


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
        # NCCL's watchdog thread asks for the state of earlier sums, which would end a "global" one.
        mode = "global" if world() == 1 else "thread_local"
        # The outer context makes the stream current again, which a failed capture does not.
        with (
            torch.cuda.stream(current),
            torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode=mode),
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
        """Take a step on crystals that the ranks share; returns this rank's part of the loss."""
        shares = [crystals[k :: world()] for k in range(world())]
        places, room = common_size([*map(len, shares)], [*map(self.store.room, shares)])
        index = placed(padded_index(shares, places), self.device)
        is_new = (places, room) not in self.sizes
        size = self.sizes.setdefault((places, room), _Size(index))
        size.index.copy_(index)

        def work() -> Tensor:
            return self.step(size.index, room)

        if self.graphs is None:
            return work()
        if size.replay is None and not is_new:
            size.replay = self._captured(self.graphs, work)
            if size.replay is None:
                return work()
        if size.replay is not None:
            return size.replay()
        with warnings.catch_warnings():  # the optimiser notices that it is not being captured
            warnings.filterwarnings("ignore", "This instance was constructed with capturable")
            return self.graphs.run(work)

    def _captured(self, graphs: Graphs, work: Callable[[], Tensor]) -> Callable[[], Tensor] | None:
        """Capture work on all ranks, or on none: they must go on in the same way, as an error may
        have left the group of one of them unusable in graphs."""
        replay, reason = None, None
        try:
            replay = graphs.capture(work)
        except RuntimeError as error:
            # Ending a capture that an error has broken off raises another, which hides the reason.
            if isinstance(error.__context__, RuntimeError):
                error = error.__context__
            reason = str(error).partition("\n")[0]
        reasons = gathered(reason)  # the ranks come to the same sizes, so all of them get here
        if not any(reasons):
            return replay
        first = next(k for k, text in enumerate(reasons) if text)
        self._give_up(reasons[first] + (f", on rank {first}" if world() > 1 else ""))
        return None

    def _give_up(self, reason: str) -> None:
        """Go on without graphs, whose memory is released."""
        if rank() == 0:
            warnings.warn(
                f"capturing a training step as a CUDA graph failed ({reason}); training continues "
                "without graphs, to the same results but more slowly",
                stacklevel=4,
            )
        self.forget()
        self.graphs = None
        for size in self.sizes.values():
            size.replay = None
