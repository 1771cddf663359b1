"""Elements: symbols and the table of their properties."""

import numpy as np
import pytest
from conftest import GOLDEN_E2E

from sitenet.config import SITE_FEATURES
from sitenet.crystal import elements
from sitenet.crystal.elements import NUMBERS, SYMBOLS, element_number, site_features


def test_symbols_and_numbers_are_each_others_inverse():
    assert len(NUMBERS) == 118
    assert all(SYMBOLS[number] == symbol for symbol, number in NUMBERS.items())
    assert (SYMBOLS[1], SYMBOLS[26], SYMBOLS[118]) == ("H", "Fe", "Og")


def test_values_and_units():
    silicon, cerium = site_features([14, 58])
    expected = [14, 28.0855, 3, 14, 8.15168, 1.9, 1.1, 2330]  # u, eV, Pauling, angstrom, g/L
    assert silicon.tolist() == expected
    assert cerium[SITE_FEATURES.index("Column")] == 3


@pytest.mark.parametrize(
    ("column", "unknown"),
    [
        ("Number", []),
        ("FirstIonizationEnergy", [85]),
        ("Electronegativity", [2, 10, 18, 86]),
        ("AtomicRadius", [2, 10, 36, 54, 85, 86, 87, 96, 97, 98, 99]),
        ("Density", [85, 87, 99]),
    ],
)
def test_unknown_values_are_those_of_matminer(column, unknown):
    values = elements._TABLE[1:, SITE_FEATURES.index(column)]
    assert (np.flatnonzero(np.isnan(values[:99])) + 1).tolist() == unknown
    mean = site_features(range(1, 119), missing="mean")[:, SITE_FEATURES.index(column)]
    expected = np.where(np.isnan(values), np.nanmean(values), values)
    np.testing.assert_allclose(mean, expected, rtol=1e-12)


def test_an_unknown_value_is_named():
    with pytest.raises(ValueError, match=r"Electronegativity of He is not known.*missing='mean'"):
        site_features([11, 2])


@pytest.mark.parametrize("numbers", [[0], [119], [-1]])
def test_no_such_element(numbers):
    with pytest.raises(ValueError, match="atomic numbers from 1 to 118"):
        site_features(numbers)
    with pytest.raises(ValueError, match="missing must be"):
        site_features([1], missing="zero")


def test_no_sites():
    assert site_features([]).shape == (0, len(SITE_FEATURES))


@pytest.mark.parametrize("limit", [0, 50, 100, 500])
def test_golden_site_features(limit):
    paths = sorted(GOLDEN_E2E.glob(f"*.{limit}.npz"))
    if not paths:
        pytest.skip(f"no golden files in {GOLDEN_E2E}")
    for path in paths:
        stored = np.load(path)
        if stored["valid"]:
            np.testing.assert_allclose(
                site_features(stored["prim_Z"]), stored["site_features"], rtol=0, atol=1e-9
            )
        else:
            with pytest.raises(ValueError, match="is not known"):
                site_features(stored["prim_Z"])


def test_symbols_and_isotopes_have_an_atomic_number():
    assert [element_number(symbol) for symbol in ("H", "D", "T", " Fe ", "Og")] == [
        1,
        1,
        1,
        26,
        118,
    ]
    for unknown in ("X", "Vac", "fe", "", "Fe3+", "Q" * 1000):
        with pytest.raises(ValueError, match="unknown element") as caught:
            element_number(unknown)
        assert len(str(caught.value)) < 80
    with pytest.raises(TypeError, match="an element must be a symbol such as 'Fe', got 26"):
        element_number(26)
