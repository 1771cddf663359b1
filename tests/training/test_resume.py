"""Runs that are killed, interrupted or damaged, and how they resume."""

import io
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from rich.console import Console
from toy_crystals import OPTIONS, toy_dataset, write_folder
from trainers import FAST, same, stop_after_two, timeless, weights

from sitenet import load
from sitenet.system.progress import Reporter
from sitenet.training.state import STATE
from sitenet.training.train import Stopped, train

CASES = Path(__file__).parents[1] / "cases"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run folder after two of three epochs, and the weights after the third."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Stopped):
        train(toy_dataset(20), folder / "run", FAST, after_epoch=stop_after_two)
    return folder / "run", weights(train(toy_dataset(20), config=FAST).model)


def test_a_damaged_state_is_named_or_gives_the_same(stopped, tmp_path):
    """At 50 random places: one byte changed, or the rest cut off."""
    original, want = stopped
    content = (original / STATE).read_bytes()
    rng = np.random.default_rng(0)
    named = 0
    for k, place in enumerate(rng.integers(0, len(content), 50)):
        folder = tmp_path / str(k)
        shutil.copytree(original, folder)
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.integers(8)
        (folder / STATE).write_bytes(content[:place] if k % 3 == 0 else damaged)
        try:
            result = train(toy_dataset(20), folder, FAST)
        except ValueError as error:
            assert str(error).startswith(str(folder / STATE)), place
            named += 1
        else:  # the padding of the header, or the name of the checksum
            assert same(weights(result.model), want), place
    assert named > 40


@pytest.mark.parametrize("content", [b"", safetensors.torch.save({"x": torch.ones(1)})])
def test_what_is_no_state_is_named(stopped, tmp_path, content):
    shutil.copytree(stopped[0], tmp_path / "run")
    (tmp_path / "run" / STATE).write_bytes(content)
    with pytest.raises(ValueError, match=r"state\.safetensors is damaged"):
        train(toy_dataset(20), tmp_path / "run", FAST)


def test_the_state_of_another_version_is_refused(tmp_path):
    old = {"sitenet": json.dumps({"settings": "", "epoch": 1})}
    (tmp_path / STATE).write_bytes(safetensors.torch.save({"x": torch.ones(1)}, old))
    with pytest.raises(ValueError, match=r"state\.safetensors has format 1, from another version"):
        train(toy_dataset(20), tmp_path, FAST)


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl"])
def test_damaged_texts_are_restored_from_the_state(stopped, tmp_path, name):
    folder = tmp_path / "run"
    shutil.copytree(stopped[0], folder)
    content = (folder / name).read_bytes()
    for place in (3, len(content) // 2, len(content) - 2):
        damaged = bytearray(content)
        damaged[place] ^= 0x80
        (folder / name).write_bytes(damaged)
        said = io.StringIO()
        with pytest.raises(Stopped):
            train(
                toy_dataset(20),
                folder,
                FAST,
                reporter=Reporter(Console(file=said, width=1000)),
                after_epoch=interrupt,
            )
        assert f"{folder / name} was damaged or edited; it is restored from" in said.getvalue()
        assert (folder / name).read_bytes().startswith(content)
        shutil.copy(stopped[0] / STATE, folder)


def interrupt(entry):
    raise KeyboardInterrupt


def test_a_damaged_config_is_named_where_settings_differ(stopped, tmp_path):
    shutil.copytree(stopped[0], tmp_path / "run")
    (tmp_path / "run" / "config.yaml").write_text("training: {epochs: [")
    with pytest.raises(ValueError, match=r"other data or settings \(.*config\.yaml is damaged"):
        train(toy_dataset(20), tmp_path / "run", FAST, learning_rate=9.0)


def test_leftovers_of_a_killed_run_are_removed(stopped, tmp_path):
    shutil.copytree(stopped[0], tmp_path / "run")
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    leftover = tmp_path / "run" / f".{STATE}.{process.pid}.tmp"
    leftover.write_bytes(b"half")
    train(toy_dataset(20), tmp_path / "run", FAST)
    assert not leftover.exists()


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


@pytest.mark.slow
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
    """To the losses of the CPU, also when resumed; the model loads on any device."""
    options = options | {"epochs": 4}
    want = train(toy_dataset(24), config=FAST, **options)
    options["device"] = device
    with pytest.raises(Stopped):
        train(toy_dataset(24), tmp_path, FAST, after_epoch=stop_after_two, **options)
    got = train(toy_dataset(24), tmp_path, FAST, **options)
    assert got.model.element_table.device.type == device.type
    # Sums in another order: AdamW turns a gradient near its epsilon into any step up to 1e-2.
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


@pytest.mark.slow
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
