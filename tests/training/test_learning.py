"""What training learns, in what steps, and what it advises when it cannot."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from toy_crystals import SMALL, toy_dataset
from trainers import FAST, out_of_memory, same, trainer_of, weights

from sitenet.model.sitenet import SiteNet
from sitenet.pairs.finder import find_pairs
from sitenet.pairs.maker import pair_options
from sitenet.pairs.pairs import Pairs
from sitenet.pairs.store import PairStore
from sitenet.system.progress import Reporter
from sitenet.training.train import train

ROOT = Path(__file__).parents[2]


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
    example = ROOT / "examples" / "semiconductors"
    result = train(example, config=FAST, epochs=3, batch_crystals=16, workers=1)
    losses = [h["train_loss"] for h in result.history]
    assert losses[2] < losses[1] < losses[0]
    assert result.model.targets[0].unit == "eV" and not result.left_out


def test_ten_published_steps_are_those_of_a_float64_reference():
    """With the settings of the published config, on the same batches."""
    config = SMALL.replace(batch_sites=0, batch_crystals=2, epochs=2)
    data = toy_dataset(10)
    run = trainer_of(config, data)
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
        for (batch,) in run.batches_of_steps(epoch):
            truth = torch.as_tensor(data.targets[batch, 0])
            loss = (reference(Pairs.batch([pairs[k] for k in batch]))[:, 0] - truth).abs().mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        assert run.train_epoch() == pytest.approx(np.mean(losses), rel=2e-5)
    assert run.progress.step == 10
    for (name, a), b in zip(run.model.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=2e-4, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("count", [12, 11])
def test_accumulated_batches_are_one_larger_batch(count):
    """Also if values are missing and the last batch is smaller."""
    data = toy_dataset(count, names=("a", "b"))
    data.targets[::3, 1] = np.nan
    large = trainer_of(FAST.replace(batch_crystals=6), data, double=True)
    small = trainer_of(FAST.replace(batch_crystals=2, accumulate=3), data, double=True)
    for _ in range(2):
        assert small.train_epoch() == pytest.approx(large.train_epoch(), rel=1e-6)
    assert small.progress.step == large.progress.step == 4
    assert small.steps_per_epoch == large.steps_per_epoch
    for a, b in zip(small.model.parameters(), large.model.parameters(), strict=True):
        # AdamW turns rounding of 1e-13 in a gradient of 0 into a step of 1e-2 / 1e-7 * 1e-13.
        torch.testing.assert_close(a, b, rtol=1e-7, atol=3e-8)


@pytest.mark.parametrize("changes", [{"ema": 0.9}, {"optimizer": "muon"}, {"schedule": "onecycle"}])
def test_options_learn_too(changes):
    result = train(toy_dataset(40), config=FAST, epochs=8, **changes)
    losses = [h["train_loss"] for h in result.history]
    assert min(losses[-3:]) < 0.96 * losses[0]


def with_bfloat16(monkeypatch, there):
    """Losses in float32 and bfloat16 on a CPU with or without bfloat16 instructions, and the lines
    that were reported."""
    for module in ("gradients", "train"):
        name = f"sitenet.training.{module}.multiplies_bfloat16"
        monkeypatch.setattr(name, lambda device: there)
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


def test_crystals_can_be_fewer():
    result = train(toy_dataset(30), config=FAST, epochs=1, max_crystals=10)
    assert sum(s["size_A"]["crystals"] for s in result.scores.values()) == 2


def test_a_loss_that_is_not_finite_is_reported(monkeypatch):
    loss = "sitenet.training.gradients.step_loss"
    monkeypatch.setattr(loss, lambda model, y, truth, counts: (y * torch.nan).sum())
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


def test_pairs_beyond_the_memory_say_how_large_they_are(monkeypatch):
    run = trainer_of()
    monkeypatch.setattr(PairStore, "__init__", out_of_memory)
    with pytest.raises(RuntimeError, match=r"the pairs of 12 crystals take 0\.00 GiB; try fewer"):
        run.data.store.to("meta")


def test_the_same_call_gives_the_same_bits_and_leaves_the_random_state_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    a, b = (train(toy_dataset(20), config=FAST) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert same(weights(a.model), weights(b.model))
    other = train(toy_dataset(20), config=FAST, seed=1)
    assert not same(weights(a.model), weights(other.model))
