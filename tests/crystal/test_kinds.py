"""Kinds of failures: the same for all files with one fault, whatever their names and numbers."""

import pickle

import pytest

from sitenet.crystal.crystal import CifError, read_cif

CIF = """data_x
_cell_length_a 4
_cell_length_b 4
_cell_length_c 4
_cell_angle_alpha 90
_cell_angle_beta 90
_cell_angle_gamma 90
loop_
_atom_site_label
_atom_site_fract_x
_atom_site_fract_y
_atom_site_fract_z
_atom_site_occupancy
Na1 0 0 0 1
Cl1 0.5 0.5 0.5 1
"""


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        (("_cell_length_b 4\n", ""), "no cell"),
        (("_cell_length_b 4\n", "_cell_length_b -4\n"), "impossible cell"),
        (("_cell_length_b 4\n", "_cell_length_b 1e5\n"), "cell too long"),
        (("Cl1 0.5", "Cl1 ?"), "unknown coordinates"),
        (("0.5 1\n", "0.5 0.5\n"), "partial occupancy"),
        (("0.5 1\n", "0.5 -1\n"), "impossible occupancy"),
        (("Cl1", "Qq1"), "unknown element"),
        (("0.5 0.5 0.5", "0.01 0 0"), "two atoms in one place"),
        (("Na1 0 0 0 1\nCl1 0.5 0.5 0.5 1\n", ""), "no sites"),
        ((CIF, "nothing at all\n"), "no data block"),
    ],
)
def test_each_fault_has_its_kind(change, kind):
    assert CIF.count(change[0]) == 1
    with pytest.raises(CifError) as caught:
        read_cif(CIF.replace(*change))
    assert caught.value.kind == kind
    assert pickle.loads(pickle.dumps(caught.value)).kind == kind
