"""The bench that trains and tests the models of all properties that ship."""

import csv
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import tasks as bench
import tasks_card
import tasks_runs
import yaml
from tasks_list import Task, read_tasks
from tasks_runs import Runs
from tasks_table import write_table
from toy_crystals import cif_of, toy_crystals, toy_targets
from trainers import FAST

import sitenet
from sitenet.model.checkpoint import read_metadata
from sitenet.system import model_files
from sitenet.system.model_files import shipped_weights
from sitenet.training.leaderboard import ANCHORS
from sitenet.training.matbench import TASKS
from sitenet.training.ridge import ridge, ridge_scores

SETTINGS = {"config": FAST, "bits": 10, "valid": 0.1, "group": "none", "epochs": 2}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two properties that were trained and tested: a modulus that may start from an energy."""
    folder = tmp_path_factory.mktemp("tasks")
    crystals = toy_crystals(90)
    size = toy_targets(crystals)
    fold = [k % 3 + 1 for k in range(90)]
    columns = {
        "id": [f"c{k}" for k in range(90)],
        "cif": [cif_of(c) for c in crystals],
        "reduced_formula": [c.reduced_formula for c in crystals],
        "matbench_fold": fold,
    }
    other = [1 if k % 7 == 0 else None for k in range(90)]
    excess = np.maximum(size - np.median(size), 0).tolist()
    energies = columns | {"energy": size.tolist(), "excess": excess, "other_fold": other}
    parquet.write_table(pa.table(energies), folder / "energies.parquet")
    modulus = [None if k == 5 else x for k, x in enumerate((size / 4).tolist())]
    few = {name: values[:60] for name, values in (columns | {"log_modulus": modulus}).items()}
    parquet.write_table(pa.table(few), folder / "moduli.parquet")
    tasks = {
        "energy": Task(
            "energy",
            "energies.parquet",
            "energy",
            "energy_eV",
            "eV",
            without=("other_fold",),
            settings=SETTINGS,
        ),
        "modulus": Task(
            "modulus",
            "moduli.parquet",
            "log_modulus",
            "modulus_GPa",
            "GPa",
            conversion="power_of_ten",
            log=True,
            starts=("random", "energy"),
            matbench="matbench_log_kvrh",
            settings=SETTINGS,
        ),
        "metal": Task(
            "metal",
            "energies.parquet",
            "excess",
            "is_metal",
            conversion="is_zero",
            is_class=True,
            settings=SETTINGS,
        ),
    }
    runs = Runs(folder / "runs", folder, tasks)
    runs.work(["energy", "modulus"], bench.STEPS)
    runs.work(["metal"], ["tested"])
    return runs


def parts(dataset):
    names = np.array(dataset.split)
    return {name: {dataset.ids[k] for k in np.flatnonzero(names == name)} for name in set(names)}


def test_the_tested_model_learns_from_no_crystal_that_it_must_not_know(runs):
    rows = parquet.read_table(runs.data / "energies.parquet").to_pylist()
    forbidden = {r["id"] for r in rows if r["other_fold"] == 1}
    own = {r["id"] for r in rows if r["matbench_fold"] == 1}
    split = parts(runs.dataset(runs.tasks["energy"], shipped=False))
    assert split["test"] == own
    assert split["unseen"] == forbidden - own and len(split["unseen"]) > 5
    assert not (split["train"] | split["valid"]) & (forbidden | own)
    facts = read_metadata(runs.folder / "energy" / "tested" / "random" / "model.safetensors")
    assert facts["metadata"]["crystals"] == {k: len(split[k]) for k in ("train", "valid", "test")}


def test_the_shipped_model_learns_from_all_but_the_same_validation_crystals(runs):
    task = runs.tasks["energy"]
    tested, shipped = (parts(runs.dataset(task, shipped=x)) for x in (False, True))
    assert set(shipped) == {"train", "valid"}
    assert shipped["valid"] == tested["valid"]
    assert len(shipped["train"]) + len(shipped["valid"]) == 90
    facts = read_metadata(runs.folder / "energy" / "shipped" / "model.safetensors")
    assert facts["metadata"]["crystals"]["test"] == 0
    assert facts["format"] == 5  # ten bits


def test_the_start_is_chosen_on_validation_and_used_for_both_models(runs):
    result = runs.result("modulus", "tested")
    errors = result["valid_errors"]
    assert set(errors) == {"random", "energy"} and result["start"] == min(errors, key=errors.get)
    scores = result["scores"]["test"]["modulus_GPa"]
    assert scores["mae_log10"] > 0 and scores["crystals"] == result["rows"]["test"] == 20
    assert sum(result["rows"].values()) == 59  # one has no value
    assert runs.result("modulus", "shipped")["start"] == result["start"]
    model = sitenet.load(runs.folder / "modulus" / "shipped")
    (target,) = model.targets
    assert (target.name, target.unit, target.scale) == ("modulus_GPa", "GPa", "log10")
    rival = runs.result("modulus", "rival")
    assert rival["start"] == "energy" and rival["test"]["crystals"] == 20
    assert runs.result("energy", "rival") == {}
    assert result["start_tables"] == {}


def test_the_error_on_formulas_new_to_the_starts_stands_beside_that_on_all(runs, tmp_path):
    learned = parts(runs.dataset(runs.tasks["energy"], shipped=False))
    table = parquet.read_table(runs.data / "energies.parquet").to_pylist()
    known = {r["reduced_formula"] for r in table if r["id"] in learned["train"] | learned["valid"]}
    assert runs.formulas("energy") == known and runs.formulas("random") == set()
    result = runs.result("energy", "tested")
    assert result["chain"] == []
    want = result["scores"]["test"]["energy_eV"]
    assert result["unknown"]["mae"] == pytest.approx(want["mae"], rel=1e-5)  # decimals of the file
    assert result["unknown"]["coverage"] == pytest.approx(want["coverage"])
    task = runs.tasks["modulus"]
    tested = parts(runs.dataset(task, shipped=False))["test"]
    new = {r["id"] for r in table if r["reduced_formula"] not in known} & tested
    assert 0 < len(new) < len(tested)
    path = runs.folder / "modulus" / "tested" / "energy" / "predictions.csv"
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["id"] in new]
    pairs = [[float(r[f"modulus_GPa{x}"]) for x in ("", "_predicted")] for r in rows]
    scores = runs._unknown(task, "energy")
    assert scores["crystals"] == len(new) == len(rows)
    error = np.mean([abs(np.log10(y / x)) for x, y in pairs])
    assert scores["mae_log10"] == pytest.approx(error)
    with_start = Runs(runs.folder, runs.data, runs.tasks)
    assert with_start.chain("energy") == ["energy"]


def test_a_model_file_can_be_the_tested_start_of_a_property(runs, tmp_path):
    file = runs.folder / "energy" / "shipped" / "model.safetensors"
    whole = parquet.read_table(runs.data / "energies.parquet", columns=["id", "reduced_formula"])
    some = whole.slice(0, 30)
    parquet.write_table(some, tmp_path / "formulas.parquet")
    parquet.write_table(some.select(["id"]), tmp_path / "ids.parquet")
    for name in ("formulas", "ids"):
        tables = {"energy": tmp_path / f"{name}.parquet"}
        given = Runs(
            tmp_path / name, runs.data, runs.tasks, "cpu", None, None, {"energy": file}, tables
        )
        assert given.formulas("energy") == set(some["reduced_formula"].to_pylist())
        assert given.chain("energy") == ["energy"]
    start = given._start("energy", "tested")
    assert start.calibration.index is not None  # of the file, as no run is in this folder
    task = replace(runs.tasks["modulus"], starts=("energy",))
    given.tasks = {**runs.tasks, "modulus": task}
    given.work(["modulus"], ["tested"])
    result = given.result("modulus", "tested")
    assert result["start_tables"] == {"energy": ["ids.parquet", 30]}
    assert result["start"] == "energy" and result["chain"] == ["energy"]
    assert 0 < result["unknown"]["crystals"] < result["rows"]["test"]
    other = pa.table({"id": ["c0", "elsewhere"]})
    parquet.write_table(other, tmp_path / "ids.parquet")
    with pytest.raises(ValueError, match=r"energies\.parquet, which lacks elsewhere"):
        given.formulas("energy")


def test_finished_steps_are_not_done_again(runs, monkeypatch):
    monkeypatch.setattr(tasks_runs, "train", None)
    runs.work(["energy", "modulus"], bench.STEPS)
    runs.result_path("modulus", "shipped").rename(runs.folder / "kept.json")
    with pytest.raises(TypeError):
        runs.work(["modulus"], bench.STEPS)
    (runs.folder / "kept.json").rename(runs.result_path("modulus", "shipped"))
    with pytest.raises(FileNotFoundError, match="run the step shipped of metal first"):
        runs.result("metal", "shipped")


def test_the_table_has_a_row_per_tested_property(runs, tmp_path):
    write_table(runs.folder, runs.tasks, tmp_path / "tasks.md")
    text = (tmp_path / "tasks.md").read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| modulus")]
    scores = runs.result("modulus", "tested")["scores"]["test"]["modulus_GPa"]
    assert f"| **{scores['mae_log10']:.3g}** log10 |" in row
    assert "coGN 0.0547" in row and "(energy)" in row
    (row,) = [line for line in text.splitlines() if line.startswith("| metal")]
    scores = runs.result("metal", "tested")["scores"]["test"]["is_metal"]
    of_labels = scores["roc_auc_of_labels"]
    assert f"**{scores['roc_auc']:.4f}** (of labels {of_labels:.4f})" in row
    assert 0 <= of_labels <= 1 and scores["crystals"] == 30
    with pytest.raises(FileNotFoundError, match=r"holds no tested\.json"):
        write_table(tmp_path, runs.tasks, tmp_path / "other.md")


def test_a_shipped_file_says_how_it_was_tested(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "weights_folder", lambda: tmp_path)
    bench.ship(runs, ["modulus"])
    path = tmp_path / "modulus.safetensors"
    tested = read_metadata(path)["metadata"]["tested"]
    assert tested == runs.result("modulus", "tested")
    crystals = toy_crystals(4)
    want = sitenet.load(runs.folder / "modulus" / "shipped").predict(crystals)
    np.testing.assert_allclose(sitenet.load(path).predict(crystals), want, rtol=1e-6)
    with pytest.raises(FileNotFoundError):
        bench.ship(runs, ["energy-of-none"])


FACTS = {
    "property": "a modulus",
    "tags": ["elasticity"],
    "licence": "none",
    "data": "Random crystals.",
    "not_for": ["Anything."],
}


def shipped_card(runs, name, folder, monkeypatch):
    """The card of a property, shipped into a folder."""
    monkeypatch.setattr(bench, "weights_folder", lambda: folder)
    monkeypatch.setattr(model_files, "weights_folder", lambda: folder)
    (folder / "task_cards.yaml").write_text(yaml.safe_dump({name: FACTS}))
    (folder / "task_card.md").write_text((tasks_card.HERE / "task_card.md").read_text())
    monkeypatch.setattr(tasks_card, "HERE", folder)
    bench.ship(runs, [name])
    return tasks_card.write_card(runs, name, folder / "docs").read_text()


def test_a_card_gives_the_figures_of_the_runs(runs, tmp_path, monkeypatch):
    page = shipped_card(runs, "modulus", tmp_path, monkeypatch)
    tested, rival = (runs.result("modulus", step) for step in ("tested", "rival"))
    scores = tested["scores"]["test"]["modulus_GPa"]
    _, front, text = page.split("---\n", 2)
    assert text.startswith("\n# modulus\n\nPredicts a modulus (GPa)") and "$" not in text
    (entry,) = yaml.safe_load(front)["model-index"]
    (result,) = entry["results"]
    assert result["dataset"]["name"] == "matbench_log_kvrh v0.1, fold 1"
    assert {m["type"] for m in result["metrics"]} == {"mae", "rmse", "r2"}
    assert f"| **{scores['mae']:.3f} GPa**; predicting the mean everywhere: " in page
    assert f"| error of the decimal logarithm | **{scores['mae_log10']:.4f}** |" in page
    assert "| interval |" not in page and "coverage" not in scores  # too few crystals validate
    assert (
        f"| trained on | {tested['rows']['train']} crystals; {tested['rows']['valid']} valid"
        in page
    )
    assert f"| modulus | {scores['mae_log10']:.4g} | fold 1 |" in page
    assert f"| ridge on the encodings of energy | {rival['test']['mae']:.4g} | the same |" in page
    assert "| coGN | 0.0547 | fold 1 |" in page and "| coNGN | 0.0491 | all five folds |" in page
    # 10,987 rows in five folds, the first two of them with one more.
    assert f"has 2,198 official rows, of which {2198 - 20:,} are missing here" in page
    assert "- Anything.\n" in page and "--only energy modulus\n" in page
    assert ("on formulas new to the starts" in page) == (tested["start"] == "energy")
    for name, error in tested["valid_errors"].items():
        assert f"{name} {error:.4g}" in page


def test_a_card_of_a_class_and_one_of_a_start_of_ones_own(runs, tmp_path, monkeypatch):
    runs.work(["metal"], ["rival", "shipped"])
    page = shipped_card(runs, "metal", tmp_path, monkeypatch)
    scores = runs.result("metal", "tested")["scores"]["test"]["is_metal"]
    assert f"| area under the ROC curve | **{scores['roc_auc']:.3f}**, of labels " in page
    assert "## Probabilities" in page and "Matbench has no such task." in page
    assert "mean absolute error" not in page.partition("## Errors by similarity")[0]
    task = runs.tasks["modulus"]
    with_interval = dict(tasks_card._scores(runs.tasks["energy"], runs.result("energy", "tested")))
    scores = runs.result("energy", "tested")["scores"]["test"]["energy_eV"]
    assert f"which covers {scores['coverage']:.1%} of the test" in with_interval["interval"]
    tested = {
        **runs.result("modulus", "tested"),
        "start": "energy",
        "chain": ["energy"],
        "start_tables": {"energy": ["own.parquet", 1234]},
        "unknown": {"crystals": 7, "mae": 1.5, "mae_log10": 0.25, "coverage": 0.5},
    }
    rows = dict(tasks_card._scores(task, tested))
    want = "7 test crystals: 1.500 GPa (0.2500 of the logarithm), intervals hold 50.0%"
    assert rows["on formulas new to the starts"] == want
    protocol = tasks_card._protocol(task, tested, runs, tested["epochs"])
    assert "apart, on the 1,234 rows of `own.parquet`" in protocol and "instead of" not in protocol
    protocol = tasks_card._protocol(task, tested, runs, 1)
    assert "in the same way for 1 epochs instead of 2 on all folds" in protocol
    options = tasks_card._options(task, tested, runs)
    assert options.endswith("--start energy=FILE --start-table energy=own.parquet")


def test_no_card_is_on_weights_that_do_not_ship(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(model_files, "weights_folder", lambda: tmp_path)
    with pytest.raises(ValueError, match="no weights modulus ship"):
        tasks_card.write_card(runs, "modulus", tmp_path)
    model = sitenet.load(runs.folder / "modulus" / "shipped")
    model.save(tmp_path / "modulus.safetensors", {"tested": {"other": 1}})
    with pytest.raises(ValueError, match="was not shipped from the runs"):
        tasks_card.write_card(runs, "modulus", tmp_path)
    assert not list(tmp_path.glob("*.md"))


def test_there_are_facts_of_every_property():
    facts = yaml.safe_load((tasks_card.HERE / "task_cards.yaml").read_text(encoding="utf-8"))
    assert set(facts) == set(read_tasks())
    for name, entry in facts.items():
        assert set(entry) - {"notes", "more"} == set(FACTS), name
        assert all(isinstance(line, str) for line in entry["not_for"]), name


def test_a_model_without_what_training_leaves_is_not_shipped(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "weights_folder", lambda: tmp_path)
    folder = tmp_path / "metal" / "shipped"
    folder.mkdir(parents=True)
    model = sitenet.load(runs.folder / "metal" / "tested" / "random")
    model.calibration.index = None
    model.save(folder / "model.safetensors")
    with pytest.raises(ValueError, match="or no index"):
        bench.ship(Runs(tmp_path, tmp_path, runs.tasks), ["metal"])


def test_ridge_is_the_least_squares_solution_with_a_penalty():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 4)) * [1, 10, 0.1, 0] + [5, 0, 0, 3]  # the last one is constant
    y = x[:, 0] - 0.2 * x[:, 1] + rng.normal(size=50)
    z = (x[:, :3] - x[:, :3].mean(0)) / x[:, :3].std(0)
    for strength in (1e-6, 0.3, 100.0):
        w, b = ridge(x, y, np.array([strength]))
        extra = np.sqrt(strength * 50) * np.eye(3)
        rows, right = np.vstack([z, extra]), np.append(y - y.mean(), np.zeros(3))
        want = z @ np.linalg.lstsq(rows, right, rcond=None)[0] + y.mean()
        np.testing.assert_allclose(x @ w[:, 0] + b[0], want, atol=1e-9)
    places = {"train": np.arange(30), "valid": np.arange(30, 40), "test": np.arange(40, 50)}
    scores = ridge_scores(x, y, places, False)
    w, b = ridge(x[:30], y[:30], np.array([scores["strength"]]))
    error = np.abs(x @ w[:, 0] + b[0] - y)
    assert scores["test"]["mae"] == pytest.approx(error[40:].mean())
    assert scores["valid"] == pytest.approx(error[30:40].mean())
    classes = ridge_scores(x, (y > y.mean()).astype(float), places, True)
    assert classes["test"]["roc_auc"] > 0.8


def test_the_listed_tasks_are_sound(tmp_path):
    tasks = read_tasks()
    assert list(tasks)[:2] == ["mp-eform", "mp-gap"]  # the others may start from them
    assert set(shipped_weights()) <= set(tasks)
    for task in tasks.values():
        assert not task.matbench or task.matbench in set(TASKS) & set(ANCHORS)
        assert task.settings["bits"] == 10
        sitenet.load_config(task.settings["config"]).replace(
            **{k: v for k, v in task.settings.items() if k not in ("config", "bits")}
        )
    content = {"fold": 1, "every": {}, "tasks": {}}
    for name, start in (("a", "b"), ("b", "a")):
        entry = {"table": "t", "column": "c", "target": name, "starts": [start]}
        content["tasks"][name] = entry
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(ValueError, match="a starts from b"):
        read_tasks(tmp_path / "tasks.yaml")


def test_the_command_refuses_an_unknown_property(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        bench.main(["run", str(tmp_path), "--data", str(tmp_path), "--only", "mp-gapp"])
    assert stop.value.code == 2
    assert "no property mp-gapp; there is mp-eform" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        bench.main(["run", str(tmp_path), "--data", str(tmp_path), "--start", "mp-eform=x"])
    assert "mp-eform needs both --start and --start-table" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_anchors_are_those_of_all_folds_or_of_some():
    gap = {anchor.model: anchor for anchor in ANCHORS["matbench_mp_gap"]}
    assert gap["coGN"].over(range(5)) == pytest.approx(gap["coGN"].mean) == pytest.approx(0.1559)
    assert gap["coGN"].over([1]) == 0.1561
    assert gap["ALIGNN"].over([1]) is None and gap["ALIGNN"].over([4, 3, 2, 1, 0]) == 0.1861
    assert [a.mean for a in ANCHORS["matbench_mp_is_metal"]] == sorted(
        (a.mean for a in ANCHORS["matbench_mp_is_metal"]), reverse=True
    )
    assert json.dumps(sorted(ANCHORS)) == json.dumps(sorted(TASKS))


@pytest.mark.parametrize("group", ["none", "formula"])
def test_the_draw_of_the_validation_keeps_groups_together(tmp_path, group):
    """Several measurements of a compound would otherwise be on both sides."""
    crystals = [c for c in toy_crystals(20) for _ in range(3)]
    columns = {
        "id": [f"c{k}" for k in range(60)],
        "cif": [cif_of(c) for c in crystals],
        "reduced_formula": [c.reduced_formula for c in crystals],
        "gap": np.arange(60.0).tolist(),
        "matbench_fold": [2 if k < 30 else 1 for k in range(60)],
    }
    parquet.write_table(pa.table(columns), tmp_path / "gaps.parquet")
    settings = SETTINGS | {"group": group, "valid": 0.2}
    task = Task("gap", "gaps.parquet", "gap", "gap_eV", "eV", settings=settings)
    data = Runs(tmp_path / "runs", tmp_path, {"gap": task}).dataset(task, shipped=False)
    parts = np.array(data.split)
    assert (parts == "test").sum() == 30 and (parts == "valid").sum() == 12
    of = {part: set(data.groups("formula")[parts == part]) for part in ("train", "valid")}
    assert bool(of["train"] & of["valid"]) is (group == "none")
