"""Type symbols and labels of a CIF's atoms: which element, which charge, which share of a site.

A type symbol names an element, with or without a charge (``Fe3+``), or several with their shares
(``0.75Si + 0.25Al``). A label begins with an element, followed by anything (``OW1``, ``HO1A``), so
it is read together with the chemical formula. What names no element is refused rather than read by
its first letters: ``Si/Al``, ``NH4``, ``Du``.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from sitenet.crystal.cif_blocks import Unreadable, shown
from sitenet.crystal.elements import ISOTOPES, NUMBERS


class Species(NamedTuple):
    """What sits on a site, or on a share of it."""

    number: int
    charge: float
    share: float


class Unnamed(Unreadable):
    """A symbol or label that names no element."""


# Not everyone marks a vacancy by leaving it out.
_VACANCY = re.compile(r"(?:vac(?:ancy)?|va|\[\]|\u25a1)\d*", re.IGNORECASE)
_PLACEHOLDER = re.compile(r"X\d*|\?|\.|")
_SHARE = re.compile(r"\s*(\d*\.\d+|\d+\.?)(?:\(\d+\))?\s*([A-Z\[\u25a1?][^\s.]*)\s*")
_BETWEEN_SHARES = re.compile(r"\s*\+\s*(?=\d*\.\d)")
_AMOUNT = r"([A-Z][a-z]?)(\d*\.\d+)(?:\(\d+\))?\s*"
_AMOUNTS = re.compile(rf"(?:{_AMOUNT}){{2,}}")
_CHARGED = re.compile(r"[A-Za-z]{1,2}(?:(\d+\.?\d*)?([+-])|([+-])(\d+\.?\d*))")
_MOST_SHARED = 1.1  # as for occupancies: sums are rounded


def species_of(
    text: str, formula: frozenset[str], charges: dict[str, float], is_label: bool
) -> list[Species]:
    """The species that a type symbol or a label names, none for a vacancy.

    Args:
        text: the symbol or label.
        formula: symbols of the elements that the file's formula names; empty if it has none.
        charges: oxidation numbers that the file lists by type symbol.
        is_label: whether the text is the label of a site without a type symbol.

    Raises:
        Unnamed: it names no element.
    """
    if text in NUMBERS and not (is_label or text in charges):
        return [Species(NUMBERS[text], 0.0, 1.0)]
    shares = _shares(text)
    if sum(share for _, share in shares) > _MOST_SHARED:
        raise Unnamed(f"shares of {shown(text)} add up to more than 1")
    species = []
    for symbol, share in shares:
        is_mixed = len(shares) > 1 or share != 1
        if is_vacancy(symbol, formula, is_label) or (is_mixed and is_placeholder(symbol)):
            continue
        number = element_of(symbol, formula, is_label)
        charge = charges.get(symbol)
        if charge is None:
            sign = _CHARGED.fullmatch(symbol)
            charge = float((sign[2] or sign[3]) + (sign[1] or sign[4] or "1")) if sign else 0.0
        if not number or abs(charge) > 9:
            raise Unnamed(f"unknown element {shown(text)}")
        species.append(Species(number, charge, share))
    return species


def _shares(text: str) -> list[tuple[str, float]]:
    """The symbols of a text and their shares: those of ``0.62(1)Cu + 0.38Al``, ``Cu0.62Al0.38``."""
    matches = [_SHARE.fullmatch(part) for part in _BETWEEN_SHARES.split(text)]
    if all(matches) and "." in text:
        return [(match[2], float(match[1])) for match in matches if match]
    if _AMOUNTS.fullmatch(text):
        return [(symbol, float(amount)) for symbol, amount in re.findall(_AMOUNT, text)]
    return [(text, 1.0)]


def is_vacancy(text: str, formula: frozenset[str], is_label: bool) -> bool:
    """Whether a text such as ``Vac1`` says that nothing is there; ``VA1`` may label vanadium."""
    if not _VACANCY.fullmatch(text):
        return False
    return not (is_label and "V" in formula and text[:3].lower() != "vac")


def is_placeholder(text: str) -> bool:
    """Whether a text names nothing, ``X`` or ``?``: beside other species, it is a vacancy."""
    return _PLACEHOLDER.fullmatch(text) is not None


_PARTS = re.compile(r"\d*([A-Za-z]+)(.*)", re.DOTALL)
_ANOTHER = re.compile(r"[/,;|&\\\s]\d*([A-Z][a-z]?)|[-+]([A-Z][a-z])")
_WATER = {"wat": "O", "ow": "O", "hw": "H"}
_GROUPS = frozenset(("NH4", "ND4", "NH3", "H2O", "D2O", "H3O", "CO3", "NO3", "PO4", "SO4", "CN"))
_LABELLED_GROUPS = frozenset(("NH4", "ND4", "H2O", "D2O", "H3O"))  # CO3 is a third cobalt
_LAST = 103  # elements beyond, whose letters are those of carbon or nitrogen atoms, must be named


@functools.lru_cache(4096)
def element_of(text: str, formula: frozenset[str], is_label: bool) -> int:
    """Atomic number of a type symbol or label without shares; 0 if it names no element."""
    parts = _PARTS.match(text)
    if not parts:
        return 0
    run, rest = parts[1], parts[2]
    groups = _LABELLED_GROUPS if is_label else _GROUPS
    if re.match(r"[A-Z]*\d*[A-Z]?", text)[0] in groups:  # type: ignore[index]
        return 0
    another = _ANOTHER.match(rest.lstrip("0123456789"))
    if another and (another[1] or another[2]) in NUMBERS:
        return 0
    choose = _of_label if is_label else _of_type_symbol
    symbol = choose(run, rest, formula)
    return NUMBERS.get(ISOTOPES.get(symbol, symbol), 0)


def _of_type_symbol(run: str, rest: str, formula: frozenset[str]) -> str:
    """The element that all letters of a type symbol name, "" if they name none."""
    symbol = _WATER.get(run.lower(), run.capitalize())
    if symbol == "T" and (rest or (formula and not {"H", "T"} & formula)):
        return ""  # a tetrahedral site, rather than tritium
    if len(run) == 2 and run.isupper() and formula and symbol not in formula:
        if {run[0], run[1]} <= formula:  # a group of atoms, such as CN
            return ""
    if NUMBERS.get(symbol, 0) > _LAST and symbol not in formula and (run != symbol or rest):
        return ""
    return "" if re.search(r"\d[A-Z]\d|[A-Z][a-z]", rest) else symbol


def _of_label(run: str, rest: str, formula: frozenset[str]) -> str:
    """The element that the first letters of a label name, "" if that is not clear.

    The formula tells the hydrogen HO1 from holmium.
    """
    if run[:3].lower() == "wat":
        return "O"
    two, one = run[:2].capitalize(), run[0].upper()
    if len(run) == 1:
        return one if one != "T" or "T" in formula else ""
    if re.fullmatch("([A-Z][a-z]){2,}", run) and {run[:2], run[2:4]} <= NUMBERS.keys():
        return ""  # SiAl
    is_word = run[1:3].islower() and len(run) > 2  # Cat, Oct, Lig
    choices = []
    if two in NUMBERS and (two in formula or NUMBERS[two] <= _LAST):
        choices.append(two)
    # The first letter alone: in OW and CB; in Cb, if the formula confirms it.
    confirmed = one in formula or (not formula and (run[1].isupper() or one == "O"))
    if run[:2].lower() in _WATER or (confirmed and (one not in ISOTOPES or run[1].isupper())):
        choices.append(one)
    choices.sort(key=lambda symbol: symbol not in formula)
    if not choices or (is_word and choices[0] not in formula):
        return ""
    return choices[0]
