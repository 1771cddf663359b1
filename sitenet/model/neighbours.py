"""An index of the training crystals: which are nearest to a new one in the model's encoding, and
which may be the same crystal.

Encodings are projected onto their principal axes and kept as one byte per axis. Distances are in
units of the distance between two training crystals chosen at random (root mean square).

In a file, the arrays of one number or more per crystal are compressed: column by column, and within
a column the first bytes of all numbers, then the second ones. With ids and formulas, this is some
27 bytes per crystal.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sitenet.crystal.crystal import Crystal
from sitenet.crystal.fingerprint import VOLUME, composition_hash, symmetry_hash, volume_per_atom
from sitenet.model.familiarity import need_arrays
from sitenet.system.workers import in_order

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, DTypeLike

DIMENSIONS = 24  # kept of the encodings, with one byte each: 15 bytes once compressed
LEVELS = 127  # of a code, on either side of 0
QUERIES = 64  # encodings that are compared at a time
MOST_RATIO = 1100  # of sizes before and after compression: zlib reaches 1032
LONGEST = 1000  # bytes per crystal of the ids and formulas, at most
SAME = 0.003  # distance of equal crystals, beyond that of a code from what it stands for
PRECISION = 1000  # of the kept logarithms of volumes
# Numbers per crystal, as a file keeps them.
_KEPT = {
    "values": np.float32,
    "codes": np.int8,
    "compositions": np.int16,
    "symmetries": np.int16,
    "volumes": np.int16,
}
_XZ = b"\xfd7zXZ"  # how compressed names begin; those of older files are compressed otherwise


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
        text: Ids and formulas as compressed bytes: all ids, then all formulas, a line each.
        values: (crystals, targets) true values, NaN where unknown.
        mean: (encoding,) mean encoding.
        axes: (encoding, dimensions) principal axes, over the unit of distance.
        steps: (dimensions,) distance per step of a code.
        codes: (crystals, dimensions) int8, projected encodings in steps.
        compositions: (crystals,) int16, of the hashes of ``sitenet.crystal.fingerprint``; int32 in
            older files.
        symmetries: (crystals,) likewise.
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
        self._names: tuple[list[str], list[str]] | None = None
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
        return cls(
            _packed_names(list(map(_plain, ids)), formulas),
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
        ids, formulas = self._read_names()
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
                    values = tuple(self.values[k].tolist())
                    nearest.append(Neighbour(ids[k], formulas[k], d, values))
                result.append(nearest)
        return result

    def candidates(self, crystal: Crystal) -> list[int]:
        """The training crystals of the same fingerprint, the nearest in volume first: their
        numbers."""
        return self.of_symmetry(self.of_volume(crystal), crystal)

    def of_volume(self, crystal: Crystal) -> list[int]:
        """The training crystals of the same composition and volume, the nearest in volume first."""
        kind = self.compositions.dtype
        # Of another type, searchsorted would copy the array.
        composition = _lower_bits(composition_hash(crystal), kind)[()]
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
        symmetry = _lower_bits(symmetry_hash(crystal), self.symmetries.dtype)
        return [c for c in candidates if self.symmetries[c] == symmetry]

    def has_volume_of(self, candidate: int, crystal: Crystal) -> bool:
        """Whether a crystal has the volume of a training crystal, to the precision of the index."""
        apart = self.volumes[candidate] - PRECISION * np.log(volume_per_atom(crystal))
        return bool(abs(apart) <= 0.51)  # half a unit, and rounding errors

    def is_encoding_of(self, candidate: int, encoding: np.ndarray) -> bool:
        """Whether an encoding is that of a training crystal, as far as its code can tell."""
        return bool(self.of_encoding([candidate], encoding))

    def of_encoding(self, candidates: list[int], encoding: np.ndarray) -> list[int]:
        """Those of some training crystals that have an encoding, as far as their codes can tell."""
        if not candidates:
            return []
        point = (encoding - self.mean) @ self.axes
        apart = np.linalg.norm(point - self.codes[candidates] * self.steps, axis=1)
        near = apart <= np.linalg.norm(self.steps) / 2 + SAME
        return [c for c, is_near in zip(candidates, near.tolist(), strict=True) if is_near]

    def volume(self, candidate: int) -> float:
        """The volume of a training crystal, in cubic angstrom per atom."""
        return float(np.exp(self.volumes[candidate] / PRECISION))

    def name(self, candidate: int) -> str:
        """The id of a training crystal."""
        return self._read_names()[0][candidate]

    def to_arrays(self) -> dict[str, np.ndarray]:
        """All values by name, compressed; ``from_arrays`` takes them back."""
        arrays = {name: getattr(self, name) for name in ("text", "mean", "axes", "steps")}
        if not self.text.tobytes().startswith(_XZ):
            arrays["text"] = _packed_names(*self._read_names())
        for name, dtype in _KEPT.items():
            arrays[name] = _packed(getattr(self, name), np.dtype(dtype))
        return arrays | {"crystals": np.array([len(self)])}

    @classmethod
    def from_arrays(
        cls, arrays: Mapping[str, np.ndarray], encoding_size: int, num_targets: int
    ) -> TrainingIndex:
        """Build it from what ``to_arrays`` gave, or from the arrays of a file before format 5,
        which are not compressed.

        Raises:
            ValueError: An array is missing, unknown, damaged or of a wrong shape; says which.
        """
        if "crystals" in arrays:
            arrays = _unpacked_arrays(arrays, num_targets)
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

    def _read_names(self) -> tuple[list[str], list[str]]:
        """Ids and formulas of the training crystals, read when they are first needed."""
        if self._names is None:
            self._names = _unpacked_names(self.text.tobytes(), len(self))
        return self._names


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
        cls, compositions: ArrayLike, symmetries: ArrayLike, volumes: Iterable[float]
    ) -> Fingerprints:
        """Take the hashes, and the volumes in cubic angstrom per atom."""
        logarithms = np.log(np.fromiter(volumes, float))
        return cls(
            _lower_bits(compositions),
            _lower_bits(symmetries),
            np.round(PRECISION * logarithms).astype(np.int16),
        )


def _fingerprints(crystals: Sequence[Crystal]) -> list[tuple[int, int, float]]:
    return [(composition_hash(c), symmetry_hash(c), volume_per_atom(c)) for c in crystals]


def _plain(name: str) -> str:
    """A name without what separates names in the file."""
    return " ".join(name.split())


def _lower_bits(hashes: ArrayLike, dtype: DTypeLike = np.int16) -> np.ndarray:
    """Hashes of 32 bits, without the upper ones that a smaller type has no place for. Sixteen bits
    suffice where crystals are also compared by volume and encoding."""
    return np.asarray(hashes, np.int64).astype(dtype)


def _packed(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Compress an array with one row per crystal to bytes."""
    columns = array.reshape(len(array), -1).astype(dtype.newbyteorder("<"))
    planes = columns.view(np.uint8).reshape(len(array), -1).T  # one per byte of a row
    return np.frombuffer(zlib.compress(planes.tobytes(), 9), np.uint8)


def _unpacked(
    name: str, packed: np.ndarray, dtype: np.dtype, rows: int, columns: int
) -> np.ndarray:
    """The array that ``_packed`` compressed: (rows, columns).

    Raises:
        ValueError: The bytes are not those of such an array.
    """
    size = rows * columns * dtype.itemsize
    reader = zlib.decompressobj()
    try:
        possible = packed.dtype == np.uint8 and 0 <= size <= MOST_RATIO * packed.size
        planes = reader.decompress(packed.tobytes(), size + 1) if possible else b""
    except zlib.error as error:
        raise ValueError(f"{name} is damaged: {error}") from None
    if not reader.eof or len(planes) != size:
        raise ValueError(f"{name} is damaged: expected {columns} values for {rows} crystals")
    bytes_of_rows = np.frombuffer(planes, np.uint8).reshape(-1, rows).T
    little = np.ascontiguousarray(bytes_of_rows).view(dtype.newbyteorder("<"))
    return little.astype(np.float64 if dtype.kind == "f" else dtype)


def _unpacked_arrays(arrays: Mapping[str, np.ndarray], num_targets: int) -> dict[str, np.ndarray]:
    """The arrays of a compressed index as those of one that is not.

    Raises:
        ValueError: One of them is damaged; says which.
    """
    count, steps = arrays["crystals"], arrays.get("steps", np.empty(0))
    if count.shape != (1,) or count.dtype.kind != "i" or count[0] < 1:
        raise ValueError(f"crystals must be the number of training crystals, got {count}")
    widths = {"values": num_targets, "codes": steps.size}
    unpacked = {name: x for name, x in arrays.items() if name != "crystals"}
    for name, dtype in _KEPT.items():
        if name in unpacked:
            columns = widths.get(name, 1)
            array = _unpacked(name, unpacked[name], np.dtype(dtype), int(count[0]), columns)
            unpacked[name] = array if name in widths else array[:, 0]
    return unpacked


def _packed_names(ids: Sequence[str], formulas: Sequence[str]) -> np.ndarray:
    """Compress ids and formulas to bytes."""
    import lzma

    return np.frombuffer(lzma.compress("\n".join([*ids, *formulas]).encode()), np.uint8)


def _unpacked_names(text: bytes, count: int) -> tuple[list[str], list[str]]:
    """Ids and formulas of so many crystals from compressed bytes.

    Raises:
        ValueError: The bytes are damaged, or hold those of another number of crystals.
    """
    import lzma

    is_old = not text.startswith(_XZ)  # id, tab, formula per line
    reader: Any = zlib.decompressobj() if is_old else lzma.LZMADecompressor()
    try:
        content = reader.decompress(text, LONGEST * count + 1).decode()
    except (zlib.error, lzma.LZMAError, UnicodeDecodeError) as error:
        raise ValueError(f"the ids of the training crystals are damaged: {error}") from None
    names = content.replace("\t", "\n").split("\n") if is_old else content.split("\n")
    if not reader.eof or len(names) != 2 * count:
        raise ValueError(
            f"the ids of the training crystals are damaged: read {len(names)} ids and formulas of "
            f"{count} crystals"
        )
    return (names[::2], names[1::2]) if is_old else (names[:count], names[count:])
