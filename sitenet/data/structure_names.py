"""Names of structure files: what form a file has, and which file a table's row names."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from sitenet.data.archives import list_names

Form = Literal["cif", "vasp", "xyz", "json", "database", "zip"]

CIF_SUFFIXES = (".cif.gz", ".mcif.gz", ".cif", ".mcif")
_SUFFIXES: dict[Form, tuple[str, ...]] = {
    "cif": CIF_SUFFIXES,
    "vasp": (".vasp", ".poscar", ".contcar", ".vasp.gz", ".poscar.gz", ".contcar.gz"),
    "xyz": (".xyz", ".extxyz", ".xyz.gz", ".extxyz.gz"),
    "json": (".json", ".json.gz"),
    "database": (".db",),
    "zip": (".zip",),
}
_VASP_NAME = re.compile(r"(poscar|contcar)([._-].*)?", re.I)  # POSCAR, CONTCAR.gz, POSCAR_NaCl
# Endings in the order in which a row without one is looked for.
SUFFIXES = tuple(suffix for suffixes in _SUFFIXES.values() for suffix in suffixes[::-1])
ACCEPTED = (
    "CIF, POSCAR, extended XYZ, pymatgen or OPTIMADE JSON, ASE database (.db) or zip of these"
)


def form_of(name: str) -> Form | None:
    """The form of a structure file by its name; None for others, and for those that macOS leaves
    beside a file."""
    lower = name.lower().rpartition("/")[2]
    if lower.startswith("."):
        return None
    for form, suffixes in _SUFFIXES.items():
        if lower.endswith(suffixes):
            return form
    return "vasp" if _VASP_NAME.fullmatch(lower) else None


def without_suffix(name: str) -> str:
    """A name without the ending of a structure file."""
    lower = name.lower()
    lengths = [len(s) for s in SUFFIXES if lower.endswith(s) and len(name) > len(s)]
    return name[: len(name) - max(lengths, default=0)]


class StructureFolder:
    """Finds the files that rows of a table name, with or without ending, in any case.

    Every folder is listed once, however many rows there are.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names: dict[Path, dict[str, list[str]]] = {}

    def holds(self, name: str) -> bool:
        """Whether there is a file that a row names."""
        return (
            self._existing(name) is not None or self._existing(name.rpartition("#")[0]) is not None
        )

    def find(self, name: str) -> tuple[Path, str]:
        """The file that a row names, and the block in it: ``a.cif#phase_2`` is one of several.

        Returns:
            The path, of a CIF with the usual ending where there is no such file; and the block, or
            "".
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
        return path if form_of(path.name) else path.with_name(path.name + ".cif"), ""

    def _existing(self, name: str) -> Path | None:
        path = self.folder / name
        if not path.name:
            return None
        suffixes = ("", *SUFFIXES) if form_of(path.name) else SUFFIXES
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
            by_lower: dict[str, list[str]] = {}
            for name in list_names(folder):
                by_lower.setdefault(name.lower(), []).append(name)
            self._names[folder] = by_lower
        return self._names[folder]
