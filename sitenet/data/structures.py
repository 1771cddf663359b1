"""Crystals from the JSON of pymatgen and of JARVIS, without these packages."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from sitenet.crystal.crystal import Crystal
from sitenet.crystal.disorder import FULL
from sitenet.crystal.elements import element_number
from sitenet.data.failures import Unusable

_CROWDED = 1.1  # sum of the occupancies of one site beyond which it is refused, as in CIFs
_DUMMIES = ("X", "Va", "Vac", "Vacancy", "Void")  # symbols that stand for a vacancy or nothing


def from_pymatgen_json(text: str, disorder: str) -> Crystal:
    """A crystal from the JSON of a pymatgen ``Structure``.

    Args:
        text: the JSON; of it, ``lattice.matrix`` and each site's ``species`` and ``abc`` are read.
        disorder: what to do about partial occupancy, as in ``read_cif``.

    Raises:
        Unusable: a species is not an element, or a site is partly occupied or overfull.
    """
    content = json.loads(text)
    numbers, frac, oxidation, occupancy = [], [], [], []
    for k, site in enumerate(content["sites"]):
        shares = _shares(site["species"], k)
        total = sum(shares.values())
        if total > _CROWDED:
            raise Unusable("overfull site", f"site {k}: occupancies add up to {total:g}")
        for (number, charge), share in shares.items():
            numbers.append(number)
            frac.append(site["abc"])
            oxidation.append(charge)
            share = share / max(total, 1)
            occupancy.append(1.0 if share >= FULL else share)
    partial = min(occupancy, default=1) < FULL
    if partial and disorder != "average":
        reason = 'partial occupancy; disorder="average" averages over it'
        raise Unusable("partial occupancy", reason)
    return Crystal(
        content["lattice"]["matrix"],
        np.reshape(frac, (-1, 3)),
        np.array(numbers, dtype=np.int64),
        np.array(oxidation) if any(oxidation) else None,
        np.array(occupancy) if partial else None,
    )


def _shares(species: list[Mapping[str, Any]], site: int) -> dict[tuple[int, float], float]:
    """Atomic number and charge of a site's species -> its share; isotopes of one element add up."""
    shares: dict[tuple[int, float], float] = {}
    for each in species:
        key = _number(each["element"], f"site {site}"), float(each.get("oxidation_state") or 0)
        share = float(each.get("occu", 1.0))
        if not share >= 0:
            raise Unusable("impossible occupancy", f"site {site}: occupancy {share:g}")
        if share:
            shares[key] = shares.get(key, 0.0) + share
    return shares


def from_jarvis_dict(content: Mapping[str, Any], disorder: str) -> Crystal:
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
