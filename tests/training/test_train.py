"""Training from data to a run folder: what it learns, leaves behind, and goes on from."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
import yaml
from rich.console import Console
from toy_crystals import OPTIONS, SMALL, toy_dataset, toy_targets, write_folder

from sitenet import load
from sitenet.config import load_config
from sitenet.data.dataset import LeftOut, split
from sitenet.data.prepare import prepare
from sitenet.model.checkpoint import read_metadata
from sitenet.model.sitenet import SiteNet, Target
from sitenet.pairs.finder import find_pairs
from sitenet.pairs.pairs import Pairs
from sitenet.pairs.store import PairStore, columns_of, pair_options
from sitenet.system.progress import Reporter
from sitenet.training.train import Stopped, train
from sitenet.training.trainer import Run

TESTS = Path(__file__).parents[1]
# Without norms so small a model learns in a few epochs.
FAST = SMALL.replace(
    norm="none",
    post_pool_norm="none",
    scale_site_features=True,
    batch_sites=0,
    batch_crystals=4,
    learning_rate=1e-2,
    epochs=3,
    scale_targets=True,
    last_activation="identity",
)


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def timeless(history):
    return [{k: v for k, v in h.items() if "second" not in k} for h in history]


def run_of(config=FAST, data=None, seed=0, double=False, parts=None, kind="value", device="cpu"):
    """A Run over toy crystals, without files."""
    data = toy_dataset(12) if data is None else data
    torch.manual_seed(seed)
    model = SiteNet(config, [Target(n, kind=kind) for n in data.names])
    pairs = [find_pairs(c, **pair_options(config)) for c in data.crystals]
    store = PairStore.of([columns_of(p) for p in pairs])
    parts = parts or split(data, 0, 0, seed=0)
    model = model.to(device).double() if double else model.to(device)
    return Run(model, store, data.targets, parts)


# ---------------------------------------------------------------------------------------------
# What it learns


def test_it_learns_and_predicts_what_it_learned():
    result = train(toy_dataset(60), config=FAST, epochs=15)
    losses = [h["train_loss"] for h in result.history]
    assert losses[-1] < 0.6 * losses[0]
    assert result.scores["test"]["size_A"]["mae"] < result.scores["test"]["size_A"]["mae_of_mean"]
    best = min(result.history, key=lambda h: h["valid_error"])
    scores = result.scores["valid"]["size_A"]
    assert scores["mae"] == pytest.approx(best["valid_mae"], rel=1e-5)
    assert best["valid_error"] * result.model.targets[0].std == pytest.approx(best["valid_mae"])


def test_loss_falls_on_the_example(tmp_path):
    example = TESTS.parent / "examples" / "semiconductors"
    result = train(example, config=FAST, epochs=3, batch_crystals=16, workers=1)
    losses = [h["train_loss"] for h in result.history]
    assert losses[2] < losses[1] < losses[0]
    assert result.model.targets[0].unit == "eV" and not result.left_out


def test_ten_published_steps_are_those_of_a_float64_reference():
    """The numbers of the published config, on the same batches."""
    config = SMALL.replace(batch_sites=0, batch_crystals=2, epochs=2)
    data = toy_dataset(10)
    run = run_of(config, data)
    reference = SiteNet(config).double()
    reference.load_state_dict(run.model.state_dict())
    optimizer = torch.optim.AdamW(
        reference.parameters(),
        lr=8.125971481941902e-4,
        eps=1e-7,
        weight_decay=1e-4,
        amsgrad=True,
    )
    pairs = [find_pairs(c, **pair_options(config)) for c in data.crystals]
    for epoch in (1, 2):
        losses = []
        for (batch,) in run._steps(epoch):
            truth = torch.as_tensor(data.targets[batch, 0])
            loss = (reference(Pairs.batch([pairs[k] for k in batch]))[:, 0] - truth).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        assert run.train_epoch() == pytest.approx(np.mean(losses), rel=2e-5)
    assert run.step == 10
    for (name, a), b in zip(run.model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=2e-4, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("count", [12, 11])
def test_accumulated_batches_are_one_larger_batch(count):
    """Also where values are missing and the last batch is smaller."""
    data = toy_dataset(count, names=("a", "b"))
    data.targets[::3, 1] = np.nan
    large = run_of(FAST.replace(batch_crystals=6), data, double=True)
    small = run_of(FAST.replace(batch_crystals=2, accumulate=3), data, double=True)
    for _ in range(2):
        assert small.train_epoch() == pytest.approx(large.train_epoch(), rel=1e-6)
    assert small.step == large.step == 4 and small.steps == large.steps
    for a, b in zip(small.model.parameters(), large.model.parameters(), strict=True):
        # AdamW makes rounding of 1e-13 in a gradient of 0 a step of 1e-2 / 1e-7 * 1e-13.
        torch.testing.assert_close(a, b, rtol=1e-7, atol=3e-8)


def test_a_missing_value_pulls_nowhere():
    """A crystal without values changes nothing; a target is learned from those that have one."""
    data = toy_dataset(8, names=("a", "b"))
    data.targets[4:, 0] = np.nan
    run = run_of(FAST, data, double=True)
    truth = torch.as_tensor(data.targets)
    output = run.model(run.store.batch(range(8)))
    counts = torch.tensor([4, 8])
    want = (output[:4, 0] - truth[:4, 0]).abs().mean() + (output[:, 1] - truth[:, 1]).abs().mean()
    torch.testing.assert_close(run.loss(output, truth, counts), want)
    nothing = run.loss(output, torch.full_like(truth, torch.nan), torch.tensor([0, 0]))
    nothing.backward()
    assert nothing == 0
    assert all((p.grad == 0).all() for p in run.model.parameters() if p.grad is not None)


def test_several_targets_with_missing_values():
    data = toy_dataset(60, names=("small", "large"))
    data.targets[:, 1] *= 1000
    data.targets[::2, 0] = np.nan
    data.targets[3] = np.nan
    result = train(data, config=FAST, target=["small", "large"], epochs=12)
    assert result.model.targets[1].std > 100 * result.model.targets[0].std
    for name in ("small", "large"):
        first, last = (result.history[k][f"valid_{name}_mae"] for k in (0, -1))
        assert last < first
    assert result.scores["test"]["small"]["crystals"] < result.scores["test"]["large"]["crystals"]
    with pytest.raises(ValueError, match="which target to learn; there is small, large"):
        train(data, config=FAST)


def test_classes_are_told_apart():
    data = toy_dataset(80, names=("big",))
    data.targets = (data.targets > np.median(data.targets)).astype(float)
    result = train(data, config=FAST, classes=["big"], epochs=12, valid=0.3)
    history = result.history
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert max(h["valid_big_roc_auc"] for h in history) > 0.8
    assert result.scores["valid"]["big"]["roc_auc"] > 0.7
    assert (result.model.targets[0].kind, result.model.targets[0].std) == ("class", 1.0)
    p = result.model.predict(data.crystals)
    assert ((p >= 0) & (p <= 1)).all() and p.std() > 0
    data.targets[5] = 2
    with pytest.raises(ValueError, match="big is a class: expected 0 or 1, got 2"):
        train(data, config=FAST, classes=["big"])
    with pytest.raises(ValueError, match="no target small; there is big"):
        train(data, config=FAST, classes=["small"])


def test_targets_are_scaled_by_the_training_crystals():
    data = toy_dataset(30)
    parts = split(data, 0.1, 0.1, seed=FAST.training.seed)
    (target,) = train(data, config=FAST, epochs=1).model.targets
    values = data.targets[parts.train, 0]
    assert (target.mean, target.std) == pytest.approx((values.mean(), values.std()))
    (target,) = train(data, config=FAST, epochs=1, scale_targets=False).model.targets
    assert (target.mean, target.std, target.unit) == (0, 1, "Å")


def with_bfloat16(monkeypatch, there):
    """Losses in float32 and in bfloat16 on a CPU that has its instructions, or not, and what the
    second run said."""
    for module in ("run", "train"):
        monkeypatch.setattr(f"sitenet.{module}.multiplies_bfloat16", lambda device: there)
    said = io.StringIO()
    reporter = Reporter(Console(file=said))
    results = [
        train(toy_dataset(30), config=FAST, precision=p, reporter=reporter)
        for p in ("float32", "bfloat16")
    ]
    return *([h["train_loss"] for h in r.history] for r in results), said.getvalue().splitlines()


def test_bfloat16_learns_nearly_the_same(monkeypatch):
    single, low, lines = with_bfloat16(monkeypatch, True)
    assert single != low
    np.testing.assert_allclose(low, single, rtol=0.05)
    assert not any("bfloat16" in line for line in lines)


def test_a_cpu_without_bfloat16_learns_in_float32_and_says_so(monkeypatch):
    single, low, lines = with_bfloat16(monkeypatch, False)
    assert single == low
    want = "products are in float32: this CPU has no instructions for bfloat16"
    assert lines.count(want) == 1


@pytest.mark.parametrize("changes", [{"ema": 0.9}, {"optimizer": "muon"}, {"schedule": "onecycle"}])
def test_options_learn_too(changes):
    result = train(toy_dataset(40), config=FAST, epochs=8, **changes)
    losses = [h["train_loss"] for h in result.history]
    assert min(losses[-3:]) < 0.96 * losses[0]


def test_the_average_is_what_is_judged_and_kept():
    run = run_of(FAST.replace(ema=0.9))
    run.run()
    assert run.judged is run.average.average and run.best is run.judged
    assert not same(weights(run.judged), weights(run.model))


@pytest.mark.parametrize("kind", ["value", "class"])
def test_the_published_validation_error_is_the_mean_of_batch_means(kind):
    data = toy_dataset(60, names=("size", "gap"))
    if kind == "class":
        data.targets = (data.targets > np.median(data.targets, 0)).astype(float)
    data.targets[::3, 1] = np.nan
    config = FAST.replace(valid_mean="batches", batch_sites=24)
    parts = split(data, 0.5, 0, seed=0)
    run = run_of(config, data, parts=parts, kind=kind)
    orders = []
    for epoch in (1, 2):
        run.epoch = epoch
        found = run.validate()
        batches = run._valid_batches()
        orders.append(batches)
        assert sorted(np.concatenate(batches)) == list(range(30)) and len(batches) > 3
        assert len(set(map(len, batches))) > 1, "batches of equal size could not tell the two means"
        index = run.parts.valid
        p = torch.as_tensor(run.outputs(index)[0])
        truth = torch.as_tensor(data.targets[index])
        error = (p - truth).abs()
        if kind == "class":
            error = -(truth * p.log() + (1 - truth) * (1 - p).log())
        want = torch.stack([error[batch].nanmean(0) for batch in batches]).nanmean(0)
        name = {"value": "mae", "class": "log_loss"}[kind]
        for k, target in enumerate(run.model.targets):
            assert found[f"valid_{target.name}_{name}_of_batches"] == pytest.approx(float(want[k]))
        std = torch.tensor([t.std for t in run.model.targets])
        assert found["valid_error"] == pytest.approx(float((want / std).sum()))
        assert found["valid_error"] != pytest.approx(float((error.nanmean(0) / std).sum()))
    assert orders[0] != orders[1], "published batches of validation are drawn anew in each epoch"


def test_it_stops_when_validation_gets_no_better(monkeypatch):
    errors = iter([3.0, 1.0, 2.0, 1.5, 1.0, 0.5])
    found = []

    def validate(self):
        found.append(weights(self.model))
        return {"valid_size_A_mae": 0.0, "valid_error": next(errors)}

    monkeypatch.setattr(Run, "validate", validate)
    result = train(toy_dataset(20), config=FAST, epochs=50, patience=3)
    assert len(result.history) == 5
    assert same(weights(result.model), found[1])


def test_crystals_can_be_fewer():
    result = train(toy_dataset(30), config=FAST, epochs=1, max_crystals=10)
    assert sum(s["size_A"]["crystals"] for s in result.scores.values()) == 2


def test_a_loss_that_is_no_number_is_told(monkeypatch):
    monkeypatch.setattr(Run, "loss", lambda self, y, truth, counts: (y * torch.nan).sum())
    with pytest.raises(RuntimeError, match="not finite in epoch 1; lower learning_rate"):
        train(toy_dataset(20), config=FAST)


@pytest.mark.parametrize("place", [(SiteNet, "forward"), (PairStore, "batch")])
@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({}, "of 4 crystals; try batch_crystals 2 with accumulate 2"),
        ({"accumulate": 2}, "of 4 crystals; try batch_crystals 2 with accumulate 4"),
        ({"batch_sites": 90}, "of 16 crystals; try batch_sites 45 with accumulate 2"),
        ({"batch_crystals": 1}, "of 1 crystals; this crystal is too large for this GPU: try dev"),
    ],
)
def test_out_of_memory_says_what_to_try(monkeypatch, place, changes, advice):
    monkeypatch.setattr(*place, out_of_memory)
    with pytest.raises(RuntimeError, match=f"^out of GPU memory with .* pairs in a batch {advice}"):
        train(toy_dataset(20), config=FAST, **changes)


def out_of_memory(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory")


def test_pairs_beyond_the_memory_say_how_large_they_are(monkeypatch):
    run = run_of()
    monkeypatch.setattr(PairStore, "__init__", out_of_memory)
    with pytest.raises(RuntimeError, match=r"the pairs of 12 crystals take 0\.00 GiB; try fewer"):
        run.store.to("meta")


def test_the_same_call_gives_the_same_bits_and_leaves_the_random_state_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    a, b = (train(toy_dataset(20), config=FAST) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same(weights(a.model), weights(b.model))
    other = train(toy_dataset(20), config=FAST, seed=1)
    assert not same(weights(a.model), weights(other.model))


# ---------------------------------------------------------------------------------------------
# Fine-tuning


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    path = tmp_path_factory.mktemp("start") / "model.safetensors"
    train(toy_dataset(30), config=FAST, epochs=5).model.save(path)
    return path


def test_a_model_goes_on_learning(start):
    before = load(start)
    other = toy_dataset(30, seed=1)
    result = train(other, config=FAST, start=start, epochs=5)
    assert result.model.targets == before.targets
    fresh = train(other, config=FAST, epochs=5)
    assert result.history[0]["train_mae"] < fresh.history[0]["train_mae"]
    given = train(other, config=FAST, start=before, epochs=5)
    assert same(weights(given.model), weights(result.model))
    assert same(weights(before), weights(load(start)))


def test_frozen_layers_stay(start):
    result = train(toy_dataset(30, seed=1), config=FAST, start=start, freeze=True)
    before = weights(load(start))
    for name, value in weights(result.model).items():
        learns = name.startswith(("post_pool", "decoder"))
        assert torch.equal(value, before[name]) != learns, name
    with pytest.raises(ValueError, match="freeze needs a model to start from"):
        train(toy_dataset(30), config=FAST, freeze=True)


def test_a_refit_learns_from_the_test_and_keeps_the_validation(tmp_path):
    data = toy_dataset(30)
    tested = train(data, tmp_path / "tested", FAST)
    model = tmp_path / "tested" / "model.safetensors"
    final = train(data, tmp_path / "final", FAST, start=model, refit=True)
    validated = [row["id"] for row in predicted(tmp_path / "tested") if row["split"] == "valid"]
    assert validated and validated == [row["id"] for row in predicted(tmp_path / "final")]
    facts = read_metadata(model)["metadata"]["crystals"]
    assert facts["test"] and len(tested.scores) == len(final.scores) + 1
    facts = {"train": facts["train"] + facts["test"], "valid": facts["valid"], "test": 0}
    final_file = tmp_path / "final" / "model.safetensors"
    assert read_metadata(final_file)["metadata"]["crystals"] == facts


def test_another_target_gets_a_decoder_of_its_own(start):
    data = toy_dataset(30, names=("a_eV", "b_eV"))
    result = train(data, config=FAST, target=["b_eV", "a_eV"], start=start, epochs=1)
    assert [t.name for t in result.model.targets] == ["b_eV", "a_eV"]
    assert result.model.decoder.out_features == 2
    data = toy_dataset(30)
    data.targets = (data.targets > np.median(data.targets)).astype(float)
    result = train(data, config=FAST, start=start, classes=["size_A"], epochs=1)
    assert result.model.targets[0].kind == "class"


def test_the_model_keeps_its_own_config_but_for_training(start):
    result = train(toy_dataset(30), config="paper", start=start, epochs=1, max_sites=5)
    config = result.model.config
    assert (config.embedding, config.max_sites, config.last_activation) == (4, 5, "identity")
    assert config.training.learning_rate == load_config("paper").training.learning_rate
    with pytest.raises(ValueError, match=r"does not fit the config: .*\n.*embedding.weight"):
        train(toy_dataset(30), start=start, embedding=5)


# ---------------------------------------------------------------------------------------------
# What it leaves, and goes on from


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run over a folder in which one structure is missing and one cannot be read."""
    folder = tmp_path_factory.mktemp("run")
    crystals = write_folder(folder / "in", 30)
    (folder / "in" / "c3.cif").unlink()
    (folder / "in" / "c4.cif").write_text("data_x\n")
    result = train(folder / "in", folder / "out", FAST, epochs=4, valid=0.3)
    return folder, crystals, result


def predicted(run: Path) -> list[dict[str, str]]:
    """The rows of a run's predictions.csv."""
    with open(run / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_what_a_run_leaves(finished):
    folder, crystals, result = finished
    out = folder / "out"
    files = {p.name for p in out.iterdir() if not p.name.startswith("events.")}
    assert files == {
        ".lock",
        "config.yaml",
        "left_out.csv",
        "learning_curve.png",
        "metrics.jsonl",
        "model.safetensors",
        "parity.png",
        "predictions.csv",
        "state.safetensors",
    }
    assert load_config(out / "config.yaml") == result.model.config
    lines = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == result.history
    assert [h["epoch"] for h in result.history] == [1, 2, 3, 4]
    with open(out / "left_out.csv", newline="") as file:
        left_out = [LeftOut(**row) for row in csv.DictReader(file)]
    assert left_out == result.left_out and [x.id for x in left_out] == ["c3", "c4"]
    model = load(out / "model.safetensors")
    assert same(weights(model), weights(result.model))
    assert model.targets == result.model.targets and model.calibration is not None
    facts = read_metadata(out / "model.safetensors")["metadata"]
    assert facts["crystals"] == {"train": 17, "valid": 8, "test": 3}
    assert facts["scores"] == result.scores
    truth = dict(zip((c.name for c in crystals), toy_targets(crystals), strict=True))
    rows = predicted(out)
    assert [row["split"] for row in rows] == ["valid"] * 8 + ["test"] * 3
    for row in rows:
        assert float(row["size_A"]) == pytest.approx(truth[row["id"]], abs=1e-5)


def test_tensorboard_events_tell_the_same(finished):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, _, result = finished
    found = EventAccumulator(str(folder / "out")).Reload()
    for name in ("train_loss", "valid_mae", "learning_rate"):
        scalars = found.Scalars(name)
        assert [s.step for s in scalars] == [1, 2, 3, 4]
        np.testing.assert_allclose([s.value for s in scalars], [h[name] for h in result.history])


def test_a_run_needs_no_tensorboard(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    train(toy_dataset(20), tmp_path, FAST)
    assert not list(tmp_path.glob("events*"))


def test_a_finished_run_has_nothing_left_to_learn(finished, monkeypatch):
    folder, _, result = finished

    def never(self):
        raise AssertionError

    monkeypatch.setattr(Run, "train_epoch", never)
    events = sorted(p.name for p in (folder / "out").glob("events*"))
    again = train(folder / "in", folder / "out", FAST, epochs=4, valid=0.3)
    assert again.scores == result.scores and again.history == result.history
    assert same(weights(again.model), weights(result.model))
    assert sorted(p.name for p in (folder / "out").glob("events*")) == events


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 5}, r"\(epochs: 4 there, 5 here\)"),
        ({"blocks": 3, "seed": 1}, r"\(blocks: 2 there, 3 here; seed: 42 there, 1 here\)"),
        ({"fold": "x"}, "no crystal is in fold 'x'"),
    ],
)
def test_a_folder_with_another_run_is_refused(finished, changes, message):
    folder, _, _ = finished
    before = (folder / "out" / "config.yaml").read_text()
    with pytest.raises(ValueError, match=message):
        train(folder / "in", folder / "out", FAST, **{"epochs": 4, "valid": 0.3} | changes)
    assert (folder / "out" / "config.yaml").read_text() == before


def test_other_data_is_refused(finished, start):
    folder, _, _ = finished
    for data, more in ((toy_dataset(28), {}), (folder / "in", {"start": start})):
        with pytest.raises(ValueError, match="holds a run with other data or settings"):
            train(data, folder / "out", FAST, **{"epochs": 4, "valid": 0.3} | more)


def test_another_scale_of_the_start_is_refused(tmp_path, start):
    model = load(start)
    train(toy_dataset(20), tmp_path, FAST, epochs=1, start=model)
    model.targets = [replace(t, std=2 * t.std) for t in model.targets]
    with pytest.raises(ValueError, match="holds a run with other data or settings"):
        train(toy_dataset(20), tmp_path, FAST, epochs=1, start=model)


def test_other_structures_under_the_same_names_are_refused(tmp_path):
    train(toy_dataset(20), tmp_path, FAST, epochs=1)
    changes = [
        lambda c: replace(c, frac=c.frac + 1e-9),
        lambda c: replace(c, cell=c.cell * 1.001),
        lambda c: replace(c, numbers=c.numbers + 1),
        lambda c: replace(c, oxidation=np.zeros(len(c))),
    ]
    for change in changes:
        data = toy_dataset(20)
        data.crystals[7] = change(data.crystals[7])
        with pytest.raises(ValueError, match="holds a run with other data or settings: choose"):
            train(data, tmp_path, FAST, epochs=1)
    train(toy_dataset(20), tmp_path, FAST, epochs=1)


def test_a_damaged_state_is_named(tmp_path):
    train(toy_dataset(20), tmp_path, FAST, epochs=1)
    state = tmp_path / "state.safetensors"
    for content in (state.read_bytes()[:-10], b"", safetensors.torch.save({"x": torch.ones(1)})):
        state.write_bytes(content)
        with pytest.raises(ValueError, match=r"state\.safetensors is damaged"):
            train(toy_dataset(20), tmp_path, FAST, epochs=1)


KILLED = """
import os, signal, sys
sys.path[:0] = {tests!r}
import torch
torch.set_num_threads({threads})
from test_train import FAST, Run, toy_dataset, train

taken, take = [], Run._take_step

def kill(self, step):
    taken.append(1)
    if self.epoch == 3 and len(taken) % len(self._steps(3)) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return take(self, step)

Run._take_step = kill
train(toy_dataset(24), sys.argv[1], FAST, **{options})
"""
EVERYTHING = {"ema": 0.8, "schedule": "cosine", "accumulate": 2, "patience": 9, "optimizer": "muon"}


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["published", "everything"])
def test_a_killed_run_goes_on_to_the_same_bits(tmp_path, options):
    options = options | {"epochs": 5}
    script = KILLED.format(
        tests=[str(TESTS / x) for x in ("cases", "training")],
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


def stop_after_two(entry):
    if entry["epoch"] == 2:
        raise KeyboardInterrupt


@pytest.mark.parametrize("options", [{}, EVERYTHING], ids=["published", "everything"])
def test_it_trains_on_every_device(tmp_path, device, options):
    """The losses of the CPU, also when stopped and gone on with; what it leaves loads anywhere."""
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


def test_an_interrupted_run_says_how_to_go_on(tmp_path):
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
    assert "stopped: epoch" in errors and "the same command goes on from there" in errors
    assert "Traceback" not in errors and output == ""
    assert metrics.exists() and load(tmp_path / "out" / "model.safetensors")


def test_a_prepared_dataset_trains_to_the_same_bits(tmp_path, finished):
    folder, _, result = finished
    prepare(folder / "in", tmp_path / "data.parquet")
    again = train(tmp_path / "data.parquet", tmp_path / "out", FAST, epochs=4, valid=0.3)
    assert same(weights(again.model), weights(result.model))
    assert again.left_out == result.left_out


def test_not_one_usable_structure_is_an_error(tmp_path):
    write_folder(tmp_path / "in", 3)
    for path in (tmp_path / "in").glob("*.cif"):
        path.write_text("data_x\n")
    with pytest.raises(ValueError, match=r"not one structure can be used: .*row 2: .*c0\.cif"):
        train(tmp_path / "in", tmp_path / "out", FAST)


def test_a_target_without_values_is_named():
    data = toy_dataset(20)
    data.targets[:] = np.nan
    with pytest.raises(ValueError, match="no value of size_A"):
        train(data, config=FAST)


# ---------------------------------------------------------------------------------------------
# Several processes


def torchrun(*arguments, number=2):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={number}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


@pytest.mark.slow
def test_two_processes_give_the_losses_of_one(tmp_path):
    write_folder(tmp_path / "in", 30)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(FAST.replace(epochs=4).to_dict()))
    options = ["--config", tmp_path / "config.yaml"]
    done = torchrun("-m", "sitenet", "train", tmp_path / "in", "--out", tmp_path / "two", *options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("test: size_A: MAE") == 1
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
    assert again.returncode == 0 and "goes on after epoch 4" in again.stderr
