"""Equal structures: recognised in any cell, told from similar ones, and reported."""

import csv

import numpy as np
import pytest
from toy_crystals import cif_of, toy_crystals, toy_dataset

from sitenet.crystal.crystal import Crystal
from sitenet.data.dataset import Dataset
from sitenet.data.duplicates import find_duplicates
from sitenet.data.groups import NEAR, VOLUME, element_groups, formula_groups, structure_groups
from sitenet.data.prepare import open_dataset
from sitenet.data.splits import Split, shared_structures
from sitenet.system.progress import Reporter


def in_another_cell(crystal, seed):
    """The same crystal in sheared axes, turned, shifted, its sites in another order."""
    rng = np.random.default_rng(seed)
    shear = np.eye(3, dtype=int)
    for _ in range(3):
        i, j = rng.permutation(3)[:2]
        shear[i] += rng.choice([-1, 1]) * shear[j]
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    order = rng.permutation(len(crystal))
    frac = (crystal.frac @ np.linalg.inv(shear) + rng.random(3))[order]
    return Crystal(shear @ crystal.cell @ turn, frac, crystal.numbers[order])


@pytest.mark.parametrize("seed", range(5))
def test_the_cell_the_origin_and_the_order_of_sites_do_not_count(seed):
    crystals = toy_crystals(6, seed, sites=(1, 7))
    others = [in_another_cell(c, seed + k) for k, c in enumerate(crystals)]
    larger = [c.supercell(3 * len(c)) for c in crystals]
    groups = structure_groups([*crystals, *others, *larger])
    assert groups.tolist() == 3 * list(range(6))


def test_rounded_coordinates_do_not_count_and_moved_sites_do():
    """Rounded to 3 digits, sites of cells up to 9 A move by less than 0.0005 * 9 * 3^0.5 = 0.008 A,
    distances by twice that: less than NEAR. A shift of one site changes some distance by about as
    much."""
    crystals = toy_crystals(20, sites=(2, 7))
    rounded = [Crystal(c.cell, np.round(c.frac, 3), c.numbers) for c in crystals]
    assert 2 * 0.0005 * 9 * 3**0.5 < NEAR
    assert structure_groups([*crystals, *rounded]).tolist() == 2 * list(range(20))
    moved = []
    for crystal in crystals:
        frac = crystal.frac.copy()
        frac[0] += [0.03, 0.02, 0.01]  # more than 0.1 A
        moved.append(Crystal(crystal.cell, frac, crystal.numbers))
    assert structure_groups([*crystals, *moved]).tolist() == list(range(40))


def test_strained_and_swapped_crystals_are_others():
    (crystal,) = toy_crystals(1, sites=(4, 4))
    strained = Crystal(crystal.cell * (1 + VOLUME), crystal.frac, crystal.numbers)
    sheared = Crystal(crystal.cell + np.eye(3)[[1, 2, 0]] * 0.3, crystal.frac, crystal.numbers)
    a, b = np.eye(3) * 4, np.array([[0, 0, 0], [0.5, 0.5, 0.5]])
    salt, swapped = Crystal(a, b, [55, 17]), Crystal(a, b, [55, 35])
    other = Crystal(a, b * [1, 1, 0.9], [55, 17])
    groups = structure_groups([crystal, strained, sheared, salt, swapped, other])
    assert groups.tolist() == list(range(6))


def layers(stacking):
    """Close-packed layers of copper as ABC..., in a hexagonal cell."""
    shift = {"A": 0, "B": 1 / 3, "C": 2 / 3}
    n = len(stacking)
    cell = 2.56 * np.array([[1, 0, 0], [-0.5, 0.75**0.5, 0], [0, 0, n * (2 / 3) ** 0.5]])
    return Crystal(cell, [[s, -s, k / n] for k, s in enumerate(map(shift.get, stacking))], [29] * n)


def test_polytypes_are_told_apart():
    """Equal volumes and nearest neighbours: fcc, hcp, 4H, 9R; and fcc stacked the other way."""
    stackings = ["ABC", "AB", "ABCB", "ABCBCACAB", "ACB", "ABCABC", "ABAB", "BCAC"]
    crystals = [layers(stacking) for stacking in stackings]
    assert structure_groups(crystals).tolist() == [0, 1, 2, 3, 0, 0, 1, 2]


def test_shares_of_a_place_count():
    def alloy(share, offset=0.0):
        frac = np.zeros((2, 3)) + offset
        return Crystal(np.eye(3) * 3, frac, [26, 28], occupancy=[share, 1 - share])

    shares = [0.5, 0.25, 0.5, 0.7502, 0.75, 0.125, 0.125 + 1e-9, 0.125 - 1e-9]
    crystals = [alloy(share, 0.1 * k) for k, share in enumerate(shares)]
    assert structure_groups(crystals).tolist() == [0, 1, 0, 3, 3, 5, 5, 5]
    assert formula_groups(crystals).tolist() == [0, 1, 0, 3, 3, 5, 5, 5]


def test_equal_formulas():
    crystals = toy_crystals(3, sites=(3, 4))
    strained = [Crystal(c.cell * 1.2, c.frac, c.numbers) for c in crystals]
    larger = [c.supercell(4 * len(c)) for c in crystals]
    assert formula_groups([*crystals, *strained, *larger]).tolist() == 3 * [0, 1, 2]


def test_equal_elements():
    def compound(numbers, occupancy=None):
        frac = np.arange(len(numbers))[:, None] * [0.25, 0.25, 0.25]
        return Crystal(np.eye(3) * 5, frac, numbers, occupancy=occupancy)

    crystals = [
        compound([3, 8]),
        compound([8, 3, 3]),
        compound([3, 8, 15]),
        compound([3, 8, 11], [1.0, 1.0, 0.25]),
        compound([11, 3, 8]),
        compound([3]),
    ]
    assert element_groups(crystals).tolist() == [0, 0, 2, 3, 3, 5]
    assert formula_groups(crystals).tolist() == [0, 1, 2, 3, 4, 5]


def with_copies():
    """Twelve crystals; c1, c5 and c9 are one structure, c2 and c3 too; both have other targets,
    those of c5 and c9 by little."""
    data = toy_dataset(12)
    for k, source in ((5, 1), (9, 1), (3, 2)):
        data.crystals[k] = in_another_cell(data.crystals[source], k)
    spread = data.targets.std()
    data.targets[[5, 9], 0] = data.targets[1, 0] + [0.01 * spread, -0.01 * spread]
    data.targets[3] = data.targets[2] + spread
    return data


def test_duplicates_and_contradictions_are_reported(tmp_path):
    data = with_copies()
    duplicates = find_duplicates(data)
    assert duplicates.groups == [[1, 5, 9], [2, 3]]
    assert duplicates.contradictions == [[], ["size_A"]]
    assert duplicates.count == 3
    text = duplicates.describe()
    assert text == (
        "duplicates: 3 of 12 crystals have the same structure as another one (c1 = c5 = c9, ...); "
        "targets differ in 1 of 2 such structures (the first: size_A of c2, c3)"
    )
    duplicates.write(tmp_path / "duplicates.csv")
    with open(tmp_path / "duplicates.csv", newline="") as file:
        rows = [tuple(row.values()) for row in csv.DictReader(file)]
    assert rows == [("c5", "c1", ""), ("c9", "c1", ""), ("c3", "c2", "size_A")]
    assert find_duplicates(toy_dataset(12)).describe() == ""
    assert find_duplicates(data.select([])).describe() == ""


def test_ids_of_several_crystals_are_reported():
    data = toy_dataset(4)
    data.ids[2] = "c0"
    assert find_duplicates(data).describe() == "several crystals share an id (c0; ids: 1)"


def test_opening_a_dataset_reports_its_duplicates(tmp_path):
    (crystal,) = toy_crystals(1)
    other = in_another_cell(crystal, 0)
    other.name = "other"
    for each in (crystal, other):
        (tmp_path / f"{each.name}.cif").write_text(cif_of(each))
    (tmp_path / "t.csv").write_text("id,y\nc0,1\nother,2\n")

    class Lines(Reporter):
        def say(self, text):
            lines.append(text)

    lines = []
    open_dataset(tmp_path, reporter=Lines())
    assert lines == [
        "duplicates: 1 of 2 crystals have the same structure as another one (c0 = other); targets "
        "differ in 1 of 1 such structures (the first: y of c0, other)"
    ]


def test_crystals_of_a_test_that_were_learned_are_counted():
    data = with_copies()
    parts = Split(np.array([0, 1, 2]), np.array([3, 4]), np.array([5, 6, 9]))
    assert shared_structures(data, parts) == (
        "1 of 2 crystals of the validation and 2 of 3 crystals of the test have the structure of a "
        "training crystal"
    )
    assert shared_structures(data, Split(np.arange(6), np.array([6, 7]), np.array([8]))) == ""


def test_groups_follow_a_selection():
    data = with_copies()
    data.groups("structure")
    chosen = data.select([9, 0, 5, 3])
    assert chosen._groups and chosen.groups("structure").tolist() == [0, 1, 0, 3]
    fresh = Dataset(*[getattr(chosen, n) for n in "ids crystals targets names units split".split()])
    assert fresh.groups("structure").tolist() == [0, 1, 0, 3]
    expected = "group must be 'structure', 'formula', 'elements' or 'none', got 'x'"
    with pytest.raises(ValueError, match=expected):
        data.groups("x")
