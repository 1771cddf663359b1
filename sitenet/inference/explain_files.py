"""What a model attends to in the crystals of files, folders and tables, and how far off it is: the
paper's two figures, and the tables behind them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sitenet.data.dataset import LeftOut, write_left_out
from sitenet.data.readers import open_source
from sitenet.data.source import Source
from sitenet.inference.evaluate import Predictions
from sitenet.inference.explain import DatasetExplanation, Explanation, explain_each
from sitenet.model.ensemble import Model
from sitenet.system.files import write_columns
from sitenet.system.progress import Reporter


@dataclass(eq=False)
class Survey:
    """Crystals that were explained.

    Attributes:
        explanation: of all of them.
        single: of the crystal, where there is only one.
        truth: (crystals, targets), NaN where not known.
        left_out: what could not be used.
    """

    explanation: DatasetExplanation
    single: Explanation | None
    truth: np.ndarray
    left_out: list[LeftOut]

    def write(self, folder: str | Path, reporter: Reporter | None = None) -> list[Path]:
        """Write ``attention_by_distance.png``, ``parity.png`` where true values are known, tables
        as CSV, and what was left out; plots need matplotlib."""
        folder, e = Path(folder), self.explanation
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / f"{rows}.csv" for rows in ("crystals", "elements", "distances")]
        for path in written:
            write_columns(path, e.columns(path.stem))
        write_left_out(self.left_out, folder / "left_out.csv")
        count = len(e.names)
        predictions = Predictions(
            e.names,
            ["all"] * count,
            e.targets,
            self.truth,
            e.predicted,
            np.full(len(e.targets), np.inf),
            np.ones(count, dtype=bool),
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
    primitive: bool = True,
    disorder: str = "error",
    reporter: Reporter | None = None,
) -> Survey:
    """Explain all crystals of files, folders and tables, in the memory of a few.

    Args:
        model: a SiteNet or an Ensemble.
        paths: CIFs, folders of CIFs, tables (``sitenet.data.readers.open_source``) or files of
            ``sitenet prepare``. Columns called as the model's targets give the true values.
        max_sites: as in ``explain``.
        merge: as in ``explain``.
        primitive: as in ``explain``.
        disorder: as in ``read_cif``.
        reporter: is told how far it is.

    Raises:
        FileNotFoundError, ValueError: a path is none of these, or not one crystal can be used.
    """
    reporter = reporter or Reporter()
    sources = [_open(path, [t.name for t in model.targets]) for path in paths]
    found = Survey(DatasetExplanation(model), None, np.empty(0), [])
    truth: list[tuple[float, ...]] = []
    nothing = (np.nan,) * len(model.targets)
    with reporter.bar("explaining", sum(map(len, sources))) as advance:
        for record in itertools.chain.from_iterable(sources):
            try:
                crystal = record.crystal(disorder)
                crystal.name = record.id
                found.single = next(explain_each(model, [crystal], max_sites, primitive, merge))
            except (ValueError, OSError) as error:
                found.left_out.append(LeftOut(record.id, record.where, str(error)))
            else:
                found.explanation.add(found.single)
                truth.append(record.targets or nothing)
            advance(1)
    if not truth:
        first = found.left_out[0]
        raise ValueError(f"not one crystal can be used: {first.where}: {first.reason}")
    if len(truth) > 1:
        found.single = None
    found.truth = np.array(truth, dtype=np.float64)
    return found


def _open(path: str | Path, names: list[str]) -> Source:
    """A source with the true values of the model's targets if it has them."""
    try:
        return open_source(path, names)
    except ValueError:
        return open_source(path, ())
