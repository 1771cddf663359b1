"""The fused power spectrum beside the same formula in plain torch, on Matbench crystals."""

import pytest
import torch
from cases import matbench_crystals, measure

from sitenet import reference
from sitenet.config import load_config
from sitenet.model.spectrum import Images, Spectrum
from sitenet.ops.power_spectrum import power_spectrum
from sitenet.pairs.finder import find_pairs
from sitenet.pairs.pairs import Pairs

CRYSTALS = 64


def arguments(config, dtype=torch.float32):
    """The tensors of one block on a batch of crystals."""
    options = {"images": "sphere", "radius": config.radius, "vectors": True}
    batch = Pairs.batch([find_pairs(c, **options) for c in matbench_crystals(CRYSTALS)])
    images = Images.of(batch, config, dtype)
    torch.manual_seed(0)
    values = torch.randn(batch.num_rows, config.spectrum_channels, dtype=dtype)
    mix = torch.stack(list(Spectrum(config).mix)).to(dtype)
    return values, mix.detach(), images.radial, images.vectors, images.offsets, images.sites


def step(function, values, mix, *rest):
    """Compute forward and backward once."""
    leaves = values.clone().requires_grad_(), mix.clone().requires_grad_()
    function(*leaves, *rest).sum().backward()


@pytest.mark.parametrize("radial", [4, 8])
def test_power_spectrum(radial, table, full):
    """Milliseconds per batch, on the threads that torch uses."""
    config = load_config("density").replace(spectrum_radial=radial)
    tensors = arguments(config)
    header = ("radial", "images", "rows", "fused", "plain", "forward", "fused", "plain", "both")
    repeats = 15 if full else 5
    ours = [measure(lambda: power_spectrum(*tensors, check_indices=False), repeats)]
    plain = [measure(lambda: reference.power_spectrum(*tensors), repeats)]
    ours.append(measure(lambda: step(power_spectrum, *tensors), repeats))
    plain.append(measure(lambda: step(reference.power_spectrum, *tensors), repeats))
    cells = []
    for a, b in zip(ours, plain, strict=True):
        cells += [f"{a.median * 1e3:.2f} ms", f"{b.median * 1e3:.1f} ms"]
        cells.append(f"{b.median / a.median:.0f}x")
    sizes = len(tensors[5]), len(tensors[4]) - 1
    table(f"power spectra of {CRYSTALS} crystals", header, radial, *sizes, *cells)


def test_pairs_with_vectors(table, full):
    """What vectors add to the search for pairs."""
    crystals = matbench_crystals(1000 if full else 300)
    header = ("radius", "pairs", "with vectors", "ratio")
    for radius in (5, 6):
        times = [
            measure(
                lambda r=radius, v=vectors: [
                    find_pairs(c, images="sphere", radius=r, vectors=v) for c in crystals
                ],
                7 if full else 3,
            ).median
            for vectors in (False, True)
        ]
        cells = [f"{t / len(crystals) * 1e3:.3f} ms" for t in times]
        table("pairs per crystal", header, radius, *cells, f"{times[1] / times[0]:.2f}")
