"""An index of the training crystals: which are nearest to a new one in the model's encoding, and
which may be the same crystal.

Encodings are projected onto their principal axes and kept as one byte per axis. Distances are in
units of the distance between two training crystals chosen at random (root mean square).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from sitenet.crystal.crystal import Crystal
from sitenet.crystal.fingerprint import VOLUME, composition_hash, symmetry_hash, volume_per_atom
from sitenet.model.familiarity import need_arrays
from sitenet.system.workers import in_order

DIMENSIONS = 24  # kept of the encodings: with one byte each, 2 MB for 80,000 crystals
LEVELS = 127  # of a code, on either side of 0
QUERIES = 64  # encodings that are compared at a time
LONGEST = 1000  # bytes per crystal of the ids and formulas, at most
SAME = 0.003  # distance of equal crystals, beyond that of a code from what it stands for
PRECISION = 1000  # of the kept logarithms of volumes


class Neighbour(NamedTuple):
    """A training crystal near to another one.

    Attributes:
        id: Name in the training data.
        formula: Reduced formula.
        distance: 1 is the distance between two training crystals chosen at random.
        values: True value per target, NaN where unknown.
    """

    id: str
    formula: str
    distance: float
    values: tuple[float, ...]


@dataclass(eq=False)
class TrainingIndex:
    """The training crystals of a model.

    Attributes:
        text: Ids and formulas, compressed bytes.
        values: (crystals, targets) true values, NaN where unknown.
        mean: (encoding,) mean encoding.
        axes: (encoding, dimensions) principal axes, over the unit of distance.
        steps: (dimensions,) distance per step of a code.
        codes: (crystals, dimensions) int8, projected encodings in steps.
        compositions: (crystals,) int32, hashes of ``sitenet.crystal.fingerprint``.
        symmetries: (crystals,) int32, likewise.
        volumes: (crystals,) int16, ln of cubic angstrom per atom, in thousandths.
    """

    text: np.ndarray
    values: np.ndarray
    mean: np.ndarray
    axes: np.ndarray
    steps: np.ndarray
    codes: np.ndarray
    compositions: np.ndarray
    symmetries: np.ndarray
    volumes: np.ndarray

    def __post_init__(self) -> None:
        self._lines: list[str] | None = None
        self._points: np.ndarray | None = None
        self._order = np.argsort(self.compositions, kind="stable")

    def __len__(self) -> int:
        return len(self.codes)

    @classmethod
    def fit(
        cls,
        encodings: np.ndarray,
        values: np.ndarray,
        ids: Sequence[str],
        formulas: Sequence[str],
        fingerprints: Fingerprints,
    ) -> TrainingIndex:
        """Index training crystals; every argument has one entry per crystal."""
        x = encodings.astype(np.float64)
        mean = x.mean(0)
        variance, axes = np.linalg.eigh(np.cov((x - mean).T, bias=True).reshape(x.shape[1], -1))
        axes = axes[:, ::-1][:, :DIMENSIONS]
        unit = np.sqrt(max(2 * variance.sum(), 1e-24))
        axes = axes / unit
        points = (x - mean) @ axes
        steps = np.maximum(abs(points).max(0), 1e-12) / LEVELS
        lines = "\n".join(f"{_plain(i)}\t{f}" for i, f in zip(ids, formulas, strict=True))
        return cls(
            np.frombuffer(zlib.compress(lines.encode(), 9), np.uint8),
            np.asarray(values, np.float64),
            mean,
            axes,
            steps,
            np.round(points / steps).astype(np.int8),
            *fingerprints,
        )

    def nearest(self, encodings: np.ndarray, count: int) -> list[list[Neighbour]]:
        """The nearest training crystals of each encoding, the nearest first.

        Args:
            encodings: (crystals, encoding) by the model.
            count: How many; all of them if there are fewer.

        Raises:
            ValueError: ``count`` is below 1.
        """
        if count < 1:
            raise ValueError(f"expected 1 neighbour or more, got {count}")
        count = min(count, len(self))
        if self._points is None:
            self._points = (self.codes * self.steps).astype(np.float32)
            self._squares = (self._points.astype(np.float64) ** 2).sum(1)
        lines = self._read_lines()
        x = (encodings - self.mean) @ self.axes
        result = []
        for first in range(0, len(x), QUERIES):
            part = x[first : first + QUERIES]
            squares = self._squares - 2 * part.astype(np.float32) @ self._points.T
            candidates = np.argpartition(squares, count - 1, axis=1)[:, :count]
            apart = np.linalg.norm(self._points[candidates] - part[:, None], axis=2)
            for row, distance in zip(candidates, apart, strict=True):
                order = np.argsort(distance, kind="stable")
                nearest = []
                for k, d in zip(row[order].tolist(), distance[order].tolist(), strict=True):
                    name, _, formula = lines[k].partition("\t")
                    nearest.append(Neighbour(name, formula, d, tuple(self.values[k].tolist())))
                result.append(nearest)
        return result

    def candidates(self, crystal: Crystal) -> list[int]:
        """The training crystals of the same fingerprint, the nearest in volume first: their
        numbers."""
        return self.of_symmetry(self.of_volume(crystal), crystal)

    def of_volume(self, crystal: Crystal) -> list[int]:
        """The training crystals of the same composition and volume, the nearest in volume first."""
        composition = np.int32(composition_hash(crystal))  # other dtypes copy the array
        ends = (
            np.searchsorted(self.compositions, composition, side, sorter=self._order)
            for side in ("left", "right")
        )
        candidates = self._order[slice(*ends)]
        if not len(candidates):
            return []
        apart = abs(self.volumes[candidates] / PRECISION - np.log(volume_per_atom(crystal)))
        near = apart <= np.log1p(VOLUME)
        return candidates[near][np.argsort(apart[near], kind="stable")].tolist()

    def of_symmetry(self, candidates: list[int], crystal: Crystal) -> list[int]:
        """Those of some training crystals that have a crystal's symmetry."""
        if not candidates:
            return []
        symmetry = symmetry_hash(crystal)
        return [c for c in candidates if self.symmetries[c] == symmetry]

    def has_volume_of(self, candidate: int, crystal: Crystal) -> bool:
        """Whether a crystal has the volume of a training crystal, to the precision of the index."""
        apart = self.volumes[candidate] - PRECISION * np.log(volume_per_atom(crystal))
        return bool(abs(apart) <= 0.51)  # half a unit, and rounding errors

    def is_encoding_of(self, candidate: int, encoding: np.ndarray) -> bool:
        """Whether an encoding is that of a training crystal, as far as its code can tell."""
        point = (encoding - self.mean) @ self.axes
        apart = np.linalg.norm(point - self.codes[candidate] * self.steps)
        return bool(apart <= np.linalg.norm(self.steps) / 2 + SAME)

    def volume(self, candidate: int) -> float:
        """The volume of a training crystal, in cubic angstrom per atom."""
        return float(np.exp(self.volumes[candidate] / PRECISION))

    def name(self, candidate: int) -> str:
        """The id of a training crystal."""
        return self._read_lines()[candidate].partition("\t")[0]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All values by name; ``from_arrays`` takes them back."""
        return {name: value for name, value in vars(self).items() if not name.startswith("_")}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], encoding_size: int, num_targets: int
    ) -> TrainingIndex:
        """Build it from what ``to_arrays`` gave.

        Raises:
            ValueError: An array is missing, unknown or of a wrong shape, or the names cannot be
                read; says which.
        """
        codes = arrays.get("codes", np.empty((0, 0)))
        crystals, dimensions = codes.shape if codes.ndim == 2 else (None, None)
        shapes = {
            "codes": (crystals, dimensions),
            "text": (None,),
            "values": (crystals, num_targets),
            "mean": (encoding_size,),
            "axes": (encoding_size, dimensions),
            "steps": (dimensions,),
            **dict.fromkeys(("compositions", "symmetries", "volumes"), (crystals,)),
        }
        need_arrays(arrays, shapes)
        return cls(**arrays)

    def _read_lines(self) -> list[str]:
        """Id, a tab and formula of each training crystal, read when they are first needed."""
        if self._lines is None:
            try:
                reader = zlib.decompressobj()
                text = reader.decompress(self.text.tobytes(), LONGEST * len(self) + 1).decode()
            except (zlib.error, UnicodeDecodeError) as error:
                raise ValueError(f"the ids of the training crystals are damaged: {error}") from None
            lines, tabs = text.split("\n"), text.count("\t")
            if not reader.eof or not len(lines) == tabs == len(self):
                raise ValueError(
                    f"the ids of the training crystals are damaged: read {len(lines)} and {tabs} "
                    f"formulas of {len(self)}"
                )
            self._lines = lines
        return self._lines


class Fingerprints(NamedTuple):
    """Fingerprints of crystals, as a TrainingIndex keeps them."""

    compositions: np.ndarray
    symmetries: np.ndarray
    volumes: np.ndarray

    @classmethod
    def of(cls, crystals: Iterable[Crystal], workers: int = 1) -> Fingerprints:
        """Compute those of one crystal or more, in some processes."""
        rows = [row for part in in_order(_fingerprints, crystals, workers) for row in part]
        compositions, symmetries, volumes = zip(*rows, strict=True)
        return cls.from_values(compositions, symmetries, volumes)

    @classmethod
    def from_values(
        cls, compositions: Iterable[int], symmetries: Iterable[int], volumes: Iterable[float]
    ) -> Fingerprints:
        """Take the hashes, and the volumes in cubic angstrom per atom."""
        logarithms = np.log(np.fromiter(volumes, float))
        return cls(
            np.fromiter(compositions, np.int32),
            np.fromiter(symmetries, np.int32),
            np.round(PRECISION * logarithms).astype(np.int16),
        )


def _fingerprints(crystals: Sequence[Crystal]) -> list[tuple[int, int, float]]:
    return [(composition_hash(c), symmetry_hash(c), volume_per_atom(c)) for c in crystals]


def _plain(name: str) -> str:
    """A name without what separates names in the file."""
    return " ".join(name.split())
