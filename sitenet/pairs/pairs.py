"""The pairs of one crystal or of a batch, as CSR rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from sitenet.ops.checks import can_read
from sitenet.pairs.check import check_pairs

# Tensors that hold indices into rows, and what each is shifted by when crystals are batched.
_INDICES = {
    "offsets": "num_pairs",
    "crystals": "num_rows",
    "sites": "num_rows",
    "orbit": "num_rows",
    "mixed_rows": "num_rows",
}
# What only crystals with disorder have; a batch has it if one of them does.
MIXED = ("mixed_rows", "mixed_numbers", "mixed_shares")


@dataclass(eq=False)
class Pairs:
    """All pairs of a crystal, or of a batch of crystals, as CSR rows.

    A row is an orbit: sites of one crystal that no Site-Net can tell apart (unmerged: one site).
    A pair (row i, orbit j, distance d) stands for its multiplicity of supercell sites of orbit j
    at distance d from a site of orbit i. The self pair has distance 0, and no other pair has.
    With disorder, species that share a place are one site.

    Attributes:
        offsets: (rows + 1,) int64, where each row's pairs begin; shorter where only the rows from
            ``first_row`` on are held.
        sites: (pairs,) int32, the row of orbit j; ascending within a row, then by distance.
            Unmerged: supercell order.
        distance: (pairs,) float64, periodic minimum-image distance in angstrom.
        multiplicity: (pairs,) int32.
        numbers: (rows,) int64, atomic numbers; of a disordered site, that of its main species.
        oxidation: (rows,) float64, oxidation states, 0 where unknown; their mean over species.
        count: (rows,) int32, sites of the cell in the orbit.
        orbit: (sites,) int32, the row that stands for each site of the cell; with disorder, for
            each row of the crystal.
        crystals: (crystals + 1,) int64, where each crystal's rows begin.
        num_sites: (crystals,) int64, sites of the cell.
        images: (crystals,) int64, supercell sites per site.
        vectors: (images, 3) float32, in angstrom, from a row's site to the images that its pairs
            stand for: ``multiplicity`` of them per pair, in the order of the pairs; zero for the
            self pair. None unless asked for (spheres only).
        sine_distance: (pairs,) float64, the length of sin^2(pi f) A over the supercell A with
            fractional displacement f, in angstrom; None unless asked for (unmerged pairs only).
        mixed_rows: (species,) int64, rows of disordered sites, one entry a species; None where all
            are ordered.
        mixed_numbers: (species,) int64, the species' atomic numbers.
        mixed_shares: (species,) float64, what a species adds to a row that holds ``numbers`` alone:
            its occupancy, less 1 for the main species.
        first_row: the row that ``offsets`` begins with.
    """

    offsets: torch.Tensor
    sites: torch.Tensor
    distance: torch.Tensor
    multiplicity: torch.Tensor
    numbers: torch.Tensor
    oxidation: torch.Tensor
    count: torch.Tensor
    orbit: torch.Tensor
    crystals: torch.Tensor
    num_sites: torch.Tensor
    images: torch.Tensor
    sine_distance: torch.Tensor | None = None
    mixed_rows: torch.Tensor | None = None
    mixed_numbers: torch.Tensor | None = None
    mixed_shares: torch.Tensor | None = None
    first_row: int = 0
    vectors: torch.Tensor | None = None
    # Identity and version of the tensors that ``check`` has passed.
    _checked: tuple[Any, ...] | None = field(default=None, init=False, repr=False)

    @property
    def num_crystals(self) -> int:
        return self.num_sites.numel()

    @property
    def num_rows(self) -> int:
        return self.numbers.numel()

    @property
    def num_pairs(self) -> int:
        return self.sites.numel()

    @property
    def rows(self) -> torch.Tensor:
        """The row of each pair, (pairs,) int64."""
        rows = torch.arange(self.offsets.numel() - 1, device=self.offsets.device) + self.first_row
        return torch.repeat_interleave(rows, self.offsets.diff(), output_size=self.num_pairs)

    def images_of_rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The images that each row's pairs stand for, in the order of ``vectors``.

        Returns:
            (rows + 1,) int64, where each row's images begin; (images,) int32, the row of each
            image's site.

        Raises:
            ValueError: the pairs have no ``vectors``.
        """
        if self.vectors is None:
            raise ValueError("these pairs have no vectors: find_pairs(..., vectors=True) adds them")
        multiplicity = self.multiplicity.long()
        first = torch.nn.functional.pad(multiplicity.cumsum(0), (1, 0))
        sites = torch.repeat_interleave(self.sites, multiplicity, output_size=len(self.vectors))
        return first[self.offsets], sites

    @staticmethod
    def batch(pairs: Sequence[Pairs]) -> Pairs:
        """The pairs of several crystals in one.

        Args:
            pairs: pairs of crystals or of batches, all on one device, with all their rows.

        Returns:
            Pairs of all the crystals in order.

        Raises:
            ValueError: there are none, or some hold only a part of their rows.
        """
        if not pairs:
            raise ValueError("pairs must hold at least one crystal, got none")
        if any(p.offsets.numel() != p.num_rows + 1 for p in pairs):
            raise ValueError("pairs must hold all rows of their crystals, got a part of them")
        shifts = {"num_pairs": 0, "num_rows": 0}
        parts: dict[str, list[torch.Tensor]] = {name: [] for name in _TENSORS}
        for p in pairs:
            for name in _TENSORS:
                value = getattr(p, name)
                if value is None:
                    continue
                if name in ("offsets", "crystals") and parts[name]:
                    value = value[1:]
                if name in _INDICES and shifts[_INDICES[name]]:
                    value = value + shifts[_INDICES[name]]
                parts[name].append(value)
            for size in shifts:
                shifts[size] += getattr(p, size)
        for name in ("sine_distance", "vectors"):
            if len(parts[name]) not in (0, len(pairs)):
                raise ValueError(f"pairs must all have their {name}, or none of them")
        joined: dict[str, Any] = {name: torch.cat(x) for name, x in parts.items() if x}
        batch = Pairs(**joined)
        return batch.assume_checked() if all(p.is_checked for p in pairs) else batch

    def mix(self, x: torch.Tensor, of_species: torch.Tensor | None) -> torch.Tensor:
        """Averages over the species of disordered sites; a vacancy counts as zero.

        Args:
            x: (rows, ...) of the elements ``numbers``.
            of_species: (species, ...), the same of the elements ``mixed_numbers``; None without
                disorder.

        Returns:
            (rows, ...); x itself without disorder.
        """
        if self.mixed_rows is None or self.mixed_shares is None or of_species is None:
            return x
        shares = self.mixed_shares.to(x.dtype).view(-1, *[1] * (x.dim() - 1))
        return x.index_add(0, self.mixed_rows, shares * of_species)

    def to(
        self,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> Pairs:
        """A copy on another device, with distances and oxidation states in another dtype."""

        def move(x: torch.Tensor) -> torch.Tensor:
            kind = dtype if x.is_floating_point() else None
            return x.to(device=device, dtype=kind, non_blocking=non_blocking)

        return self._map(move)

    def pin_memory(self) -> Pairs:
        """A copy in page-locked memory, for asynchronous transfer to a GPU."""
        return self._map(torch.Tensor.pin_memory)

    def _map(self, function: Any) -> Pairs:
        values = {name: getattr(self, name) for name in _TENSORS}
        changed = {name: function(x) for name, x in values.items() if x is not None}
        copy = dataclasses.replace(self, **changed)
        return copy.assume_checked() if self.is_checked else copy

    @property
    def is_checked(self) -> bool:
        """Whether ``check`` has passed, and nothing has changed since."""
        return self._checked is not None and self._checked == self._state()

    def assume_checked(self) -> Pairs:
        """Take the tensors for right, as those that this package computes are; returns self."""
        self._checked = self._state()
        return self

    def _state(self) -> tuple[Any, ...]:
        tensors = (getattr(self, name) for name in _TENSORS)
        return self.first_row, *(
            (id(x), x._version if isinstance(x, torch.Tensor) and not x.is_inference() else 0)
            for x in tensors
        )

    def check(self) -> Pairs:
        """Check that the tensors fit together and that every index is in range; returns self.

        Models call this before kernels follow the indices. It reads values, for which a GPU is
        waited for, once until a tensor changes, and not while a CUDA graph is captured.

        Raises:
            TypeError: an attribute is no tensor, or of another dtype.
            ValueError: one has another length or device, or an index is out of range.
        """
        if can_read(self.sites) and not self.is_checked:
            check_pairs(self)
            self.assume_checked()
        return self


_TENSORS = tuple(
    f.name for f in dataclasses.fields(Pairs) if f.name not in ("first_row", "_checked")
)
