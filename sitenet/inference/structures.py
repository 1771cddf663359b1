"""Structures of any kind as crystals, prepared as a model expects them."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any, get_args

from sitenet.config import Disorder, PredictedDisorder, SiteNetConfig
from sitenet.crystal.arrangements import Sampling
from sitenet.crystal.crystal import CifError, Crystal
from sitenet.crystal.exchange import is_a, package_of, refusal
from sitenet.data.dataset import Preparation
from sitenet.data.structure_files import read
from sitenet.data.structures import crystal_of

_EXPECTED = "a Crystal, a path, CIF text, a pymatgen Structure or its as_dict(), or ASE Atoms"

# What to give instead of the dict of such an object.
_REMEDIES = {
    "MSONAtoms": ": give MSONAtoms.from_dict(...) itself",
    "Molecule": ": put it into a cell with get_boxed_structure",
    "IMolecule": ": put it into a cell with get_boxed_structure",
    "ComputedEntry": ": give a ComputedStructureEntry",
}


def as_crystal(structure: Any, disorder: str = "error") -> Crystal:
    """Convert a structure of any supported kind.

    Args:
        structure: A Crystal, a path, CIF text (str or bytes), a pymatgen Structure or its
            ``as_dict()``, the dict of a JARVIS Atoms, ASE Atoms, or an object of pymatgen or the
            Materials Project with a ``structure``, such as a ComputedStructureEntry.
        disorder: What to do about partial occupancy, as in ``read_cif``; a Crystal keeps its own.

    Raises:
        CifError: A CIF holds no sound structure.
        OSError: There is no such file.
        TypeError: The object is of no supported kind; names it.
        ValueError: The structure has no cell or unknown elements, or is disordered.
    """
    if isinstance(structure, Crystal):
        return structure
    if isinstance(structure, (str, bytes, os.PathLike)):
        return read(structure, disorder)
    if isinstance(structure, dict):
        return _from_dict(structure, disorder)
    inner = getattr(structure, "structure", None)
    if package_of(inner) == "pymatgen":  # of a ComputedStructureEntry, a document of mp-api, ...
        structure = inner
    package = package_of(structure)
    if package == "ase":
        return Crystal.from_ase(structure)
    if package == "pymatgen":
        return Crystal.from_pymatgen(structure, disorder)
    if isinstance(structure, (list, tuple, set)):
        raise TypeError(
            f"expected {_EXPECTED}, got a {type(structure).__name__} of several: give its "
            "structures one by one, not lists of them"
        )
    raise refusal(structure, _EXPECTED)


def _from_dict(content: dict[str, Any], disorder: str) -> Crystal:
    if "lattice_mat" in content:
        return crystal_of("jarvis", content, disorder)
    if isinstance(content.get("lattice"), dict) and "sites" in content:
        text = json.dumps(content, default=_plain)
        return crystal_of("pymatgen", text, disorder)
    if isinstance(content.get("structure"), dict):  # of a ComputedStructureEntry
        return _from_dict(content["structure"], disorder)
    kind = content.get("@class")
    if kind is not None:
        remedy = _REMEDIES.get(kind, "")
        raise TypeError(
            f"expected {_EXPECTED}, got the dict of a {kind}, which has no lattice and sites"
            f"{remedy}"
        )
    keys = ", ".join(map(repr, list(content)[:5])) or "none"
    raise TypeError(
        f"expected {_EXPECTED}, got a dict without lattice and sites; its keys are {keys}"
    )


def _plain(value: Any) -> Any:
    """Numpy numbers and arrays as JSON has them."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"expected numbers, text, lists and dicts in a structure, got {value!r}")


def is_single(structures: Any) -> bool:
    """Whether an argument is one structure, not several: ASE's and pymatgen's iterate too."""
    if isinstance(structures, (Crystal, str, bytes, os.PathLike, dict)):
        return True
    if not isinstance(structures, Iterable):
        return True
    return bool(package_of(structures)) or is_a(structures, "pymatgen", "IMolecule")


def preparation(
    config: SiteNetConfig, primitive: bool | None = None, disorder: str | None = None
) -> Preparation:
    """Return how to prepare structures for a model.

    Args:
        config: The model's; it records how its training structures were prepared.
        primitive: Overrides ``config.primitive`` unless None.
        disorder: Overrides ``config.disorder`` unless None.

    Raises:
        ValueError: There is no such treatment of disorder.
    """
    disorder = config.disorder if disorder is None else disorder
    if disorder not in get_args(Disorder):
        raise ValueError(f"disorder must be 'error' or 'average', got {disorder!r}")
    return Preparation(config.primitive if primitive is None else primitive, disorder)


def sampling_of(
    disorder: str | None, options: dict[str, Any]
) -> tuple[str | None, Sampling | None]:
    """Return how structures are read for a prediction, and how arrangements are drawn.

    Args:
        disorder: As in ``predict``.
        options: Fields of ``Sampling``.

    Returns:
        ``disorder`` as ``preparation`` takes it, and None; for "sample", "average" and how
        arrangements are drawn.

    Raises:
        TypeError: An option is unknown, or there are some without "sample".
        ValueError: There is no such treatment of disorder, or an option is out of range.
    """
    if disorder is not None and disorder not in get_args(PredictedDisorder):
        raise ValueError(f"disorder must be 'error', 'average' or 'sample', got {disorder!r}")
    unknown = options.keys() - {field.name for field in fields(Sampling)}
    if unknown:
        raise TypeError(f"unknown option {min(unknown)!r}")
    if disorder == "sample":
        return "average", Sampling(**options)
    if options:
        raise TypeError(f"{', '.join(options)}: only with disorder='sample', got {disorder!r}")
    return disorder, None


def prepared(structures: Iterable[Any], how: Preparation) -> Iterator[Crystal]:
    """Convert structures one by one; errors start with the structure's number.

    Args:
        structures: As in ``as_crystal``.
        how: Whether to find primitive cells, and what to do about partial occupancy.
    """
    for number, structure in enumerate(structures):
        with numbered(number):
            crystal = as_crystal(structure, how.disorder)
            if how.primitive:
                crystal = crystal.primitive()
        yield crystal


@contextmanager
def numbered(number: int, crystal: Crystal | None = None) -> Iterator[None]:
    """Start the errors of a block with the number, and the name if known, of a structure."""
    name = "" if crystal is None else f" ({title(crystal)})"
    where = f"structure {number}{name}"
    try:
        yield
    except CifError as error:
        error.file = f"{where}: {error.file}"
        raise
    except TypeError as error:
        raise TypeError(f"{where}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def title(crystal: Crystal) -> str:
    """The name of a crystal, or its formula if it has none."""
    return crystal.name or crystal.reduced_formula
