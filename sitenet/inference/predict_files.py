"""Prediction of any number of crystals from files and tables: in bounded memory, resumable, with
a list of what was left out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sitenet.inference.chunked_job import Outcome, run
from sitenet.inference.predict_chunks import Predictor
from sitenet.inference.several import (
    Models,
    SeveralPredictor,
    common_preparation,
    models_of,
)
from sitenet.inference.structures import sampling_of
from sitenet.inference.table import COVERAGE
from sitenet.pairs.maker import PairMaker
from sitenet.system.progress import Reporter


def predict_files(
    model: Models,
    paths: Sequence[str | Path],
    out: str | Path | None = None,
    *,
    coverage: float = COVERAGE,
    neighbours: int = 0,
    where: str | None = None,
    max_sites: int | None = None,
    merge: bool = True,
    primitive: bool | None = None,
    disorder: str | None = None,
    workers: int | None = None,
    reporter: Reporter | None = None,
    **sampling: int,
) -> Outcome:
    """Predict all crystals of files, folders and tables.

    Args:
        model: A SiteNet or an Ensemble, a name as in ``load``, or several of them: names, "all" for
            all weights that ship, or a dict of models by name. Several models share one table, for
            which each crystal is read once; columns that more than one of them has begin with the
            model's name.
        paths: Structure files, folders of them, tables (``sitenet.data.readers.open_source``) or
            files of ``sitenet prepare``.
        out: CSV file to write; ``NAME.left_out.csv`` beside it lists what could not be used. A
            stopped run continues where it was, and a finished file of the same crystals, model and
            settings is left as it is. None keeps the rows in memory.
        coverage: Share of true values that the intervals should hold.
        neighbours: Number of training crystals nearest to each crystal that are named with their
            true values.
        where: Condition whose probability is a column of its own, as in ``screen``.
        max_sites: As in ``predict``.
        merge: As in ``predict``.
        primitive: As in ``predict``.
        disorder: As in ``predict``.
        workers: Processes that read structures and find pairs; None chooses.
        reporter: Shows progress.
        sampling: As in ``predict``. The table then has the columns ``TARGET_spread``, the standard
            deviation over arrangements, and ``arrangements``, how many of them the model can tell
            apart.

    Returns:
        The table, or what was written.

    Raises:
        FileNotFoundError, ValueError: A path is none of these, or another process writes ``out``;
            no such model, or models that prepare structures in different ways.
        OSError: ``out`` cannot be written; raised before anything is computed.
    """
    disorder, drawn = sampling_of(disorder, sampling)
    models = models_of(model)
    how = common_preparation(models, primitive, disorder)
    if len(models) == 1:
        (only,) = models.values()
        make = PairMaker(only.config, max_sites, merge)
        predictor = Predictor(only, how, make, coverage, drawn, neighbours, where)
        return run(predictor, paths, out, workers, reporter)
    if where is not None:
        raise ValueError(f"a condition is for one model, got {', '.join(models)}")
    several = SeveralPredictor(models, how, max_sites, merge, coverage, drawn, neighbours)
    return run(several, paths, out, workers, reporter)
