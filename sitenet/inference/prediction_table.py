"""Predictions of structures in memory as a table: a row per structure, also for those that cannot
be used."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sitenet.crystal.arrangements import Sampling
from sitenet.crystal.cif import CifWarning
from sitenet.crystal.crystal import Crystal
from sitenet.data.dataset import Preparation
from sitenet.data.failures import LeftOut, kind_of, printable
from sitenet.inference.arrangements import arranged_row, over_arrangements
from sitenet.inference.predict import (
    MOST_PAIRS,
    Output,
    by_rows,
    completed,
    most_pairs,
    parts,
)
from sitenet.inference.several import (
    Models,
    common_preparation,
    distinct_makers,
    join,
    models_of,
    named_targets,
)
from sitenet.inference.structures import as_crystal, is_single, numbered, sampling_of
from sitenet.inference.table import COVERAGE, Joined, Prediction, predictions_of, structure_warnings
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
        flags = list(map(flag_and_reason, self.rows))
        return {
            "id": _texts([row.id for row in self.rows]),
            "formula": _texts([getattr(row, "formula", "") for row in self.rows]),
            **self._values(one=len(self.targets) == 1),
            "flag": _texts([flag for flag, _ in flags]),
            "reason": _texts([reason for _, reason in flags]),
        }

    def _values(self, one: bool) -> dict[str, np.ndarray]:
        """Columns of values and intervals, without the target's name if there is only one."""
        columns: dict[str, np.ndarray] = {}
        for k, target in enumerate(self.targets):
            low, high = ("low", "high") if one else (f"{target.name}_low", f"{target.name}_high")
            columns["value" if one else target.name] = self._numbers("values", k)
            if target.kind == "value":
                columns |= {low: self._numbers("low", k), high: self._numbers("high", k)}
        return columns

    def _numbers(self, field: str, k: int) -> np.ndarray:
        """A field of one target, NaN where it is unknown."""
        cells = [
            getattr(row, field)[k] if isinstance(row, Prediction) else None for row in self.rows
        ]
        return np.array([np.nan if cell is None else cell for cell in cells], dtype=np.float64)

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
        return next(iter(self._of([self.rows[key]])))

    def _of(self, rows: Sequence[Any]) -> PredictionTable:
        """A table of other rows."""
        return PredictionTable(rows, self.targets, self.coverage)

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


class JoinedTable(PredictionTable):
    """Predictions of structures by several models, a row per structure.

    For each property there are columns of its name, ``NAME_low`` and ``NAME_high``, and for each
    model ``MODEL_flag`` and ``MODEL_reason``, as in ``PredictionTable``. A property that several
    models predict is named ``MODEL_NAME``.

    Attributes:
        models: Targets of each model, by its name.
    """

    rows: list[Joined | LeftOut]  # type: ignore[assignment]

    def __init__(
        self,
        rows: Sequence[Joined | LeftOut],
        models: Mapping[str, Sequence[Target]],
        coverage: float,
    ) -> None:
        targets = [target for each in models.values() for target in each]
        super().__init__(rows, targets, coverage)  # type: ignore[arg-type]
        self.models = dict(models)

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """Columns of equal length, by name."""
        results = [
            [row] * len(self.models) if isinstance(row, LeftOut) else row.results
            for row in self.rows
        ]
        columns = {
            "id": _texts([row.id for row in self.rows]),
            "formula": _texts([getattr(row, "formula", "") for row in self.rows]),
        }
        for k, (model, targets) in enumerate(self.models.items()):
            own = PredictionTable([each[k] for each in results], targets, self.coverage)
            columns |= own._values(one=False)
            columns |= {f"{model}_{name}": own.columns[name] for name in ("flag", "reason")}
        return columns

    def _of(self, rows: Sequence[Any]) -> JoinedTable:
        return JoinedTable(rows, self.models, self.coverage)


class _Started(NamedTuple):
    """A structure whose pairs are found, or that cannot be used.

    Attributes:
        id: Its name.
        number: Its place among all.
        crystal: None if it could not be read.
        contents: Per maker its pairs; the crystal, if it is large or to be drawn from; or why it
            cannot be used.
    """

    id: str
    number: int
    crystal: Crystal | None
    contents: list[Columns | Crystal | LeftOut]


def predict_table(
    model: Models,
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
        model: A SiteNet or an Ensemble, a name, or several of them, as in ``predict_files``; the
            table of several is a ``JoinedTable``.
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
        FileNotFoundError, ValueError: As in ``predict_files`` for models.
        ValueError: ``coverage`` is out of range; or, if ``strict``, a structure cannot be used.
        CifError, TypeError, OSError: Likewise, if ``strict``.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage must be between 0 and 1, got {coverage}")
    disorder, drawn = sampling_of(disorder, sampling)
    models = models_of(model)
    how = common_preparation(models, primitive, disorder)
    makers, maker_of = distinct_makers(list(models.values()), max_sites, merge)
    listed = [structures] if is_single(structures) else structures
    started = _started(listed, how, makers, drawn, strict)
    results: list[list[Prediction | LeftOut]] = [[] for _ in models]
    for part in parts(started, lambda one: one.contents):
        for each, rows, k in zip(models.values(), results, maker_of, strict=True):
            predicted = _Predicted(each, makers[k], coverage, drawn, strict)
            rows += predicted.rows(part, [one.contents[k] for one in part])
    targets = named_targets(models)
    if len(models) == 1:
        return PredictionTable(results[0], targets.popitem()[1], coverage)
    counts = list(map(len, targets.values()))
    joined = [join(list(models), counts, each) for each in zip(*results, strict=True)]
    return JoinedTable(joined, targets, coverage)


def _started(
    structures: Iterable[Any],
    how: Preparation,
    makers: Sequence[PairMaker],
    sampling: Sampling | None,
    strict: bool,
) -> Iterator[_Started]:
    """Read structures one by one, and find the pairs of those that are not large."""
    for number, structure in enumerate(structures):
        name = _name(structure, number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", CifWarning)  # the row says so
            crystal = _attempt(lambda: _read(structure, how), name, number, strict)  # noqa: B023
        if isinstance(crystal, LeftOut):
            yield _Started(name, number, None, [crystal] * len(makers))
            continue
        name = _name(structure, number, crystal)
        is_open = sampling is not None and crystal.occupancy is not None
        contents = [
            crystal
            if is_open or most_pairs(crystal, make.options) > MOST_PAIRS
            else _attempt(lambda: make(crystal), name, number, strict)  # noqa: B023
            for make in makers
        ]
        yield _Started(name, number, crystal, contents)


def _read(structure: Any, how: Preparation) -> Crystal:
    crystal = as_crystal(structure, how.disorder)
    return crystal.primitive() if how.primitive else crystal


def _attempt(function: Callable[[], Any], name: str, number: int, strict: bool) -> Any:
    """function(), or why a structure cannot be used, which is raised if ``strict``."""
    try:
        return function()
    except (TypeError, ValueError, OSError) as error:
        if strict:
            with numbered(number):
                raise
        return LeftOut(name, f"structure {number}", _reason(error), kind_of(error))


class _Predicted(NamedTuple):
    """A model, and how it predicts."""

    model: Model
    make: PairMaker
    coverage: float
    sampling: Sampling | None
    strict: bool

    def rows(self, part: Sequence[_Started], contents: Sequence[Any]) -> list[Prediction | LeftOut]:
        """Compute the rows of structures that are held together, in order.

        Args:
            part: The structures.
            contents: What the model's maker made of each.
        """
        ready = [
            _attempt(lambda: self._alone(one, x), one.id, one.number, self.strict)  # noqa: B023
            if isinstance(x, Crystal)
            else x
            for one, x in zip(part, contents, strict=True)
        ]
        rows: list[Prediction | LeftOut | None] = []
        whole: list[tuple[_Started, Output, Any]] = []
        for one, content, output in zip(part, ready, completed(self.model, ready), strict=True):
            if isinstance(output, (LeftOut, Prediction)):
                rows.append(output)
            elif not np.isfinite(output[0]).all():
                rows.append(LeftOut(one.id, one.id, "the prediction is not a number"))
            else:
                rows.append(None)
                is_columns = isinstance(content, dict)
                whole.append((one, output, content if is_columns else one.crystal))
        predictions = iter(self._of_whole(whole))
        return [next(predictions) if row is None else row for row in rows]

    def _alone(self, one: _Started, crystal: Crystal) -> Output | Prediction:
        """Predict a crystal that is large, or over its arrangements."""
        if self.sampling is not None and crystal.occupancy is not None:
            arranged = over_arrangements(
                self.model, crystal, self.make, self.sampling, self.coverage
            )
            return replace(arranged_row(self.model, arranged, crystal), id=one.id)
        output = by_rows(self.model, crystal, self.make)
        assert output is not None
        return output

    def _of_whole(self, whole: Sequence[tuple[_Started, Output, Any]]) -> list[Prediction]:
        """Complete the outputs of crystals, given with their structures."""
        crystals = [one.crystal for one, _, _ in whole if one.crystal is not None]
        return predictions_of(
            self.model,
            [one.id for one, _, _ in whole],
            [crystal.reduced_formula for crystal in crystals],
            np.array([values for _, (values, _), _ in whole]),
            np.array([encoding for _, (_, encoding), _ in whole]),
            [structure for _, _, structure in whole],
            list(map(structure_warnings, crystals)),
            self.coverage,
        )


def _texts(cells: Sequence[str]) -> np.ndarray:
    return np.array(cells, dtype=object)


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
