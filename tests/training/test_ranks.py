"""Several processes under torchrun train as one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from toy_crystals import write_folder
from trainers import FAST

from sitenet.training.train import train


def torchrun(*arguments, number=2):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={number}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


def test_ranks_take_padded_steps_together():
    """One size on all ranks, the gradients of unpadded batches, all captured or none, and the
    weights of rank 0 at the beginning of an epoch: see ``rank_program``."""
    done = torchrun(Path(__file__).parents[1] / "cases" / "rank_program.py")
    reasons = [line for line in done.stderr.splitlines() if line.startswith("[rank")]
    assert done.returncode == 0, "\n".join(reasons) or done.stderr[-4000:]
    assert done.stdout.count("checked") == 2


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tmp_path):
    write_folder(tmp_path / "in", 30)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(FAST.replace(epochs=4).to_dict()))
    options = ["--config", tmp_path / "config.yaml"]
    done = torchrun("-m", "sitenet", "train", tmp_path / "in", "--out", tmp_path / "two", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test: size (Å): MAE") == 1
    assert done.stderr.count("epoch 4/4") == 1
    one = train(tmp_path / "in", tmp_path / "one", tmp_path / "config.yaml")
    lines = (tmp_path / "two" / "metrics.jsonl").read_text().splitlines()
    history = [json.loads(line) for line in lines]
    assert len(history) == 4
    for a, b in zip(history, one.history, strict=True):
        for name in ("train_loss", "valid_mae", "valid_error"):
            assert a[name] == pytest.approx(b[name], rel=1e-3)
    files = {p.name for p in (tmp_path / "one").iterdir() if not p.name.startswith("events.")}
    other = {p.name for p in (tmp_path / "two").iterdir() if not p.name.startswith("events.")}
    assert other == files | {"dataset.parquet", "dataset.pairs"}
    assert len(list((tmp_path / "two").glob("events*"))) <= 1
    for name in ("predictions.csv", "left_out.csv"):
        rows = [(tmp_path / n / name).read_text().splitlines() for n in ("one", "two")]
        assert [r.split(",")[:3] for r in rows[0]] == [r.split(",")[:3] for r in rows[1]]
    again = torchrun("-m", "sitenet", "train", tmp_path / "in", "--out", tmp_path / "two", *options)
    assert again.returncode == 0 and "resumes after epoch 4" in again.stderr
