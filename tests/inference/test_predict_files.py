"""Prediction of files and tables: complete, ordered, resumable, with what was left out."""

import csv
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from toy_crystals import SIZE, SMALL, cif_of, toy_crystals, toy_model, write_folder

from sitenet import load
from sitenet.data.dataset import LeftOut, Preparation
from sitenet.data.prepare import prepare
from sitenet.data.source import Record
from sitenet.inference import chunked_job, predict_chunks
from sitenet.inference.chunk_log import ChunkLog
from sitenet.inference.predict_files import predict_files
from sitenet.model.sitenet import Target
from sitenet.pairs.maker import PairMaker
from sitenet.system.files import cell_text, locked
from sitenet.training.train import train

MODEL = toy_model()


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "in", 11)
    return tmp_path / "in"


@pytest.fixture
def small_chunks(monkeypatch):
    """Chunks of three records; ids of the records that are read here are noted."""
    monkeypatch.setattr(predict_chunks, "CHUNK", 3)
    read = []
    original = predict_chunks.read_records

    def noted(records, how):
        read.extend(record.id for record in records)
        return original(records, how)

    monkeypatch.setattr(predict_chunks, "read_records", noted)
    return read


def test_rows_are_predictions_with_intervals(folder):
    outcome = predict_files(MODEL, [folder / "c3.cif", folder], coverage=0.8)
    names = sorted(f"c{k}" for k in range(11))
    assert outcome.header == [
        "id",
        "formula",
        "size_A_predicted",
        "size_A_low",
        "size_A_high",
        "like_training",
        "unlike_because",
        "warnings",
    ]
    assert [row[0] for row in outcome.rows] == ["c3", *names]
    assert outcome.count == 12 and not outcome.left_out
    y = MODEL.predict([folder / f"{name}.cif" for name in ("c3", *names)])
    width = MODEL.calibration.half_width(0.8)[0]
    got = np.array([row[2:5] for row in outcome.rows], dtype=float)
    np.testing.assert_allclose(got, np.stack([y, y - width, y + width], 1), rtol=1e-5, atol=1e-5)
    for row in outcome.rows:
        assert [type(cell) for cell in row] == [str, str, *[float] * 3, *[str] * 3]
        assert row[5] == ("no" if row[6] else "yes") and row[7] == ""


def test_the_header_is_of_the_model(folder):
    model = toy_model(targets=[Target("a", "eV"), Target("b", kind="class")])
    outcome = predict_files(model, [folder])
    assert outcome.header == [
        "id",
        "formula",
        *("a_predicted", "a_low", "a_high"),
        "b_predicted",
        *("like_training", "unlike_because", "warnings"),
    ]
    model.calibration = None
    outcome = predict_files(model, [folder])
    assert outcome.header == ["id", "formula", "a_predicted", "b_predicted", "warnings"]
    assert all(0 <= row[3] <= 1 for row in outcome.rows)


def test_an_interval_that_is_not_known_is_empty(folder):
    outcome = predict_files(MODEL, [folder], coverage=0.999)
    assert all(row[3:5] == (None, None) for row in outcome.rows)


def test_every_source_gives_the_same(folder, tmp_path):
    want = predict_files(MODEL, [folder]).rows
    names = [row[0] for row in want]
    table = pd.DataFrame({"id": names, "cif": [(folder / f"{n}.cif").read_text() for n in names]})
    table.to_parquet(tmp_path / "t.parquet")
    table.to_csv(tmp_path / "t.csv", index=False)
    (folder / "list.csv").write_text("file\n" + "".join(f"{n}.cif\n" for n in names))
    prepare(folder / "targets.csv", tmp_path / "prepared.parquet")
    for path in ("t.parquet", "t.csv", "in/list.csv", "prepared.parquet"):
        rows = predict_files(MODEL, [tmp_path / path]).rows
        if path == "prepared.parquet":
            rows.sort()
        assert [row[0] for row in rows] == names
        for a, b in zip(rows, want, strict=True):
            assert float(a[2]) == pytest.approx(float(b[2]), rel=1e-4), path


def test_options_are_those_of_predict(folder):
    paths = [folder / "c0.cif", folder / "c1.cif"]
    for options in ({"max_sites": 30}, {"merge": False}, {"primitive": False}):
        rows = predict_files(MODEL, paths, **options).rows
        y = MODEL.predict(paths, **options)
        np.testing.assert_allclose([float(row[2]) for row in rows], y, rtol=1e-5, atol=1e-5)


def test_parallel_is_serial(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(predict_chunks, "CHUNK", 3)
    for workers in (1, 2):
        predict_files(MODEL, [folder], tmp_path / f"{workers}.csv", workers=workers)
    assert (tmp_path / "1.csv").read_bytes() == (tmp_path / "2.csv").read_bytes()


@pytest.mark.parametrize("most", [1e9, 5])
def test_large_crystals_stay_in_this_process_and_come_in_order(folder, monkeypatch, most):
    want = predict_files(MODEL, [folder]).rows
    monkeypatch.setattr(predict_chunks, "SENT_PAIRS", 30)
    monkeypatch.setattr(sys.modules["sitenet.inference.predict"], "MOST_PAIRS", most)
    rows = predict_files(MODEL, [folder]).rows
    assert [row[0] for row in rows] == [row[0] for row in want]
    got, wanted = (np.array([row[2] for row in r], dtype=float) for r in (rows, want))
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.fixture
def with_bad(folder):
    """Of eleven structures five cannot be used."""
    (folder / "c1.cif").write_text("data_x\n")
    for k, name in ((2, "Xx"), (4, "Qq")):
        text = (folder / f"c{k}.cif").read_text()
        place = text.index("_fract_z\n") + len("_fract_z\n")
        (folder / f"c{k}.cif").write_text(text[:place] + f"{name} 0.9 0.9 0.9\n" + text[place:])
    (folder / "c7.cif").unlink()
    xenon = toy_crystals(1, sites=(1, 1))[0]
    xenon.numbers[:] = 54
    (folder / "c8.cif").write_text(cif_of(xenon))
    return folder / "targets.csv"


def test_what_is_left_out_is_listed_and_summed_up_by_reason(with_bad, tmp_path):
    outcome = predict_files(MODEL, [with_bad], tmp_path / "y.csv")
    assert outcome.count == 6 and sum(outcome.reasons.values()) == 5
    assert sorted(outcome.reasons.values()) == [1, 1, 1, 2]
    rows = read_csv(tmp_path / "y.csv")
    assert [row[0] for row in rows] == ["id", "c0", "c3", "c5", "c6", "c9", "c10"]
    left = read_csv(tmp_path / "y.left_out.csv")
    assert left[0] == ["id", "where", "reason", "kind"]
    assert Counter(row[3] for row in left[1:]) == outcome.reasons
    assert [row[0] for row in left[1:]] == ["c1", "c2", "c4", "c7", "c8"]
    assert left[1][1] == f"{with_bad} row 3" and "No such file" in left[4][2]
    assert "of Xe is not known" in left[5][2]
    lines = outcome.summary().splitlines()
    assert lines[0] == f"6 rows written: {tmp_path / 'y.csv'}"
    assert lines[1] == f"5 left out, listed in {tmp_path / 'y.left_out.csv'}"
    assert [line.split(" x ")[0].strip() for line in lines[2:-1]] == [
        str(n) for n in sorted(outcome.reasons.values(), reverse=True)
    ]
    assert lines[-1].startswith(f"  the first: {with_bad} row 3: ")
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        ".y.csv.finished",
        "in",
        "y.csv",
        "y.left_out.csv",
    ]
    memory = predict_files(MODEL, [with_bad])
    assert [x.id for x in memory.left_out] == ["c1", "c2", "c4", "c7", "c8"]
    assert memory.reasons == outcome.reasons
    assert [list(map(cell_text, row)) for row in memory.rows] == rows[1:]


def test_few_left_out_are_named(with_bad):
    outcome = predict_files(MODEL, [with_bad.parent / "c1.cif", with_bad.parent / "c0.cif"])
    first, second = outcome.summary().splitlines()
    assert first == "1 left out" and "c1.cif" in second and "cell" in second


def test_a_prediction_that_is_no_number_is_left_out(folder):
    model = toy_model()
    with torch.no_grad():
        model.decoder.bias.fill_(torch.nan)
    outcome = predict_files(model, [folder])
    assert outcome.count == 0 and outcome.reasons == {"the prediction is not a number": 11}


def stop_after(monkeypatch, chunks):
    """Interrupt once so many chunks are written."""
    original, done = ChunkLog.append, []

    def append(self, content):
        if len(done) == chunks:
            raise KeyboardInterrupt
        done.append(1)
        original(self, content)

    monkeypatch.setattr(ChunkLog, "append", append)


@pytest.mark.parametrize("cut", [0, 1, 40])
def test_a_stopped_run_goes_on_after_the_last_whole_line(
    with_bad, tmp_path, small_chunks, monkeypatch, cut
):
    predict_files(MODEL, [with_bad], tmp_path / "whole.csv")
    out = tmp_path / "y.csv"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 2)
        predict_files(MODEL, [with_bad], out)
    assert not out.exists()
    partial = tmp_path / ".y.csv.partial"
    content = partial.read_bytes()
    partial.write_bytes(content[: len(content) - cut])
    small_chunks.clear()
    outcome = predict_files(MODEL, [with_bad], out)
    assert small_chunks == [f"c{k}" for k in range(3 if cut else 6, 11)]
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()
    listed = (tmp_path / f"{n}.left_out.csv" for n in ("y", "whole"))
    assert next(listed).read_bytes() == next(listed).read_bytes()
    assert outcome.count == 6 and sum(outcome.reasons.values()) == 5
    assert not partial.exists() and not (tmp_path / ".y.csv.lock").exists()


def test_a_run_stopped_before_its_first_chunk_goes_on(folder, tmp_path, small_chunks, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 0)
        predict_files(MODEL, [folder], tmp_path / "y.csv")
    assert predict_files(MODEL, [folder], tmp_path / "y.csv").count == 11
    assert len(read_csv(tmp_path / "y.csv")) == 12


@pytest.mark.parametrize("other", ["model", "activation", "scale", "options", "files", "coverage"])
def test_a_run_of_something_else_is_not_gone_on_with(
    folder, tmp_path, small_chunks, monkeypatch, other
):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 2)
        predict_files(MODEL, [folder], tmp_path / "y.csv")
    small_chunks.clear()
    model, options = MODEL, {}
    if other == "model":
        model = toy_model(seed=1)
    elif other == "activation":  # with the same weights
        model = toy_model()
        model.config = model.config.replace(last_activation="relu")
    elif other == "scale":
        model = toy_model([replace(SIZE, std=2.0)])
    elif other == "files":
        (folder / "a.cif").write_bytes((folder / "c0.cif").read_bytes())
    else:
        options = {"options": {"max_sites": 5}, "coverage": {"coverage": 0.5}}[other]
    predict_files(model, [folder], tmp_path / "y.csv", **options)
    assert len(small_chunks) == 11 + (other == "files")
    assert len(read_csv(tmp_path / "y.csv")) == 12 + (other == "files")


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bounded_number_of_records_is_in_memory(folder, monkeypatch, workers):
    taken, done = [], []
    path = str(folder / "c0.cif")

    def many():
        for k in range(2000):
            taken.append(k)
            yield Record(str(k), path, "file", path)

    predictor = predict_chunks.Predictor(MODEL, Preparation(), PairMaker(MODEL.config), 0.9)
    for chunk in predictor.chunks(predict_chunks.chunked(many()), workers):
        done += chunk.predictions
        assert len(taken) - len(done) <= (3 * workers + 1) * predict_chunks.CHUNK
        if len(done) > 300:
            break
    assert [prediction.id for prediction in done] == [str(k) for k in range(len(done))]


@pytest.mark.parametrize("damage", ["a byte", "a line", "zeros", "nothing left"])
def test_a_damaged_log_is_cut_where_the_damage_begins(
    folder, tmp_path, small_chunks, monkeypatch, damage
):
    predict_files(MODEL, [folder], tmp_path / "whole.csv")
    out = tmp_path / "y.csv"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_after(patch, 3)
        predict_files(MODEL, [folder], out)
    partial = tmp_path / ".y.csv.partial"
    settings, first, second, third = partial.read_bytes().splitlines(keepends=True)
    partial.write_bytes(
        {
            "a byte": settings + first + second.replace(b'"c', b'"d', 1) + third,
            "a line": settings + first + second[:40] + b"\n" + third,
            "zeros": settings + first + bytes(len(second)) + third,
            "nothing left": b"",
        }[damage]
    )
    small_chunks.clear()
    predict_files(MODEL, [folder], out)
    assert len(small_chunks) == (11 if damage == "nothing left" else 8)
    assert out.read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_finished_file_is_left_as_it_is_unless_it_or_the_settings_change(
    with_bad, tmp_path, small_chunks
):
    out = tmp_path / "y.csv"
    first = predict_files(MODEL, [with_bad], out)
    before = out.stat().st_mtime_ns
    small_chunks.clear()
    again = predict_files(MODEL, [with_bad], out)
    assert not small_chunks and again.is_old and not first.is_old
    assert out.stat().st_mtime_ns == before
    assert (again.count, again.reasons, again.header) == (first.count, first.reasons, first.header)
    assert again.left_out == first.left_out
    assert again.summary().splitlines()[0] == f"6 rows left as they are: {out}"
    content = out.read_text()
    out.write_text(content.replace("c0", "c00"))
    assert not predict_files(MODEL, [with_bad], out).is_old and out.read_text() == content
    (tmp_path / "y.left_out.csv").unlink()
    assert not predict_files(MODEL, [with_bad], out).is_old
    assert predict_files(MODEL, [with_bad], out).is_old
    assert not predict_files(MODEL, [with_bad], out, coverage=0.5).is_old


def test_two_runs_do_not_write_one_file(folder, tmp_path):
    out = tmp_path / "y.csv"
    for name in ("y.csv", "y.left_out.csv", ".y.csv.partial"):
        (tmp_path / name).write_text("of another run\n")
    with (
        locked(tmp_path / ".y.csv.lock", wait=False) as mine,
        pytest.raises(ValueError, match=r"another process is writing .*y\.csv"),
    ):
        assert mine
        predict_files(MODEL, [folder], out)
    for name in ("y.csv", "y.left_out.csv", ".y.csv.partial"):
        assert (tmp_path / name).read_text() == "of another run\n"
    assert predict_files(MODEL, [folder], out).count == 11


def test_an_out_that_cannot_be_written_is_refused_before_any_work(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(chunked_job, "open_source", None)  # nothing is read
    with pytest.raises(IsADirectoryError, match=str(tmp_path)):
        predict_files(MODEL, [folder], tmp_path)
    with pytest.raises(OSError, match=r"targets\.csv"):
        predict_files(MODEL, [folder], folder / "targets.csv" / "y.csv")

    def read_only(path, *_):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr("pathlib.Path.write_bytes", read_only)
    with pytest.raises(OSError, match="Read-only file system"):
        predict_files(MODEL, [folder], tmp_path / "y.csv")


def test_a_full_disk_is_reported_with_the_name_of_the_file(tmp_path):
    with (
        ChunkLog(tmp_path / "log", "settings") as log,
        pytest.raises(OSError, match="log") as error,
    ):
        log._file.close()
        log._file = open("/dev/full", "wb", buffering=0)
        log.append([1, 2])
    assert error.value.errno == 28


def test_failures_are_counted_by_kind(tmp_path):
    outcome = chunked_job.Outcome(["id"])
    for k, kind in enumerate(["b", "a", "b", "c"]):
        outcome.add_left_out(LeftOut(f"c{k}", f"file{k}", f"long reason {k}", kind))
    assert outcome.reasons == {"b": 2, "a": 1, "c": 1}
    assert outcome.summary().splitlines() == [
        "4 left out",
        "  2 x b",
        "  1 x a",
        "  1 x c",
        "  the first: file0: long reason 0",
    ]


def test_warnings_of_structures_have_a_column(folder, tmp_path, monkeypatch):
    original = predict_chunks.read_records

    def doubtful(records, how):
        read = original(records, how)
        for _, crystal in read:
            crystal.warnings = ("odd cell", "odd formula") if crystal.name == "c1" else ()
        return read

    monkeypatch.setattr(predict_chunks, "read_records", doubtful)
    predict_files(MODEL, [folder], tmp_path / "y.csv")
    rows = {row[0]: row[-1] for row in read_csv(tmp_path / "y.csv")}
    assert rows["id"] == "warnings" and rows["c1"] == "odd cell; odd formula" and rows["c2"] == ""


def test_structures_are_read_as_the_models_config_says_unless_told_otherwise(tmp_path):
    crystal = toy_crystals(1, sites=(2, 2))[0].supercell(4)
    (tmp_path / "double.cif").write_text(cif_of(crystal))
    model = toy_model()
    cell = {"max_sites": 0}
    (whole,) = predict_files(model, [tmp_path], primitive=False, **cell).rows
    (small,) = predict_files(model, [tmp_path], **cell).rows
    model.config = model.config.replace(primitive=False)
    (row,) = predict_files(model, [tmp_path], **cell).rows
    assert row == whole and abs(whole[2] - small[2]) > 1e-3
    assert predict_files(model, [tmp_path], primitive=True, **cell).rows == [small]


def test_what_training_predicted_is_predicted_again(tmp_path):
    """The printed numbers are those of float32, which sums in the order of a batch."""
    write_folder(tmp_path / "in", 40)
    train(tmp_path / "in", tmp_path / "run", SMALL, epochs=2, valid=0.4, test=0.2)
    model = load(tmp_path / "run" / "model.safetensors")
    predict_files(model, [tmp_path / "in"], tmp_path / "y.csv")
    with open(tmp_path / "y.csv", newline="") as file:
        again = {row["id"]: row for row in csv.DictReader(file)}
    with open(tmp_path / "run" / "predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    for row in rows:
        for name in ("size_A_predicted", "size_A_low", "size_A_high"):
            assert float(again[row["id"]][name]) == pytest.approx(float(row[name]), rel=2e-6)
        assert again[row["id"]]["like_training"] == row["like_training"]


@pytest.mark.slow
def test_two_processes_leave_the_file_of_one(with_bad, tmp_path):
    folder = tmp_path / "many"
    write_folder(folder, 150)
    for name in ("c3", "c77"):
        (folder / f"{name}.cif").write_text("data_x\n")
    MODEL.save(tmp_path / "model.safetensors")
    options = ["--model", tmp_path / "model.safetensors"]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += ["-m", "sitenet", "predict", folder, *options, "--out", tmp_path / "two.csv"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, env=environment, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("2 left out") == 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = load(tmp_path / "model.safetensors")
    predict_files(model, [folder], tmp_path / "one.csv")
    torch.set_num_threads(threads)
    for ending in ("csv", "left_out.csv"):
        a, b = ((tmp_path / f"{name}.{ending}").read_bytes() for name in ("one", "two"))
        assert a == b
    assert [p.name for p in tmp_path.glob(".two*")] == [".two.csv.finished"]
