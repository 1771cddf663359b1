"""The model against the published way of computing, and what holds for any model of crystals."""

import copy
import dataclasses
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_pairs import random_pairs, written_out
from toy_crystals import toy_crystals, toy_model

import sitenet
from sitenet.config import SiteNetConfig, config_names
from sitenet.model.ensemble import Ensemble
from sitenet.model.sitenet import SiteNet, Target
from sitenet.pairs.features import gaussians, log_envelope, pair_features
from sitenet.pairs.finder import PairFinder
from sitenet.pairs.pairs import Pairs
from sitenet.published.checkpoint import to_published
from sitenet.published.model import PaddedBatch, PublishedSiteNet

SMALL = SiteNetConfig(
    embedding=6,
    heads=2,
    site_dim=3,
    interaction_dim=2,
    hidden=(7,),
    pre_pool=(5,),
    post_pool=(4, 6),
    last_activation="identity",
)
# Every option that no published Site-Net has.
EXTENDED = SMALL.replace(
    blocks=3,
    residual=True,
    interaction="keep",
    summary="last",
    envelope=True,
    distance_basis=5,
    scale_site_features=True,
    missing="mean",
    max_norm=False,
    images="sphere",
    radius=7.0,
)
OPTIONS = {
    "published": {},
    "residual": {"residual": True},
    "residual, no norm": {"residual": True, "norm": "none"},
    "keep": {"interaction": "keep"},
    "last": {"summary": "last"},
    "envelope": {"envelope": True, "distance_cutoff": 6.0},
    "basis": {"distance_basis": 4, "distance_cutoff": 6.0},
    "no max_norm": {"max_norm": False},
}
EACH_OPTION = pytest.mark.parametrize(
    "config",
    [*(SMALL.replace(**changes) for changes in OPTIONS.values()), EXTENDED],
    ids=[*OPTIONS, "extended"],
)
pytestmark = pytest.mark.filterwarnings("ignore:this model runs without the fused kernels")


def model_of(config=SMALL, seed=0, **options):
    """A float64 model with random weights everywhere, norms and biases too, and finite elemental
    features."""
    torch.manual_seed(seed)
    model = SiteNet(config, **options).double()
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            torch.nn.init.normal_(parameter, mean=0.5)
    model.element_table.normal_()
    return model


def published_of(model):
    """The published way of computing with the same weights."""
    published = PublishedSiteNet(model.config).double()
    published.load_state_dict(to_published(model))
    return published


def padded(model, pairs):
    """The published input."""
    features = pair_features(pairs, model.config.interaction_features)
    table = torch.cat([model.element_table[pairs.numbers], pairs.oxidation[:, None]], 1)
    return PaddedBatch.from_rows(
        features, pairs.offsets, pairs.sites, pairs.crystals, pairs.numbers, table
    )


@st.composite
def configs(draw):
    """Any config of the published family, small."""
    width = st.integers(1, 6)
    widths = st.lists(width, min_size=1, max_size=2).map(tuple)
    activation = draw(st.sampled_from(["mish", "relu", "none"]))
    # ReLU makes logits equal, and the published top-k then keeps any of them.
    k_softmax = None if activation == "relu" else draw(st.sampled_from([None, None, 1, 3, 50]))
    return SiteNetConfig(
        embedding=draw(width),
        heads=draw(st.integers(1, 4)),
        blocks=draw(st.integers(1, 4)),
        site_dim=draw(st.integers(2, 5)),
        interaction_dim=draw(width),
        hidden=draw(st.lists(st.integers(2, 9), min_size=1, max_size=2).map(tuple)),
        pre_pool=draw(widths),
        post_pool=draw(widths),
        activation=activation,
        norm=draw(st.sampled_from(["layer", "none"])),
        post_pool_norm=draw(st.sampled_from(["layer", "none"])),
        pooling=draw(st.sampled_from(["mean", "max"])),
        last_activation=draw(st.sampled_from(["identity", "relu", "softplus", "trelu"])),
        distance_cutoff=draw(st.sampled_from([None, None, 0.0, 4.0])),
        k_softmax=k_softmax,
    )


@settings(max_examples=60, deadline=None, derandomize=True)
@given(config=configs(), seed=st.integers(0, 9))
def test_model_is_the_published_one(config, seed):
    """Merged rows, rows site by site and the padded published way: values and gradients."""
    model = model_of(config, seed)
    published = published_of(model)
    merged = random_pairs(seed=seed)
    single = written_out(merged)
    want = published(padded(model, single))
    weight = torch.linspace(-1, 1, len(want), dtype=torch.float64) + 0.3
    (want * weight).sum().backward()
    theirs = dict(published.named_parameters())
    for pairs in (single, merged):
        model.zero_grad()
        got = model.eval()(pairs)[:, 0]
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-10)
        (got * weight).sum().backward()
        for name, value in to_published_gradients(model).items():
            torch.testing.assert_close(
                value, theirs[name].grad, rtol=1e-7, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
            )


def to_published_gradients(model):
    """Gradients under the published names, of the parameters that have one."""
    from sitenet.published.checkpoint import published_name

    named = model.named_parameters()
    return {published_name(k): p.grad for k, p in named if p.grad is not None}


def test_training_steps_are_the_published_ones():
    """Ten steps of AdamW with AMSGrad and clipping, on three batches in turn."""
    model = model_of(SMALL.replace(last_activation="trelu"))
    published = published_of(model)
    batches = [random_pairs((4, 2, 5), seed=s) for s in range(3)]
    targets = [torch.rand(3, dtype=torch.float64) * 3 for _ in batches]
    training = model.config.training
    losses = {}
    for net in (model.train(), published.train()):
        optimiser = torch.optim.AdamW(
            net.parameters(),
            lr=training.learning_rate,
            eps=training.epsilon,
            weight_decay=training.weight_decay,
            amsgrad=training.amsgrad,
        )
        losses[net] = []
        for step in range(10):
            pairs = batches[step % 3]
            if net is published:
                y = net(padded(model, written_out(pairs)))
            else:
                y = net(pairs)[:, 0]
            loss = (y - targets[step % 3]).abs().mean()
            optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), training.clip_norm)
            optimiser.step()
            losses[net].append(loss.item())
    ours, theirs = map(torch.tensor, losses.values())
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)
    assert theirs[-1] < theirs[0]


@EACH_OPTION
def test_fused_is_plain(config):
    """Values and gradients with the fused kernels are those with every pair's layers in memory."""
    model, pairs = model_of(config).eval(), random_pairs(seed=3)
    weight = torch.tensor([[1.0], [-2.0], [0.5]], dtype=torch.float64)
    results = []
    for plain in (False, True):
        for block in model.blocks:
            block.plain = plain
        model.zero_grad()
        y = model(pairs)
        (y * weight).sum().backward()
        gradients = {k: p.grad for k, p in model.named_parameters() if p.grad is not None}
        results.append((y, gradients))
    (y, gradients), (want, wanted) = results
    torch.testing.assert_close(y, want, rtol=1e-10, atol=1e-10)
    assert y.std() > 0
    for name, value in gradients.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-7, atol=1e-9)


@EACH_OPTION
def test_every_parameter_learns(config):
    """All of them reach the output, but the last block's interaction features."""
    model, pairs = model_of(config), random_pairs(seed=1)
    model(pairs).sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name
        else:
            assert "interaction" in name or name.endswith(("logits.bias", "hidden.0.norm.bias"))


@EACH_OPTION
def test_merged_is_written_out(config):
    model, pairs = model_of(config), random_pairs(seed=2)
    want = model(written_out(pairs))
    torch.testing.assert_close(model(pairs), want, rtol=1e-10, atol=1e-10)


def test_every_named_config_runs_in_the_fused_kernels():
    pairs = random_pairs().to(dtype=torch.float32)
    pairs.vectors = torch.randn(int(pairs.multiplicity.sum()), 3)
    for name in config_names():
        model = SiteNet.from_config(name, missing="mean")
        assert not any(block.plain for block in model.blocks), name
        assert model(pairs).isfinite().all(), name


def test_keeping_the_interaction_features_has_no_layer_to_renew_them():
    names = [name for name, _ in model_of(EXTENDED).named_parameters()]
    assert not any(".interaction." in name for name in names)


def test_envelope_falls_smoothly_from_one_to_nothing():
    distance = torch.tensor([0, 2.5, 5 - 1e-3, 5, 6], dtype=torch.float64, requires_grad=True)
    weight = log_envelope(distance, 5.0).exp()
    u = 0.5
    want = 1 - 28 * u**6 + 48 * u**7 - 21 * u**8
    torch.testing.assert_close(weight[:2], torch.tensor([1.0, want], dtype=torch.float64))
    assert 0 < weight[2] < 1e-9
    assert (weight[3:] == 0).all()


def test_what_lies_at_the_reach_does_not_matter():
    """A pair that crosses the sphere's surface leaves the prediction where it was."""
    model, pairs = model_of(EXTENDED), random_pairs(seed=4)
    far = pairs.distance > 7
    assert far.any()
    predictions = []
    for distance in (7 - 1e-4, 7 + 1e-4):
        moved = copy.copy(pairs)
        moved.distance = pairs.distance.masked_fill(far, distance)
        predictions.append(model(moved))
    torch.testing.assert_close(*predictions, rtol=1e-9, atol=1e-9)


def test_gaussians_stand_at_equal_spacings():
    basis = gaussians(torch.tensor([0.0, 2.0, 3.0]), 4, 6.0)
    u = torch.tensor([[0.0, 1, 2, 3], [1, 0, 1, 2], [1.5, 0.5, 0.5, 1.5]])
    torch.testing.assert_close(basis, torch.exp(-(u**2) / 2))


def test_scaled_site_features_have_mean_zero_and_deviation_one():
    table = SiteNet(EXTENDED).element_table[1:90]
    assert table.isfinite().all()
    assert table.mean(0).abs().max() < 0.5
    assert (table.std(0) - 1).abs().max() < 0.5


@pytest.mark.parametrize("changes", [c for c in OPTIONS.values() if set(c) - {"norm", "max_norm"}])
def test_options_without_a_published_counterpart_are_named(changes):
    name = next(iter(changes))
    with pytest.raises(ValueError, match=f"no counterpart of {name}: {changes[name]}"):
        SiteNet(SMALL.replace(**changes)).to_published()


@EACH_OPTION
def test_batch_is_its_crystals_one_by_one(device, config):
    model = model_of(config).to(device)
    pairs = [random_pairs((n,), seed=n).to(device) for n in (1, 3, 6)]
    alone = torch.cat([model(p) for p in pairs])
    torch.testing.assert_close(model(Pairs.batch(pairs)), alone, rtol=1e-12, atol=1e-12)


def test_order_of_rows_does_not_matter():
    model = model_of()
    pairs = written_out(random_pairs((5,)))
    order = torch.randperm(pairs.num_rows, generator=torch.Generator().manual_seed(0))
    place = torch.argsort(order)
    rows = [slice(*pairs.offsets[r : r + 2].tolist()) for r in order]
    shuffled = copy.copy(pairs)
    shuffled.sites = torch.cat([place[pairs.sites[r].long()] for r in rows]).int()
    shuffled.distance = torch.cat([pairs.distance[r] for r in rows])
    length = pairs.offsets.diff()[order]
    shuffled.offsets = torch.cat([torch.zeros(1, dtype=torch.int64), length.cumsum(0)])
    shuffled.numbers, shuffled.oxidation = pairs.numbers[order], pairs.oxidation[order]
    torch.testing.assert_close(model(shuffled), model(pairs), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("max_pairs", [1, 70, 10_000])
@pytest.mark.parametrize("extended", [False, True])
def test_row_by_row_is_all_at_once(device, merge, max_pairs, extended):
    g = np.random.default_rng(0)
    frac, numbers = g.random((9, 3)), g.integers(1, 90, 9)
    crystal = SimpleNamespace(
        cell=np.diag([7.0, 8.0, 9.0]), frac=frac, numbers=numbers, oxidation=None, occupancy=None
    )
    changes = {"distance_cutoff": 5.0, "blocks": 3}
    config = (
        EXTENDED.replace(images="supercell", **changes) if extended else SMALL.replace(**changes)
    )
    model = model_of(config).to(device)
    finder = PairFinder(crystal, 0, merge)
    want = model(finder.rows().to(device))
    got = model.decode(model.encode_by_rows(finder, max_pairs))
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_two_runs_give_equal_bits():
    model, pairs = model_of().float(), random_pairs((8, 9))
    assert torch.equal(model(pairs), model(pairs))


def test_evaluation_leaves_the_weights_alone_and_training_scales_the_embedding():
    model, pairs = model_of(), random_pairs()
    before = copy.deepcopy(model.state_dict())
    y = model.eval()(pairs)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    torch.testing.assert_close(model.train()(pairs), y, rtol=1e-12, atol=1e-12)
    norm = model.embedding.weight.norm(dim=1)
    used = torch.zeros(len(norm), dtype=torch.bool).index_fill(0, pairs.numbers, True)
    assert (norm[used] <= 1).all()
    assert torch.equal(model.embedding.weight[~used], before["embedding.weight"][~used])


def test_targets_scale_the_output():
    targets = [Target("gap", "eV", 2.0, 3.0), Target("energy", "eV/atom")]
    model, pairs = model_of(targets=targets), random_pairs()
    model.targets = [Target("gap", "eV"), Target("energy", "eV/atom")]
    plain = model(pairs)
    model.targets = targets
    assert plain.shape == (3, 2)
    scaled = plain * torch.tensor([3.0, 1.0]) + torch.tensor([2.0, 0.0])
    torch.testing.assert_close(model(pairs), scaled)
    with pytest.raises(ValueError, match="expected 2 targets, got 1"):
        model.targets = [Target()]


@EACH_OPTION
def test_attention_weights_add_up_to_one_a_row(config):
    model, pairs = model_of(config), random_pairs()
    weights = []
    model.encode(model.site_inputs(pairs), model.pair_inputs(pairs), pairs, weights)
    assert len(weights) == model.config.blocks
    for w in weights:
        total = torch.zeros(pairs.num_rows, 2, dtype=w.dtype).index_add(0, pairs.rows, w)
        torch.testing.assert_close(total, torch.ones_like(total))


def test_last_block_computes_no_interaction_features():
    model = model_of()
    model(random_pairs()).sum().backward()
    last = model.blocks[-1].interaction
    assert all(p.grad is None for p in last.parameters())


@pytest.mark.parametrize(
    ("changes", "why"), [({"k_softmax": 4}, "k_softmax"), ({"hidden": (8, 8)}, r"hidden: \[8, 8\]")]
)
@pytest.mark.filterwarnings("default")
def test_one_warning_says_why_there_is_no_fused_kernel(changes, why):
    with pytest.warns(UserWarning, match=why) as caught:
        SiteNet(SMALL.replace(**changes))
    assert len(caught) == 1


@EACH_OPTION
def test_copies_and_pickles_predict_the_same(config):
    model, pairs = model_of(config, targets=[Target("gap", "eV", 1.0, 2.0)]), random_pairs()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(pairs), model(pairs))
        assert other.targets == model.targets


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.parametrize("config", [SMALL, EXTENDED], ids=["published", "extended"])
def test_compiles_as_one_graph(config):
    model, pairs = model_of(config), random_pairs()
    want = model(pairs)
    want.sum().backward()
    gradients = {k: p.grad for k, p in model.named_parameters()}
    model.zero_grad()
    got = torch.compile(model, fullgraph=True, backend="aot_eager")(pairs)
    got.sum().backward()
    torch.testing.assert_close(got, want)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name])


@EACH_OPTION
def test_autocast_stays_near_float32(config):
    model, pairs = model_of(config).float(), random_pairs((6, 7))
    exact = model(pairs)
    with torch.autocast("cpu", torch.bfloat16):
        y = model(pairs)
        y.sum().backward()
    assert y.dtype == torch.float32
    assert (y - exact).abs().max() < 0.1 * exact.abs().max()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_pooling_sums_many_sites_in_full_precision():
    """In bfloat16 a sum over 300 sites would no longer take up what a site adds."""
    model, pairs = model_of().float(), random_pairs((2,))
    many = copy.copy(pairs)
    many.count = torch.tensor([257, 256], dtype=torch.int32)
    x = torch.randn(2, 2 * 6)
    exact = model.pool(x, many)
    with torch.autocast("cpu", torch.bfloat16):
        y = model.pool(x, many)
    assert y.dtype == torch.float32
    assert (y - exact).abs().max() < 0.05 * exact.abs().max()


def test_works_in_a_forked_worker():
    """A forked process that starts a second thread would hang."""
    model, pairs = model_of(), random_pairs()
    loader = torch.utils.data.DataLoader(
        Predictions(model, pairs), batch_size=None, num_workers=1, multiprocessing_context="fork"
    )
    with torch.no_grad():
        want = model(pairs)
    torch.testing.assert_close(next(iter(loader)), want, rtol=1e-12, atol=1e-12)


class Predictions(torch.utils.data.Dataset):
    """Computes in the worker."""

    def __init__(self, model, pairs):
        self.model, self.pairs = model, pairs

    def __len__(self):
        return 1

    @torch.no_grad()
    def __getitem__(self, _):
        return self.model(self.pairs)


def test_oxidation_states_are_left_out_where_training_had_none(tmp_path):
    """A published model takes them, as SPEC 2.2 says; one that never saw any does not, and a file
    keeps which."""
    plain = toy_crystals(3)
    charged = [dataclasses.replace(c, oxidation=np.where(c.numbers == 8, -2.0, 2)) for c in plain]
    for model in (toy_model(), toy_model(members=2)):
        assert model.uses_oxidation
        assert np.abs(model.predict(charged) - model.predict(plain)).max() > 1e-3
        model.uses_oxidation = False
        want = model.predict(plain)
        model.save(tmp_path / "m.safetensors")
        for each in (model, sitenet.load(tmp_path / "m.safetensors")):
            # Sites that differ in charge alone are separate rows: other orders of the same sums.
            np.testing.assert_allclose(each.predict(charged), want, rtol=1e-4, atol=1e-5)
    first, second = toy_model(), toy_model(seed=1)
    second.uses_oxidation = False
    with pytest.raises(ValueError, match="member 2 of the ensemble"):
        Ensemble([first, second])


@pytest.mark.parametrize("name", ["mp-gap", "mp-eform"])
def test_shipped_models_leave_oxidation_states_out(name):
    assert not sitenet.load(name).uses_oxidation
