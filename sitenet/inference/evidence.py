"""Evidence from the training set beside predictions: the nearest training crystals, and whether the
crystal itself is one of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sitenet.crystal.crystal import Crystal
from sitenet.crystal.fingerprint import volume_per_atom
from sitenet.inference.predict import outputs
from sitenet.inference.structures import is_single, preparation, prepared
from sitenet.inference.table import Cell, Prediction
from sitenet.model.neighbours import Neighbour, TrainingIndex

if TYPE_CHECKING:
    from sitenet.model.ensemble import Model

CANDIDATES = 4  # training crystals of one fingerprint that a crystal is compared with


def neighbours(model: Model, structures: Iterable[Any] | Any, count: int = 5) -> list[Any]:
    """Find the training crystals that the model encodes nearest to each structure.

    Args:
        model: A SiteNet or an Ensemble that keeps an index of its training crystals.
        structures: One structure, or any number of them, as in ``predict``.
        count: Neighbours per structure.

    Returns:
        For one structure, its neighbours, the nearest first; for several, a list of these.

    Raises:
        CifError, ValueError, TypeError: A structure cannot be used, or the model keeps no index.
    """
    index = needed_index(model)
    single = is_single(structures)
    crystals = prepared([structures] if single else structures, preparation(model.config))
    encodings = [encoding for _, encoding in outputs(model, crystals)]
    found = index.nearest(np.stack(encodings), count) if encodings else []
    return found[0] if single else found


def needed_index(model: Model) -> TrainingIndex:
    """The model's index of its training crystals.

    Raises:
        ValueError: It keeps none.
    """
    if model.calibration is None or model.calibration.index is None:
        raise ValueError("the model keeps no index of its training crystals")
    return model.calibration.index


def learned_from(
    model: Model, crystals: Sequence[Crystal], encodings: np.ndarray
) -> list[str] | None:
    """Find the training crystal that each crystal is.

    Two crystals are the same if their fingerprints agree (``sitenet.crystal.fingerprint``) and the
    model encodes them alike once their volumes are made equal. Symmetries are not compared where
    one training crystal alone has the composition, the encoding and the very volume: they tell
    apart what is encoded alike, such as polytypes.

    Args:
        model: A SiteNet or an Ensemble.
        crystals: (crystals,).
        encodings: (crystals, encoding) of the same.

    Returns:
        The id of the training crystal, "" if there is none; None if the model keeps no index.
    """
    if model.calibration is None or model.calibration.index is None:
        return None
    index, names = model.calibration.index, [""] * len(crystals)
    scaled: list[tuple[int, int]] = []
    for k, (crystal, encoding) in enumerate(zip(crystals, encodings, strict=True)):
        candidates = index.of_volume(crystal)
        equal = index.of_encoding(candidates, encoding)
        if len(equal) != 1 or not index.has_volume_of(equal[0], crystal):
            candidates = index.of_symmetry(candidates, crystal)  # takes longer than all the rest
            equal = [c for c in equal if c in candidates]
        if equal:
            names[k] = index.name(equal[0])
        else:
            scaled += [(k, c) for c in candidates[:CANDIDATES]]
    again = (_with_volume(crystals[k], index.volume(c)) for k, c in scaled)
    for (k, candidate), (_, encoding) in zip(scaled, outputs(model, again), strict=True):
        if not names[k] and index.is_encoding_of(candidate, encoding):
            names[k] = index.name(candidate)
    return names


def _with_volume(crystal: Crystal, volume: float) -> Crystal:
    """The crystal at another volume per atom."""
    scale = (volume / volume_per_atom(crystal)) ** (1 / 3)
    return dataclasses.replace(crystal, cell=crystal.cell * scale)


def with_evidence(
    model: Model,
    predictions: Sequence[Prediction],
    encodings: np.ndarray,
    crystals: Sequence[Crystal],
    count: int = 0,
) -> list[Prediction]:
    """Add to predictions what the training set says of the same crystals.

    Args:
        model: The model that predicted them.
        predictions: (crystals,).
        encodings: (crystals, encoding).
        crystals: (crystals,).
        count: Neighbours per crystal.
    """
    nearest: list[list[Neighbour]] = [[] for _ in predictions]
    if count and len(predictions):
        nearest = needed_index(model).nearest(encodings, count)
    same: Sequence[str | None] | None = learned_from(model, crystals, encodings)
    same = [None] * len(predictions) if same is None else same
    return [
        dataclasses.replace(one, learned_from=name, neighbours=[list(n) for n in near])
        for one, name, near in zip(predictions, same, nearest, strict=True)
    ]


def neighbour_header(model: Model, count: int) -> list[str]:
    """Columns of ``neighbour_cells``."""
    columns = ["", "_formula", "_distance", *(f"_{target.name}" for target in model.targets)]
    return [f"neighbour{k}{column}" for k in range(1, count + 1) for column in columns]


def neighbour_cells(model: Model, prediction: Prediction, count: int) -> list[Cell]:
    """Id, formula, distance and true values of each neighbour; empty where there are fewer."""
    cells: list[Cell] = []
    for name, formula, distance, values in prediction.neighbours:
        cells += [name, formula, distance, *values]
    return cells + [None] * (len(neighbour_header(model, count)) - len(cells))
