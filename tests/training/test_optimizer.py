"""Steps, schedules, averages and batches, each against its definition."""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from random_pairs import random_pairs
from torch import nn
from toy_crystals import SMALL

from sitenet.config import TrainingConfig
from sitenet.model.sitenet import SiteNet
from sitenet.training import muon
from sitenet.training.muon import Muon, orthogonal
from sitenet.training.optimizer import Average, Optimizer, batches, learning_rate


def model_and_step(config=SMALL, seed=0):
    """A model, and a function that sets the gradients of a loss."""
    torch.manual_seed(seed)
    model = SiteNet(config).double()

    def backward(k):
        pairs = random_pairs((4, 2, 3), seed=k, elements=(11, 18))
        (model(pairs) - 3).abs().mean().backward()

    return model, backward


def steps(model, backward, training, number=4, first=0):
    optimizer = Optimizer(model, training)
    for k in range(first, number):
        backward(k)
        optimizer.step(training.learning_rate)
    return optimizer


@pytest.mark.parametrize("clip", [1.0, 0.01, 0.0])
def test_a_step_of_adamw_is_its_formula(clip):
    """AMSGrad with decoupled weight decay and clipping by the norm of all gradients."""
    training = TrainingConfig(clip_norm=clip, weight_decay=0.1, learning_rate=0.01)
    model, backward = model_and_step(SMALL.replace(max_norm=False))
    weights = {k: p.detach().clone() for k, p in model.named_parameters() if p.requires_grad}
    m, v, most = ({k: torch.zeros_like(w) for k, w in weights.items()} for _ in range(3))
    optimizer = Optimizer(model, training)
    for t in range(1, 4):
        backward(t)
        gradients = {k: dict(model.named_parameters())[k].grad.clone() for k in weights}
        norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
        optimizer.step(training.learning_rate)
        for k, g in gradients.items():
            if clip:
                g = g * min(1.0, clip / (float(norm) + 1e-6))
            weights[k] *= 1 - 0.01 * 0.1
            m[k] = 0.9 * m[k] + 0.1 * g
            v[k] = 0.999 * v[k] + 0.001 * g * g
            most[k] = torch.maximum(most[k], v[k])
            scale = (most[k] / (1 - 0.999**t)).sqrt() + training.epsilon
            weights[k] -= 0.01 * m[k] / (1 - 0.9**t) / scale
        for k, p in model.named_parameters():
            assert p.grad is None
            if k in weights:
                torch.testing.assert_close(p.detach(), weights[k], rtol=1e-9, atol=1e-12)


def test_muon_takes_the_matrices_between_hidden_layers():
    model, _ = model_and_step()
    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer = Optimizer(model, TrainingConfig(optimizer="muon"))
    adamw, muon = optimizer.parts
    names = {id(p): k for k, p in model.named_parameters()}
    hidden = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    other = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    learned = {k for k, p in model.named_parameters() if p.requires_grad}
    assert hidden | other == learned and not hidden & other
    assert {"site_layer.linear.weight", "blocks.0.attention.linear.weight"} < hidden
    assert {"embedding.weight", "decoder.weight", "decoder.bias"} < other
    assert not any("logits" in k or "norm" in k or "bias" in k for k in hidden)
    for group in adamw.param_groups:
        vectors = {p.ndim for p in group["params"]} == {1}
        assert (group["weight_decay"] == 0) == vectors
    for p in optimizer.parameters:
        p.grad = torch.randn_like(p)
    optimizer.step(0.02)
    key = "site_layer.linear.weight"
    change = (dict(model.named_parameters())[key] - before[key].data).detach()
    values = torch.linalg.svdvals(change)
    assert values[0] / values[-1] < 4  # nearly orthogonal: singular values alike
    root_mean_square = float(change.square().mean().sqrt())
    assert root_mean_square == pytest.approx(0.2 * 0.02, rel=0.3)  # as large as AdamW's


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_orthogonal_keeps_singular_vectors_and_levels_their_values(dtype):
    torch.manual_seed(0)
    x = torch.randn(3, 20, 50, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    y = orthogonal(x, dtype)
    assert y.dtype == dtype
    y = y.to(x.dtype)
    u, _, v = torch.linalg.svd(x, full_matrices=False)
    inner = u.mT @ y @ v.mT
    values = inner.diagonal(dim1=1, dim2=2)
    # The odd polynomial, five times over, of singular values between 0.01 and 1 is within 0.65
    # and 1.25; a rounded factor adds 2^-8 of the norm.
    assert 0.65 < values.min() and values.max() < 1.25
    beside = (inner - torch.diag_embed(values)).abs().max()
    assert beside < {torch.float64: 1e-12, torch.float32: 1e-4, torch.bfloat16: 0.05}[dtype]
    assert not orthogonal(torch.zeros(1, 2, 3), torch.float32).any()


def matrices():
    """Two matrices of one shape, one of its transpose, a square one, one without a gradient."""
    torch.manual_seed(0)
    shapes = [(6, 9), (6, 9), (9, 6), (5, 5), (4, 4)]
    return [nn.Parameter(torch.randn(shape)) for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_padding_changes_no_step(monkeypatch, dtype):
    """One batch of all matrices, as on a GPU, gives what batches of one shape do.

    Sums of products over zeros alone may take another order: a relative 2^-24 of a weight, or
    2^-53, in each of some 20 products per step.
    """
    training = TrainingConfig(learning_rate=0.02, weight_decay=0.1)
    results = []
    for overhead in (0.0, 1e12):
        monkeypatch.setitem(muon.OVERHEAD, "cpu", overhead)
        monkeypatch.setattr(muon, "multiplies_bfloat16", lambda device: False)
        parameters = [nn.Parameter(p.to(dtype)) for p in matrices()]
        optimizer = Muon(parameters, training)
        for k in range(3):
            generator = torch.Generator().manual_seed(k)
            for p in parameters[: 4 + k % 2]:  # the last one has no gradient at first
                p.grad = torch.randn(p.shape, generator=generator, dtype=dtype)
            optimizer.step()
        results.append(parameters)
        batches = next(iter(optimizer._batches.values()))
        assert [len(x.members) for x in batches] == ([1, 3] if overhead == 0 else [4])
    tolerance = 60 * torch.finfo(dtype).eps
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def test_matrices_are_divided_into_the_cheapest_batches():
    shapes = [(256, 256), (18, 32), (32, 20), (256, 256), (128, 64)]
    everything = [sorted(x) for x in muon.grouped(shapes, 1e12)]
    assert everything == [[0, 1, 2, 3, 4]]
    assert sorted(map(sorted, muon.grouped(shapes, 0))) == [[0, 3], [1], [2], [4]]
    # Padding the smallest to (20, 32) costs 5 (2 (20^2 - 18^2) 32 + 20^3 - 18^3) products.
    extra = 5 * (2 * (20**2 - 18**2) * 32 + 20**3 - 18**3)
    for overhead, want in (
        (extra - 1, [[0, 3], [1], [2], [4]]),
        (extra + 1, [[0, 3], [1, 2], [4]]),
    ):
        assert sorted(map(sorted, muon.grouped(shapes, overhead))) == want
    assert muon.grouped([], 1.0) == []


def test_a_step_of_muon_is_that_of_torch():
    if not hasattr(torch.optim, "Muon"):
        pytest.skip("torch >= 2.9 has a Muon to compare with")
    training = TrainingConfig(learning_rate=0.02, weight_decay=0.1)
    ours, theirs = matrices(), matrices()
    torch_muon = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    our_muon = Muon(ours, training)
    for _ in range(4):
        for a, b in zip(ours[:-1], theirs[:-1], strict=True):
            a.grad = torch.randn_like(a)
            b.grad = a.grad.clone()
        our_muon.step()
        torch_muon.step()
    for a, b, start in zip(ours, theirs, matrices(), strict=True):
        # torch multiplies in bfloat16; 4 steps of 0.2 sqrt(9) 0.02 move a weight by some 0.02.
        torch.testing.assert_close(a, b, rtol=0, atol=2e-3)
        assert torch.equal(a, start) == (a.grad is None)


@pytest.mark.parametrize("level, dtype", [("x86_64_v4_bf16", "bfloat16"), ("x86_64_v3", "float32")])
def test_muon_takes_bfloat16_where_the_cpu_has_it(monkeypatch, level, dtype):
    monkeypatch.setattr("sitenet.system.devices._C", SimpleNamespace(level=level))
    seen = []
    monkeypatch.setattr("sitenet.training.muon.orthogonal", lambda x, d: seen.append(d) or x)
    (p,) = matrices()[:1]
    p.grad = torch.ones_like(p)
    Muon([p], TrainingConfig()).step()
    assert seen == [getattr(torch, dtype)]


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_state_in_a_file_goes_on_to_the_same_bits(kind):
    training = TrainingConfig(optimizer=kind)
    model, backward = model_and_step()
    optimizer = steps(model, backward, training, 3)
    other, other_backward = model_and_step(seed=1)
    other.load_state_dict(model.state_dict())
    resumed = Optimizer(other, training)
    resumed.load({k: v.clone() for k, v in optimizer.tensors().items()})
    for k in range(3, 6):
        backward(k)
        other_backward(k)
        optimizer.step(1e-3)
        resumed.step(1e-3)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_is_frozen_stays():
    model, backward = model_and_step()
    model.embedding.requires_grad_(False)
    before = model.embedding.weight.clone()
    steps(model, backward, TrainingConfig())
    assert torch.equal(model.embedding.weight, before)


def schedule(steps=100, **settings):
    training = TrainingConfig(learning_rate=2.0, **settings)
    return np.array([learning_rate(k, steps, training) for k in range(steps)])


def test_the_rate_is_constant_unless_said_otherwise():
    assert (schedule() == 2).all()


@pytest.mark.parametrize("kind", ["constant", "cosine"])
def test_warm_up_rises_linearly(kind):
    rates = schedule(schedule=kind, warmup=0.2)
    np.testing.assert_allclose(rates[:20], 2 * (np.arange(20) + 0.5) / 20)
    assert rates[20:].max() <= 2 and rates[20] == pytest.approx(2, rel=1e-3)


def test_cosine_falls_to_nothing():
    rates = schedule(schedule="cosine")
    np.testing.assert_allclose(rates, 1 + np.cos(np.pi * (np.arange(100) + 0.5) / 100), atol=1e-3)
    assert (np.diff(rates) < 0).all() and 0 < rates[-1] < 1e-3


def test_onecycle_rises_and_falls():
    rates = schedule(schedule="onecycle")
    assert rates.argmax() in (29, 30) and rates.max() > 1.99
    assert (np.diff(rates[:30]) > 0).all() and (np.diff(rates[30:]) < 0).all()
    assert rates[0] < 0.02 and rates[-1] < 1e-3
    assert schedule(schedule="onecycle", warmup=0.5).argmax() in (49, 50)


def test_steps_beyond_the_last_do_not_rise_again():
    training = TrainingConfig(schedule="cosine")
    rates = [learning_rate(k, 100, training) for k in (99, 100, 110, 150)]
    assert rates == sorted(rates, reverse=True)


def test_average_is_exponential_and_forgets_the_start():
    model, backward = model_and_step()
    average = Average(model, copy.deepcopy(model), 0.9)
    want = {k: p.detach().clone() for k, p in model.named_parameters()}
    optimizer = Optimizer(model, TrainingConfig(learning_rate=0.1))
    for step in range(1, 90):
        backward(step % 3)
        optimizer.step(0.1)
        average.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        for k, p in model.named_parameters():
            want[k] = decay * want[k] + (1 - decay) * p.detach()
        if step == 3:
            break
    assert decay == pytest.approx(4 / 13)
    for k, p in average.average.named_parameters():
        torch.testing.assert_close(p, want[k])
        assert not p.requires_grad
    assert not average.average.training
    assert min(0.9, (1 + 1e6) / (10 + 1e6)) == 0.9


SITES = np.random.default_rng(0).integers(1, 40, 200).tolist()


@pytest.mark.parametrize(
    "training",
    [TrainingConfig(batch_sites=100), TrainingConfig(batch_sites=0, batch_crystals=7)],
    ids=["sites", "crystals"],
)
def test_an_epoch_takes_each_crystal_once_in_an_order_of_its_own(training):
    first, again, other = (list(batches(SITES, training, [1, k])) for k in (1, 1, 2))
    assert first == again != other
    assert sorted(k for batch in first for k in batch) == list(range(200))
    assert [k for batch in first for k in batch] != list(range(200))


def test_batches_hold_as_many_sites_as_fit():
    result = list(batches(SITES, TrainingConfig(batch_sites=100), [0]))
    totals = [sum(SITES[k] for k in batch) for batch in result]
    assert max(totals) <= 100
    for total, after in zip(totals, result[1:], strict=False):
        assert total + SITES[after[0]] > 100
    # A crystal larger than a batch has a batch of its own.
    result = list(batches([5, 500, 5], TrainingConfig(batch_sites=100), [0]))
    assert sorted(map(sorted, result)) in ([[0], [1], [2]], [[0, 2], [1]])


def test_batches_hold_a_number_of_crystals():
    result = list(batches(SITES, TrainingConfig(batch_sites=0, batch_crystals=7), [0]))
    assert [len(batch) for batch in result] == [7] * 28 + [4]
    assert list(batches([], TrainingConfig(), [0])) == []


def test_a_million_crystals_of_one_site_are_few_batches():
    result = list(batches([1] * 10_000, TrainingConfig(), [0]))
    assert len(result) == math.ceil(10_000 / 1200)
