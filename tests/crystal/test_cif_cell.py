"""The cell and the symmetry that a CIF states: understood in any form, or refused."""

import re

import numpy as np
import pytest
from cif_texts import cif

from sitenet import CifError, read_cif


@pytest.mark.parametrize(
    ("symmetry", "count"),
    [
        ("_space_group.name_H-M_ref 'F m -3 m'", 8),
        ("_symmetry.space_group_name_H_M 'F m -3 m'", 8),
        ("_space_group_name_Hall '-F 4 2 3'", 8),
        ("_symmetry_space_group_name_Hall '-F 4 2 3'", 8),
        ("_space_group_name_H-M_full 'F 4/m -3 2/m'", 8),
        ("_symmetry_space_group_name_H-M ' '\n_symmetry_Int_Tables_number '225'", 8),
        ("_symmetry_space_group_name_H-M ''\n_space_group_IT_number 225", 8),
        ("_symmetry_space_group_name_H-M \"'F m -3 m'\"", 8),
        ("_symmetry_space_group_name_H-M ?\n_symmetry_Int_Tables_number 225.", 8),
        ("_symmetry_cell_setting triclinic", 2),
        ("_symmetry_cell_setting ?\n_symmetry_space_group_name_H-M .", 2),
        ("loop_\n_space_group_symop_id\n_space_group_symop_operation_xyz\n1 x,y,z", 2),
        ("_space_group_magn.number_BNS 1.1", 2),
        ("_symmetry_space_group_name_H-M 'P 1'\n_symmetry_cell_setting cubic", 2),
        ("", 2),
    ],
)
def test_symmetry_is_understood(symmetry, count):
    assert len(read_cif(cif(symmetry=symmetry), strict=True)) == count


@pytest.mark.parametrize("symbol", ["Oh^5", "O_h^5", "O_{h}^{5}", "Oh5", "OH^5^"])
def test_schoenflies_symbols_leave_the_setting_open(symbol):
    text = cif(symmetry=f"_space_group_name_Schoenflies {symbol}")
    with pytest.warns(UserWarning, match="the setting F m -3 m of space group .* is assumed"):
        assert len(read_cif(text)) == 8


@pytest.mark.parametrize(
    ("symmetry", "reason"),
    [
        ("_space_group_magn.name_BNS \"F m' -3' m'\"", "_space_group_magn_name_bns"),
        ("_space_group_magn.number_BNS 225.119", "_space_group_magn_number_bns ('225.119')"),
        ("_space_group_ssg_name 'Fm-3m(00g)'", "_space_group_ssg_name"),
        (
            "loop_\n_space_group_symop_ssg_operation_algebraic\nx1,x2,x3,x4\n-x1,-x2,-x3,-x4",
            "_space_group_symop_ssg_operation_algebraic",
        ),
        ("_cell_modulation_dimension 1", "modulated structure"),
        ("_symmetry_space_group_name_H-M 'P 1'\n_space_group_ssg_name 'P1(abg)'", "_ssg_name"),
        ("_symmetry_cell_setting cubic", "_symmetry_cell_setting ('cubic')"),
        ("_space_group_name_Hall '-Q 4 2 3'", "unknown space group '-Q 4 2 3'"),
        ("_space_group_name_Schoenflies Qh^5", "unknown space group 'Qh^5'"),
        ("_space_group_IT_number 231", "unknown space group '231'"),
    ],
)
def test_symmetry_that_is_not_understood_is_refused(symmetry, reason):
    with pytest.raises(CifError, match=re.escape(reason)):
        read_cif(cif(symmetry=symmetry))


@pytest.mark.parametrize(("unit", "scale"), [("pm", 100), ("nm", 0.1)])
@pytest.mark.parametrize("tag", ["_cell_length_a_{}", "_cell.length_a_{}"])
def test_lengths_in_other_units_are_converted(unit, scale, tag):
    text = cif(cell=(564 / 100 * scale,) * 3 + (90, 90, 90))
    for x in "abc":
        text = text.replace(f"_cell_length_{x}", tag.format(unit).replace("_a_", f"_{x}_"))
    crystal = read_cif(text, strict=True)
    np.testing.assert_allclose(crystal.cell, np.eye(3) * 5.64, rtol=1e-12, atol=1e-12)
    both = text + "\n".join(f"_cell_length_{x} 5.7" for x in "abc")
    assert read_cif(both).cell[0, 0] == 5.7  # angstrom goes first


def test_a_cell_too_small_for_its_atoms_hints_at_the_unit():
    with pytest.raises(CifError, match=r"cubic angstrom an atom .* in another unit"):
        read_cif(cif(cell=(0.564, 0.564, 0.564, 90, 90, 90)))


def test_no_message_holds_a_whole_file():
    text = cif()
    for old in ("F m -3 m", "5.64 5.64", "Na1 Na", "90"):
        damaged = text.replace(old, ("1,2" + "9" * 3000) if old != "F m -3 m" else "x" * 3000)
        if damaged != text:
            with pytest.raises(CifError) as caught:
                read_cif(damaged)
            assert len(str(caught.value)) < 250
