"""Crystal -> the columns of its pairs, as a model's config asks for them."""

from __future__ import annotations

from typing import Any

import numpy as np

from sitenet.config import SiteNetConfig
from sitenet.crystal.crystal import Crystal
from sitenet.crystal.elements import SYMBOLS, element_table, site_features
from sitenet.data.failures import Unusable
from sitenet.pairs.columns import Columns, columns_of
from sitenet.pairs.finder import find_pairs


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
        self.missing = config.missing
        self.known = ~np.isnan(element_table(config)).any(1)  # by atomic number

    def unusable(self, numbers: np.ndarray) -> list[int]:
        """Elements whose features the model lacks."""
        numbers = np.unique(numbers)
        return numbers[~self.known[numbers]].tolist()

    def check(self, crystal: Crystal) -> None:
        """Raise ValueError, naming the first, if the model lacks the features of an element."""
        unusable = self.unusable(crystal.numbers)
        if unusable:
            reason = f"the model has no features of {SYMBOLS[unusable[0]]}"
            try:
                site_features(unusable, self.missing)
            except ValueError as error:  # says which property is not known
                reason = str(error)
            raise Unusable("element without features", reason)

    def __call__(self, crystal: Crystal) -> Columns:
        self.check(crystal)
        return columns_of(find_pairs(crystal, **self.options))
