"""Small crystals and models for tests of reading, training and prediction."""

import numpy as np
import torch

from sitenet.config import SiteNetConfig
from sitenet.crystal.crystal import Crystal
from sitenet.crystal.elements import SYMBOLS
from sitenet.data.dataset import Dataset
from sitenet.inference.predict import outputs
from sitenet.model.calibration import calibrate, spread
from sitenet.model.ensemble import Ensemble
from sitenet.model.sitenet import SiteNet, Target
from sitenet.model.surroundings import Surroundings

SMALL = SiteNetConfig(
    embedding=4,
    heads=2,
    site_dim=4,
    interaction_dim=3,
    hidden=(7,),
    pre_pool=(6,),
    post_pool=(5, 6),
    max_sites=12,
)
# The same as options of the command line; the lists keep the paper's widths.
OPTIONS = "--embedding 4 --heads 2 --site-dim 4 --interaction-dim 3 --max-sites 12".split()


SIZE = Target("size_A", "Å")


def toy_crystals(number=12, seed=0, sites=(1, 4)):
    """Return random crystals named c0, c1, ..., whose sites are well separated."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[[0, 0.5]] * 3), -1).reshape(-1, 3)
    crystals = []
    for k in range(number):
        n = rng.integers(sites[0], sites[1] + 1)
        cell = np.eye(3) * rng.uniform(4, 8, 3) + rng.uniform(-1, 1, (3, 3))
        frac = rng.permutation(grid)[:n] + rng.uniform(0, 0.2, (n, 3))
        crystals.append(Crystal(cell, frac, rng.choice([8, 11, 14, 31, 56], n), name=f"c{k}"))
    return crystals


def toy_targets(crystals):
    """Return a property that can be learned: the cube root of the volume per site."""
    return np.array([(c.volume / len(c)) ** (1 / 3) for c in crystals])


def toy_dataset(number=12, seed=0, names=("size_A",)):
    crystals = toy_crystals(number, seed)
    values = toy_targets(crystals)
    targets = np.stack([values + k for k in range(len(names))], 1)
    ids, units = [c.name for c in crystals], ("Å",) * len(names)
    return Dataset(ids, crystals, targets, tuple(names), units, [""] * number)


def toy_model(targets=(SIZE,), seed=0, members=1):
    """Return a model whose random weights tell crystals apart, or an ensemble of such models.

    It is calibrated on random residuals.
    """
    if members > 1:
        return _calibrated(Ensemble([toy_model(targets, seed + k) for k in range(members)]), seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = SMALL.replace(scale_site_features=True, norm="none", post_pool_norm="none")
        model = SiteNet(config.replace(last_activation="identity"), targets)
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=1.5 / parameter.shape[1] ** 0.5)
    return _calibrated(model, seed)


def _calibrated(model, seed):
    rng = np.random.default_rng(seed)
    crystals = toy_crystals(40, seed=100)
    encodings = np.stack([encoding for _, encoding in outputs(model, crystals)])
    y = rng.normal(size=(40, len(model.targets)))
    member_spread = spread(model, encodings)
    zeros = np.zeros_like(y)
    sites = Surroundings.of(crystals)
    model.calibration = calibrate(
        y, zeros, encodings, encodings[20:], spread=member_spread, valid=sites, train=sites
    )
    return model.eval()


def cif_of(crystal):
    """Return the text of a crystal's CIF, in P1."""
    a, b, c = lengths = np.linalg.norm(crystal.cell, axis=1)
    unit = crystal.cell / lengths[:, None]
    angles = np.degrees(np.arccos([unit[1] @ unit[2], unit[0] @ unit[2], unit[0] @ unit[1]]))
    lines = [f"data_{crystal.name}"]
    lines += [f"_cell_length_{n} {x:.10f}" for n, x in zip("abc", (a, b, c), strict=True)]
    names = ("alpha", "beta", "gamma")
    lines += [f"_cell_angle_{n} {x:.10f}" for n, x in zip(names, angles, strict=True)]
    lines += ["loop_", "_atom_site_type_symbol", *(f"_atom_site_fract_{x}" for x in "xyz")]
    for number, point in zip(crystal.numbers, crystal.frac, strict=True):
        lines.append(f"{SYMBOLS[number]} " + " ".join(f"{x:.10f}" for x in point))
    return "\n".join([*lines, ""])


def write_folder(folder, number=12, seed=0, table="targets.csv"):
    """Write CIFs of toy crystals and a CSV of their targets; return the crystals."""
    folder.mkdir(parents=True, exist_ok=True)
    crystals = toy_crystals(number, seed)
    for crystal in crystals:
        (folder / f"{crystal.name}.cif").write_text(cif_of(crystal))
    if table:
        values = zip(crystals, toy_targets(crystals), strict=True)
        rows = ["id,size_A", *(f"{c.name},{y:.6f}" for c, y in values)]
        (folder / table).write_text("\n".join([*rows, ""]))
    return crystals
