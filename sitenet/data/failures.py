"""Structures that could not be used, and why: each with a text and a kind that can be counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sitenet.system.files import write_csv

NO_VALUE = "no target value"


class Unusable(ValueError):
    """A structure or row that cannot be used.

    Attributes:
        kind: short fixed phrase without details of one file, to count failures by.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind

    def __reduce__(self) -> tuple[type, tuple[str, str]]:
        return type(self), (self.kind, str(self))


class UnclearTarget(ValueError):
    """Several properties, or none, where one is expected and none is named.

    Attributes:
        available: names of the properties that there are.
    """

    def __init__(self, available: Sequence[str], where: str = "") -> None:
        self.available = tuple(available)
        listed = ", ".join(self.available) or "no numeric column"
        prefix = f"{where}: " if where else ""
        super().__init__(f"{prefix}say which target to learn; there is {listed}")


@dataclass(frozen=True)
class LeftOut:
    """A structure that could not be used.

    Attributes:
        id: as in tables of results.
        where: file and row.
        reason: what is wrong, in full.
        kind: short fixed phrase, the same for all failures of one kind.
    """

    id: str
    where: str
    reason: str
    kind: str = "structure not usable"

    @classmethod
    def of(cls, id: str, where: str, error: Exception) -> LeftOut:
        """The failure that an exception reports."""
        expected = isinstance(error, (ValueError, OSError, ImportError))
        reason = str(error) if expected else f"{type(error).__name__}: {error}"
        return cls(id, where, printable(reason), kind_of(error))


# Subclasses first.
_KINDS: tuple[tuple[type[Exception], str], ...] = (
    (FileNotFoundError, "no such file"),
    (OSError, "unreadable file"),
    (ValueError, "structure not usable"),
    (ImportError, "package not installed"),
)


def kind_of(error: Exception) -> str:
    """The kind of a failure: the ``kind`` of its exception, else a phrase for its class."""
    kind = getattr(error, "kind", None)
    if isinstance(kind, str) and kind:
        return kind
    for cls, phrase in _KINDS:
        if isinstance(error, cls):
            return phrase
    return f"unforeseen {type(error).__name__}"


def reasons(left_out: Sequence[LeftOut]) -> str:
    """How many structures were left out per kind, and the first of them in full; "" for none."""
    if not left_out:
        return ""
    first = left_out[0]
    where = "" if first.where in first.reason else f"{first.where}: "
    counts = counts_by_kind(left_out)
    return f"{len(left_out)} left out ({counts}); the first: {where}{first.reason}"


def counts_by_kind(left_out: Sequence[LeftOut]) -> str:
    """How many structures were left out per kind: ``3 x no such file, 1 x no target value``."""
    counts = Counter(x.kind for x in left_out).most_common()
    return ", ".join(f"{count} x {kind}" for kind, count in counts)


def write_left_out(left_out: Iterable[LeftOut], path: Path) -> None:
    """Write a CSV of structures that could not be used: id, where, reason, kind."""
    rows = ((x.id, x.where, x.reason, x.kind) for x in left_out)
    write_csv(path, ("id", "where", "reason", "kind"), rows)


def printable(text: str) -> str:
    """A text in which bytes of file names that are not UTF-8 are shown as ``\\xe9``."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
