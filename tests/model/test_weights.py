"""The weights that ship: what their cards say holds, and merging pairs changes none of it."""

import os
import re
import zlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.parquet as parquet
import pytest
from conftest import ROOT, SHARED
from tasks_list import read_tasks
from tasks_runs import Runs

import sitenet
from sitenet.data.dataset import Dataset, read, split
from sitenet.data.readers import open_source
from sitenet.inference.evaluate import evaluate
from sitenet.model.calibration import half_widths
from sitenet.model.checkpoint import read_metadata, shipped_weights

WHOLE = SHARED / "data" / "matbench_mp_gap_folds1234.parquet"
ENERGIES = SHARED / "data" / "matbench_mp_e_form.parquet"
SAMPLE = SHARED / "data" / "matbench_mp_gap_sample_4000.parquet"
CRYSTALS = int(os.environ.get("SITENET_MERGE_CRYSTALS", 250))
NAMES = list(shipped_weights())
TASKS = read_tasks()
MOST_BYTES = 15e6  # of all weights together, compressed as in the wheel


@pytest.fixture(scope="module")
def sample():
    return read(open_source(there(SAMPLE), ["band_gap_eV"]))


def there(path):
    if not path.exists():
        pytest.skip(f"no {path}")
    return path


def facts_of(name):
    return read_metadata(shipped_weights()[name])["metadata"]


def test_they_are_properties_that_the_bench_trains_and_small_together():
    assert {"mp-gap", "mp-eform"} <= set(NAMES) <= set(TASKS)
    packed = (len(zlib.compress(path.read_bytes(), 6)) for path in shipped_weights().values())
    assert sum(packed) < MOST_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_they_ship_small_and_whole(name):
    assert shipped_weights()[name].stat().st_size < 8e6
    assert facts_of(name)["scores"]["valid"]
    model = sitenet.load(name)
    (target,) = model.targets
    assert (target.unit, target.kind) == (
        TASKS[name].unit,
        "class" if TASKS[name].is_class else "value",
    )
    assert not model.training
    assert model.calibration.index is not None
    assert model.calibration.errors is not None or "tested" not in facts_of(name)
    if target.kind == "value":
        somewhere = np.zeros((1, model.encoding_size), np.float32)
        assert np.isfinite(half_widths(model, somewhere, 0.9)).all()
    salt = model.predict(ROOT / "examples" / "semiconductors" / "NaCl_rocksalt.cif")
    assert np.isfinite(salt).all()
    assert target.kind == "value" or 0 <= salt <= 1


def test_metals_and_insulators_are_told_apart():
    model = sitenet.load("mp-gap")
    names = ("Cu_fcc", "W_bcc", "NaCl_rocksalt", "MgO_rocksalt", "CaF2_fluorite")
    gaps = model.predict([ROOT / "examples" / "semiconductors" / f"{name}.cif" for name in names])
    assert (gaps[:2] < 0.3).all()
    assert (gaps[2:] > 3).all()


@pytest.mark.parametrize("name", NAMES)
def test_the_card_is_on_the_weights_that_ship(name):
    card = (ROOT / "docs" / "models" / f"{name}.md").read_text(encoding="utf-8")
    model, facts = sitenet.load(name), facts_of(name)
    size = sum(p.numel() for p in model.parameters())
    count = len(getattr(model, "members", [0]))
    kind = "Site-Net" if count == 1 else f"ensemble of {count} Site-Nets"
    assert f"| model | {kind}, config `" in card and f"`, {size:,} parameters |" in card
    (target,) = model.targets
    if "tested" in facts:  # trained by bench/tasks.py
        scores = facts["tested"]["scores"]["test"][target.name]
        error = scores["roc_auc" if target.kind == "class" else "mae"]
        assert f"**{error:.3f}" in card
        return
    split, words = ("test", "**") if facts["crystals"]["test"] else ("valid", "error is ")
    assert f"{words}{facts['scores'][split][target.name]['mae']:.3f} {target.unit}" in card


def test_pages_name_the_weights_that_ship_and_no_others():
    assert {p.stem for p in (ROOT / "docs" / "models").glob("*.md")} == {"index", *NAMES}
    listed = (ROOT / "sitenet" / "weights" / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([\w-]+)\.safetensors` \|", listed, re.M)) == set(NAMES)
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert set(re.findall(r"models/([\w-]+)\.md", menu)) == {"index", *NAMES}


def part(name, ids, folds, **options):
    """The ids of a part of a split, which hangs on how many crystals there are alone."""
    data = Dataset(ids, [], np.empty((len(ids), 0)), (), (), folds)
    return {ids[k] for k in getattr(split(data, seed=42, **options), name)}


def some_of_mp_gap(_):
    """Some of the crystals that its commands validate on, and how many there are."""
    columns = parquet.read_table(there(WHOLE), columns=["id", "matbench_fold"]).to_pydict()
    folds = list(map(str, columns["matbench_fold"]))
    ids = part("valid", columns["id"], folds, valid=0.03, test=0.1, fold="1")
    data = read(open_source(there(SAMPLE), ["band_gap_eV"]))
    return data.select([k for k, name in enumerate(data.ids) if name in ids]), len(ids)


def some_of_mp_eform(path):
    """Some of the crystals that it did not learn from, and how many its commands leave."""
    columns = ["id", "cif", "e_form_eV_per_atom", "mb_mp_gap_fold", "reduced_formula"]
    table = parquet.read_table(there(ENERGIES), columns=columns)
    gaps = parquet.read_table(there(WHOLE), columns=["reduced_formula", "matbench_fold"])
    tested = {f for f, k in zip(*gaps.to_pydict().values(), strict=True) if str(k) == "1"}
    folds, formulas = (table[name].to_pylist() for name in columns[3:])
    kept = [
        str(fold) != "1" if fold is not None else formula not in tested
        for fold, formula in zip(folds, formulas, strict=True)
    ]
    table = table.filter(kept).drop(columns[3:])
    index = sitenet.load("mp-eform").calibration.index
    learned = pa.array([index.name(k) for k in range(len(index))])
    assert len(learned) == facts_of("mp-eform")["crystals"]["train"]
    assert compute.all(compute.is_in(learned, table["id"])).as_py()
    rest = table.filter(compute.invert(compute.is_in(table["id"], learned)))
    target = "formation_energy_eV_per_atom"
    chosen = np.sort(np.random.default_rng(0).permutation(len(rest))[:CRYSTALS])
    parquet.write_table(rest.take(chosen).rename_columns(["id", "cif", target]), path)
    return read(open_source(path, [target])), len(rest)


def some_of_a_task(name, path):
    """Some of the crystals on which bench/tasks.py validates, and how many there are."""
    task = TASKS[name]
    there(SHARED / "data" / task.table)
    runs = Runs(path.parent, SHARED / "data", TASKS)
    table = runs.table(task)
    if task.settings["group"] == "none":  # the structures need not be read
        how = {"valid": task.settings["valid"], "test": 0.0}
        ids = part("valid", table["id"].to_pylist(), table["split"].to_pylist(), **how)
    else:
        data = runs.dataset(task, shipped=True)
        ids = {name for name, each in zip(data.ids, data.split, strict=True) if each == "valid"}
    chosen = pa.array(sorted(ids)[:CRYSTALS])
    rows = table.filter(compute.is_in(table["id"], chosen)).drop(["reduced_formula", "split"])
    parquet.write_table(rows, path)
    return read(open_source(path, [task.target]).with_units([task.unit])), len(ids)


OWN = {"mp-gap": (["valid"], some_of_mp_gap), "mp-eform": (["valid", "test"], some_of_mp_eform)}


def scores_of(name, splits, target):
    """Scores of weights on all crystals of some parts: means over parts, by their sizes."""
    parts = [facts_of(name)["scores"][split][target] for split in splits]
    sizes = [part["crystals"] for part in parts]
    means = {
        key: np.average([part[key] for part in parts], weights=sizes)
        for key in ("mae", "log_loss", "coverage")
        if key in parts[0]
    }
    return {"crystals": sum(sizes), **means}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_error_is_that_of_the_card(name, tmp_path):
    path = tmp_path / "some.parquet"
    if "tested" in facts_of(name):
        splits, (chosen, count) = ["valid"], some_of_a_task(name, path)
    else:
        splits, crystals = OWN[name]
        chosen, count = crystals(path)
    assert len(chosen) >= min(50, count)
    predictions, left_out = evaluate(sitenet.load(name), chosen)
    assert not left_out
    (target,) = chosen.names
    found = predictions.scores()["all"][target]
    card = scores_of(name, splits, target)
    assert card["crystals"] == count
    errors = np.abs(predictions.values - predictions.truth)[:, 0]
    if "mae" not in card:  # of a class; the log loss of a crystal is rarely above 3
        assert abs(found["log_loss"] - card["log_loss"]) < 3 * 3 / np.sqrt(len(errors))
        return
    noise = 3 * errors.std() / np.sqrt(len(errors))
    assert abs(found["mae"] - card["mae"]) < noise
    if "coverage" in card:
        covered = card["coverage"]
        spread = np.sqrt(covered * (1 - covered) / len(errors))
        assert abs(found["coverage"] - covered) < 3 * spread


@pytest.mark.slow
@pytest.mark.parametrize(("tolerance", "most"), [(1e-3, 1e-3), (1e-5, 1e-5)])
def test_merging_changes_predictions_by_no_more_than_its_tolerance(sample, tolerance, most):
    """Merged distances differ by up to the tolerance, in angstrom, and a distance of 1 angstrom
    more or less changes a gap by some electronvolts at most: below 1 meV at the default, and by
    nothing else than these differences, as they fall together."""
    model = sitenet.load("mp-gap").double()
    assert model.config.tolerance == 1e-3
    model.config = model.config.replace(tolerance=tolerance)
    crystals = sample.crystals[:CRYSTALS]
    merged = model.predict(crystals, primitive=False)
    unmerged = model.predict(crystals, primitive=False, merge=False)
    assert np.abs(merged - unmerged).max() < most
