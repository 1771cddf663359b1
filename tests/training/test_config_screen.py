"""bench/screen.py: arms on the same crystals, paired seeds, finished runs kept."""

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from toy_crystals import cif_of, toy_crystals, toy_targets

SCRIPT = Path(__file__).parents[2] / "bench" / "screen.py"
SMALL = "embedding=4 heads=2 site_dim=4 interaction_dim=3 hidden=[5] pre_pool=[6] post_pool=[5]"


def screen(folder, *options):
    """Run the screen and return its lines of output."""
    arms = [f"sphere blocks=1 {SMALL}", f"density blocks=1 spectrum_channels=2 {SMALL}"]
    command = [sys.executable, SCRIPT, "data.parquet", "--target", "size_A", "--out", "runs"]
    command += ["--train", "8", "--judge", "4", "--epochs", "1", *options]
    command += [word for arm in arms for word in ("--arm", arm)]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.splitlines()


@pytest.mark.slow
def test_the_screen_pairs_seeds_and_keeps_runs(tmp_path):
    crystals = toy_crystals(16)
    columns = {"cif": [cif_of(c) for c in crystals], "size_A": toy_targets(crystals)}
    columns["fold"] = [str(k % 4) for k in range(16)]
    parquet.write_table(pa.table(columns), tmp_path / "data.parquet")
    options = ("--seeds", "2", "--without", "fold=1")
    half = screen(tmp_path, *options, "--seed", "0")
    first, second = (line.split("|") for line in half[-2:])
    assert first[3].strip() == second[3].strip() == "1"
    runs = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").iterdir()}
    assert len(runs) == 2
    whole = screen(tmp_path, *options)
    assert "fold=1 left out" in whole[0]
    first, second = (line.split("|") for line in whole[-2:])
    assert first[6].strip() == ""
    difference, error = map(float, second[6].split("±"))
    assert difference == pytest.approx(float(second[5]) - float(first[5]), abs=2e-4)
    assert error > 0
    assert all(path.stat().st_mtime_ns == before for path, before in runs.items())
    assert len(list((tmp_path / "runs").iterdir())) == 4
