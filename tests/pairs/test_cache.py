"""Pairs kept beside a dataset: mapped the second time, rebuilt when they must be, shared."""

import errno
import json
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_crystals import SMALL, cif_of, toy_dataset, write_folder

from sitenet.crystal.crystal import Crystal
from sitenet.data.prepare import prepare
from sitenet.data.prepared import load_dataset
from sitenet.pairs import cache
from sitenet.pairs.cache import pairs_of_dataset
from sitenet.pairs.finder import find_pairs
from sitenet.pairs.maker import pair_options
from sitenet.pairs.pairs import Pairs
from sitenet.pairs.store import PairStore
from sitenet.system.files import locked


@pytest.fixture
def prepared(tmp_path):
    write_folder(tmp_path / "in", 8)
    prepare(tmp_path / "in", tmp_path / "data.parquet")
    return load_dataset(tmp_path / "data.parquet")


@pytest.fixture
def computed(monkeypatch):
    """Names of the crystals whose pairs this process computed."""
    names, find = [], cache._Finder.__call__

    def noted(self, crystals):
        names.extend(c.name for c in crystals)
        return find(self, crystals)

    monkeypatch.setattr(cache._Finder, "__call__", noted)
    return names


def own(store, data, config=SMALL):
    """Whether the store holds the pairs of these crystals."""
    want = Pairs.batch([find_pairs(c, **pair_options(config)) for c in data.crystals])
    got = store.batch(range(len(data)))
    return torch.equal(got.sites, want.sites) and torch.equal(got.distance, want.distance.float())


def test_pairs_in_memory(computed):
    data, progress = toy_dataset(6), []
    kept, store = pairs_of_dataset(data, SMALL, advance=progress.append)
    assert kept is data and own(store, data)
    assert computed == data.ids and sum(progress) == 6


@pytest.mark.parametrize("workers", [1, 2])
def test_the_second_time_pairs_are_mapped(prepared, computed, workers):
    _, store = pairs_of_dataset(prepared, SMALL, workers)
    assert own(store, prepared)
    assert computed == (prepared.ids if workers == 1 else [])
    computed.clear()
    progress = []
    _, again = pairs_of_dataset(prepared, SMALL, advance=progress.append)
    assert computed == [] and sum(progress) == 8
    assert own(again, prepared)
    (folder,) = prepared.path.with_name("data.pairs").glob("[!.]*")
    with open("/proc/self/maps") as maps:
        assert str(folder / "distance.bin") in maps.read()


def test_a_changed_setting_has_its_own_and_an_equal_one_not(prepared, computed):
    for changes, count in (
        ({}, 8),
        ({"max_sites": 20}, 8),
        ({"images": "sphere", "radius": 4.0}, 8),
        ({"merge": False}, 8),
        ({"blocks": 3, "epochs": 7, "missing": "mean"}, 0),
        ({"max_sites": 20}, 0),
    ):
        computed.clear()
        config = SMALL.replace(**changes)
        assert own(pairs_of_dataset(prepared, config)[1], prepared, config)
        assert len(computed) == count, changes


@pytest.mark.parametrize("damage", ["truncate", "alter", "remove", "store.json"])
def test_a_damaged_cache_is_named_and_written_again(prepared, computed, damage):
    pairs_of_dataset(prepared, SMALL)
    (folder,) = prepared.path.with_name("data.pairs").glob("[!.]*")
    path = folder / ("store.json" if damage == "store.json" else "distance.bin")
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content[:-1] + (b"" if damage == "truncate" else b"\x01"))
    computed.clear()
    with pytest.warns(UserWarning, match=f"cached pairs are computed again: .*{path.name}"):
        _, store = pairs_of_dataset(prepared, SMALL)
    assert computed == prepared.ids and own(store, prepared)
    computed.clear()
    pairs_of_dataset(prepared, SMALL)
    assert computed == []


def test_changed_content_has_its_own(tmp_path, computed, prepared):
    pairs_of_dataset(prepared, SMALL)
    write_folder(tmp_path / "in", 8, seed=1)
    prepare(tmp_path / "in", prepared.path)
    computed.clear()
    data = load_dataset(prepared.path)
    assert own(pairs_of_dataset(data, SMALL)[1], data)
    assert len(computed) == 8


@pytest.mark.parametrize("error", [errno.EROFS, errno.EACCES, errno.ENOSPC])
@pytest.mark.parametrize("name", ["locked", "StoreWriter", "Path.mkdir"])
def test_a_cache_that_cannot_be_written_is_done_without(
    prepared, computed, monkeypatch, name, error
):
    def fails(*_, **__):
        raise OSError(error, os.strerror(error))

    want = prepared.ids
    with monkeypatch.context() as patched:
        patched.setattr(cache if "." not in name else Path, name.rpartition(".")[2], fails)
        with pytest.warns(UserWarning, match="kept in memory: their cache .* cannot be written"):
            kept, store = pairs_of_dataset(prepared, SMALL)
    assert kept.ids == want and own(store, kept)
    # One that is complete is used.
    pairs_of_dataset(prepared, SMALL)
    computed.clear()
    with monkeypatch.context() as patched:
        patched.setattr(cache if "." not in name else Path, name.rpartition(".")[2], fails)
        _, store = pairs_of_dataset(prepared, SMALL)
    assert computed == [] and own(store, prepared)


def test_what_a_killed_process_left_is_removed(prepared):
    pairs_of_dataset(prepared, SMALL)
    folder = prepared.path.with_name("data.pairs")
    for name in (".0123.tmp", ".4567.tmp"):
        (folder / name).mkdir()
        (folder / name / "distance.bin").touch()
    with locked(folder / ".4567.lock"):
        pairs_of_dataset(prepared, SMALL.replace(max_sites=20))
        assert [p.name for p in folder.glob(".*.tmp")] == [".4567.tmp"]


def test_crystals_without_a_value_do_not_cost_the_cache(prepared, computed):
    prepared.targets[2] = np.nan
    for count in (7, 0):
        computed.clear()
        kept, store = pairs_of_dataset(prepared.with_values(), SMALL)
        assert len(kept) == 7 and own(store, kept) and len(computed) == count


def test_an_interrupted_one_leaves_nothing_to_be_taken_for_whole(prepared, computed, monkeypatch):
    def stop(done):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pairs_of_dataset(prepared, SMALL, advance=stop)
    assert not list(prepared.path.with_name("data.pairs").glob("[!.]*"))
    assert own(pairs_of_dataset(prepared, SMALL)[1], prepared)


def test_what_a_model_cannot_take_is_left_out(tmp_path, computed):
    """Two sites in one place have no pairs with any model; xenon has features with missing: mean
    alone, fermium has none."""
    write_folder(tmp_path / "in", 3)
    cell = np.eye(3) * 5
    for name, numbers, frac in (
        ("c0", [8, 8], [[0, 0, 0]] * 2),
        ("c1", [54], [[0, 0, 0]]),
        ("c2", [100], [[0, 0, 0]]),
    ):
        crystal = Crystal(cell, frac, numbers, name=name)
        (tmp_path / "in" / f"{name}.cif").write_text(cif_of(crystal))
    write_folder(tmp_path / "more", 5, table="")
    for k in (3, 4):
        (tmp_path / "more" / f"c{k}.cif").rename(tmp_path / "in" / f"c{k}.cif")
    rows = "".join(f"c{k},{k}\n" for k in range(5))
    (tmp_path / "in" / "targets.csv").write_text("id,y\n" + rows)
    prepare(tmp_path / "in", tmp_path / "data.parquet")
    data = load_dataset(tmp_path / "data.parquet")
    data.left_out = []
    for source in (data, data.select(range(len(data)))):
        for missing, ids in (("error", ["c3", "c4"]), ("mean", ["c1", "c3", "c4"])):
            config = SMALL.replace(missing=missing)
            for _ in range(2):
                kept, store = pairs_of_dataset(source, config)
                assert kept.ids == ids and own(store, kept)
                assert kept.targets[:, 0].tolist() == [float(name[1]) for name in ids]
                reasons = {x.id: x.reason for x in kept.left_out}
                assert "no features of Fm" in reasons["c2"] or "Fm is not known" in reasons["c2"]
                assert ("c1" in reasons) == (missing == "error")
                kinds = {x.id: x.kind for x in kept.left_out}
                assert kinds["c2"] == "element without features"


def _use(data, results):
    torch.set_num_threads(1)  # a forked process that starts a second thread hangs
    names = []
    original = cache._Finder.__call__
    cache._Finder.__call__ = lambda self, c: (names.extend(c), original(self, c))[1]
    _, store = pairs_of_dataset(data, SMALL)
    results.put((len(names), own(store, data)))


def test_processes_wait_for_one_of_them(prepared):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=_use, args=(prepared, results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    computed = sorted(results.get(timeout=60) for _ in workers)
    for worker in workers:
        worker.join(60)
    assert computed == [(0, True), (0, True), (8, True)]
    (folder,) = prepared.path.with_name("data.pairs").glob("[!.]*")
    assert json.loads((folder / "store.json").read_text())["key"] == folder.name
    assert PairStore.open(folder, folder.name)
