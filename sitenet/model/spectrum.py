"""The power spectrum of the density of neighbours, which lets a block count and see angles."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sitenet.config import SiteNetConfig
from sitenet.model.layers import Layer
from sitenet.ops.power_spectrum import power_spectrum
from sitenet.ops.rows import BySite, by_site_for_backward
from sitenet.pairs.features import radial_functions
from sitenet.pairs.pairs import Pairs

SCALE = 0.25  # some 40 images within 5 angstrom add up: brings their sums near 1


@dataclass
class Images:
    """The images around each row's site: radial functions (images, radial), vectors (images, 3) in
    angstrom, CSR offsets (rows + 1,), each image's row, (images,), and the images by that row, for
    the backward pass on a GPU."""

    radial: Tensor
    vectors: Tensor
    offsets: Tensor
    sites: Tensor
    by_site: BySite

    @classmethod
    def of(cls, pairs: Pairs, config: SiteNetConfig, dtype: torch.dtype) -> Images:
        """Lay out the images that pairs stand for. Each has its own distance, which may differ from
        that of its merged pair by the tolerance: to first order in such differences, means over
        images keep what is summed with equal weights, but not what is weighted by directions."""
        offsets, sites = pairs.images_of_rows()
        assert pairs.vectors is not None  # images_of_rows has read it
        vectors = pairs.vectors.to(dtype)
        distance = torch.linalg.vector_norm(vectors, dim=1)
        radial = radial_functions(distance, config.spectrum_radial, config.reach or 0)
        by_site = by_site_for_backward(sites, pairs.num_rows)
        return cls(SCALE * radial, vectors, offsets, sites, by_site)


class Spectrum(nn.Module):
    """What a site sees around it: sums over its images, and the angles between them.

    Softmax attention averages over pairs, so it neither counts neighbours nor sees angles. Here the
    states of all images within reach add up to a density, expanded in radial functions and
    spherical harmonics; its power spectrum, in learned channels, goes through a layer.

    Args:
        config: of the model.
    """

    def __init__(self, config: SiteNetConfig):
        super().__init__()
        sites, mixed = config.heads * config.site_dim, config.spectrum_mixed
        degrees = config.spectrum_degree + 1
        self.value = nn.Linear(sites, config.spectrum_channels)
        products = config.spectrum_radial * config.spectrum_channels
        self.mix = nn.ParameterList(
            nn.Parameter(torch.randn(products, mixed) * products**-0.5) for _ in range(degrees)
        )
        self.layer = Layer(degrees * mixed, 2 * mixed, config.activation, config.norm)

    @property
    def width(self) -> int:
        """Columns of the output."""
        return self.layer.linear.out_features

    def forward(self, x: Tensor, images: Images) -> Tensor:
        """States of all sites (sites, D) -> (rows, width)."""
        mix = torch.stack(list(self.mix))
        with torch.autocast(x.device.type, enabled=False):  # sums over images
            values = self.value(x.to(mix.dtype))
        spectrum = power_spectrum(
            values,
            mix,
            images.radial,
            images.vectors,
            images.offsets,
            images.sites,
            check_indices=False,  # Pairs.check has
            by_site=images.by_site,
        )
        return self.layer(spectrum.flatten(1))
