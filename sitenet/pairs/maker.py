"""Crystal -> the columns of its pairs, as a model's config asks for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from sitenet.config import SiteNetConfig
from sitenet.crystal.crystal import Crystal
from sitenet.crystal.elements import SYMBOLS, element_table, site_features
from sitenet.data.failures import Unusable
from sitenet.pairs.columns import NOT_MIXED, Columns, columns_of
from sitenet.pairs.finder import SphereSearch, find_pairs


def pair_options(
    config: SiteNetConfig, max_sites: int | None = None, merge: bool | None = None
) -> dict[str, Any]:
    """The arguments of ``find_pairs`` that a config asks for.

    Args:
        config: of the model.
        max_sites: overrides the config's; None takes that, 0 the cell as it is.
        merge: overrides the config's; None takes that.
    """
    options: dict[str, Any] = {
        "merge": config.merge if merge is None else merge,
        "tolerance": config.tolerance,
    }
    if config.images == "sphere":
        options |= {"images": "sphere", "radius": config.radius}
        return options | ({"vectors": True} if config.spectrum_channels else {})
    sine = any(f.name == "coulomb_matrix" for f in config.interaction_features)
    max_sites = config.max_sites if max_sites is None else max_sites
    options |= {"max_sites": max_sites, "sine": sine}
    return options | {"merge": False} if sine else options


class PairMaker:
    """Crystal -> the columns of its pairs, as a model's config asks for them.

    Args:
        config: of the model.
        max_sites: as in ``pair_options``.
        merge: as in ``pair_options``.
    """

    def __init__(
        self, config: SiteNetConfig, max_sites: int | None = None, merge: bool | None = None
    ) -> None:
        self.options = pair_options(config, max_sites, merge)
        self._sphere = {k: v for k, v in self.options.items() if k != "images"}
        self.missing = config.missing
        self.known = ~np.isnan(element_table(config)).any(1)  # by atomic number

    def unusable(self, numbers: np.ndarray) -> list[int]:
        """Elements whose features the model lacks."""
        numbers = np.unique(numbers)
        return numbers[~self.known[numbers]].tolist()

    def check(self, crystal: Crystal) -> None:
        """Raise ValueError, naming the first, if the model lacks the features of an element."""
        if not self.known[crystal.numbers].all():
            unusable = self.unusable(crystal.numbers)
            reason = f"the model has no features of {SYMBOLS[unusable[0]]}"
            try:
                site_features(unusable, self.missing)
            except ValueError as error:  # says which property is not known
                reason = str(error)
            raise Unusable("element without features", reason)

    def __call__(self, crystal: Crystal) -> Columns:
        self.check(crystal)
        if "radius" in self.options and crystal.occupancy is None:
            return sphere_columns(crystal, **self._sphere)
        return columns_of(find_pairs(crystal, **self.options))


def sphere_columns(
    crystal: Crystal, radius: float, merge: bool, tolerance: float, vectors: bool = False
) -> Columns:
    """Find the pairs of an ordered crystal in spheres, as columns.

    Compute the same as ``columns_of(find_pairs(...))`` in less time.

    Args:
        crystal: without partial occupancy.
        radius: as in ``find_pairs``, like the others.
    """
    search = SphereSearch(crystal, radius, merge, tolerance, vectors)
    arrays, data, leader = search.arrays, search.input, search.arrays.leader
    rows = len(leader)
    zeros = np.zeros(rows, np.float32)
    columns = {
        "num_sites": np.array([data.sites], np.int32),
        "images": np.array([0], np.int32),
        "num_rows": np.array([rows], np.int32),
        "num_mixed": np.array([0], np.int32),
        "numbers": data.numbers[leader].astype(np.uint8),
        "oxidation": zeros if data.oxidation is None else data.oxidation[leader].astype(np.float32),
        "count": np.bincount(arrays.orbit, minlength=rows).astype(np.int32),
        "num_pairs": np.diff(arrays.offsets).astype(np.int32),
        "sites": arrays.sites,
        "distance": arrays.distance.astype(np.float32),
        "multiplicity": arrays.multiplicity,
        **NOT_MIXED,
    }
    return columns | ({"vectors": arrays.vectors} if vectors else {})
