"""What a model attends to in the crystals of files, folders and tables, and its errors on them: the
paper's two figures, and the tables behind them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sitenet.crystal.crystal import Crystal
from sitenet.data.dataset import LeftOut, read_records, write_left_out
from sitenet.data.readers import open_source
from sitenet.data.source import Source
from sitenet.inference.evaluate import Predictions
from sitenet.inference.explain import PairsOfModel, explain_crystal
from sitenet.inference.explanation import DatasetExplanation, Explanation
from sitenet.inference.structures import preparation
from sitenet.inference.table import structure_warnings
from sitenet.model.ensemble import Model
from sitenet.system.files import write_columns
from sitenet.system.progress import Reporter


@dataclass(eq=False)
class Survey:
    """Crystals that were explained.

    Attributes:
        explanation: What the model attends to in all of them.
        single: Explanation of the crystal, if there is only one.
        truth: (crystals, targets), NaN where unknown.
        formulas: (crystals,) reduced formulas.
        warnings: (crystals,) doubts about each structure.
        left_out: What could not be used.
    """

    explanation: DatasetExplanation
    single: Explanation | None
    truth: np.ndarray
    formulas: list[str]
    warnings: list[str]
    left_out: list[LeftOut]

    @property
    def described(self) -> Explanation | DatasetExplanation:
        """The explanation of the only crystal, else that of all of them."""
        return self.single or self.explanation

    def write(self, folder: str | Path, reporter: Reporter | None = None) -> list[Path]:
        """Write tables as CSV, a list of what was left out, ``attention_by_distance.png``, and
        ``parity.png`` if true values are known; the plots need matplotlib.

        Returns:
            The files written.
        """
        folder, e = Path(folder), self.explanation
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / f"{rows}.csv" for rows in ("crystals", "elements", "distances")]
        for path in written:
            write_columns(path, e.columns(path.stem))
        write_left_out(self.left_out, folder / "left_out.csv")
        predictions = Predictions(
            e.names,
            self.formulas,
            ["all"] * len(e.names),
            e.targets,
            self.truth,
            e.predicted,
            np.full(e.predicted.shape, np.inf),
            None,
            self.warnings,
        )
        written += predictions.plot(folder, [], reporter or Reporter())
        written.append(folder / "attention_by_distance.png")
        e.plot(written[-1])
        return written


def explain_files(
    model: Model,
    paths: Sequence[str | Path],
    *,
    max_sites: int | None = None,
    merge: bool = True,
    primitive: bool | None = None,
    disorder: str | None = None,
    reporter: Reporter | None = None,
) -> Survey:
    """Explain all crystals of files, folders and tables, in the memory of a few.

    Args:
        model: A SiteNet or an Ensemble.
        paths: CIFs, folders of CIFs, tables (``sitenet.data.readers.open_source``) or files of
            ``sitenet prepare``. Columns named like the model's targets give the true values.
        max_sites: As in ``explain``.
        merge: As in ``explain``.
        primitive: As in ``explain``.
        disorder: As in ``explain``.
        reporter: Shows progress.

    Raises:
        FileNotFoundError, ValueError: A path is none of these, or none of the crystals can be used.
    """
    reporter = reporter or Reporter()
    how = preparation(model.config, primitive, disorder)
    find = PairsOfModel(model, max_sites, merge)
    sources = [_open(path, [target.name for target in model.targets]) for path in paths]
    survey = Survey(DatasetExplanation(model), None, np.empty(0), [], [], [])
    truth: list[tuple[float, ...]] = []
    unknown = (np.nan,) * len(model.targets)
    with reporter.bar("explaining", sum(map(len, sources))) as advance:
        for record in itertools.chain.from_iterable(sources):
            for row, content in read_records([record], how):
                try:
                    if isinstance(content, Crystal):
                        survey.single = explain_crystal(model, content, find)
                        survey.explanation.add(survey.single)
                        survey.formulas.append(content.reduced_formula)
                        survey.warnings.append(structure_warnings(content))
                        truth.append(row.targets or unknown)
                    else:
                        survey.left_out.append(content)
                except ValueError as error:
                    survey.left_out.append(LeftOut.of(row.id, row.where, error))
            advance(1)
    if not truth:
        first = survey.left_out[0]
        raise ValueError(f"none of the crystals can be used: {first.where}: {first.reason}")
    if len(truth) > 1:
        survey.single = None
    survey.truth = np.array(truth, dtype=np.float64)
    return survey


def _open(path: str | Path, names: list[str]) -> Source:
    """Open a source with the true values of the model's targets, if it has them."""
    try:
        return open_source(path, names)
    except ValueError:
        return open_source(path, ())
