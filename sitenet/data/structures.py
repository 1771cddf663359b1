"""Crystals from structures of other packages: the JSON of pymatgen, JARVIS and OPTIMADE, read
without these packages; and what ASE reads."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from sitenet.crystal.crystal import Crystal
from sitenet.crystal.disorder import FULL
from sitenet.crystal.elements import element_number
from sitenet.data.failures import Unusable
from sitenet.data.frames import LIMITS, ase

_CROWDED = 1.1  # sum of the occupancies of one site beyond which it is refused, as in CIFs
_DUMMIES = ("X", "Va", "Vac", "Vacancy", "Void")  # symbols that stand for a vacancy or nothing


Shares = dict[tuple[int, float], float]  # atomic number and charge -> share of a site


def crystal_of(kind: str, content: Any, disorder: str) -> Crystal:
    """Read a structure that is no CIF.

    Args:
        kind: "pymatgen" for its JSON text, "jarvis" or "optimade" for a dict, "vasp" or "extxyz"
            for the text of a file, "ase" for Atoms.
        content: the structure in that form.
        disorder: what to do about partial occupancy, as in ``read_cif``.

    Raises:
        ImportError: a text needs ASE, which is not installed.
        ValueError: the structure cannot be used, with the reason.
    """
    try:
        return _READERS[kind](content, disorder)
    except (KeyError, TypeError, IndexError, AttributeError) as error:
        reason = f"not a {kind} structure: {error!r}"
        raise Unusable(f"not a {kind} structure", reason) from None


def from_pymatgen_json(text: str, disorder: str) -> Crystal:
    """A crystal from the JSON of a pymatgen ``Structure``.

    Args:
        text: the JSON; ``lattice.matrix`` and each site's ``species`` and ``abc`` are read.
        disorder: what to do about partial occupancy, as in ``read_cif``.

    Raises:
        Unusable: a species is not an element, or a site is partly occupied or overfull.
    """
    content = json.loads(text)
    shares = [_shares(site["species"], k) for k, site in enumerate(content["sites"])]
    coords = [site["abc"] for site in content["sites"]]
    return _from_sites(content["lattice"]["matrix"], coords, shares, disorder)


def _from_sites(cell: Any, coords: Any, sites: Iterable[Shares], disorder: str) -> Crystal:
    """A crystal from fractional coordinates and the shares of the species on each site."""
    numbers, frac, oxidation, occupancy = [], [], [], []
    for k, (point, shares) in enumerate(zip(coords, sites, strict=True)):
        total = sum(shares.values())
        if total > _CROWDED:
            raise Unusable("overfull site", f"site {k}: occupancies add up to {total:g}")
        for (number, charge), share in shares.items():
            numbers.append(number)
            frac.append(point)
            oxidation.append(charge)
            share = share / max(total, 1)
            occupancy.append(1.0 if share >= FULL else share)
    partial = min(occupancy, default=1) < FULL
    if partial and disorder != "average":
        reason = 'partial occupancy; disorder="average" averages over it'
        raise Unusable("partial occupancy", reason)
    return Crystal(
        cell,
        np.reshape(frac, (-1, 3)),
        np.array(numbers, dtype=np.int64),
        np.array(oxidation) if any(oxidation) else None,
        np.array(occupancy) if partial else None,
    )


def _shares(species: Iterable[Mapping[str, Any]], site: int) -> Shares:
    """The shares of a site's species; isotopes of one element add up."""
    shares: Shares = {}
    for each in species:
        key = _number(each["element"], f"site {site}"), float(each.get("oxidation_state") or 0)
        share = float(each.get("occu", 1.0))
        if not share >= 0:
            raise Unusable("impossible occupancy", f"site {site}: occupancy {share:g}")
        if share:
            shares[key] = shares.get(key, 0.0) + share
    return shares


def from_jarvis_dict(content: Mapping[str, Any], disorder: str = "error") -> Crystal:
    """A crystal from the dict of a JARVIS ``Atoms``, which are ordered.

    Raises:
        Unusable: a symbol is not an element, or lists differ in length.
    """
    cell = np.array(content["lattice_mat"], dtype=np.float64)
    coords = np.array(content["coords"], dtype=np.float64)
    elements = content["elements"]
    if len(elements) != len(coords):
        raise Unusable(
            "lists of different lengths",
            f"elements holds {len(elements)} entries, coords holds {len(coords)}",
        )
    if content.get("cartesian"):
        coords = coords @ np.linalg.inv(cell)
    numbers = [_number(symbol, f"site {k}") for k, symbol in enumerate(elements)]
    return Crystal(cell, coords, np.array(numbers))


def from_optimade(content: Mapping[str, Any], disorder: str) -> Crystal:
    """A crystal from the attributes of an OPTIMADE structure.

    Args:
        content: ``lattice_vectors``, ``cartesian_site_positions`` and ``species_at_sites`` are
            read, and ``species`` where it is there; without it, the names of species are taken for
            elements.
        disorder: what to do about partial occupancy, as in ``read_cif``.

    Raises:
        Unusable: a species is not an element, a site is partly occupied, or the cell is not
            periodic in three directions.

    Source: OPTIMADE specification 1.2, "Structures Entries".
    """
    vectors = content["lattice_vectors"]
    if not vectors or any(x is None for vector in vectors for x in vector):
        raise Unusable("no cell", "the structure is not periodic in three directions")
    cell = np.array(vectors, dtype=np.float64)
    names = content["species_at_sites"]
    coords = np.array(content["cartesian_site_positions"], dtype=np.float64) @ np.linalg.inv(cell)
    if len(names) != len(coords):
        raise Unusable(
            "lists of different lengths",
            f"species_at_sites holds {len(names)} entries, cartesian_site_positions {len(coords)}",
        )
    listed = content.get("species") or []
    species = {each["name"]: _optimade_species(each) for each in listed}
    shares = [
        _shares(species[name] if listed else [{"element": name}], k) for k, name in enumerate(names)
    ]
    return _from_sites(cell, coords, shares, disorder)


def _optimade_species(species: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The elements of an OPTIMADE species, as pymatgen lists them; vacancies are left out."""
    symbols, shares = species["chemical_symbols"], species["concentration"]
    return [
        {"element": symbol, "occu": share}
        for symbol, share in zip(symbols, shares, strict=True)
        if symbol != "vacancy"
    ]


def _from_poscar(text: str, disorder: str) -> Crystal:
    """A crystal from the text of a POSCAR or CONTCAR."""
    lines = text.splitlines()[5:7]  # counts of atoms, after their symbols from VASP 5 on
    counts = [int(word) for line in lines for word in line.split() if word.isdecimal()]
    if sum(counts) > LIMITS.sites:
        raise Unusable("too many sites", f"{sum(counts)} sites, the limit is {LIMITS.sites}")
    return _from_ase_text(text, "vasp")


def _from_ase_text(text: str, form: str) -> Crystal:
    """A crystal from the text of a file in one of ASE's formats."""
    read = ase("io").read
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is not read, such as constraints
            atoms = read(io.StringIO(text), index=0, format=form)
    except Exception as error:  # of many classes
        name = {"vasp": "POSCAR", "extxyz": "extended XYZ file"}[form]
        hint = "; does it name its elements?" if form == "vasp" else ""
        raise Unusable(f"not a sound {name}", f"not a sound {name}: {error!r}{hint}") from None
    return Crystal.from_ase(atoms)


_READERS: dict[str, Callable[[Any, str], Crystal]] = {
    "pymatgen": from_pymatgen_json,
    "jarvis": from_jarvis_dict,
    "optimade": from_optimade,
    "vasp": _from_poscar,
    "extxyz": lambda text, disorder: _from_ase_text(text, "extxyz"),
    "ase": lambda atoms, disorder: Crystal.from_ase(atoms),
}


def _number(symbol: Any, where: str) -> int:
    """Atomic number of a symbol; isotopes count as their element."""
    name = str(symbol).strip()
    if name.rstrip("0123456789+-") in _DUMMIES:
        raise Unusable(
            "dummy atom", f"{where}: {name!r} stands for a vacancy or dummy, not an element"
        )
    try:
        return element_number(name)
    except ValueError:
        raise Unusable("unknown element", f"{where}: unknown element {name!r}") from None
