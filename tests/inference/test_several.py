"""Several models at once: one table, for which crystals are read and paired once."""

import csv

import numpy as np
import pytest
import torch
from toy_crystals import SIZE, SMALL, cif_of, toy_crystals, toy_model, write_folder

import sitenet
from sitenet.data.dataset import LeftOut
from sitenet.inference import predict_chunks
from sitenet.inference.chunk_log import ChunkLog
from sitenet.inference.predict_files import predict_files
from sitenet.inference.prediction_table import JoinedTable, predict_table
from sitenet.inference.several import models_of
from sitenet.model.sitenet import SiteNet, Target
from sitenet.pairs.maker import PairMaker
from sitenet.system import model_files

GAP = Target("gap_eV", "eV")


def model_of(target, seed, **changes):
    torch.manual_seed(seed)
    config = SMALL.replace(last_activation="identity", scale_site_features=True, **changes)
    return SiteNet(config, [target]).eval()


# Two that share pairs, of which one is calibrated; one with other pairs; one whose target has the
# name of another's.
MODELS = {
    "size": toy_model(),
    "gap": model_of(GAP, 1),
    "near": model_of(Target("density"), 2, images="sphere", radius=4.0),
    "other": model_of(SIZE, 3),
}


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "in", 8)
    (tmp_path / "in" / "bad.cif").write_text("data_bad\n_cell_length_a 4\n")
    return tmp_path / "in"


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_columns_are_those_of_each_model_alone(folder, tmp_path):
    outcome = predict_files(MODELS, [folder], tmp_path / "all.csv", neighbours=0)
    assert outcome.count == 8 and len(outcome.left_out) == 1
    rows = read_csv(tmp_path / "all.csv")
    with open(tmp_path / "all.csv", newline="") as file:
        assert next(csv.reader(file)) == outcome.header
    renamed = {
        "size": {"size_A_predicted": "size_size_A_predicted"},
        "other": {"size_A_predicted": "other_size_A_predicted"},
    }
    columns = ["id", "formula"]
    for name, model in MODELS.items():
        alone = predict_files(model, [folder], tmp_path / f"{name}.csv")
        titles = [renamed.get(name, {}).get(x, x) for x in alone.header]
        columns += titles[2:-1]
        want = read_csv(tmp_path / f"{name}.csv")
        assert len(rows) == len(want) == 8
        for row, single in zip(rows, want, strict=True):
            assert [row[x] for x in titles] == list(single.values())
    assert outcome.header == [*columns, "warnings"]
    assert {"like_training", "size_A_low"} <= set(columns)  # of one model only


@pytest.mark.parametrize("workers", [1, 2])
def test_crystals_are_read_once_and_pairs_found_once_per_kind(folder, monkeypatch, workers):
    counts = {"read": 0, "pairs": 0}
    read, find = predict_chunks.read_records, PairMaker.__call__

    def counted_read(records, how):
        counts["read"] += len(records)
        return read(records, how)

    def counted_find(self, crystal):
        counts["pairs"] += 1
        return find(self, crystal)

    monkeypatch.setattr(predict_chunks, "read_records", counted_read)
    monkeypatch.setattr(PairMaker, "__call__", counted_find)
    serial = predict_files(MODELS, [folder], workers=1)
    assert counts == {"read": 9, "pairs": 2 * 8}
    predict_table(MODELS, toy_crystals(8))
    assert counts == {"read": 9, "pairs": 4 * 8}
    assert predict_files(MODELS, [folder], workers=workers).rows == serial.rows


def test_a_stopped_run_goes_on_and_a_finished_one_is_left_as_it_is(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(predict_chunks, "CHUNK", 3)
    predict_files(MODELS, [folder], tmp_path / "whole.csv")
    append, count = ChunkLog.append, []

    def stopped(self, content):
        if len(count) == 2:
            raise KeyboardInterrupt
        count.append(1)
        append(self, content)

    out = tmp_path / "y.csv"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt, match="6 of 9 crystals"):
        patch.setattr(ChunkLog, "append", stopped)
        predict_files(MODELS, [folder], out)
    records = []
    read = predict_chunks.read_records
    monkeypatch.setattr(
        predict_chunks, "read_records", lambda rows, how: records.extend(rows) or read(rows, how)
    )
    assert predict_files(MODELS, [folder], out).count == 8
    assert len(records) == 3
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert predict_files(MODELS, [folder], out).is_old
    fewer = {name: MODELS[name] for name in ("size", "gap")}
    assert not predict_files(fewer, [folder], out).is_old


def test_a_crystal_that_one_model_cannot_use_has_empty_cells_and_a_reason(tmp_path):
    # The electronegativity of helium is not known.
    models = {
        "strict": model_of(GAP, 1, missing="error"),
        "mean": model_of(SIZE, 2, missing="mean"),
    }
    helium = sitenet.Crystal(np.eye(3) * 4, [[0, 0, 0]], [2], name="He")
    (sodium, *_) = toy_crystals(1)
    for crystal in (helium, sodium):
        (tmp_path / f"{crystal.name}.cif").write_text(cif_of(crystal))
    outcome = predict_files(models, [tmp_path])
    assert not outcome.left_out
    rows = {row[0]: dict(zip(outcome.header, row, strict=True)) for row in outcome.rows}
    assert rows["He"]["gap_eV_predicted"] is None
    assert rows["He"]["warnings"].startswith("strict: ")
    assert rows["He"]["size_A_predicted"] == pytest.approx(models["mean"].predict(helium)[0])
    assert rows["c0"]["warnings"] == "" and rows["c0"]["gap_eV_predicted"] is not None
    table = predict_table(models, [helium, sodium])
    assert list(table["strict_flag"]) == ["failed", ""] and list(table["mean_flag"]) == ["", ""]
    assert np.isnan(table["gap_eV"][0]) and "Electronegativity" in table["strict_reason"][0]
    line, reason, other = table.text(width=160).splitlines()[1:4]
    assert line.split() == ["He", "He", "gap", "(eV)", "failed"]
    assert "Electronegativity" in reason and other.split()[0] == "size"
    alone = {"strict": models["strict"], "again": model_of(SIZE, 4, missing="error")}
    (row,) = predict_table(alone, helium)
    assert row["strict_flag"] == row["again_flag"] == "failed" and row["formula"] == ""
    assert isinstance(predict_files(alone, [tmp_path]).left_out[0], LeftOut)
    with pytest.raises(ValueError, match=r"structure 0: .*Electronegativity"):
        predict_table(models, helium, strict=True)


def test_the_table_in_python_has_the_values_of_each_model(tmp_path):
    crystals = toy_crystals(4)
    table = predict_table(MODELS, [*crystals, "absent.cif"], coverage=0.5)
    assert isinstance(table, JoinedTable) and len(table) == 5
    for name, column in (
        ("size", "size_size_A"),
        ("gap", "gap_eV"),
        ("near", "density"),
        ("other", "other_size_A"),
    ):
        alone = MODELS[name].table([*crystals, "absent.cif"], coverage=0.5)
        np.testing.assert_array_equal(table[column], alone["value"])
        np.testing.assert_array_equal(table[f"{column}_low"], alone["low"])
        assert list(table[f"{name}_flag"]) == list(alone["flag"])
        assert list(table[f"{name}_reason"]) == list(alone["reason"])
    assert table[4]["size_flag"] == "failed"
    assert {k: repr(x) for k, x in table[1].items()} == {
        k: repr(x) for k, x in list(table)[1].items()
    }
    lines = str(table).splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(" (eV) " in line for line in lines) == 4  # a line per property
    table.to_csv(tmp_path / "table.csv")
    assert list(read_csv(tmp_path / "table.csv")[0]) == list(table.columns)


def test_arrangements_are_drawn_for_each_model(tmp_path):
    mixed = sitenet.Crystal(
        np.eye(3) * 5, [[0, 0, 0], [0, 0, 0], [0.5] * 3], [11, 14, 8], occupancy=[0.5, 0.5, 1]
    )
    how = {"disorder": "sample", "samples": 8, "sites": 8}
    table = predict_table(MODELS, [mixed, *toy_crystals(1)], **how)
    for name in ("gap", "near"):
        alone = MODELS[name].table([mixed, *toy_crystals(1)], **how)
        np.testing.assert_array_equal(table[MODELS[name].targets[0].name], alone["value"])


def test_models_that_prepare_structures_in_different_ways_need_to_be_told(folder):
    models = {"a": MODELS["gap"], "b": model_of(SIZE, 5, disorder="average")}
    with pytest.raises(ValueError, match=r"a was .*disorder='error', b with .*'average': say"):
        predict_files(models, [folder])
    assert predict_files(models, [folder], disorder="average").count == 8
    with pytest.raises(ValueError, match="a condition is for one model, got size, gap"):
        predict_files(MODELS, [folder], where="gap_eV > 1")


def test_models_are_found_by_name(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        MODELS["gap"].save(tmp_path / name / "model.safetensors")
    MODELS["gap"].save(tmp_path / "small.safetensors")
    names = [tmp_path / "a", tmp_path / "b" / "model.safetensors", tmp_path / "small.safetensors"]
    assert list(model_files.find_models(names)) == ["a", "b", "small"]
    assert list(models_of([tmp_path / "a", str(tmp_path / "a")])) == ["a"]
    shipped = model_files.shipped_weights()
    assert model_files.find_models(["all"]) == shipped == model_files.find_models(shipped)
    (tmp_path / "c" / "a").mkdir(parents=True)
    MODELS["gap"].save(tmp_path / "c" / "a" / "model.safetensors")
    with pytest.raises(ValueError, match="are both named 'a'"):
        model_files.find_models([tmp_path / "a", tmp_path / "c" / "a"])
    monkeypatch.setattr(model_files, "weights_folder", lambda: tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="no weights ship"):
        model_files.find_models(["all"])
    with pytest.raises(TypeError, match="names of models"):
        models_of([MODELS["gap"], MODELS["size"]])
    with pytest.raises(TypeError, match="'x' must be a model, got str"):
        models_of({"x": "mp-gap"})
    with pytest.raises(ValueError, match="at least one model"):
        models_of([])
