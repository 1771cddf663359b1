"""The card of trained weights, from a run folder and its dataset."""

import re
from pathlib import Path

import numpy as np
import pytest
import tasks_card
import torch
import yaml
from model_card import by_range, card, front_matter
from predictions import Predictions
from tasks_list import read_tasks

from sitenet.config import SiteNetConfig
from sitenet.data.prepare import prepare
from sitenet.data.prepared import load_dataset
from sitenet.model import calibration as calibrations
from sitenet.model.checkpoint import load, read_metadata
from sitenet.model.sitenet import SiteNet, Target
from sitenet.system.files import write_csv
from sitenet.system.model_files import shipped_weights

ROOT = Path(__file__).resolve().parents[2]
HEADER = (
    "id",
    "split",
    "gap_eV",
    "gap_eV_predicted",
    "gap_eV_low",
    "gap_eV_high",
    "like_training",
)


SCORES = {"mae_of_mean": 1.25, "mae_of_median": 1.125, "interval": 0.6}


@pytest.fixture
def run(tmp_path):
    """A run folder with easily checked predictions for 40 crystals, and its dataset."""
    source = tmp_path / "source"
    source.mkdir()
    for path in sorted((ROOT / "examples" / "semiconductors").glob("*.cif"))[:40]:
        (source / path.name).write_bytes(path.read_bytes())
    ids = sorted(p.stem for p in source.glob("*.cif"))
    truth = [0.0] * 10 + [1.5] * 20 + [4.0] * 10
    write_csv(source / "targets.csv", ("id", "gap_eV"), zip(ids, truth, strict=True))
    prepare(source, tmp_path / "dataset.parquet")
    predicted = [0.1] * 10 + [1.0] * 20 + [6.0] * 10
    rows = [
        (i, "valid" if k == 0 else "test", t, p, p - 0.6, p + 0.6, "no" if k == 39 else "yes")
        for k, (i, t, p) in enumerate(zip(ids, truth, predicted, strict=True))
    ]
    folder = tmp_path / "run"
    folder.mkdir()
    write_csv(folder / "predictions.csv", HEADER, rows)
    torch.manual_seed(0)
    SiteNet(SiteNetConfig(site_dim=4), [Target("gap_eV", "eV")]).save(
        folder / "model.safetensors",
        {
            "epoch": 3,
            "crystals": {"train": 100, "valid": 1, "test": 39},
            "scores": {"test": {"gap_eV": SCORES}},
        },
    )
    return folder, tmp_path / "dataset.parquet"


def test_probabilities_of_zero_and_the_index_are_described(run):
    folder, dataset = run
    model = load(folder / "model.safetensors")
    encodings = np.random.default_rng(0).normal(size=(600, model.encoding_size))
    encodings = encodings.astype(np.float32)
    y = calibrations.outputs(model, encodings).values
    truth = np.maximum(y - np.median(y), 0)
    model.calibration = calibrations.calibrate(truth, y, encodings, encodings)
    model.calibration.errors = calibrations.errors_of(model, encodings, truth)
    facts = read_metadata(folder / "model.safetensors")["metadata"]
    model.save(folder / "model.safetensors", facts)
    facts = yaml.safe_load((ROOT / "bench" / "model_cards" / "mp-eform.yaml").read_text())
    page = card(folder, dataset, facts)
    assert "On the 600 validation crystals (50.0% are zero)" in page
    assert "its ROC AUC is 0.99" in page or "its ROC AUC is 1.000" in page
    assert "| 0.9 to 1.0 |" in page and "index of training crystals" not in page


@pytest.mark.parametrize("name", ["mp-eform"])
def test_figures_are_those_of_the_predictions(run, name):
    facts = yaml.safe_load((ROOT / "bench" / "model_cards" / f"{name}.yaml").read_text())
    page = card(*run, facts)
    _, front, text = page.split("---\n", 2)
    assert text.startswith(f"\n# {name}\n")
    about = yaml.safe_load(front)
    assert about["license"] == "mit" and about["library_name"] == "sitenet"
    (entry,) = about["model-index"]
    (result,) = entry["results"]
    assert entry["name"] == name and result["dataset"]["split"] == "test"
    mae = (9 * 0.1 + 20 * 0.5 + 10 * 2) / 39
    assert {m["type"]: m["value"] for m in result["metrics"]}["mae"] == round(mae, 3)
    assert f"**{mae:.3f} eV**; predicting the mean everywhere: 1.250, the median: 1.125" in page
    assert "| exactly 0 eV | 9 | 0.100 | +0.100 | 100% |" in page
    assert "| `like_training`: no | 1 | 2.000 | +2.000 | 0% |" in page
    assert "The test crystals of the tables above:" in page
    assert "- Oxidation states in a file change the prediction.\n" in page
    assert "±0.600 eV at 90 %, which covers 74.4% of the test crystals" in page
    assert page.count("| 4.000 | 6.000 |") == 10  # the largest errors
    for command in facts["commands"].strip().splitlines():
        assert command in page
    assert "$" not in page.replace("$name", "")


@pytest.mark.parametrize("name", list(shipped_weights()))
def test_the_shipped_cards_have_the_front_matter_of_their_figures(name):
    if (tested := read_metadata(shipped_weights()[name])["metadata"].get("tested")) is not None:
        task = read_tasks()[name]
        facts = yaml.safe_load((ROOT / "bench" / "task_cards.yaml").read_text(encoding="utf-8"))
        _, front, _ = (ROOT / "docs" / "models" / f"{name}.md").read_text().split("---\n", 2)
        scores = tested["scores"]["test"][task.target]
        assert front.strip() == tasks_card.front_matter(task, facts[name], scores)
        return
    facts = yaml.safe_load((ROOT / "bench" / "model_cards" / f"{name}.yaml").read_text())
    page = (ROOT / "docs" / "models" / f"{name}.md").read_text(encoding="utf-8")
    _, front, text = page.split("---\n", 2)
    mae, unit = re.search(r"\*\*([\d.]+) (\S+)\*\*; predicting", text).groups()
    rmse, r2 = re.search(r"square error, R² \| ([\d.]+) \S+, ([\d.]+) \|", text).groups()
    scores = {"mae": float(mae), "rmse": float(rmse), "r2": float(r2)}
    assert front.strip() == front_matter(facts, "test", unit, scores)


def test_a_refit_gets_a_line_of_its_own(run, tmp_path):
    folder, dataset = run
    facts = yaml.safe_load((ROOT / "bench" / "model_cards" / "mp-eform.yaml").read_text())
    assert "| the shipped weights |" not in card(folder, dataset, facts)
    model = SiteNet(SiteNetConfig(site_dim=4), [Target("gap_eV", "eV")])
    for where, mae, counts in (
        (folder, 0.25, {"train": 100, "valid": 1, "test": 39}),
        (tmp_path / "refit", 0.125, {"train": 139, "valid": 1, "test": 0}),
    ):
        where.mkdir(exist_ok=True)
        scores = {k: {"gap_eV": {"mae": mae, **SCORES}} for k in ("valid", "test")}
        facts_of_run = {"epoch": 3, "crystals": counts, "scores": scores}
        model.save(where / "model.safetensors", facts_of_run)
    rows = [("a", "valid", 1.5, 1.0, 0.9, 1.6, "yes"), ("b", "valid", 0.0, 0.25, 0.1, 0.5, "no")]
    write_csv(tmp_path / "refit" / "predictions.csv", HEADER, rows)
    page = card(folder, dataset, facts, tmp_path / "refit")
    assert "The validation crystals, predicted by the shipped weights." in page
    assert "| `like_training`: yes | 1 | 0.500 | -0.500 | 100% |" in page
    assert "| `like_training`: no | 1 | 0.250 | +0.250 | 0% |" in page
    assert "| exactly 0 eV | 9 |" in page  # of the tested run, like all other tables
    (line,) = [line for line in page.splitlines() if line.startswith("| the shipped weights |")]
    assert "trained on 139 crystals" in line and "0.125 eV (tested model: 0.250 eV) |" in line
    facts_of_run["crystals"] = {"train": 138, "valid": 2, "test": 0}
    model.save(tmp_path / "refit" / "model.safetensors", facts_of_run)
    with pytest.raises(ValueError, match=r"validated on 2 crystals, the tested run on 1"):
        card(folder, dataset, facts, tmp_path / "refit")


def test_models_that_ignore_oxidation_states_say_so(run):
    folder, dataset = run
    facts = yaml.safe_load((ROOT / "bench" / "model_cards" / "mp-eform.yaml").read_text())
    model, header = load(folder / "model.safetensors"), read_metadata(folder / "model.safetensors")
    model.uses_oxidation = False
    model.save(folder / "model.safetensors", header["metadata"])
    assert "- Oxidation states in a file do not change the prediction:" in card(
        folder, dataset, facts
    )


def test_elements_are_counted_in_the_test_crystals(run):
    folder, dataset = run
    facts = yaml.safe_load((ROOT / "bench" / "model_cards" / "mp-eform.yaml").read_text())
    page = card(folder, dataset, facts)
    data = load_dataset(dataset)
    tested = data.crystals[1:] if data.ids == sorted(data.ids) else None
    assert tested is not None
    silver = sum(47 in c.numbers for c in tested)
    assert silver >= 5 and f"| Ag | {silver} |" in page


def test_ranges_without_many_zeros_are_quintiles():
    truth = np.arange(1.0, 101.0)
    same = np.ones(100, dtype=bool)
    p = Predictions("test", truth.astype(str), truth, truth + 1, truth, truth + 2, same)
    lines = by_range(p, "K", None).splitlines()[2:]
    assert len(lines) == 5 and all("| 20 | 1.000 | +1.000 | 100% |" in line for line in lines)
    assert lines[0].startswith("| below 20.8 K |") and lines[-1].startswith("| 80.2 K and above |")


def test_a_dataset_without_a_predicted_crystal_is_refused(run):
    folder, dataset = run
    predictions = folder / "predictions.csv"
    predictions.write_text(predictions.read_text() + "X,test,1,1,,,yes\n")
    with pytest.raises(ValueError, match="lacks X"):
        card(folder, dataset, {})
