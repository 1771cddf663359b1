"""Crystals unlike the training set are told apart from others like it, with a reason."""

import dataclasses

import numpy as np
import pytest
import torch
from conftest import ROOT
from toy_crystals import toy_model

import sitenet
from sitenet.crystal.crystal import Crystal
from sitenet.inference.predict import outputs
from sitenet.model.calibration import FAR, calibrate
from sitenet.model.familiarity import Familiarity, upper_bound
from sitenet.model.surroundings import ALONE, Surroundings
from sitenet.pairs.columns import columns_of
from sitenet.pairs.finder import find_pairs
from sitenet.pairs.pairs import Pairs
from sitenet.pairs.store import PairStore

SALTS = {(3, 9): 4.03, (3, 17): 5.13, (11, 9): 4.62, (11, 17): 5.64, (19, 9): 5.34, (19, 17): 6.29}
EXAMPLES = ("SiC_zincblende", "NaCl_rocksalt", "CaF2_fluorite", "MgO_rocksalt", "GaAs_zincblende")


def rock_salt(pair=(11, 17), scale=1.0):
    a = SALTS.get(pair, 5.5) * scale
    cell = a / 2 * (np.ones((3, 3)) - np.eye(3))
    return Crystal(cell, [[0, 0, 0], [0.5, 0.5, 0.5]], list(pair))


def salts(number, seed):
    """Rock salts whose lattice constants scatter by a percent."""
    rng = np.random.default_rng(seed)
    pairs = list(SALTS)
    chosen = rng.integers(len(pairs), size=number)
    return [rock_salt(pairs[k], 1 + 0.01 * rng.normal()) for k in chosen]


def sphere(crystal, **options):
    return find_pairs(crystal, images="sphere", radius=6.0, **options)


@pytest.fixture(scope="module")
def familiarity():
    return Familiarity.fit(Surroundings.of(salts(300, 0)), Surroundings.of(salts(300, 1)))


def reasons(familiarity, *crystals):
    return familiarity.unlike(Surroundings.of(crystals))


def test_surroundings_of_rock_salt_by_hand():
    x = Surroundings.of(sphere(rock_salt()))
    assert x.crystals == 1
    assert x.bond_elements.tolist() == [[11, 17]] * 2  # one merged bond of each site
    np.testing.assert_allclose(x.bond_length, 2.82)
    np.testing.assert_allclose(x.bond_share, 0.5)
    np.testing.assert_allclose(x.site_share, 0.5)
    # 6 neighbours; of a Na, Cl's electronegativity, and the other way round; within 5 A the shells
    # of 6, 12 and 8 neighbours at 2.82, 3.99 and 4.88 A.
    want = [[np.log(6), 3.16, np.log(27)], [np.log(6), 0.93, np.log(27)]]
    np.testing.assert_allclose(x.site_numbers, want)
    assert not len(x.species_element)


def test_sources_and_merging_do_not_matter(familiarity):
    """Crystals, columns, pairs and stores give the same features; merged or not, in any cell."""
    crystals = [rock_salt(), rock_salt((3, 9)), Crystal(np.eye(3) * 20, [[0, 0, 0]], [11])]
    want = familiarity.features(Surroundings.of(crystals))
    unmerged = [sphere(c, merge=False) for c in crystals]
    columns = [columns_of(p) for p in unmerged]
    for source in (columns, Pairs.batch(unmerged), PairStore.of(columns)):
        np.testing.assert_allclose(familiarity.features(Surroundings.of(source)), want, atol=1e-5)
    store, order = PairStore.of(columns), np.array([2, 0])
    got = familiarity.features(Surroundings.of(store, order))
    np.testing.assert_allclose(got, want[order], atol=1e-5)
    large = [c.supercell(30) for c in crystals[:2]]
    np.testing.assert_allclose(
        familiarity.features(Surroundings.of(large)), want[:2], rtol=1e-6, atol=1e-6
    )
    joined = Surroundings.join(Surroundings.of([c]) for c in crystals)
    np.testing.assert_allclose(familiarity.features(joined), want)


def test_others_of_the_kind_are_familiar(familiarity):
    """98.5 % by the threshold; 300 crystals scatter by 0.7 %, on both sides of the quantile."""
    like = [not why for why in reasons(familiarity, *salts(300, 2))]
    assert np.mean(like) > 0.95


def test_strangers_are_not_and_the_reason_is_named(familiarity):
    table = rock_salt()
    strangers = {
        "no training crystal holds Cs": rock_salt((17, 55)),
        "Na-Cl at 1.69 A, usually 2.7": rock_salt(scale=0.6),
        "Na-Cl at 3.95 A, usually 2.7": rock_salt(scale=1.4),
        "Na without any neighbour": Crystal(np.eye(3) * 20, [[0, 0, 0]], [11]),
        "F-Cl at": Crystal(table.cell, table.frac, [9, 17]),
        "Na-Cl at 1.2": Crystal(table.cell, [[0, 0, 0], [0.13, 0.13, 0.13]], [11, 17]),
    }
    for reason, crystal in strangers.items():
        (got,) = reasons(familiarity, crystal)
        assert got.startswith(reason), (reason, got)
    assert reasons(familiarity, *strangers.values()) == [
        reasons(familiarity, crystal)[0] for crystal in strangers.values()
    ]


def test_every_species_of_a_disordered_site_counts(familiarity):
    table = rock_salt()
    frac = np.concatenate([table.frac, table.frac[:1]])
    for element, reason in ((3, ""), (55, "no training crystal holds Cs")):
        mixed = Crystal(table.cell, frac, [11, 17, element], occupancy=[0.9, 1, 0.1])
        assert reasons(familiarity, mixed) == [reason]


def test_a_site_without_neighbours_has_one_long_bond():
    crystal = Crystal(np.eye(3) * 30, [[0, 0, 0]], [11])
    x = Surroundings.of([crystal])
    assert x.bond_length.tolist() == [ALONE] and x.bond_elements.tolist() == [[11, 11]]
    two = Crystal(np.diag([30, 30, 3.0]), [[0, 0, 0], [0.5, 0.5, 0]], [11, 3])
    x = Surroundings.of([crystal, two])
    assert x.bond_crystal.tolist() == [0, 1, 1] and x.bond_length.tolist() == [ALONE, 3, 3]


def test_without_validation_only_elements_are_judged():
    familiarity = Familiarity.fit(Surroundings.of(salts(30, 0)))
    assert reasons(familiarity, rock_salt(scale=0.5), rock_salt((17, 55))) == [
        "",
        "no training crystal holds Cs",
    ]


def test_the_bound_holds_new_distances_with_the_stated_probability():
    """Exchangeable distances: rank r of n holds the next one with probability r / (n + 1)."""
    rng = np.random.default_rng(0)
    held = [upper_bound(x[:200], 0.985) >= x[200] for x in rng.exponential(size=(4000, 201))]
    # 198 / 201 is the rank's; the mean of 4000 draws scatters by 0.002.
    assert np.mean(held) == pytest.approx(198 / 201, abs=4 * 0.002)
    assert upper_bound(np.arange(1.0, 66), 0.985) == 2 * 65
    assert upper_bound(np.arange(1.0, 67), 0.985) == 66


def test_one_training_crystal_does_no_harm():
    x = Surroundings.of([rock_salt()])
    familiarity = Familiarity.fit(x, x)
    assert np.isfinite(familiarity.axes).all()
    assert reasons(familiarity, rock_salt()) == [""]
    assert reasons(familiarity, rock_salt(scale=0.5))[0].startswith("Na-Cl at 1.41 A")


def calibrated(valid, train):
    """A calibration whose encodings are all one but for noise."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(len(train), 4))
    zeros = np.zeros((len(valid), 1))
    return calibrate(
        zeros, zeros, z[: len(valid)], z, valid=Surroundings.of(valid), train=Surroundings.of(train)
    )


def test_reasons_of_encodings_and_surroundings_together():
    calibration = calibrated(salts(100, 1), salts(100, 0))
    crystals = [rock_salt(), rock_salt(), rock_salt(scale=0.6)]
    encodings = np.array([np.zeros(4), np.full(4, 50.0), np.full(4, 50.0)])
    got = calibration.unlike(encodings, crystals)
    assert got[:2] == ["", FAR] and got[2].startswith("Na-Cl")
    assert calibration.unlike(encodings, [columns_of(sphere(c)) for c in crystals]) == got
    assert calibration.unlike(encodings[:0], []) == []
    with pytest.raises(ValueError, match="2 encodings of 3 crystals"):
        calibration.unlike(encodings[:2], crystals)
    older = dataclasses.replace(calibration, familiarity=None)
    assert older.unlike(encodings, crystals) == ["", FAR, FAR]


def test_a_model_file_keeps_it(tmp_path):
    model = toy_model()
    model.calibration = calibrated(salts(100, 1), salts(100, 0))
    assert model.encoding_size == 6  # the file's encodings have the model's width
    model.calibration.mean = np.zeros(6)
    model.calibration.axes = np.eye(6)[:, :4]
    model.save(tmp_path / "m.safetensors")
    again = sitenet.load(tmp_path / "m.safetensors").calibration.familiarity
    x = Surroundings.of(salts(50, 3))
    want = model.calibration.familiarity
    # Kept in float32, and divided by standard deviations of 1e-2: some 1e-7 / 1e-2.
    np.testing.assert_allclose(again.features(x), want.features(x), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(again.distance(x), want.distance(x), rtol=1e-3)


@pytest.mark.parametrize("name", ["mp-gap", "mp-eform"])
def test_shipped_models_know_sound_crystals_from_ruined_ones(name):
    """Crystals of the examples, which are among the commonest of any training set."""
    model = sitenet.load(name)
    folder = ROOT / "examples" / "semiconductors"
    sound = [sitenet.read_cif(folder / f"{each}.cif").primitive() for each in EXAMPLES]
    alone = [Crystal(np.eye(3) * 20, [[0, 0, 0]], [z]) for z in (1, 6, 11, 26, 79)]
    squeezed = [Crystal(c.cell * 0.6, c.frac, c.numbers) for c in sound]
    swapped = [Crystal(c.cell, c.frac, np.where(c.numbers > 10, 8, 55)) for c in sound]
    noble = [Crystal(sound[1].cell, sound[1].frac, [10, 18])]
    crystals = [*sound, *alone, *squeezed, *swapped, *noble]
    with torch.no_grad():
        encodings = np.stack([z for _, z in outputs(model, crystals)])
    got = model.calibration.unlike(encodings, crystals)
    assert got[: len(sound)] == [""] * len(sound)
    assert all(got[len(sound) :])
    assert got[-1] == "no training crystal holds Ne" or name == "mp-gap"
