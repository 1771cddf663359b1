"""Encodings: those that the model pools, of structures and of files, resumable."""

import dataclasses

import numpy as np
import pyarrow.parquet as parquet
import pytest
import torch
from toy_crystals import toy_crystals, toy_model, write_folder
from typer.testing import CliRunner

import sitenet
from sitenet.cli.app import app
from sitenet.data.source import Record
from sitenet.inference import chunked_job, predict_chunks
from sitenet.inference import encode as module
from sitenet.inference.encode import encode_files
from sitenet.model.ensemble import Ensemble

MODEL = toy_model()


@pytest.fixture
def folder(tmp_path):
    write_folder(tmp_path / "in", 11)
    (tmp_path / "in" / "broken.cif").write_text("data_x\n")
    return tmp_path / "in"


def read(path):
    """The ids and the encodings in a file of either form."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:  # which refuses pickles
            return arrays["ids"].tolist(), arrays["encodings"]
    table = parquet.read_table(path)
    values = table.column("encoding").combine_chunks().flatten().to_numpy()
    size = table.schema.field("encoding").type.list_size
    return table.column("id").to_pylist(), values.reshape(len(table), size)


def test_encodings_of_structures_are_those_of_their_pairs():
    crystals = toy_crystals(5)
    config = MODEL.config
    encodings = MODEL.encode(crystals, primitive=False)
    assert encodings.dtype == np.float32
    assert encodings.shape == (5, MODEL.encoding_size)
    for crystal, encoding in zip(crystals, encodings, strict=True):
        pairs = sitenet.find_pairs(
            crystal, max_sites=config.max_sites, images=config.images, radius=config.radius
        )
        inputs = MODEL.site_inputs(pairs), MODEL.pair_inputs(pairs)
        # Rows of one crystal and of a batch take the same sums in another order: a few roundings
        # of float32, 6e-8, in each of a handful of layers.
        np.testing.assert_allclose(
            encoding, MODEL.encode(*inputs, pairs).detach().numpy()[0], rtol=1e-4, atol=1e-5
        )
    (single,) = MODEL.encode(crystals[0], primitive=False)
    np.testing.assert_allclose(single, encodings[0], rtol=1e-4, atol=1e-5)
    assert sitenet.encode(MODEL, []).shape == (0, MODEL.encoding_size)


def test_an_ensemble_concatenates_the_encodings_of_its_members():
    members = [toy_model(seed=seed) for seed in (0, 1)]
    ensemble = Ensemble(members)
    crystals = toy_crystals(3)
    encodings = np.concatenate([member.encode(crystals) for member in members], 1)
    np.testing.assert_array_equal(ensemble.encode(crystals), encodings)


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_a_file_holds_every_crystal_and_lists_the_others(tmp_path, folder, suffix, monkeypatch):
    monkeypatch.setattr(module, "_ROWS", 4)
    out = tmp_path / f"x{suffix}"
    outcome = encode_files(MODEL, [folder], out)
    ids, encodings = read(out)
    assert ids == sorted(f"c{k}" for k in range(11))
    assert outcome.count == 11
    paths = [folder / f"{name}.cif" for name in ids]
    np.testing.assert_allclose(encodings, MODEL.encode(paths), rtol=1e-4, atol=1e-5)
    assert "broken" in (tmp_path / "x.left_out.csv").read_text()
    assert encode_files(MODEL, [folder], out).is_old


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_a_stopped_run_continues_to_the_same_bytes(tmp_path, folder, suffix, monkeypatch):
    monkeypatch.setattr(predict_chunks, "CHUNK", 3)
    whole, stopped = tmp_path / f"whole{suffix}", tmp_path / f"stopped{suffix}"
    encode_files(MODEL, [folder], whole)
    original, calls = predict_chunks.read_records, []

    def failing(records, how):
        calls.append(records)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(records, how)

    monkeypatch.setattr(predict_chunks, "read_records", failing)
    with pytest.raises(KeyboardInterrupt):
        encode_files(MODEL, [folder], stopped)
    assert not stopped.exists()
    calls.clear()
    calls.extend([None] * 3)
    encode_files(MODEL, [folder], stopped)
    assert len(calls) - 3 == 2  # of four chunks
    for mine, other in zip(read(stopped), read(whole), strict=True):
        np.testing.assert_array_equal(mine, other)


def test_another_model_encodes_again(tmp_path, folder):
    out = tmp_path / "x.npz"
    encode_files(MODEL, [folder], out)
    outcome = encode_files(toy_model(seed=1), [folder], out)
    assert not outcome.is_old
    assert not np.array_equal(read(out)[1], MODEL.encode([folder / "c0.cif"]))


def test_no_crystal_at_all_is_an_empty_file(tmp_path):
    (tmp_path / "broken.cif").write_text("data_x\n")
    for suffix in module.FORMATS:
        out = tmp_path / f"x{suffix}"
        assert encode_files(MODEL, [tmp_path / "broken.cif"], out).count == 0
        ids, encodings = read(out)
        assert ids == [] and encodings.shape == (0, MODEL.encoding_size)


def test_memory_does_not_grow_with_the_number_of_crystals(tmp_path, monkeypatch):
    """A source is read a chunk ahead of what is written."""
    (crystal,) = toy_crystals(1)
    held, most = [0], [0]

    class Source:
        def __len__(self):
            return 200

        def __iter__(self):
            for k in range(200):
                held[0] += 1
                most[0] = max(most[0], held[0])
                yield Record(str(k), "here", "crystal", dataclasses.replace(crystal))

        def fingerprint(self):
            return "one"

    append = chunked_job.ChunkLog.append

    def noted(log, content):
        held[0] -= content["records"]
        append(log, content)

    monkeypatch.setattr(chunked_job.ChunkLog, "append", noted)
    monkeypatch.setattr(predict_chunks, "CHUNK", 5)
    monkeypatch.setattr(chunked_job, "open_source", lambda path, targets: Source())
    assert encode_files(MODEL, ["any"], tmp_path / "x.npz", workers=1).count == 200
    assert most[0] <= 10


def test_the_command(tmp_path, folder):
    MODEL.save(tmp_path / "m.safetensors")
    out = tmp_path / "x.npz"
    command = ["encode", str(folder), "--model", str(tmp_path / "m.safetensors"), "--out"]
    result = CliRunner().invoke(app, [*command, str(out)])
    assert result.exit_code == 0, result.output
    np.testing.assert_allclose(
        read(out)[1], encode_files_of(tmp_path, folder), rtol=1e-6, atol=1e-7
    )
    result = CliRunner().invoke(app, [*command, str(tmp_path / "x.csv")])
    assert result.exit_code == 1
    assert "expected a file ending in .parquet or .npz, got '.csv'" in result.output


def encode_files_of(tmp_path, folder):
    encode_files(MODEL, [folder], tmp_path / "y.npz")
    return read(tmp_path / "y.npz")[1]


def test_gradients_still_flow_through_encodings_of_pairs():
    crystal = toy_crystals(1)[0]
    config = MODEL.config
    pairs = sitenet.find_pairs(
        crystal, max_sites=config.max_sites, images=config.images, radius=config.radius
    )
    encoding = MODEL.encode(MODEL.site_inputs(pairs), MODEL.pair_inputs(pairs), pairs)
    assert isinstance(encoding, torch.Tensor) and encoding.requires_grad
