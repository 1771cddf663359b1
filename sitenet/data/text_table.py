"""Tables in text files: encoding, separator, header and decimal commas, read when unambiguous.

A separator is taken if it divides the header and every row has as many cells as the header. A
comma in a number is a decimal comma only in tables that are separated by something else.
"""

from __future__ import annotations

import codecs
import csv
import functools
import gzip
import io
import re
import sys
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from sitenet.data.archives import stored

_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "vertical bar"}
_DIRECTIVE = re.compile(r'"?sep=(.)"?\r?\n', re.IGNORECASE)  # Excel's first line
_BOMS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32-le",  # before that of UTF-16, which it begins with
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}

_WITH_COMMA = re.compile(r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?")
_WITH_POINT = re.compile(r"[+-]?\d*\.\d*(?:[eE][+-]?\d+)?")
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")  # 1,234 may also be 1234


@dataclass(frozen=True)
class TextTable:
    """A table of text cells.

    Attributes:
        path: of the file.
        header: names of the columns; those without one are called ``Unnamed: 0`` and so on.
        rows: the number of each row, counted from 1, and its cells.
        separator: between cells.
    """

    path: Path
    header: list[str]
    rows: list[tuple[int, list[str]]]
    separator: str

    def column(self, name: str) -> list[str]:
        """The cells of a column, decimal commas as points where that is what they are.

        Raises:
            ValueError: it is unclear whether commas in its numbers are decimal commas.
        """
        place = self.header.index(name)
        cells = [row[place].strip() for _, row in self.rows]
        commas = [k for k, cell in enumerate(cells) if _WITH_COMMA.fullmatch(cell)]
        if self.separator == "," or not commas:
            return cells
        points = [k for k, cell in enumerate(cells) if _WITH_POINT.fullmatch(cell)]
        if points:
            first, other = (f"{cells[k]} in row {self.rows[k][0]}" for k in (commas[0], points[0]))
            raise ValueError(
                f"{self.path}: column {name} has both decimal commas and points: {first}, {other}"
            )
        if not self._has_decimal_commas:
            k = commas[0]
            raise ValueError(
                f"{self.path} row {self.rows[k][0]}: {cells[k]} in column {name} may be "
                f"{cells[k].replace(',', '.')} or {cells[k].replace(',', '')}; write it with a "
                "point or without the comma"
            )
        for k in commas:
            cells[k] = cells[k].replace(",", ".")
        return cells

    @functools.cached_property
    def _has_decimal_commas(self) -> bool:
        """Whether a number in the table has a comma that cannot separate thousands."""
        return any(
            _WITH_COMMA.fullmatch(cell.strip()) and not _THOUSANDS.fullmatch(cell.strip())
            for _, row in self.rows
            for cell in row
        )


def read_text_table(path: Path, is_header: Callable[[Sequence[str]], bool]) -> TextTable:
    """Read a table in UTF-8, UTF-16, UTF-32 or Latin-1, also gzipped.

    Args:
        path: of the file.
        is_header: tells from the cells of the first row whether it names the columns; if it does
            not, they are called id, target, target1, target2, ..., as in CGCNN's ``id_prop.csv``.

    Raises:
        ValueError: it is not a text file, rows differ in length, or the separator is unclear.
    """
    text = _decoded(path)
    directive = _DIRECTIVE.match(text)
    if directive:
        text = text[directive.end() :]
    separators = [directive[1]] if directive else _likely_separators(text)
    tables, errors = [], []
    for separator in separators:
        try:
            tables.append(_split(path, text, separator, is_header, bool(directive)))
        except ValueError as error:
            errors.append(error)
    if len(tables) > 1:
        names = " and ".join(_SEPARATORS[x] for x in separators)
        raise ValueError(f"{path}: the separator is unclear, {names} both divide every row")
    if not tables:
        raise errors[0]
    return tables[0]


def _decoded(path: Path) -> str:
    content = stored(path)
    data = content if isinstance(content, bytes) else content.read_bytes()
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path} is damaged or not a CSV file: {error}") from None
    bom = next((bom for bom in _BOMS if data.startswith(bom)), b"")
    data = data[len(bom) :]
    if not bom and b"\0" in data[:4096]:
        raise ValueError(
            f"{path} is damaged or not a CSV file: it is neither UTF-8 nor UTF-16 with a byte "
            "order mark"
        )
    encoding = _BOMS.get(bom, "utf-8")
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        if bom:
            row = data[: error.start].decode(encoding, "ignore").count("\n") + 1
            raise ValueError(
                f"{path} row {row} is damaged: not {encoding.upper()}: {error.reason}"
            ) from None
    try:  # Latin-1 as Windows has it, without the codes that stand for nothing
        return data.decode("cp1252")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path} row {row} is damaged or not a CSV file: byte {data[error.start]:#x} is "
            "neither UTF-8 nor Latin-1"
        ) from None


def _rows(text: str, separator: str) -> list[tuple[int, list[str]]]:
    """Rows that are not blank, with their numbers."""
    limit = csv.field_size_limit(sys.maxsize)  # of a CIF in a cell
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
        return [(k, row) for k, row in enumerate(reader, 1) if any(map(str.strip, row))]
    finally:
        csv.field_size_limit(limit)


def _likely_separators(text: str) -> list[str]:
    """Those that divide the first row, the one that divides it most often first."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    counts = {x: len(next(csv.reader([first], delimiter=x), [])) for x in _SEPARATORS}
    likely = [x for x in _SEPARATORS if counts[x] > 1]
    return sorted(likely, key=lambda x: -counts[x]) or [","]


def _split(
    path: Path,
    text: str,
    separator: str,
    is_header: Callable[[Sequence[str]], bool],
    skipped_line: bool,
) -> TextTable:
    try:
        rows = _rows(text, separator)
    except csv.Error as error:
        raise ValueError(f"{path} is damaged or not a CSV file: {error}") from None
    if not rows:
        raise ValueError(f"{path} is empty")
    rows = [(number + skipped_line, row) for number, row in rows]
    header = [cell.strip() for cell in rows[0][1]]
    if is_header(header):
        rows = rows[1:]
        while header and not header[-1] and not any(row[len(header) - 1 :] for _, row in rows):
            header.pop()
        header = [cell or f"Unnamed: {k}" for k, cell in enumerate(header)]
    else:
        header = ["id", *(f"target{k or ''}" for k in range(len(header) - 1))]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise ValueError(f"{path}: two columns have one name: {', '.join(twice)}")
    for number, row in rows:
        while len(row) > len(header) and not row[-1].strip():
            row.pop()
        if len(row) != len(header):
            name = _SEPARATORS.get(separator, repr(separator))
            raise ValueError(
                f"{path} row {number}: expected {len(header)} cells, got {len(row)} "
                f"(separator: {name})"
            )
    return TextTable(path, header, rows, separator)
