"""Explanations in sentences: what they say follows from the weights."""

import re

import numpy as np
import pytest
import torch
from toy_crystals import SMALL

from sitenet.crystal.crystal import Crystal
from sitenet.inference.explain import explain
from sitenet.inference.explanation_text import TIMES
from sitenet.model.ensemble import Ensemble
from sitenet.model.sitenet import SiteNet, Target

SALT = Crystal(
    [[0, 2.8, 2.8], [2.8, 0, 2.8], [2.8, 2.8, 0]], [[0, 0, 0], [0.5, 0.5, 0.5]], [11, 17]
)  # Na-Cl 2.80 Å, Na-Na 3.96 Å


def explained(weights=None, structures=SALT, members=1):
    """Explain a model; weights, a function of distance and neighbour's number, replace its own."""
    torch.manual_seed(0)
    config = SMALL.replace(images="sphere", radius=5.0, heads=2)
    parts = [SiteNet(config, [Target("gap", "eV")]) for _ in range(members)]
    e = explain(Ensemble(parts) if members > 1 else parts[0], structures)
    if weights is not None:
        numbers = e.crystal.numbers[e._first_sites[e.pairs.sites.numpy()]]
        raw = weights(e.pairs.distance.numpy(), numbers)
        raw = raw if raw.ndim == 2 else np.stack([raw] * 2, 1)
        rows, copies = e.pairs.rows.numpy(), e.pairs.multiplicity.numpy()[:, None]
        total = np.zeros((e.pairs.num_rows, 2))
        np.add.at(total, rows, raw * copies)
        e.weights = np.stack([raw / total[rows]] * e.weights.shape[1], 1)
    return e


def test_attention_to_the_nearest_neighbours_alone():
    e = explained(lambda d, z: ((d > 2) & (d < 3)).astype(float))
    lines = e.summary().splitlines()
    even = (1 + 12 + 6 + 8) / 6  # sites within 5 Å, the site itself included, per neighbour
    assert lines[0] in (
        f"{i} gives 100% of its attention to {j}, mostly at 2.5-3.0 Å, {even * 6 / 14:.1f} "
        f"{TIMES} an even share."
        for i, j in (("Na", "Cl"), ("Cl", "Na"))
    )
    assert "Half of it lies within 2.8 Å, 90% within 2.8 Å; 0% stays with the site itself." in lines
    assert any(line.startswith("Beyond 3.5 Å, where few bonds reach, lies 0%;") for line in lines)
    assert any(f"{2.8 / 6:.2f} Å on average, {2.8 / 6:.2f} Å at most" in line for line in lines)
    assert lines[-1] == "The 4 heads look equally far: 2.8 to 2.8 Å on average."


def test_even_attention_is_called_even():
    lines = explained(lambda d, z: np.ones(len(d))).summary().splitlines()
    assert f"1.0 {TIMES} an even share" in lines[0]
    (far,) = [line for line in lines if line.startswith("Beyond")]
    one, other = re.findall(r"(\d+)%", far)
    assert one == other


def test_heads_that_differ_are_named():
    near = lambda d: ((d > 2) & (d < 3)).astype(float)  # noqa: E731
    far = lambda d: (d > 4.5).astype(float)  # noqa: E731
    lines = explained(lambda d, z: np.stack([near(d), far(d)], 1)).summary().splitlines()
    assert "from 2.8 Å (block 1, head 1) to 4.8 Å far (block 1, head 2)" in lines[-1]


@pytest.mark.parametrize("members", [1, 2])
def test_about_six_sentences_of_a_line_for_one_crystal_and_many(members):
    for structures in (SALT, [SALT, SALT]):
        lines = explained(structures=structures, members=members).summary().splitlines()
        assert 5 <= len(lines) <= 6
        assert all(len(line) <= 120 and line.endswith(".") for line in lines)


def test_nothing_and_isolated_sites():
    assert explained(structures=[]).summary() == "There is no crystal to describe."
    alone = Crystal(np.eye(3) * 20, [[0, 0, 0]], [84])
    assert "attends to itself alone" in explained(structures=alone).summary()
