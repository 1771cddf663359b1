"""The index of training crystals finds the nearest ones and the same one, whatever its cell."""

import zlib

import numpy as np
import pytest
import torch
from toy_crystals import SMALL, toy_crystals

import sitenet
from sitenet.crystal.crystal import Crystal
from sitenet.crystal.fingerprint import composition_hash, symmetry_hash, volume_per_atom
from sitenet.model.calibration import calibrate
from sitenet.model.neighbours import DIMENSIONS, Fingerprints, TrainingIndex
from sitenet.model.sitenet import SiteNet, Target

KEPT = ("values", "codes", "compositions", "symmetries", "volumes")
ROCK_SALT = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])


def salt(a=5.64, metal=11, anion=17):
    return Crystal(
        a * np.eye(3), np.concatenate([ROCK_SALT, ROCK_SALT + 0.5]), [metal] * 4 + [anion] * 4
    )


def zincblende(a=5.41, metal=30, anion=16):
    return Crystal(
        a * np.eye(3), np.concatenate([ROCK_SALT, ROCK_SALT + 0.25]), [metal] * 4 + [anion] * 4
    )


def wurtzite(a=3.82, c=6.26, metal=30, anion=16):
    cell = [[a, 0, 0], [-a / 2, a * 3**0.5 / 2, 0], [0, 0, c]]
    sites = [[1 / 3, 2 / 3, 0], [2 / 3, 1 / 3, 0.5], [1 / 3, 2 / 3, 0.375], [2 / 3, 1 / 3, 0.875]]
    return Crystal(cell, sites, [metal] * 2 + [anion] * 2)


def same(index, crystal):
    """The id of the first training crystal of the same fingerprint, or ""."""
    return next(map(index.name, index.candidates(crystal)), "")


def index_of(crystals, encodings=None, values=None):
    count = len(crystals)
    if encodings is None:
        encodings = np.random.default_rng(0).normal(size=(count, 6))
    values = np.arange(count, dtype=float)[:, None] if values is None else values
    ids = [f"crystal {k}" for k in range(count)]
    formulas = [c.reduced_formula for c in crystals]
    return TrainingIndex.fit(encodings, values, ids, formulas, Fingerprints.of(crystals))


def test_the_nearest_crystals_are_found():
    """With as many axes as the encoding has, codes err by half a step per axis."""
    rng = np.random.default_rng(1)
    train = rng.normal(size=(500, 6)) * [5, 2, 1, 1, 0.5, 0.1]
    index = index_of([salt()] * 500, train)
    new = rng.normal(size=(40, 6)) * [5, 2, 1, 1, 0.5, 0.1]
    exact = np.linalg.norm(new[:, None] - train, axis=2)
    unit = np.sqrt(2 * train.var(0).sum())
    error = np.linalg.norm(index.steps) / 2
    for found, apart in zip(index.nearest(new, 5), exact / unit, strict=True):
        distances = [neighbour.distance for neighbour in found]
        assert distances == sorted(distances)
        places = [int(neighbour.id.removeprefix("crystal ")) for neighbour in found]
        np.testing.assert_allclose(apart[places], distances, atol=error + 1e-6)
        assert (apart[places] <= np.sort(apart)[:5] + 2 * error + 1e-6).all()
        assert [n.values for n in found] == [(float(k),) for k in places]
    pairs = rng.integers(0, 500, (2, 4000))
    between = np.linalg.norm(train[pairs[0]] - train[pairs[1]], axis=1) / unit
    assert np.sqrt((between**2).mean()) == pytest.approx(1, abs=0.05)


def test_there_are_no_more_neighbours_than_crystals():
    index = index_of([salt(), zincblende()])
    assert [len(found) for found in index.nearest(np.zeros((3, 6)), 9)] == [2, 2, 2]
    assert index.nearest(np.zeros((0, 6)), 2) == []
    with pytest.raises(ValueError, match="1 neighbour or more, got 0"):
        index.nearest(np.zeros((1, 6)), 0)


def changed(crystal):
    """The same crystal in other cells, and as other determinations would have it."""
    rng = np.random.default_rng(2)
    order = rng.permutation(len(crystal))
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    mix = np.array([[1, 1, 0], [0, 1, 0], [0, 1, 1]])
    moved = crystal.frac + rng.normal(size=crystal.frac.shape) * 0.002
    return {
        "primitive": crystal.primitive(),
        "supercell": crystal.supercell(64),
        "order and origin": Crystal(
            crystal.cell, crystal.frac[order] + [0.1, 0.2, 0.3], crystal.numbers[order]
        ),
        "turned": Crystal(crystal.cell @ turn, crystal.frac, crystal.numbers),
        "other axes": Crystal(
            mix @ crystal.cell, crystal.frac @ np.linalg.inv(mix), crystal.numbers
        ),
        "larger": Crystal(crystal.cell * 1.02, crystal.frac, crystal.numbers),
        "displaced": Crystal(crystal.cell, moved, crystal.numbers),
        "mirrored": Crystal(crystal.cell * [1, 1, -1], crystal.frac, crystal.numbers),
    }


@pytest.mark.parametrize("crystal", [salt(), zincblende(), wurtzite()], ids=str)
def test_the_same_crystal_is_known_in_any_cell(crystal):
    index = index_of([salt(), zincblende(), wurtzite()])
    want = same(index, crystal)
    assert want
    assert {how: same(index, each) for how, each in changed(crystal).items()} == dict.fromkeys(
        changed(crystal), want
    )


def test_other_crystals_are_not_the_same():
    index = index_of([salt(), zincblende(), wurtzite()])
    assert len({same(index, c) for c in (salt(), zincblende(), wurtzite())}) == 3
    for other in (salt(metal=19), salt(a=6.2), zincblende(metal=11, anion=17), wurtzite(c=7.4)):
        assert same(index, other) == ""


def test_left_and_right_handed_quartz_are_one():
    cell = [[4.91, 0, 0], [-2.455, 4.2522, 0], [0, 0, 5.4]]
    silicon = [[0.47, 0, 0], [0, 0.47, 2 / 3], [-0.47, -0.47, 1 / 3]]
    x, y, z = 0.4135, 0.2669, 0.1191
    oxygen = [
        [x, y, z], [-y, x - y, z + 2 / 3], [y - x, -x, z + 1 / 3],
        [y, x, -z], [x - y, -y, 1 / 3 - z], [-x, y - x, 2 / 3 - z],
    ]  # fmt: skip
    quartz = Crystal(cell, silicon + oxygen, [14] * 3 + [8] * 6)
    other = Crystal(np.array(cell) * [1, 1, -1], quartz.frac, quartz.numbers)
    assert symmetry_hash(quartz) == symmetry_hash(other)


def test_shares_of_a_disordered_site_count():
    def alloy(share, cells=1):
        cell = np.diag([5.6 * cells, 5.6, 5.6])
        frac = np.concatenate(
            [(ROCK_SALT + np.array([k, 0, 0])) / [cells, 1, 1] for k in range(cells)] * 2
        )
        count = len(frac) // 2
        occupancy = [share] * count + [1 - share] * count
        return Crystal(cell, frac, [29] * count + [79] * count, occupancy=occupancy)

    assert volume_per_atom(alloy(0.3)) == pytest.approx(5.6**3 / 4)
    assert composition_hash(alloy(0.3)) == composition_hash(alloy(0.3, 2))
    assert symmetry_hash(alloy(0.3)) == symmetry_hash(alloy(0.3, 2))
    assert composition_hash(alloy(0.3)) != composition_hash(alloy(0.4))
    assert symmetry_hash(alloy(0.3)) != symmetry_hash(alloy(0.4))


def indexed_model():
    torch.manual_seed(0)
    model = SiteNet(SMALL, [Target("gap", "eV")]).eval()
    crystals = toy_crystals(30)
    encodings = np.stack([z for _, z in sitenet.inference.predict.outputs(model, crystals)])
    truth = np.arange(30, dtype=float)[:, None]
    model.calibration = calibrate(truth, np.zeros((30, 1)), encodings, encodings)
    model.calibration.index = index_of(crystals, encodings, truth)
    return model, crystals


def test_a_model_finds_its_training_crystals_again(tmp_path):
    model, crystals = indexed_model()
    model.save(tmp_path / "m.safetensors")
    loaded = sitenet.load(tmp_path / "m.safetensors")
    assert loaded.calibration.index.codes.dtype == np.int8
    assert loaded.calibration.index.codes.shape == (30, min(DIMENSIONS, model.encoding_size))
    for k, found in enumerate(loaded.neighbours(crystals, 3)):
        assert f"crystal {k}" in [n.id for n in found if n.distance < 0.02]
        assert all(n.formula == crystals[int(n.id[8:])].reduced_formula for n in found)
    one = loaded.neighbours(crystals[4], count=1)
    assert isinstance(one[0], sitenet.Neighbour)
    assert one[0].id == model.neighbours(crystals[4], 1)[0].id


def test_a_model_without_an_index_says_so():
    model = SiteNet(SMALL)
    with pytest.raises(ValueError, match="keeps no index of its training crystals"):
        model.neighbours(salt())


def test_damaged_names_are_refused():
    index = index_of([salt(), zincblende()])
    for text in (index.text[:-5], index.text + 1, index_of([salt()]).text):
        arrays = index.to_arrays() | {"text": text}
        damaged = TrainingIndex.from_arrays(arrays, 6, 1)
        with pytest.raises(ValueError, match="training crystals"):
            damaged.nearest(np.zeros((1, 6)), 1)
    with pytest.raises(ValueError, match="codes is missing"):
        TrainingIndex.from_arrays({k: v for k, v in arrays.items() if k != "codes"}, 6, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codes": lambda x: x[:-1]}, "codes is damaged"),
        ({"codes": lambda x: x + 1}, "codes is damaged"),
        ({"values": lambda x: x.astype(np.int16)}, "values is damaged"),
        ({"crystals": lambda x: x + 1}, "is damaged: expected .* values for 3 crystals"),
        ({"crystals": lambda x: x - 2}, "crystals must be the number of training crystals"),
        ({"crystals": lambda x: x + 10**15}, "is damaged: expected"),
        ({"volumes": lambda x: np.zeros(0, np.uint8)}, "volumes is damaged"),
        ({"steps": lambda x: x[:2]}, "axes must have shape|codes is damaged"),
    ],
)
def test_damaged_arrays_are_refused(changes, message):
    arrays = index_of([salt(), zincblende()]).to_arrays()
    arrays |= {name: change(arrays[name]) for name, change in changes.items()}
    with pytest.raises(ValueError, match=message):
        TrainingIndex.from_arrays(arrays, 6, 1)


def test_a_file_holds_the_same_index_in_less_space():
    rng = np.random.default_rng(3)
    crystals = [salt(a) for a in rng.uniform(4, 7, 300)]
    values = np.where(rng.random((300, 2)) < 0.3, np.nan, rng.normal(size=(300, 2)))
    index = index_of(crystals, rng.normal(size=(300, 6)) * [9, 3, 1, 1, 0.5, 0.1], values)
    arrays = index.to_arrays()
    again = TrainingIndex.from_arrays(arrays, 6, 2)
    for name in ("codes", "compositions", "symmetries", "volumes"):
        np.testing.assert_array_equal(getattr(again, name), getattr(index, name), strict=True)
    np.testing.assert_array_equal(again.values, values.astype(np.float32))
    new = rng.normal(size=(10, 6))
    assert [[n[:3] for n in each] for each in again.nearest(new, 4)] == [
        [n[:3] for n in each] for each in index.nearest(new, 4)
    ]
    per_crystal = 300 * (8 * 2 + 6 + 2 + 2 + 2 + len("crystal 123\tNaCl\n"))
    assert sum(arrays[name].nbytes for name in ("text", *KEPT)) < 0.7 * per_crystal


def test_an_index_of_an_older_file_is_read():
    """Before format 5: arrays as they are, hashes of 32 bits, an id and a formula per line."""
    crystals = [salt(), zincblende(), wurtzite()]
    index = index_of(crystals)
    lines = "\n".join(f"crystal {k}\t{c.reduced_formula}" for k, c in enumerate(crystals))
    old = {
        "text": np.frombuffer(zlib.compress(lines.encode(), 9), np.uint8),
        "compositions": np.array([composition_hash(c) for c in crystals], np.int32),
        "symmetries": np.array([symmetry_hash(c) for c in crystals], np.int32),
    }
    old |= {k: getattr(index, k) for k in ("values", "codes", "volumes", "mean", "axes", "steps")}
    read = TrainingIndex.from_arrays(old, 6, 1)
    again = TrainingIndex.from_arrays(read.to_arrays(), 6, 1)
    for each in (read, again):
        assert [same(each, c) for c in crystals] == ["crystal 0", "crystal 1", "crystal 2"]
        assert each.nearest(np.zeros((1, 6)), 3) == index.nearest(np.zeros((1, 6)), 3)
    assert again.compositions.dtype == np.int16
