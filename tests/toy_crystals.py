"""Small crystals and models for tests of reading, training and prediction."""

import numpy as np

from sitenet.config import SiteNetConfig
from sitenet.crystal import Crystal
from sitenet.data import Dataset
from sitenet.elements import SYMBOLS

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


def toy_crystals(number=12, seed=0, sites=(1, 4)):
    """Random crystals, named c0, c1, ..., whose sites lie apart."""
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
    """A property that can be learned: how much room an atom has."""
    return np.array([(c.volume / len(c)) ** (1 / 3) for c in crystals])


def toy_dataset(number=12, seed=0, names=("size_A",)):
    crystals = toy_crystals(number, seed)
    values = toy_targets(crystals)
    targets = np.stack([values + k for k in range(len(names))], 1)
    ids, units = [c.name for c in crystals], ("Å",) * len(names)
    return Dataset(ids, crystals, targets, tuple(names), units, [""] * number)


def cif_of(crystal):
    """The text of a CIF that holds a crystal, in P1."""
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
    """CIFs of toy crystals and their targets in a CSV; returns the crystals."""
    folder.mkdir(parents=True, exist_ok=True)
    crystals = toy_crystals(number, seed)
    for crystal in crystals:
        (folder / f"{crystal.name}.cif").write_text(cif_of(crystal))
    if table:
        values = zip(crystals, toy_targets(crystals), strict=True)
        rows = ["id,size_A", *(f"{c.name},{y:.6f}" for c, y in values)]
        (folder / table).write_text("\n".join([*rows, ""]))
    return crystals
