"""``torch.export`` of a model's forward pass, for any number of pairs, rows and crystals."""

import io

import pytest
import torch
from random_pairs import random_pairs
from toy_crystals import SMALL

from sitenet.model.sitenet import SiteNet
from sitenet.pairs.pairs import Pairs

IDENTITY = SMALL.replace(last_activation="identity")
CONFIGS = {
    "published": IDENTITY,
    "sphere": IDENTITY.replace(residual=True, distance_basis=5, images="sphere", radius=7.0),
    "plain": IDENTITY.replace(hidden=(7, 6)),
}
NAMES = ("offsets", "sites", "distance", "multiplicity", "numbers", "oxidation", "count", "orbit")
NAMES += ("crystals", "num_sites", "images")


class FromTensors(torch.nn.Module):
    """A model that takes the tensors of its pairs: an exported program takes nothing else."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *tensors):
        return self.model(Pairs(**dict(zip(NAMES, tensors, strict=True))))


def tensors_of(pairs):
    return tuple(getattr(pairs, name) for name in NAMES)


def sizes():
    """The size of each tensor; the program needs at least two crystals."""
    rows, pairs, sites = (torch.export.Dim(name, min=1) for name in ("rows", "pairs", "sites"))
    crystals = torch.export.Dim("crystals", min=2)
    firsts = [rows + 1, *[pairs] * 3, *[rows] * 3, sites, crystals + 1, crystals, crystals]
    return (tuple({0: first} for first in firsts),)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:this model runs without the fused kernels")
@pytest.mark.parametrize("config", CONFIGS)
def test_a_model_is_exported_for_any_size(config):
    """Also through a file. The same operations run, so that the results are equal bit for bit."""
    torch.manual_seed(0)
    model = FromTensors(SiteNet(CONFIGS[config]).double()).eval()
    model.model.element_table.normal_()  # some elements have no value of some features
    example = tensors_of(random_pairs((4, 3, 1)))
    with torch.no_grad():
        program = torch.export.export(model, example, dynamic_shapes=sizes())
        file = io.BytesIO()
        torch.export.save(program, file)
        file.seek(0)
        loaded = torch.export.load(file).module()
        for shape in ((4, 3, 1), (2, 1), (5, 1, 8, 3, 3)):
            inputs = tensors_of(random_pairs(shape, seed=len(shape)))
            got, want = loaded(*inputs), model(*inputs)
            assert torch.equal(got, want) and want.unique().numel() == len(shape)
