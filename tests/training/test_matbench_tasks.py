"""Several tasks of Matbench from a folder: what is found there, and the page of results."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import yaml
from toy_crystals import SMALL, cif_of, toy_crystals, toy_targets

from sitenet.cli import app as cli
from sitenet.training import matbench_tasks as several
from sitenet.training.leaderboard import ANCHORS
from sitenet.training.matbench import TASKS
from sitenet.training.matbench_tasks import find_tasks, matbench_tasks, official_rows

pytest.importorskip("sklearn")

TINY = SMALL.replace(epochs=1, last_activation="identity", blocks=1)


@pytest.fixture(autouse=True)
def no_plots(monkeypatch):
    """Figures of each fold take most of the time, and are tested elsewhere."""
    monkeypatch.setattr("sitenet.inference.evaluate.Predictions.plot", lambda *_: [])


@pytest.fixture
def tables(tmp_path):
    """A table of both moduli, two of gaps, and one of something else."""
    folder = tmp_path / "tables"
    folder.mkdir()
    crystals = toy_crystals(24)
    size = toy_targets(crystals)
    common = {
        "id": [f"c{k}" for k in range(24)],
        "cif": [cif_of(c) for c in crystals],
        "matbench_fold": [k % 3 + 1 for k in range(24)],
    }
    gap = np.maximum(size - np.median(size), 0)
    columns = {
        "log10_bulk_modulus_vrh_GPa": np.log10(size).tolist(),
        "log10_shear_modulus_vrh_GPa": np.log10(size / 2).tolist(),
    }

    def write(name, rows=24, **more):
        content = {k: v[:rows] for k, v in (common | more).items()}
        parquet.write_table(pa.table(content), folder / name)

    write("matbench_log_kvrh_gvrh.parquet", **columns)
    write("matbench_mp_gap_sample.parquet", rows=12, band_gap_eV=gap.tolist(), n_atoms=[1.0] * 24)
    write("matbench_mp_gap_whole.parquet", band_gap_eV=gap.tolist(), n_atoms=[1.0] * 24)
    write("matbench_phonons_other.parquet", a=[1.0] * 24, b=[2.0] * 24)  # which one is not clear
    write("moduli.parquet", **columns)
    return folder


def test_the_data_of_a_task_are_found_by_name_column_and_size(tables):
    found = find_tasks(tables)
    moduli = {"matbench_log_gvrh", "matbench_log_kvrh"}
    assert set(found) == {*moduli, "matbench_mp_gap", "matbench_mp_is_metal"}
    assert {found[task].path.name for task in moduli} == {"matbench_log_kvrh_gvrh.parquet"}
    assert found["matbench_log_gvrh"].target == "log10_shear_modulus_vrh_GPa"
    assert found["matbench_mp_gap"].path.name == "matbench_mp_gap_whole.parquet"
    gaps, metals = (found[f"matbench_mp_{x}"].source() for x in ("gap", "is_metal"))
    assert metals.targets == ("is_metal",)
    for gap, metal in zip(gaps, metals, strict=True):
        assert metal.targets == (float(gap.targets[0] == 0),)
    (tables / "matbench_log_gvrh.json.gz").touch()
    assert find_tasks(tables)["matbench_log_gvrh"].path.name == "matbench_log_gvrh.json.gz"
    with pytest.raises((NotADirectoryError, FileNotFoundError)):
        find_tasks(tables / "nothing")


def test_each_task_has_its_results_and_the_page_has_a_row_of_each(tables, tmp_path):
    out = tmp_path / "out"
    tasks = ["matbench_log_gvrh", "matbench_mp_is_metal"]
    results = matbench_tasks(tables, out, TINY, tasks=tasks, folds=[1, 3], workers=1)
    assert list(results) == tasks
    for task, result in results.items():
        content = json.loads((out / task / "results.json").read_text())
        assert set(content["tasks"][task]["results"]) == {"fold_1", "fold_3"}
        assert result.existing == (1, 2, 3) and set(result.scores) == {1, 3}
    page = (out / "results.md").read_text()
    rows = {x.split(" | ")[0].strip("| "): x.split(" | ") for x in page.splitlines() if "| " in x}
    shear, metal = (rows[task] for task in tasks)
    mean, std = results[tasks[0]].over_folds("mae")
    assert shear[1] == f"{mean:.4g} ± {std:.2g} log10(GPa)"
    assert shear[2:5] == ["1 3", "1 2 3", "16"]
    # 10,987 rows in five folds: 2,198, 2,198, 2,197, 2,197, 2,197.
    assert shear[5] == f"{2198 + 2197 - 16:,}"
    (cogn,) = [a for a in ANCHORS[tasks[0]] if a.model == "coGN"]
    assert f"coGN {np.mean([cogn.folds[1], cogn.folds[3]]):.4g}" in shear[-1]
    assert "ALIGNN 0.0715 (five folds)" in shear[-1]
    labels, probabilities = (
        results[tasks[1]].over_folds(f"rocauc{x}")[0] for x in ("_of_labels", "")
    )
    assert metal[1].startswith(f"{labels:.4g} ±") and f"({probabilities:.4g})" in metal[1]
    assert "coGN 0.9124 (five folds)" in metal[-1]  # the folds of the gaps are others
    assert "which are not its own" in page


def test_the_rows_of_the_official_folds_add_up():
    for task, (rows, _) in TASKS.items():
        each = [official_rows(task, fold) for fold in range(5)]
        assert sum(each) == rows and max(each) - min(each) <= 1


def test_the_command_runs_all_that_a_folder_holds(tables, tmp_path, capsys, monkeypatch):
    calls = {}

    def noted(source, out, config, **options):
        calls[options["task"]] = (source.targets, out.name, options["folds"])
        raise KeyboardInterrupt if len(calls) == 4 else ValueError("stop")

    monkeypatch.setattr(several, "matbench", noted)
    with pytest.raises(ValueError, match="stop"):
        matbench_tasks(tables, tmp_path / "out", TINY)
    assert calls == {
        "matbench_log_gvrh": (("log10_shear_modulus_vrh_GPa",), "matbench_log_gvrh", None)
    }
    with pytest.raises(ValueError, match="holds no data of matbench_phonons"):
        matbench_tasks(tables, tmp_path / "out", TINY, tasks=["matbench_phonons"])
    with pytest.raises(ValueError, match="no task matbench_gap; there is all, matbench_dielectric"):
        matbench_tasks(tables, tmp_path / "out", TINY, tasks="matbench_gap")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="none of Matbench's tasks"):
        matbench_tasks(tmp_path / "empty", tmp_path / "out", TINY)
    arguments = ["matbench", str(tables), "--out", str(tmp_path / "out")]
    for wrong in (["--target", "x"], ["--class", "x"]):
        with pytest.raises(SystemExit) as stop:
            cli.main([*arguments, *wrong]) if hasattr(cli, "main") else cli.app(
                [*arguments, *wrong]
            )
        assert stop.value.code == 2
        assert "is for one task, not a folder" in " ".join(capsys.readouterr().err.split())


def test_the_command_prints_a_line_per_task(tables, tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY.to_dict()))
    arguments = ["matbench", tables, "--out", tmp_path / "out", "--config", tmp_path / "tiny.yaml"]
    arguments += ["--fold", 2, "--task", "matbench_log_kvrh", "--workers", 1]
    with pytest.raises(SystemExit) as end:
        cli.main(list(map(str, arguments)))
    assert not end.value.code
    printed, said = capsys.readouterr()
    header, line = printed.splitlines()
    assert header == "task,measure,mean,std,unit,folds"
    assert line.startswith("matbench_log_kvrh,mae,") and line.endswith(",0,log10(GPa),2")
    assert "no data of matbench_dielectric" in said
    assert f"against the leaderboard is in {tmp_path / 'out' / 'results.md'}" in said
