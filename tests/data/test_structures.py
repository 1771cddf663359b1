"""Structures in the JSON of pymatgen and JARVIS: isotopes, vacancies, mixed and partial sites."""

import json

import numpy as np
import pytest

from sitenet.data.failures import Unusable
from sitenet.data.structures import from_jarvis_dict, from_pymatgen_json

CELL = (np.eye(3) * 4).tolist()


def pymatgen(*sites):
    """JSON with sites along a diagonal, each a dict of symbol -> occupancy, or a list of dicts."""
    content = []
    for k, species in enumerate(sites):
        if isinstance(species, dict):
            species = [{"element": name, "occu": share} for name, share in species.items()]
        content.append({"species": species, "abc": [k / len(sites)] * 3})
    return json.dumps({"lattice": {"matrix": CELL}, "sites": content})


def jarvis(elements, coords=None):
    coords = [[k / 10] * 3 for k in range(len(elements))] if coords is None else coords
    return {"lattice_mat": CELL, "coords": coords, "elements": elements}


def test_isotopes_are_their_element():
    crystal = from_pymatgen_json(pymatgen({"D": 1}, {"T": 1}, {"O": 1}), "error")
    assert crystal.numbers.tolist() == [1, 1, 8] and crystal.occupancy is None
    assert from_jarvis_dict(jarvis(["D", " T", "O"]), "error").numbers.tolist() == [1, 1, 8]
    crystal = from_pymatgen_json(pymatgen({"D": 0.6, "H": 0.4}), "error")  # one whole hydrogen
    assert crystal.numbers.tolist() == [1] and crystal.occupancy is None


@pytest.mark.parametrize("symbol", ["X", "X0+", "Vac", "Va1"])
def test_vacancies_and_dummies_are_refused_by_name(symbol):
    for read, content in (
        (from_pymatgen_json, pymatgen({"Fe": 1}, {"Fe": 0.5, symbol: 0.5})),
        (from_jarvis_dict, jarvis(["Fe", symbol])),
    ):
        with pytest.raises(Unusable, match=r"site 1: .*stands for a vacancy or dummy") as caught:
            read(content, "average")
        assert repr(symbol) in str(caught.value) and caught.value.kind == "dummy atom"


def test_unknown_symbols_are_refused_by_name():
    for read, content in (
        (from_pymatgen_json, pymatgen({"Fe": 1}, {"Qq": 1})),
        (from_jarvis_dict, jarvis(["Fe", "Qq"])),
    ):
        with pytest.raises(Unusable, match="site 1: unknown element 'Qq'") as caught:
            read(content, "error")
        assert caught.value.kind == "unknown element"


def test_mixed_and_partial_sites_are_those_of_a_cif():
    content = pymatgen({"Fe": 0.5, "Ni": 0.25}, {"O": 0.9999}, {"Na": 0.5, "K": 0.55}, {"S": 0})
    with pytest.raises(Unusable, match='partial occupancy; disorder="average"') as caught:
        from_pymatgen_json(content, "error")
    assert caught.value.kind == "partial occupancy"
    crystal = from_pymatgen_json(content, "average")
    assert crystal.numbers.tolist() == [26, 28, 8, 11, 19]
    np.testing.assert_allclose(crystal.occupancy, [0.5, 0.25, 1, 0.5 / 1.05, 0.55 / 1.05])
    assert (crystal.frac[3] == crystal.frac[4]).all()


@pytest.mark.parametrize("shares", [{"Fe": 0.7, "Ni": 0.5}, {"Fe": 1.2}])
def test_overfull_sites_are_refused(shares):
    with pytest.raises(Unusable, match=r"site 0: occupancies add up to 1\.2"):
        from_pymatgen_json(pymatgen(shares), "average")


@pytest.mark.parametrize("occupancy", [-0.1, float("nan")])
def test_impossible_occupancies_are_refused(occupancy):
    species = [{"element": "Fe", "occu": occupancy}]
    with pytest.raises(Unusable, match="site 0: occupancy"):
        from_pymatgen_json(pymatgen(species), "average")


def test_charges_tell_species_apart():
    species = [
        {"element": "Fe", "oxidation_state": 2, "occu": 0.5},
        {"element": "Fe", "oxidation_state": 3.0, "occu": 0.5},
    ]
    crystal = from_pymatgen_json(pymatgen(species), "average")
    assert crystal.oxidation.tolist() == [2, 3] and crystal.occupancy.tolist() == [0.5, 0.5]


def test_lists_of_different_lengths_are_named():
    with pytest.raises(Unusable, match="elements holds 1 entries, coords holds 2"):
        from_jarvis_dict(jarvis(["Fe"], [[0, 0, 0], [0.5, 0.5, 0.5]]), "error")
