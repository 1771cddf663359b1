"""Vectors to the images that pairs stand for, and orbits that agree in angles."""

import numpy as np
import pytest
import torch
from toy_crystals import toy_crystals

import sitenet
from sitenet.pairs.columns import columns_of
from sitenet.pairs.store import PairStore

SPHERE = {"images": "sphere", "vectors": True}


def centred(*names):
    """A box with one octahedron per name, whose ligands are "cis" or "trans", far from each other.

    Six oxygen sites at 2 A surround each titanium; two of them are fluorine instead, side by side
    or opposite. Within 2.5 A every titanium has the same distances to the same elements.
    """
    axes = np.concatenate([np.eye(3), -np.eye(3)])
    fluorine = {"cis": (0, 1), "trans": (0, 3)}
    frac, numbers = [], []
    for k, name in enumerate(names):
        centre = np.array([5.0 + 10 * k, 5, 5])
        frac.append(centre)
        frac.extend(centre + 2 * axes)
        numbers += [22, *(9 if i in fluorine[name] else 8 for i in range(6))]
    cell = np.diag([10.0 * len(names), 10, 10])
    return sitenet.Crystal(cell, np.array(frac) @ np.linalg.inv(cell), np.array(numbers))


@pytest.mark.parametrize("merge", [True, False])
def test_vectors_have_the_distances_of_their_pairs(merge):
    for crystal in toy_crystals():
        pairs = sitenet.find_pairs(crystal, merge=merge, radius=6.0, **SPHERE)
        offsets, sites = pairs.images_of_rows()
        assert len(pairs.vectors) == offsets[-1] == len(sites) == pairs.multiplicity.sum()
        lengths = pairs.vectors.double().norm(dim=1)
        expected = torch.repeat_interleave(pairs.distance, pairs.multiplicity.long())
        # Merged distances are means over 1e-3 A; float32 keeps 5e-7 A at 6 A.
        torch.testing.assert_close(lengths, expected, rtol=0, atol=1e-3 if merge else 1e-6)


def test_vectors_lead_to_their_sites():
    """From a row's site, each vector ends at an image of a site of the pair's orbit."""
    for crystal in toy_crystals():
        pairs = sitenet.find_pairs(crystal, radius=6.0, **SPHERE)
        offsets, sites = pairs.images_of_rows()
        inverse = np.linalg.inv(crystal.cell)
        for row in range(pairs.num_rows):
            site = int(np.flatnonzero(pairs.orbit == row)[0])
            images = slice(int(offsets[row]), int(offsets[row + 1]))
            ends = crystal.frac[site] + pairs.vectors[images].numpy() @ inverse
            difference = ends[:, None] - crystal.frac
            difference -= difference.round()
            nearest = np.abs(difference @ crystal.cell).sum(2).argmin(1)
            assert np.array_equal(pairs.orbit[nearest], sites[images])


def test_pairs_do_not_depend_on_vectors_where_angles_agree():
    for crystal in toy_crystals():
        with_vectors = sitenet.find_pairs(crystal, **SPHERE)
        without = sitenet.find_pairs(crystal, images="sphere")
        for name in ("offsets", "sites", "distance", "multiplicity", "count", "orbit"):
            assert torch.equal(getattr(with_vectors, name), getattr(without, name)), name


def test_orbits_agree_in_angles():
    """A titanium with fluorine side by side is another orbit than one with fluorine opposite, which
    has the same distances; equal octahedra in another orientation are one."""
    both = centred("cis", "trans")
    distances = sitenet.find_pairs(both, images="sphere", radius=2.5)
    angles = sitenet.find_pairs(both, radius=2.5, **SPHERE)
    assert distances.orbit[0] == distances.orbit[7]
    assert angles.orbit[0] != angles.orbit[7]

    turned = centred("cis", "cis")
    frac = turned.frac.copy()
    centre = turned.cell[0] * 0.75 + [0, 5 - turned.cell[0, 1], 5]
    offset = frac[8:] @ turned.cell - centre
    frac[8:] = (centre + offset[:, [1, 2, 0]]) @ np.linalg.inv(turned.cell)
    turned = sitenet.Crystal(turned.cell, frac, turned.numbers)
    assert sitenet.find_pairs(turned, radius=2.5, **SPHERE).orbit[[0, 7]].tolist() == [0, 0]


def test_a_batch_and_a_store_keep_vectors():
    each = [sitenet.find_pairs(c, **SPHERE) for c in toy_crystals()]
    store = PairStore.of([columns_of(p) for p in each])
    order = [7, 0, 3]
    batch = sitenet.Pairs.batch([each[k] for k in order])
    stored = store.batch(order)
    assert torch.equal(batch.vectors, stored.vectors)
    assert all(
        torch.equal(x, y)
        for x, y in zip(batch.images_of_rows(), stored.images_of_rows(), strict=True)
    )


def test_vectors_are_asked_for_and_checked():
    crystal = toy_crystals(1)[0]
    with pytest.raises(ValueError, match="vectors need images='sphere'"):
        sitenet.find_pairs(crystal, vectors=True)
    with pytest.raises(ValueError, match="have no vectors"):
        sitenet.find_pairs(crystal, images="sphere").images_of_rows()
    pairs = sitenet.find_pairs(crystal, **SPHERE)
    pairs.vectors = pairs.vectors[1:]
    with pytest.raises(ValueError, match=r"Pairs.vectors must have one row per image"):
        pairs.check()
    without = sitenet.find_pairs(crystal, images="sphere")
    with pytest.raises(ValueError, match="must all have their vectors, or none of them"):
        sitenet.Pairs.batch([without, sitenet.find_pairs(crystal, **SPHERE)])
