"""Reports open offline, in a browser too, and take no name for markup."""

import csv
import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from toy_crystals import toy_crystals

from sitenet.config import SiteNetConfig
from sitenet.crystal.crystal import Crystal
from sitenet.inference.explain import explain
from sitenet.inference.predict import outputs
from sitenet.model.calibration import calibrate, errors_of
from sitenet.model.ensemble import Ensemble
from sitenet.model.neighbours import Fingerprints, TrainingIndex
from sitenet.model.sitenet import SiteNet, Target
from sitenet.report.cell_view import cell_view
from sitenet.report.crystal_page import TABLE_ROWS, _most_attended, crystal_report
from sitenet.report.figures import attention_figure
from sitenet.report.packages import check_format
from sitenet.report.run_page import run_report

pytest.importorskip("plotly")
HOSTILE = (
    "</title></script><script>document.title='taken'</script><img src=x onerror=alert(1)>&amp;"
)
SMALL = SiteNetConfig(site_dim=4, interaction_dim=3, hidden=(9,), max_sites=64)
CORNERS = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
SALT = Crystal(
    5.64 * np.eye(3),
    np.concatenate([CORNERS, (CORNERS + np.array([0.5, 0, 0])) % 1]),
    [11] * 4 + [17] * 4,
    name=HOSTILE,
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = SiteNet(SMALL, [Target("gap <b>", "eV", mean=2)])
    for block in model.blocks:
        torch.nn.init.normal_(block.logits.weight, std=1)
    return model


@pytest.fixture
def run(tmp_path, model):
    """A run folder, its last line of metrics half written."""
    folder = tmp_path / "a run"
    folder.mkdir()
    epochs = [
        {
            "epoch": e,
            "train_mae": 1 / e,
            "valid_mae": None if e % 2 else 2 / e,
            "learning_rate": 0.1,
        }
        for e in range(1, 9)
    ]
    lines = [json.dumps(line) for line in epochs]
    (folder / "metrics.jsonl").write_text("\n".join([*lines, '{"epoch": 9, "tra']))
    (folder / "config.yaml").write_text(f"base: paper\n# {HOSTILE}\n")
    rng = np.random.default_rng(0)
    with open(folder / "predictions.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["id", "gap <b>", "gap <b>_predicted", "split"])
        for k in range(300):
            truth = abs(rng.normal())
            split = ("train", "valid", "test")[k % 3]
            table.writerow([HOSTILE if k == 4 else f"mp-{k}", truth, truth + 0.25, split])
        table.writerow(["mp-without", "", 1.0, "test"])
        table.writerow([HOSTILE, 0.5, 9.5, "test"])
    with open(folder / "left_out.csv", "w", newline="") as file:
        csv.writer(file).writerows([["id", "reason"], [HOSTILE, "no sites"], ["x", "no sites"]])
    model.save(folder / "model.safetensors")
    return folder


class Parsed(HTMLParser):
    """Tags of a page and its text outside of scripts."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.inside = [], [], None
        self.source = path.read_text()
        self.feed(self.source)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.inside = tag

    def handle_endtag(self, tag):
        self.inside = None

    def handle_data(self, data):
        if self.inside not in ("script", "style") and data.strip():
            self.text.append(data.strip())


def check_self_contained(page, figures):
    """Nothing to load, one copy of plotly, and no tag that a name brought in."""
    assert not [a for _, a in page.tags if set(a) & {"src", "href", "onerror"}]
    tags = [tag for tag, _ in page.tags]
    assert tags.count("title") == 1 and "b" not in page.text and "img" not in tags
    assert page.source.count("plotly.js v") == 1
    assert "document.title='taken'" not in "".join(re.findall("<script.*?</script>", page.source))
    assert len(re.findall(r"Plotly\.newPlot\(", page.source)) >= figures


def test_crystal_report(tmp_path, model):
    e = crystal_report(model, SALT, tmp_path / "salt.html", primitive=False)
    page = Parsed(tmp_path / "salt.html")
    check_self_contained(page, 3)
    assert HOSTILE in page.text
    assert f"{e.predicted[0]:.4g} eV" in page.text
    assert "NaCl, 8 sites in the cell, each attending to 64 sites of a supercell" in page.text
    for row in zip(*_most_attended(e).values(), strict=True):
        assert {str(row[0]), str(row[1]), f"{row[2]:.4g}"} <= set(page.text)
    assert f"{e.long_range[1, 2]:.4g}" in page.text


def test_most_attended_pairs(tmp_path, model):
    e = crystal_report(model, SALT, tmp_path / "salt.html")
    rows = _most_attended(e)
    mean = e.weights.mean((1, 2))[e.pairs.distance.numpy() > 0]
    np.testing.assert_allclose(rows["mean weight"], np.sort(mean)[::-1][:TABLE_ROWS])
    assert rows["distance (Å)"].min() > 2


def test_crystal_report_takes_one_crystal(tmp_path, model):
    with pytest.raises(ValueError, match="one crystal, got several"):
        crystal_report(model, [SALT], tmp_path / "x.html")


def test_crystal_report_says_how_sure(tmp_path, model):
    model.calibration = SimpleNamespace(
        half_width=lambda coverage, spread: np.array([0.314]),
        unlike=lambda encodings, structures: ["it has Fr, which is not in the training set"],
        errors=None,
        index=None,
    )
    e = crystal_report(model, SALT, tmp_path / "salt.html")
    page = Parsed(tmp_path / "salt.html")
    assert "gap <b>, 90% interval" in page.text
    assert page.text[page.text.index("like the training crystals") - 1] == "no"
    low, high = e.predicted[0] - 0.314, e.predicted[0] + 0.314
    assert f"{low:.3g} to {high:.3g} eV" in page.text
    reason = "Unlike the training crystals: it has Fr, which is not in the training set"
    assert any(text.startswith(reason) for text in page.text)


def test_crystal_report_names_training_crystals(tmp_path, model):
    encodings = np.stack([z for _, z in outputs(model, [SALT.primitive(), *toy_crystals(7)])])
    truth = np.arange(8.0)[:, None]
    model.calibration = calibrate(truth, truth, encodings, encodings)
    model.calibration.errors = errors_of(model, encodings, np.minimum(truth, 1))
    model.calibration.index = TrainingIndex.fit(
        encodings,
        truth,
        [HOSTILE, *(f"mp-{k}" for k in range(7))],
        ["NaCl"] * 8,
        Fingerprints.of([SALT.primitive(), *toy_crystals(7)]),
    )
    crystal_report(model, SALT, tmp_path / "salt.html")
    page = Parsed(tmp_path / "salt.html")
    check_self_contained(page, 3)
    assert "Nearest training crystals" in page.text and "true gap <b>" in page.text
    assert "probability that gap <b> is zero" in page.text
    assert any(text.startswith("The model was trained on this crystal") for text in page.text)


def test_doubts_about_the_structure_are_shown(tmp_path, model):
    crystal = Crystal(SALT.cell, SALT.frac, SALT.numbers, name="salt")
    crystal.warnings = (f"odd {HOSTILE}",)
    crystal_report(model, crystal, tmp_path / "salt.html", primitive=False)
    page = Parsed(tmp_path / "salt.html")
    check_self_contained(page, 3)
    assert f"Doubts about the structure: odd {HOSTILE}." in page.text


def test_members_of_an_ensemble_are_named(tmp_path, model):
    e = crystal_report(Ensemble([model, model]), SALT, tmp_path / "salt.html")
    page = Parsed(tmp_path / "salt.html")
    assert "member 2, block 1" in page.text and e.members == 2
    titles = [a.text for a in attention_figure(e).layout.annotations]
    assert titles[0] == "member 1, block 1, head 1" and "member 2, block 2, head 3" in titles


@pytest.mark.parametrize("decades", [1, 5, 18])
def test_ticks_of_weights_over_many_decades_leave_room(model, decades):
    e = explain(model, SALT, primitive=False)
    e.weights = np.logspace(-decades, 0, e.weights.size).reshape(e.weights.shape)
    axis = attention_figure(e).layout.yaxis
    low, high = axis.range
    assert low < -decades and high > 0
    # A panel is about 200 pixels high, a label 12.
    assert 1 <= (high - low) / axis.dtick <= 200 / 12 / 2


def test_what_a_format_needs_is_checked_before_the_work(monkeypatch):
    for path in ("x.csv", "x.html", "x.PNG", "x.svg", "x.pdf", "folder"):
        check_format(path)
    with pytest.raises(ValueError, match=r"x\.txt: expected a folder or a file ending in \.csv"):
        check_format("x.txt")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    check_format("x.csv")
    for path, extra in (("x.html", "report"), ("x.png", "plot"), ("folder", "plot")):
        with pytest.raises(ImportError, match=rf"pip install 'sitenet\[{extra}\]'"):
            check_format(path)


def test_one_site_and_only_itself(tmp_path, model):
    """No pair but the self pair."""
    po = Crystal(3.35 * np.eye(3), [[0.1, 0, 0]], [84])
    e = crystal_report(model, po, tmp_path / "po.html", max_sites=0)
    assert e.pairs.num_pairs == 1 and not e.long_range.any()


def test_cell_view_draws_faces_twice():
    view = cell_view(SALT, {"mean": np.arange(8.0), "other": np.zeros(8)}, "value")
    sites = view.data[-1]
    # Na: 8 corners and 6 faces; Cl: 12 edges and the middle.
    assert sorted(sites.text) == ["Cl"] * 13 + ["Na"] * 14
    drawn = [round(float(c[0])) for c in sites.customdata]
    assert list(sites.marker.color) == drawn
    position = np.array([sites.x, sites.y, sites.z], dtype=float)
    assert position.min() == 0 and position.max() == 5.64
    (menu,) = view.layout.updatemenus
    assert [b.label for b in menu.buttons] == ["mean", "other"]
    assert menu.buttons[1].args[0]["marker.color"] == [[0.0] * 27]


def test_cell_view_names_sites_that_species_share():
    alloy = Crystal(
        3 * np.eye(3), [[0.5] * 3] * 2 + [[0.2] * 3], [28, 26, 8], occupancy=[0.75, 0.25, 1]
    )
    sites = cell_view(alloy, {"mean": np.arange(2.0)}, "value").data[-1]
    assert list(sites.text) == ["Ni0.75Fe0.25", "O"] and list(sites.marker.color) == [0, 1]


def test_run_report_tells_best_epoch_data_baseline_and_formulas(tmp_path, run, model):
    scores = {"valid": {}, "test": {"gap <b>": {"mae_of_mean": 0.875, "mae_of_median": 0.75}}}
    facts = {"epoch": 6, "crystals": {"train": 1234, "valid": 100, "test": 101}, "scores": scores}
    model.save(run / "model.safetensors", facts)
    lines = (run / "predictions.csv").read_text().splitlines()
    table = ["formula," + lines[0], *(f"NaCl{k}," + line for k, line in enumerate(lines[1:]))]
    (run / "predictions.csv").write_text("\n".join(table))
    run_report(run, tmp_path / "run.html")
    page = Parsed(tmp_path / "run.html")
    check_self_contained(page, 2)
    expected = "A training run on crystals: 1,234 for training, 100 for validation, 101 for test"
    assert expected in page.text
    assert page.text[page.text.index("best epoch") - 1] == "6"
    assert page.text[page.text.index("if predicting the mean of gap <b>, test") - 1] == "0.875 eV"
    assert "MAE of median (eV)" in page.text and "formula" in page.text
    assert "NaCl301" in page.text  # the largest error


def test_run_report(tmp_path, run):
    run_report(run, tmp_path / "run.html")
    page = Parsed(tmp_path / "run.html")
    check_self_contained(page, 2)
    assert "a run" in page.text
    # 0.25 everywhere but for one error of 9 among the test's 101.
    assert "0.25 eV" in page.text and f"{(100 * 0.25 + 9) / 101:.3g} eV" in page.text
    assert page.text.count(HOSTILE) >= 2  # the largest error, and left out
    assert page.text[page.text.index("no sites") - 1] == "2"
    assert f"# {HOSTILE}" in "\n".join(page.text)


def test_run_report_of_a_class_and_intervals(tmp_path):
    model = SiteNet(SMALL, [Target("metal", kind="class"), Target("gap", "eV")])
    model.save(tmp_path / "model.safetensors")
    names = ["id", "split", "metal", "metal_predicted", "gap", "gap_predicted"]
    with open(tmp_path / "predictions.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow([*names, "gap_low", "gap_high", "like_training"])
        for k in range(40):
            metal, gap = k % 4 == 0, 1 + k / 10
            width = 0.1 if k < 10 else 1
            values = [int(metal), 0.9 if metal or k == 1 else 0.2, gap, gap + 0.5]
            table.writerow([k, "test", *values, gap + 0.5 - width, gap + 0.5 + width, "yes"])
    run_report(tmp_path, tmp_path / "run.html")
    page = Parsed(tmp_path / "run.html")
    assert page.text[page.text.index("accuracy of metal, test") - 1] == "0.975"
    assert "ROC AUC" in page.text and "true class 1 (10)" in page.source
    at = page.text.index("inside interval")
    assert "0.75" in page.text[at : at + 8]


def test_run_report_of_what_there_is(tmp_path, run):
    for name in ("metrics.jsonl", "left_out.csv", "model.safetensors"):
        (run / name).unlink()
    run_report(run, tmp_path / "run.html")
    (run / "predictions.csv").unlink()
    run_report(run, tmp_path / "run.html")
    assert "base: paper" in (tmp_path / "run.html").read_text()
    (run / "config.yaml").unlink()
    with pytest.raises(FileNotFoundError, match="holds no run"):
        run_report(run, tmp_path / "none.html")


def test_says_what_to_install(tmp_path, model, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly.graph_objects", None)
    with pytest.raises(ImportError, match=r"pip install 'sitenet\[report\]'"):
        crystal_report(model, SALT, tmp_path / "x.html")


# ---------------------------------------------------------------------------------------------
# In a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --enable-unsafe-swiftshader --disable-quic "
    "--no-first-run --disable-background-networking --disable-component-update --disable-sync "
    "--hide-scrollbars --virtual-time-budget=10000 --window-size=1280,2400 --enable-logging=stderr"
)


def browse(tmp_path, path, *options):
    """Open a page without a network; returns what Chromium printed, and what the page said."""
    command = [CHROMIUM, *OPTIONS.split(), f"--user-data-dir={tmp_path / 'profile'}", *options]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    said = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return done.stdout, "\n".join(said)


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium (Debian: apt install chromium)")
@pytest.mark.parametrize("kind, figures", [("crystal", 3), ("run", 2)])
def test_in_chromium(tmp_path, model, run, kind, figures):
    path = tmp_path / "report.html"
    if kind == "crystal":
        crystal_report(model, SALT, path, primitive=False)
    else:
        run_report(run, path)
    picture = tmp_path / "report.png"
    dom, said = browse(tmp_path, path, "--dump-dom", f"--screenshot={picture}")
    assert not re.search("Uncaught|violates|Refused|Failed|ERR_", said), said
    title = re.search("<title>(.*?)</title>", dom, re.DOTALL)[1]
    assert title.startswith("&lt;/title&gt;" if kind == "crystal" else "a run")
    for number in range(1, figures + 1):
        drawn = dom[dom.index(f'id="figure{number}"') :]
        assert drawn.index('class="main-svg"') < 2000
    if kind == "crystal":
        # The sites that get most attention and least, in the colours of the scale's ends.
        pixels = pytest.importorskip("matplotlib.image").imread(picture)[200:900, 300:900, :3]
        for colour in ((253, 231, 37), (68, 1, 84)):
            assert (np.abs(255 * pixels - colour).max(-1) < 8).sum() > 200
