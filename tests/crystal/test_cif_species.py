"""Type symbols and labels: read as the element that they name, or refused."""

import numpy as np
import pytest
from cif_texts import FRACT, WITH_OCCUPANCY, cif

from sitenet import CifError, read_cif
from sitenet.crystal.cif_species import Unnamed, species_of
from sitenet.crystal.elements import NUMBERS, SYMBOLS


def species(text, formula="", is_label=False):
    found = species_of(text, frozenset(formula.split()), {}, is_label)
    return [(SYMBOLS[each.number], each.charge, each.share) for each in found]


@pytest.mark.parametrize(
    ("label", "formula", "symbol"),
    [
        ("Fe1", "", "Fe"),
        ("OW1", "", "O"),
        ("Ow", "", "O"),
        ("Oap1", "La Cu O", "O"),
        ("HW2", "", "H"),
        ("C1A", "", "C"),
        ("CA1", "C H O", "C"),
        ("CA1", "Ca C O", "Ca"),
        ("CO3", "", "Co"),
        ("CN1", "C N Fe", "C"),
        ("FE2", "", "Fe"),
        ("FeA", "", "Fe"),
        ("D1", "", "H"),
        ("DW1", "D O", "H"),
        ("VA1", "V O", "V"),
        ("T1", "T O", "H"),
        ("O-H1", "", "O"),
    ],
)
def test_labels(label, formula, symbol):
    assert species(label, formula, is_label=True) == [(symbol, 0, 1)]


@pytest.mark.parametrize(
    ("label", "formula"),
    [
        *((label, "") for label in ("T1", "M2", "Du1", "Me1", "X3", "Cat", "Lig1", "Oct2", "")),
        *((label, "") for label in ("Si/Al", "Fe1/Mg1", "Si,Al", "SiAl", "Fe-Ni", "Si|Al1")),
        *((label, "") for label in ("NH4", "H2O", "Nh1", "1", "(1)")),
        ("FA1", "C H N Pb I"),  # formamidinium, no fluorine
        ("Oap1", "Si"),
        ("Du1", "D O"),
    ],
)
def test_labels_that_name_no_element(label, formula):
    with pytest.raises(Unnamed, match="unknown element"):
        species(label, formula, is_label=True)


@pytest.mark.parametrize("symbol", [*SYMBOLS[1:], "si", "FE", "CL", "Ow", "Wat", "D"])
def test_type_symbols(symbol):
    expected = {"Ow": "O", "Wat": "O", "D": "H"}.get(symbol, symbol.capitalize())
    assert species(symbol) == [(expected, 0, 1)]


@pytest.mark.parametrize(
    ("symbol", "formula"),
    [
        *((symbol, "") for symbol in ("Du", "T1", "Me", "Ln", "Q", "OH", "H2O", "PO4", "SO4")),
        *((symbol, "") for symbol in ("NH4", "CN", "SiAl", "Si/Al", "Fe1,Mg1", "FeNi", "Nh4")),
        ("CO", "C O Fe"),  # carbonyl
        ("T", "Si O"),  # a tetrahedral site
    ],
)
def test_type_symbols_that_name_no_element(symbol, formula):
    with pytest.raises(Unnamed, match="unknown element"):
        species(symbol, formula)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.62(1)Cu + 0.38(1)Al", [("Cu", 0, 0.62), ("Al", 0, 0.38)]),
        ("0.5Fe3+ + 0.5Ni2+", [("Fe", 3, 0.5), ("Ni", 2, 0.5)]),
        (".25 Si+0.75(2) Al", [("Si", 0, 0.25), ("Al", 0, 0.75)]),
        ("Fe0.5Ni0.25Co0.25", [("Fe", 0, 0.5), ("Ni", 0, 0.25), ("Co", 0, 0.25)]),
        ("0.9Fe + 0.1Vac", [("Fe", 0, 0.9)]),
        ("0.9Fe + 0.1X", [("Fe", 0, 0.9)]),
        ("0.98(1)Fe", [("Fe", 0, 0.98)]),
        ("Vac", []),
        ("Va", []),
        ("vacancy", []),
    ],
)
def test_shares_and_vacancies(text, expected):
    assert species(text) == expected


def test_shares_hold_one_site_at_most():
    with pytest.raises(Unnamed, match=r"'0.9Fe \+ 0.3Ni' add up to more than 1"):
        species("0.9Fe + 0.3Ni")


def test_a_mixed_site_with_uncertainties_is_averaged():
    text = cif("M1 '0.62(1)Cu + 0.38(1)Al' 0 0 0\nO1 O 0.5 0.5 0.5")
    assert read_cif(text, disorder="average").formula == "Al1.52Cu2.48O4"


@pytest.mark.parametrize("vacancy", ["V1 Va", "Vac1 Vac", "X1 X", "Vac1 ?", "? ?"])
def test_vacancies_leave_their_share_empty(vacancy):
    sites = f"Fe1 Fe 0 0 0 0.9\n{vacancy} 0 0 0 0.1\nO1 O 0.5 0.5 0.5 1"
    crystal = read_cif(cif(sites, tags=WITH_OCCUPANCY), disorder="average")
    assert crystal.numbers.tolist() == [26] * 4 + [8] * 4
    assert crystal.occupancy.tolist() == [0.9] * 4 + [1] * 4
    assert crystal.site_label(0) == "Fe0.9Vac0.1"


def test_refusals_name_the_label():
    with pytest.raises(CifError, match=r"unknown element 'Si/Al' \(site Si/Al\)"):
        read_cif(cif("Si/Al 0 0 0", tags=("label", *FRACT)))
    with pytest.raises(CifError, match=r"unknown element 'NH4' \(site N1\)"):
        read_cif(cif("N1 NH4 0 0 0"))
    long = "Z" * 5000
    with pytest.raises(CifError) as caught:
        read_cif(cif(f"Z1 {long} 0 0 0"))
    assert len(str(caught.value)) < 200


def test_every_element_is_read_by_its_label_and_by_its_symbol():
    for symbol in SYMBOLS[1:104]:
        for text in (f"{symbol}1", f"{symbol}12A", f"{symbol}(1)"):
            assert species(text, is_label=True) == [(symbol, 0, 1)]
        for text in (f"{symbol}2+", f"{symbol}+2"):
            assert species(text) == [(symbol, 2, 1)]
    assert np.all([NUMBERS[symbol] == k for k, symbol in enumerate(SYMBOLS) if k])
