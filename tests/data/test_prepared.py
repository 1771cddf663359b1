"""Datasets on disk: what went in comes out, resumed after a kill, and damage is named."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as parquet
import pytest
from toy_crystals import cif_of, toy_crystals, write_folder

from sitenet.crystal.crystal import Crystal
from sitenet.data import prepare as module
from sitenet.data.dataset import Preparation, read
from sitenet.data.prepare import prepare
from sitenet.data.prepared import (
    content_hash,
    file_key,
    is_prepared,
    load_dataset,
    read_whole,
)
from sitenet.data.readers import open_source


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of five crystals; what is read is counted."""
    monkeypatch.setattr(module, "PART", 5)
    counted = []

    class Reader(module.Reader):
        def __call__(self, records):
            counted.extend(record.id for record in records)
            return super().__call__(records)

    monkeypatch.setattr(module, "Reader", Reader)
    return counted


def assert_same(got, want):
    assert (got.ids, got.split, got.names, got.units) == (
        want.ids,
        want.split,
        want.names,
        want.units,
    )
    np.testing.assert_equal(got.targets, want.targets)
    for a, b in zip(got.crystals, want.crystals, strict=True):
        assert a.name == b.name
        for name in ("cell", "frac", "numbers", "oxidation", "occupancy"):
            np.testing.assert_equal(getattr(a, name), getattr(b, name))


def test_what_goes_in_comes_out(tmp_path, small_parts):
    write_folder(tmp_path / "in", 12)
    (tmp_path / "in" / "c7.cif").unlink()
    table = (tmp_path / "in" / "targets.csv").read_text().splitlines()
    rows = [f"{row},{k % 3 or ''},fold{k}" for k, row in enumerate(table[1:])]
    (tmp_path / "in" / "targets.csv").write_text("\n".join([table[0] + ",other_GPa,split", *rows]))
    source = open_source(tmp_path / "in", ["other_GPa", "size_A"])
    out, progress = tmp_path / "data.parquet", []
    count, left_out = prepare(source, out, advance=progress.append)
    assert (count, len(left_out), sum(progress)) == (11, 1, 12)
    data, want = load_dataset(out), read(source)
    assert_same(data, want)
    assert np.isnan(data.targets[:, 0]).any() and data.units == ("GPa", "Å")
    assert data.left_out == left_out == want.left_out
    assert data.path == out and len(data.key) == 64
    assert is_prepared(out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data.parquet", "in"]


def test_charges_and_disorder_come_out(tmp_path, monkeypatch):
    crystals = toy_crystals(3, sites=(2, 3))
    crystals[1] = Crystal(
        crystals[1].cell,
        crystals[1].frac[[0, 0]],
        [11, 19],
        [1.0, 0],
        [0.3, 0.6],
        "c1",
    )
    crystals[2].oxidation = np.linspace(-1, 2, len(crystals[2]))
    (tmp_path / "x.csv").write_text("id,y\n" + "".join(f"c{k},{k}\n" for k in range(3)))
    remaining = iter(crystals)
    monkeypatch.setattr(
        "sitenet.data.source.Record.crystal", lambda self, disorder: next(remaining)
    )
    prepare(tmp_path / "x.csv", tmp_path / "x.parquet")
    for got, want in zip(load_dataset(tmp_path / "x.parquet").crystals, crystals, strict=True):
        for name in ("cell", "frac", "numbers", "oxidation", "occupancy"):
            np.testing.assert_equal(getattr(got, name), getattr(want, name))


KILLED = """
import os, signal, sys
from sitenet.data import prepare as module

write = module.parquet.write_table

def kill(table, path, **options):
    write(table, path, **options)
    if "00002" in str(path):
        os.truncate(path, 100)
        os.kill(os.getpid(), signal.SIGKILL)

module.PART, module.parquet.write_table = 5, kill
module.prepare(sys.argv[1], sys.argv[2])
"""


def test_goes_on_after_a_kill(tmp_path, small_parts):
    """Killed while the third part of four was written: two are done."""
    write_folder(tmp_path / "in", 18)
    prepare(tmp_path / "in", tmp_path / "whole.parquet")
    assert len(small_parts) == 18
    out = tmp_path / "data.parquet"
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path / "in", out])
    assert killed.returncode == -signal.SIGKILL and not out.exists()
    small_parts.clear()
    progress = []
    assert prepare(tmp_path / "in", out, advance=progress.append)[0] == 18
    assert small_parts == [f"c{k}" for k in range(10, 18)]
    assert sum(progress) == 18
    assert_same(load_dataset(out), load_dataset(tmp_path / "whole.parquet"))
    assert load_dataset(out).key == load_dataset(tmp_path / "whole.parquet").key
    assert not list(tmp_path.glob(".*"))


def test_an_equal_file_is_left_as_it_is_and_another_is_written_again(tmp_path, small_parts):
    write_folder(tmp_path / "in", 7)
    out = tmp_path / "data.parquet"
    first, progress = prepare(tmp_path / "in", out), []
    small_parts.clear()
    assert prepare(tmp_path / "in", out, advance=progress.append) == first
    assert (small_parts, progress) == ([], [7])

    def changed(step, how=Preparation()):  # noqa: B008
        step()
        small_parts.clear()
        prepare(tmp_path / "in", out, how=how)
        return len(small_parts) == 7

    assert changed(lambda: None, Preparation(primitive=False))
    assert changed(lambda: None)
    assert changed(lambda: os.utime(tmp_path / "in" / "c3.cif", (1, 1)))
    assert changed(lambda: shutil.copy(tmp_path / "in" / "c1.cif", tmp_path / "in" / "c2.cif"))
    assert not changed(lambda: None)
    assert changed(lambda: out.write_bytes(b"PAR1"))
    content = bytearray(out.read_bytes())
    content[200:230] = bytes(30)
    assert changed(lambda: out.write_bytes(content))
    assert load_dataset(out).crystals[2].volume == load_dataset(out).crystals[1].volume


def test_parts_of_other_settings_go(tmp_path, small_parts):
    write_folder(tmp_path / "in", 7)
    out = tmp_path / "data.parquet"

    def stop(done):
        raise KeyboardInterrupt

    for how in (Preparation(False), Preparation()):
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path / "in", out, how=how, advance=stop)
        assert len(list(tmp_path.glob(".data.parquet.*.parts"))) == 1
    prepare(tmp_path / "in", out)
    assert not list(tmp_path.glob(".*"))


def test_the_file_may_lie_among_its_sources(tmp_path, small_parts):
    write_folder(tmp_path, 7)
    out = tmp_path / "data.parquet"
    prepare(tmp_path, out)
    small_parts.clear()
    prepare(tmp_path, out)
    assert small_parts == []


def test_parallel_is_serial(tmp_path):
    write_folder(tmp_path / "in", 130)
    for workers in (1, 2):
        prepare(tmp_path / "in", tmp_path / f"{workers}.parquet", workers=workers)
    assert load_dataset(tmp_path / "1.parquet").key == load_dataset(tmp_path / "2.parquet").key


def test_a_table_streams_through(tmp_path, small_parts):
    crystals = toy_crystals(12)
    table = pd.DataFrame({"cif": [cif_of(c) for c in crystals], "y_eV": np.arange(12.0)})
    table.to_parquet(tmp_path / "in.parquet", row_group_size=4)
    assert not is_prepared(tmp_path / "in.parquet")
    prepare(tmp_path / "in.parquet", tmp_path / "out.parquet")
    assert_same(load_dataset(tmp_path / "out.parquet"), read(open_source(tmp_path / "in.parquet")))


def test_a_source_without_one_usable_crystal_is_an_error(tmp_path):
    write_folder(tmp_path / "in", 2)
    for path in (tmp_path / "in").glob("*.cif"):
        path.write_text("data_x\n")
    with pytest.raises(
        ValueError, match=r"not one structure can be used: .*targets\.csv row 2: .*c0"
    ):
        prepare(tmp_path / "in", tmp_path / "out.parquet")
    assert [p.name for p in tmp_path.iterdir()] == ["in"]


@pytest.fixture
def prepared(tmp_path):
    write_folder(tmp_path / "in", 7)
    prepare(tmp_path / "in", tmp_path / "data.parquet")
    return tmp_path / "data.parquet"


def test_a_truncated_or_damaged_file_is_named(prepared):
    content = prepared.read_bytes()
    for damaged in (content[:-10], content[: len(content) // 2], b"", b"x" * 100):
        prepared.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"data\.parquet is damaged"):
            load_dataset(prepared)
        assert not is_prepared(prepared)


def test_every_altered_byte_is_found(prepared):
    """Flip single bits all over the file: never another dataset without an error."""
    content, want = prepared.read_bytes(), load_dataset(prepared)
    for place in np.random.default_rng(0).permutation(len(content))[:150]:
        altered = bytearray(content)
        altered[place] ^= 4
        prepared.write_bytes(altered)
        try:
            data = load_dataset(prepared)
        except ValueError as error:
            assert "data.parquet" in str(error)
        else:  # a byte that no one reads
            assert_same(data, want)


def test_columns_may_be_in_any_order(prepared):
    want, table = load_dataset(prepared), parquet.read_table(prepared)
    metadata = {"sitenet": parquet.read_metadata(prepared).metadata[b"sitenet"]}
    for order in (table.column_names[::-1], sorted(table.column_names)):
        parquet.write_table(table.select(order).replace_schema_metadata(metadata), prepared)
        data = load_dataset(prepared)
        assert_same(data, want)
        assert data.key == want.key
    parquet.write_table(table.drop_columns("split").replace_schema_metadata(metadata), prepared)
    with pytest.raises(ValueError, match=r"data\.parquet is damaged .*expected the columns id, "):
        load_dataset(prepared)


def test_files_without_warnings_are_read(prepared):
    """As versions that kept none wrote them."""
    facts, table = read_whole(prepared)
    table = table.drop_columns("warnings")
    facts["key"] = file_key([content_hash(table)], facts)
    metadata = {"sitenet": json.dumps(facts)}
    want = load_dataset(prepared)
    parquet.write_table(table.replace_schema_metadata(metadata), prepared)
    assert_same(load_dataset(prepared), want)


def test_warnings_about_structures_are_kept(tmp_path, monkeypatch):
    crystals = toy_crystals(3)
    doubts = [(), ("the formula differs",), ("no H, perhaps", "Z is 3")]
    for crystal, texts in zip(crystals, doubts, strict=True):
        crystal.warnings = texts
    (tmp_path / "x.csv").write_text("id,y\n" + "".join(f"c{k},{k}\n" for k in range(3)))
    remaining = iter(crystals)
    monkeypatch.setattr("sitenet.data.source.Record.crystal", lambda *_: next(remaining))
    prepare(tmp_path / "x.csv", tmp_path / "x.parquet")
    loaded = load_dataset(tmp_path / "x.parquet").crystals
    assert [c.warnings for c in loaded] == doubts


def test_warnings_outlast_the_search_for_primitive_cells(tmp_path):
    (crystal,) = toy_crystals(1, sites=(2, 2))
    large = crystal.supercell(4)
    large.name = "large"
    text = cif_of(large).replace("loop_", "_chemical_formula_sum 'Xe7 Kr'\nloop_")
    (tmp_path / "large.cif").write_text(text)
    prepare(tmp_path, tmp_path / "x.parquet", ())
    (loaded,) = load_dataset(tmp_path / "x.parquet").crystals
    assert len(loaded) == 2 < len(large)
    assert len(loaded.warnings) == 1 and "_chemical_formula_sum" in loaded.warnings[0]


def test_a_dataset_is_prepared_by_one_process_at_a_time(tmp_path, small_parts):
    """Neither are the parts of another process removed, nor those of the same settings shared."""
    write_folder(tmp_path / "in", 7)
    out = tmp_path / "data.parquet"

    def check(done):
        messages.append(refusal(Preparation()))
        refusal(Preparation(False))  # which leaves the parts of this one
        raise KeyboardInterrupt

    def refusal(how):
        code = (
            "import sys\nfrom sitenet.data.dataset import Preparation\n"
            "from sitenet.data.prepare import prepare\n"
            f"prepare(sys.argv[1], sys.argv[2], how=Preparation({how.primitive}))"
        )
        command = [sys.executable, "-c", code, tmp_path / "in", out]
        return subprocess.run(command, capture_output=True, text=True).stderr

    messages = []
    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "in", out, advance=check)
    assert f"another process is preparing {out}" in messages[0]
    assert len(list(tmp_path.glob(".*.parts"))) == 1


def test_a_file_that_another_program_rewrote_is_refused(prepared):
    table = parquet.read_table(prepared)
    values = table.column("target:size_A").to_pylist()
    values[3] += 1
    place = table.schema.get_field_index("target:size_A")
    changed = table.set_column(place, "target:size_A", [values])
    parquet.write_table(changed.replace_schema_metadata(None), prepared)
    with pytest.raises(ValueError, match="was not written by sitenet prepare"):
        load_dataset(prepared)


def test_changed_content_under_the_old_metadata_is_refused(prepared):
    metadata = parquet.read_metadata(prepared).metadata
    table = parquet.read_table(prepared)
    values = table.column("target:size_A").to_pylist()
    values[3] += 1e-9
    place = table.schema.get_field_index("target:size_A")
    changed = table.set_column(place, "target:size_A", [values])
    parquet.write_table(changed.replace_schema_metadata(metadata), prepared)
    with pytest.raises(ValueError, match=r"data\.parquet was altered"):
        load_dataset(prepared)


def test_another_format_is_refused(prepared, monkeypatch):
    monkeypatch.setattr("sitenet.data.prepared.FORMAT", 99)
    with pytest.raises(
        ValueError, match=r"has format \d+, this sitenet reads 99: prepare it again"
    ):
        load_dataset(prepared)


def test_a_damaged_part_is_written_again(tmp_path, small_parts):
    write_folder(tmp_path / "in", 7)

    def stop(done):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path / "in", tmp_path / "out.parquet", advance=stop)
    (part,) = tmp_path.glob(".*.parts/00000.parquet")
    content = bytearray(part.read_bytes())
    content[200:230] = bytes(30)
    part.write_bytes(content)
    small_parts.clear()
    prepare(tmp_path / "in", tmp_path / "out.parquet")
    assert len(small_parts) == 7
    assert len(load_dataset(tmp_path / "out.parquet")) == 7
