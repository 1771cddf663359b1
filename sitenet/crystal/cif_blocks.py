"""CIF text: decoded, and split into data blocks with the values of the tags that matter."""

from __future__ import annotations

import functools
import math
import re
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gemmi


@dataclass(frozen=True)
class Limits:
    """Limits beyond which a file is refused.

    Attributes:
        file_bytes: size of a file, and of its content where it is compressed.
        sites: sites of the cell, with symmetry expanded.
        edge: length of a cell vector, angstrom.
        site_volume: least volume of the cell per atom, cubic angstrom.
    """

    file_bytes: int = 100_000_000
    sites: int = 50_000
    edge: float = 2000.0
    site_volume: float = 1.0


class Unreadable(Exception):
    """Why a block cannot be read; becomes a CifError, which names the file and the block.

    Args:
        reason: what is wrong.
        kind: short fixed phrase, the same for all files with such a fault.
    """

    def __init__(self, reason: str, kind: str = "unreadable CIF") -> None:
        super().__init__(reason)
        self.kind = kind


def shown(text: str, most: int = 60) -> str:
    """A text of the file in quotes, cut off where it is long, for messages."""
    return repr(text if len(text) <= most else text[: most - 3] + "...")


def number_problem(text: str) -> str:
    """A text that is no number, in quotes, with a guess at the reason."""
    comma = re.fullmatch(r"\s*[+-]?\d*,\d+(\(\d+\))?\s*", text)
    return shown(text) + (" (a decimal comma?)" if comma else "")


def read_text(source: bytes | Path, limits: Limits) -> str:
    """Decode a file or its bytes, which may be gzipped, in UTF-8, UTF-16 or Latin-1.

    Raises:
        Unreadable: it is larger than the limits allow, or broken.
        OSError: there is no such file.
    """
    if isinstance(source, Path):
        with open(source, "rb") as file:
            data = file.read(limits.file_bytes + 1)
        if len(data) > limits.file_bytes:
            raise Unreadable(f"larger than {limits.file_bytes} bytes (limit)", "file too large")
    else:
        data = source
    if data.startswith(b"\x1f\x8b"):
        data = _unpacked(data, limits)
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1")


MOST_MEMBERS = 1000  # per gzip file: unpacking each copies all that follows it


def _unpacked(data: bytes, limits: Limits) -> bytes:
    """Unpack a gzip file: the contents of its members, one after another."""
    text = b""
    for _ in range(MOST_MEMBERS):
        unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)  # with the header of gzip
        try:
            text += unpacker.decompress(data, limits.file_bytes + 1 - len(text))
        except zlib.error as error:
            raise Unreadable(f"not a sound gzip file: {error}", "damaged gzip file") from None
        if len(text) > limits.file_bytes:
            raise Unreadable(
                f"unpacks to more than {limits.file_bytes} bytes (limit)", "file too large"
            )
        if not unpacker.eof:
            raise Unreadable(
                "not a sound gzip file: it does not end where it should", "damaged gzip file"
            )
        data = unpacker.unused_data
        if not data:
            return text
    raise Unreadable(
        f"a gzip file of more than {MOST_MEMBERS} members (limit)", "damaged gzip file"
    )


# Tags in lower case, with an underscore for the dot of later dictionaries.
LENGTHS = tuple(f"_cell_length_{x}" for x in "abc")
ANGLES = tuple(f"_cell_angle_{x}" for x in ("alpha", "beta", "gamma"))
VOLUME = "_cell_volume"
UNITS = {"": 1.0, "_pm": 0.01, "_nm": 10.0}  # endings of lengths; angstrom per unit
FRACT = tuple(f"_atom_site_fract_{x}" for x in "xyz")
CARTN = "_atom_site_cartn_x"
LABEL, SYMBOL = "_atom_site_label", "_atom_site_type_symbol"
OCCUPANCY, FLAG = "_atom_site_occupancy", "_atom_site_calc_flag"
HYDROGENS = "_atom_site_attached_hydrogens"
ASSEMBLY, GROUP = "_atom_site_disorder_assembly", "_atom_site_disorder_group"
CHARGED, CHARGES = "_atom_type_symbol", "_atom_type_oxidation_number"
FORMULA, FORMULA_UNITS = "_chemical_formula_sum", "_cell_formula_units_z"
WEIGHT = "_chemical_formula_weight"
DENSITY = "_exptl_crystal_density_diffrn"
MODULATION = "_cell_modulation_dimension"
OPERATIONS = (
    "_space_group_symop_operation_xyz",
    "_symmetry_equiv_pos_as_xyz",
    "_space_group_symop_magn_operation_xyz",
)
CENTERINGS = "_space_group_symop_magn_centering_xyz"
HALL = ("_space_group_name_hall", "_symmetry_space_group_name_hall")
NAMES = (
    "_space_group_name_h-m_alt",
    "_symmetry_space_group_name_h-m",
    "_space_group_name_h-m_full",
    "_space_group_name_h-m_ref",
    "_space_group_name_h-m",
)
GROUP_NUMBERS = ("_space_group_it_number", "_symmetry_int_tables_number")
SCHOENFLIES = ("_space_group_name_schoenflies", "_symmetry_space_group_name_schoenflies")
ANY_SYMMETRY = (
    "_space_group",
    "_symmetry",
    "_magnetic_space_group",
)  # to notice what is not understood
_WANTED = {
    *(tag + unit for tag in LENGTHS for unit in UNITS),
    *(*ANGLES, VOLUME, *FRACT, CARTN, LABEL, SYMBOL, OCCUPANCY, FLAG, HYDROGENS, CHARGED, CHARGES),
    *(
        ASSEMBLY,
        GROUP,
        FORMULA,
        FORMULA_UNITS,
        WEIGHT,
        DENSITY,
        MODULATION,
        *OPERATIONS,
        CENTERINGS,
    ),
    *(*HALL, *NAMES, *GROUP_NUMBERS, *SCHOENFLIES),
}
_SINGLE = frozenset((*LENGTHS, *ANGLES, *FRACT, LABEL, SYMBOL, OCCUPANCY, *OPERATIONS))


def _is_wanted(tag: str) -> bool:
    return tag in _WANTED or tag.startswith(ANY_SYMMETRY)


@dataclass
class Block:
    """A data block: its wanted tags with their values, unquoted, and what is wrong with it."""

    name: str
    columns: dict[str, list[str]] = field(default_factory=dict)
    problem: str | None = None

    def add(self, tag: str, column: list[str]) -> None:
        """Add the values of a tag. If it comes again, the first count; some must not differ."""
        if self.columns.setdefault(tag, column) != column and tag in _SINGLE:
            self.problem = f"{tag} is given twice, with different values"

    def value(self, *tags: str) -> str | None:
        """The value of the first of the tags that has one."""
        for tag in tags:
            column = self.columns.get(tag)
            if column and (text := column[0].strip(_SPACE_AND_QUOTES)) not in UNKNOWN:
                return text
        return None

    def number(self, tag: str) -> float | None:
        """The value of a tag if it is a finite number."""
        number = gemmi.cif.as_number(self.value(tag) or "?")
        return number if math.isfinite(number) else None


UNKNOWN = frozenset(("?", ".", ""))
_SPACE_AND_QUOTES = " \t\r\n'\""


def read_blocks(text: str, limits: Limits) -> list[Block]:
    """Split a CIF into data blocks. Text that breaks the rules is read as far as it is clear.

    Raises:
        Unreadable: the text is too long.
    """
    if len(text) > limits.file_bytes:
        raise Unreadable(f"longer than {limits.file_bytes} characters (limit)", "file too large")
    try:
        document = gemmi.cif.read_string(text, 0)
    except (ValueError, RuntimeError):
        return _read_leniently(text)
    blocks = []
    for parsed in document:
        block = Block(parsed.name.strip())
        item: Any  # gemmi's type hints know no item without a pair
        for item in parsed:
            if item.pair is not None:
                tag = _normal(item.pair[0])
                if _is_wanted(tag):
                    block.add(tag, [_plain(item.pair[1])])
            elif item.loop is not None:
                loop = item.loop
                tags = [_normal(tag) for tag in loop.tags]
                if not any(map(_is_wanted, tags)):
                    continue
                if loop.length() > limits.sites:
                    lines = f"{loop.length()} lines, more than {limits.sites} (limit)"
                    block.problem = f"the loop of {tags[0]:.60} has {lines}"
                    continue
                values = loop.values
                for k, tag in enumerate(tags):
                    if _is_wanted(tag):
                        column = values[k :: len(tags)]
                        if tag not in FRACT:
                            column = [_plain(x) if x[:1] in _QUOTES else x for x in column]
                        block.add(tag, column)
        blocks.append(block)
    return blocks


_QUOTES = frozenset("'\";")


@functools.lru_cache(4096)
def _normal(tag: str) -> str:
    return tag.lower().replace(".", "_").replace("name_h_m", "name_h-m")


def _plain(value: str) -> str:
    return gemmi.cif.as_string(value) if value[:1] in _QUOTES else value


_TOKEN = re.compile(
    r"""^;(?P<field>[^\n]*(?:\n(?!;)[^\n]*)*)(?:\n;|\Z)
    | \#[^\n]*
    | '(?P<single>(?:[^'\n]|'(?=\S))*)'(?=\s|\Z)
    | "(?P<double>(?:[^"\n]|"(?=\S))*)"(?=\s|\Z)
    | (?P<open>['"][^\n]*)
    | (?P<word>\S+)""",
    re.MULTILINE | re.VERBOSE,
)
_LENIENT_BYTES = 10_000_000  # a few seconds of work


def _read_leniently(text: str) -> list[Block]:
    """Split text that breaks the rules. Quotes that do not close end with their line, values that
    belong to no tag are skipped, and only loops that matter must have whole lines."""
    if len(text) > _LENIENT_BYTES:
        raise Unreadable("not a CIF, and too large to be read leniently", "file too large")
    blocks = [Block("")]
    tags: list[str] = []
    values: list[str] = []
    is_loop = False

    def finish() -> None:
        if values and any(map(_is_wanted, tags)):
            if len(values) % len(tags):
                blocks[-1].problem = f"the loop of {tags[0]:.60} has no whole number of lines"
            else:
                for k, tag in enumerate(tags):
                    if _is_wanted(tag):
                        blocks[-1].add(tag, values[k :: len(tags)])
        tags.clear()
        values.clear()

    for token in _TOKEN.finditer(text):
        kind, value = token.lastgroup, token[token.lastgroup] if token.lastgroup else ""
        lower = value.lower() if kind == "word" else ""
        if kind is None:
            continue
        if lower.startswith(("data_", "save_")) or lower in ("global_", "stop_", "loop_"):
            finish()
            is_loop = lower == "loop_"
            if lower.startswith("data_"):
                blocks.append(Block(value[5:]))
        elif lower.startswith("_"):
            if values or not is_loop:
                finish()
                is_loop = False
            tags.append(_normal(value))
        elif tags and (is_loop or not values):
            values.append(value)
    finish()
    return blocks if blocks[0].columns or blocks[0].problem else blocks[1:]


def has_sites(block: Block) -> bool:
    """Whether a block lists atoms with fractional coordinates, or tries to."""
    if block.problem is not None:
        return True
    return any(x not in UNKNOWN for x in block.columns.get(FRACT[0], ()))
