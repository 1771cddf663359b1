"""Pairs, their merging and their features."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cases import matbench_crystals
from hypothesis import given, settings
from hypothesis import strategies as st

from sitenet.config import InteractionFeature, SiteNetConfig
from sitenet.pairs.features import pair_features
from sitenet.pairs.finder import PairFinder, find_pairs
from sitenet.pairs.maker import pair_options
from sitenet.pairs.pairs import Pairs

SHARED = Path(__file__).resolve().parents[3] / "shared"
GOLDEN_E2E = Path(os.environ.get("SITENET_GOLDEN_E2E", SHARED / "golden_e2e"))
GOLDEN_FILES = sorted(GOLDEN_E2E.glob("*.npz"))
if not GOLDEN_FILES:
    GOLDEN_FILES = [pytest.param(None, marks=pytest.mark.skip(f"no golden files in {GOLDEN_E2E}"))]


def make_crystal(cell, frac, numbers, oxidation=None, occupancy=None):
    return SimpleNamespace(
        cell=np.asarray(cell, float),
        frac=np.asarray(frac, float),
        numbers=np.asarray(numbers),
        oxidation=oxidation,
        occupancy=occupancy,
    )


def rock_salt(a=5.64):
    """NaCl, primitive cell."""
    cell = a / 2 * (np.ones((3, 3)) - np.eye(3))
    return make_crystal(cell, [[0, 0, 0], [0.5, 0.5, 0.5]], [11, 17])


def random_crystal(seed, sites=6, kinds=3):
    rng = np.random.default_rng(seed)
    cell = np.diag(rng.uniform(4, 9, 3)) + rng.normal(0, 1.5, (3, 3))
    return make_crystal(cell, rng.random((sites, 3)), rng.integers(1, kinds + 1, sites))


def expanded(pairs):
    """For every row, (orbit, distance) of every supercell site, sorted."""
    repeats = pairs.multiplicity.long()
    rows = torch.repeat_interleave(pairs.rows, repeats).numpy()
    ends = torch.repeat_interleave(pairs.sites.long(), repeats).numpy()
    distances = torch.repeat_interleave(pairs.distance, repeats).numpy()
    order = np.lexsort((distances, ends, rows))
    return rows[order], ends[order], distances[order]


def assert_same_pairs(merged, unmerged, tolerance=1e-3):
    """Every site's row of the unmerged pairs is its orbit's row of the merged ones."""
    orbit = merged.orbit.long()
    n = unmerged.num_rows
    assert torch.equal(torch.bincount(orbit, minlength=merged.num_rows), merged.count.long())
    _, ends, distances = expanded(merged)
    ends, distances = (x.reshape(merged.num_rows, -1)[orbit.numpy()] for x in (ends, distances))
    size = distances.shape[1]
    their_ends = orbit[unmerged.sites.long()].numpy().reshape(n, size)
    their_distances = unmerged.distance.numpy().reshape(n, size)
    for i in range(n):
        order = np.lexsort((their_distances[i], their_ends[i]))
        assert np.array_equal(their_ends[i][order], ends[i])
        assert np.abs(their_distances[i][order] - distances[i]).max() <= 2 * tolerance
    assert torch.equal(merged.numbers[orbit], unmerged.numbers)


@pytest.mark.parametrize("file", GOLDEN_FILES, ids=lambda f: getattr(f, "stem", "none"))
def test_golden_pairs_and_features(file):
    """With the published supercell's choice where rounding ties."""
    z = np.load(file)
    crystal = make_crystal(z["prim_lattice"], z["prim_frac"], z["prim_Z"], z["oxidation"][:, 0])
    limit, matrix = int(z["limit"]), z["super_matrix"]
    pairs = find_pairs(crystal, merge=False, supercell=matrix)
    assert pairs.images.item() == z["images"] and pairs.num_sites.item() == z["prim_size"]
    want = z["interaction"].reshape(-1, 2)
    np.testing.assert_allclose(pair_features(pairs).numpy(), want, rtol=0, atol=1e-9)
    assert_same_pairs(find_pairs(crystal, supercell=matrix), pairs)
    ours = find_pairs(crystal, limit, merge=False).distance.view(len(z["prim_Z"]), -1)
    theirs = pairs.distance.view(ours.shape)
    torch.testing.assert_close(ours.sort(1)[0], theirs.sort(1)[0], rtol=0, atol=1e-9)


def test_rows_of_rock_salt_by_hand():
    """The cubic cell by hand: 8 atoms, orbits Na and Cl, neighbours at a/2 and so on."""
    a = 5.64
    faces = [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]
    frac = np.concatenate([faces, np.add(faces, [0.5, 0, 0])])
    pairs = find_pairs(make_crystal(a * np.eye(3), frac, [11] * 4 + [17] * 4), max_sites=0)
    assert pairs.count.tolist() == [4, 4] and pairs.numbers.tolist() == [11, 17]
    assert pairs.orbit.tolist() == [0] * 4 + [1] * 4
    assert pairs.offsets.tolist() == [0, 4, 8]
    assert pairs.sites.tolist() == [0, 0, 1, 1, 0, 0, 1, 1]
    # In the cell itself the six neighbours at a/2 are three, twice.
    assert pairs.multiplicity.tolist() == [1, 3, 3, 1, 3, 1, 1, 3]
    half, face, body = a / 2, a / 2**0.5, a * 3**0.5 / 2
    want = [0, face, half, body, half, body, 0, face]
    torch.testing.assert_close(pairs.distance, torch.tensor(want).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_merged_pairs_are_the_unmerged_ones(seed):
    crystal = random_crystal(seed)
    assert_same_pairs(find_pairs(crystal), find_pairs(crystal, merge=False))


def test_tolerance_joins_nearly_equal_sites():
    crystal = rock_salt()
    cell = crystal.cell * [1, 1, 1.00003]
    crystal = make_crystal(cell, crystal.frac, crystal.numbers)
    assert find_pairs(crystal, tolerance=1e-8).num_pairs > find_pairs(crystal).num_pairs
    assert_same_pairs(find_pairs(crystal), find_pairs(crystal, merge=False))


def test_oxidation_and_occupancy_tell_sites_apart():
    simple_cubic = [np.eye(3) * 4, [[0, 0, 0], [0.5, 0.5, 0.5]], [26, 26]]
    assert find_pairs(make_crystal(*simple_cubic)).num_rows == 1
    charged = make_crystal(*simple_cubic, oxidation=np.array([2.0, 3.0]))
    pairs = find_pairs(charged)
    assert pairs.num_rows == 2 and pairs.oxidation.tolist() == [2, 3]
    assert find_pairs(make_crystal(*simple_cubic, occupancy=np.array([1, 0.5]))).num_rows == 2


def test_self_pairs_alone_have_distance_zero():
    for merge in (True, False):
        pairs = find_pairs(random_crystal(1), merge=merge)
        zero = pairs.distance == 0
        assert torch.equal(pairs.rows[zero], torch.arange(pairs.num_rows))
        assert torch.equal(pairs.sites[zero].long(), pairs.rows[zero])
        assert (pairs.multiplicity[zero] == 1).all()


def test_batch_is_the_single_crystals():
    singles = [find_pairs(random_crystal(k, sites)) for k, sites in enumerate((1, 7, 3))]
    batch = Pairs.batch(singles)
    assert batch.num_crystals == 3
    assert batch.num_pairs == sum(p.num_pairs for p in singles)
    for k, single in enumerate(singles):
        first, last = batch.crystals[k : k + 2].tolist()
        part = slice(batch.offsets[first].item(), batch.offsets[last].item())
        assert torch.equal(batch.distance[part], single.distance)
        assert torch.equal(batch.sites[part] - first, single.sites)
        assert torch.equal(batch.numbers[first:last], single.numbers)
        assert torch.equal(batch.rows[part] - first, single.rows)
    twice = Pairs.batch([batch, batch])
    assert torch.equal(twice.crystals.diff(), batch.crystals.diff().repeat(2))
    with pytest.raises(ValueError, match="at least one crystal"):
        Pairs.batch([])


def test_batch_keeps_dtypes_and_moves():
    batch = Pairs.batch([find_pairs(rock_salt())] * 2)
    assert batch.sites.dtype == batch.multiplicity.dtype == batch.orbit.dtype == torch.int32
    assert batch.offsets.dtype == batch.numbers.dtype == batch.crystals.dtype == torch.int64
    single = batch.to(dtype=torch.float32)
    assert single.distance.dtype == single.oxidation.dtype == torch.float32
    assert single.sites.dtype == torch.int32 and batch.distance.dtype == torch.float64


@pytest.mark.parametrize("merge", [True, False])
def test_rows_in_parts_are_the_whole(merge):
    crystal = random_crystal(4, sites=9, kinds=1)
    finder = PairFinder(crystal, 100, merge)
    whole = finder.rows()
    parts = [finder.rows(first, min(first + 4, finder.num_rows)) for first in (0, 4, 8)]
    for name in ("sites", "distance", "multiplicity", "rows"):
        assert torch.equal(torch.cat([getattr(p, name) for p in parts]), getattr(whole, name))
    with pytest.raises(ValueError, match="all rows"):
        Pairs.batch(parts)
    with pytest.raises(ValueError, match="rows must lie in"):
        finder.rows(0, 10)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frac": [[0, 0, 0], [1, 1, 2]]}, "in one place"),
        ({"frac": [[0, 0, 0], [0.5, 0.5, np.nan]]}, "must be finite"),
        ({"cell": [[1, 0, 0], [2, 0, 0], [0, 0, 1]]}, "no volume"),
        ({"frac": np.zeros((0, 3)), "numbers": []}, "no sites"),
    ],
)
@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("max_sites", [100, None])
def test_bad_crystals_are_refused(change, message, merge, max_sites):
    crystal = make_crystal(**{**vars(rock_salt()), **change})
    for images in ("supercell", "sphere"):
        with pytest.raises(ValueError, match=re.escape(message)):
            find_pairs(crystal, max_sites, merge, images=images)


@pytest.mark.parametrize("matrix", [np.eye(3), np.eye(2, dtype=int), np.zeros((3, 3), int)])
def test_bad_supercells_are_refused(matrix):
    with pytest.raises(ValueError, match="supercell"):
        find_pairs(rock_salt(), supercell=matrix)


def test_other_published_features():
    """Sine Coulomb and reciprocal square against the formulas, site by site."""
    crystal = random_crystal(8, sites=4)
    pairs = find_pairs(crystal, 0, merge=False, sine=True)
    got = pair_features(
        pairs,
        [
            InteractionFeature("coulomb_matrix", polynomial_degree=2),
            InteractionFeature("reciprocal_square_distance_matrix"),
            InteractionFeature("reciprocal_square_distance_matrix", log=True, max_clip=3),
        ],
    ).reshape(4, 4, 3)
    z = crystal.numbers
    for i in range(4):
        for j in range(4):
            if i == j:
                assert got[i, j, 0] == pytest.approx((0.5 * z[i] ** 2.4) ** 2)
                assert got[i, j, 1] == float("inf") and got[i, j, 2] == 3
                continue
            sines = np.sin(np.pi * (crystal.frac[j] - crystal.frac[i])) ** 2
            bohr = np.linalg.norm(sines @ crystal.cell) * 1.8897543773133647
            assert got[i, j, 0] == pytest.approx((z[i] * z[j] / bohr) ** 2)
            d = pairs.distance.reshape(4, 4)[i, j].item()
            assert got[i, j, 1] == pytest.approx(d**-2)
            assert got[i, j, 2] == pytest.approx(np.log(d**-2 + 1e-8))


def test_sine_distance_in_the_supercell_follows_the_pairs():
    """It is 0 for the self pairs alone, and only for unmerged pairs that asked for it."""
    crystal = random_crystal(2, sites=3)
    pairs = find_pairs(crystal, 60, merge=False, sine=True)
    assert pairs.sine_distance.shape == pairs.distance.shape
    assert torch.equal(pairs.sine_distance < 1e-9, pairs.distance == 0)
    with pytest.raises(ValueError, match="merge=False"):
        find_pairs(crystal, sine=True)
    with pytest.raises(ValueError, match="sine=True"):
        pair_features(find_pairs(crystal), [InteractionFeature("coulomb_matrix")])
    with pytest.raises(ValueError, match="no pair feature"):
        pair_features(pairs, [SimpleNamespace(name="soap")])


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**31), st.integers(1, 12), st.sampled_from([None, 60]))
def test_properties(seed, sites, max_sites):
    """Moving the origin, whole translations and the order of sites change no pair."""
    rng = np.random.default_rng(seed)
    crystal = random_crystal(seed, sites, kinds=2)
    want = expanded(find_pairs(crystal, max_sites))
    moved = crystal.frac + rng.normal(size=3) + rng.integers(-9, 9, (sites, 3))
    got = expanded(find_pairs(make_crystal(crystal.cell, moved, crystal.numbers), max_sites))
    for x, y in zip(got, want, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-9)
    order = rng.permutation(sites)
    changed = make_crystal(crystal.cell, crystal.frac[order], crystal.numbers[order])
    assert_same_rows(find_pairs(changed, max_sites), find_pairs(crystal, max_sites))


def assert_same_rows(got, want):
    """Rows of the same kinds and distances, in whatever order."""

    def rows(pairs):
        found = []
        for row in range(pairs.num_rows):
            part = slice(pairs.offsets[row].item(), pairs.offsets[row + 1].item())
            ends = pairs.sites[part].long()
            columns = pairs.numbers[ends], pairs.distance[part], pairs.multiplicity[part]
            entries = np.stack([np.round(x.double().numpy(), 6) for x in columns], 1)
            entries = entries[np.lexsort(entries.T[::-1])] + 0.0
            found.append((pairs.numbers[row].item(), pairs.count[row].item(), entries.tolist()))
        return sorted(found)

    assert rows(got) == rows(want)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**31))
def test_another_cell_of_the_lattice_has_the_same_pairs(seed):
    rng = np.random.default_rng(seed)
    crystal = random_crystal(seed, 5, kinds=2)
    shear = np.eye(3, dtype=int)
    for _ in range(4):
        i, j = rng.permutation(3)[:2]
        shear[i] += rng.integers(-2, 3) * shear[j]
    frac = crystal.frac @ np.linalg.inv(shear)
    other = make_crystal(shear @ crystal.cell, frac, crystal.numbers)
    for merge in (True, False):
        ours, theirs = (find_pairs(c, 0, merge) for c in (other, crystal))
        torch.testing.assert_close(ours.distance, theirs.distance, rtol=0, atol=1e-9)
        assert torch.equal(ours.sites, theirs.sites)


def test_two_runs_give_equal_bits():
    for crystal in (rock_salt(), random_crystal(3, 20)):
        first, second = (find_pairs(crystal) for _ in range(2))
        assert torch.equal(first.distance, second.distance)
        assert torch.equal(first.sites, second.sites)


def test_orbits_of_a_lattice_with_a_vacancy():
    """Found by whole rows only: the shortest distances are those of the perfect lattice."""
    points = np.stack(np.meshgrid(*[np.arange(6)] * 3, indexing="ij"), -1).reshape(-1, 3)
    crystal = make_crystal(np.eye(3) * 18, points[1:] / 6, [11] * 215)
    pairs = find_pairs(crystal, 0)
    # The orbits of cubic symmetry around the vacancy: 0 <= x <= y <= z <= 3 without the origin.
    assert pairs.num_rows == 19
    assert pairs.count.sum() == 215
    assert_same_pairs(pairs, find_pairs(crystal, 0, merge=False))


def published_model():
    from sitenet.model.sitenet import SiteNet

    path = SHARED / "golden" / "_paper_state_dict.npz"
    if not path.exists():
        pytest.skip(f"no {path}")
    with np.load(path) as z:
        return SiteNet.from_published("paper", {k: torch.as_tensor(z[k]) for k in z})


def trained_model():
    import sitenet

    try:
        return sitenet.load("mp-gap")
    except (ImportError, OSError, ValueError) as error:
        pytest.skip(f"no trained weights: {error}")


@pytest.mark.slow
@pytest.mark.parametrize("load", [published_model, trained_model], ids=["random", "trained"])
def test_merging_changes_no_prediction(load):
    """The largest change over 1000 Matbench crystals, before the last activation, in eV."""
    pytest.importorskip("sitenet.crystal.elements")
    model = load().double().eval()

    def predict(pairs):
        batch = Pairs.batch(pairs)
        outputs = []
        for one in getattr(model, "members", [model]):
            x = one.encode(one.site_inputs(batch), one.pair_inputs(batch), batch)
            outputs.append(one.decoder(x))
        return torch.stack(outputs).mean(0)

    crystals = [c for c in matbench_crystals(1000) if len(c.numbers) <= 100]
    worst = known = 0
    with torch.inference_mode():
        for k in range(0, len(crystals), 50):
            some = crystals[k : k + 50]
            how = {}
            if model.config.spectrum_channels:  # which the default tolerance changes by 0.2 meV
                sphere = {"images": "sphere", "radius": model.config.radius}
                how = {**sphere, "vectors": True, "tolerance": 1e-5}
            merged = predict([find_pairs(c, **how) for c in some])
            unmerged = predict([find_pairs(c, merge=False, **how) for c in some])
            # Elements without site features give NaN either way.
            assert torch.equal(merged.isnan(), unmerged.isnan())
            worst = max(worst, (merged - unmerged).nan_to_num().abs().max().item())
            known += int((~merged.isnan()).all(1).sum())
    print(f"largest change of {known} predictions: {worst:.1e}")
    assert known > 900
    assert worst < 1e-4


@pytest.mark.slow
def test_ten_thousand_sites_stay_small():
    """10^8 pairs, 500 rows at a time, in less than 300 MB."""
    script = (
        "import resource, numpy as np\n"
        "from types import SimpleNamespace\n"
        "from sitenet.pairs.finder import PairFinder\n"
        "used = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024\n"
        "rng, n, before = np.random.default_rng(0), 10_000, used()\n"
        "crystal = SimpleNamespace(cell=np.eye(3) * 53, frac=rng.random((n, 3)),\n"
        "    numbers=rng.integers(1, 4, n), oxidation=None, occupancy=None)\n"
        "finder = PairFinder(crystal)\n"
        "pairs = sum(finder.rows(k, k + 500).num_pairs for k in range(0, n, 500))\n"
        "print(finder.num_rows, pairs, used() - before)\n"
    )
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    rows, pairs, megabytes = map(int, run.stdout.split())
    assert (rows, pairs) == (10_000, 10**8)
    assert megabytes < 300


def images_by_brute_force(crystal, radius, reach):
    """(i, j, d) of every image within the radius, sorted, from a block of images."""
    block = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * 3), -1).reshape(-1, 3)
    x = crystal.frac[None] - crystal.frac[:, None]
    d = np.sqrt((((x[:, :, None] + block) @ crystal.cell) ** 2).sum(-1))
    i, j, k = np.nonzero(d <= radius + 1e-6)
    order = np.lexsort((d[i, j, k], j, i))
    return i[order], j[order], d[i, j, k][order]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("radius", [0.1, 5, 9])
def test_sphere_is_all_images_within_it(seed, radius):
    crystal = random_crystal(seed, 4, kinds=2)
    unmerged = find_pairs(crystal, merge=False, images="sphere", radius=radius)
    for x, y in zip(expanded(unmerged), images_by_brute_force(crystal, radius, 5), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-9)
    merged = find_pairs(crystal, images="sphere", radius=radius)
    assert merged.multiplicity.sum() >= merged.num_rows and merged.images.item() == 0
    # Its rows, expanded, are the unmerged rows.
    rows, ends, distances = expanded(merged)
    for site, row in enumerate(merged.orbit.tolist()):
        part = slice(unmerged.offsets[site].item(), unmerged.offsets[site + 1].item())
        theirs = merged.orbit[unmerged.sites[part].long()].numpy(), unmerged.distance[part].numpy()
        order = np.lexsort(theirs[::-1])
        assert np.array_equal(theirs[0][order], ends[rows == row])
        np.testing.assert_allclose(theirs[1][order], distances[rows == row], rtol=0, atol=2e-3)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 2**31))
def test_sphere_does_not_depend_on_the_cell(seed):
    """Sheared, doubled, shifted, reordered: the same rows, with their counts in proportion."""
    rng = np.random.default_rng(seed)
    crystal = random_crystal(seed, 4, kinds=2)
    shear = np.eye(3, dtype=int)
    for _ in range(3):
        i, j = rng.permutation(3)[:2]
        shear[i] += rng.integers(-2, 3) * shear[j]
    order = rng.permutation(4)
    frac = (crystal.frac[order] + rng.normal(size=3)) @ np.linalg.inv(shear)
    other = make_crystal(shear @ crystal.cell, frac, crystal.numbers[order])
    want = find_pairs(crystal, images="sphere", radius=6)
    assert_same_rows(find_pairs(other, images="sphere", radius=6), want)
    axis = int(rng.integers(3))
    half = np.eye(3)[axis] / 2
    scale = 1 - half
    double = np.concatenate([crystal.frac * scale, crystal.frac * scale + half])
    doubled = make_crystal(
        crystal.cell * (1 + np.eye(3)[axis])[:, None], double, np.tile(crystal.numbers, 2)
    )
    pairs = find_pairs(doubled, images="sphere", radius=6)
    pairs.count = pairs.count // 2
    assert_same_rows(pairs, want)


def needle(length=1e-3, sites=1):
    """A cell with one vector that is far shorter than the others."""
    frac = np.linspace(0, 0.5, sites)[:, None] * [0, 1, 1]
    return make_crystal(np.diag([length, 1e3, 1e3]), frac, [6] * sites)


def test_max_sites_means_one_thing():
    """None is the default, 0 the cell as it is; the same for a config's options."""
    crystal = rock_salt()
    for make in (find_pairs, lambda c, **options: PairFinder(c, **options).rows()):
        assert torch.equal(make(crystal, max_sites=None).distance, make(crystal).distance)
        assert make(crystal, max_sites=None).images == make(crystal, max_sites=100).images == 48
        assert make(crystal, max_sites=0).images == 1
        assert 1 < make(crystal, max_sites=np.int64(20)).images <= 10
    config = SiteNetConfig(max_sites=20)
    want = find_pairs(crystal, **pair_options(config)).images.item()
    assert 1 < want == find_pairs(crystal, **pair_options(config, None)).images <= 10
    assert find_pairs(crystal, **pair_options(config, 0)).images == 1


@pytest.mark.parametrize("max_sites", [1.5, "100", True])
def test_max_sites_is_an_integer(max_sites):
    with pytest.raises(TypeError, match="max_sites must be an integer"):
        find_pairs(rock_salt(), max_sites)


@pytest.mark.parametrize(
    "search",
    [
        lambda: find_pairs(rock_salt(), 10**12),
        lambda: PairFinder(rock_salt(), 10**12),
        lambda: PairFinder(rock_salt(), 2**70),
        lambda: find_pairs(rock_salt(), -1),
        lambda: find_pairs(rock_salt(), supercell=np.diag([10**6] * 3)),
        lambda: find_pairs(rock_salt(), images="sphere", radius=1e3),
        lambda: find_pairs(needle(1e-6), images="sphere", radius=900),
        lambda: find_pairs(needle(1e-3, 500), images="sphere", radius=8.0),
    ],
)
def test_work_without_end_is_refused_before_it_starts(search):
    begin = time.process_time()
    with pytest.raises(ValueError, match=r"max_sites|radius|images") as caught:
        search()
    assert "more than" in str(caught.value) or "from 0 to 1000000" in str(caught.value)
    assert time.process_time() - begin < 5  # the searches themselves take minutes, or all memory


def test_a_sheared_cell_is_judged_by_its_lattice():
    """The box of the basis as it is would be refused; that of the reduced basis is small."""
    crystal = random_crystal(3, 2)
    shear = np.array([[1, 0, 0], [100_000, 1, 0], [0, 100_000, 1]])
    other = make_crystal(shear @ crystal.cell, crystal.frac @ np.linalg.inv(shear), crystal.numbers)
    want, got = (find_pairs(c, images="sphere", radius=4.0, merge=False) for c in (crystal, other))
    assert got.num_pairs == want.num_pairs > 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": "sphere", "radius": 0}, "radius must be positive"),
        ({"images": "sphere", "radius": 1e5}, "more than 2e\\+08: take a smaller radius"),
        ({"images": "sphere", "radius": float("nan")}, "radius must be positive"),
        ({"images": "sphere", "sine": True, "merge": False}, "need images='supercell'"),
        ({"images": "cube"}, "images must be 'supercell' or 'sphere', got 'cube'"),
        ({"tolerance": -1}, "tolerance must be >= 0"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        find_pairs(rock_salt(), **options)
