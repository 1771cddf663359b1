"""Progress bars on standard error, with a rate and the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Task
    from rich.text import Text

Advance = Callable[[int], None]


class Reporter:
    """Reports the progress of a long job.

    Args:
        console: Where to write; None writes nothing. Bars are drawn on terminals only.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console

    def say(self, text: str) -> None:
        """Write one line."""
        if self.console is not None:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, title: str, total: int) -> Iterator[Advance]:
        """Draw a bar while the block runs.

        Args:
            title: What is being done.
            total: Number of items.

        Yields:
            A function to call with the number of items done since its last call.
        """
        if self.console is None or not self.console.is_terminal:
            yield lambda done: None
            return
        from rich import progress as bars  # takes 40 ms to import

        class Rate(bars.ProgressColumn):
            def render(self, task: Task) -> Text:
                return bars.Text(_rate(task.finished_speed or task.speed))

        columns = (
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.MofNCompleteColumn(),
            Rate(),
            bars.TimeRemainingColumn(),
        )
        with bars.Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(title, total=total)
            yield lambda done: progress.advance(task, done)


def _rate(speed: float | None) -> str:
    """Items per second, with two digits below 10."""
    if speed is None:
        return ""
    return f"{speed:.0f}/s" if speed >= 10 else f"{speed:.2g}/s"


def duration(seconds: float) -> str:
    """A length of time for people: ``8 s``, ``12 min``, ``3 h 05 min``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02} min"
