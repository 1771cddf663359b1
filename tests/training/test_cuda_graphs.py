"""Padded steps, as CUDA graphs take them: the same training as without padding.

They run here on the CPU, kernel by kernel; that nothing in them would stop a capture is tested with
fake tensors, which have no values to look at. ``test_cuda.py`` captures them.
"""

import numpy as np
import pytest
import torch
from test_store import STORES, store_of
from test_train import FAST, out_of_memory, run_of
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from toy_crystals import SMALL, toy_crystals, toy_dataset

from sitenet.config import InteractionFeature, SiteNetConfig, load_config
from sitenet.crystal.crystal import Crystal
from sitenet.model.sitenet import SiteNet
from sitenet.pairs.store import PairStore, pair_options
from sitenet.training.cuda_graphs import CapturedSteps, padded_size, rounded
from sitenet.training.optimizer import Optimizer
from sitenet.training.train import train

SPHERE = load_config("sphere").replace(
    embedding=4,
    heads=2,
    blocks=2,
    site_dim=4,
    interaction_dim=3,
    hidden=(7,),
    pre_pool=(6,),
    post_pool=(5,),
    batch_crystals=4,
    radius=4.0,
)
CONFIGS = {
    "published": SMALL.replace(batch_sites=9),
    "crystals": FAST,
    "max pooling": SMALL.replace(pooling="max", batch_sites=9),
    "sphere": SPHERE,
}


def padded(run):
    """The run, its steps on padded batches."""
    run.captured = CapturedSteps(run.store, run.padded_step, capture=False)
    return run


@pytest.mark.parametrize("parts", [1, 4, 8])
def test_sizes_are_few_and_little_is_added(parts):
    numbers = range(1, 5000)
    assert all(n <= rounded(n, parts) <= n * (1 + 1 / parts) for n in numbers)
    for power in (16, 512, 2048):
        assert len({rounded(n, parts) for n in range(power, 2 * power)}) == parts + 1
        assert rounded(power, parts) == power
    assert rounded(1025, 8) == 1152


def test_every_place_of_padding_has_a_row():
    for crystals, rows in ((1, 1), (3, 60), (64, 800), (63, 64)):
        places, all_rows, pairs = padded_size(crystals, rows, 9 * rows)
        assert places > crystals
        assert rows + places - crystals <= all_rows <= 1.25 * (rows + crystals) + 1
        assert places <= 2 * crystals and 9 * rows <= pairs <= 9 / 8 * 9 * rows


@pytest.mark.parametrize("extra", [(0, 0), (1, 0), (5, 40)], ids=str)
@pytest.mark.parametrize("places", [1, 3])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_padding_changes_no_crystal(config: SiteNetConfig, places, extra):
    """Outputs and gradients of a batch's crystals, whatever comes after them."""
    _, store = store_of(pair_options(config), toy_crystals(9))
    torch.manual_seed(0)
    model = SiteNet(config).double()
    crystals = np.array([7, 2, 5])
    index = torch.tensor([*crystals, *[-1] * places])
    rows, pairs = store.room(crystals)
    found = []
    for batch in (
        store.batch(crystals),
        store.padded_batch(index, rows + places + extra[0], pairs + extra[1]),
    ):
        y = model(batch)[: len(crystals)]
        found.append([y, *torch.autograd.grad(y.square().sum(), trained(model))])
    assert batch.num_pairs == pairs + extra[1] and batch.num_rows == rows + places + extra[0]
    assert batch.num_crystals == len(index)
    for got, want in zip(*found, strict=True):  # distances are float32
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_epochs_are_those_without_padding(config):
    data = toy_dataset(23, names=("size_A", "other"))
    data.targets[::3, 1] = np.nan
    plain, other = (run_of(config, data, double=True) for _ in range(2))
    padded(other)
    for _ in range(3):
        assert other.train_epoch() == pytest.approx(plain.train_epoch(), rel=1e-6)
    for a, b in zip(other.model.parameters(), plain.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert 1 < len(other.captured.graphs) < 3 * len(plain._steps(1))  # sizes come again


def test_nothing_in_a_step_looks_at_values():
    """A step on tensors without values: what needs one, and on a GPU would wait for it, raises."""
    run = run_of(SPHERE, toy_dataset(9))
    mode = FakeTensorMode()
    make_fake(run, mode)
    with mode:
        with pytest.raises(DataDependentOutputException):
            torch.ones(1).item()
        for _ in range(2):  # the first one makes the optimiser's state
            loss = run.padded_step(torch.full((5,), -1), 64, 512)
    assert loss.shape == ()


def make_fake(run, mode):
    """Replace all tensors of a run by fake ones."""
    for module in run.model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            fake = mode.from_tensor(p.detach())
            setattr(module, name, torch.nn.Parameter(fake, p.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, mode.from_tensor(buffer))
    run.optimizer = Optimizer(run.model, run.config)
    store = run.store
    store.columns = {k: mode.from_tensor(x) for k, x in store.columns.items()}
    for owner, name in (
        (store, "_row_of_crystal"),
        (store, "_pair_of_row"),
        (run, "known"),
        (run, "rate"),
    ):
        setattr(owner, name, mode.from_tensor(getattr(owner, name)))


def test_a_cpu_is_refused():
    with pytest.raises(ValueError, match=r"capture: true needs a GPU \(device: cuda\)"):
        train(toy_dataset(12), config=FAST, capture=True)


MIXED = Crystal(5 * np.eye(3), np.zeros((2, 3)), [11, 19], occupancy=[0.5, 0.5])
SINE = SMALL.replace(
    interaction_features=(
        InteractionFeature("distance_matrix"),
        InteractionFeature("coulomb_matrix"),
    )
)


@pytest.mark.parametrize(
    ("config", "crystals", "reason"),
    [
        (FAST.replace(accumulate=2), [], r"takes one batch a step \(accumulate: 1\)"),
        (FAST, [MIXED], "knows no disordered crystals"),
        (SINE, [], "knows no sine distances"),
        (FAST.replace(hidden=(7, 7)), [], "needs the fused kernels"),
    ],
    ids=["accumulate", "disorder", "sine", "plain"],
)
@pytest.mark.filterwarnings("ignore:this model runs without the fused kernels")
def test_what_cannot_be_captured_is_refused(config, crystals, reason):
    """With the reason, whatever the device."""
    data = toy_dataset(12)
    data.crystals[: len(crystals)] = crystals
    run = run_of(config, data)
    run.device = torch.device("cuda")
    with pytest.raises(ValueError, match=f"capture: true {reason}"):
        run._captured()


@pytest.mark.parametrize("name", ["merged", "sine"])  # the first one with disorder alone
def test_a_store_that_cannot_be_padded_says_so(name):
    _, store = STORES[name]
    with pytest.raises(ValueError, match="cannot be padded"):
        store.padded_batch(torch.tensor([0, -1]), 100, 1000)


def test_out_of_memory_advises_nothing_that_capture_refuses(monkeypatch):
    run = padded(run_of(FAST))
    run.config = FAST.replace(capture=True).training
    monkeypatch.setattr(PairStore, "padded_batch", out_of_memory)
    with pytest.raises(RuntimeError, match=r"in a batch of 4 crystals; try batch_crystals 2$"):
        run.train_epoch()
