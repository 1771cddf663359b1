"""What a model attended to: the same merged or not, and as the published analysis defines it."""

import sys

import numpy as np
import pytest
import torch
from golden_files import FILES, inputs, pairs_of, read

from sitenet.config import SiteNetConfig
from sitenet.crystal.crystal import Crystal
from sitenet.crystal.elements import SYMBOLS
from sitenet.inference import explain as explanation
from sitenet.inference.attention_histograms import (
    COARSE,
    WEIGHT_EDGES,
    distance_bin,
    weight_titles,
)
from sitenet.inference.explain import explain, explain_each
from sitenet.inference.explanation import Explanation
from sitenet.model.ensemble import Ensemble
from sitenet.model.sitenet import SiteNet
from sitenet.pairs.pairs import Pairs

SMALL = SiteNetConfig(
    embedding=6,
    heads=2,
    blocks=3,
    site_dim=3,
    interaction_dim=2,
    hidden=(7,),
    pre_pool=(5,),
    post_pool=(4,),
    max_sites=40,
    tolerance=1e-6,
)
RANDOM = np.random.default_rng(1)
CRYSTALS = [
    Crystal(5.64 * np.eye(3), [[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0],
            [0.5, 0, 0], [0, 0.5, 0], [0, 0, 0.5], [0.5, 0.5, 0.5]], [11] * 4 + [17] * 4,
            name="NaCl"),
    Crystal(3.9 * np.eye(3), [[0, 0, 0], [0.5] * 3, [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]],
            [38, 22, 8, 8, 8], name="SrTiO3"),
    Crystal(6 * np.eye(3) + RANDOM.uniform(-1, 1, (3, 3)), RANDOM.random((6, 3)),
            [8, 8, 14, 14, 3, 3], name="random"),
    Crystal(3.35 * np.eye(3), [[0, 0, 0]], [84], name="Po"),
]  # fmt: skip
ids = [c.name for c in CRYSTALS]


def model_of(config=SMALL):
    """A float64 model with random weights, large enough that attention is not even."""
    torch.manual_seed(0)
    model = SiteNet(config).double()
    for block in model.blocks:
        torch.nn.init.normal_(block.logits.weight, std=2)
    model.element_table.normal_()
    return model


def close(a, b):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def close_columns(a, b):
    assert list(a) == list(b)
    for name in a:
        if a[name].dtype.kind == "f":
            close(a[name], b[name])
        else:
            assert (a[name] == b[name]).all(), name


@pytest.mark.parametrize("changes", [{}, {"images": "sphere", "radius": 6.0}, {"k_softmax": 5}])
@pytest.mark.parametrize("crystal", CRYSTALS, ids=ids)
@pytest.mark.filterwarnings("ignore:this model runs without the fused kernels")
def test_merging_changes_nothing(crystal, changes):
    model = model_of(SMALL.replace(**changes))
    merged, single = (explain(model, crystal, primitive=False, merge=m) for m in (True, False))
    assert single.pairs.num_pairs == (single.pairs.multiplicity).sum()
    if "k_softmax" not in changes and crystal.name != "random":
        assert merged.pairs.num_pairs < single.pairs.num_pairs / 2
    close(merged.predicted, single.predicted)
    close(merged.long_range, single.long_range)
    close(merged.received, single.received)
    close(merged.kept, single.kept)
    for rows in ("sites", "elements", "distances"):
        close_columns(merged.columns(rows), single.columns(rows))
    a, b = merged.by_distance, single.by_distance
    assert (a.counts == b.counts).all() and (a.self_counts == b.self_counts).all()
    assert a.sites == b.sites == len(crystal.numbers)
    close(a.pairs, b.pairs)
    close(a.attention, b.attention)
    close(a.self_attention, b.self_attention)


@pytest.mark.parametrize("crystal", CRYSTALS, ids=ids)
def test_against_loops_over_pairs_of_sites(crystal):
    """The definitions, pair by pair."""
    e = explain(model_of(), crystal, primitive=False, merge=False)
    n, shape = len(crystal.numbers), (3, 2)
    longest, received, kept = np.zeros(shape), np.zeros((n, *shape)), np.zeros((n, *shape))
    by_elements, even = {}, {}
    counts = np.zeros_like(e.by_distance.counts)
    for i in range(n):
        begin, end = e.pairs.offsets[i : i + 2].tolist()
        close(e.weights[begin:end].sum(0), 1)
        for p in range(begin, end):
            j, d, w = int(e.pairs.sites[p]), float(e.pairs.distance[p]), e.weights[p]
            longest = np.maximum(longest, d * w)
            received[j] += w
            neighbour = SYMBOLS[crystal.numbers[j]]
            if d == 0:
                kept[i] += w
                neighbour = "itself"
            else:
                for b, h in np.ndindex(shape):
                    place = np.searchsorted(WEIGHT_EDGES, w[b, h], "right") - 1
                    if place >= 0:
                        counts[b, h, distance_bin(d), place] += 1
            key = SYMBOLS[crystal.numbers[i]], neighbour
            by_elements[key] = by_elements.get(key, 0) + w
            even[key] = even.get(key, 0) + 1 / (end - begin)
    close(e.long_range, longest)
    close(e.received, received)
    close(e.kept, kept)
    close(e.received.mean(0), 1)
    assert (e.by_distance.counts == counts).all()
    columns = e.columns("elements")
    assert set(zip(columns["element"], columns["neighbour"], strict=True)) == set(by_elements)
    for k, key in enumerate(zip(columns["element"], columns["neighbour"], strict=True)):
        sites = sum(SYMBOLS[z] == key[0] for z in crystal.numbers)
        assert columns["sites"][k] == sites
        close(columns["attention"][k], by_elements[key].mean() / sites)
        close(columns["relative"][k], by_elements[key].mean() / even[key])
        close(columns["block3_head2"][k], by_elements[key][2, 1] / sites)
    close((columns["attention"] * columns["sites"]).sum(), n)


def test_distances_add_up_to_elements():
    e = explain(model_of(), CRYSTALS[0], max_sites=64, primitive=False)
    fine, whole = e.columns("distances"), e.columns("elements")
    for k in range(len(whole["element"])):
        mine = (fine["element"] == whole["element"][k]) & (
            fine["neighbour"] == whole["neighbour"][k]
        )
        close(fine["attention"][mine].sum(), whole["attention"][k])
        close(fine["pairs"][mine].sum(), whole["pairs"][k])
    # Na's six Cl at 2.82 angstrom, in the bin from 2.5 to 3.
    nearest = (fine["element"] == "Na") & (fine["neighbour"] == "Cl")
    assert fine["distance"][nearest][0] == 2.75 and fine["pairs"][nearest][0] == 6
    assert distance_bin(np.array([2.82]))[0] // COARSE == 5


@pytest.mark.skipif(not FILES, reason="no golden files")
@pytest.mark.parametrize("path", FILES, ids=lambda p: p.stem)
def test_long_range_of_the_published_weights(path):
    """Coefficients and sums per crystal from the published code's own attention weights."""
    z, model = read(path)
    stored = pairs_of(z, "cpu")
    distance = torch.as_tensor(z["interaction"][:, 0], dtype=torch.float64)
    weights = []
    with torch.no_grad():
        model.encode(*inputs(z, model, stored, torch.float64), stored, weights)
    weights = torch.stack(weights, 1).numpy()
    blocks, heads = weights.shape[1:]
    published = np.stack([z[f"attention.{b}"] for b in range(blocks)], 1)
    pair = 0
    for crystal, (n, images) in enumerate(zip(z["prim_size"], z["images"], strict=True)):
        part = slice(pair, pair + n * n * images)
        first = int(stored.crystals[crystal])
        pairs = Pairs(
            offsets=torch.arange(n + 1) * n * images,
            sites=stored.sites[part] - first,
            distance=distance[part],
            multiplicity=stored.multiplicity[part],
            numbers=stored.numbers[first : first + n],
            oxidation=stored.oxidation[first : first + n],
            count=torch.ones(n, dtype=torch.int32),
            orbit=torch.arange(n, dtype=torch.int32),
            crystals=torch.tensor([0, n]),
            num_sites=torch.tensor([n]),
            images=torch.tensor([images]),
        )
        e = Explanation("", None, pairs, weights[part], np.zeros(1), [], np.zeros(1))
        want = published[part].reshape(n, n, images, blocks, heads).astype(float)
        d = distance[part].numpy().reshape(n, n, images, 1, 1)
        # Weights of the paper's cases are stored in float32.
        np.testing.assert_allclose(e.long_range, (d * want).max((0, 1, 2)), rtol=2e-7)
        np.testing.assert_allclose(e.received, want.sum((0, 2)), rtol=1e-6, atol=1e-9)
        pair = part.stop
    assert pair == len(distance)


def test_many_are_the_sum_of_each(monkeypatch):
    monkeypatch.setattr(explanation, "MAX_PAIRS", 500)  # several batches
    model = model_of()
    each = [explain(model, c, primitive=False) for c in CRYSTALS]
    many = explain(model, iter(CRYSTALS), primitive=False)
    assert many.names == ids
    close(many.long_range, np.stack([e.long_range for e in each]))
    close(many.predicted, np.stack([e.predicted for e in each]))
    assert (many.by_distance.counts == sum(e.by_distance.counts for e in each)).all()
    close(many.by_distance.attention, sum(e.by_distance.attention for e in each))
    elements = many.columns("elements")
    oxygen = (elements["element"] == "O") & (elements["neighbour"] == "O")
    parts = [e.columns("elements") for e in (each[1], each[2])]
    at = [(p["element"] == "O") & (p["neighbour"] == "O") for p in parts]
    total = sum((p["attention"] * p["sites"])[a] for p, a in zip(parts, at, strict=True))
    close(elements["attention"][oxygen], total / 5)
    assert elements["sites"][oxygen] == 5
    crystals = many.columns()
    assert list(crystals["name"]) == ids
    close(crystals["long_range_block2_head1"], many.long_range[:, 1, 0])
    close(crystals["target"], many.predicted[:, 0])


def test_explaining_an_iterator_holds_few_crystals(monkeypatch):
    monkeypatch.setattr(explanation, "MAX_PAIRS", 1)
    taken = []
    stream = explain_each(model_of(), (taken.append(c) or c for c in CRYSTALS), primitive=False)
    next(stream)
    assert len(taken) == 1


def test_no_crystals():
    many = explain(model_of(), [])
    assert many.long_range.shape == (0, 3, 2) and many.predicted.shape == (0, 1)
    assert len(many.columns()["name"]) == len(many.columns("elements")["element"]) == 0


def test_primitive_cell_and_path(tmp_path):
    model = model_of()
    e = explain(model, CRYSTALS[0])
    assert len(e.crystal.numbers) == 2 and e.name == "NaCl"
    path = tmp_path / "salt.cif"
    path.write_text(
        "data_x\n_cell_length_a 5.64\n_cell_length_b 5.64\n_cell_length_c 5.64\n"
        "_cell_angle_alpha 90\n_cell_angle_beta 90\n_cell_angle_gamma 90\n"
        "_space_group_name_H-M_alt 'F m -3 m'\nloop_\n_atom_site_label\n_atom_site_fract_x\n"
        "_atom_site_fract_y\n_atom_site_fract_z\nNa 0 0 0\nCl 0.5 0.5 0.5\n"
    )
    close(np.sort(explain(model, path).received, 0), np.sort(e.received, 0))
    larger = explain(model, path, max_sites=100)
    assert larger.pairs.multiplicity.sum() > 2 * e.pairs.multiplicity.sum()


def test_tables(monkeypatch):
    e = explain(model_of(), CRYSTALS[1], primitive=False)
    pairs = e.columns()
    assert e.table().equals(e.table("pairs")) and len(e.table()) == e.pairs.num_pairs
    assert list(pairs)[:4] == ["site", "element", "neighbour", "neighbour_element"]
    o = pairs["element"] == "O"
    assert set(pairs["site"][o]) == {2} and set(pairs["neighbour"][o]) == {0, 1, 2}
    close((pairs["multiplicity"] * pairs["block1_head1"])[o].sum(), 1)
    sites = e.table("sites")
    assert list(sites["element"]) == ["Sr", "Ti", "O", "O", "O"]
    close(sites[["x", "y", "z"]], CRYSTALS[1].frac)
    with pytest.raises(ValueError, match=r"rows must be 'pairs', .* got 'blocks'"):
        e.columns("blocks")
    with pytest.raises(ValueError, match="rows must be 'crystals'"):
        explain(model_of(), []).columns("sites")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"pip install 'sitenet\[table\]'"):
        e.table()


def test_unknown_element_is_refused():
    model = SiteNet(SMALL)
    model.element_table[54] = torch.nan
    with pytest.raises(ValueError, match="Xe"):
        explain(model, Crystal(4 * np.eye(3), [[0, 0, 0]], [54]))


def test_sites_that_species_share_are_named_whole():
    alloy = Crystal(
        3.6 * np.eye(3),
        [[0, 0, 0], [0, 0, 0], [0.5, 0.5, 0.5]],
        [26, 28, 8],
        occupancy=[0.25, 0.75, 1],
    )
    model = model_of()
    e = explain(model, alloy, primitive=False)
    sites = e.columns("sites")
    assert list(sites["element"]) == ["Ni0.75Fe0.25", "O"]
    close(np.stack([sites[a] for a in "xyz"], 1), [[0, 0, 0], [0.5] * 3])
    assert set(e.columns()["element"]) == {"Ni0.75Fe0.25", "O"}
    both = explain(model, [alloy, CRYSTALS[1]], primitive=False)
    for each in (e, both):
        elements = each.columns("elements")
        named = set(zip(elements["element"], elements["neighbour"], strict=True))
        assert ("Ni0.75Fe0.25", "O") in named and ("O", "Ni0.75Fe0.25") in named
        assert not {"Fe", "Ni"} & {name for pair in named for name in pair}


def test_one_structure_or_several_as_for_predict():
    model = model_of()
    one = explain(model, CRYSTALS[3], max_sites=0)
    assert isinstance(one, Explanation) and one.members == 1
    assert explain(model, np.array([CRYSTALS[3]], dtype=object), max_sites=0).names == ["Po"]
    with pytest.raises(TypeError, match=r"structure 1: expected a Crystal, .*got int"):
        explain(model, [CRYSTALS[3], 7])


def test_blocks_of_an_ensemble_are_titled_by_member():
    assert weight_titles(2, 1) == ["block 1, head 1", "block 2, head 1"]
    assert weight_titles(4, 1, members=2)[1:3] == [
        "member 1, block 2, head 1",
        "member 2, block 1, head 1",
    ]
    model = Ensemble([model_of(), model_of()])
    assert explain(model, CRYSTALS[3]).members == explain(model, []).members == 2


def test_plot(tmp_path):
    pytest.importorskip("matplotlib")
    many = explain(model_of(), CRYSTALS, primitive=False)
    figure = many.plot(tmp_path / "attention.png", title="four crystals")
    assert figure.get_suptitle() == "four crystals"
    assert (tmp_path / "attention.png").stat().st_size > 1000
