"""Units that the names of columns state, and what can be compared."""

from dataclasses import dataclass

import pytest

from sitenet.data.source import same_quantity, unit_of
from sitenet.data.units import parse_unit, stated_units, titled


@pytest.mark.parametrize(
    ("name", "unit"),
    [
        ("band_gap_eV", "eV"),
        ("formation_energy_eV_per_atom", "eV/atom"),
        ("formation_energy_per_atom", "eV/atom"),
        ("e_form_eV_per_cell", "eV/cell"),
        ("exfoliation_energy_meV_per_atom", "meV/atom"),
        ("bulk_modulus_GPa", "GPa"),
        ("bulk modulus GPa", "GPa"),
        ("bulk modulus [GPa]", "GPa"),
        ("bulk modulus (GPa)", "GPa"),
        ("modulus[GPa]", "GPa"),
        ("log10_bulk_modulus_GPa", "log10(GPa)"),
        ("volume_A3", "Å³"),
        ("volume [A^3]", "Å³"),
        ("density_g_per_cm3", "g/cm³"),
        ("density g/cm3", "g/cm³"),
        ("density (g cm-3)", "g/cm³"),
        ("sigma_S_per_cm", "S/cm"),
        ("sigma [S cm^-1]", "S/cm"),
        ("phonon_peak_per_cm", "1/cm"),
        ("phonon peak (cm^-1)", "1/cm"),
        ("kappa (W/m/K)", "W/m/K"),
        ("kappa_W_per_m_K", "W/m/K"),
        ("seebeck_uV_per_K", "μV/K"),
        ("moment_muB", "μB"),
        ("moment [µB]", "μB"),
        ("tc_K", "K"),
        ("Tc/K", "K"),
        ("T_c / K", "K"),
        ("Tc kelvin", "K"),
        ("gap, eV", "eV"),
        ("gap(eV)", "eV"),
        ("density(g/cm3)", "g/cm³"),
        ("capacity_mAh_per_g", "mAh/g"),
        ("Hc (Oe)", "Oe"),
        ("yield %", "%"),
        ("magmom_muB_per_atom", "μB/atom"),
        ("expansion_1e-6_per_K", ""),
        ("sites/cell", ""),
        ("log10(GPa)", ""),
        ("Tc (K)", "K"),
        ("gap pbe", "eV"),
        ("gap expt", "eV"),
        ("e_form", "eV/atom"),
        ("optb88vdw_bandgap", "eV"),
        ("eV", "eV"),
        ("target", ""),
        ("y", ""),
        ("K", ""),
        ("C", ""),
        ("n_atom", ""),
        ("number_of_atoms", ""),
        ("volume_per_atom", ""),
        ("log10(K_VRH)", ""),
        ("log_gvrh", ""),
        ("gap (PBE)", ""),
        ("dielectric (unitless)", ""),
        ("elastic_C", ""),
        ("", ""),
    ],
)
def test_units_come_from_names(name, unit):
    assert unit_of(name) == unit


@pytest.mark.parametrize(
    "text", ["S/cm", "S_per_cm", "S per cm", "S cm-1", "S cm^-1", "S*cm**-1", "S cm⁻¹"]
)
def test_spellings_of_one_unit(text):
    assert parse_unit(text) == "S/cm"


def test_units_that_the_user_states():
    names = ("a", "b")
    assert stated_units(names, ["S_per_cm", " wombats "]) == ("S/cm", "wombats")
    with pytest.raises(ValueError, match=r"one unit per target \(a, b\), got eV$"):
        stated_units(names, ["eV"])


@pytest.mark.parametrize("text", ["", "1", "foo", "eV/", "eV/foo", "per", "A0", "cm^99", "a.u."])
def test_what_is_no_unit(text):
    assert parse_unit(text) == ""


@dataclass
class Target:
    name: str
    unit: str = ""


@pytest.mark.parametrize(
    ("target", "column", "unit"),
    [
        (Target("band_gap_eV", "eV"), "band_gap_eV", "eV"),
        (Target("band_gap_eV", "eV"), "gap expt", "eV"),
        (Target("band_gap_eV", "eV"), "y", ""),
        (Target("y"), "band_gap_eV", "eV"),
        (Target("peak", "cm^-1"), "peak_per_cm", "1/cm"),
        (Target("e_form", "eV/unit cell"), "e_form_eV_per_cell", "eV/cell"),
        (Target("formation_energy_eV_per_atom", "eV/atom"), "e_form", "eV/atom"),
        (Target("log_kvrh", "log10(GPa)"), "log10_bulk_modulus_GPa", "log10(GPa)"),
    ],
)
def test_what_can_be_compared(target, column, unit):
    assert same_quantity(target, column, unit) == ""


@pytest.mark.parametrize(
    ("target", "column", "unit", "said"),
    [
        (Target("band_gap_eV", "eV"), "other_GPa", "GPa", ("units differ", "eV", "GPa")),
        (Target("band_gap_eV", "eV"), "other_GPa", "", ("units differ", "eV", "GPa")),
        (Target("band_gap_eV", "eV"), "gap_meV", "meV", ("units differ", "eV", "meV")),
        (Target("e", "eV/atom"), "e_eV_per_cell", "eV/cell", ("eV/atom", "eV/cell")),
        (Target("band_gap_eV", "eV"), "fermi_energy_eV", "eV", ("a band gap", "a Fermi energy")),
        (Target("log_kvrh", ""), "log_gvrh", "", ("a bulk modulus", "a shear modulus")),
    ],
)
def test_what_cannot_be_compared_is_named(target, column, unit, said):
    complaint = same_quantity(target, column, unit)
    assert target.name in complaint and column in complaint
    assert all(text in complaint for text in said)


@pytest.mark.parametrize(
    ("name", "unit", "title"),
    [
        ("band_gap_eV", "eV", "band_gap (eV)"),
        ("formation_energy_eV_per_atom", "eV/atom", "formation_energy (eV/atom)"),
        ("e_form", "eV/atom", "e_form (eV/atom)"),
        ("Tc (K)", "K", "Tc (K)"),
        ("volume [A^3]", "Å³", "volume (Å³)"),
        ("density g/cm3", "g/cm³", "density (g/cm³)"),
        ("eV", "eV", "eV (eV)"),
        ("metal", "", "metal"),
    ],
)
def test_titles_give_the_unit_once(name, unit, title):
    assert titled(name, unit) == title
