"""Calls with wrong sizes and indices end in an error that names the argument, never in a crash."""

import copy
import dataclasses

import pytest
import torch
from attention_blocks import DIMS, inputs
from toy_crystals import toy_crystals, toy_model

from sitenet import Pairs, find_pairs, minimum_image_distances
from sitenet.ops import attention as ops
from sitenet.ops.geometry import minimum_image_distances_batch
from sitenet.ops.rows import sorted_by_site

NAMES = "site_i site_j e weight logit_weight log_multiplicity offsets sites".split()
LIMIT = 2**31 - 1


def block(**changes):
    """Arguments of a block with rows of 5 and 9 pairs over 4 sites, some of them changed."""
    arguments = dict(zip(NAMES, inputs(DIMS["tiny"], (5, 9), torch.float32), strict=True))
    for name, change in changes.items():
        arguments[name] = change(arguments[name]) if callable(change) else change
    return arguments


def put(place, value):
    """A change of one entry."""

    def change(x):
        x = x.clone()
        x[place] = value
        return x

    return change


VALUES = {  # (changes, message): what the public function reads
    "site beyond the last": (dict(sites=put(3, 4)), r"sites must be from 0 to 3 .* 4"),
    "site far beyond": (dict(sites=put(0, LIMIT)), rf"sites must be .*{LIMIT}"),
    "negative site": (dict(sites=put(-1, -1)), "sites must be .* from -1"),
    "most negative site": (dict(sites=put(7, -LIMIT - 1)), f"sites must be .* from -{LIMIT + 1}"),
    "negative offset": (dict(offsets=put(1, -3)), "offsets must ascend from 0 to the 14 pairs"),
    "offset that decreases": (dict(offsets=put(1, 99)), "offsets must ascend .* step of -85"),
    "offsets from 1": (dict(offsets=put(0, 1)), "offsets must ascend .* from 1 to 14"),
    "offsets beyond the pairs": (dict(offsets=put(2, 15)), "offsets must ascend .* from 0 to 15"),
    "offsets before the pairs": (dict(offsets=put(2, 13)), "offsets must ascend .* from 0 to 13"),
    "huge offset": (dict(offsets=put(2, 2**62)), "offsets must ascend"),
    "no sites": (dict(site_j=torch.zeros(0, 15)), "sites must be from 0 to -1"),
}
SIZES = {  # what every op checks
    "offsets too short": (dict(offsets=lambda x: x[:-1]), r"offsets must have shape \(3,\)"),
    "offsets too long": (dict(offsets=lambda x: torch.cat([x, x[-1:]])), "offsets must have shape"),
    "empty offsets": (dict(offsets=lambda x: x[:0]), "offsets must have shape"),
    "sites too short": (dict(sites=lambda x: x[:-1]), r"sites must have shape \(14,\)"),
    "e too short": (dict(e=lambda x: x[:9].contiguous()), r"log_multiplicity must have shape \(9,"),
    "site_j too narrow": (dict(site_j=torch.zeros(4, 14)), "site_j must have shape"),
    "weight too wide": (dict(weight=torch.zeros(15, 6)), r"weight must have shape \(15, 5\)"),
    "hidden too wide": (dict(logit_weight=torch.zeros(1, 13)), "at least hidden"),
    "no heads": (dict(logit_weight=torch.zeros(0, 7)), "logit_weight must have no dimension of"),
    "no width": (dict(e=torch.zeros(14, 0), weight=torch.zeros(15, 0)), "weight must have no dim"),
}


@pytest.mark.parametrize("case", [*VALUES, *SIZES])
def test_the_block_names_the_argument(case):
    changes, message = (VALUES | SIZES)[case]
    with pytest.raises(ValueError, match=message):
        ops.attention(**block(**changes), attention_dim=3)


@pytest.mark.parametrize("case", SIZES)
def test_the_raw_forward_op_checks_sizes(case):
    changes, message = SIZES[case]
    arguments = block(**changes).values()
    with pytest.raises(ValueError, match=message):
        torch.ops.sitenet.attention_forward(*arguments, 3, 2, True, 1e-5, False, False)


@pytest.mark.parametrize("name", NAMES)
def test_the_raw_forward_op_refuses_strides(name):
    arguments = block(**{name: lambda x: torch.stack([x, x], -1)[..., 0]}).values()
    with pytest.raises(ValueError, match=f"{name} must be contiguous, got strides"):
        torch.ops.sitenet.attention_forward(*arguments, 3, 2, True, 1e-5, False, False)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("y", lambda x: x[:1]),
        ("logsum", lambda x: x[:, :0]),
        ("grad_y", lambda x: x[:, :2]),
        ("grad_e_out", lambda x: x[:-1]),
    ],
)
def test_the_raw_backward_op_checks_sizes(name, change):
    arguments = block().values()
    options = 3, 2, True, 1e-5
    y, e, logsum, *_ = torch.ops.sitenet.attention_forward(*arguments, *options, False, False)
    read = {"y": y, "logsum": logsum, "grad_y": y.clone(), "grad_e_out": e}
    read[name] = change(read[name]).contiguous()
    with pytest.raises(ValueError, match=f"{name} must have shape"):
        kept = None, None, None
        torch.ops.sitenet.attention_backward(*arguments, *read.values(), *options, *kept)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            lambda x: x._replace(pairs_of_site=x[0][1:]),
            ValueError,
            "pairs_of_site must have",
        ),
        (
            lambda x: x._replace(offsets_of_site=x[1][1:]),
            ValueError,
            "offsets_of_site must have shape",
        ),
        (
            lambda x: x._replace(pairs_of_site=x[0].int()),
            TypeError,
            "pairs_of_site must be int64",
        ),
        (lambda x: x._replace(pairs_of_site=x[0].flip(0)), ValueError, "must be sorted_by_site"),
        (lambda x: x._replace(offsets_of_site=0 * x[1]), ValueError, "must be sorted_by_site"),
    ],
)
def test_a_wrong_list_of_pairs_by_site_is_refused(change, error, message):
    arguments = block()
    by_site = sorted_by_site(arguments["sites"], len(arguments["site_j"]))
    ops.attention(**arguments, attention_dim=3, by_site=by_site)
    with pytest.raises(error, match=message):
        ops.attention(**arguments, attention_dim=3, by_site=change(by_site))


@pytest.mark.parametrize(
    ("changes", "options", "error", "message"),
    [
        (dict(sites=lambda x: x.long()), {}, TypeError, "sites must be int32, got int64"),
        (dict(offsets=lambda x: x.int()), {}, TypeError, "offsets must be int64, got int32"),
        (dict(offsets=[0, 5, 14]), {}, TypeError, "offsets must be a torch.Tensor, got list"),
        (dict(sites=None), {}, TypeError, "sites must be a torch.Tensor, got NoneType"),
        ({}, dict(attention_dim=0), ValueError, "at least hidden"),
        ({}, dict(attention_dim=-3), ValueError, "at least hidden"),
        ({}, dict(eps=-1.0), ValueError, "eps must be >= 0"),
        ({}, dict(eps=float("nan")), ValueError, "eps must be >= 0"),
    ],
)
def test_types_and_options_of_the_block(changes, options, error, message):
    with pytest.raises(error, match=message):
        ops.attention(**block(**changes), **{"attention_dim": 3, **options})


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(features=torch.zeros(4)), ValueError, "features must have shape"),
        (dict(weight=torch.zeros(5, 3)), ValueError, r"weight must have shape \(width, 2\)"),
        (dict(weight=torch.zeros(0, 2), bias=torch.zeros(0)), ValueError, "weight must have no"),
        (dict(bias=torch.zeros(4)), ValueError, r"bias must have shape \(5,\)"),
        (dict(bias=[0.0] * 5), TypeError, "bias must be a torch.Tensor"),
        (dict(features=torch.zeros(4, 2).int()), TypeError, "features must be float32 or float64"),
    ],
)
def test_the_embedding_names_the_argument(changes, error, message):
    arguments = dict(features=torch.zeros(4, 2), weight=torch.zeros(5, 2), bias=torch.zeros(5))
    with pytest.raises(error, match=message):
        ops.pair_embedding(**arguments | changes)


PAIRS = {
    "site beyond": (dict(sites=put(0, 1000)), ValueError, "Pairs.sites must be from 0 to"),
    "negative site": (dict(sites=put(-1, -5)), ValueError, "Pairs.sites must be from 0"),
    "decreasing offsets": (dict(offsets=put(1, 10**6)), ValueError, "Pairs.offsets must ascend"),
    "short offsets": (dict(offsets=lambda x: x[:-1]), ValueError, "Pairs.offsets must ascend"),
    "offsets beyond": (dict(offsets=put(-1, 10**9)), ValueError, "Pairs.offsets must ascend"),
    "long offsets": (
        dict(offsets=lambda x: torch.cat([x, x[-1:].repeat(9)])),
        ValueError,
        "Pairs.offsets must have at most",
    ),
    "empty offsets": (dict(offsets=lambda x: x[:0]), ValueError, "Pairs.offsets must have at most"),
    "row before the first": (dict(first_row=-1), ValueError, "first_row = -1"),
    "number beyond": (dict(numbers=put(0, 200)), ValueError, "Pairs.numbers must be from 0 to 199"),
    "negative number": (dict(numbers=put(0, -1)), ValueError, "Pairs.numbers must be from 0"),
    "short numbers": (
        dict(numbers=lambda x: x[:-1]),
        ValueError,
        "Pairs.oxidation must have shape",
    ),
    "short distance": (
        dict(distance=lambda x: x[1:]),
        ValueError,
        "Pairs.distance must have shape",
    ),
    "multiplicity": (
        dict(multiplicity=put(0, -1)),
        ValueError,
        "Pairs.multiplicity must be from 0",
    ),
    "crystals": (dict(crystals=put(-1, 99)), ValueError, "Pairs.crystals must ascend from 0 to"),
    "long sites": (dict(sites=lambda x: x.long()), TypeError, "Pairs.sites must be int32"),
    "array": (dict(sites=lambda x: x.numpy()), TypeError, "Pairs.sites must be a torch.Tensor"),
}


@pytest.fixture
def pairs():
    return find_pairs(toy_crystals(3, seed=1, sites=(3, 4))[0], 12)


@pytest.mark.parametrize("case", PAIRS)
@pytest.mark.parametrize("way", ["replaced", "assigned"])
def test_a_model_refuses_wrong_pairs(pairs, case, way):
    changes, error, message = PAIRS[case]
    ((name, change),) = changes.items()
    value = change(getattr(pairs, name)) if callable(change) else change
    if way == "replaced":
        pairs = dataclasses.replace(pairs, **{name: value})
    else:
        setattr(pairs, name, value)
    with pytest.raises(error, match=message):
        toy_model()(pairs)


def test_a_model_sees_a_change_in_place(pairs):
    model = toy_model()
    model(pairs)
    pairs.sites[0] = 77
    with pytest.raises(ValueError, match=r"Pairs\.sites must be from 0 to .* to 77"):
        model(pairs)


def test_pairs_are_read_once(pairs, monkeypatch):
    assert (
        pairs.is_checked and Pairs.batch([pairs, pairs]).is_checked and pairs.to("cpu").is_checked
    )
    made = dataclasses.replace(pairs)
    calls = []
    monkeypatch.setattr("sitenet.pairs.pairs.check_pairs", calls.append)
    assert not made.is_checked and made.check().is_checked
    made.check()
    assert calls == [made]
    assert not copy.copy(dataclasses.replace(made, sites=made.sites.clone())).is_checked


DISTANCES = {
    "NaN cell": (dict(cell=torch.full((3, 3), torch.nan)), "cell 0 has no volume or is not finite"),
    "infinite cell": (dict(cell=torch.eye(3) * torch.inf), "cell 0 has no volume or is not finite"),
    "flat cell": (dict(cell=torch.ones(3, 3)), "cell 0 has no volume"),
    "huge cell": (dict(cell=torch.eye(3).double() * 1e300), "frac_i must be float64|cell 0 has no"),
    "huge frac": (
        dict(frac_j=torch.full((4, 3), 1e30)),
        r"frac_j must be at most 1e\+09 .* 1e\+30",
    ),
    "frac of two axes": (
        dict(frac_i=torch.zeros(4, 2)),
        r"frac_i must have shape \(num_sites, 3\)",
    ),
    "too many pairs": (
        dict(
            frac_i=torch.zeros(1, 3).expand(32_000, 3), frac_j=torch.zeros(1, 3).expand(32_000, 3)
        ),
        r"at most 268435456 distances per call, got 1024000000 .*4\.1 GB.*frac_i in parts",
    ),
}


@pytest.mark.parametrize("case", DISTANCES)
def test_distances_name_the_argument(case):
    changes, message = DISTANCES[case]
    arguments = dict(cell=torch.eye(3), frac_i=torch.zeros(4, 3), frac_j=torch.zeros(4, 3))
    with pytest.raises((ValueError, TypeError), match=message):
        minimum_image_distances(**arguments | changes)


@pytest.mark.parametrize(("n_i", "n_j"), [(0, 0), (0, 3), (3, 0)])
def test_no_sites_have_no_distances(n_i, n_j):
    got = minimum_image_distances(torch.eye(3), torch.zeros(n_i, 3), torch.zeros(n_j, 3))
    assert got.shape == (n_i, n_j)


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([0, 2, 5], "offsets_i must ascend from 0 to the 4 sites"),
        ([0, 9, 4], "offsets_i must ascend .* step of -5"),
        ([0, -2, 4], "offsets_i must ascend .* step of -2"),
        ([1, 2, 4], "offsets_i must ascend .* from 1"),
        ([0, 4], r"offsets_i must have shape \(3,\), got \(2,\)"),
        ([], r"offsets_i must have shape \(3,\), got \(0,\)"),
        (None, "offsets_i must be a torch.Tensor, got NoneType"),
        ([0.0, 2.0, 4.0], "offsets_i must be int64, got float32"),
    ],
)
def test_a_batch_names_its_offsets(offsets, message):
    good = torch.tensor([0, 2, 4])
    if offsets is not None:
        offsets = torch.tensor(offsets) if offsets else good[:0]
    frac = torch.zeros(4, 3)
    with pytest.raises((ValueError, TypeError), match=message):
        minimum_image_distances_batch(torch.eye(3).expand(2, 3, 3), frac, frac, offsets, good)
