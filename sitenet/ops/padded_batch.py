"""Batches of crystals from a store of pairs, padded to fixed sizes, without reading a value.

``csrc/padded_batch.h`` states the layout and how what is left over is shared. On a CPU plain torch
does it, some seventy operations; on a GPU two kernels do.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from sitenet.ops import _C, check, checks, library
from sitenet.ops.kernel_calls import flat, run_cuda, schema
from sitenet.ops.rows import row_of_pair


class Stored(NamedTuple):
    """The columns of a store: where each crystal's rows, each row's pairs and each crystal's images
    begin, and what each of them holds. The last of both are None without vectors."""

    row_of_crystal: Tensor
    pair_of_row: Tensor
    image_of_crystal: Tensor | None
    stored_num_sites: Tensor
    stored_images: Tensor
    stored_numbers: Tensor
    stored_oxidation: Tensor
    stored_count: Tensor
    stored_sites: Tensor
    stored_distance: Tensor
    stored_multiplicity: Tensor
    stored_vectors: Tensor | None


class Room(NamedTuple):
    """Sizes of the arrays of a batch."""

    rows: int
    pairs: int
    images: int = 0  # of which there are none without vectors


# The arrays of a batch, as in ``Pairs``; ``vectors`` has no rows without images.
GATHERED = (
    *("crystals", "num_sites", "images", "offsets", "numbers", "oxidation", "count"),
    *("sites", "distance", "multiplicity", "vectors"),
)
_Tensors = tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor
]


def _outputs(index: Tensor, stored: Stored, room: Room) -> _Tensors:
    places = index.shape[0]

    def ints(n: int) -> Tensor:
        return index.new_empty(n, dtype=torch.int32)

    def floats(*shape: int) -> Tensor:
        return index.new_empty(shape, dtype=torch.float32)

    def longs(n: int) -> Tensor:
        return index.new_empty(n)

    return (
        *(longs(places + 1), longs(places), longs(places)),
        *(longs(room.rows + 1), longs(room.rows), floats(room.rows), ints(room.rows)),
        *(ints(room.pairs), floats(room.pairs), ints(room.pairs), floats(room.images, 3)),
    )


library.define(schema("padded_batch", _outputs))
torch.library.register_fake("sitenet::padded_batch", flat(_outputs, _outputs), lib=library)

_BY_CRYSTAL = {"stored_num_sites": torch.int32, "stored_images": torch.int32}
_BY_ROW = {
    "stored_numbers": torch.uint8,
    "stored_oxidation": torch.float32,
    "stored_count": torch.int32,
}
_BY_PAIR = {
    "stored_sites": torch.int32,
    "stored_distance": torch.float32,
    "stored_multiplicity": torch.int32,
}


def _check(index: Tensor, stored: Stored, room: Room) -> None:
    """Raise TypeError or ValueError unless the columns fit together."""
    check(index, "index", ("places",), torch.int64)
    columns = {"index": index, **{k: x for k, x in stored._asdict().items() if x is not None}}
    crystals, rows = stored.stored_num_sites.shape[0], stored.stored_numbers.shape[0]
    check(stored.row_of_crystal, "row_of_crystal", (crystals + 1,), torch.int64, like=index)
    check(stored.pair_of_row, "pair_of_row", (rows + 1,), torch.int64, like=index)
    sizes = (_BY_CRYSTAL, crystals), (_BY_ROW, rows), (_BY_PAIR, stored.stored_sites.shape[0])
    for names, size in sizes:
        for name, dtype in names.items():
            check(columns[name], name, (size,), dtype, like=index)
    if (stored.stored_vectors is None) != (stored.image_of_crystal is None):
        raise ValueError("stored_vectors and image_of_crystal must both be given, or neither")
    if stored.stored_vectors is not None and stored.image_of_crystal is not None:
        check(stored.image_of_crystal, "image_of_crystal", (crystals + 1,), torch.int64, like=index)
        check(stored.stored_vectors, "stored_vectors", ("images", 3), torch.float32, like=index)
    elif room.images:
        raise ValueError(f"without vectors a batch has no images, got room for {room.images}")
    checks.check_contiguous(**columns)


def _gather_cuda(index: Tensor, stored: Stored, room: Room) -> _Tensors:
    _check(index, stored, room)
    outputs = _outputs(index, stored, room)
    shape = _C.PaddedBatchShape(
        pairs=room.pairs, images=room.images, places=index.shape[0], rows=room.rows
    )
    dtypes = torch.float32, torch.float32
    run_cuda("padded_batch", dtypes, shape, (index, *stored, *outputs))
    return outputs


def _share(place: Tensor, places: Tensor, total: Tensor) -> Tensor:
    """What each place gets if some places share a number evenly, in whole parts."""
    places = places.clamp(min=1)
    return (place + 1) * total // places - place * total // places


def _begins(lengths: Tensor) -> Tensor:
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))


def _gather_cpu(index: Tensor, stored: Stored, room: Room) -> _Tensors:
    _check(index, stored, room)
    device, padding = index.device, index < 0
    index = torch.where(padding, -1 - index, index)
    first_row = stored.row_of_crystal[index]
    lengths = torch.where(padding, 1, stored.row_of_crystal[index + 1] - first_row)
    lengths[-1] += room.rows - lengths.sum()
    crystals = _begins(lengths)
    crystal = row_of_pair(crystals, room.rows)
    row = torch.arange(room.rows, device=device)
    added_rows = padding[crystal]
    rows = torch.where(added_rows, first_row[-1], first_row[crystal] + row - crystals[crystal])
    lengths = stored.pair_of_row[rows + 1] - stored.pair_of_row[rows]
    lengths = torch.where(added_rows, 0, lengths)
    missing, places = room.pairs - lengths.sum(), added_rows.sum()
    share = _share(row - (room.rows - places), places, missing)
    offsets = _begins(torch.where(added_rows, share, lengths))
    row = row_of_pair(offsets, room.pairs)
    added = added_rows[row]
    pairs = stored.pair_of_row[rows[row]] - offsets[row] + torch.arange(room.pairs, device=device)
    pairs = torch.where(added, 0, pairs)
    sites = torch.where(added, row, stored.stored_sites[pairs] + crystals[crystal[row]]).int()
    distance = torch.where(added, 1.0, stored.stored_distance[pairs])
    multiplicity = torch.where(added, 1, stored.stored_multiplicity[pairs])
    vectors = distance.new_empty(0, 3)
    if stored.image_of_crystal is not None and stored.stored_vectors is not None:
        first = stored.image_of_crystal[index]
        begin = _begins(torch.where(padding, 0, stored.image_of_crystal[index + 1] - first))
        image = torch.arange(room.images, device=device)
        further = image >= begin[-1]
        crystal = row_of_pair(begin, room.images).clamp(max=len(index) - 1)
        source = torch.where(further, 0, first[crystal] + image - begin[crystal])
        vectors = stored.stored_vectors[source].masked_fill(further[:, None], 0.0)
        place = torch.arange(room.pairs, device=device) - (room.pairs - missing)
        share = _share(place, missing, room.images - begin[-1])
        multiplicity = torch.where(added, share.int(), multiplicity)
    return (
        *(crystals, stored.stored_num_sites[index].long(), stored.stored_images[index].long()),
        *(offsets, stored.stored_numbers[rows].long(), stored.stored_oxidation[rows]),
        *(stored.stored_count[rows], sites, distance, multiplicity, vectors),
    )


IMPLEMENTATIONS: dict[str, Callable] = {
    "CPU": flat(_gather_cpu, _outputs),
    "CUDA": flat(_gather_cuda, _outputs),
}
for _device, _function in IMPLEMENTATIONS.items():
    library.impl("padded_batch", _function, _device)

_ops = torch.ops.sitenet


def padded_batch(index: Tensor, stored: Stored, room: Room) -> dict[str, Tensor]:
    """Gather the rows, pairs and images of some crystals into arrays of fixed sizes.

    Args:
        index: (crystals,) int64, numbers in the store; see ``PairStore.padded_batch``.
        stored: the columns of the store.
        room: sizes of the arrays; see ``PairStore.padded_batch``.

    Returns:
        The arrays that ``GATHERED`` names.

    Raises:
        TypeError, ValueError: a column of the wrong dtype, shape or device.
    """
    return dict(zip(GATHERED, _ops.padded_batch(index, *stored, *room), strict=True))
