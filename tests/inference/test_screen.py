"""Conditions are read or refused; screenings rank by the probability of meeting them."""

import csv
import itertools

import numpy as np
import pytest
from toy_crystals import SIZE, cif_of, toy_crystals, toy_model, write_folder

import sitenet
from sitenet.inference.conditions import Range, parse_condition, probabilities
from sitenet.inference.predict import outputs
from sitenet.inference.screen import screen
from sitenet.model.calibration import errors_of
from sitenet.model.sitenet import Target

TARGETS = [Target("gap_eV", "eV"), Target("energy", "eV"), Target("stable", kind="class")]
INF = float("inf")


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("gap_eV > 1", [Range(0, 1, INF, False, True)]),
        ("gap_eV>=1.5e-1", [Range(0, 0.15, INF)]),
        ("energy < -.5", [Range(1, -INF, -0.5, True, False)]),
        ("energy <= +2.", [Range(1, -INF, 2)]),
        (" gap_eV between 1.1 and 1.7 ", [Range(0, 1.1, 1.7)]),
        ("gap_eV BETWEEN 1 AND 2 AND energy < 0", [Range(0, 1, 2), Range(1, -INF, 0, True, False)]),
        ("gap_eV > 0 and gap_eV <= 3", [Range(0, 0, 3, False, True)]),
        ("gap_eV >= 0 and gap_eV > 0 and gap_eV < 3", [Range(0, 0, 3, False, False)]),
        ("energy between -2 and -1 and energy between -1 and 0", [Range(1, -1, -1)]),
    ],
)
def test_conditions_are_read(text, want):
    assert parse_condition(text, TARGETS) == want


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the condition is empty; expected NAME > X"),
        ("gap_eV", "cannot read 'gap_eV'"),
        ("gap_eV = 1", "cannot read 'gap_eV = 1'"),
        ("gap_eV > one", "cannot read 'gap_eV > one'"),
        ("gap_eV > 1 eV", "cannot read 'gap_eV > 1 eV'"),
        ("gap_eV > 1 or energy < 0", "cannot read 'gap_eV > 1 or energy < 0'"),
        ("gap_eV > 1 and", "cannot read 'gap_eV > 1 and'"),
        ("gap_eV > 1 and energy", "cannot read 'energy' in the condition"),
        ("1 < gap_eV", "the condition names '1'|cannot read '1 < gap_eV'"),
        ("gap_eV between 1 and", "cannot read"),
        ("gap_eV between 2 and 1", "no value meets 'gap_eV between 2 and 1'"),
        ("gap_eV > 2 and gap_eV < 1", "no value of gap_eV meets the whole condition"),
        ("gap_eV < 1 and gap_eV > 1", "no value of gap_eV meets the whole condition"),
        ("Gap > 1", "names 'Gap'; the model predicts gap_eV, energy$"),
        ("stable > 0.5", "names 'stable'; the model predicts gap_eV, energy$"),
    ],
)
def test_what_is_no_condition_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_condition(text, TARGETS)


@pytest.fixture(scope="module")
def model():
    """A model whose validation crystals are its own predictions, with errors of 0.1."""
    model = toy_model()
    crystals = toy_crystals(60, seed=5)
    encodings = np.stack([z for _, z in outputs(model, crystals)])
    y = np.stack([y for y, _ in outputs(model, crystals)])
    truth = y + 0.1 * np.random.default_rng(0).normal(size=y.shape)
    model.calibration.errors = errors_of(model, encodings, truth)
    return model


def test_a_screening_ranks_by_probability(model, tmp_path):
    write_folder(tmp_path / "in", 12)
    (tmp_path / "in" / "damaged.cif").write_text("data_damaged\n")
    crystals = toy_crystals(12)
    y = model.predict(crystals)
    low, high = np.quantile(y, [0.5, 0.8])
    where = f"{SIZE.name} between {low:.6f} and {high:.6f}"
    ranking = screen(model, tmp_path / "in", where, coverage=0.5)
    assert ranking.header[:4] == ["id", "formula", "probability", f"{SIZE.name}_predicted"]
    encodings = np.stack([z for _, z in outputs(model, crystals)])
    want = probabilities(model, encodings, ranking.ranges)
    got = dict(zip(ranking.column("id"), ranking.probabilities, strict=True))
    for k, p in enumerate(want):
        assert got[f"c{k}"] == pytest.approx(p, abs=1e-6)
    assert (np.diff(ranking.probabilities) <= 0).all()
    inside = (y >= low) & (y <= high)
    assert want[inside].min() > 0.4 > want[np.abs(y - (low + high) / 2) > high - low].max()
    first = ranking.first_with(0.8)
    total = ranking.probabilities.sum()
    assert ranking.probabilities[:first].sum() >= 0.8 * total * (1 - 1e-9)
    assert ranking.probabilities[: first - 1].sum() < 0.8 * total
    assert [one.id for one in ranking.left_out] == ["damaged"]
    assert f"of 12 crystals are expected to meet: {where}" in ranking.summary()


def test_ranges_share_out_all_values(model):
    encodings = np.stack([z for _, z in outputs(model, toy_crystals(20))])
    edges = [-INF, *np.quantile(model.predict(toy_crystals(20)), [0.2, 0.5, 0.9]), INF]
    parts = [
        probabilities(model, encodings, [Range(0, a, b, True, False)])
        for a, b in itertools.pairwise(edges)
    ]
    np.testing.assert_allclose(np.sum(parts, 0), 1, rtol=1e-12)


def test_its_files_hold_the_ranking(model, tmp_path):
    pytest.importorskip("plotly")
    write_folder(tmp_path / "in", 5)
    ranking = screen(model, [tmp_path / "in"], f"{SIZE.name} > 0 and {SIZE.name} < 5")
    ranking.write(tmp_path / "out")
    with (tmp_path / "out" / "ranking.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ranking.header and [row[0] for row in rows[1:]] == ranking.column("id")
    assert (tmp_path / "out" / "left_out.csv").exists()
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "5 crystals ranked" in page and "Plotly" in page and ranking.column("id")[0] in page
    ranking.write(tmp_path / "plain", report=False)
    assert not (tmp_path / "plain" / "report.html").exists()


def test_a_page_takes_names_for_text(model, tmp_path):
    pytest.importorskip("plotly")
    path = tmp_path / "x.cif"
    path.write_text(cif_of(toy_crystals(1)[0]).replace("data_c0", "data_<script>alert(1)</script>"))
    ranking = screen(model, path, f"{SIZE.name} > 0")
    ranking.rows = [("<b>x</b>", *row[1:]) for row in ranking.rows]
    ranking.report(tmp_path / "r.html")
    assert "<b>x</b>" not in (tmp_path / "r.html").read_text(encoding="utf-8").replace(
        "\\u003cb\\u003ex", ""
    )


def test_nothing_to_rank(model, tmp_path):
    (tmp_path / "damaged.cif").write_text("data_damaged\n")
    ranking = screen(model, tmp_path / "damaged.cif", f"{SIZE.name} > 0")
    assert ranking.rows == [] and ranking.first_with() == 0
    assert ranking.summary().startswith("0 of 0 crystals")


def test_a_model_without_errors_is_refused(tmp_path):
    model = toy_model()
    with pytest.raises(ValueError, match="keeps no errors on validation crystals"):
        screen(model, tmp_path, f"{SIZE.name} > 0")
    assert sitenet.screen is screen
