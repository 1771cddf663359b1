"""Chemical elements: symbols, atomic numbers and the elemental properties of a site."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from importlib import resources
from typing import get_args

import numpy as np

from sitenet.config import SITE_FEATURES, Missing, SiteNetConfig


def _read_table() -> tuple[tuple[str, ...], np.ndarray]:
    """Symbols and properties by atomic number; NaN where a property is not known, and for 0."""
    text = (resources.files("sitenet.crystal") / "elements.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(line for line in text.splitlines() if line[0] != "#"))
    values = [[float(row[name] or "nan") for name in SITE_FEATURES] for row in rows]
    unknown = [np.nan] * len(SITE_FEATURES)
    return ("", *(row["Symbol"] for row in rows)), np.array([unknown, *values])


NUM_ELEMENTS = 200  # rows of tables by atomic number, as in the published embedding

SYMBOLS, _TABLE = _read_table()
NUMBERS = {symbol: number for number, symbol in enumerate(SYMBOLS) if number}
ISOTOPES = {"D": "H", "T": "H"}
_MEAN = np.nanmean(_TABLE, 0)
_IMPUTED = np.where(np.isnan(_TABLE), _MEAN, _TABLE)


def element_number(symbol: str) -> int:
    """The atomic number of an element or isotope: ``"Fe"`` is 26, ``"D"`` and ``"T"`` are 1.

    Args:
        symbol: chemical symbol in its usual case; spaces around it are ignored.

    Raises:
        TypeError: the symbol is not a string.
        ValueError: no element has this symbol.
    """
    if not isinstance(symbol, str):
        raise TypeError(f"an element must be a symbol such as 'Fe', got {symbol!r:.40}")
    name = symbol.strip()
    number = NUMBERS.get(ISOTOPES.get(name, name))
    if number is None:
        raise ValueError(f"unknown element {symbol!r:.40}")
    return number


def atomic_weights(numbers: np.ndarray) -> np.ndarray:
    """Atomic weights in u, averaged over natural isotopes."""
    return _IMPUTED[numbers, SITE_FEATURES.index("AtomicWeight")]


def site_features(numbers: Sequence[int] | np.ndarray, missing: str = "error") -> np.ndarray:
    """The eight elemental properties of each site.

    Args:
        numbers: (n,) atomic numbers.
        missing: what to do where a property is not known: ``"error"``, or ``"mean"`` to take its
            mean over the elements for which it is known.

    Returns:
        (n, 8) float64, columns as in ``config.SITE_FEATURES``: atomic number, atomic weight (u),
        row and column of the periodic table (rare earths: column 3), first ionization energy (eV),
        electronegativity (Pauling), atomic radius (angstrom), density (g/L).

    Raises:
        ValueError: no such element, or a property that is not known, by name.

    Source: Magpie tables (Ward et al., npj Comput. Mater. 2, 16028, 2016) as in matminer 0.7.4,
    whose ``impute_nan`` of later versions is ``missing="mean"``.
    """
    if missing not in get_args(Missing):
        raise ValueError(f"missing must be 'error' or 'mean', got {missing!r}")
    numbers = np.asarray(numbers, dtype=np.int64)
    if numbers.size and not (1 <= numbers.min() and numbers.max() < len(SYMBOLS)):
        raise ValueError(
            f"numbers must be atomic numbers from 1 to {len(SYMBOLS) - 1}, "
            f"got {numbers.min()} to {numbers.max()}"
        )
    if missing == "mean":
        return _IMPUTED[numbers]
    values = _TABLE[numbers]
    if np.isnan(values).any():
        site, column = np.argwhere(np.isnan(values))[0]
        raise ValueError(
            f"{SITE_FEATURES[column]} of {SYMBOLS[numbers[site]]} is not known; "
            f"missing='mean' takes the mean over the other elements"
        )
    return values


def element_table(config: SiteNetConfig) -> np.ndarray:
    """The elemental features that a model's config names, by atomic number.

    Returns:
        (NUM_ELEMENTS, features) float64. Rows of elements with an unknown feature (unless
        ``missing`` is "mean"), without an element, or beyond Z = 99 as published, are NaN.
    """
    table = _unscaled_table(config)
    if config.scale_site_features:
        mean, std = element_scale(config)
        table = (table - mean) / std
    return table


def element_scale(config: SiteNetConfig) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of the elemental features over the elements, (features,) each:
    ``scale_site_features`` subtracts the one and divides by the other."""
    table = _unscaled_table(config)
    known = table[~np.isnan(table).any(1)]
    return known.mean(0), known.std(0, ddof=1)


def _unscaled_table(config: SiteNetConfig) -> np.ndarray:
    source = _IMPUTED if config.missing == "mean" else _TABLE
    columns = [SITE_FEATURES.index(name) for name in config.site_features]
    table = np.full((NUM_ELEMENTS, len(columns)), np.nan)
    # A missing feature rules the element out, even if the config does not use that feature.
    usable = [z for z in range(1, 100) if not np.isnan(source[z]).any()]
    table[usable] = source[usable][:, columns]
    return table
