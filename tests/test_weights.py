"""The weights that ship: what their cards say holds, and merging pairs changes none of it."""

import os

import numpy as np
import pyarrow.parquet as parquet
import pytest
from conftest import ROOT, SHARED

import sitenet
from sitenet.checkpoint import read_metadata, shipped_weights
from sitenet.data import Dataset, read, split
from sitenet.evaluation import evaluate_data
from sitenet.sources import open_source
from sitenet.uncertainty import half_widths

WHOLE = SHARED / "data" / "matbench_mp_gap_folds1234.parquet"
SAMPLE = SHARED / "data" / "matbench_mp_gap_sample_4000.parquet"
CRYSTALS = int(os.environ.get("SITENET_MERGE_CRYSTALS", 250))
UNITS = {"mp-gap": "eV", "mp-eform": "eV/atom"}


@pytest.fixture(scope="module")
def sample():
    for path in (SAMPLE, WHOLE):
        if not path.exists():
            pytest.skip(f"no {path}")
    return read(open_source(SAMPLE, ["band_gap_eV"]))


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


def validation_of_mp_gap():
    """Ids of the crystals that its commands validate on, drawn from the folds alone."""
    columns = parquet.read_table(WHOLE, columns=["id", "matbench_fold"]).to_pydict()
    ids, folds = columns["id"], list(map(str, columns["matbench_fold"]))
    data = Dataset(ids, [], np.empty((len(ids), 0)), (), (), folds)
    return {ids[k] for k in split(data, valid=0.03, test=0.1, seed=42, fold="1").valid}


@pytest.mark.slow
def test_the_validation_error_is_that_of_the_card(sample):
    ids = validation_of_mp_gap()
    chosen = sample.select([k for k, name in enumerate(sample.ids) if name in ids])
    assert len(chosen) > 50
    predictions, left_out = evaluate_data(sitenet.load("mp-gap"), chosen)
    assert not left_out
    found = predictions.scores()["all"]["band_gap_eV"]
    card = read_metadata(shipped_weights()["mp-gap"])["metadata"]["scores"]["valid"]["band_gap_eV"]
    assert card["crystals"] == len(ids)
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
