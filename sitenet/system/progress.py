"""Progress bars on standard error, with a rate and the time left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

Advance = Callable[[int], None]


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:.0f}/s" if speed >= 10 else f"{speed:.2g}/s")


class Reporter:
    """Says how far a long job is.

    Args:
        console: where to; None says nothing. Bars are drawn on terminals only.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console

    def say(self, text: str) -> None:
        """One line."""
        if self.console is not None:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, what: str, total: int) -> Iterator[Advance]:
        """A bar that lasts as long as the block; gives what tells it how much more is done."""
        if self.console is None or not self.console.is_terminal:
            yield lambda done: None
            return
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            task = progress.add_task(what, total=total)
            yield lambda done: progress.advance(task, done)
