"""Pairs of many crystals in columns: a batch of them is the crystals' own pairs."""

import contextlib
import dataclasses
import multiprocessing

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_crystals import SMALL, toy_crystals

from sitenet.config import InteractionFeature
from sitenet.crystal.crystal import Crystal
from sitenet.model.sitenet import SiteNet
from sitenet.pairs.columns import columns_of, joined, separated
from sitenet.pairs.finder import find_pairs
from sitenet.pairs.maker import PairMaker, pair_options
from sitenet.pairs.pairs import Pairs
from sitenet.pairs.store import PairStore, StoreWriter

KEY = "key"


def with_disorder(crystal):
    """The crystal with two species on its first place and a vacancy on its last."""
    first = np.r_[0, np.arange(len(crystal))]
    occupancy = np.r_[0.25, 0.75, np.ones(len(crystal) - 1)]
    occupancy[-1] *= 0.5
    numbers = crystal.numbers[first]
    numbers[0] = 3
    return Crystal(crystal.cell, crystal.frac[first], numbers, occupancy=occupancy)


CRYSTALS = [with_disorder(c) if k % 3 == 0 else c for k, c in enumerate(toy_crystals(9))]
OPTIONS = {
    "merged": {"max_sites": 12},
    "unmerged": {"max_sites": 12, "merge": False},
    "sine": {"max_sites": None, "merge": False, "sine": True},
    "sphere": {"images": "sphere", "radius": 5.0},
}


def store_of(options, crystals=CRYSTALS):
    pairs = [find_pairs(c, **options) for c in crystals]
    return pairs, PairStore.of([columns_of(p) for p in pairs])


STORES = {name: store_of(options) for name, options in OPTIONS.items()}


def assert_same(got, want):
    """Equal but for float32, the orbits, and species of no site."""
    for field in dataclasses.fields(Pairs):
        a, b = getattr(got, field.name), getattr(want, field.name)
        if field.name == "orbit" or not field.init:
            continue
        if not isinstance(b, torch.Tensor):
            assert a == b, field.name
        elif b.is_floating_point():
            assert a.dtype == torch.float32
            torch.testing.assert_close(a, b.float(), rtol=0, atol=0)
        else:
            assert a.dtype == b.dtype and torch.equal(a, b), field.name


@pytest.mark.parametrize("kind", OPTIONS)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(data=st.data())
def test_a_batch_is_the_crystals_own_pairs(kind, data):
    pairs, store = STORES[kind]
    order = data.draw(st.lists(st.integers(0, len(pairs) - 1), min_size=1, max_size=12))
    assert_same(store.batch(order), Pairs.batch([pairs[k] for k in order]))


@pytest.mark.parametrize("kind", OPTIONS)
def test_no_crystals_make_an_empty_batch(kind):
    _, store = STORES[kind]
    for empty in (store, PairStore.of([])):
        batch = empty.batch([])
        assert (batch.num_crystals, batch.num_rows, batch.num_pairs) == (0, 0, 0)
        assert batch.offsets.tolist() == batch.crystals.tolist() == [0]
    assert len(PairStore.of([])) == 0


def test_a_batch_lies_on_the_device_of_the_store(device):
    pairs, store = STORES["merged"]
    moved = store.to(device)
    batch = moved.batch(np.array([2, 0]))
    assert batch.sites.device.type == device.type
    assert_same(batch.to("cpu"), Pairs.batch([pairs[2], pairs[0]]))
    assert_same(moved.to("cpu").batch([1]), pairs[1])


def test_sizes_are_those_of_the_crystals():
    pairs, store = STORES["merged"]
    assert len(store) == len(CRYSTALS)
    assert store.num_pairs.tolist() == [p.num_pairs for p in pairs]
    assert store.num_sites.tolist() == [int(p.num_sites) for p in pairs]


@pytest.mark.parametrize("kind", ["merged", "sphere"])
def test_elements_are_those_of_the_batch(kind):
    _, store = STORES[kind]
    for crystals in ([0, 4, 1], [1], []):
        batch = store.batch(crystals)
        want = {*batch.numbers.tolist()}
        if batch.mixed_numbers is not None:
            want |= {*batch.mixed_numbers.tolist()}
        assert {*store.elements(crystals).tolist()} == want


def test_model_predicts_from_a_store_what_it_does_from_pairs():
    torch.manual_seed(0)
    model = SiteNet(SMALL).eval()
    pairs, store = STORES["merged"]
    want = model(Pairs.batch([p.to(dtype=torch.float32) for p in pairs]))
    torch.testing.assert_close(model(store.batch(range(len(pairs)))), want, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("changes", "want"),
    [
        ({}, {"max_sites": 12, "merge": True, "sine": False, "tolerance": 1e-3}),
        ({"max_sites": 0}, {"max_sites": 0, "merge": True, "sine": False, "tolerance": 1e-3}),
        ({"images": "sphere"}, {"images": "sphere", "radius": 8, "merge": True, "tolerance": 1e-3}),
    ],
)
def test_options_are_those_of_the_config(changes, want):
    assert pair_options(SMALL.replace(**changes)) == want


def test_options_given_go_before_the_config():
    assert pair_options(SMALL, 0)["max_sites"] == 0
    assert pair_options(SMALL, 30, False) == pair_options(SMALL.replace(max_sites=30, merge=False))
    sine = SMALL.replace(interaction_features=(InteractionFeature("coulomb_matrix"),))
    assert pair_options(sine)["sine"] and not pair_options(sine)["merge"]


def test_elements_that_a_model_does_not_know_are_refused_by_name():
    xenon, fermium = (Crystal(np.eye(3) * 5, [[0, 0, 0]], [z]) for z in (54, 100))
    with pytest.raises(ValueError, match="of Xe is not known; missing='mean'"):
        PairMaker(SMALL)(xenon)
    mean = PairMaker(SMALL.replace(missing="mean"))
    assert mean(xenon).keys() == columns_of(find_pairs(xenon)).keys()
    with pytest.raises(ValueError, match="the model has no features of Fm"):
        mean(fermium)
    assert mean.unusable(np.array([54, 100, 8])) == [100]
    assert PairMaker(SMALL.replace(site_features=()))(fermium)


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("channels", [0, 4])
def test_a_maker_finds_the_pairs_of_find_pairs(merge, channels):
    config = SMALL.replace(images="sphere", radius=4.0, spectrum_channels=channels, merge=merge)
    make = PairMaker(config)
    for crystal in (*toy_crystals(), dataclasses.replace(toy_crystals()[0], oxidation=None)):
        columns, expected = make(crystal), columns_of(find_pairs(crystal, **make.options))
        assert list(columns) == list(expected)
        for name, values in expected.items():
            assert columns[name].dtype == values.dtype, name
            assert np.array_equal(columns[name], values), name


@pytest.mark.parametrize("name", [*OPTIONS, "vectors"])
def test_joined_columns_come_apart_again(name):
    options = OPTIONS.get(name, OPTIONS["sphere"] | {"vectors": True})
    parts = [columns_of(p) for p in store_of(options)[0]]
    again = separated(joined(parts))
    assert len(again) == len(parts)
    for got, expected in zip(again, parts, strict=True):
        assert list(got) == list(expected)
        assert all(np.array_equal(got[column], expected[column]) for column in expected)
    assert separated(joined([])) == []


# ---------------------------------------------------------------------------------------------
# On disk


@pytest.fixture(params=["merged", "sine"])
def kept(request, tmp_path):
    """A folder with a store of all crystals, and the same in memory."""
    pairs, store = STORES[request.param]
    folder = tmp_path / "store"
    with StoreWriter(folder, KEY) as writer:
        for p in pairs:
            writer.add(columns_of(p))
        writer.facts = {"left_out": {"3": "why"}}
    return folder, store


def test_a_store_on_disk_is_mapped_and_equal(kept):
    folder, store = kept
    opened = PairStore.open(folder, KEY)
    assert opened.facts == {"left_out": {"3": "why"}}
    assert_same(opened.batch([4, 0, 4]), store.batch([4, 0, 4]))
    assert not list(folder.parent.glob(".*"))
    with open("/proc/self/maps") as maps:
        assert str(folder / "distance.bin") in maps.read()


def test_an_empty_store_can_be_kept(tmp_path):
    with StoreWriter(tmp_path / "store", KEY):
        pass
    assert len(PairStore.open(tmp_path / "store", KEY)) == 0


@pytest.mark.parametrize("name", ["distance", "sites", "numbers", "num_pairs"])
def test_a_truncated_altered_or_missing_file_is_named(kept, name):
    path = kept[0] / f"{name}.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-4])
    with pytest.raises(ValueError, match=rf"{name}\.bin has {len(content) - 4} bytes, expected"):
        PairStore.open(kept[0], KEY)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match=rf"{name}\.bin was altered"):
        PairStore.open(kept[0], KEY)
    path.unlink()
    with pytest.raises(ValueError, match=rf"{name}\.bin is missing"):
        PairStore.open(kept[0], KEY)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"facts": {}, "columns": {"x": 1}}'])
def test_what_says_nothing_of_the_columns_is_named(kept, content):
    (kept[0] / "store.json").write_text(content)
    with pytest.raises(ValueError, match=r"store\.json cannot be read"):
        PairStore.open(kept[0], KEY)


def test_a_store_of_something_else_is_refused(kept):
    with pytest.raises(ValueError, match="other data or settings"):
        PairStore.open(kept[0], "another key")


def test_an_error_leaves_no_store_and_the_old_one_alone(kept):
    folder = kept[0]
    with contextlib.suppress(ZeroDivisionError), StoreWriter(folder, "new") as writer:
        writer.add(columns_of(STORES["merged"][0][0]))
        raise ZeroDivisionError
    assert PairStore.open(folder, KEY)
    assert [p.name for p in folder.parent.iterdir()] == ["store"]


def _sum(folder, results):
    store = PairStore.open(folder, KEY)
    results.put(float(store.columns["distance"].double().sum()))


def test_processes_share_a_store(kept):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=_sum, args=(kept[0], results)) for _ in range(2)]
    for worker in workers:
        worker.start()
    found = [results.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join(60)
    want = float(kept[1].columns["distance"].double().sum())
    assert found == pytest.approx([want, want])
