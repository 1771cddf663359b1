"""Names of CIFs: which files are CIFs, and which file a table's row names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

CIF_SUFFIXES = (".cif.gz", ".mcif.gz", ".cif", ".mcif")


def is_cif(path: Path) -> bool:
    """Whether a file is a CIF, by its name; those that macOS leaves beside a file are not."""
    return path.name.lower().endswith(CIF_SUFFIXES) and not path.name.startswith(".")


def without_suffix(name: str) -> str:
    """A name without the ending of a CIF."""
    suffix = next((s for s in CIF_SUFFIXES if name.lower().endswith(s)), "")
    return name[: len(name) - len(suffix)]


class CifFolder:
    """Finds the files that rows of a table name, with or without ending, in any case.

    Every folder is listed once, however many rows there are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names: dict[Path, dict[str, list[str]]] = {}

    def find(self, name: str) -> tuple[Path, str]:
        """The file that a row names, and the block in it: ``a.cif#phase_2`` is one of several.

        Returns:
            The path, of a file with the usual ending where there is none; and the block, or "".
        """
        path = self._existing(name)
        if path is not None:
            return path, ""
        file, mark, block = name.rpartition("#")
        if mark:
            path = self._existing(file)
            if path is not None:
                return path, block
        path = self.folder / name
        return path if is_cif(path) else path.with_name(path.name + ".cif"), ""

    def _existing(self, name: str) -> Path | None:
        path = self.folder / name
        if not path.name:
            return None
        suffixes: Sequence[str] = CIF_SUFFIXES[::-1]
        if path.name.lower().endswith(CIF_SUFFIXES):
            suffixes = ("", *suffixes)
        names = self._in(path.parent)
        for suffix in suffixes:
            same = names.get((path.name + suffix).lower(), [])
            if path.name + suffix in same:
                return path.with_name(path.name + suffix)
            if len(same) == 1:
                return path.with_name(same[0])
        return None

    def _in(self, folder: Path) -> dict[str, list[str]]:
        """The names in a folder by their lower case."""
        if folder not in self._names:
            try:
                names = sorted(os.listdir(folder))
            except OSError:
                names = []
            by_lower: dict[str, list[str]] = {}
            for name in names:
                by_lower.setdefault(name.lower(), []).append(name)
            self._names[folder] = by_lower
        return self._names[folder]
