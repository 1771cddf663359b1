"""Whether a crystal resembles those that a model was trained on, and if not, why.

Three questions: Does it hold elements that training never showed? Are its bonds and the neighbours
of its sites those of the training crystals? Does the model encode it near to them? The second one
compares every bond with the bonds of the same two elements, and every site with the sites of its
element, in standard deviations; a crystal's few sums of these are compared with those of the
training crystals by their Mahalanobis distance. Thresholds are quantiles over validation crystals.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from sitenet.crystal.elements import SYMBOLS
from sitenet.model.surroundings import ALONE, NEAR, SITE_NUMBERS, Surroundings

USUAL = 0.985  # share of the validation crystals whose surroundings count as those of training
PRIOR = 2.0  # observations that the statistics over all elements count for in each element's own
RADIUS = 1.4  # angstrom: prior of a radius, with the weight of RADIUS_PRIOR bonds
RADIUS_PRIOR = 3.0
LEAST = 0.02  # smallest standard deviation of ln(length) and of the numbers of sites
LEAST_SCALE = 0.1  # of the features, which are in units of standard deviations
LARGEST = 20.0  # standard deviations: more are taken for these
RIDGE = 0.01  # added to the eigenvalues of the correlation matrix, whose mean is 1
TELLING = 3.0  # standard deviations from which on a single bond or site is named as the reason
_ELEMENTS = len(SYMBOLS)


@dataclass(eq=False)
class Familiarity:
    """Statistics of the training crystals' surroundings.

    Attributes:
        elements: (119,) training crystals that hold each element, by atomic number.
        radii: (119,) angstrom, whose sums are the expected lengths of bonds.
        bonds: (pairs, 5) of the pairs of elements bonded in training: the two atomic numbers, in
            how many crystals, mean and standard deviation of ln(length / expected length).
        other_bonds: (2,) mean and standard deviation of pairs of elements that training lacks.
        sites: (119, 3, 2) mean and standard deviation of ``SITE_NUMBERS`` per element.
        mean: (features,) mean of the crystals' features.
        axes: (features, features) whitening projection.
        threshold: largest Mahalanobis distance that still counts as familiar.
    """

    elements: np.ndarray
    radii: np.ndarray
    bonds: np.ndarray
    other_bonds: np.ndarray
    sites: np.ndarray
    mean: np.ndarray
    axes: np.ndarray
    threshold: float

    def __post_init__(self) -> None:
        size = _ELEMENTS, _ELEMENTS
        self._bonds = np.broadcast_to(self.other_bonds, (*size, 2)).copy()
        self._count = np.zeros(size)
        a, b = self.bonds[:, :2].astype(np.int64).T
        self._count[a, b] = self.bonds[:, 2]
        self._bonds[a, b] = self.bonds[:, 3:]

    @classmethod
    def fit(cls, train: Surroundings, valid: Surroundings | None = None) -> Familiarity:
        """Learn what is usual.

        Args:
            train: of the training crystals.
            valid: of validation crystals, which set the threshold; None sets none.
        """
        a, b, lengths = _shortest_bonds(train)
        radii = _radii(a, b, lengths)
        deviation = np.log(lengths / (radii[a] + radii[b]))
        mean, std, count = _shrunk(a * _ELEMENTS + b, deviation, _ELEMENTS**2)
        seen = np.flatnonzero(count)
        bonds = np.stack([*np.divmod(seen, _ELEMENTS), count[seen], mean[seen], std[seen]], 1)
        other = np.array([deviation.mean(), max(deviation.std(), LEAST)])
        element, numbers = _sites_by_element(train)
        columns = [_shrunk(element, x, _ELEMENTS)[:2] for x in numbers.T]
        sites = np.stack([np.stack(column, -1) for column in columns], 1)
        elements = np.bincount(element, minlength=_ELEMENTS)
        zero, one = np.zeros(1), np.eye(1)
        usual = cls(elements, radii, bonds, other, sites, zero, one, np.inf)
        features = usual.features(train, itself=1)
        usual.mean = features.mean(0)
        scale = np.maximum(features.std(0), LEAST_SCALE)
        correlation = np.cov(((features - usual.mean) / scale).T, bias=True)
        values, vectors = np.linalg.eigh(correlation)
        usual.axes = vectors / np.sqrt(np.maximum(values, 0) + RIDGE) / scale[:, None]
        if valid is not None and valid.crystals:
            usual.threshold = upper_bound(usual.distance(valid), USUAL)
        return usual

    @classmethod
    def from_arrays(cls, values: Mapping[str, np.ndarray]) -> Familiarity:
        """Build it from its attributes, as a file keeps them.

        Raises:
            ValueError: one is missing, unknown or of a wrong shape or range; names it.
        """
        features = values["mean"].shape[-1] if values.get("mean", np.zeros(())).ndim else None
        shapes = {
            "elements": (_ELEMENTS,),
            "radii": (_ELEMENTS,),
            "bonds": (None, 5),
            "other_bonds": (2,),
            "sites": (_ELEMENTS, len(SITE_NUMBERS), 2),
            "mean": (2 * len(SITE_NUMBERS) + 5,),
            "axes": (features, features),
            "threshold": (1,),
        }
        need_arrays(values, shapes)
        pairs = values["bonds"][:, :2]
        if not ((0 <= pairs) & (pairs < _ELEMENTS)).all():
            raise ValueError("bonds must be between elements, by atomic number")
        arrays = {name: value for name, value in values.items() if name != "threshold"}
        return cls(**arrays, threshold=float(values["threshold"].item()))

    def bond_deviations(self, x: Surroundings) -> np.ndarray:
        """How far each bond's length is from that of the same elements in training, (bonds,), in
        standard deviations."""
        a, b = x.bond_elements.T
        mean, std = self._bonds[a, b].T
        deviation = np.log(x.bond_length / (self.radii[a] + self.radii[b]))
        return np.clip((deviation - mean) / std, -LARGEST, LARGEST)

    def site_deviations(self, x: Surroundings) -> np.ndarray:
        """How far each site is from those of its element in training, (sites, 3), in standard
        deviations."""
        mean, std = np.moveaxis(self.sites[x.site_element], -1, 0)
        return np.clip((x.site_numbers - mean) / std, -LARGEST, LARGEST)

    def features(self, x: Surroundings, itself: int = 0) -> np.ndarray:
        """The numbers of each crystal that are compared.

        Args:
            x: the crystals' surroundings.
            itself: 1 for training crystals, which count in the statistics; 0 for others.

        Returns:
            (crystals, 11): mean, minimum, maximum and root mean square of the bonds' deviations,
            the share of bonds between elements that are not bonded in any other training crystal,
            means and root mean squares of the sites' deviations.
        """
        bonds, sites = self.bond_deviations(x), self.site_deviations(x)
        unseen = self._count[x.bond_elements[:, 0], x.bond_elements[:, 1]] <= itself

        def mean(crystal: np.ndarray, values: np.ndarray) -> np.ndarray:
            return np.bincount(crystal, values, x.crystals)

        begins = np.searchsorted(x.bond_crystal, np.arange(x.crystals))
        columns = [
            mean(x.bond_crystal, x.bond_share * bonds),
            np.minimum.reduceat(bonds, begins),
            np.maximum.reduceat(bonds, begins),
            _log_root(mean(x.bond_crystal, x.bond_share * bonds**2)),
            mean(x.bond_crystal, x.bond_share * unseen),
            *(mean(x.site_crystal, x.site_share * each) for each in sites.T),
            *(_log_root(mean(x.site_crystal, x.site_share * each**2)) for each in sites.T),
        ]
        return np.stack(columns, 1)

    def distance(self, x: Surroundings) -> np.ndarray:
        """Mahalanobis distance of each crystal to the training crystals, (crystals,)."""
        return np.linalg.norm((self.features(x) - self.mean) @ self.axes, axis=1)

    def unlike(self, x: Surroundings) -> list[str]:
        """Why each crystal is unlike the training crystals; "" where it is like them."""
        reasons = [""] * x.crystals
        unfamiliar = np.flatnonzero(~(self.distance(x) <= self.threshold))
        if len(unfamiliar):
            bonds, sites = self.bond_deviations(x), self.site_deviations(x)
        for k in unfamiliar.tolist():
            reasons[k] = self._oddest(x, k, bonds, sites)
        for crystal, element in (
            (x.site_crystal, x.site_element),
            (x.species_crystal, x.species_element),
        ):
            for place in np.flatnonzero(self.elements[element] == 0)[::-1]:
                symbol = SYMBOLS[element[place]]
                reasons[crystal[place]] = f"no training crystal holds {symbol}"
        return reasons

    def _oddest(self, x: Surroundings, crystal: int, bonds: np.ndarray, sites: np.ndarray) -> str:
        """The bond or site of a crystal with the largest deviation, in words."""
        begin, end = np.searchsorted(x.bond_crystal, [crystal, crystal + 1])
        a, b = x.bond_elements[begin:end].T
        size = np.abs(bonds[begin:end]) + LARGEST * (self._count[a, b] == 0)  # unseen bonds first
        bond = begin + int(size.argmax())
        begin, end = np.searchsorted(x.site_crystal, [crystal, crystal + 1])
        site, number = np.divmod(int(np.abs(sites[begin:end]).argmax()), sites.shape[1])
        of_bond, of_site = size.max(), abs(sites[begin + site, number])
        if max(of_bond, of_site) < TELLING:
            return "an unusual combination of bond lengths and neighbours"
        return self._bond(x, bond) if of_bond >= of_site else self._site(x, begin + site, number)

    def _bond(self, x: Surroundings, bond: int) -> str:
        """A bond beside the usual ones, in words."""
        a, b = x.bond_elements[bond]
        if x.bond_length[bond] >= ALONE:
            return f"{SYMBOLS[a]} without any neighbour"
        text = f"{SYMBOLS[a]}-{SYMBOLS[b]} at {x.bond_length[bond]:.2f} A"
        if not self._count[a, b]:
            return f"{text}, a bond that no training crystal has"
        mean, std = self._bonds[a, b]
        low, high = (self.radii[a] + self.radii[b]) * np.exp([mean - 2 * std, mean + 2 * std])
        return f"{text}, usually {low:.2f} to {high:.2f} A"

    def _site(self, x: Surroundings, site: int, number: int) -> str:
        """A site beside the usual ones of its element, in words."""
        element = x.site_element[site]
        mean, std = self.sites[element, number]
        values = np.array([x.site_numbers[site, number], mean - 2 * std, mean + 2 * std])
        match number:
            case 0:
                what, values = "bonds", np.exp(values)
            case 1:
                what = "as the electronegativity of the sites bonded to it"
            case _:
                what, values = f"neighbours within {NEAR:g} A", np.maximum(np.expm1(values), 0)
        value, low, high = values
        return f"{SYMBOLS[element]} with {value:.3g} {what}, usually {low:.3g} to {high:.3g}"


def upper_bound(distances: np.ndarray, share: float) -> float:
    """A bound that a new distance stays below with a probability of at least ``share``: the
    conformal quantile; twice the largest distance where there are too few for that."""
    rank = int(np.ceil(round((len(distances) + 1) * share, 9)))
    if rank > len(distances):
        return 2 * float(distances.max())
    return float(np.sort(distances)[rank - 1])


def _log_root(square: np.ndarray) -> np.ndarray:
    """ln of a root mean square, bounded below so that perfect agreement is no outlier."""
    return np.log(0.2 + np.sqrt(square))


def _shortest_bonds(x: Surroundings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The shortest bond of each pair of elements in each crystal: both elements, and the length."""
    a, b = x.bond_elements.T
    order = np.lexsort((x.bond_length, b, a, x.bond_crystal))
    keys = np.stack([x.bond_crystal, a, b])[:, order]
    first = np.append(True, (keys[:, 1:] != keys[:, :-1]).any(0))
    return a[order][first], b[order][first], x.bond_length[order][first]


def _sites_by_element(x: Surroundings) -> tuple[np.ndarray, np.ndarray]:
    """Means over the sites of each element in each crystal: the element, and its numbers."""
    keys, place = np.unique(x.site_crystal * _ELEMENTS + x.site_element, return_inverse=True)
    weight = np.bincount(place, x.site_share)
    numbers = [np.bincount(place, x.site_share * each) / weight for each in x.site_numbers.T]
    return keys % _ELEMENTS, np.stack(numbers, 1)


def _radii(a: np.ndarray, b: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Radii of the elements whose sums are nearest to the bond lengths, (119,)."""
    matrix = RADIUS_PRIOR * np.eye(_ELEMENTS)
    vector = np.full(_ELEMENTS, RADIUS_PRIOR * RADIUS)
    for i in (a, b):
        vector += np.bincount(i, lengths, _ELEMENTS)
        for j in (a, b):
            np.add.at(matrix, (i, j), 1)
    return np.maximum(np.linalg.solve(matrix, vector), 0.2)


def _shrunk(
    key: np.ndarray, values: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and standard deviation of the values of each key, shrunk to those of all values, and
    how many there are: (size,) each."""
    count = np.bincount(key, minlength=size)
    mean, square = values.mean(), (values**2).mean()
    means = (np.bincount(key, values, size) + PRIOR * mean) / (count + PRIOR)
    squares = (np.bincount(key, values**2, size) + PRIOR * square) / (count + PRIOR)
    std = np.sqrt(np.maximum(squares - means**2, 0))
    return means, np.maximum(std, LEAST), count


def need_arrays(
    values: Mapping[str, np.ndarray],
    shapes: Mapping[str, tuple[int | None, ...]],
    optional: Collection[str] = (),
) -> None:
    """Raise ValueError, naming the first that differs, unless arrays have these names and shapes.

    Args:
        values: arrays by name.
        shapes: by name; None stands for any size.
        optional: names that may be missing.
    """
    for name in values.keys() - shapes.keys():
        raise ValueError(f"unknown {name}")
    for name, shape in shapes.items():
        if name not in values:
            if name in optional:
                continue
            raise ValueError(f"{name} is missing")
        got = values[name].shape
        fits = len(got) == len(shape) and all(
            want in (None, n) for want, n in zip(shape, got, strict=True)
        )
        if not fits:
            raise ValueError(f"{name} must have shape {shape}, got {got}")
