"""Contradictions between a CIF's atoms and its formula, Z, density, volume and hydrogens."""

import re
import warnings

import pytest
from cases import matbench_texts
from cif_texts import FRACT, MIXED, WITH_OCCUPANCY, cif
from conftest import ROOT

from sitenet import CifError, CifWarning, read_cif
from sitenet.crystal.cif_checks import parse_formula

SALT = "_chemical_formula_sum 'Cl Na'\n_cell_formula_units_Z 4"
DENSITY = 58.44 * 4 * 1.66054 / 5.64**3  # of rock salt, g/cm3


def doubts(text, **options):
    """The warnings of a text: issued, kept on the crystal, and a refusal if it is read strictly."""
    with warnings.catch_warnings(record=True) as issued:
        warnings.simplefilter("always")
        crystal = read_cif(text, **options)
    assert [str(each.message) for each in issued] == [
        f"CIF text, data_{crystal.name}: {text}" for text in crystal.warnings
    ]
    assert {each.category for each in issued} <= {CifWarning}
    assert {each.filename for each in issued} <= {__file__}  # where read_cif was called
    if crystal.warnings:
        with pytest.raises(CifError) as caught:
            read_cif(text, strict=True, **options)
        assert caught.value.reason == "; ".join(crystal.warnings)
    else:
        read_cif(text, strict=True, **options)
    return crystal.warnings


@pytest.mark.parametrize(
    "more",
    [
        "",
        SALT,
        "_chemical_formula_sum 'Cl4 Na4'\n_cell_formula_units_Z 4",  # as pymatgen writes it
        "_chemical_formula_sum 'Cl4 Na4'\n_cell_formula_units_Z 1",
        "_chemical_formula_sum NaCl",
        "_chemical_formula_weight 58.44\n_cell_formula_units_Z 4",
        "_chemical_formula_sum 'sodium chloride'\n_cell_formula_units_Z 9",
        "_chemical_formula_sum ?\n_cell_formula_units_Z ?",
        "_chemical_formula_sum '?'\n_cell_volume 179.4(1)",
        f"_exptl_crystal_density_diffrn {DENSITY:.3f}",
        f"_chemical_formula_sum NaCl\n_cell_formula_units_Z 2\n"
        f"_exptl_crystal_density_diffrn {DENSITY:.3f}",  # Z is wrong, the atoms are not
    ],
)
def test_sound_files_raise_no_doubts(more):
    assert doubts(cif(more=more)) == ()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"more": SALT.replace("4", "8")}, "holds Cl4Na4, but .* ClNa and Z 8 make Cl8Na8"),
        ({"more": "_chemical_formula_sum 'K Cl'"}, "Cl4Na4, no multiple of .* ClK"),
        ({"more": "_chemical_formula_sum 'H Na Cl'"}, "no H is listed"),
        ({"more": "_exptl_crystal_density_diffrn 1.08"}, "density of 2.16 g/cm3, .* is 1.08"),
        (
            {"more": "_chemical_formula_weight 58.44\n_cell_formula_units_Z 8"},
            "atoms weigh 233.77 u, .* 58.44 and Z 8 make 467.52 u",
        ),
        ({"more": "_cell_modulation_dimension 1"}, "of a modulated structure, only the average"),
        ({"more": "_cell_volume 44.85"}, "179.41 cubic angstrom, _cell_volume is 44.85"),
        ({"more": "_cell_volume 179406144"}, "unit"),
        (
            {"more": SALT, "symmetry": "_symmetry_equiv_pos_as_xyz x,y,z"},
            "holds ClNa, but .* Z 4 make Cl4Na4",
        ),
        (
            {
                "more": "_symmetry_equiv_pos_as_xyz x,y,z",
            },
            "1 symmetry operations are listed with 1 rotations; space group F m -3 m has 48",
        ),
        ({"more": "_symmetry_Int_Tables_number 221"}, "F m -3 m is number 225, not 221"),
        (  # the wrong one of two origins doubles diamond
            {
                "sites": "C1 C 0.125 0.125 0.125",
                "cell": (3.567, 3.567, 3.567, 90, 90, 90),
                "symmetry": "_symmetry_space_group_name_H-M 'F d -3 m'",
                "more": "_chemical_formula_sum C\n_cell_formula_units_Z 8",
            },
            "holds C16, but .* make C8",
        ),
        ({"cell": (564, 564, 564, 90, 90, 90)}, "no two atoms are nearer than 10 A .* unit"),
    ],
)
def test_contradictions(changes, reason):
    (text,) = doubts(cif(**changes))
    assert re.search(reason, text)


def test_operations_may_be_those_of_a_primitive_cell():
    """A formula and Z that agree with the atoms dispel doubts about the operations."""
    more = "_symmetry_equiv_pos_as_xyz x,y,z\n_chemical_formula_sum NaCl\n_cell_formula_units_Z 1"
    assert doubts(cif(cell=(4, 4, 4, 60, 60, 60), more=more)) == ()


def test_attached_hydrogens_are_missed():
    tags = ("label", "type_symbol", *FRACT, "attached_hydrogens")
    cell = (6, 6, 6, 90, 90, 90)
    symmetry = "_symmetry_space_group_name_H-M 'P -1'"
    sites = "Ow O 0.3 0.2 0.1 2\nCa1 Ca 0 0 0 0"
    (text,) = doubts(cif(sites, cell, symmetry, tags))
    assert "_atom_site_attached_hydrogens states 4 hydrogens per cell" in text
    assert doubts(cif(sites.replace("1 2", "1 0"), cell, symmetry, tags)) == ()
    # Some files count those that are listed.
    listed = sites + "\nH1 H 0.4 0.3 0.1 0\nH2 H 0.4 0.1 0.1 0"
    more = "_chemical_formula_sum 'Ca H4 O2'\n_cell_formula_units_Z 1"
    assert doubts(cif(listed, cell, symmetry, tags, more=more)) == ()


def test_formulas_of_disordered_crystals_are_rounded():
    for formula, count in (("Cl0.9 K0.25 Na0.75", 0), ("Cl0.89 K.26 Na0.74(2)", 0), ("Cl K Na", 1)):
        more = f"_chemical_formula_sum '{formula}'\n_cell_formula_units_Z 4"
        text = cif(MIXED, tags=WITH_OCCUPANCY, more=more)
        assert len(doubts(text, disorder="average")) == count


@pytest.mark.parametrize(
    ("text", "amounts"),
    [
        ("Na1.46 Co O2", {"Na": 1.46, "Co": 1, "O": 2}),
        ("C2 D6 H2 O", {"C": 2, "H": 8, "O": 1}),
        ("Fe0.94(2) X0.06 O", {"Fe": 0.94, "O": 1}),
        ("(Na K) Cl", None),
        ("C12 H22 O11, 2(H2 O)", None),
        ("Na Xx", None),
        ("Fe3+", None),
        ("", None),
        (None, None),
    ],
)
def test_formulas(text, amounts):
    assert parse_formula(text) == amounts


def test_lone_atoms_far_apart_and_molecules_in_boxes():
    box = (25, 25, 25, 90, 90, 90)
    assert "unit" in doubts(cif("Ar1 Ar 0 0 0", box, ""))[0]
    assert doubts(cif("N1 N 0 0 0\nN2 N 0.044 0 0", box, "")) == ()


def test_real_files_raise_no_doubts():
    for path in sorted((ROOT / "examples" / "semiconductors").glob("*.cif")):
        read_cif(path, strict=True)


def test_matbench_files_raise_no_doubts():
    for text in matbench_texts(100):
        read_cif(text, strict=True)
