"""Common oxidation states of the elements, and those that make a composition neutral."""

from __future__ import annotations

import itertools

import numpy as np

from sitenet.crystal.elements import NUMBERS

# The most common state of each element comes first. Source: the states that pymatgen (Ong et al.,
# Comput. Mater. Sci. 68, 314, 2013) calls common, with further ones of transition metals that many
# oxides and chalcogenides have, such as Cu 1 and Ti 3.
_STATES = """
H 1 -1; Li 1; Be 2; B 3; C 4 -4; N -3 5 3; O -2 -1; F -1; Na 1; Mg 2; Al 3; Si 4 -4; P -3 5 3;
S -2 6 4; Cl -1 5 7; K 1; Ca 2; Sc 3; Ti 4 3 2; V 5 4 3 2; Cr 3 6 2; Mn 2 4 3 7; Fe 3 2; Co 2 3;
Ni 2 3; Cu 2 1; Zn 2; Ga 3; Ge 4 2; As -3 3 5; Se -2 4 6; Br -1 5; Rb 1; Sr 2; Y 3; Zr 4; Nb 5 4 3;
Mo 6 4; Tc 7 4; Ru 4 3; Rh 3; Pd 2 4; Ag 1; Cd 2; In 3; Sn 4 2; Sb -3 3 5; Te -2 4 6; I -1 5 7;
Cs 1; Ba 2; La 3; Ce 4 3; Pr 3; Nd 3; Pm 3; Sm 3; Eu 3 2; Gd 3; Tb 3; Dy 3; Ho 3; Er 3; Tm 3;
Yb 3 2; Lu 3; Hf 4; Ta 5; W 6 4; Re 7 4; Os 4; Ir 4 3; Pt 4 2; Au 3 1; Hg 2 1; Tl 1 3; Pb 2 4;
Bi 3; Po 4 -2; At -1; Fr 1; Ra 2; Ac 3; Th 4; Pa 5; U 6 4; Np 5; Pu 4; Am 3; Cm 3; Bk 3; Cf 3
"""
_COMMON = {
    NUMBERS[symbol]: tuple(map(int, states))
    for symbol, *states in (entry.split() for entry in _STATES.split(";"))
}
NEUTRAL = 0.02  # charge per atom, in e, up to which a composition counts as neutral
_MOST = 20_000  # assignments of states that are tried


def common_states(number: int) -> tuple[int, ...]:
    """The common oxidation states of an element, the most common first; none of noble gases.

    Args:
        number: its atomic number.
    """
    return _COMMON.get(number, ())


def guess_oxidation(numbers: np.ndarray, amounts: np.ndarray) -> dict[int, int] | None:
    """One common oxidation state per element that together make a composition neutral.

    The assignment with the most common states is taken; with equally common ones, that in which the
    more electropositive elements come first in the table of states.

    Args:
        numbers: (n,) atomic numbers, in any order, repeated or not.
        amounts: (n,) how much there is of each; occupancies, for instance.

    Returns:
        Atomic number -> oxidation state; None where no assignment is neutral within 0.02 e per
        atom, as in metals and in mixed valence.
    """
    totals = np.bincount(numbers, amounts)
    elements = np.flatnonzero(totals)
    choices = [common_states(int(number)) for number in elements]
    if not all(choices) or np.prod([float(len(c)) for c in choices]) > _MOST:
        return None
    shares = totals[elements] / totals.sum()
    best: tuple[int, tuple[int, ...]] | None = None
    for states in itertools.product(*choices):
        if abs(np.dot(shares, states)) <= NEUTRAL:
            rank = sum(c.index(s) for c, s in zip(choices, states, strict=True))
            if best is None or rank < best[0]:
                best = rank, states
    return None if best is None else dict(zip(elements.tolist(), best[1], strict=True))
