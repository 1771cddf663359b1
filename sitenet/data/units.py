"""Units and quantities that the names of columns state."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

# Spelling in names -> unit. Case matters: mS and MS differ.
_UNITS = {
    **{name: name for name in ("eV", "meV", "keV", "Ry", "Ha", "J", "mJ", "kJ", "cal", "kcal")},
    **{name: name for name in ("Pa", "kPa", "MPa", "GPa", "TPa", "bar", "kbar", "Mbar", "N")},
    **{name: name for name in ("K", "mK", "kg", "g", "mg", "amu", "mol", "atom", "cell")},
    **{name: name for name in ("m", "cm", "mm", "nm", "pm", "S", "mS", "W", "mW", "V", "mV")},
    **{name: name for name in ("Hz", "MHz", "GHz", "THz", "s", "ms", "ns", "ps", "fs", "C", "T")},
    **{name: name for name in ("Debye", "emu", "erg", "Oe", "kOe", "ppm", "HV")},
    **{name: name for name in ("Ah", "mAh", "Wh", "kWh", "bohr", "degC", "deg")},
    **dict.fromkeys(("kelvin", "Kelvin"), "K"),
    **dict.fromkeys(("Hartree", "hartree"), "Ha"),
    **dict.fromkeys(("%", "percent"), "%"),
    **dict.fromkeys(("A", "Å", "Å", "Ang", "Angstrom", "angstrom", "ang"), "Å"),
    **dict.fromkeys(("muB", "mu_B", "uB", "μB", "µB"), "μB"),
    **dict.fromkeys(("um", "μm", "µm"), "μm"),
    **dict.fromkeys(("uV", "μV", "µV"), "μV"),
    **dict.fromkeys(("uC", "μC", "µC"), "μC"),
    **dict.fromkeys(("ohm", "Ohm", "Ω", "Ω"), "Ω"),
    **dict.fromkeys(("fu", "formula_unit"), "formula unit"),
    **dict.fromkeys(("atoms",), "atom"),
    **dict.fromkeys(("unit cell", "unit_cell"), "cell"),
    "ev": "eV",
    "mev": "meV",
    "gpa": "GPa",
    "Gpa": "GPa",
    "°C": "degC",
}
# A letter alone more often stands for a quantity; these are units all the same.
_SINGLE = ("K", "A", "Å", "V", "%")
# What ends a name without being its unit: n_atoms, volume_per_atom.
_COUNTED = ("atom", "formula unit", "cell", "mol")
_NEVER_ALONE = (*_COUNTED, *(f"1/{name}" for name in _COUNTED))

_FACTOR = re.compile(r"(.*?)\^?(-?\d+|[⁻]?[²³¹])?", re.DOTALL)
_POWERS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_DIGITS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")

# Names of quantities that say the unit without stating it.
_USUAL = {
    "bandgap": "eV",
    "band_gap": "eV",
    "gap pbe": "eV",
    "gap expt": "eV",
    "e_form": "eV/atom",
    "energy_per_atom": "eV/atom",
    "energy_peratom": "eV/atom",
}
_FUNCTION = re.compile(r"(?:log10|log|lg|ln|exp|sqrt)$", re.IGNORECASE)
_LOGARITHM = re.compile(r"(?:log10|log|lg)[_ ]", re.IGNORECASE)


def unit_of(name: str) -> str:
    """The unit that a column's name states at its end, or "".

    It follows an underscore, a space or a slash, or stands in brackets: ``bulk_modulus_GPa``,
    ``density g/cm3``, ``sigma_S_per_cm``, ``volume [A^3]``, ``Tc (K)``, ``Tc/K``. Names that begin
    with ``log_`` or ``log10_`` have the unit ``log10(GPa)``.
    """
    name = name.strip()
    usual = (u for end, u in _USUAL.items() if re.search(rf"(?:^|[_ ]){end}$", name))
    unit = next(usual, None) or _stated(name)
    return f"log10({unit})" if unit and _LOGARITHM.match(name) else unit


def stated_units(names: Sequence[str], units: Sequence[str]) -> tuple[str, ...]:
    """The usual spelling of units that the user states, one per name; others stay as they are.

    Raises:
        ValueError: there are more or fewer units than names.
    """
    if len(units) != len(names):
        raise ValueError(
            f"expected one unit per target ({', '.join(names)}), got {', '.join(units) or 'none'}"
        )
    return tuple(parse_unit(unit) or unit.strip() for unit in units)


def _stated(name: str) -> str:
    bracket = re.fullmatch(r"(.*?)[\[(]([^\[\]()]+)[\])]", name, re.DOTALL)
    if bracket:
        return "" if _FUNCTION.search(bracket[1]) else parse_unit(bracket[2])
    words = re.split(r"[_ ]", name)
    for k in range(max(1, len(words) - 6), len(words)):  # the longest ending first
        ending = "_".join(words[k:])
        if ending.startswith("per_") and _is_number(words[k - 1]):
            return ""  # in units of 1e-6 per K, for one
        alone = len(ending) == 1 and ending not in _SINGLE
        unit = "" if alone or ending.startswith("/") else parse_unit(ending)
        if unit and unit not in _NEVER_ALONE:
            return unit
    quantity, slash, ending = words[-1].partition("/")
    if slash and quantity and "/" not in ending:  # a quantity over its unit, as in Tc/K
        unit = parse_unit(ending)
        return "" if unit in _NEVER_ALONE or parse_unit(quantity) else unit
    unit = parse_unit(name) if len(name) > 1 else ""
    return "" if unit in _NEVER_ALONE else unit


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def parse_unit(text: str) -> str:
    """The usual spelling of a unit: ``S_per_cm``, ``S cm-1`` and ``S/cm`` are one; "" if it is
    none."""
    above: list[tuple[str, int]] = []
    below: list[tuple[str, int]] = []
    parts = re.split(r"/|(?:^|[_ ])per[_ ]", text.strip())
    for k, part in enumerate(parts):
        factors = _factors(part.strip(" _"))
        if factors is None or (k and not factors):
            return ""
        for unit, power in factors:
            (below if (k > 0) != (power < 0) else above).append((unit, abs(power)))
    if not above and not below:
        return ""
    numerator = "·".join(map(_spelled, above)) or "1"
    return "/".join([numerator, *map(_spelled, below)])


def _factors(text: str) -> list[tuple[str, int]] | None:
    """The units of a product and their powers; None if one of them is unknown."""
    if text in ("", "1"):
        return []
    if text in _UNITS:
        return [(_UNITS[text], 1)]
    factors = []
    for word in re.split(r"[ _·*]+", text.replace("**", "^")):
        match = _FACTOR.fullmatch(word)
        if match is None or match[1] not in _UNITS:
            return None
        power = int((match[2] or "1").translate(_DIGITS))
        if not -9 <= power <= 9 or power == 0:
            return None
        factors.append((_UNITS[match[1]], power))
    return factors


def _spelled(factor: tuple[str, int]) -> str:
    unit, power = factor
    return unit if power == 1 else unit + str(power).translate(_POWERS)


# ---------------------------------------------------------------------------------------------
# Comparison


class _Target(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def unit(self) -> str: ...


# Words in names that tell quantities apart.
_QUANTITIES = {
    "a band gap": r"band ?gap|\bgap\b|\beg\b",
    "a formation energy": r"formation|\be ?form\b",
    "an energy above the hull": r"hull",
    "a Fermi energy": r"fermi",
    "an exfoliation energy": r"exfoliation",
    "a bulk modulus": r"bulk|k ?vrh",
    "a shear modulus": r"shear|g ?vrh",
    "a volume": r"volume",
    "a density": r"\bdensity\b(?! of)",
}


def same_quantity(target: _Target, column_name: str, column_unit: str) -> str:
    """Why a column's values cannot be compared with what a model predicts.

    Args:
        target: has ``name`` and ``unit`` (``sitenet.model.sitenet.Target``).
        column_name: of the column with the true values.
        column_unit: its unit, "" where it is not known.

    Returns:
        A sentence that names both, or "" where nothing speaks against it.
    """
    predicted, stated = target.unit, column_unit or unit_of(column_name)
    if predicted and stated and _spelling(predicted) != _spelling(stated):
        return (
            f"units differ: the model predicts {target.name} in {predicted}, the column "
            f"{column_name} is in {stated}"
        )
    this, other = _quantity(target.name), _quantity(column_name)
    if this and other and this != other:
        return (
            f"quantities differ: the model predicts {target.name}, {this}; the column "
            f"{column_name} is not {this} but {other}"
        )
    return ""


def _spelling(unit: str) -> str:
    return parse_unit(unit) or unit


def _quantity(name: str) -> str:
    words = re.sub(r"[\W_]+", " ", name).lower()
    return next((q for q, pattern in _QUANTITIES.items() if re.search(pattern, words)), "")


# ---------------------------------------------------------------------------------------------
# Titles


def titled(name: str, unit: str) -> str:
    """Name and unit of a quantity, for people: ``band_gap (eV)`` for ``band_gap_eV`` in eV."""
    name = name.strip()
    if not unit:
        return name
    bracket = re.search(r"[\s_]*[\[(]([^\[\]()]+)[\])]$", name)
    if bracket and bracket.start() and parse_unit(bracket[1]) == _spelling(unit):
        return f"{name[: bracket.start()]} ({unit})"
    for match in re.finditer(r"[_ ]+", name):
        if match.start() and parse_unit(name[match.end() :]) == _spelling(unit):
            return f"{name[: match.start()]} ({unit})"
    return f"{name} ({unit})"
