"""The oracle itself: the block over rows against the published way of computing, and gradients."""

import pytest
import torch
from random_pairs import random_pairs, written_out

from sitenet.config import SiteNetConfig
from sitenet.pairs.features import pair_features
from sitenet.published.model import PaddedBatch, PublishedBlock, PublishedSiteNet
from sitenet.reference import attention, pair_embedding, row_of_pair, row_softmax

SMALL = SiteNetConfig(
    embedding=6, heads=2, site_dim=3, interaction_dim=2, hidden=(7,), pre_pool=(5,), post_pool=(4,)
)


def block_inputs(rows=3, sites=4, pairs=11, heads=2, hidden=5, a=3, e_in=4, e_out=4, seed=0):
    """Random float64 tensors of one block, in the order of ``attention``'s arguments."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    columns = hidden + a + e_out
    tensors = [draw(rows, columns), draw(sites, columns), draw(pairs, e_in), draw(columns, e_in)]
    tensors += [draw(heads, hidden), draw(pairs).abs()]
    cuts = torch.randint(1, pairs, (rows - 1,), generator=g).sort().values
    offsets = torch.cat([torch.tensor([0]), cuts, torch.tensor([pairs])])
    return [*tensors, offsets, torch.randint(0, sites, (pairs,), generator=g).int()]


def test_row_softmax_sums_to_one_and_leaves_out_minus_infinity():
    logits = torch.tensor([[0.0], [1.0], [-torch.inf], [-torch.inf], [5.0]])
    rows = torch.tensor([0, 0, 0, 1, 2])
    weights = row_softmax(logits, rows, 4)
    expected = torch.tensor([[0.2689414], [0.7310586], [0.0], [0.0], [1.0]])
    torch.testing.assert_close(weights, expected)


def test_row_of_pair_skips_empty_rows():
    offsets = torch.tensor([0, 2, 2, 3])
    assert row_of_pair(offsets, 3).tolist() == [0, 0, 2]


def test_attention_of_fully_masked_and_empty_rows_is_zero():
    inputs = block_inputs()
    inputs[6] = torch.tensor([0, 0, 4, 11])  # row 0 has no pairs
    inputs[5][:4] = -torch.inf  # row 1 has no pair left
    y, _, _ = attention(*inputs, attention_dim=3)
    assert not y[:2].any()
    assert y[2].all()


@pytest.mark.parametrize("activation", ["mish", "relu", "none"])
@pytest.mark.parametrize("norm", [True, False])
def test_attention_gradients(activation, norm):
    inputs = block_inputs()
    differentiable = [x.requires_grad_() for x in inputs[:5]]

    def block(*tensors):
        return attention(*tensors, *inputs[5:], attention_dim=3, activation=activation, norm=norm)[
            :2
        ]

    assert torch.autograd.gradcheck(block, differentiable)


@pytest.mark.parametrize("activation", ["mish", "relu", "none"])
def test_pair_embedding_gradients(activation):
    g = torch.Generator().manual_seed(1)
    shapes = [(9, 3), (5, 3), (5,)]
    inputs = [torch.randn(s, generator=g, dtype=torch.float64, requires_grad=True) for s in shapes]
    function = lambda *x: pair_embedding(*x, activation=activation)  # noqa: E731
    assert torch.autograd.gradcheck(function, inputs)


@pytest.mark.parametrize("norm", ["layer", "none"])
def test_attention_is_the_published_block(norm):
    config = SMALL.replace(norm=norm)
    pairs = written_out(random_pairs(seed=3))
    torch.manual_seed(0)
    block = PublishedBlock(config).double()
    x = torch.randn(pairs.num_rows, 6, dtype=torch.float64)
    e = torch.randn(pairs.num_pairs, 4, dtype=torch.float64)
    batch = PaddedBatch.from_rows(e, pairs.offsets, pairs.sites, pairs.crystals, pairs.numbers, x)
    states, interaction, weights = block(x, batch.features, batch.site_j, batch.padding)

    groups = [
        block.ije_to_multihead,
        block.ije_to_attention_features,
        block.ije_to_Interaction_Features,
    ]
    weight = torch.cat([g.linear_layers[0].weight for g in groups])
    bias = torch.cat([g.linear_layers[0].bias for g in groups])
    w_i, w_j, w_e = weight.split([6, 6, 4], 1)
    y, e_out, logits = attention(
        x @ w_i.T + bias,
        x @ w_j.T,
        e,
        w_e,
        block.pre_softmax_linear.weight,
        torch.zeros(pairs.num_pairs, dtype=torch.float64),
        pairs.offsets,
        pairs.sites,
        attention_dim=config.site_dim,
        norm=norm == "layer",
        need_logits=True,
    )  # the norms' affine parts are 1 and 0 at the start
    torch.testing.assert_close(block.global_linear(y), states)
    torch.testing.assert_close(e_out, interaction[~batch.padding])
    row = row_of_pair(pairs.offsets, pairs.num_pairs)
    torch.testing.assert_close(row_softmax(logits, row, len(y)), weights[~batch.padding])


def test_padding_changes_nothing():
    """A crystal's prediction does not depend on the longest crystal of its batch."""
    torch.manual_seed(0)
    model = PublishedSiteNet(SMALL).double()
    both = [written_out(random_pairs((n,), seed=n)) for n in (2, 6)]

    def predict(pairs):
        site_features = torch.cat(
            [torch.arange(8.0).expand(pairs.num_rows, 8), pairs.oxidation[:, None]], 1
        )
        batch = PaddedBatch.from_rows(
            pair_features(pairs),
            pairs.offsets,
            pairs.sites,
            pairs.crystals,
            pairs.numbers,
            site_features,
        )
        return model(batch)

    alone = torch.cat([predict(p) for p in both])
    torch.testing.assert_close(predict(type(both[0]).batch(both)), alone)
