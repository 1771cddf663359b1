"""Several models at once: crystals are read once, and pairs found once per kind of pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sitenet.crystal.arrangements import Sampling
from sitenet.data.dataset import LeftOut, Preparation
from sitenet.inference.predict_chunks import (
    Chunk,
    NumberedRecords,
    Predictor,
    found_pairs,
    has_index,
)
from sitenet.inference.structures import preparation
from sitenet.inference.table import Cell, Joined, Row
from sitenet.model.checkpoint import load
from sitenet.model.ensemble import Ensemble, Model
from sitenet.model.sitenet import SiteNet
from sitenet.model.target import Target
from sitenet.pairs.maker import PairMaker
from sitenet.system.files import cell_text, fingerprint, write_csv
from sitenet.system.model_files import find_models

Models = Model | str | Path | Sequence[str | Path] | Mapping[str, Model]


def models_of(models: Models) -> dict[str, Model]:
    """Load models that are named.

    Args:
        models: A model, a name as in ``load``, several names, or models by names of your own.

    Returns:
        Models by name; "" for one that came without.

    Raises:
        FileNotFoundError, ValueError: A model cannot be loaded, or there is none.
        TypeError: Something else came.
    """
    if isinstance(models, (SiteNet, Ensemble)):
        return {"": models}
    if isinstance(models, (str, Path)):
        models = [models]
    if isinstance(models, Mapping):
        loaded = dict(models)
    elif all(isinstance(name, (str, Path)) for name in models):
        loaded = {name: load(path) for name, path in find_models(models).items()}
    else:
        raise TypeError(
            "expected a model, names of models, or a dict of models by name, got a "
            f"{type(models).__name__} of other things"
        )
    for name, model in loaded.items():
        if not isinstance(model, (SiteNet, Ensemble)):
            raise TypeError(f"{name!r} must be a model, got {type(model).__name__}")
    if not loaded:
        raise ValueError("expected at least one model, got none")
    return loaded


def common_preparation(
    models: Mapping[str, Model], primitive: bool | None, disorder: str | None
) -> Preparation:
    """Return how to prepare structures for all of the models.

    Raises:
        ValueError: Models were trained on structures prepared in different ways, and the arguments
            do not say which to take.
    """
    how = {name: preparation(m.config, primitive, disorder) for name, m in models.items()}
    first = next(iter(how))
    for name, other in how.items():
        if other != how[first]:
            raise ValueError(
                f"{first} was trained on structures prepared with {_described(how[first])}, {name} "
                f"with {_described(other)}: say which to take, or predict them one by one"
            )
    return how[first]


def _described(how: Preparation) -> str:
    return f"primitive={how.primitive}, disorder={how.disorder!r}"


def distinct_makers(
    models: Sequence[Model], max_sites: int | None, merge: bool
) -> tuple[list[PairMaker], list[int]]:
    """Return the makers of pairs that differ, and the number of that of each model."""
    makers: dict[str, PairMaker] = {}
    keys = []
    for model in models:
        make = PairMaker(model.config, max_sites, merge)
        keys.append(fingerprint(sorted(make.options.items()), make.missing, make.known))
        makers.setdefault(keys[-1], make)
    numbers = {key: number for number, key in enumerate(makers)}
    return list(makers.values()), [numbers[key] for key in keys]


def named_targets(models: Mapping[str, Model]) -> dict[str, list[Target]]:
    """The targets of each model; those that several models have begin with the model's name."""
    counts = Counter(target.name for model in models.values() for target in model.targets)
    return {
        name: [
            replace(t, name=f"{name}_{t.name}") if counts[t.name] > 1 else t for t in model.targets
        ]
        for name, model in models.items()
    }


def join(names: Sequence[str], counts: Sequence[int], results: Sequence[Any]) -> Joined | LeftOut:
    """Join what several models made of a crystal; a LeftOut if none can use it.

    Args:
        names: Of the models.
        counts: Targets per model.
        results: A Prediction or LeftOut per model.
    """
    usable = [one for one in results if not isinstance(one, LeftOut)]
    if not usable:
        return results[0]
    doubts = [one.warnings for one in usable if one.warnings]
    doubts += [
        f"{name}: {one.reason}"
        for name, one in zip(names, results, strict=True)
        if isinstance(one, LeftOut)
    ]
    warnings = "; ".join(dict.fromkeys(doubts))
    parts = [dict(vars(one)) for one in results]
    return Joined(usable[0].id, usable[0].formula, warnings, parts, list(counts))


class SeveralPredictor:
    """Predict chunks of records with several models; see ``Predictor``.

    The table has the columns of each model. Those that several models have begin with the model's
    name. Cells of a model that cannot use a crystal are empty, and ``warnings`` says why.

    Args:
        models: By name.
        how: How structures are read.
        max_sites: As in ``predict``.
        merge: As in ``predict``.
        coverage: Of the intervals.
        sampling: As in ``Predictor``.
        neighbours: As in ``Predictor``.
    """

    def __init__(
        self,
        models: Mapping[str, Model],
        how: Preparation,
        max_sites: int | None,
        merge: bool,
        coverage: float,
        sampling: Sampling | None = None,
        neighbours: int = 0,
    ) -> None:
        self.names, self.how, self.sampled = list(models), how, sampling is not None
        self.makers, self.maker_of = distinct_makers(list(models.values()), max_sites, merge)
        self.each = [
            Predictor(model, how, self.makers[number], coverage, sampling, neighbours)
            for model, number in zip(models.values(), self.maker_of, strict=True)
        ]
        self.counts = [len(model.targets) for model in models.values()]
        columns = [one.header[2:-1] for one in self.each]
        times = Counter(name for names in columns for name in names)
        self.header = ["id", "formula"]
        for title, names in zip(self.names, columns, strict=True):
            self.header += [f"{title}_{x}" if times[x] > 1 else x for x in names]
        self.header.append("warnings")

    def chunks(
        self, records: Iterator[NumberedRecords], workers: int
    ) -> Generator[Chunk, None, None]:
        """Yield the results of numbered chunks of records, in order."""
        compares = any(has_index(one.model) for one in self.each)
        for number, count, ready in found_pairs(
            records, workers, self.how, self.makers, self.sampled, compares
        ):
            results = [
                one.results(ready[k]) for one, k in zip(self.each, self.maker_of, strict=True)
            ]
            joined = [join(self.names, self.counts, x) for x in zip(*results, strict=True)]
            yield Chunk.of_results(number, count, joined)

    def row(self, joined: Joined) -> Row:
        """Cells of the table."""
        cells: list[Cell] = [joined.id, joined.formula]
        for one, result in zip(self.each, joined.results, strict=True):
            width = len(one.header) - 3
            cells += [None] * width if isinstance(result, LeftOut) else one.row(result)[2:-1]
        return (*cells, joined.warnings)

    def chunk_of(self, content: dict[str, Any]) -> Chunk:
        """Read a chunk from a log."""
        return Chunk.of_plain(content, Joined)

    def write(self, path: Path, results: Callable[[], Iterator[Joined]]) -> None:
        """Write a file of all results; each call of ``results`` goes through all of them once."""
        write_csv(path, self.header, (list(map(cell_text, self.row(one))) for one in results()))

    def settings(self, sources: list[str]) -> str:
        """A hash of everything that fixes the rows; see ``Predictor.settings``."""
        return fingerprint(self.names, *(one.settings(sources) for one in self.each))
