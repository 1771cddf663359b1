"""The weights that ship: what their cards say holds, and merging pairs changes none of it."""

import os

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import pyarrow.parquet as parquet
import pytest
from conftest import ROOT, SHARED

import sitenet
from sitenet.data.dataset import Dataset, read, split
from sitenet.data.readers import open_source
from sitenet.inference.evaluate import evaluate
from sitenet.model.calibration import half_widths
from sitenet.model.checkpoint import read_metadata, shipped_weights

WHOLE = SHARED / "data" / "matbench_mp_gap_folds1234.parquet"
ENERGIES = SHARED / "data" / "mp2018_formation_energy.parquet"
SAMPLE = SHARED / "data" / "matbench_mp_gap_sample_4000.parquet"
CRYSTALS = int(os.environ.get("SITENET_MERGE_CRYSTALS", 250))
UNITS = {"mp-gap": "eV", "mp-eform": "eV/atom"}


@pytest.fixture(scope="module")
def sample():
    return read(open_source(there(SAMPLE), ["band_gap_eV"]))


def there(path):
    if not path.exists():
        pytest.skip(f"no {path}")
    return path


@pytest.mark.parametrize("name", UNITS)
def test_they_ship_small_and_whole(name):
    assert set(shipped_weights()) == set(UNITS)
    path = shipped_weights()[name]
    assert path.stat().st_size < 8e6
    assert read_metadata(path)["metadata"]["scores"]["valid"]
    model = sitenet.load(name)
    (target,) = model.targets
    assert target.unit == UNITS[name]
    assert not model.training
    somewhere = np.zeros((1, model.encoding_size), np.float32)
    assert np.isfinite(half_widths(model, somewhere, 0.9)).all()
    assert np.isfinite(
        model.predict(ROOT / "examples" / "semiconductors" / "NaCl_rocksalt.cif")
    ).all()


def test_metals_and_insulators_are_told_apart():
    model = sitenet.load("mp-gap")
    names = ("Cu_fcc", "W_bcc", "NaCl_rocksalt", "MgO_rocksalt", "CaF2_fluorite")
    gaps = model.predict([ROOT / "examples" / "semiconductors" / f"{name}.cif" for name in names])
    assert (gaps[:2] < 0.3).all()
    assert (gaps[2:] > 3).all()


@pytest.mark.parametrize("name", UNITS)
def test_the_card_is_on_the_weights_that_ship(name):
    card = (ROOT / "docs" / "models" / f"{name}.md").read_text(encoding="utf-8")
    model = sitenet.load(name)
    size = sum(p.numel() for p in model.parameters())
    assert f"| ensemble of {len(model.members)} Site-Nets, config `sphere`, {size:,} param" in card
    facts = read_metadata(shipped_weights()[name])["metadata"]
    kind, words = ("test", "**") if facts["crystals"]["test"] else ("valid", "error is ")
    error = facts["scores"][kind][model.targets[0].name]["mae"]
    assert f"{words}{error:.3f} {UNITS[name]}" in card


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
    """Some of the crystals that its commands test on, and how many there are."""
    table = parquet.read_table(there(ENERGIES))
    names = ("formation_energy_eV_per_atom", "megnet2018_e_form_eV_per_atom")
    apart = compute.abs(compute.subtract(*(table[name] for name in names)))
    table = table.filter(compute.less_equal(apart, 0.1))
    ids = table["id"].to_pylist()
    tested = part("test", ids, [""] * len(ids), valid=0.05, test=0.1)
    chosen = sorted(tested)[:CRYSTALS]
    parquet.write_table(table.filter(compute.is_in(table["id"], pa.array(chosen))), path)
    return read(open_source(path, names[:1])), len(tested)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "crystals"),
    [("mp-gap", "valid", some_of_mp_gap), ("mp-eform", "test", some_of_mp_eform)],
    ids=UNITS,
)
def test_the_error_is_that_of_the_card(name, kind, crystals, tmp_path):
    chosen, count = crystals(tmp_path / "some.parquet")
    assert len(chosen) > 50
    predictions, left_out = evaluate(sitenet.load(name), chosen)
    assert not left_out
    (target,) = chosen.names
    found = predictions.scores()["all"][target]
    card = read_metadata(shipped_weights()[name])["metadata"]["scores"][kind][target]
    assert card["crystals"] == count
    errors = np.abs(predictions.values - predictions.truth)[:, 0]
    noise = 3 * errors.std() / np.sqrt(len(errors))
    assert abs(found["mae"] - card["mae"]) < noise
    covered = card["coverage"]
    assert abs(found["coverage"] - covered) < 3 * np.sqrt(covered * (1 - covered) / len(errors))


@pytest.mark.slow
def test_merging_changes_no_prediction_by_a_tenth_of_a_millielectronvolt(sample):
    model = sitenet.load("mp-gap").double()
    crystals = sample.crystals[:CRYSTALS]
    merged = model.predict(crystals, primitive=False)
    unmerged = model.predict(crystals, primitive=False, merge=False)
    assert np.abs(merged - unmerged).max() < 1e-4
