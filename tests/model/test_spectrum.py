"""Models whose blocks have a power spectrum."""

import numpy as np
import pytest
import torch
from toy_crystals import SIZE, toy_crystals, toy_dataset
from trainers import trainer_of

import sitenet
from sitenet.config import load_config
from sitenet.model.sitenet import SiteNet

SMALL = dict(
    embedding=4,
    heads=2,
    site_dim=4,
    interaction_dim=3,
    hidden=(7,),
    pre_pool=(6,),
    post_pool=(5, 6),
    spectrum_channels=3,
    spectrum_mixed=5,
    last_activation="identity",
)


def spectral_model(seed=0, **changes):
    """Return a small model with random weights that tell crystals apart."""
    torch.manual_seed(seed)
    model = SiteNet.from_config("density", [SIZE], **{**SMALL, **changes}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=2 * parameter.shape[-1] ** -0.5)
    return model.double()


def rock_salt():
    return sitenet.Crystal(5.64 * (1 - np.eye(3)) / 2, [[0, 0, 0], [0.5] * 3], [11, 17])


def moved(crystal, rng):
    """The same crystal, shifted, rotated and reflected, in another cell of its lattice."""
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    shear = np.array([[1, 0, 0], [1, 1, 0], [0, -1, 1]])
    cell = shear @ crystal.cell @ turn
    frac = (crystal.frac + rng.random(3)) @ np.linalg.inv(shear)
    order = rng.permutation(len(crystal))
    return sitenet.Crystal(cell, frac[order], crystal.numbers[order])


# Vectors are kept in float32: 1e-7 of a direction, times some ten in the gradients of a network.
LIMIT = 1e-5


def test_a_prediction_is_that_of_unmerged_pairs():
    model = spectral_model()
    crystals = [*toy_crystals(), rock_salt(), rock_salt().supercell(max_sites=16)]
    merged, plain = model.predict(crystals), model.predict(crystals, merge=False)
    assert np.ptp(merged) > 0.1
    np.testing.assert_allclose(merged, plain, atol=LIMIT)


def test_another_cell_of_a_crystal_has_the_same_prediction():
    model, rng = spectral_model(), np.random.default_rng(0)
    crystals = [*toy_crystals(), rock_salt()]
    expected = model.predict(crystals)
    got = model.predict([moved(c, rng) for c in crystals])
    np.testing.assert_allclose(got, expected, atol=LIMIT)
    doubled = model.predict(rock_salt().supercell(max_sites=16), primitive=False)
    np.testing.assert_allclose(doubled, expected[-1:], atol=LIMIT)


def test_a_batch_is_its_crystals_one_by_one():
    model, crystals = spectral_model(), toy_crystals()
    together = model.predict(crystals)
    apart = np.concatenate([model.predict(c) for c in crystals])
    # Norms of nearly constant columns amplify the rounding of float64, here to some 1e-8.
    np.testing.assert_allclose(together, apart, rtol=0, atol=1e-6)


def test_a_prediction_is_continuous_where_merging_sets_in():
    """Two shells grow apart and cease to be one: the prediction follows, without a jump."""
    model = spectral_model()
    strains = np.array([1.5, 1.7, 1.75, 1.79, 1.85, 2.05]) * 1e-4  # 1e-3 A of 5.64 A is 1.77e-4
    crystals = [
        sitenet.Crystal(rock_salt().cell * [1, 1, 1 + x], rock_salt().frac, [11, 17])
        for x in strains
    ]
    slopes = np.diff(model.predict(crystals, primitive=False)) / np.diff(strains)
    # A jump of 1e-4 between the third and the fourth would change their slope by 25.
    assert np.ptp(slopes) < 3


def test_angles_change_the_prediction():
    """Square-planar and tetrahedral surroundings with equal distances to equal neighbours, as far
    as the sphere reaches, differ in angles only."""
    centre = np.full(3, 10.0)
    square = 2 * np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])
    tetrahedron = 2 / np.sqrt(3) * np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]])
    crystals = []
    for ligands in (square, tetrahedron):
        positions = np.concatenate([[centre], centre + ligands])
        crystals.append(sitenet.Crystal(np.eye(3) * 20, positions / 20, [28, 17, 17, 17, 17]))
    seen = spectral_model(radius=2.5).predict(crystals, primitive=False)
    assert abs(seen[0] - seen[1]) > 1e-2
    blind = spectral_model(radius=2.5, spectrum_degree=0).predict(crystals, primitive=False)
    assert abs(blind[0] - blind[1]) < LIMIT


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_learns_and_loads(tmp_path, precision):
    config = load_config("density").replace(**SMALL, epochs=4, precision=precision)
    trainer = trainer_of(config, toy_dataset(30))
    trainer.run()
    losses = [entry["train_loss"] for entry in trainer.progress.history]
    assert losses[-1] < losses[0]
    trainer.best.save(tmp_path / "model.safetensors")
    loaded = sitenet.load(tmp_path / "model.safetensors")
    assert loaded.config == config
    crystals = toy_crystals()
    np.testing.assert_array_equal(loaded.predict(crystals), trainer.best.predict(crystals))


def test_it_needs_spheres():
    with pytest.raises(ValueError, match="spectrum_channels needs images: sphere"):
        SiteNet.from_config("paper", spectrum_channels=4)


def test_the_published_model_has_no_power_spectrum():
    model = SiteNet.from_config("paper")
    assert all(block.spectrum is None for block in model.each_block)
    with pytest.raises(ValueError, match="spectrum_channels: 3"):
        spectral_model().to_published()
