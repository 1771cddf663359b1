"""Metrics of a run as TensorBoard events, if tensorboard is installed."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def events(folder: Path | None) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Yield a function that writes the history entry of an epoch as events.

    Args:
        folder: Where the events go; None writes nothing.
    """
    writer: Any = None

    def write(entry: dict[str, Any]) -> None:
        nonlocal writer
        if writer is None:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # tensorboard's own imports warn
                from torch.utils.tensorboard import SummaryWriter
            writer = SummaryWriter(folder)
        for name, value in entry.items():
            if isinstance(value, (int, float)) and name != "epoch":
                writer.add_scalar(name, value, entry["epoch"])
        writer.flush()

    try:
        import tensorboard  # noqa: F401
    except ImportError:
        folder = None
    try:
        yield write if folder is not None else lambda entry: None
    finally:
        if writer is not None:
            writer.close()
