"""Disorder: species that share a place are averaged by occupancy, everywhere."""

import copy

import numpy as np
import pytest
import torch

from sitenet import CifError, Crystal, SiteNet, explain, find_pairs, read_cif
from sitenet.crystal.disorder import find_places
from sitenet.crystal.elements import site_features
from sitenet.pairs.columns import columns_of
from sitenet.pairs.features import pair_features
from sitenet.pairs.finder import PairFinder
from sitenet.pairs.pairs import Pairs
from sitenet.pairs.store import PairStore

CELL = np.array([[4.0, 0.3, 0], [0, 5, 0.2], [0.4, 0, 6]])
POINTS = np.array([[0, 0, 0], [0.5, 0.4, 0.3], [0.1, 0.7, 0.6]])


def ordered():
    return Crystal(CELL, POINTS, [11, 14, 8], [1.0, 4, -2])


def mixed(share=0.75, vacancy=0.1):
    """Si and Al on the second place, vacancies on the third."""
    return Crystal(
        CELL,
        POINTS[[0, 1, 1, 2]],
        [11, 14, 13, 8],
        [1.0, 4, 3, -2],
        [1.0, share, 1 - share, 1 - vacancy],
    )


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SiteNet.from_config("paper").double().eval()


def output(model, *pairs):
    batch = Pairs.batch(pairs)
    x = model.encode(model.site_inputs(batch), model.pair_inputs(batch), batch)
    return model.decoder(x)[:, 0]


def test_places():
    places = find_places(mixed())
    assert places.first.tolist() == [0, 1, 3] and places.place.tolist() == [0, 1, 1, 2]
    assert len(set(places.kinds)) == 3
    rows, which = places.rows_on(np.array([2, 1, 1]))
    assert rows.tolist() == [3, 1, 2, 1, 2] and which.tolist() == [0, 1, 1, 2, 2]
    crowded = Crystal(CELL, POINTS[[0, 0]], [1, 2], occupancy=[0.7, 0.7])
    with pytest.raises(ValueError, match=r"add up to 1.4, more than 1"):
        find_places(crowded)


def test_equal_places_are_one_orbit():
    """Si/Al on both sites of a body-centred cell, in another order on the second."""
    frac = np.repeat([[0, 0, 0], [0.5, 0.5, 0.5]], 2, axis=0)
    crystal = Crystal(np.eye(3) * 4, frac, [14, 13, 13, 14], None, [0.6, 0.4, 0.4, 0.6])
    pairs = find_pairs(crystal, max_sites=0)
    assert pairs.num_rows == 1 and pairs.count.tolist() == [2]
    assert pairs.orbit.tolist() == [0] * 4
    assert pairs.numbers.tolist() == [14]
    assert pairs.mixed_numbers.tolist() == [14, 13]
    np.testing.assert_allclose(pairs.mixed_shares, [-0.4, 0.4])
    primitive = crystal.primitive()
    assert sorted(zip(primitive.numbers, primitive.occupancy, strict=True)) == [
        (13, 0.4),
        (14, 0.6),
    ]
    assert np.array_equal(primitive.frac[0], primitive.frac[1])
    swapped = Crystal(np.eye(3) * 4, frac, [14, 13, 13, 14], None, [0.6, 0.4, 0.6, 0.4])
    assert find_pairs(swapped, max_sites=0).num_rows == 2


def test_supercells_count_places():
    crystal = mixed()
    supercell = crystal.supercell(60)
    images = len(supercell) // 4
    assert images == find_pairs(crystal, 60).images.item() == len(ordered().supercell(60)) // 3
    assert len(find_places(supercell)) == 3 * images
    assert supercell.occupancy.tolist() == np.repeat(crystal.occupancy, images).tolist()


@pytest.mark.parametrize("merge", [False, True])
def test_site_inputs_are_means_over_the_species(model, merge):
    pairs = find_pairs(mixed(), merge=merge)
    got = model.site_inputs(pairs).detach()
    rows = {z: got[(pairs.numbers == z).nonzero().item()] for z in (11, 14, 8)}

    def inputs(z):
        features = torch.from_numpy(site_features([z])[0]).float().double()
        embedding = model.embedding(torch.tensor([z])).detach()[0]
        return torch.cat([embedding, features])

    torch.testing.assert_close(rows[11], torch.cat([inputs(11), torch.tensor([1.0]).double()]))
    mean = 0.75 * inputs(14) + 0.25 * inputs(13)
    torch.testing.assert_close(rows[14], torch.cat([mean, torch.tensor([3.75]).double()]))
    mean = 0.9 * inputs(8)
    torch.testing.assert_close(rows[8], torch.cat([mean, torch.tensor([-1.8]).double()]))


def test_pair_features_have_the_mean_nuclear_charge():
    pairs = find_pairs(mixed(), merge=False)
    charge = np.array([11, 0.75 * 14 + 0.25 * 13, 0.9 * 8])
    i, j, d = pairs.rows.numpy(), pairs.sites.numpy(), pairs.distance.numpy()
    with np.errstate(divide="ignore"):
        product = charge[i] * charge[j] / (d * 1.8897543773133647)
    expected = np.log(np.where(d == 0, 0.5 * charge[i] ** 2.4, product) + 1e-8)
    np.testing.assert_allclose(pair_features(pairs)[:, 1], expected, rtol=1e-12)


@pytest.mark.parametrize("options", [{}, {"merge": False}, {"images": "sphere", "radius": 5.0}])
def test_full_occupancy_is_the_ordered_crystal(model, options):
    crystal = ordered()
    full = Crystal(CELL, POINTS, crystal.numbers, crystal.oxidation, np.ones(3))
    same = [find_pairs(c, **options) for c in (crystal, full)]
    assert same[1].mixed_rows is None
    for name in ("offsets", "sites", "distance", "numbers", "oxidation", "orbit"):
        assert torch.equal(*(getattr(p, name) for p in same)), name
    # A species of vanishing share, or two halves of one species, change nothing.
    none = mixed(share=1 - 1e-12, vacancy=0)
    halves = Crystal(CELL, POINTS[[0, 0, 1, 2]], [11, 11, 14, 8], [1.0, 1, 4, -2], [0.5, 0.5, 1, 1])
    expected = output(model, same[0])
    for other in (none, halves):
        torch.testing.assert_close(output(model, find_pairs(other, **options)), expected)


def test_merging_changes_nothing(model):
    rng = np.random.default_rng(0)
    points = np.repeat(np.vstack([POINTS, 1 - POINTS[1:]]), 2, axis=0)  # with inversion
    numbers = [11, 19, 14, 13, 8, 9, 14, 13, 8, 9]
    shares = rng.uniform(0.2, 0.5, 6)
    crystal = Crystal(CELL, points, numbers, None, np.r_[shares, shares[2:]])
    merged, unmerged = find_pairs(crystal), find_pairs(crystal, merge=False)
    assert merged.num_rows == 3 and unmerged.num_rows == 5
    torch.testing.assert_close(output(model, merged), output(model, unmerged), rtol=1e-7, atol=1e-9)


def test_batches_with_ordered_crystals(model):
    pairs = [find_pairs(c) for c in (ordered(), mixed(), ordered(), mixed(0.5, 0.3))]
    together = output(model, *pairs)
    torch.testing.assert_close(together, torch.cat([output(model, p) for p in pairs]))
    moved = Pairs.batch(pairs).to(dtype=torch.float32)
    assert moved.mixed_shares.dtype == torch.float32 and moved.mixed_rows.dtype == torch.int64


def test_stores_keep_disorder(model):
    pairs = [find_pairs(c) for c in (mixed(), ordered(), mixed(0.5, 0.3))]
    store = PairStore.of([columns_of(p) for p in pairs])
    batch = store.batch([2, 1, 0]).to(dtype=torch.float64)
    x = model.encode(model.site_inputs(batch), model.pair_inputs(batch), batch)
    expected = output(model, *pairs[::-1])
    torch.testing.assert_close(model.decoder(x)[:, 0], expected, rtol=1e-5, atol=1e-5)
    assert PairStore.of([columns_of(pairs[1])]).batch([0]).mixed_rows is None


def test_row_by_row(model):
    whole = model(find_pairs(mixed(), merge=False))
    finder = PairFinder(mixed(), merge=False)
    by_rows = model.decode(model.encode_by_rows(finder, max_pairs=finder.row_size))
    torch.testing.assert_close(by_rows, whole)


def test_every_species_learns():
    torch.manual_seed(0)
    model = SiteNet.from_config("paper").double().train()
    model(find_pairs(mixed())).sum().backward()
    learned = model.embedding.weight.grad.abs().sum(1).nonzero().flatten().tolist()
    assert learned == [8, 11, 13, 14]
    assert model.embedding.weight[learned].norm(dim=1).max() <= 1
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(g.isfinite().all() for g in gradients)


def test_prediction_from_a_file(model):
    """Read, made primitive and predicted: the answer moves smoothly with the occupancy."""
    text = (
        "data_x\n_cell_length_a 5.6\n_cell_length_b 5.6\n_cell_length_c 5.6\n"
        "_cell_angle_alpha 90\n_cell_angle_beta 90\n_cell_angle_gamma 90\n"
        "_symmetry_space_group_name_H-M 'F m -3 m'\nloop_\n_atom_site_label\n_atom_site_fract_x\n"
        "_atom_site_fract_y\n_atom_site_fract_z\n_atom_site_occupancy\n"
        "Cl1 0.5 0.5 0.5 1\nNa1 0 0 0 {}\nK1 0 0 0 {}\n"
    )
    crystals = [
        read_cif(text.format(share, 1 - share), disorder="average")
        for share in (1.0, 0.998, 0.5, 0.002, 0.0)
    ]
    assert crystals[0].occupancy is None and crystals[-1].occupancy is None
    assert [len(c.primitive()) for c in crystals] == [2, 3, 3, 3, 2]
    y = copy.deepcopy(model).float().predict(crystals)
    step = abs(y[0] - y[2])
    assert step > 0
    assert abs(y[0] - y[1]) < 0.1 * step and abs(y[3] - y[4]) < 0.1 * abs(y[4] - y[2])
    half = text.format(0.5, 0.5)
    for use in (model.predict, lambda text, **options: explain(model, text, **options)):
        with pytest.raises(CifError, match="partial occupancy"):
            use(half)
    by_text = explain(model, half, disorder="average").predicted
    assert by_text == pytest.approx(explain(model, crystals[2]).predicted)
    assert by_text == pytest.approx(model.predict(half, disorder="average"), rel=1e-4)
