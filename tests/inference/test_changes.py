"""What would change a prediction: substitutions, missing sites and strain."""

import dataclasses

import numpy as np
import pytest
from toy_crystals import SMALL, cif_of, toy_model
from typer.testing import CliRunner

from sitenet import Crystal, SiteNet
from sitenet.cli.app import app
from sitenet.crystal.elements import NUMBERS, SYMBOLS
from sitenet.crystal.substitution import substitutes
from sitenet.inference import predict as predicting
from sitenet.inference.changes import STRAINS, what_changes
from sitenet.inference.predict import predict

MODEL = toy_model(members=2)
QUARTERS = np.array([[0, 0, 0], [0.5, 0.5, 0.5], [0.25, 0.25, 0.25], [0.75, 0.75, 0.75]])
# Lithium and chlorine in chains, two of each, related by a twofold axis: two orbits of two sites.
SALT = Crystal(np.diag([4.1, 4.6, 5.2]), QUARTERS, [3, 3, 17, 17], name="salt")


def symbols(element, state=None):
    return {SYMBOLS[n] for n in substitutes(NUMBERS[element], state)}


@pytest.mark.parametrize(
    ("element", "state", "expected"),
    [
        ("Ga", 3, {"B", "Al", "In", "Tl"}),
        ("As", -3, {"N", "P", "Sb"}),
        ("As", 3, {"N", "P", "Sb", "Bi", "V"}),
        ("O", -2, {"S", "Se", "Te"}),
        ("Cl", -1, {"F", "Br", "I"}),
        ("Fe", 3, {"Mn", "Co", "Ru"}),
        ("Mg", 2, {"Be", "Ca", "Sr", "Ba", "Zn", "Cd", "Hg"}),
        ("Ne", None, set()),
        ("H", 1, set()),
    ],
)
def test_substitutes(element, state, expected):
    assert symbols(element, state) == expected


def test_substitutes_keep_an_oxidation_state():
    assert "Li" not in symbols("Mg", 2) and "Al" not in symbols("Mg", 2)
    assert symbols("Fe", 3) < symbols("Fe") | {"Fe"} and "Ti" not in symbols("Fe", 3)
    rare_earths = symbols("La", 3)
    assert {"Y", "Gd", "Lu"} <= rare_earths and not {"Cm", "Ac", "Po"} & rare_earths
    for number in range(2, 84):  # who replaces whom holds both ways
        for other in substitutes(number):
            assert number in substitutes(other), (SYMBOLS[number], SYMBOLS[other])


def test_effects_are_differences_of_predictions():
    """Each change made by hand and predicted by itself; float32 errors grow
    to some 1e-6 over the layers, and more where a value is near 0."""
    changes = what_changes(MODEL, SALT, primitive=False)
    assert changes.sites == [0, 2]
    base = predict(MODEL, SALT, primitive=False)[0]
    assert changes.unchanged.values == pytest.approx([base], rel=1e-5)
    kinds = [change.kind for change in changes.each]
    assert kinds.count("remove") == 2 and kinds.count("strain") == len(STRAINS)
    replaced = [(c.site, c.to) for c in changes.each if c.kind == "substitute"]
    assert {to for site, to in replaced if site == 0} == symbols("Li", 1)
    assert {to for site, to in replaced if site == 2} == symbols("Cl", -1)
    for change in changes.each:
        numbers, frac, cell = SALT.numbers.copy(), SALT.frac, (1 + change.strain) * SALT.cell
        if change.kind == "substitute":
            assert change.element == SYMBOLS[numbers[change.site]]
            numbers[change.site] = NUMBERS[change.to]
        elif change.kind == "remove":
            numbers, frac = (np.delete(x, change.site, axis=0) for x in (numbers, frac))
        expected = predict(MODEL, Crystal(cell, frac, numbers), primitive=False)[0]
        assert change.prediction.values == pytest.approx([expected], rel=1e-4, abs=1e-5)
        assert changes.effect(change) == pytest.approx(expected - base, abs=1e-4)


def test_sites_of_an_orbit_have_the_same_effects():
    """Checked for the site that is left out: an image of the one that is changed."""
    changes = what_changes(MODEL, SALT, elements=["Na"], strains=[], primitive=False)
    (to_sodium,) = [c for c in changes.each if c.to == "Na" and c.site == 0]
    numbers = SALT.numbers.copy()
    numbers[1] = 11
    other = predict(MODEL, dataclasses.replace(SALT, numbers=numbers), primitive=False)
    assert to_sodium.prediction.values == pytest.approx(other, rel=1e-4)


def test_columns_are_a_row_per_change():
    changes = what_changes(MODEL, SALT, elements=["Na", "Br"], strains=[-0.02], primitive=False)
    columns = changes.columns()
    assert {len(column) for column in columns.values()} == {len(changes.each)} == {7}
    assert columns["change"].tolist() == ["substitute"] * 2 + ["remove"] + ["substitute"] * 2 + [
        "remove",
        "strain",
    ]
    assert columns["site"].tolist() == ["0"] * 3 + ["2"] * 3 + [""]
    assert columns["to"].tolist() == ["Na", "Br", "", "Na", "Br", "", ""]
    difference = columns["size_A_predicted"] - changes.unchanged.values[0]
    assert columns["size_A_change"] == pytest.approx(difference)
    assert set(columns["like_training"]) <= {"yes", "no"}
    squeezed = what_changes(MODEL, SALT, elements=[], strains=[-0.4]).columns()
    assert squeezed["like_training"][-1] == "no" and squeezed["unlike_because"][-1]
    assert changes.table().shape == (7, 9)


def test_elements_that_the_model_lacks_are_not_tried():
    """Without ``missing: mean``, the published tables lack properties of some elements."""
    model = SiteNet(SMALL).eval()
    noble = Crystal(np.eye(3) * 5, [[0, 0, 0], [0.5, 0.5, 0.5]], [55, 17])
    tried = {change.to for change in what_changes(model, noble, strains=[]).each}
    assert {"Na", "K", "Br"} <= tried and "Fr" not in tried
    with pytest.raises(ValueError, match="the model has no features of Xe"):
        what_changes(model, noble, elements=["Xe"])
    with pytest.raises(ValueError, match="unknown element 'Xx'"):
        what_changes(model, noble, elements=["Xx"])
    with pytest.raises(ValueError, match=r"strains must be from -0\.5 to 0\.5, got 4"):
        what_changes(model, noble, strains=[4])


def test_the_only_site_is_not_removed():
    metal = Crystal(np.eye(3) * 3, np.zeros((1, 3)), [13])
    kinds = {change.kind for change in what_changes(MODEL, metal).each}
    assert kinds == {"substitute", "strain"}


def test_shared_places_stay_as_they_are():
    frac = [[0, 0, 0], [0, 0, 0], [0.5, 0.5, 0.5]]
    alloy = Crystal(np.eye(3) * 4, frac, [11, 19, 17], None, [0.5, 0.5, 1.0])
    changes = what_changes(MODEL, alloy, disorder="average")
    assert changes.sites == [2]
    assert {c.element for c in changes.each if c.kind != "strain"} == {"Cl"}


def test_many_changes_in_parts(monkeypatch):
    whole = what_changes(MODEL, SALT)
    monkeypatch.setattr(predicting, "CHUNK_PAIRS", 200)
    parts = what_changes(MODEL, SALT)
    for one, other in zip(whole.each, parts.each, strict=True):
        assert one.prediction.values == pytest.approx(other.prediction.values, rel=1e-5)
        assert one.prediction.unlike == other.prediction.unlike


@pytest.fixture
def files(tmp_path):
    MODEL.save(tmp_path / "model.safetensors")
    (tmp_path / "salt.cif").write_text(cif_of(SALT))
    return tmp_path


def test_command(files, monkeypatch):
    monkeypatch.chdir(files)
    words = ["explain", "salt.cif", "--model", "model.safetensors", "--substitute"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    header, *rows = result.stdout.strip().split("\n")
    assert header.startswith("change,site,element,to,strain,size_A_predicted,size_A_change,like")
    assert len(rows) == len(what_changes(MODEL, SALT).each)
    result = CliRunner().invoke(app, [*words, "--out", "changes.csv"])
    assert result.exit_code == 0
    assert (files / "changes.csv").read_text().strip().split("\n") == [header, *rows]
    result = CliRunner().invoke(app, [*words, "--out", "changes.png"])
    assert result.exit_code == 2 and ".csv or .html" in result.output
    result = CliRunner().invoke(app, [*words[:1], "salt.cif", *words[1:]])
    assert result.exit_code == 1 and "for one crystal, got several" in result.output


def test_report(files, monkeypatch):
    pytest.importorskip("plotly")
    monkeypatch.chdir(files)
    words = ["explain", "salt.cif", "--model", "model.safetensors", "--substitute"]
    result = CliRunner().invoke(app, [*words, "--out", "changes.html"])
    assert result.exit_code == 0, result.output
    text = (files / "changes.html").read_text()
    for part in ("What would change size_A", "element on the site", "strain of all lengths"):
        assert part in text
