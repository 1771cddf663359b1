"""Checks of the power spectrum, for every implementation of the op."""

import torch
from attention_checks import compare

from sitenet import reference
from sitenet.ops.power_spectrum import power_spectrum

# channels, radial, degrees, mixed
SIZES = {
    "config": (16, 4, 5, 32),
    "tiny": (1, 2, 1, 1),
    "odd": (3, 3, 3, 7),
    "vectors": (8, 2, 4, 16),
    "wide": (33, 5, 2, 65),
}
ROWS = {
    "edges": (40, 3, 0, 15, 16, 17, 63, 64, 65, 1, 130, 0),
    "one": (1,),
    "empty": (0, 0),
    "none": (),
}


def inputs(sizes, rows, dtype, device="cpu", seed=0):
    """Return random arguments of ``power_spectrum`` for rows with these numbers of images. Each
    seventh image is at the site itself."""
    channels, radial, degrees, mixed = sizes
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    offsets = torch.tensor((0, *rows)).cumsum(0)
    images, num_sites, products = int(offsets[-1]), len(rows) + 2, channels * radial
    vectors = 3 * random(images, 3)
    vectors[::7] = 0
    sites = torch.randint(0, num_sites, (images,), generator=generator, dtype=torch.int32)
    tensors = (
        random(num_sites, channels),
        random(degrees, products, mixed) / products**0.5,
        random(images, radial),
        vectors,
    )
    return [x.to(device) for x in (*(x.to(dtype) for x in tensors), offsets, sites)]


def check_power_spectrum(sizes, rows, dtype, device="cpu"):
    """Compare output and gradients with the oracle."""
    tensors = inputs(sizes, rows, dtype, device)
    compare(power_spectrum, reference.power_spectrum, tensors, 2)


def check_spectrum_gradcheck(device):
    """Check the gradients by finite differences, with a row of one image and one of none."""
    values, mix, *rest = inputs((2, 2, 5, 3), (4, 1, 0), torch.float64, device)
    leaves = values.requires_grad_(), mix.requires_grad_()
    assert torch.autograd.gradcheck(lambda v, w: power_spectrum(v, w, *rest), leaves)


def check_spectrum_sliced_inputs(device):
    """Check that strides are honoured."""
    tensors = inputs((4, 2, 3, 6), (5, 9), torch.float32, device)
    expected = power_spectrum(*tensors)
    values, mix, radial, vectors, offsets, sites = tensors
    wide = torch.stack([values, values], 2)[:, :, 0]
    turned = mix.transpose(1, 2).contiguous().transpose(1, 2)
    every_other = torch.stack([sites, sites], 1)[:, 0]
    got = power_spectrum(wide, turned, radial.t().contiguous().t(), vectors, offsets, every_other)
    assert torch.equal(got, expected)
