"""Predictions of structures in memory as a table: a row per structure, also for those that cannot
be used."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sitenet.crystal.cif import CifWarning
from sitenet.crystal.crystal import Crystal
from sitenet.data.failures import LeftOut, kind_of, printable
from sitenet.inference.arrangements import arranged_row, over_arrangements
from sitenet.inference.predict import Output, by_rows, completed, parts
from sitenet.inference.structures import as_crystal, is_single, numbered, preparation, sampling_of
from sitenet.inference.table import COVERAGE, Prediction, predictions_of, structure_warnings
from sitenet.inference.table_text import SHOWN, WIDTH, flag_and_reason, table_text
from sitenet.pairs.columns import Columns
from sitenet.pairs.maker import PairMaker
from sitenet.system.files import cell_text, write_csv

if TYPE_CHECKING:
    import pandas

    from sitenet.model.ensemble import Model
    from sitenet.model.sitenet import Target


class PredictionTable:
    """Predictions of structures, a row each, in order.

    The columns are ``id``, ``formula``, ``value``, ``low``, ``high``, ``flag`` and ``reason``; a
    model of several targets has a column of each target's name instead of ``value``, and
    ``NAME_low`` and ``NAME_high``. Values are in the units of ``targets``; for a class, the
    probability of class 1. ``low`` and ``high`` are NaN where the model has no interval.

    ``flag`` is ``ok`` for a crystal like those of the training set, ``unlike`` for others,
    ``doubtful`` if the structure itself contradicts its file, ``failed`` if it cannot be used, and
    empty if the model is not calibrated; ``reason`` says why.

    Iteration yields a dict per row, ``table["value"]`` is a column and ``table[0]`` a row. Printed,
    the table fits into 80 columns.

    Attributes:
        rows: Predictions, and what could not be used.
        targets: What the model predicts.
        coverage: Share of true values that the intervals should hold.
    """

    def __init__(
        self, rows: Sequence[Prediction | LeftOut], targets: Sequence[Target], coverage: float
    ) -> None:
        self.rows, self.targets, self.coverage = list(rows), list(targets), coverage

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """Columns of equal length, by name."""
        columns: dict[str, list[Any]] = {
            "id": [row.id for row in self.rows],
            "formula": [row.formula if isinstance(row, Prediction) else "" for row in self.rows],
        }
        one = len(self.targets) == 1
        for k, target in enumerate(self.targets):
            low, high = ("low", "high") if one else (f"{target.name}_low", f"{target.name}_high")
            columns["value" if one else target.name] = self._numbers("values", k)
            if target.kind == "value":
                columns |= {low: self._numbers("low", k), high: self._numbers("high", k)}
        flags = list(map(flag_and_reason, self.rows))
        columns |= {"flag": [flag for flag, _ in flags], "reason": [reason for _, reason in flags]}
        text = {"id", "formula", "flag", "reason"}
        return {
            name: np.array(column, dtype=object if name in text else np.float64)
            for name, column in columns.items()
        }

    def _numbers(self, field: str, k: int) -> list[float]:
        """A field of one target, NaN where it is unknown."""
        cells = [
            getattr(row, field)[k] if isinstance(row, Prediction) else None for row in self.rows
        ]
        return [np.nan if cell is None else cell for cell in cells]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        columns = self.columns
        for cells in zip(*(column.tolist() for column in columns.values()), strict=True):
            yield dict(zip(columns, cells, strict=True))

    def __getitem__(self, key: int | str) -> Any:
        """Return a row by its number, or a column by its name."""
        if isinstance(key, str):
            return self.columns[key]
        return next(iter(PredictionTable([self.rows[key]], self.targets, self.coverage)))

    def __repr__(self) -> str:
        return self.text(most=SHOWN)

    def text(self, width: int = WIDTH, most: int | None = None) -> str:
        """Return the table as text.

        Args:
            width: Columns of the terminal.
            most: Rows to show; None shows all.
        """
        return table_text(self.rows, self.targets, width, most)

    def to_csv(self, path: str | Path) -> None:
        """Write a CSV file with the columns of the table."""
        columns = self.columns
        rows = zip(*columns.values(), strict=True)
        write_csv(path, list(columns), ([cell_text(cell) for cell in row] for row in rows))

    def to_pandas(self) -> pandas.DataFrame:
        """Return the table as a pandas DataFrame.

        Raises:
            ImportError: pandas is not installed; says how to install it.
        """
        try:
            import pandas
        except ImportError:
            raise ImportError("to_pandas() needs pandas: pip install 'sitenet[table]'") from None
        return pandas.DataFrame(self.columns)


class _Started(NamedTuple):
    """A structure whose pairs are found, or that cannot be used."""

    id: str
    crystal: Crystal | None
    content: Columns | Output | Prediction | LeftOut


def predict_table(
    model: Model,
    structures: Iterable[Any] | Any,
    *,
    coverage: float = COVERAGE,
    strict: bool = False,
    max_sites: int | None = None,
    primitive: bool | None = None,
    merge: bool = True,
    disorder: str | None = None,
    **sampling: int,
) -> PredictionTable:
    """Predict the properties of structures, with intervals and doubts, as a table.

    Args:
        model: A SiteNet or an Ensemble.
        structures: As in ``predict``.
        coverage: Share of true values that the intervals should hold, between 0 and 1.
        strict: Whether to raise the error of a structure that cannot be used, instead of giving it
            a row with the reason.
        max_sites: As in ``predict``.
        primitive: As in ``predict``.
        merge: As in ``predict``.
        disorder: As in ``predict``; with "sample", intervals include the spread over arrangements.
        sampling: As in ``predict``.

    Raises:
        ValueError: ``coverage`` is out of range; or, if ``strict``, a structure cannot be used.
        CifError, TypeError, OSError: Likewise, if ``strict``.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must be between 0 and 1, got {coverage}")
    disorder, drawn = sampling_of(disorder, sampling)
    how = preparation(model.config, primitive, disorder)
    make = PairMaker(model.config, max_sites, merge)

    def started() -> Iterator[_Started]:
        listed = [structures] if is_single(structures) else structures
        for number, structure in enumerate(listed):
            crystal, name = None, _name(structure, number)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", CifWarning)  # the row says so
                    crystal = as_crystal(structure, how.disorder)
                crystal = crystal.primitive() if how.primitive else crystal
                name = _name(structure, number, crystal)
                if drawn is not None and crystal.occupancy is not None:
                    arranged = over_arrangements(model, crystal, make, drawn, coverage)
                    content: Any = replace(arranged_row(model, arranged, crystal), id=name)
                else:
                    content = by_rows(model, crystal, make) or make(crystal)
            except (TypeError, ValueError, OSError) as error:
                if strict:
                    with numbered(number):
                        raise
                content = LeftOut(name, f"structure {number}", _reason(error), kind_of(error))
            yield _Started(name, crystal, content)

    rows: list[Prediction | LeftOut] = []
    for part in parts(started(), lambda one: one.content):
        rows += _rows(model, part, coverage)
    return PredictionTable(rows, model.targets, coverage)


def _rows(model: Model, part: Sequence[_Started], coverage: float) -> list[Prediction | LeftOut]:
    """Compute the rows of structures that are held together, in order."""
    outputs: list[Any] = list(completed(model, [one.content for one in part]))
    rows: list[Prediction | LeftOut | None] = []
    predicted = []
    for one, output in zip(part, outputs, strict=True):
        if isinstance(output, (LeftOut, Prediction)):
            rows.append(output)
        elif not np.isfinite(output[0]).all():
            rows.append(LeftOut(one.id, one.id, "the prediction is not a number"))
        else:
            rows.append(None)
            predicted.append((one, output))
    crystals = [one.crystal for one, _ in predicted if one.crystal is not None]
    predictions = iter(
        predictions_of(
            model,
            [one.id for one, _ in predicted],
            [crystal.reduced_formula for crystal in crystals],
            np.array([values for _, (values, _) in predicted]),
            np.array([encoding for _, (_, encoding) in predicted]),
            [
                one.content if isinstance(one.content, dict) else crystal
                for (one, _), crystal in zip(predicted, crystals, strict=True)
            ],
            list(map(structure_warnings, crystals)),
            coverage,
        )
    )
    return [next(predictions) if row is None else row for row in rows]


def _reason(error: Exception) -> str:
    """What is wrong with a structure, without Python's number of a system error."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return printable(f"{error.strerror}: {error.filename}")
    return printable(str(error))


def _name(structure: Any, number: int, crystal: Crystal | None = None) -> str:
    """The id of a structure: its file's name without ending, its own, or its number."""
    is_path = isinstance(structure, os.PathLike) or (
        isinstance(structure, str) and "\n" not in structure
    )
    if is_path:
        return Path(structure).name.removesuffix(".gz").rpartition(".")[0] or str(structure)
    return (crystal.name if crystal else "") or str(number)
