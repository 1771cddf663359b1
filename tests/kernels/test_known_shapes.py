"""The kernels that are compiled for one shape, against those for any (known_shapes.cuh)."""

import pytest
import torch
from attention_blocks import DIMS, inputs

from sitenet.config import SiteNetConfig, load_config
from sitenet.ops import _C, attention

MISH, RELU = attention.ACTIVATIONS["mish"], attention.ACTIVATIONS["relu"]
PAPER = dict(heads=3, width=48, activation=MISH, norm=True)
SPHERE = dict(heads=4, width=32, activation=MISH, norm=True)


def known_products(module, **options):
    sizes = dict(pairs=9, rows=2, sites=3, hidden=7, attention=5, interaction=4)
    return module.known_products(_C.AttentionShape(**sizes, eps=1e-5, **options))


@pytest.mark.parametrize("name", ["paper", "paper-eform", "sphere", "density"])
def test_the_configs_have_kernels_of_their_own(module, name):
    config: SiteNetConfig = load_config(name)
    width = config.heads * config.interaction_dim
    options = dict(activation=attention.ACTIVATIONS[config.activation], norm=config.norm == "layer")
    assert known_products(module, heads=config.heads, width=width, **options) == (width + 15) // 16


@pytest.mark.parametrize(
    ("shape", "products"),
    [
        (PAPER, 3),
        (PAPER | {"width": 33}, 3),
        (PAPER | {"width": 32}, 0),
        (PAPER | {"width": 49}, 0),
        (PAPER | {"heads": 4}, 0),
        (PAPER | {"activation": RELU}, 0),
        (PAPER | {"norm": False}, 0),
        (SPHERE, 2),
        (SPHERE | {"width": 17}, 2),
        (SPHERE | {"width": 16}, 0),
        (SPHERE | {"heads": 3}, 0),
    ],
    ids=str,
)
def test_other_shapes_have_the_kernels_for_any(module, shape, products):
    assert known_products(module, **shape) == products


# hidden, attention, interaction, width of e, heads
SHAPES = {
    "paper": DIMS["paper"],
    "paper-last": DIMS["paper-last"],
    "sphere": (64, 32, 0, 32, 4),
    "sphere-renewing": (64, 32, 32, 32, 4),
    "odd": (20, 17, 9, 35, 3),
    "narrow": (33, 3, 1, 17, 4),
}


@pytest.mark.parametrize("dims", SHAPES)
def test_known_shapes_compute_what_any_shape_does(emulated, dims):
    """A further head leads to the kernels for any shape, and changes no bit of the other heads.

    Its weights are random, but its part of y has no gradient.
    """
    *sizes, heads = SHAPES[dims]
    rows = (70, 3, 0, 33, 1)
    results = []
    for further in (0, 6 - heads):
        tensors = inputs(SHAPES[dims], rows, torch.bfloat16)
        generator = torch.Generator().manual_seed(2)
        tensors[4] = torch.cat([tensors[4], torch.randn(further, sizes[0], generator=generator)])
        leaves = [x.requires_grad_(i < 5) for i, x in enumerate(tensors)]
        y, e, logits = attention.attention(*leaves, attention_dim=sizes[1], need_logits=True)
        y, logits = y.unflatten(1, (sizes[1], -1))[..., :heads], logits[:, :heads]
        outputs = [x for x in (y, e) if x is not None]
        directions = [
            torch.randn(x.shape, generator=torch.Generator().manual_seed(3)).to(x.dtype)
            for x in outputs
        ]
        gradients = list(torch.autograd.grad(outputs, leaves[:5], directions))
        gradients[4] = gradients[4][:heads]
        results.append([*outputs, logits, *gradients])
    assert all(torch.equal(x, y) for x, y in zip(*results, strict=True))
