"""Muon, the optimiser of the matrices between hidden layers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn

from sitenet.config import TrainingConfig
from sitenet.system.devices import multiplies_bfloat16

MOMENTUM = 0.95
STEPS = 5  # of Newton-Schulz

# Multiplications that take as long as starting the operations of one more batch: 16 kernels of 2 us
# at 50 T per second on a GPU, 16 operations of 5 us at 25 G per second on a CPU.
OVERHEAD = {"cpu": 2e6, "cuda": 1.6e9}


class Muon(torch.optim.Optimizer):
    """Momentum with an orthogonalised update, as large as AdamW's.

    Products are in bfloat16 where the hardware multiplies it, else in float32: on a CPU without
    bfloat16 instructions ``torch.optim.Muon`` takes some thirty times as long
    (``bench/bench_optimizer.py``). Matrices are processed in a few batches, padded with zeros,
    which stay zeros.

    Args:
        matrices: Parameters to train.
        config: Settings of the training.

    Source: Jordan et al., 2024 (https://kellerjordan.github.io/posts/muon); the size of the update
    and the weight decay as in Liu et al., arXiv 2502.16982, eq. 4.
    """

    def __init__(self, matrices: list[nn.Parameter], config: TrainingConfig) -> None:
        super().__init__(
            matrices, {"lr": config.learning_rate, "weight_decay": config.weight_decay}
        )
        self._batches: dict[tuple[torch.Size, ...], list[_Batch]] = {}  # by shapes

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Take a step; a matrix without a gradient stays unchanged."""
        for group in self.param_groups:
            rate = group["lr"]
            matrices = [p for p in group["params"] if p.grad is not None]
            updates = self._updates(matrices)
            shapes = tuple(x.shape for x in matrices)
            if shapes not in self._batches:
                self._batches[shapes] = _batches(matrices)
            if matrices:
                torch._foreach_mul_(matrices, 1 - rate * group["weight_decay"])
            for batch in self._batches[shapes]:
                x = batch.pad(updates)
                x = orthogonal(x, _product_dtype(x)) * (batch.scale * rate)
                torch._foreach_sub_([matrices[k] for k in batch.members], batch.unpad(x))

    def _updates(self, matrices: list[Tensor]) -> list[Tensor]:
        """Nesterov momentum of each matrix."""
        for p in matrices:
            if not self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        momenta = [self.state[p]["momentum_buffer"] for p in matrices]
        gradients = [cast(Tensor, p.grad) for p in matrices]
        if not matrices:
            return []
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        return list(torch._foreach_lerp(gradients, momenta, MOMENTUM))


def grouped(shapes: Sequence[Sequence[int]], overhead: float) -> list[list[int]]:
    """Divide matrices into batches so that the multiplications and overheads of all are fewest.

    Args:
        shapes: Of each matrix. Tall ones are transposed.
        overhead: What one more batch costs, in multiplications.

    Returns:
        The numbers of the matrices in each batch.
    """
    wide = [(min(shape), max(shape)) for shape in shapes]
    order = sorted(range(len(wide)), key=lambda k: wide[k])

    def cost(members: list[int]) -> float:
        rows, columns = wide[members[-1]][0], max(wide[k][1] for k in members)
        return overhead + STEPS * len(members) * (2 * rows**2 * columns + rows**3)

    # best[n] divides the first n of the order into runs, and has their cost.
    best: list[tuple[float, list[list[int]]]] = [(0.0, [])]
    for end in range(1, len(order) + 1):
        runs = [order[first:end] for first in range(end)]
        costs = [before + cost(run) for (before, _), run in zip(best, runs, strict=True)]
        first = costs.index(min(costs))
        best.append((costs[first], [*best[first][1], runs[first]]))
    return best[-1][1]


class _Batch:
    """Matrices that are processed together: stacked if they have one shape, else padded with zeros.

    Args:
        members: Their numbers in a list of matrices.
        matrices: That list.

    Attributes:
        scale: (members, 1, 1), the size of the updates.
    """

    def __init__(self, members: list[int], matrices: Sequence[Tensor]) -> None:
        self.members = members
        self.shapes = [matrices[k].shape for k in members]
        self.tall = [shape[0] > shape[1] for shape in self.shapes]
        self.sizes = [shape.numel() for shape in self.shapes]
        like = matrices[members[0]]
        scales = [0.2 * math.sqrt(max(shape)) for shape in self.shapes]
        self.scale = like.new_tensor(scales)[:, None, None]
        wide = [(min(shape), max(shape)) for shape in self.shapes]
        self.is_uniform = len(set(wide)) == 1
        if self.is_uniform:
            return
        # Where each entry of the batch lies in the flattened matrices, after which a zero follows,
        # and where each entry of those lies in the batch.
        rows, columns = (max(sizes) for sizes in zip(*wide, strict=True))
        end = sum(self.sizes)
        index = np.full((len(members), rows, columns), end)
        begin = 0
        for page, shape, tall in zip(index, self.shapes, self.tall, strict=True):
            entries = np.arange(begin, begin + shape.numel()).reshape(shape)
            entries = entries.T if tall else entries
            page[: entries.shape[0], : entries.shape[1]] = entries
            begin += shape.numel()
        places = np.flatnonzero(index != end)
        inverse = places[np.argsort(index.ravel()[places])]
        self.index, self.inverse = (torch.from_numpy(x).to(like.device) for x in (index, inverse))
        self.zero = like.new_zeros(1)

    def pad(self, matrices: Sequence[Tensor]) -> Tensor:
        """The members among some matrices as a batch, (members, rows, columns)."""
        members = [matrices[k] for k in self.members]
        if self.is_uniform:
            return torch.stack([x.T if t else x for x, t in zip(members, self.tall, strict=True)])
        flat = torch.cat([*(x.reshape(-1) for x in members), self.zero])
        return flat.index_select(0, self.index.view(-1)).view(self.index.shape)

    def unpad(self, batch: Tensor) -> list[Tensor]:
        """The matrices of a batch, in their shapes."""
        if self.is_uniform:
            return [x.T if t else x for x, t in zip(batch, self.tall, strict=True)]
        flat = batch.reshape(-1).index_select(0, self.inverse)
        parts = zip(flat.split(self.sizes), self.shapes, strict=True)
        return [x.view(shape) for x, shape in parts]


def _batches(matrices: Sequence[Tensor]) -> list[_Batch]:
    if not matrices:
        return []
    overhead = OVERHEAD[matrices[0].device.type]
    groups = grouped([x.shape for x in matrices], overhead)
    return [_Batch(members, matrices) for members in groups]


def _product_dtype(x: Tensor) -> torch.dtype:
    fast = x.dtype == torch.float32 and multiplies_bfloat16(x.device)
    return torch.bfloat16 if fast else x.dtype


def orthogonal(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Orthogonalise matrices: keep their singular vectors, and bring their singular values to
    some 0.7 to 1.2, by five Newton-Schulz steps with the coefficients of Jordan et al.

    Args:
        x: (n, rows, columns), no more rows than columns.
        dtype: Type of the products.

    Returns:
        (n, rows, columns) in this dtype; zeros stay zeros.
    """
    norm = torch.linalg.matrix_norm(x, keepdim=True).clamp_(min=1e-7)
    y = torch.div(x, norm, out=torch.empty_like(x, dtype=dtype))  # divides and casts at once
    for _ in range(STEPS):
        gram = y @ y.mT
        gram = torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315)
        y = torch.baddbmm(y, gram, y, beta=3.4445)
    return y
