"""Sites near special positions: moved onto them as far as rounding explains, else split."""

import gemmi
import numpy as np
import pytest
from cif_texts import WITH_OCCUPANCY, cif

from sitenet import read_cif

CELLS = {
    "triclinic": (9, 10, 13, 80, 95, 103),
    "monoclinic": (9, 10, 13, 90, 103, 90),
    "orthorhombic": (9, 10, 13, 90, 90, 90),
    "tetragonal": (10, 10, 13, 90, 90, 90),
    "trigonal": (10, 10, 14, 90, 90, 120),
    "hexagonal": (10, 10, 14, 90, 90, 120),
    "cubic": (10, 10, 10, 90, 90, 90),
}


def special_position(rotations, translations, rng):
    """A random position that some operation leaves in place: the mean of its powers' images."""
    k = rng.integers(1, len(rotations))
    points = [rng.random(3)]
    for _ in range(5):
        point = rotations[k] @ points[-1] + translations[k]
        points.append(point - np.round(point - points[0]))
        if abs(points[-1] - points[0]).max() < 1e-9:
            points.pop()
            break
    return np.mean(points, axis=0) % 1


def is_isolated(site, rotations, translations, cell):
    """Whether no two different images are within 1.2 A, so that none can merge by rounding."""
    shift = rotations @ site + translations - site
    shift -= np.round(shift)
    distance = np.linalg.norm(shift @ cell, axis=1)
    return ((distance < 1e-6) | (distance > 1.2)).all(), (distance < 1e-6).sum()


@pytest.mark.parametrize("digits", [2, 3, 4])
@pytest.mark.parametrize("rounding", [np.round, np.floor], ids=["rounded", "truncated"])
@pytest.mark.parametrize("occupancy", [0.2, 0.45, 0.73])
def test_rounded_special_positions(digits, rounding, occupancy):
    """One site per space group; errors of one digit, 0.14 A at most in these cells, move nothing
    far enough for a wrong merger of images that are 1.2 A apart."""
    rng = np.random.default_rng(digits)
    tried = 0
    for number in range(3, 231, 3):
        group = gemmi.find_spacegroup_by_number(number)
        operations = list(group.operations())
        rotations = np.array([op.rot for op in operations]) / gemmi.Op.DEN
        translations = np.array([op.tran for op in operations]) / gemmi.Op.DEN
        parameters = CELLS[group.crystal_system_str()]
        cell = np.array(gemmi.UnitCell(*parameters).orth.mat.tolist()).T
        site = special_position(rotations, translations, rng)
        isolated, order = is_isolated(site, rotations, translations, cell)
        if order == 1 or not isolated:
            continue
        tried += 1
        shown = rounding(site * 10**digits + 1e-9) / 10**digits
        line = " ".join(f"{x:.{digits}f}" for x in shown)
        symmetry = f"_symmetry_space_group_name_H-M '{group.xhm()}'"
        sites = f"Mg1 Mg {line} {occupancy}\nAl1 Al {line} {0.95 - occupancy}"
        crystal = read_cif(
            cif(sites, parameters, symmetry, tags=WITH_OCCUPANCY), disorder="average"
        )
        assert len(crystal) == 2 * len(operations) / order, group.xhm()
        assert crystal.occupancy.sum() == pytest.approx(0.95 * len(operations) / order)
    assert tried > 20


def test_split_sites_of_two_digits_stay_split():
    """One unit of the last digit off a mirror is no rounding."""
    symmetry = "loop_\n_symmetry_equiv_pos_as_xyz\nx,y,z\n-x,y,z"
    for x, count in (("0.02", 2), ("0.01", 2), ("0.010", 2), ("0.001", 2), ("0.0004", 1)):
        sites = f"H1 H {x} 0.5 0.5 0.5"
        text = cif(sites, (8, 6, 7, 90, 90, 90), symmetry, tags=WITH_OCCUPANCY)
        crystal = read_cif(text, disorder="average")
        assert len(crystal) == count
        assert crystal.occupancy.sum() == pytest.approx(0.5 * count)


def test_split_sites_merge_until_there_is_room():
    """Four images around a two-fold axis, 0.33 and 0.47 A apart: with an occupancy of 0.46, two of
    them are one atom on a mirror; with 0.2, there is room for all; with 0.9, for one."""
    symmetry = "loop_\n_symmetry_equiv_pos_as_xyz\nx,y,z\ny,x,z\n-x,-y,z\n-y,-x,z"
    for occupancy, count in ((0.2, 4), (0.46, 2), (0.9, 1)):
        sites = f"Li1 Li 0.0235 0 0.3138 {occupancy}"
        text = cif(sites, (9.95, 9.95, 9.95, 90, 90, 90), symmetry, tags=WITH_OCCUPANCY)
        crystal = read_cif(text, disorder="average")
        assert crystal.occupancy.tolist() == pytest.approx([occupancy] * count)
