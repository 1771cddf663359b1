"""Matbench: official folds, its files, and results in its format."""

import gzip
import hashlib
import json

import numpy as np
import pytest
import yaml
from conftest import SHARED
from pytest import approx
from toy_crystals import SMALL, cif_of, toy_crystals, toy_targets

from sitenet.cli import app as cli
from sitenet.crystal.elements import SYMBOLS
from sitenet.training import matbench

sklearn_metrics = pytest.importorskip("sklearn.metrics")

TINY = SMALL.replace(epochs=2, last_activation="identity", blocks=1)


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    """Figures of each fold take most of the time, and are tested elsewhere."""
    monkeypatch.setattr("sitenet.inference.evaluate.Predictions.plot", lambda *_: [])


def pymatgen_dict(crystal):
    """A structure as the files of Matbench hold it."""
    return {
        "@module": "pymatgen.core.structure",
        "@class": "Structure",
        "charge": None,
        "lattice": {"matrix": crystal.cell.tolist()},
        "sites": [
            {"species": [{"element": SYMBOLS[z], "occu": 1}], "abc": x.tolist()}
            for z, x in zip(crystal.numbers, crystal.frac, strict=True)
        ],
    }


@pytest.fixture
def write(tmp_path):
    """Writes a file of Matbench; the third of its structures cannot be used."""

    def write(name, column, values, number=15):
        crystals = toy_crystals(number)
        rows = [pymatgen_dict(c) for c in crystals]
        rows[2]["sites"][0]["species"][0]["element"] = "Xx"
        values = values(crystals)
        data = [list(row) for row in zip(rows, values, strict=True)]
        content = {"columns": ["structure", column], "index": list(range(number)), "data": data}
        path = tmp_path / f"{name}.json.gz"
        with gzip.open(path, "wt") as file:
            json.dump(content, file)
        return path, np.array(values, dtype=float)

    return write


def results_of(folder, task):
    """The results, checked as the matbench package does on reading."""
    content = json.loads((folder / "results.json").read_text())
    keys = "@module @class version benchmark_name tasks user_metadata datestamp hash"
    assert set(content) == set(keys.split())
    assert (content["@module"], content["@class"]) == ("matbench.bench", "MatbenchBenchmark")
    checksum = content.pop("hash")
    assert checksum == hashlib.sha256(json.dumps(in_order(content)).encode()).hexdigest()
    assert set(content["tasks"]) == {task}
    entry = content["tasks"][task]
    assert set(entry) == {"@module", "@class", "benchmark_name", "dataset_name", "results"}
    assert (entry["@module"], entry["@class"]) == ("matbench.task", "MatbenchTask")
    assert entry["benchmark_name"] == content["benchmark_name"] == "matbench_v0.1"
    assert entry["dataset_name"] == task
    for fold in entry["results"].values():
        assert set(fold) == {"data", "parameters", "scores"}
        assert all(isinstance(x, float) for x in fold["scores"].values())
        assert all(isinstance(x, float) for x in fold["data"].values())
    return entry["results"]


def in_order(content):
    """Sorted, as the package sorts content before hashing it."""
    if not isinstance(content, dict):
        return content
    return dict(sorted((k, in_order(v)) for k, v in content.items()))


@pytest.mark.filterwarnings("ignore:15 rows, but matbench_phonons")
def test_regression(write, tmp_path):
    path, truth = write("matbench_phonons", "last phdos peak", toy_targets_of)
    out = tmp_path / "out"
    benchmark = matbench.matbench(path, out, TINY)
    assert (benchmark.task, benchmark.unit) == ("matbench_phonons", "cm^-1")
    results = results_of(out, "matbench_phonons")
    assert list(results) == [f"fold_{k}" for k in range(5)]
    ids = [i for fold in results.values() for i in fold["data"]]
    assert sorted(ids) == [f"mb-phonons-{k + 1:02d}" for k in range(15)]

    folds = matbench.official_folds(truth, False)
    for k in range(5):
        fold = results[f"fold_{k}"]
        rows = [int(i[-2:]) - 1 for i in fold["data"]]
        assert rows == [i for i in range(15) if folds[i] == k]
        y = np.array(list(fold["data"].values()))
        error = y - truth[rows]
        expected = {
            "mae": sklearn_metrics.mean_absolute_error(truth[rows], y),
            "rmse": np.sqrt(sklearn_metrics.mean_squared_error(truth[rows], y)),
            "mape": np.abs(error / truth[rows]).mean(),
            "max_error": sklearn_metrics.max_error(truth[rows], y),
        }
        assert fold["scores"] == pytest.approx(expected) and benchmark.scores[k] == fold["scores"]
        mean = truth[np.array(folds) != k].mean()
        left_out = fold["parameters"]["predicted_by_the_mean"]
        assert left_out == (["mb-phonons-03"] if folds[2] == k else [])
        for name in left_out:
            assert fold["data"][name] == pytest.approx(mean)
    scores = [s["mae"] for s in benchmark.scores.values()]
    assert benchmark.over_folds("mae") == pytest.approx((np.mean(scores), np.std(scores)))
    before = (out / "fold_4" / "metrics.jsonl").read_bytes()
    again = matbench.matbench(path, out, TINY, folds=[4])  # everything is there
    assert again.scores == benchmark.scores
    assert (out / "fold_4" / "metrics.jsonl").read_bytes() == before


def toy_targets_of(crystals):
    return toy_targets(crystals).tolist()


def is_wide(crystals):
    size = toy_targets(crystals)
    return (size > np.median(size)).tolist()


@pytest.mark.filterwarnings("ignore:15 rows, but matbench_mp_is_metal")
def test_classification_fold_by_fold(write, tmp_path, capsys):
    path, truth = write("matbench_mp_is_metal", "is_metal", is_wide)
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(TINY.to_dict()))
    arguments = ["matbench", path, "--out", tmp_path / "out", "--config", config, "--fold"]

    def run(*more):
        with pytest.raises(SystemExit) as end:
            cli.main([*map(str, arguments), *more])
        return end.value.code or 0, capsys.readouterr()

    assert list(json.loads(run("3", "--json")[1].out)["folds"]) == ["3"]
    status, (out, err) = run("1")
    assert status == 0 and "fold 1" in err
    lines = out.splitlines()
    assert lines[0] == "fold,accuracy,balanced_accuracy,f1,rocauc,rocauc_of_labels"
    assert [line.partition(",")[0] for line in lines[1:]] == ["1", "3", "mean", "std"]
    results = results_of(tmp_path / "out", "matbench_mp_is_metal")
    for fold in (1, 3):
        data = results[f"fold_{fold}"]["data"]
        rows, p = [int(i[-2:]) - 1 for i in data], np.array(list(data.values()))
        x, called = truth[rows] > 0.5, p > 0.5
        exact = sklearn_metrics.roc_auc_score(x, p)
        assert results[f"fold_{fold}"]["parameters"]["rocauc_of_probabilities"] == approx(exact)
        (row,) = [line.split(",") for line in lines if line.startswith(f"{fold},")]
        assert float(row[-2]) == approx(exact, abs=5e-5)  # printed with four digits
        assert results[f"fold_{fold}"]["scores"] == approx(  # what the leaderboard compares
            {
                "accuracy": sklearn_metrics.accuracy_score(x, called),
                "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(x, called),
                "f1": sklearn_metrics.f1_score(x, called, zero_division=0),
                "rocauc": sklearn_metrics.roc_auc_score(x, called),
            }
        )
    content = json.loads((tmp_path / "out" / "results.json").read_text())
    assert content["user_metadata"]["rocauc"] == matbench.ROCAUC_NOTE
    status, (_, err) = run("7")
    assert status == 1 and "no fold 7; there is 0, 1, 2, 3, 4" in err


def test_scores_of_labels_from_a_file_of_an_earlier_version():
    """Its rocauc is of the probabilities; of labels, it equals the balanced accuracy."""
    scores = {"accuracy": 0.5, "balanced_accuracy": 0.6, "f1": 0.5, "rocauc": 0.9}
    got = matbench._scores_of({"parameters": {"epochs": 2}, "scores": scores})
    assert got == {**scores, "rocauc_of_labels": 0.6}


def test_folds_of_a_table(tmp_path):
    """A table that names the fold in which each row is tested, with ids of its own."""
    pandas = pytest.importorskip("pandas")
    crystals = toy_crystals(12)
    table = pandas.DataFrame(
        {
            "id": [f"mb-mp-gap-{k:06d}" for k in range(12)],
            "cif": list(map(cif_of, crystals)),
            "size_A": toy_targets(crystals),
            "n_atoms": [len(c) for c in crystals],
            "matbench_fold": [1, 2, 4] * 4,
        }
    )
    path = tmp_path / "matbench_mp_gap_part.parquet"
    table.to_parquet(path)
    benchmark = matbench.matbench(path, tmp_path / "out", TINY, target="size_A", folds=[4])
    assert benchmark.task == "matbench_mp_gap" and list(benchmark.scores) == [4]
    data = results_of(tmp_path / "out", "matbench_mp_gap")["fold_4"]["data"]
    assert list(data) == [f"mb-mp-gap-{k:06d}" for k in (2, 5, 8, 11)]


def test_folds_of_matbench_are_the_official_ones():
    """The shared table holds the folds that the matbench package assigns."""
    path = SHARED / "data" / "matbench_mp_gap_sample_4000.parquet"
    if not path.exists():
        pytest.skip("needs the shared data")
    import pyarrow.parquet as parquet

    table = parquet.read_table(path, columns=["id", "matbench_fold"]).to_pydict()
    folds = matbench.official_folds(np.zeros(matbench.TASKS["matbench_mp_gap"][0]), False)
    for name, fold in zip(table["id"], table["matbench_fold"], strict=True):
        assert folds[int(name.rpartition("-")[2]) - 1] == fold


def test_other_rows_than_the_official_are_said(write, tmp_path):
    path, _ = write("matbench_jdft2d", "exfoliation_en", toy_targets_of, 12)
    with pytest.warns(UserWarning, match="12 rows, but matbench_jdft2d has 636"):
        matbench.matbench(path, tmp_path / "out", TINY, folds=[0])


def test_results_of_another_task_are_kept(write, tmp_path):
    path, _ = write("some_task", "gap", toy_targets_of, 12)
    matbench.matbench(path, tmp_path / "out", TINY, folds=[0])
    with pytest.raises(ValueError, match="holds results of some_task, not of other"):
        matbench.matbench(path, tmp_path / "out", TINY, task="other", folds=[0])


def test_damaged_results_are_named(write, tmp_path):
    path, _ = write("some_task", "gap", toy_targets_of, 12)
    out = tmp_path / "out"
    matbench.matbench(path, out, TINY, folds=[0])
    content = (out / "results.json").read_bytes()
    for place in (0, len(content) // 3, len(content) // 2, len(content) - 20):
        damaged = bytearray(content)
        damaged[place] ^= 1
        (out / "results.json").write_bytes(damaged)
        with pytest.raises(ValueError, match=r"results\.json is damaged"):
            matbench.matbench(path, out, TINY, folds=[0])
