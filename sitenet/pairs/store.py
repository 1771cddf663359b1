"""The pairs of many crystals in flat columns, in memory, mapped from disk or on a GPU.

A batch is a few gathers, whatever the device, so that training waits for no Python loop. On disk,
a store is a folder with one raw file per column and ``store.json``, which holds their sizes and
checksums and the key of what the pairs were computed from.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sitenet.ops.padded_batch import Room, Stored, padded_batch
from sitenet.pairs.columns import COLUMNS, Columns, dtype_of, joined
from sitenet.pairs.pairs import Pairs

FORMAT = 2


def placed(numbers: np.ndarray, device: torch.device) -> Tensor:
    """Copy an array to a device as a tensor; the host does not wait for the copy."""
    tensor = torch.from_numpy(numbers)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


def _ranges(starts: Tensor, lengths: Tensor, total: int) -> Tensor:
    """Concatenate ranges: starts[0], starts[0] + 1, ... (lengths[0] of them), starts[1], ...

    Args:
        starts: (n,) first values.
        lengths: (n,) lengths of the ranges.
        total: sum of the lengths, known on the host, so that no device has to be waited for.
    """
    ends = lengths.cumsum(0)
    shift = torch.repeat_interleave(starts - (ends - lengths), lengths, output_size=total)
    return torch.arange(total, device=starts.device) + shift


def _begins(lengths: Tensor) -> Tensor:
    """The beginnings of parts of these lengths, and the end of the last: (n + 1,) int64."""
    return F.pad(lengths.long().cumsum(0), (1, 0))


# Columns that a padded batch takes.
_GATHERED = (
    *("num_sites", "images", "numbers", "oxidation", "count"),
    *("sites", "distance", "multiplicity"),
)


class PairStore:
    """The pairs of many crystals.

    Args:
        columns: name -> flat array over all crystals, as in ``COLUMNS``, with or without those of
            ``OPTIONAL_COLUMNS``. ``sites`` count from the crystal's first row.
        device: where the columns are kept.
        facts: notes of its writer, kept beside the columns.
    """

    def __init__(
        self,
        columns: Columns,
        device: torch.device | str = "cpu",
        facts: dict[str, Any] | None = None,
    ) -> None:
        self.facts = facts or {}
        with _quiet_about_read_only():
            self.columns = {k: torch.from_numpy(v).to(device) for k, v in columns.items()}
        self._row_of_crystal = _begins(self.columns["num_rows"])  # (crystals + 1,)
        self._pair_of_row = _begins(self.columns["num_pairs"])  # (rows + 1,)
        self._mixed_of_crystal = _begins(self.columns["num_mixed"])  # (crystals + 1,)
        pairs = self._pair_of_row[self._row_of_crystal].diff()
        images = torch.zeros_like(pairs)
        if "vectors" in self.columns:
            image_of_pair = _begins(self.columns["multiplicity"])
            # (crystals + 1,)
            self._image_of_crystal = image_of_pair[self._pair_of_row[self._row_of_crystal]]
            images = self._image_of_crystal.diff()
        # (4, crystals): rows, pairs, species and images of each, on the host, so that no GPU has to
        # be waited for.
        sizes = (self.columns["num_rows"], pairs, self.columns["num_mixed"], images)
        self._sizes = np.stack([x.cpu().numpy().astype(np.int64) for x in sizes])

    def __len__(self) -> int:
        return len(self.columns["num_sites"])

    @property
    def num_pairs(self) -> np.ndarray:
        """Pairs of each crystal, (crystals,) int64."""
        return self._sizes[1]

    @property
    def num_sites(self) -> np.ndarray:
        """Sites of each crystal's cell, (crystals,) int32."""
        return self.columns["num_sites"].cpu().numpy()

    def batch(self, crystals: Sequence[int] | np.ndarray) -> Pairs:
        """The pairs of some crystals, on the store's device.

        Args:
            crystals: their numbers, in any order.

        Returns:
            Pairs whose ``orbit`` is empty, as a store does not keep the rows of single sites.
        """
        c = self.columns
        numbers = np.asarray(crystals, dtype=np.int64)
        all_rows, all_pairs, all_mixed, all_images = self._sizes[:, numbers].sum(1).tolist()
        index = placed(numbers, c["sites"].device)
        first_row = self._row_of_crystal[index]
        num_rows = self._row_of_crystal[index + 1] - first_row
        first_pair = self._pair_of_row[first_row]
        num_pairs = self._pair_of_row[first_row + num_rows] - first_pair
        rows = _ranges(first_row, num_rows, all_rows)
        pairs = _ranges(first_pair, num_pairs, all_pairs)
        begin = _begins(num_rows)  # (crystals + 1,)
        shift = torch.repeat_interleave(begin[:-1], num_pairs, output_size=all_pairs)
        batch = self._take(index, rows, pairs, _begins(c["num_pairs"][rows]), begin)
        batch.sites += shift.int()
        if "vectors" in c:
            first_image = self._image_of_crystal[index]
            lengths = self._image_of_crystal[index + 1] - first_image
            images = _ranges(first_image, lengths, all_images)
            batch.vectors = c["vectors"].view(-1, 3)[images]
        if all_mixed:
            first = self._mixed_of_crystal[index]
            lengths = self._mixed_of_crystal[index + 1] - first
            species = _ranges(first, lengths, all_mixed)
            shift = torch.repeat_interleave(begin[:-1], lengths, output_size=all_mixed)
            batch.mixed_rows = c["mixed_rows"][species].long() + shift
            batch.mixed_numbers = c["mixed_numbers"][species].long()
            batch.mixed_shares = c["mixed_shares"][species]
        return batch.assume_checked()

    def room(self, crystals: Sequence[int] | np.ndarray) -> Room:
        """Rows, pairs and images of some crystals together."""
        rows, pairs, _, images = self._sizes[:, np.asarray(crystals, dtype=np.int64)].sum(1)
        return Room(int(rows), int(pairs), int(images))

    def padded_batch(self, index: Tensor, room: Room) -> Pairs:
        """The pairs of some crystals in arrays of fixed sizes, computed without reading a value,
        so that a CUDA graph can repeat it for other crystals.

        Unused places of ``index`` become padding crystals of one row; the last one takes all
        remaining rows. Their rows share the remaining pairs evenly, pairs of a row with itself at
        1 A, and repeat the values of one crystal's first row. Those pairs share the remaining
        images evenly, as their multiplicity.

        Args:
            index: (crystals,) int64 on the store's device; at least one place at its end is for
                padding, -1 - c to repeat crystal c, the same one in all of them. All may be.
            room: sizes of the arrays. At least the crystals' rows and one for each padding crystal;
                at least the crystals' pairs; at least the crystals' images and one for each further
                pair, if the store holds vectors, and at least one further pair then.

        Raises:
            ValueError: the store holds disordered crystals or sine distances.
        """
        c = self.columns
        if len(c["mixed_rows"]) or "sine_distance" in c:
            raise ValueError("disordered crystals and sine distances cannot be padded")
        vectors = c["vectors"].view(-1, 3) if "vectors" in c else None
        stored = Stored(
            self._row_of_crystal,
            self._pair_of_row,
            None if vectors is None else self._image_of_crystal,
            **{f"stored_{name}": c[name] for name in _GATHERED},
            stored_vectors=vectors,
        )
        gathered: dict[str, Any] = padded_batch(index, stored, room)
        if vectors is None:
            del gathered["vectors"]
        none = torch.empty(0, dtype=torch.int32, device=index.device)
        return Pairs(**gathered, orbit=none).assume_checked()

    def _take(
        self, index: Tensor, rows: Tensor, pairs: Tensor, offsets: Tensor, begin: Tensor
    ) -> Pairs:
        """Gather rows and pairs of the store as a batch whose ``sites`` still count from each
        crystal's first row.

        Args:
            index: (crystals,) numbers of the crystals.
            rows: (rows,) numbers of the rows.
            pairs: (pairs,) numbers of the pairs.
            offsets: (rows + 1,) where each row's pairs begin in the batch.
            begin: (crystals + 1,) where each crystal's rows begin in the batch.
        """
        c = self.columns
        return Pairs(
            offsets=offsets,
            sites=c["sites"][pairs],
            distance=c["distance"][pairs],
            multiplicity=c["multiplicity"][pairs],
            numbers=c["numbers"][rows].long(),
            oxidation=c["oxidation"][rows],
            count=c["count"][rows],
            orbit=torch.empty(0, dtype=torch.int32, device=index.device),
            crystals=begin,
            num_sites=c["num_sites"][index].long(),
            images=c["images"][index].long(),
            sine_distance=c["sine_distance"][pairs] if "sine_distance" in c else None,
        )

    def elements(self, crystals: Sequence[int] | np.ndarray) -> Tensor:
        """Atomic numbers of all rows and species of some crystals, (n,) int64."""
        numbers = np.asarray(crystals, dtype=np.int64)
        total, species = self._sizes[[0, 2]][:, numbers].sum(1).tolist()
        index = placed(numbers, self._row_of_crystal.device)
        parts = []
        for column, begin, size in (
            ("numbers", self._row_of_crystal, total),
            ("mixed_numbers", self._mixed_of_crystal, species),
        ):
            first = begin[index]
            place = _ranges(first, begin[index + 1] - first, size)
            parts.append(self.columns[column][place].long())
        return torch.cat(parts)

    def to(self, device: torch.device | str) -> PairStore:
        """A copy on another device, or this store if it is there already.

        Raises:
            RuntimeError: it does not fit into the GPU's memory; gives its size.
        """
        if self.columns["sites"].device == torch.device(device):
            return self
        columns = {k: v.cpu().numpy() for k, v in self.columns.items()}
        try:
            return PairStore(columns, device, self.facts)
        except torch.OutOfMemoryError:
            size = sum(x.nbytes for x in columns.values()) / 2**30
            raise RuntimeError(
                f"out of GPU memory: the pairs of {len(self)} crystals take {size:.2f} GiB; try "
                "fewer (max_crystals), or device cpu"
            ) from None

    @classmethod
    def of(cls, parts: Sequence[Columns]) -> PairStore:
        """Join the columns of single crystals (``columns_of``) into a store."""
        return cls(joined(parts))

    @classmethod
    def open(cls, folder: str | Path, key: str) -> PairStore:
        """Open a store on disk, mapped into memory and shared by all processes that open it.

        Args:
            folder: of the store.
            key: of what its pairs must have been computed from.

        Raises:
            ValueError: a file is missing, truncated or altered, or the store has another key;
                names the file.
        """
        folder = Path(folder)
        try:
            content = json.loads((folder / "store.json").read_text(encoding="utf-8"))
            facts, files = content["facts"], content["columns"]
            origin = content["format"], content["key"]
            expected = {name: (files[name]["bytes"], files[name]["crc32"]) for name in files}
            dtypes = {name: np.dtype(dtype_of(name)) for name in files}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{folder / 'store.json'} cannot be read: {error!r}") from None
        if origin != (FORMAT, key):
            raise ValueError(f"{folder} holds pairs of other data or settings")
        columns = {}
        for name, (size, checksum) in expected.items():
            path = folder / f"{name}.bin"
            if not path.is_file():
                raise ValueError(f"{path} is missing")
            if path.stat().st_size != size:
                raise ValueError(f"{path} has {path.stat().st_size} bytes, expected {size}")
            columns[name] = (
                np.memmap(path, dtypes[name], "r") if size else np.empty(0, dtypes[name])
            )
            if zlib.crc32(columns[name].view(np.uint8).data) != checksum:
                raise ValueError(f"{path} was altered: its checksum is not that of store.json")
        return cls(columns, facts=facts)


@contextlib.contextmanager
def _quiet_about_read_only():
    """Silence torch's warning of read-only arrays, such as those mapped from disk: nothing writes
    to them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        yield


class StoreWriter:
    """Writes a store crystal by crystal, in bounded memory, complete or not at all.

    Use it as a context manager, one at a time per folder. The folder gets its name when the block
    ends without an error.
    """

    def __init__(self, folder: str | Path, key: str) -> None:
        self.folder = Path(folder)
        self.key = key
        self.facts: dict[str, Any] = {}  # anything JSON holds, kept beside the columns
        self._temporary = self.folder.with_name(f".{self.folder.name}.tmp")
        self._files: dict[str, Any] = {}
        self._crc: dict[str, int] = {}

    def __enter__(self) -> StoreWriter:
        shutil.rmtree(self._temporary, ignore_errors=True)  # of one that was killed
        self._temporary.mkdir(parents=True)
        for name in COLUMNS:
            self._open(name)
        return self

    def _open(self, name: str) -> None:
        self._files[name] = open(self._temporary / f"{name}.bin", "wb")
        self._crc[name] = 0

    def add(self, columns: Columns) -> None:
        """Append the columns of one crystal or of a batch (``columns_of``)."""
        for name, values in columns.items():
            if name not in self._files:
                self._open(name)
            data = np.ascontiguousarray(values).view(np.uint8)
            self._files[name].write(data)
            self._crc[name] = zlib.crc32(data.data, self._crc[name])

    def __exit__(self, kind: type | None, *_: object) -> None:
        sizes = {name: file.tell() for name, file in self._files.items()}
        for file in self._files.values():
            file.close()
        if kind is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
            return
        columns = {k: {"bytes": sizes[k], "crc32": self._crc[k]} for k in sizes}
        facts = {"format": FORMAT, "key": self.key, "columns": columns, "facts": self.facts}
        (self._temporary / "store.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        shutil.rmtree(self.folder, ignore_errors=True)
        os.replace(self._temporary, self.folder)
