"""One row of a table of crystals, and the table as a whole.

A source is read record by record. A record knows where it stands and how to read its structures,
so that one that cannot be used is named and the rest goes on.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sitenet.crystal.crystal import CifError, Crystal, read_each
from sitenet.data.archives import stored
from sitenet.data.failures import Unusable
from sitenet.data.structure_files import read_structures
from sitenet.data.structures import crystal_of
from sitenet.data.units import same_quantity as same_quantity
from sitenet.data.units import stated_units
from sitenet.data.units import unit_of as unit_of


@dataclass(frozen=True)
class Record:
    """One row of a source.

    Attributes:
        id: name in tables of results.
        where: file and row, for messages.
        kind: form of ``content``: "file" for a path, "member" for the name and the bytes of a file,
            "cif" for CIF text or its bytes, "crystal" for a Crystal, "error" for an exception that
            says why there is no structure; others as in ``crystal_of``.
        content: the structure in that form.
        targets: one number per target, NaN where missing.
        split: the value of the source's split column, or "".
        block: the CIF block to read, "" for the only structure.
        several: whether each structure of a file is a row of its own.
    """

    id: str
    where: str
    kind: str
    content: Any
    targets: tuple[float, ...] = ()
    split: str = ""
    block: str = ""
    several: bool = False

    def crystal(self, disorder: str = "error") -> Crystal:
        """Read the structure, as it stands in the source.

        Raises:
            ValueError: it cannot be used (CifError where it is a CIF), with the reason.
            OSError: its file cannot be read.
        """
        match self.kind:
            case "file" | "member" | "cif":
                return self._only(self._structures(disorder))
            case "crystal":
                return self.content
            case "error":
                raise self.content
            case _:
                return crystal_of(self.kind, self.content, disorder)

    def crystals(self, disorder: str = "error") -> Iterator[tuple[Record, Crystal | Exception]]:
        """Read every structure: a file of several yields a row for each, named ``id/block``.

        Yields:
            The row, and its crystal or the exception that says why there is none.
        """
        try:
            if not self.several:
                yield self, self.crystal(disorder)
                return
            structures = self._structures(disorder)
        except Exception as error:  # no structure may end a run over many
            yield self, error
            return
        if len(structures) <= 1:
            yield self, structures[0][1] if structures else _empty(self.where)
            return
        names = _unique([name for name, _ in structures])
        for name, (_, result) in zip(names, structures, strict=True):
            yield replace(self, id=f"{self.id}/{name}", block=name), result

    def _structures(self, disorder: str) -> list[tuple[str, Crystal | Exception]]:
        """The structures of a file, or of a CIF text: its blocks that hold one."""
        if self.kind == "file":
            if not self.content:
                raise Unusable("no file named", f"{self.where} names no file")
            path = Path(self.content)
            return list(read_structures(path.name, stored(path), disorder, self.block))
        try:
            if self.kind == "member":
                name, data = self.content
                structures = list(read_structures(name, data, disorder))
            else:
                structures = list(read_each(_cif_text(self.content), disorder))
        except CifError as error:
            raise self._at_this_row(error) from None
        return [
            (name, self._at_this_row(x) if isinstance(x, CifError) else x) for name, x in structures
        ]

    def _at_this_row(self, error: CifError) -> CifError:
        return CifError(self.where, error.block, error.reason, error.kind)

    def _only(self, structures: list[tuple[str, Crystal | Exception]]) -> Crystal:
        """The structure that the row means: that of its block, or the only one."""
        names = _unique([name for name, _ in structures])
        holder = f"{self.content}" if self.kind == "file" else f"{self.where}: the CIF text"
        if not structures:
            raise _empty(holder)
        if self.block:
            if self.block not in names:
                raise Unusable(
                    "no such block", f"{holder} holds {_listed(names)}, not {self.block!r}"
                )
            result = structures[names.index(self.block)][1]
        elif len(structures) > 1:
            reason = f"{holder} holds {len(names)} structures ({_listed(names)}), expected one"
            if self.kind == "file":
                reason += f": name one, as {Path(self.content).name}#{names[0]}"
            raise Unusable("several structures in one row", reason)
        else:
            result = structures[0][1]
        if isinstance(result, Exception):
            raise result
        return result


def _empty(where: str) -> Unusable:
    return Unusable("no structure", f"{where} holds no structure")


def _unique(names: Sequence[str]) -> list[str]:
    """Names of blocks; those without a name, or with that of another one, become their number, and
    all of them where such a number is another one's name."""
    counts, numbers = Counter(names), [str(k) for k in range(1, len(names) + 1)]
    unique = [
        name if name and counts[name] == 1 else number
        for name, number in zip(names, numbers, strict=True)
    ]
    return unique if len(set(unique)) == len(names) else numbers


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + ", ..." * (len(names) > 5)


def _cif_text(content: Any) -> str | bytes:
    if isinstance(content, bytes) and content.strip():
        return content
    if not isinstance(content, str) or not content.strip():
        raise CifError("", None, f"expected CIF text, got {content!r:.60}", "no CIF text")
    return content if "\n" in content else content + "\n"


class Parts:
    """Records of several files, one file after another; some are read as they are iterated over."""

    def __init__(self, parts: Sequence[Sequence[Record] | Any], files: Sequence[Path]) -> None:
        self.parts, self.files = parts, files

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[Record]:
        for part in self.parts:
            yield from part


class Source:
    """A table of crystals: iterate over it to get its records.

    Args:
        path: what it was opened from.
        records: the records, in memory or read as they are iterated over.
        targets: names of the properties that they carry.
        units: their units; None takes those that the names state.

    Attributes:
        path: what it was opened from.
        targets: names of the properties that its records carry.
        units: their units, "" where the name does not say.
    """

    def __init__(
        self,
        path: Path,
        records: Sequence[Record] | Any,
        targets: Sequence[str],
        units: Sequence[str] | None = None,
    ) -> None:
        self.path = path
        self.targets = tuple(targets)
        self.units = tuple(map(unit_of, targets) if units is None else units)
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def with_units(self, units: Sequence[str]) -> Source:
        """The same records with other units, one per target.

        Raises:
            ValueError: there are more or fewer of them than targets.
        """
        return Source(self.path, self._records, self.targets, stated_units(self.targets, units))

    def fingerprint(self) -> str:
        """A hash of the names, sizes and times of the files, which changes when they do."""
        digest = hashlib.sha256()
        for path in (self.path, *self._files()):
            facts = path.stat() if path.is_file() else None
            state = f"{facts.st_size, facts.st_mtime_ns}" if facts else "none"
            digest.update(os.fsencode(path.absolute()) + f" {state}\n".encode())
        return digest.hexdigest()

    def _files(self) -> Iterator[Path]:
        """The files that hold the records."""
        if isinstance(self._records, list):
            yield from (Path(r.content) for r in self._records if r.kind == "file" and r.content)
        yield from getattr(self._records, "files", ())
