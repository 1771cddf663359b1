"""One row of a table of crystals, and the table as a whole.

A source is read record by record; a record knows where it stands and how to make its crystal, so
that a structure that cannot be used is named and the rest goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sitenet.crystal.crystal import CifError, Crystal, read_cif
from sitenet.crystal.disorder import FULL
from sitenet.crystal.elements import NUMBERS

# What a column's name ends with -> its unit.
UNITS = {
    "eV_per_atom": "eV/atom",
    "eV/atom": "eV/atom",
    "eV": "eV",
    "GPa": "GPa",
    "K": "K",
    "A3": "Å³",
    "A": "Å",
    "bandgap": "eV",
    "band_gap": "eV",
    "gap pbe": "eV",
    "gap expt": "eV",
    "e_form": "eV/atom",
    "energy_per_atom": "eV/atom",
    "energy_peratom": "eV/atom",
}


@dataclass(frozen=True)
class Record:
    """One row of a source.

    Attributes:
        id: what it is called in results.
        where: file and row, for messages.
        kind: what ``content`` is: "file", "cif", "pymatgen", "jarvis" or "crystal".
        content: a path, CIF text, JSON text, a dict, or a Crystal.
        targets: one number a target, NaN where missing.
        split: the value of the source's split column, or "".
    """

    id: str
    where: str
    kind: str
    content: Any
    targets: tuple[float, ...] = ()
    split: str = ""

    def crystal(self, disorder: str = "error") -> Crystal:
        """The structure, as it stands in the source.

        Raises:
            ValueError: it cannot be used (CifError where it is a CIF), with the reason.
        """
        match self.kind:
            case "file":
                crystal = read_cif(Path(self.content), disorder)
            case "cif":
                try:
                    crystal = read_cif(_text(self.content), disorder)
                except CifError as error:
                    raise CifError(self.where, error.block, error.reason) from None
            case "pymatgen" | "jarvis":
                make = _from_pymatgen_json if self.kind == "pymatgen" else _from_jarvis_dict
                try:
                    crystal = make(self.content, disorder)
                except (KeyError, TypeError, IndexError, AttributeError) as error:
                    raise ValueError(f"no {self.kind} structure: {error!r}") from None
            case _:
                crystal = self.content
        return crystal


def _text(content: Any) -> str:
    if not isinstance(content, str) or not content.strip():
        raise CifError("", None, f"expected CIF text, got {content!r}")
    return content if "\n" in content else content + "\n"


class Source:
    """A table of crystals: iterate over it to get its records.

    Attributes:
        path: what it was opened from.
        targets: names of the properties its records carry.
        units: their units, "" where the name does not say.
    """

    def __init__(self, path: Path, records: Sequence[Record] | Any, targets: Sequence[str]) -> None:
        self.path = path
        self.targets = tuple(targets)
        self.units = tuple(map(unit_of, targets))
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._records)

    def fingerprint(self) -> str:
        """A hash of names, sizes and times of the files: another one once they have changed."""
        digest = hashlib.sha256()
        for path in (self.path, *_files(self._records)):
            facts = path.stat() if path.is_file() else None
            found = (facts.st_size, facts.st_mtime_ns) if facts else "none"
            digest.update(f"{path.absolute()} {found}\n".encode())
        return digest.hexdigest()


def _files(records: Any) -> Iterator[Path]:
    """The files that records in memory name."""
    if isinstance(records, list):
        yield from (Path(r.content) for r in records if r.kind == "file")


def unit_of(name: str) -> str:
    """The unit that the name of a column ends with, or ""."""
    for ending, unit in UNITS.items():
        if name == ending or name.endswith(("_" + ending, " " + ending)):
            return unit
    return ""


def _from_pymatgen_json(text: str, disorder: str) -> Crystal:
    """A crystal from the JSON of a pymatgen Structure, without pymatgen."""
    content = json.loads(text)
    numbers, frac, oxidation, occupancy = [], [], [], []
    for k, site in enumerate(content["sites"]):
        for species in site["species"]:
            element = str(species["element"])
            if element not in NUMBERS:
                raise ValueError(f"site {k}: unknown element {element!r}")
            numbers.append(NUMBERS[element])
            frac.append(site["abc"])
            oxidation.append(species.get("oxidation_state") or 0.0)
            occupancy.append(species.get("occu", 1.0))
    partial = min(occupancy, default=1) < FULL
    if partial and disorder != "average":
        raise ValueError('partial occupancy; disorder="average" averages over it')
    return Crystal(
        content["lattice"]["matrix"],
        np.reshape(frac, (-1, 3)),
        np.array(numbers, dtype=np.int64),
        np.array(oxidation) if any(oxidation) else None,
        np.minimum(occupancy, 1) if partial else None,
    )


def _from_jarvis_dict(content: dict, disorder: str) -> Crystal:
    """A crystal from the dict of a JARVIS Atoms, which are ordered, without jarvis-tools."""
    cell = np.array(content["lattice_mat"], dtype=np.float64)
    coords = np.array(content["coords"], dtype=np.float64)
    if content.get("cartesian"):
        coords = coords @ np.linalg.inv(cell)
    unknown = [e for e in content["elements"] if e.strip() not in NUMBERS]
    if unknown:
        raise ValueError(f"unknown element {unknown[0]!r}")
    return Crystal(cell, coords, np.array([NUMBERS[e.strip()] for e in content["elements"]]))
