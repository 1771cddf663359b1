"""Padded steps, as CUDA graphs take them: the same training as without padding.

They run here on the CPU, kernel by kernel; that nothing in them would stop a capture is tested with
fake tensors, which have no values to look at. ``test_cuda.py`` captures them.
"""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from toy_crystals import SMALL, toy_crystals, toy_dataset
from trainers import (
    CONFIGS,
    DENSITY,
    FAST,
    SPHERE,
    FakeGraphs,
    out_of_memory,
    padded,
    store_of,
    trainer_of,
    weights,
)

from sitenet.config import InteractionFeature, SiteNetConfig
from sitenet.crystal.crystal import Crystal
from sitenet.model.sitenet import SiteNet
from sitenet.ops.padded_batch import Room
from sitenet.pairs.store import PairStore
from sitenet.training.cuda_graphs import (
    check_capture,
    common_size,
    padded_index,
    padded_size,
    rounded,
)
from sitenet.training.optimizer import Optimizer
from sitenet.training.train import train


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
        places, room = padded_size(crystals, Room(rows, 9 * rows))
        assert places > crystals
        assert rows + places - crystals <= room.rows <= 1.25 * (rows + crystals) + 1
        assert places <= 2 * crystals and 9 * rows <= room.pairs <= 9 / 8 * 9 * rows
        assert room.images == 0


@pytest.mark.parametrize("images", [11, 16, 17, 700, 1024])
def test_every_pair_of_padding_has_an_image(images):
    """And there is one, which takes the images left over."""
    for pairs in {1, 8, images // 2, images}:
        _, room = padded_size(3, Room(7, pairs, images))
        assert pairs < room.pairs <= 9 / 8 * (pairs + 1)
        assert room.images - images >= room.pairs - pairs
        assert room.images <= 1.25 * (images + room.pairs - pairs)


@pytest.mark.parametrize("images", [0, 40])
def test_one_size_fits_the_shares_of_all_ranks(images):
    """Also one without crystals."""
    shares = [(5, Room(9, 70, 2 * images)), (4, Room(30, 60, 3 * images)), (0, Room(0, 0, 0))]
    places, room = common_size(*zip(*shares, strict=True))
    for crystals, own in shares:
        assert places > crystals and room.rows >= own.rows + places - crystals
        assert room.pairs >= own.pairs + bool(images)
        if images:
            assert room.images >= own.images + room.pairs - own.pairs
    for crystals, own in shares[:2]:
        assert common_size([crystals], [own]) == padded_size(crystals, own)
    index = padded_index([np.array([4, 7]), np.array([], dtype=np.int64)], 3)
    assert index.tolist() == [[4, 7, -5], [-5, -5, -5]]


@pytest.mark.parametrize("config", [FAST, SPHERE, DENSITY], ids=["crystals", "sphere", "density"])
def test_a_share_without_crystals_is_all_padding(config):
    """With finite outputs, of which none counts."""
    trainer = trainer_of(config, toy_dataset(9))
    places, room = common_size([2, 0], [trainer.data.store.room([3, 5]), Room(0, 0, 0)])
    index = torch.full((1, places), -1 - 3)
    batch = trainer.data.store.padded_batch(index[0], room)
    batch._checked = None
    assert batch.check().num_rows == room.rows and batch.num_pairs == room.pairs
    assert set(batch.numbers.tolist()) == {int(trainer.data.store.batch([3]).numbers[0])}
    assert trainer.model(batch).isfinite().all()
    assert trainer.gradients.of_padded_batch(index, room) == 0
    assert not any(p.grad.any() for p in trainer.optimizer.parameters if p.grad is not None)


@pytest.mark.parametrize("extra", [(0, 0), (1, 0), (5, 40)], ids=str)
@pytest.mark.parametrize("places", [1, 3])
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_padding_changes_no_crystal(config: SiteNetConfig, places, extra):
    """Outputs and gradients of a batch stay the same, whatever padding follows."""
    store = store_of(config, toy_crystals(9))
    torch.manual_seed(0)
    model = SiteNet(config).double()
    crystals = np.array([7, 2, 5])
    index = torch.tensor([*crystals, *[-1] * places])
    rows, pairs, images = store.room(crystals)
    has_images = config.spectrum_channels > 0
    assert (images > 0) == has_images
    room = Room(rows + places + extra[0], pairs + extra[1] + has_images)
    if has_images:
        room = room._replace(images=images + room.pairs - pairs + 3 * extra[0])
    results = []
    for batch in (store.batch(crystals), store.padded_batch(index, room)):
        y = model(batch)[: len(crystals)]
        results.append([y, *torch.autograd.grad(y.square().sum(), trained(model))])
    assert batch.num_pairs == room.pairs and batch.num_rows == room.rows
    assert batch.num_crystals == len(index)
    batch._checked = None
    batch.check()
    for got, want in zip(*results, strict=True):  # distances are float32
        torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-8)


def trained(model):
    return [p for p in model.parameters() if p.requires_grad]


def reordered(trainer, seed):
    """The trainer, with the same crystals in every step in another order."""
    steps_of, rng = trainer.batches_of_steps, np.random.default_rng(seed)
    trainer.batches_of_steps = lambda epoch: [
        [rng.permutation(batch) for batch in step] for step in steps_of(epoch)
    ]
    return trainer


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_epochs_are_those_without_padding(config):
    """Padding changes the weights no more than other causes of rounding do.

    - Another order of the crystals in a batch changes the order of sums alone. Four such orders
      are a sample of what rounding does on this machine; 10 times the largest leaves room for the
      spread.
    - Padded steps read their learning rate as float32: relative 2^-24 of every step, which AdamW
      keeps below some 2 learning rates per weight.

    Products are in float32 at least, as bfloat16 would round the same sum to other values, and
    epsilon is large, as AdamW with the published 1e-7 turns the rounding of a gradient near 0 into
    a step up to 1e-2 / 1e-7 times as large.
    """
    config = config.replace(epsilon=1e-2, precision="float32")
    data = toy_dataset(23, names=("size_A", "other"))
    data.targets[::3, 1] = np.nan
    plain, other, *orders = (trainer_of(config, data, double=True) for _ in range(6))

    def trained_weights(trainer):
        for _ in range(3):
            trainer.train_epoch()
        return torch.cat([x.flatten() for x in weights(trainer.model).values()]).nan_to_num()

    want, got = trained_weights(plain), trained_weights(padded(other))
    changes = [trained_weights(reordered(t, k)) - want for k, t in enumerate(orders)]
    rounding = max(float(change.abs().max()) for change in changes)
    path = 2 * plain.progress.step * config.training.learning_rate
    assert rounding < 1e-6 * path
    assert float((got - want).abs().max()) <= 10 * rounding + 2**-24 * path
    sizes = len(other.captured.sizes)
    assert 1 < sizes < 3 * len(plain.batches_of_steps(1)), "sizes should come again"


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_losses_are_those_without_padding(config):
    """The eager loss is summed in float32."""
    data = toy_dataset(23)
    config = config.replace(precision="float32")
    plain, other = (trainer_of(config, data, double=True) for _ in range(2))
    assert padded(other).train_epoch() == pytest.approx(plain.train_epoch(), rel=1e-6)


@pytest.mark.parametrize("config", [SPHERE, DENSITY], ids=["sphere", "density"])
def test_nothing_in_a_step_looks_at_values(config):
    """A step on tensors without values; code that needs a value, and so would wait for the GPU,
    raises."""
    run = trainer_of(config, toy_dataset(9))
    mode = FakeTensorMode()
    make_fake(run, mode)
    with mode:
        with pytest.raises(DataDependentOutputException):
            torch.ones(1).item()
        for _ in range(2):  # the first one makes the optimiser's state
            loss = run.padded_step(torch.full((1, 5), -1), Room(64, 512, 600))
    assert loss.shape == ()


def make_fake(run, mode):
    """Replace all tensors of a trainer by fake ones."""
    for module in run.model.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            fake = mode.from_tensor(p.detach())
            setattr(module, name, torch.nn.Parameter(fake, p.requires_grad))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, mode.from_tensor(buffer))
    run.optimizer = Optimizer(run.model, run.config)
    store = run.data.store
    store.columns = {k: mode.from_tensor(x) for k, x in store.columns.items()}
    for owner in (store, run.data, run):
        for name, value in list(vars(owner).items()):
            if isinstance(value, torch.Tensor):
                setattr(owner, name, mode.from_tensor(value))


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
        (FAST.replace(accumulate=2), [], r"takes one batch per step \(accumulate: 1\)"),
        (FAST, [MIXED], "does not support disordered crystals"),
        (SINE, [], "does not support sine distances"),
        (FAST.replace(hidden=(7, 7)), [], "needs the fused kernels"),
    ],
    ids=["accumulate", "disorder", "sine", "plain"],
)
@pytest.mark.filterwarnings("ignore:this model runs without the fused kernels")
def test_what_cannot_be_captured_is_refused(config, crystals, reason):
    """With the reason."""
    data = toy_dataset(12)
    data.crystals[: len(crystals)] = crystals
    run = trainer_of(config, data)
    with pytest.raises(ValueError, match=f"capture: true {reason}"):
        check_capture(run.model, run.data.store, torch.device("cuda"))


@pytest.mark.parametrize(
    ("config", "crystals"), [(FAST, [MIXED]), (SINE, toy_crystals(2))], ids=["disorder", "sine"]
)
def test_a_store_that_cannot_be_padded_says_so(config, crystals):
    store = store_of(config, crystals)
    with pytest.raises(ValueError, match="cannot be padded"):
        store.padded_batch(torch.tensor([0, -1]), Room(100, 1000))


def test_out_of_memory_advises_nothing_that_capture_refuses(monkeypatch):
    run = padded(trainer_of(FAST))
    run.model.config = FAST.replace(capture=True)
    monkeypatch.setattr(PairStore, "padded_batch", out_of_memory)
    with pytest.raises(RuntimeError, match=r"in a batch of 4 crystals; try batch_crystals 2$"):
        run.train_epoch()


@pytest.mark.parametrize("captures", [0, 1])
def test_training_goes_on_when_a_capture_fails(captures):
    """With one warning, and to the same bits."""
    plain, other = padded(trainer_of(FAST)), trainer_of(FAST)
    other.captured = other.padded_steps(FakeGraphs(captures))
    want = [plain.train_epoch() for _ in range(3)]
    with pytest.warns(UserWarning) as caught:
        got = [other.train_epoch() for _ in range(3)]
    assert got == want and other.captured.captured == 0
    (warning,) = caught
    assert "failed (CUDA error: operation not permitted when stream is capturing);" in str(
        warning.message
    )


def test_sizes_that_come_again_are_replayed():
    plain, other = padded(trainer_of(FAST)), trainer_of(FAST)
    other.captured = other.padded_steps(FakeGraphs(100))
    for _ in range(4):
        assert other.train_epoch() == plain.train_epoch()
    assert 0 < other.captured.captured == 100 - other.captured.graphs.remaining
