"""Checks of the small ops of a training step, for every implementation of them."""

import torch
from attention_checks import compare

from sitenet import reference
from sitenet.config import InteractionFeature
from sitenet.ops.block_weights import BlockParameters, block_weights
from sitenet.ops.pair_inputs import log_multiplicity, pair_inputs
from sitenet.ops.site_terms import site_terms

# hidden, attention, interaction, features per site, interaction features, heads
BLOCKS = {
    "sphere": (64, 32, 0, 128, 32, 4),
    "paper": (45, 30, 48, 90, 48, 3),
    "tiny": (1, 1, 1, 1, 1, 1),
    "odd": (33, 3, 31, 5, 33, 7),
}
NORMS = {"both": (True, True), "neither": (False, False), "hidden": (False, True)}


def random_of(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def block_of(sizes, norms, dtype, seed=0):
    """Random parameters of a block, and the number of its interaction features."""
    hidden, attention, interaction, sites, width, heads = sizes
    random, of_pairs, of_hidden = random_of(seed, dtype), *norms
    inputs = 2 * sites + width
    groups = [hidden, attention, interaction or None]
    parameters = BlockParameters(
        *(None if n is None else random(n, inputs) for n in groups),
        *(None if n is None else random(n) for n in groups),
        random(heads, hidden),
        *(random(width) if of_pairs else None for _ in range(2)),
        random(hidden) if of_hidden else None,
    )
    return parameters, width


def check_block_weights(sizes, norms, dtype):
    """Compare results and gradients with the oracle."""
    parameters, width = block_of(sizes, norms, dtype)
    known = [k for k, x in enumerate(parameters) if x is not None]

    def filled(tensors):
        every = [None] * len(parameters)
        for k, x in zip(known, tensors, strict=True):
            every[k] = x
        return every

    def two(sites, *others):  # compare takes the gradients of two outputs
        return sites, torch.cat([x.flatten() for x in others])

    compare(
        lambda *tensors: two(*block_weights(BlockParameters(*filled(tensors)), width)),
        lambda *tensors: two(*reference.block_weights(*filled(tensors), width=width)),
        [x for x in parameters if x is not None],
        len(known),
    )


def check_block_weights_gradcheck():
    """Check the gradients by finite differences, with and without each part."""
    for norms in NORMS.values():
        for sizes in ((3, 2, 2, 3, 2, 2), (4, 1, 0, 2, 3, 1)):
            parameters, width = block_of(sizes, norms, torch.float64)
            for x in parameters:
                if x is not None:
                    x.requires_grad_()
            assert torch.autograd.gradcheck(
                lambda *block, width=width: tuple(block_weights(BlockParameters(*block), width)),
                tuple(parameters),
            )


def check_block_weights_in_bfloat16():
    """Under autocast the weights over sites are rounded, and nothing else changes."""
    parameters, width = block_of(BLOCKS["paper"], NORMS["both"], torch.float32)
    for x in parameters:
        x.requires_grad_()
    plain = block_weights(parameters, width)
    with torch.autocast("cpu", torch.bfloat16):
        low = block_weights(parameters, width)
    assert low.sites.dtype == torch.bfloat16
    assert torch.equal(low.sites, plain.sites.bfloat16())
    for x, y in zip(low[1:], plain[1:], strict=True):
        assert x.dtype == torch.float32 and torch.equal(x, y)
    factors = [torch.randn_like(x) for x in low]  # that of the sites in bfloat16
    results = [
        torch.autograd.grad([(x * f).sum() for x, f in zip(each, factors, strict=True)], parameters)
        for each in (low, plain)
    ]
    for x, y in zip(*results, strict=True):
        assert torch.equal(x, y)


def check_site_terms(sites, rows, dtype):
    """Compare results and gradients with the oracle, for all rows and for some."""
    random = random_of(1, dtype)
    tensors = [random(sites, 5), random(2, 9, 5), random(9)]
    compare(site_terms, reference.site_terms, tensors, 3)
    first = (sites - rows) // 2
    compare(site_terms, reference.site_terms, tensors, 3, first=first, rows=rows)


def check_site_terms_in_bfloat16():
    """Results and gradients are those of rounded factors, in float32, within their own rounding.

    A result is a sum in float32 rounded to bfloat16 once, a bias that may be rounded as well, and
    a gradient of x the sum of two such: 3 * 2^-9 of the largest term bounds either.
    """
    random = random_of(2, torch.float32)
    low = torch.bfloat16
    x, weight, bias = random(7, 6), random(2, 9, 6).to(low), random(9)
    grads = random(7, 9).to(low).float(), random(7, 9).to(low).float()
    results = []
    for function, factors in (
        (site_terms, (x, weight, bias)),
        (reference.site_terms, (x.to(low).float(), weight.float(), bias)),
    ):
        leaves = [t.detach().clone().requires_grad_() for t in factors]
        terms = function(*leaves)
        results.append([*terms, *torch.autograd.grad(terms, leaves, grads)])
    for got, want in zip(*results, strict=True):
        tolerance = 3 * 2**-9 * float(want.detach().abs().max())
        torch.testing.assert_close(got.to(want.dtype), want, rtol=0, atol=tolerance)


KINDS = [
    ("distance_matrix", 1.0, 0.0),
    ("reciprocal_square_distance_matrix", 0.5, 3.0),
    ("non_sine_coulomb_matrix", 1.0, 10.0),
    ("coulomb_matrix", 2.0, 0.0),
    ("distance_matrix", -1.5, 2.0),
]


def described(rows, dtype, seed=0):
    """Random columns of pairs; each row begins with a self pair at distance 0."""
    generator = torch.Generator().manual_seed(seed)
    offsets = torch.tensor((0, *rows)).cumsum(0)
    pairs, sites = int(offsets[-1]), len(rows) + 3
    distance = 0.5 + 6 * torch.rand(pairs, generator=generator, dtype=torch.float64)
    distance[offsets[:-1][torch.tensor(rows, dtype=torch.int64) > 0]] = 0
    other = torch.randint(0, sites, (pairs,), generator=generator, dtype=torch.int32)
    charges = torch.randint(1, 90, (sites,), generator=generator).to(dtype)
    return offsets, other, charges, distance.to(dtype), (0.9 * distance + 0.1).to(dtype)


def check_pair_inputs(rows, dtype, stored):
    """Compare features in ``dtype`` of distances in ``stored`` with the oracle in float64.

    Features are computed in the type of the distances. A power or logarithm of a relative error
    e = 2^-24 is off by a few e times its slope: within 20 e of the largest entry of a column, which
    the smallest distances give.
    """
    columns = described(rows, stored)
    features = [
        InteractionFeature(name, power, bool(clip), clip or 1.0) for name, power, clip in KINDS
    ]
    finite = torch.isfinite
    for first_row in (0, 3):
        got = pair_inputs(*columns, features, basis=6, reach=5.0, first_row=first_row, dtype=dtype)
        assert got.dtype == dtype
        exact = [x.double() if x.is_floating_point() else x for x in columns]
        want = reference.pair_inputs(*exact, KINDS, 6, 5.0, first_row)
        tolerance = 20 * torch.finfo(torch.promote_types(dtype, stored)).eps
        if stored == torch.float32 or dtype == torch.float32:
            tolerance = 20 * torch.finfo(torch.float32).eps
        assert torch.equal(finite(got), finite(want))
        for x, y in zip(got.double().T, want.T, strict=True):
            x, y = x[finite(y)], y[finite(y)]
            largest = float(y.abs().max()) if len(y) else 1.0
            torch.testing.assert_close(x, y, rtol=0, atol=tolerance * largest)


def check_log_multiplicity(dtype):
    """Compare with the oracle in float64, with and without cutoff and envelope.

    The logarithm of an envelope of height h, which is a difference from 1, is off by some 30 e / h.
    """
    distance = torch.linspace(0, 6, 121, dtype=torch.float64)
    multiplicity = torch.arange(1, 122, dtype=torch.int32)
    features = torch.stack([distance, -distance], 1).to(dtype)
    for cutoff in (None, 4.0):
        for reach in (0.0, 5.0):
            got = log_multiplicity(
                multiplicity, distance.to(dtype), features, cutoff=cutoff, reach=reach
            )
            want = reference.log_multiplicity(
                multiplicity, distance, features.double(), cutoff, reach
            )
            assert got.dtype == dtype
            height = (want - multiplicity.log()).exp()
            resolved = height > 1e4 * torch.finfo(dtype).eps
            near = 1e-3 < height
            assert torch.equal(got[height == 0], want[height == 0].to(dtype))
            error = (got.double() - want).abs()[resolved]
            bound = 8 * torch.finfo(dtype).eps * (1 + 30 / height[resolved])
            assert (error <= bound).all() and near.sum() > 60
