"""What would change a prediction: another element on a site, a missing site, strain.

The geometry is frozen: neighbours do not relax around what is changed. A change is the difference
between two predictions, an effect on the value; attention weights say where a model looks instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sitenet.crystal.crystal import Crystal
from sitenet.crystal.elements import SYMBOLS, element_number
from sitenet.crystal.oxidation import guess_oxidation
from sitenet.crystal.substitution import substitutes
from sitenet.inference.predict import from_store, pair_stores
from sitenet.inference.structures import as_crystal, preparation, title
from sitenet.inference.table import (
    COVERAGE,
    Prediction,
    likeness_cells,
    predictions_of,
    structure_warnings,
)
from sitenet.pairs.finder import find_pairs
from sitenet.pairs.maker import PairMaker

if TYPE_CHECKING:
    import pandas

    from sitenet.model.ensemble import Model
    from sitenet.model.sitenet import Target

STRAINS = (-0.04, -0.03, -0.02, -0.01, 0.01, 0.02, 0.03, 0.04)  # relative, of all three lengths
MOST_STRAIN = 0.5

Kind = Literal["substitute", "remove", "strain"]


@dataclass(frozen=True)
class Change:
    """One change of a crystal, and what the model predicts for it.

    Attributes:
        kind: "substitute", "remove" or "strain".
        site: The site that is changed, in the cell of ``Changes.crystal``; None for strain.
        element: Symbol of the element on the site; "" for strain.
        to: Symbol of the element that replaces it; "" otherwise.
        strain: Relative change of all lengths; 0 for other kinds.
        prediction: For the changed crystal.
    """

    kind: Kind
    site: int | None
    element: str
    to: str
    strain: float
    prediction: Prediction


@dataclass(eq=False, repr=False)
class Changes:
    """Changes of a crystal and their effects on a prediction.

    Attributes:
        crystal: The cell that is changed: the primitive one, unless another was asked for.
        sites: One site of each orbit, in order; sites of an orbit have the same effects.
        targets: What the model predicts.
        unchanged: Prediction for the crystal as it is.
        each: The changes: by site, first to other elements, then its removal; and strain.
    """

    crystal: Crystal
    sites: list[int]
    targets: list[Target]
    unchanged: Prediction
    each: list[Change]

    def __repr__(self) -> str:
        return f"Changes({self.crystal.reduced_formula}, {len(self.each)} changes)"

    def effect(self, change: Change, target: int = 0) -> float:
        """How far a change moves the prediction of a target, in its unit."""
        return change.prediction.values[target] - self.unchanged.values[target]

    def columns(self) -> dict[str, np.ndarray]:
        """Return a table as columns of equal length, by name; a row is a change.

        Columns are ``change`` (the kind), ``site``, ``element``, ``to``, ``strain``, the prediction
        and its change per target, and whether the changed crystal is like the training set.
        """
        cells = [likeness_cells(change.prediction.unlike) for change in self.each]
        columns = {
            "change": np.array([change.kind for change in self.each]),
            "site": np.array(
                ["" if change.site is None else str(change.site) for change in self.each]
            ),
            "element": np.array([change.element for change in self.each]),
            "to": np.array([change.to for change in self.each]),
            "strain": np.array([change.strain for change in self.each]),
        }
        for k, target in enumerate(self.targets):
            values = np.array([change.prediction.values[k] for change in self.each])
            columns[f"{target.name}_predicted"] = values
            columns[f"{target.name}_change"] = values - self.unchanged.values[k]
        columns["like_training"] = np.array([cell[0] or "" for cell in cells])
        columns["unlike_because"] = np.array([cell[1] for cell in cells])
        return columns

    def table(self) -> pandas.DataFrame:
        """Return ``columns`` as a pandas DataFrame."""
        try:
            import pandas
        except ImportError:
            raise ImportError(
                "table() needs pandas: pip install pandas; columns() works without"
            ) from None
        return pandas.DataFrame(self.columns())


def what_changes(
    model: Model,
    structure: Any,
    *,
    elements: Sequence[str] | None = None,
    strains: Sequence[float] = STRAINS,
    max_sites: int | None = None,
    primitive: bool | None = None,
    disorder: str | None = None,
) -> Changes:
    """Predict what a crystal would have with one thing changed.

    One site per orbit is given each plausible other element, and is removed; the cell is strained
    equally in all directions. All atoms keep their fractional coordinates. In a cell of few sites,
    one site is a large share of the crystal; for dilute changes, pass a supercell with
    ``primitive=False``.

    Args:
        model: A SiteNet or an Ensemble.
        structure: One structure, as in ``predict``.
        elements: Symbols to put on every site; None takes those that share an oxidation state with
            the element there and are near it in the periodic table: see
            ``sitenet.crystal.substitution``. Oxidation states are the crystal's, or guessed.
        strains: Relative changes of all lengths: 0.01 is 1 %.
        max_sites: As in ``predict``.
        primitive: As in ``predict``.
        disorder: As in ``predict``; places that several species share are not changed.

    Raises:
        CifError, ValueError, TypeError: The structure cannot be used, an element is unknown or the
            model has no features of it, or a strain is out of range; says which and why.
    """
    make = PairMaker(model.config, max_sites)
    numbers = None if elements is None else [element_number(symbol) for symbol in elements]
    if unusable := make.unusable(np.array(numbers or [1])):
        raise ValueError(f"the model has no features of {SYMBOLS[unusable[0]]}")
    for strain in strains:
        if not abs(strain) <= MOST_STRAIN:
            raise ValueError(f"strains must be from -{MOST_STRAIN} to {MOST_STRAIN}, got {strain}")
    how = preparation(model.config, primitive, disorder)
    crystal = as_crystal(structure, how.disorder)
    if how.primitive:
        crystal = crystal.primitive()
    make.check(crystal)
    sites = _one_per_orbit(crystal, make)
    changed = list(_changed(crystal, sites, numbers, strains, make))
    crystals = [crystal, *(each for _, each in changed)]
    unchanged, *predictions = _predicted(model, crystals, make)
    each = [
        dataclasses.replace(change, prediction=prediction)
        for (change, _), prediction in zip(changed, predictions, strict=True)
    ]
    return Changes(crystal, sites, model.targets, unchanged, each)


def _one_per_orbit(crystal: Crystal, make: PairMaker) -> list[int]:
    """The first site of each orbit, without places that are shared or partly occupied."""
    orbit = find_pairs(crystal, **make.options).orbit.numpy()
    first = np.unique(orbit, return_index=True)[1]
    if crystal.occupancy is None:
        return sorted(first.tolist())
    return sorted(site for site in first.tolist() if crystal.occupancy[site] == 1)


def _changed(
    crystal: Crystal,
    sites: list[int],
    elements: list[int] | None,
    strains: Sequence[float],
    make: PairMaker,
) -> Iterator[tuple[Change, Crystal]]:
    """Yield changes, still with an empty prediction, and the changed crystals."""
    empty = Prediction("", "", [], [], [], None, "")
    states = _states(crystal)
    for site in sites:
        number = int(crystal.numbers[site])
        chosen = elements
        if chosen is None:
            chosen = [n for n in substitutes(number, states[site]) if make.known[n]]
        symbol = SYMBOLS[number]
        for other in chosen:
            if other != number:
                numbers = crystal.numbers.copy()
                numbers[site] = other
                change = Change("substitute", site, symbol, SYMBOLS[other], 0.0, empty)
                yield change, dataclasses.replace(crystal, numbers=numbers)
        if len(crystal) > 1:
            kept = np.delete(np.arange(len(crystal)), site)
            change = Change("remove", site, symbol, "", 0.0, empty)
            yield change, crystal._in_cell(crystal.cell, crystal.frac[kept], kept)
    for strain in strains:
        cell = (1 + strain) * crystal.cell
        yield Change("strain", None, "", "", strain, empty), dataclasses.replace(crystal, cell=cell)


def _states(crystal: Crystal) -> list[float | None]:
    """The oxidation state of each row: the crystal's, or one that makes it neutral, if any."""
    if crystal.oxidation is not None:
        return list(crystal.oxidation.tolist())
    amounts = np.ones(len(crystal)) if crystal.occupancy is None else crystal.occupancy
    guess = guess_oxidation(crystal.numbers, amounts)
    return [None if guess is None else guess[number] for number in crystal.numbers.tolist()]


def _predicted(model: Model, crystals: list[Crystal], make: PairMaker) -> list[Prediction]:
    """Predictions for crystals in the cells that they are in, with intervals and likeness."""
    predictions: list[Prediction] = []
    for store in pair_stores(crystals, make):
        outputs = from_store(model, store)
        part = crystals[len(predictions) : len(predictions) + len(outputs)]
        predictions += predictions_of(
            model,
            [title(crystal) for crystal in part],
            [crystal.reduced_formula for crystal in part],
            np.stack([values for values, _ in outputs]),
            np.stack([encoding for _, encoding in outputs]),
            store,
            [structure_warnings(crystal) for crystal in part],
            COVERAGE,
        )
    return predictions
