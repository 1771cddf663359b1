"""Disordered crystals predicted as means over ordered arrangements."""

import csv
import dataclasses

import numpy as np
import pytest
import torch
from toy_crystals import SMALL, toy_crystals, toy_dataset, toy_model
from typer.testing import CliRunner

from sitenet import Crystal, SiteNet, explain, load, sample_arrangements, what_changes
from sitenet.cli.app import app
from sitenet.crystal.arrangements import Sampling
from sitenet.data.dataset import Dataset
from sitenet.inference import arrangements as module
from sitenet.inference import predict as predicting
from sitenet.inference.arrangements import fingerprints, predict_arrangements
from sitenet.inference.evaluate import evaluate
from sitenet.inference.predict import outputs, predict
from sitenet.inference.predict_files import predict_files
from sitenet.model.calibration import half_widths
from sitenet.pairs.maker import PairMaker
from sitenet.pairs.store import PairStore

MODEL = toy_model(members=2)
ROCKSALT = 2.6 * np.array([[0, 1, 1], [1, 0, 1], [1, 1, 0]])


def alloy(share=0.25, name="alloy"):
    """Sodium and potassium on one place of rock salt, chlorine on the other."""
    frac = [[0, 0, 0], [0, 0, 0], [0.5, 0.5, 0.5]]
    return Crystal(ROCKSALT, frac, [11, 19, 17], None, [1 - share, share, 1.0], name)


def test_full_occupancy_gives_the_ordered_prediction_to_the_bit():
    crystals = toy_crystals(5)
    full = [dataclasses.replace(c, occupancy=np.ones(len(c))) for c in crystals]
    expected = predict(MODEL, crystals)
    assert np.array_equal(predict(MODEL, crystals, disorder="sample"), expected)
    for crystal, same in zip(crystals, full, strict=True):
        alone = predict(MODEL, crystal)
        assert np.array_equal(predict(MODEL, same, disorder="sample"), alone)
        result = predict_arrangements(MODEL, same)
        assert np.array_equal(result.mean, alone) and result.spread == 0 and len(result) == 1
        assert result.counts.tolist() == [200]


def test_the_mean_and_spread_are_those_of_the_arrangements():
    """Each draw predicted by itself: what is merged is equal up to the rounding of float32, whose
    relative error of 6e-8 grows to some 1e-6 over the layers."""
    drawn = sample_arrangements(alloy(), 60, seed=3, sites=16)
    values = predict(MODEL, drawn.crystals, primitive=False)
    mean = np.average(values, weights=drawn.counts)
    spread = np.sqrt(np.average((values - mean) ** 2, weights=drawn.counts))
    result = predict_arrangements(MODEL, alloy(), 60, seed=3, sites=16)
    assert result.mean == pytest.approx([mean], rel=1e-5)
    assert result.spread == pytest.approx([spread], rel=1e-3)
    assert len(result) < len(drawn) and result.counts.sum() == 60
    assert predict(MODEL, alloy(), disorder="sample", samples=60, seed=3, sites=16) == result.mean
    assert spread > 0


def test_the_interval_joins_spread_and_model():
    result = predict_arrangements(MODEL, alloy(), 60, coverage=0.8)
    z = 1.2815515655446004  # 90 % of a normal distribution lie below: 80 % within +-z
    expected = np.sqrt(result.model_half_width**2 + (z * result.spread) ** 2)
    assert result.half_width == pytest.approx(expected, rel=1e-12)
    crystals = sample_arrangements(alloy(), 60).crystals
    own = half_widths(MODEL, np.array([z for _, z in outputs(MODEL, crystals)]), 0.8)
    assert own.min() * (1 - 1e-5) <= result.model_half_width <= own.max() * (1 + 1e-5)
    assert predict_arrangements(toy_model(), alloy(), 5, coverage=0.8).spread > 0
    plain = SiteNet(SMALL)
    plain.eval()
    unknown = predict_arrangements(plain, alloy(), 5)
    assert unknown.unlike is None and np.isinf(unknown.half_width).all()


def test_draws_in_chunks_are_draws_at_once(monkeypatch):
    whole = predict_arrangements(MODEL, alloy(), 60)
    monkeypatch.setattr(predicting, "CHUNK_PAIRS", 2000)
    parts = predict_arrangements(MODEL, alloy(), 60)
    assert np.array_equal(parts.counts, whole.counts)
    assert parts.values == pytest.approx(whole.values, rel=1e-5)
    monkeypatch.setattr(predicting, "MOST_PAIRS", 10)
    with pytest.raises(ValueError, match="too many pairs to predict many variants"):
        predict_arrangements(MODEL, alloy(), 60)


@pytest.mark.parametrize("images", ["sphere", "supercell"])
def test_fingerprints_are_equal_where_predictions_are(images):
    """Of moved, permuted, rotated and of other crystals."""
    rng = np.random.default_rng(5)
    drawn = sample_arrangements(alloy(0.5), 1, sites=20).crystals[0]
    order = rng.permutation(len(drawn))
    turned = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    same = Crystal(drawn.cell @ turned, (drawn.frac + rng.random(3))[order], drawn.numbers[order])
    numbers = drawn.numbers.copy()
    numbers[np.flatnonzero(numbers == 11)[0]] = 12
    strained = dataclasses.replace(drawn, cell=1.001 * drawn.cell)
    oxidised = dataclasses.replace(drawn, oxidation=np.where(drawn.numbers == 17, -1.0, 1))
    others = [dataclasses.replace(drawn, numbers=numbers), strained, oxidised]
    make = PairMaker(dataclasses.replace(SMALL, images=images, radius=4.0), max_sites=40)
    store = PairStore.of([make(c) for c in (drawn, same, *others)])
    keys = fingerprints(store, rounds=2).tolist()
    assert keys[0] == keys[1] and len(set(keys)) == 4


def test_models_that_see_angles_tell_bent_from_straight():
    """Three atoms at the same distances from their middle one, at 90 and at 180 degrees; the ends
    lie further apart than the model sees. A moved crystal is the same."""
    config = dataclasses.replace(SMALL, images="sphere", radius=2.5)
    seeing = dataclasses.replace(config, spectrum_channels=4)
    ends = np.array([[2.0, 0, 0], [-2, 0, 0], [0, 2, 0]]) / 20
    straight, bent = (
        Crystal(np.eye(3) * 20, 0.5 + np.vstack([[0, 0, 0], ends[both]]), [14, 8, 8])
        for both in ([0, 1], [0, 2])
    )
    moved = dataclasses.replace(bent, frac=(bent.frac + 0.3) % 1)
    for each, different in ((config, 1), (seeing, 2)):
        make = PairMaker(each)
        store = PairStore.of([make(c) for c in (straight, bent, moved)])
        keys = fingerprints(store, rounds=2)
        assert keys[1] == keys[2] and len(set(keys.tolist())) == different


def test_arrangements_of_one_neighbourhood_are_told_apart_by_deeper_models():
    """A chain of two kinds of atoms: with one round, only the nearest neighbours count."""
    make = PairMaker(dataclasses.replace(SMALL, images="sphere", radius=3.5))
    cell = np.diag([36.0, 20, 20])
    frac = np.stack([np.arange(12) / 12, np.zeros(12), np.zeros(12)], 1)
    # Both have as many neighbours of each kind, in another order: pairs two apart, three apart.
    chains = [[0, 1, 4, 5, 8, 9], [0, 1, 3, 4, 7, 8]]
    numbers = [np.where(np.isin(np.arange(12), c), 11, 19) for c in chains]
    store = PairStore.of([make(Crystal(cell, frac, n)) for n in numbers])
    counts = [len(set(fingerprints(store, rounds).tolist())) for rounds in (0, 3)]
    assert counts == [1, 2]


def test_files(tmp_path):
    """Rows of ordered and disordered crystals, in order; two workers give the same."""
    text = (
        "data_{0}\n_cell_length_a 5.2\n_cell_length_b 5.2\n_cell_length_c 5.2\n"
        "_cell_angle_alpha 90\n_cell_angle_beta 90\n_cell_angle_gamma 90\n"
        "_symmetry_space_group_name_H-M 'F m -3 m'\nloop_\n_atom_site_label\n_atom_site_fract_x\n"
        "_atom_site_fract_y\n_atom_site_fract_z\n_atom_site_occupancy\n"
        "Cl1 0.5 0.5 0.5 1\nNa1 0 0 0 {1}\nK1 0 0 0 {2}\n"
    )
    for k, share in enumerate((1, 0.6, 1, 0.4)):
        (tmp_path / f"c{k}.cif").write_text(text.format(f"c{k}", share, 1 - share))
    options = {"disorder": "sample", "samples": 30, "seed": 1}
    outcome = predict_files(MODEL, [tmp_path], workers=1, **options)
    assert outcome.header == [
        "id",
        "formula",
        *(f"size_A_{x}" for x in ("predicted", "low", "high", "spread")),
        *("arrangements", "like_training", "unlike_because", "warnings"),
    ]
    column = dict(zip(outcome.header, zip(*outcome.rows, strict=True), strict=True))
    assert column["id"] == ("c0", "c1", "c2", "c3")
    assert column["arrangements"][::2] == (1, 1) and column["size_A_spread"][::2] == (0, 0)
    assert min(column["arrangements"][1::2]) > 1 and min(column["size_A_spread"][1::2]) > 0
    paths = sorted(tmp_path.glob("*.cif"))
    assert column["size_A_predicted"] == pytest.approx(predict(MODEL, paths, **options), rel=1e-6)
    again = predict_files(MODEL, [tmp_path], workers=2, **options)
    assert again.rows == outcome.rows
    out = tmp_path / "out.csv"
    for samples, is_old in ((30, False), (30, True), (31, False)):
        options["samples"] = samples
        assert predict_files(MODEL, paths, out, **options).is_old == is_old
    with out.open() as file:
        assert [row["id"] for row in csv.DictReader(file)] == ["c0", "c1", "c2", "c3"]


def test_evaluation():
    ordered = toy_dataset(4)
    crystals = [ordered.crystals[0], alloy(), *ordered.crystals[1:], alloy(0.5, "other")]
    truth = np.arange(6.0)[:, None]
    ids = [c.name for c in crystals]
    data = Dataset(ids, crystals, truth, ordered.names, ordered.units, [""] * 6)
    p, left_out = evaluate(MODEL, data, disorder="sample", samples=20)
    assert p.ids == ids and left_out == [] and p.truth.tolist() == truth.tolist()
    expected = predict(MODEL, crystals, primitive=False, disorder="sample", samples=20)
    assert p.values[:, 0] == pytest.approx(expected, rel=1e-6)
    whole, _ = evaluate(MODEL, ordered)
    assert p.values[[0, 2, 3, 4]] == pytest.approx(whole.values, rel=1e-6)
    assert p.half_width[1] == predict_arrangements(MODEL, alloy(), 20, primitive=False).half_width
    assert len(p.unlike) == len(p.warnings) == 6 and p.formulas[1] == "K0.25Na0.75Cl"
    only, _ = evaluate(MODEL, data.select([1, 5]), disorder="sample", samples=20)
    assert only.values.tolist() == p.values[[1, 5]].tolist()


def test_evaluation_leaves_out_what_cannot_be_drawn():
    alone = Crystal(np.eye(3) * 3, np.zeros((1, 3)), [11], None, [0.1], "alone")
    data = Dataset(
        ["alone", "alloy"], [alone, alloy()], np.ones((2, 1)), ("size_A",), ("Å",), [""] * 2
    )
    p, (left_out,) = evaluate(MODEL, data, disorder="sample", samples=20, sites=1)
    assert p.ids == ["alloy"] and left_out.id == "alone"
    assert "an arrangement holds no atom" in left_out.reason


def test_a_prediction_that_is_no_number_is_refused():
    broken = toy_model(seed=3)
    with torch.no_grad():
        broken.decoder.bias.fill_(torch.nan)
    with pytest.raises(ValueError, match="the prediction of an arrangement is not a number"):
        predict_arrangements(broken, alloy(), 5)


def test_options_need_sampling():
    with pytest.raises(TypeError, match="samples: only with disorder='sample', got 'average'"):
        predict(MODEL, alloy(), disorder="average", samples=20)
    with pytest.raises(TypeError, match="unknown option 'sample'"):
        predict(MODEL, alloy(), disorder="sample", sample=20)
    for use in (explain, what_changes):  # no silent average
        with pytest.raises(ValueError, match="disorder must be 'error' or 'average', got 'sample'"):
            use(MODEL, alloy(), disorder="sample")
    with pytest.raises(ValueError, match="'error', 'average' or 'sample', got 'mean'"):
        predict(MODEL, alloy(), disorder="mean")
    with pytest.raises(ValueError, match="samples must be from 1"):
        predict(MODEL, alloy(), disorder="sample", samples=0)
    result = CliRunner().invoke(app, ["predict", __file__, "--seed", "1"])
    assert result.exit_code == 2 and "need --disorder sample" in result.output
    assert Sampling() == Sampling(200, 0, 40)


def test_unlike_reasons_are_those_of_most_draws():
    counts = np.array([3, 2, 2])
    assert module._mostly(["", "far", "far"], counts) == "far"
    assert module._mostly(["", "far", ""], counts) == ""
    assert module._mostly(["near", "far", "far"], counts) == "far"


def test_the_shipped_model_gives_a_whole_row():
    """A model with an index, binned errors and the probability of zero."""
    cell = 5.657 * (1 - np.eye(3)) / 2
    frac = [[0, 0, 0], [0, 0, 0], [0.25, 0.25, 0.25]]
    crystal = Crystal(cell, frac, [13, 31, 33], occupancy=[0.3, 0.7, 1.0], name="AlGaAs")
    table = load("mp-gap").table([crystal], disorder="sample", samples=10)
    row = table.rows[0]
    assert row.low[0] <= row.values[0] < row.high[0]
    assert 0 < row.zero[0] < 1 and row.learned_from == ""


def test_results_show_themselves_in_a_line():
    cell, frac = 5.657 * (1 - np.eye(3)) / 2, [[0, 0, 0], [0, 0, 0], [0.25, 0.25, 0.25]]
    crystal = Crystal(cell, frac, [13, 31, 33], occupancy=[0.3, 0.7, 1.0])
    arranged = predict_arrangements(MODEL, crystal, 8)
    assert repr(arranged).startswith("ArrangedPrediction(") and "±" in repr(arranged)
    changes = what_changes(MODEL, Crystal(cell, [[0, 0, 0], [0.25, 0.25, 0.25]], [14, 8]))
    assert repr(changes) == f"Changes(SiO, {len(changes.each)} changes)"
