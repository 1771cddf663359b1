"""Crystals from sources, in arrays: what is left out, and how they are divided."""

import gzip

import numpy as np
import pytest
from toy_crystals import cif_of, toy_crystals, toy_dataset, toy_targets, write_folder

from sitenet.data.dataset import Dataset, LeftOut, Preparation, read, split, write_left_out
from sitenet.data.readers import open_source
from sitenet.data.source import Record


def test_crystals_come_with_ids_and_targets(tmp_path):
    crystals = write_folder(tmp_path)
    progress = []
    data = read(open_source(tmp_path), advance=progress.append)
    assert data.ids == [c.name for c in data.crystals] == [c.name for c in crystals]
    assert (data.names, data.units) == (("size_A",), ("Å",))
    np.testing.assert_allclose(data.targets[:, 0], toy_targets(crystals), atol=1e-6)
    for got, want in zip(data.crystals, crystals, strict=True):
        assert len(got) == len(want) and got.volume == pytest.approx(want.volume)
    assert sum(progress) == len(data) == 12
    assert (data.left_out, data.key, data.path) == ([], None, None)


def test_what_cannot_be_used_is_listed_with_its_reason(tmp_path):
    write_folder(tmp_path, 5)
    (tmp_path / "c1.cif").unlink()
    (tmp_path / "c3.cif").write_text("data_x\n_cell_length_a 4\n")
    (tmp_path / "c4.cif").write_bytes(gzip.compress(b"data_")[:-4])
    data = read(open_source(tmp_path))
    assert data.ids == ["c0", "c2"]
    assert data.targets.shape == (2, 1)
    assert [(x.id, x.where) for x in data.left_out] == [
        (f"c{k}", f"{tmp_path / 'targets.csv'} row {k + 2}") for k in (1, 3, 4)
    ]
    for x, reason in zip(data.left_out, ("No such file", "cell", "gzip"), strict=True):
        assert reason in x.reason and f"{x.id}.cif" in x.reason
    write_left_out(data.left_out, tmp_path / "left.csv")
    lines = (tmp_path / "left.csv").read_text().splitlines()
    assert lines[0] == "id,where,reason,kind" and len(lines) == 4


def test_an_unforeseen_error_ends_no_run(tmp_path, monkeypatch):
    write_folder(tmp_path, 3)
    original = Record.crystal

    def fails(self, disorder):
        if self.id == "c1":
            raise ZeroDivisionError("unforeseen")
        return original(self, disorder)

    monkeypatch.setattr(Record, "crystal", fails)
    data = read(open_source(tmp_path))
    assert data.ids == ["c0", "c2"]
    assert data.left_out[0].reason == "ZeroDivisionError: unforeseen"


def test_cells_are_made_primitive_unless_they_are_to_stay(tmp_path):
    (crystal,) = toy_crystals(1)
    double = crystal.supercell(2 * len(crystal))
    double.name = "double"
    (tmp_path / "double.cif").write_text(cif_of(double))
    sites = [
        len(read(open_source(tmp_path, ()), Preparation(primitive)).crystals[0])
        for primitive in (True, False)
    ]
    assert sites == [len(crystal), 2 * len(crystal)]


def test_disorder_is_refused_or_averaged(tmp_path):
    write_folder(tmp_path, 2)
    text = (tmp_path / "c0.cif").read_text()
    rows = text.splitlines()
    first = rows.index("_atom_site_fract_z") + 1
    rows.insert(first, "_atom_site_occupancy")
    rows[first + 1 :] = [f"{row} 0.5" for row in rows[first + 1 :]]
    (tmp_path / "c0.cif").write_text("\n".join([*rows, ""]))
    data = read(open_source(tmp_path))
    assert data.ids == ["c1"]
    assert 'disorder="average"' in data.left_out[0].reason
    data = read(open_source(tmp_path), Preparation(disorder="average"))
    assert data.ids == ["c0", "c1"]
    assert (data.crystals[0].occupancy == 0.5).all()


def test_parallel_is_serial(tmp_path):
    write_folder(tmp_path, 150)
    (tmp_path / "c70.cif").unlink()
    serial, parallel = (read(open_source(tmp_path), workers=n) for n in (1, 2))
    assert parallel.ids == serial.ids
    assert parallel.left_out == serial.left_out
    assert np.array_equal(parallel.targets, serial.targets)
    for a, b in zip(parallel.crystals, serial.crystals, strict=True):
        assert np.array_equal(a.cell, b.cell) and np.array_equal(a.frac, b.frac)


def test_targets_are_chosen_by_name():
    data = toy_dataset(3, names=("a_eV", "b_eV"))
    chosen = data.with_targets(["b_eV"])
    assert (chosen.names, chosen.units) == (("b_eV",), ("Å",))
    assert np.array_equal(chosen.targets, data.targets[:, 1:])
    assert np.array_equal(data.with_targets(["b_eV", "a_eV"]).targets, data.targets[:, ::-1])
    with pytest.raises(ValueError, match="which target to learn; there is a_eV, b_eV"):
        data.with_targets(None)
    with pytest.raises(ValueError, match="no target c, d; there is a_eV, b_eV"):
        data.with_targets(["c", "a_eV", "d"])
    assert chosen.with_targets(None) is chosen


# ---------------------------------------------------------------------------------------------
# Splits


def labelled(labels):
    n = len(labels)
    return Dataset([""] * n, [None] * n, np.zeros((n, 1)), ("y",), ("",), list(labels))


def all_of(parts):
    return sorted([*parts.train, *parts.valid, *parts.test])


def test_a_split_is_random_and_of_the_seed():
    data = labelled([""] * 50)
    parts = split(data, 0.1, 0.2, seed=1)
    assert [len(parts.train), len(parts.valid), len(parts.test)] == [35, 5, 10]
    assert all_of(parts) == list(range(50))
    again, other = split(data, 0.1, 0.2, seed=1), split(data, 0.1, 0.2, seed=2)
    for name in ("train", "valid", "test"):
        assert np.array_equal(getattr(parts, name), getattr(again, name))
        assert not np.array_equal(getattr(parts, name), getattr(other, name))
    assert list(parts.test) != sorted(range(40, 50))


def test_parts_that_are_asked_for_hold_one_crystal_at_least():
    parts = split(labelled([""] * 4), 0.1, 0.1, seed=0)
    assert [len(parts.train), len(parts.valid), len(parts.test)] == [2, 1, 1]
    parts = split(labelled([""] * 4), 0, 0, seed=0)
    assert [len(parts.train), len(parts.valid), len(parts.test)] == [4, 0, 0]


def test_a_fold_is_the_test():
    data = labelled(["1", "2", "3", "2"] * 5)
    parts = split(data, 0.1, 0.9, seed=0, fold="2")
    assert parts.test.tolist() == [k for k in range(20) if k % 2]
    assert len(parts.valid) == 2
    assert all_of(parts) == list(range(20))
    with pytest.raises(
        ValueError, match="no crystal is in fold '7'; the split column says 1, 2, 3"
    ):
        split(data, 0.1, 0.1, 0, fold="7")
    with pytest.raises(ValueError, match="the split column says nothing"):
        split(labelled([""] * 3), 0.1, 0.1, 0, fold="7")


@pytest.mark.parametrize("valid", ["valid", "val", "Validation"])
def test_a_split_column_holds(valid):
    data = labelled(["Train", valid, "test", "other", "train", ""])
    parts = split(data, 0.5, 0.5, seed=0)
    assert [x.tolist() for x in (parts.train, parts.valid, parts.test)] == [[0, 4], [1], [2]]


def test_a_part_that_the_column_does_not_name_is_drawn_from_what_is_learned_from():
    parts = split(labelled(["train"] * 8 + ["test"] * 2), 0.2, 0.5, seed=0)
    assert parts.test.tolist() == [8, 9]
    assert len(parts.valid) == 2 and len(parts.train) == 6
    parts = split(labelled(["train"] * 8 + ["valid"] * 2), 0.2, 0.2, seed=0)
    assert parts.valid.tolist() == [8, 9]
    assert len(parts.test) == 2 and len(parts.train) == 6


def grouped(sizes, seed=0):
    """Groups of equal crystals of these sizes, in random order."""
    groups = np.repeat(np.arange(len(sizes)), sizes)
    groups = np.random.default_rng(seed).permutation(groups)
    data = labelled([""] * len(groups))
    first = np.array([np.flatnonzero(groups == g)[0] for g in groups])
    data._groups["structure"] = first
    return data, groups


@pytest.mark.parametrize("seed", range(4))
def test_equal_crystals_are_on_one_side(seed):
    data, groups = grouped([1] * 40 + [2] * 15 + [7] * 3 + [30], seed)
    parts = split(data, 0.1, 0.2, seed=seed, group="structure")
    assert all_of(parts) == list(range(len(data)))
    pieces = [set(groups[index]) for index in (parts.train, parts.valid, parts.test)]
    assert sum(map(len, pieces)) == len(set().union(*pieces)) == 59
    # There are single crystals enough to fill up what whole groups leave.
    assert (len(parts.valid), len(parts.test)) == (round(12.1), round(24.2))
    again = split(data, 0.1, 0.2, seed=seed, group="structure")
    assert np.array_equal(parts.test, again.test) and np.array_equal(parts.valid, again.valid)


def test_without_equal_crystals_groups_change_nothing():
    for labels, fold in (([""] * 50, None), (["1", "2"] * 25, "1"), (["train"] * 50, None)):
        data = labelled(labels)
        data._groups = {"structure": np.arange(50), "formula": np.arange(50)}
        want = split(data, 0.1, 0.2, 3, fold)
        for group in ("structure", "formula"):
            got = split(data, 0.1, 0.2, 3, fold, group)
            for name in ("train", "valid", "test"):
                assert np.array_equal(getattr(got, name), getattr(want, name))


@pytest.mark.parametrize(
    ("sizes", "share", "expected"),
    [
        ([2] * 6, 0.1, 2),  # one crystal is asked for, one group is the least
        ([3] * 10, 1 / 6, 6),  # 5 crystals: 6 are nearer than 3
        ([4] * 10, 0.125, 4),  # 5 crystals: 4 are nearer than 8
        ([10, 1, 1], 0.5, 2),  # 6 crystals: the large group stays
        ([2], 0, 0),
    ],
)
def test_parts_are_as_near_to_their_size_as_whole_groups_allow(sizes, share, expected):
    data, _ = grouped(sizes)
    for seed in range(5):
        assert len(split(data, 0, share, seed, group="structure").test) == expected


def test_one_group_leaves_nothing_to_learn_from():
    data, _ = grouped([5])
    with pytest.raises(
        ValueError, match=r"5 for the test; equal crystals are kept together \(group"
    ):
        split(data, 0, 0.2, 0, group="structure")


def test_an_empty_dataset_is_refused_with_the_reasons():
    data = labelled([])
    with pytest.raises(ValueError, match=r"no crystal can be used$"):
        split(data, 0.1, 0.1, 0)
    data.left_out = [
        LeftOut("a", "t.csv row 2", "no H", "element without features"),
        LeftOut("b", "t.csv row 3", "b.cif: no cell", "unreadable CIF"),
        LeftOut("c", "t.csv row 4", "no He", "element without features"),
    ]
    reasons = (
        r"3 left out \(2 x element without features, 1 x unreadable CIF\); "
        r"the first: t.csv row 2: no H$"
    )
    with pytest.raises(ValueError, match=rf"no crystal can be used; {reasons}"):
        split(data, 0.1, 0.1, 0)


def test_crystals_without_a_value_are_left_out():
    data = toy_dataset(5, names=("a", "b"))
    data.targets[[1, 3]] = np.nan
    data.targets[2, 0] = np.nan
    data.key, data.path = "k", "data.parquet"
    kept = data.with_values()
    assert kept.ids == ["c0", "c2", "c4"]
    assert kept.left_out == [
        LeftOut(name, name, "no value of a, b", "no target value") for name in ("c1", "c3")
    ]
    assert kept.path == data.path and kept.key != data.key  # so that their pairs are cached
    assert kept.with_values() is kept
    assert data.with_targets([]).with_values().ids == data.ids


def test_nothing_left_to_learn_from_is_an_error():
    for data, fold in ((labelled(["1", "1"]), "1"), (labelled([""] * 2), None)):
        with pytest.raises(ValueError, match=r"nothing is left to learn from: . crystals"):
            split(data, 0.5, 0.5, seed=0, fold=fold)


def test_selection_keeps_what_was_left_out():
    data = toy_dataset(5)
    data.left_out = [LeftOut("x", "y", "z")]
    chosen = data.select([3, 1])
    assert chosen.ids == ["c3", "c1"] and chosen.left_out == data.left_out
    assert np.array_equal(chosen.targets, data.targets[[3, 1]])
