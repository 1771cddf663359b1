"""Prediction of chunks of records: worker processes find pairs, this process runs the model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import sitenet
from sitenet.crystal.arrangements import Sampling
from sitenet.crystal.crystal import Crystal
from sitenet.data.dataset import LeftOut, Preparation, read_records
from sitenet.data.source import Record
from sitenet.inference.arrangements import arranged_row, over_arrangements
from sitenet.inference.conditions import parse_condition, probabilities
from sitenet.inference.evidence import (
    needed_index,
    neighbour_cells,
    neighbour_header,
    with_evidence,
)
from sitenet.inference.predict import Output, by_rows, from_store, most_pairs
from sitenet.inference.table import (
    Prediction,
    Row,
    prediction_header,
    prediction_row,
    predictions_of,
    structure_warnings,
)
from sitenet.model.ensemble import Model
from sitenet.pairs.columns import Columns, joined, separated
from sitenet.pairs.maker import PairMaker
from sitenet.pairs.store import PairStore
from sitenet.system.files import cell_text, fingerprint, write_csv
from sitenet.system.workers import in_order

CHUNK = 128  # crystals that a process takes at a time
SENT_PAIRS = 100_000  # of a crystal that may have more, a worker sends the crystal instead
PROBABILITY = "probability"  # column with the probability of meeting a condition
FORMAT = 5  # of the chunks in a log

NumberedRecords = tuple[int, list[Record]]


class _Ready(NamedTuple):
    """What a worker made of a record: pairs, the crystal if it is large or to be drawn from, or a
    failure; and the crystal if the model compares it with those of its training."""

    record: Record
    content: Columns | Crystal | LeftOut
    formula: str
    warnings: str
    crystal: Crystal | None


class _Packed(list[_Ready]):
    """What a worker made of a chunk; sent with the pairs of all crystals in one, as fewer arrays
    are pickled faster."""

    def __reduce__(self) -> Any:
        columns = [one.content for one in self if isinstance(one.content, dict)]
        rest = [one._replace(content={}) if isinstance(one.content, dict) else one for one in self]
        return _unpacked, (rest, joined(columns))


def _unpacked(rest: list[_Ready], columns: Columns) -> list[_Ready]:
    parts = iter(separated(columns))
    return [
        one._replace(content=next(parts)) if isinstance(one.content, dict) else one for one in rest
    ]


class Chunk(NamedTuple):
    """Results of consecutive records; a record may hold several structures.

    Attributes:
        number: Which chunk it is, from 0.
        records: Number of records.
        predictions: Results for the structures that could be used, in order: instances of a
            dataclass whose fields JSON can hold.
        left_out: The others, in order.
    """

    number: int
    records: int
    predictions: list[Any]
    left_out: list[LeftOut]

    @classmethod
    def of_results(cls, number: int, records: int, results: Sequence[Any]) -> Chunk:
        """Sort results into predictions and what was left out."""
        left_out = [x for x in results if isinstance(x, LeftOut)]
        return cls(number, records, [x for x in results if not isinstance(x, LeftOut)], left_out)

    def plain(self) -> dict[str, Any]:
        """Return the chunk as JSON can hold it."""
        return {
            "number": self.number,
            "records": self.records,
            "predictions": list(map(vars, self.predictions)),
            "left_out": list(map(vars, self.left_out)),
        }

    @classmethod
    def of_plain(cls, content: dict[str, Any], kind: type = Prediction) -> Chunk:
        """Read what ``plain`` returned; the results are of this class."""
        predictions = [kind(**fields) for fields in content["predictions"]]
        left_out = [LeftOut(**fields) for fields in content["left_out"]]
        return cls(content["number"], content["records"], predictions, left_out)


class _Worker:
    """Read a numbered chunk of records and find their pairs, as each of several makers does;
    picklable."""

    def __init__(
        self, how: Preparation, makers: Sequence[PairMaker], sampled: bool, send_crystals: bool
    ) -> None:
        self.how, self.makers, self.sampled = how, makers, sampled
        self.send_crystals = send_crystals

    def __call__(self, chunks: list[NumberedRecords]) -> tuple[int, int, list[list[_Ready]]]:
        ((number, records),) = chunks
        ready: list[list[_Ready]] = [_Packed() for _ in self.makers]
        for record, content in read_records(records, self.how):
            crystal = content if isinstance(content, Crystal) else None
            formula = warnings = ""
            if crystal is not None:
                formula, warnings = crystal.reduced_formula, structure_warnings(crystal)
            sent = crystal if self.send_crystals else None
            for make, mine in zip(self.makers, ready, strict=True):
                pairs = content if crystal is None else self._pairs(make, record, crystal)
                mine.append(_Ready(record, pairs, formula, warnings, sent))
        return number, len(records), ready

    def _pairs(
        self, make: PairMaker, record: Record, crystal: Crystal
    ) -> Columns | Crystal | LeftOut:
        """The pairs of a crystal, or the crystal if it is large or to be drawn from."""
        is_open = self.sampled and crystal.occupancy is not None
        if is_open or most_pairs(crystal, make.options) > SENT_PAIRS:
            return crystal
        return _attempt(make, record, crystal)


def _attempt(function: Callable[[Crystal], Any], record: Record, crystal: Crystal) -> Any:
    """function(crystal), or why the record's crystal cannot be used."""
    try:
        return function(crystal)
    except ValueError as error:
        return LeftOut.of(record.id, record.where, error)


def found_pairs(
    records: Iterator[NumberedRecords],
    workers: int,
    how: Preparation,
    makers: Sequence[PairMaker],
    sampled: bool,
    send_crystals: bool,
) -> Iterator[tuple[int, int, list[list[_Ready]]]]:
    """Read numbered chunks of records in worker processes, and find their pairs.

    Args:
        records: Numbered chunks.
        workers: Worker processes.
        how: How structures are read.
        makers: Each finds the pairs of every crystal.
        sampled: Whether arrangements of disordered crystals are drawn later.
        send_crystals: Whether a model compares crystals with those of its training.

    Returns:
        For each chunk its number, the number of records, and what each maker made of them.
    """
    worker = _Worker(how, makers, sampled, send_crystals)
    return in_order(worker, records, workers, chunk=1)


def has_index(model: Model) -> bool:
    """Whether a model keeps an index of its training crystals."""
    return model.calibration is not None and model.calibration.index is not None


class Predictor:
    """Predict chunks of records.

    Args:
        model: A SiteNet or an Ensemble.
        how: How structures are read.
        make: Finds their pairs.
        coverage: Of the intervals.
        sampling: How arrangements of disordered crystals are drawn; None draws none.
        neighbours: Training crystals that are named beside each prediction.
        where: Condition whose probability is added, as in ``parse_condition``; None adds none.

    Raises:
        ValueError: Neighbours of a model that keeps no index of its training crystals, a condition
            that cannot be read, or either of them with ``sampling``.
    """

    def __init__(
        self,
        model: Model,
        how: Preparation,
        make: PairMaker,
        coverage: float,
        sampling: Sampling | None = None,
        neighbours: int = 0,
        where: str | None = None,
    ) -> None:
        self.model, self.how, self.make, self.coverage = model, how, make, coverage
        self.sampling, self.neighbours = sampling, neighbours
        if sampling is not None and (neighbours or where is not None):
            raise ValueError(
                "neighbours and conditions need one structure per crystal: disorder 'sample' draws "
                "many; take 'average'"
            )
        if neighbours:
            needed_index(model)
        self.ranges = None if where is None else parse_condition(where, model.targets)
        name, formula, *columns, warnings = prediction_header(model, sampling is not None)
        meets = [] if where is None else [PROBABILITY]
        near = neighbour_header(model, neighbours)
        self.header = [name, formula, *meets, *columns, *near, warnings]

    def chunks(
        self, records: Iterator[NumberedRecords], workers: int
    ) -> Generator[Chunk, None, None]:
        """Yield the results of numbered chunks of records, in order."""
        for number, count, (ready,) in found_pairs(
            records,
            workers,
            self.how,
            [self.make],
            self.sampling is not None,
            has_index(self.model),
        ):
            yield Chunk.of_results(number, count, self.results(ready))

    def row(self, prediction: Any) -> Row:
        """Cells of the table."""
        name, formula, *cells, warnings = prediction_row(self.model, prediction)
        meets = [] if self.ranges is None else [prediction.probability]
        near = neighbour_cells(self.model, prediction, self.neighbours)
        return (name, formula, *meets, *cells, *near, warnings)

    def chunk_of(self, content: dict[str, Any]) -> Chunk:
        """Read a chunk from a log."""
        return Chunk.of_plain(content)

    def write(self, path: Path, results: Callable[[], Iterator[Any]]) -> None:
        """Write a file of all results; each call of ``results`` goes through all of them once."""
        write_csv(path, self.header, (list(map(cell_text, self.row(one))) for one in results()))

    def settings(self, sources: list[str]) -> str:
        """A hash of everything that fixes the rows.

        Args:
            sources: Fingerprints of the files.
        """
        model = self.model
        facts = {
            "format": FORMAT,
            "version": sitenet.__version__,
            "sources": sources,
            "pairs": self.make.options,
            "preparation": asdict(self.how),
            "coverage": self.coverage,
            "sampling": None if self.sampling is None else asdict(self.sampling),
            "config": model.config.to_dict(),
            "targets": [target.to_dict() for target in model.targets],
            "header": self.header,
            "ranges": None if self.ranges is None else list(map(asdict, self.ranges)),
        }
        parts: list[Any] = [facts]
        for name, values in model.state_dict().items():
            parts += [name, values.cpu().numpy()]
        if model.calibration is not None:
            for name, value in model.calibration.to_tensors().items():
                parts += [name, value.numpy()]
        return fingerprint(*parts)

    def results(self, ready: Sequence[_Ready]) -> list[Any]:
        """Predict records whose pairs were found: a prediction or a LeftOut each."""
        columns = [one.content for one in ready if isinstance(one.content, dict)]
        outputs = iter(from_store(self.model, PairStore.of(columns)))
        answers: list[LeftOut | Output | Prediction] = []
        for one in ready:
            result: Any = one.content
            if isinstance(result, dict):
                result = next(outputs)
            elif isinstance(result, Crystal) and self.sampling and result.occupancy is not None:
                result = _attempt(self._arranged, one.record, result)
            elif isinstance(result, Crystal):  # too large to be sent
                result = _attempt(self._large, one.record, result)
            if isinstance(result, tuple) and not np.isfinite(result[0]).all():
                reason = "the prediction is not a number"
                result = LeftOut(one.record.id, one.record.where, reason, reason)
            answers.append(result)
        usable = [
            (one, answer)
            for one, answer in zip(ready, answers, strict=True)
            if not isinstance(answer, LeftOut)
        ]
        completed = iter(self._predictions(usable))
        return [x if isinstance(x, LeftOut) else next(completed) for x in answers]

    def _predictions(self, predicted: list[tuple[_Ready, Any]]) -> list[Any]:
        """Complete the outputs of crystals that were predicted as they are."""
        whole = [(one, result) for one, result in predicted if not isinstance(result, Prediction)]
        completed = iter(self._of_whole(whole) if whole else [])
        results = [r if isinstance(r, Prediction) else next(completed) for _, r in predicted]
        if self.sampling is None:
            return results
        none = [0.0] * len(self.model.targets)
        return [replace(r, spread=none, arrangements=1) if r.spread is None else r for r in results]

    def _arranged(self, crystal: Crystal) -> Prediction:
        assert self.sampling is not None
        return arranged_row(
            self.model,
            over_arrangements(self.model, crystal, self.make, self.sampling, self.coverage),
            crystal,
        )

    def _of_whole(self, predicted: list[tuple[_Ready, Output]]) -> list[Prediction]:
        encodings = np.stack([encoding for _, (_, encoding) in predicted])
        predictions = predictions_of(
            self.model,
            [one.record.id for one, _ in predicted],
            [one.formula for one, _ in predicted],
            np.stack([values for _, (values, _) in predicted]),
            encodings,
            [one.content for one, _ in predicted if not isinstance(one.content, LeftOut)],
            [one.warnings for one, _ in predicted],
            self.coverage,
        )
        crystals = [one.crystal for one, _ in predicted if one.crystal is not None]
        predictions = with_evidence(self.model, predictions, encodings, crystals, self.neighbours)
        if self.ranges is None:
            return predictions
        met = probabilities(self.model, encodings, self.ranges).tolist()
        return [replace(one, probability=p) for one, p in zip(predictions, met, strict=True)]

    def _large(self, crystal: Crystal) -> Output:
        output = by_rows(self.model, crystal, self.make)
        if output is None:
            (output,) = from_store(self.model, PairStore.of([self.make(crystal)]))
        return output


def chunked(records: Iterator[Record]) -> Iterator[NumberedRecords]:
    """Cut records into chunks of CHUNK, numbered from 0."""
    for number in itertools.count():
        chunk = list(itertools.islice(records, CHUNK))
        if not chunk:
            return
        yield number, chunk
