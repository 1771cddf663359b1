"""Runs that are killed, interrupted or damaged, and how they resume."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from toy_crystals import OPTIONS, toy_dataset, write_folder
from trainers import FAST, same, stop_after_two, timeless, weights

from sitenet import load
from sitenet.training.train import Stopped, train

CASES = Path(__file__).parents[1] / "cases"


def test_a_damaged_state_is_named(tmp_path):
    train(toy_dataset(20), tmp_path, FAST, epochs=1)
    state = tmp_path / "state.safetensors"
    for content in (state.read_bytes()[:-10], b"", safetensors.torch.save({"x": torch.ones(1)})):
        state.write_bytes(content)
        with pytest.raises(ValueError, match=r"state\.safetensors is damaged"):
            train(toy_dataset(20), tmp_path, FAST, epochs=1)


KILLED = """
import os, signal, sys
sys.path.insert(0, {cases!r})
import torch
torch.set_num_threads({threads})
from toy_crystals import toy_dataset
from trainers import FAST
from sitenet.training.train import train
from sitenet.training.trainer import Trainer

taken, take = [], Trainer.take_step

def kill(self, step):
    taken.append(1)
    if self.progress.epoch == 3 and len(taken) % len(self.batches_of_steps(3)) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return take(self, step)

Trainer.take_step = kill
train(toy_dataset(24), sys.argv[1], FAST, **{options})
"""


EVERYTHING = {"ema": 0.8, "schedule": "cosine", "accumulate": 2, "patience": 9, "optimizer": "muon"}


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["published", "everything"])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, options):
    options = options | {"epochs": 5}
    script = KILLED.format(
        cases=str(CASES),
        threads=torch.get_num_threads(),
        options=options,
    )
    killed = subprocess.run([sys.executable, "-c", script, str(tmp_path / "a")])
    assert killed.returncode == -signal.SIGKILL
    assert len((tmp_path / "a" / "metrics.jsonl").read_text().splitlines()) == 2
    epochs = []
    resumed = train(
        toy_dataset(24),
        tmp_path / "a",
        FAST,
        after_epoch=lambda h: epochs.append(h["epoch"]),
        **options,
    )
    assert epochs == [3, 4, 5]
    whole = train(toy_dataset(24), tmp_path / "b", FAST, **options)
    assert same(weights(resumed.model), weights(whole.model))
    assert timeless(resumed.history) == timeless(whole.history)
    a, b = (safetensors.torch.load_file(tmp_path / n / "state.safetensors") for n in "ab")
    assert same(a, b)
    assert (tmp_path / "a" / "predictions.csv").read_bytes() == (
        tmp_path / "b" / "predictions.csv"
    ).read_bytes()


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["published", "everything"])
def test_it_trains_on_every_device(tmp_path, device, options):
    """The losses of the CPU, also when stopped and resumed; what it leaves loads anywhere."""
    options = options | {"epochs": 4}
    want = train(toy_dataset(24), config=FAST, **options)
    options["device"] = device
    with pytest.raises(Stopped):
        train(toy_dataset(24), tmp_path, FAST, after_epoch=stop_after_two, **options)
    got = train(toy_dataset(24), tmp_path, FAST, **options)
    assert got.model.element_table.device.type == device.type
    # Another order of sums: AdamW makes of a gradient near its epsilon a step of any part of 1e-2.
    for name in ("train_loss", "valid_error"):
        values = [[h[name] for h in result.history] for result in (got, want)]
        np.testing.assert_allclose(*values, rtol=0.02)
    crystals = toy_dataset(24).crystals
    predicted = load(tmp_path / "model.safetensors").predict(crystals)
    np.testing.assert_allclose(got.model.predict(crystals), predicted, rtol=1e-3)


def test_an_interrupted_run_says_how_to_resume(tmp_path):
    with pytest.raises(Stopped, match=f"what came before it is in {tmp_path}: the same command"):
        train(toy_dataset(20), tmp_path, FAST, after_epoch=stop_after_two)
    with pytest.raises(KeyboardInterrupt) as caught:
        train(toy_dataset(20), None, FAST, after_epoch=stop_after_two)
    assert not isinstance(caught.value, Stopped)
    result = train(toy_dataset(20), tmp_path, FAST)
    assert timeless(result.history) == timeless(train(toy_dataset(20), config=FAST).history)


def heed_ctrl_c():
    """A process that a shell starts in the background ignores SIGINT, and so do its children."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_exits_with_1_and_the_message(tmp_path):
    write_folder(tmp_path / "in", 20)
    command = [
        sys.executable,
        "-m",
        "sitenet",
        "train",
        tmp_path / "in",
        "--out",
        tmp_path / "out",
    ]
    process = subprocess.Popen(
        [*command, *OPTIONS, "--epochs", "100000", "--batch-crystals", "4", "--batch-sites", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    )
    metrics = tmp_path / "out" / "metrics.jsonl"
    while not metrics.exists() and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 1, errors
    assert "stopped: epoch" in errors and "the same command resumes from there" in errors
    assert "Traceback" not in errors and output == ""
    assert metrics.exists() and load(tmp_path / "out" / "model.safetensors")
