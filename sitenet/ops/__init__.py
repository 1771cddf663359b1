"""The torch operators over the compiled kernels, one file a family.

Every op is defined by its schema in ``library`` (functional, a fixed number of outputs), has a fake
implementation (shapes only) and one implementation a device, which checks, allocates with torch and
passes addresses, sizes and a thread count or stream to ``sitenet._C``. The public function of a
family makes its inputs contiguous and stands its ``autograd.Function`` outside the ops.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from sitenet.system.compiled import _C as _C
from sitenet.system.devices import need_cuda as need_cuda

library = torch.library.Library("sitenet", "DEF")


def check(
    x: torch.Tensor,
    name: str,
    shape: Sequence[int | str],
    dtype: torch.dtype | tuple[torch.dtype, ...] | None = None,
    like: torch.Tensor | None = None,
) -> None:
    """Check one argument of an op.

    Args:
        x: the argument.
        name: its name in the user's words.
        shape: one entry a dimension: a number, or a word for a free size.
        dtype: the dtype wanted, or several.
        like: a tensor whose device (and dtype, when ``dtype`` is None) x must share.

    Raises:
        TypeError: x is no tensor, or of another dtype.
        ValueError: x has another shape or device.
    """
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if x.dim() != len(shape) or any(
        isinstance(want, int) and got != want for got, want in zip(x.shape, shape, strict=True)
    ):
        wanted = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ValueError(f"{name} must have shape ({wanted}), got {tuple(x.shape)}")
    if dtype is None and like is not None:
        dtype = like.dtype
    dtypes = dtype if isinstance(dtype, tuple) else (dtype,)
    if dtype is not None and x.dtype not in dtypes:
        wanted = " or ".join(str(t).removeprefix("torch.") for t in dtypes)
        raise TypeError(f"{name} must be {wanted}, got {str(x.dtype).removeprefix('torch.')}")
    if like is not None and x.device != like.device:
        raise ValueError(f"{name} must be on {like.device}, got {x.device}")


def fuses(x: torch.Tensor) -> bool:
    """Whether small computations on x are worth kernels of their own: on a GPU, where starting an
    operation takes longer than running it. On a CPU, plain torch and its gradients do."""
    return x.is_cuda


def launch(kernel: Callable[..., Any], like: torch.Tensor, *arguments: Any) -> None:
    """Call a CUDA function of ``_C`` for a tensor's device, on the current stream there."""
    with torch.cuda.device(like.device):
        kernel(*arguments, torch.cuda.current_stream().cuda_stream)


def scratch(num_bytes: int, like: torch.Tensor) -> torch.Tensor:
    """Memory that a kernel needs for itself, uninitialised, on a tensor's device."""
    return torch.empty(num_bytes, dtype=torch.uint8, device=like.device)
