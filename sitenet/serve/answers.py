"""What the server computes: the functions behind the commands, on uploads, a slice at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sitenet.crystal.crystal import Crystal
from sitenet.data.dataset import LeftOut, Preparation
from sitenet.data.source import Record
from sitenet.inference.encode import encode
from sitenet.inference.explain import explain
from sitenet.inference.explanation import Explanation
from sitenet.inference.predict_chunks import Predictor
from sitenet.inference.structures import preparation
from sitenet.inference.table import COVERAGE, Cell
from sitenet.model.ensemble import Model
from sitenet.pairs.maker import PairMaker
from sitenet.report.crystal_page import crystal_report
from sitenet.serve.uploads import Bounds, Read, Refused, Upload, batch, read_uploads

SLICE = 32  # structures that are computed before another request has its turn
SLICE_SECONDS = 0.5  # of reading them


@dataclass(frozen=True)
class Options:
    """The options of a request, as those of the commands.

    Attributes:
        coverage: share of true values that intervals should hold.
        max_sites: largest supercell in sites; None takes the model's.
        primitive: whether to find primitive cells; None does as in training.
        disorder: "error" or "average"; None does as in training.
    """

    coverage: float = COVERAGE
    max_sites: int | None = None
    primitive: bool | None = None
    disorder: str | None = None

    @classmethod
    def of(cls, fields: Mapping[str, str]) -> Options:
        """Read the options from the fields of a form.

        Raises:
            Refused: a value is none that the option takes; says which.
        """
        try:
            coverage = float(fields.get("coverage") or COVERAGE)
            sites = fields.get("max_sites")
            max_sites = int(sites) if sites else None
        except ValueError as error:
            raise Refused(422, f"expected a number: {error}") from None
        if not 0.5 <= coverage <= 0.99:
            raise Refused(422, f"coverage must be from 0.5 to 0.99, got {coverage:g}")
        if max_sites is not None and not 0 <= max_sites <= 500:
            raise Refused(422, f"max_sites must be from 0 to 500, got {max_sites}")
        primitive = _choice(fields, "primitive", {"true": True, "false": False})
        disorder = _choice(fields, "disorder", {"error": "error", "average": "average"})
        return cls(coverage, max_sites, primitive, disorder)

    def preparation(self, model: Model) -> Preparation:
        """How structures are prepared for a model."""
        return preparation(model.config, self.primitive, self.disorder)


def _choice(fields: Mapping[str, str], name: str, choices: Mapping[str, Any]) -> Any:
    value = fields.get(name)
    if not value:
        return None
    if value not in choices:
        raise Refused(422, f"{name} must be {' or '.join(choices)}, got {value!r:.40}")
    return choices[value]


class Prediction:
    """The prediction of the structures of uploads, a slice per call of ``step``.

    Attributes:
        header: names of a row's cells.
        rows: (number of the file, cells) of each predicted structure.
        left_out: the others, each with the number of its file.
    """

    def __init__(
        self, model: Model, uploads: Sequence[Upload], options: Options, bounds: Bounds
    ) -> None:
        how = options.preparation(model)
        make = PairMaker(model.config, options.max_sites)
        ready = Preparation(primitive=False, disorder=how.disorder)  # by ``read_uploads``
        self._predictor = Predictor(model, ready, make, options.coverage)
        self._reads = read_uploads(uploads, how, bounds)
        self.header = self._predictor.header
        self.rows: list[tuple[int, Sequence[Cell]]] = []
        self.left_out: list[tuple[int, LeftOut]] = []

    def step(self) -> bool:
        """Compute the next structures; returns whether there may be more."""
        part = batch(self._reads, SLICE, SLICE_SECONDS)
        usable = [read for read in part if isinstance(read.result, Crystal)]
        self.left_out += [
            (read.file, read.result) for read in part if isinstance(read.result, LeftOut)
        ]
        if usable:
            self._predict(usable)
        return bool(part)

    def _predict(self, usable: Sequence[Read]) -> None:
        # Ids need not differ, so the predictor sees places instead.
        records = [
            Record(str(place), read.record.where, "crystal", read.result)
            for place, read in enumerate(usable)
        ]
        ((_, _, predictions, left_out),) = self._predictor.chunks(iter([(0, records)]), 1)
        for one in predictions:
            read = usable[int(one.id)]
            cells = self._predictor.row(one)
            self.rows.append((read.file, (read.record.id, *cells[1:])))
        for other in left_out:
            read = usable[int(other.id)]
            fields = read.record.id, other.where, other.reason, other.kind
            self.left_out.append((read.file, LeftOut(*fields)))

    def stop(self, reason: str) -> None:
        """Say why the structures that are left were not computed."""
        self.left_out.append((-1, LeftOut("", "the rest", reason, reason)))


def one_crystal(
    model: Model, uploads: Sequence[Upload], id: str, options: Options, bounds: Bounds
) -> Crystal:
    """The structure of uploads with this id; the first one for "".

    Raises:
        Refused: there is none, or it cannot be used; says why.
    """
    for read in read_uploads(uploads, options.preparation(model), bounds):
        if id in ("", read.record.id):
            if isinstance(read.result, LeftOut):
                raise Refused(422, read.result.reason)
            return read.result
    raise Refused(404, f"no structure {id!r:.200} in the files")


def explanation(model: Model, crystal: Crystal, options: Options) -> dict[str, Any]:
    """What a model attends to in a crystal, as tables of columns."""
    e = explain(model, crystal, options.max_sites, primitive=False)
    assert isinstance(e, Explanation)
    tables = {rows: e.columns(rows) for rows in ("elements", "sites", "pairs")}
    return {
        "id": crystal.name,
        "formula": crystal.reduced_formula,
        **{rows: _plain(columns) for rows, columns in tables.items()},
    }


def _plain(columns: Mapping[str, Any]) -> dict[str, list[Any]]:
    """Columns as lists, without numbers that JSON does not know."""
    return {
        name: [None if x != x else x for x in column.tolist()] for name, column in columns.items()
    }


def report(model: Model, crystal: Crystal, options: Options) -> str:
    """The HTML report of ``sitenet explain --out x.html``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "report.html")
        crystal_report(model, crystal, path, max_sites=options.max_sites, primitive=False)
        return path.read_text(encoding="utf-8")


class Encodings:
    """The encodings of the structures of uploads, a slice per call of ``step``.

    Attributes:
        ids: of the structures that were encoded.
        vectors: their encodings.
        left_out: the others, each with the number of its file.
    """

    def __init__(
        self, model: Model, uploads: Sequence[Upload], options: Options, bounds: Bounds
    ) -> None:
        self._model, self._options = model, options
        self._make = PairMaker(model.config, options.max_sites)
        self._reads = read_uploads(uploads, options.preparation(model), bounds)
        self.ids: list[str] = []
        self.vectors: list[list[float]] = []
        self.left_out: list[tuple[int, LeftOut]] = []

    def step(self) -> bool:
        """Compute the next structures; returns whether there may be more."""
        part = batch(self._reads, SLICE, SLICE_SECONDS)
        crystals = []
        for read in part:
            try:
                if isinstance(read.result, LeftOut):
                    self.left_out.append((read.file, read.result))
                    continue
                self._make.check(read.result)
                crystals.append(read.result)
                self.ids.append(read.record.id)
            except ValueError as error:
                left_out = LeftOut.of(read.record.id, read.record.where, error)
                self.left_out.append((read.file, left_out))
        vectors = encode(self._model, crystals, self._options.max_sites, primitive=False)
        self.vectors += vectors.tolist()
        return bool(part)

    def stop(self, reason: str) -> None:
        """Say why the structures that are left were not computed."""
        self.left_out.append((-1, LeftOut("", "the rest", reason, reason)))
