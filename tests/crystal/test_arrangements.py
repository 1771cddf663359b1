"""Ordered arrangements of disordered crystals: compositions, charges, and what excludes what."""

import dataclasses

import numpy as np
import pytest
import torch

from sitenet import Crystal, minimum_image_distances, read_cif
from sitenet.crystal import alternatives
from sitenet.crystal.alternatives import components, find_alternatives
from sitenet.crystal.arrangements import Sampling, sample_arrangements
from sitenet.crystal.oxidation import common_states, guess_oxidation
from sitenet.crystal.rounding import rounded_counts

FCC = 2.8 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]])
QUARTER = [0.25, 0.25, 0.25]
CUBIC = "_cell_length_a {0}\n_cell_length_b {0}\n_cell_length_c {0}\n" + "".join(
    f"_cell_angle_{x} 90\n" for x in ("alpha", "beta", "gamma")
)
SITES = "loop_\n" + "".join(
    f"_atom_site_{x}\n"
    for x in ("label", "fract_x", "fract_y", "fract_z", "occupancy", "disorder_group")
)


def alloy(share=0.3, oxidation=None):
    """Gallium and indium on one place of zincblende, arsenic on the other."""
    frac = [[0, 0, 0], [0, 0, 0], QUARTER]
    return Crystal(FCC, frac, [31, 49, 33], oxidation, [1 - share, share, 1.0])


def counts_of(arrangements, number):
    """(samples,) atoms of an element in each draw."""
    each = [int((c.numbers == number).sum()) for c in arrangements.crystals]
    return np.repeat(each, arrangements.counts)


def near(mean, values, sigmas=5):
    """Whether the mean of draws is what is expected, within 5 standard errors: a chance of 6e-7. A
    constant must be met exactly, up to rounding errors of the expectation."""
    error = values.std() / np.sqrt(len(values))
    return abs(values.mean() - mean) <= sigmas * error + 1e-9


@pytest.mark.parametrize("share", [0.05, 0.3, 0.5, 0.77])
def test_compositions_are_the_occupancies(share):
    drawn = sample_arrangements(alloy(share), samples=2000, seed=1)
    indium, gallium = counts_of(drawn, 49), counts_of(drawn, 31)
    images = 18  # supercell of at most 40 sites, 2 of each cell
    assert set(indium + gallium) == {images} and set(counts_of(drawn, 33)) == {images}
    assert set(indium) <= {int(share * images), int(np.ceil(share * images))}
    assert near(share * images, indium)
    assert drawn.counts.sum() == 2000


def test_every_place_has_its_occupancy():
    """Not only their sum: each of the places of a supercell, to 5 standard deviations."""
    drawn = sample_arrangements(alloy(0.3), samples=4000, seed=3, sites=16)
    frac = drawn.crystals[0].frac
    places = np.unique(np.round(frac, 6), axis=0)
    occupied = np.zeros(len(places))
    for crystal, count in zip(drawn.crystals, drawn.counts, strict=True):
        points = np.round(crystal.frac[crystal.numbers == 49], 6)
        at = [int(np.flatnonzero((abs(places - p) < 1e-5).all(1))[0]) for p in points]
        occupied[at] += count
    shares = np.sort(occupied / 4000)[-len(places) // 2 :]
    assert len(shares) == 8
    assert abs(shares - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / 4000)


def test_the_same_seed_draws_the_same():
    one, two, other = (sample_arrangements(alloy(), 50, seed) for seed in (4, 4, 5))
    assert np.array_equal(one.counts, two.counts)
    for a, b in zip(one.crystals, two.crystals, strict=True):
        assert np.array_equal(a.frac, b.frac) and np.array_equal(a.numbers, b.numbers)
    same = len(one) == len(other)
    assert not same or any(
        not np.array_equal(a.numbers, b.numbers)
        for a, b in zip(one.crystals, other.crystals, strict=True)
    )


def test_full_occupancy_is_the_crystal_itself():
    ordered = Crystal(FCC, [[0, 0, 0], QUARTER], [31, 33], name="GaAs")
    for occupancy in (None, np.ones(2)):
        drawn = sample_arrangements(dataclasses.replace(ordered, occupancy=occupancy), 20)
        assert len(drawn) == 1 and drawn.counts.tolist() == [20]
        (crystal,) = drawn.crystals
        assert crystal.occupancy is None and crystal.name == "GaAs"
        for name in ("cell", "frac", "numbers"):
            assert np.array_equal(getattr(crystal, name), getattr(ordered, name))


def test_a_trace_replaces_the_other_species():
    """Although the other one alone would count as full."""
    drawn = sample_arrangements(alloy(0.0009), samples=3000, seed=2)
    assert set(counts_of(drawn, 49)) == {0, 1}
    assert set(counts_of(drawn, 49) + counts_of(drawn, 31)) == {18}


def test_vacancies():
    crystal = Crystal(FCC, [[0, 0, 0], [0.5, 0.5, 0.5]], [22, 8], None, [0.8, 0.9])
    drawn = sample_arrangements(crystal, 1000, sites=20)
    images = round(drawn.crystals[0].volume / crystal.volume)
    assert near(0.8 * images, counts_of(drawn, 22)) and near(0.9 * images, counts_of(drawn, 8))
    alone = Crystal(np.eye(3) * 3, np.zeros((1, 3)), [3], None, [0.5])
    with pytest.raises(ValueError, match="holds no atom: take a larger supercell"):
        sample_arrangements(alone, 50, sites=1)


@pytest.mark.parametrize("oxidation", [None, [1.0, 2, -2, -1]])
def test_charges_balance(oxidation):
    """Sodium and calcium, oxygen and fluorine: as many calcium as oxygen atoms in every draw. The
    states are guessed where they are not known, and every composition keeps its mean."""
    frac = [[0, 0, 0], [0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5]]
    share = 0.37
    crystal = Crystal(FCC, frac, [11, 20, 8, 9], oxidation, [1 - share, share, share, 1 - share])
    drawn = sample_arrangements(crystal, 500, sites=16)
    calcium = counts_of(drawn, 20)
    assert set(calcium) == {2, 3}
    assert np.array_equal(calcium, counts_of(drawn, 8))
    assert near(share * 8, calcium)


def test_rounding_is_unbiased_and_balanced():
    """Nickel 2+, cobalt 3+, manganese 4+ on one sublattice, lithium and vacancies on another."""
    expected = np.array([1.3, 2.4, 1.3, 3.6, 1.4])
    sums = np.array([[1, 1, 1, 0, 0], [0, 0, 0, 1, 1], [2, 3, 4, 1, 0.0]])
    rng = np.random.default_rng(0)
    counts = rounded_counts(expected, sums, 3000, rng)
    assert ((counts >= np.floor(expected)) & (counts <= np.ceil(expected))).all()
    assert (counts[:, :3].sum(1) == 5).all() and (counts[:, 3:].sum(1) == 5).all()
    for k, mean in enumerate(expected):
        assert near(mean, counts[:, k])
    # No composition has the mean charge, 18.6; it varies less than if it were not looked at.
    charge, unbalanced = (
        c @ sums[2] for c in (counts, rounded_counts(expected, sums[:2], 3000, rng))
    )
    assert near(18.6, charge) and near(18.6, unbalanced)
    assert charge.std() < 0.7 * unbalanced.std()
    whole = np.array([2.0, 3, 0])
    assert rounded_counts(whole, np.ones((1, 3)), 2, rng).tolist() == [[2, 3, 0]] * 2


def split_sites(distance, shares=(0.5, 0.5), numbers=(3, 3)):
    """Two lithium sites at some distance in a box, with an oxygen atom."""
    frac = [[0, 0, 0], [distance / 6, 0, 0], [0.5, 0.5, 0.5]]
    return Crystal(np.eye(3) * 6, frac, [*numbers, 8], None, [*shares, 1.0])


@pytest.mark.parametrize(
    ("distance", "shares", "together"),
    [
        (0.6, (0.5, 0.5), False),
        (1.5, (0.4, 0.3), False),
        (1.5, (0.8, 0.7), True),  # the occupancies leave no other choice
        (3.0, (0.5, 0.5), True),
    ],
)
def test_split_sites_exclude_each_other(distance, shares, together):
    drawn = sample_arrangements(split_sites(distance, shares), 400, sites=24)
    nearest = min(_nearest(c) for c in drawn.crystals)
    assert (nearest < distance + 0.01) == together
    assert near(sum(shares) * 8, counts_of(drawn, 3))
    assert drawn.warnings == ()


def _nearest(crystal):
    frac = torch.from_numpy(crystal.frac)
    d = minimum_image_distances(torch.from_numpy(crystal.cell), frac, frac)
    return float(d[~torch.eye(len(d), dtype=bool)].min())


def test_chains_of_excluding_sites_are_separated():
    """Six sites on a ring, each excluding two neighbours, a third of them occupied: no cluster of
    which one at most is occupied, so draws exchange atoms until none are too near."""
    angles = np.arange(6) * np.pi / 3
    ring = 0.5 + 0.13 * np.stack([np.cos(angles), np.sin(angles), 0 * angles], 1)
    crystal = Crystal(np.eye(3) * 12, ring, [3] * 6, None, np.full(6, 1 / 3))
    assert find_alternatives(crystal).conflicts.sum() == 12
    drawn = sample_arrangements(crystal, 300, sites=0)
    assert set(counts_of(drawn, 3)) == {2}
    assert min(_nearest(c) for c in drawn.crystals) > 2.5
    assert drawn.warnings == ()
    full = dataclasses.replace(crystal, occupancy=np.full(6, 0.5))
    assert set(counts_of(sample_arrangements(full, 100, sites=0), 3)) == {3}
    # Two of three sites that all exclude each other, by less than an angstrom: impossible.
    crowded = Crystal(np.eye(3) * 12, ring[[0, 1, 2]] * 0.3, [3] * 3, None, np.full(3, 2 / 3))
    (warning,) = sample_arrangements(crowded, 20, sites=0).warnings
    assert "20 of 20 arrangements hold atoms that exclude each other" in warning


def text_with_groups(shares=(0.6, 0.4), groups=("1", "2")):
    """Carbon monoxide in two orientations around one place, two copies in the cell."""
    rows = [f"C 0 0 0 {shares[0]} {groups[0]}", f"O 0.14 0 0 {shares[0]} {groups[0]}"]
    rows += [f"C 0.16 0.02 0 {shares[1]} {groups[1]}", f"O 0.02 0.02 0 {shares[1]} {groups[1]}"]
    return (
        "data_x\n" + CUBIC.format(8) + "_symmetry_space_group_name_H-M 'P 1 21 1'\n" + SITES
    ) + "".join(f"{row}\n" for row in rows)


def test_disorder_groups_alternate_as_wholes():
    crystal = read_cif(text_with_groups(), disorder="average")
    assert crystal.groups[:, 1].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
    open_ = find_alternatives(crystal)
    assert open_.kind.tolist() == [0, 0] and not open_.conflicts.any()
    np.testing.assert_allclose(open_.probabilities[0], [0.4, 0.6])
    drawn = sample_arrangements(crystal, 1000, sites=0)
    first = []
    for c in drawn.crystals:
        assert sorted(c.numbers) == [6, 6, 8, 8]
        assert _nearest(c) == pytest.approx(1.12, abs=0.02)  # whole molecules
        first.append(int((abs(c.frac[c.numbers == 6][:, 0] % 0.5) < 1e-6).sum()))
    assert near(0.6 * 2, np.repeat(first, drawn.counts))


def test_groups_follow_their_rows():
    crystal = read_cif(text_with_groups(), disorder="average")
    doubled = crystal.supercell(16)
    assert len(doubled) == 16 and doubled.groups[:, 1].tolist() == [1] * 8 + [2] * 8
    assert doubled.primitive().groups[:, 1].tolist().count(1) == 4
    # Negative groups and none: distances decide.
    without = read_cif(text_with_groups(groups=("-1", ".")), disorder="average")
    assert without.groups is None
    with pytest.raises(ValueError, match=r"groups must be integers of shape \(num_sites, 2\)"):
        dataclasses.replace(crystal, groups=np.zeros(8))


def test_options_are_checked():
    with pytest.raises(ValueError, match="samples must be from 1 to 100000, got 0"):
        sample_arrangements(alloy(), 0)
    with pytest.raises(TypeError, match=r"seed must be an integer, got 1\.5"):
        Sampling(seed=1.5)
    assert len(sample_arrangements(alloy(), 300, sites=0)) == 2  # one cell: one or the other


def test_oxidation_states():
    assert common_states(49)[0] == 3 and common_states(2) == ()
    numbers, amounts = np.array([29, 49, 34]), np.array([1.0, 1, 2])
    assert guess_oxidation(numbers, amounts) == {29: 1, 49: 3, 34: -2}
    assert guess_oxidation(np.array([26, 28]), np.array([1.0, 3])) is None
    assert guess_oxidation(np.array([2]), np.array([1.0])) is None


def test_very_large_cells_are_refused(monkeypatch):
    monkeypatch.setattr(alternatives, "MOST_ROWS", 50)
    with pytest.raises(ValueError, match="54 atoms in a disordered cell, more than 50"):
        sample_arrangements(alloy(), 5)


def test_copies_of_an_assembly_that_run_together_are_parted():
    """Two dumbbells of lithium and beryllium 2.4 A apart, which alternate with their centres, and a
    third one alone: 2.8 A would join the first two, 2.0 A does not."""
    x = np.array([0.0, 1.4, 0.7, 3.8, 5.2, 4.5, 12, 13.4, 12.7])
    frac = np.stack([x / 20, np.zeros(9), np.zeros(9)], 1)
    groups = np.tile([[1, 1], [1, 1], [1, 2]], (3, 1))
    crystal = Crystal(np.eye(3) * 20, frac, [3, 3, 4] * 3, None, np.full(9, 0.5), groups=groups)
    open_ = find_alternatives(crystal)
    assert np.ptp(open_.unit.reshape(3, 3), axis=1).tolist() == [0, 0, 0]
    assert sorted(set(open_.unit)) == [0, 1, 2] and open_.kind.tolist() == [0, 0, 0]
    for c in sample_arrangements(crystal, 50, sites=0).crystals:
        assert (c.numbers == 3).sum() == 2 * (3 - (c.numbers == 4).sum())


def test_components():
    adjacent = np.zeros((6, 6), dtype=bool)
    adjacent[[0, 4, 2, 5], [4, 0, 5, 2]] = True
    assert [c.tolist() for c in components(adjacent)] == [[0, 4], [1], [2, 5], [3]]
    assert components(adjacent[:0, :0]) == []
