"""Files as bytes, tables and JSON lines, with errors that name the file and the line.

A message never holds what a line says: it may be a user's words.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

import polars as pl

from shared.errors import DataError, SchemaError

GZIP_MAGIC = b"\x1f\x8b"
PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True, slots=True)
class Table:
    """Columns of a file, and how to name a place in it.

    Parameters
    ----------
    path : pathlib.Path
        The file.
    frame : polars.DataFrame
        Its rows; text columns only, unless it is a parquet file.
    line_of : callable
        From a row of `frame` to the line of the file (1-based), or to the row of a parquet file.
    """

    path: Path
    frame: pl.DataFrame
    line_of: Callable[[int], int]

    def require(self, *columns: str, hint: str = "") -> None:
        """Raise `SchemaError` naming those of `columns` that the file does not have."""
        missing = [column for column in columns if column not in self.frame.columns]
        if missing:
            raise SchemaError(
                f"{self.path}: Expected column(s) {', '.join(missing)}, not among the {self.frame.width} found.{hint}"
            )

    def bad_cell(self, row: int, column: str, expected: str) -> SchemaError:
        """The error of one cell: names file, line and column, never the value."""
        return SchemaError(f"{self.path}, row {self.line_of(row)}, column {column}: Expected {expected}.")


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn what the system or gzip says of an unreadable file into one `DataError`."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: Expected a file, there is none.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile):
        raise DataError(f"{path}: Expected a whole gzip file; it is damaged or cut short.") from None
    except OSError as error:
        raise DataError(f"{path}: Expected a readable file: {error.strerror}.") from None


def opened(path: Path) -> IO[bytes]:
    """The file for reading in binary; unpacked on the way when it is gzip (told by content, not by name)."""
    with path.open("rb") as file:
        packed = file.read(2) == GZIP_MAGIC
    # A GzipFile reads like any binary file, which typeshed does not say of it.
    return cast(IO[bytes], gzip.open(path, "rb")) if packed else path.open("rb")


def head(path: Path, size: int = 65536) -> bytes:
    """The first bytes of a file, unpacked; `DataError` when it is empty."""
    with reading(path), opened(path) as file:
        start = file.read(size)
    if not start.strip():
        raise DataError(f"{path}: Expected data, the file is empty.")
    return start


def json_objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number (1-based) and object of each line that is not blank."""
    found = False
    with reading(path), opened(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            found = True
            yield number, _json_object(path, number, line)
    if not found:
        raise DataError(f"{path}: Expected data, the file is empty.")


def _json_object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError:
        raise DataError(f"{path}, row {number}: Expected UTF-8 text.") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path}, row {number}: Expected one JSON object a line, this is not valid JSON.") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}, row {number}: Expected one JSON object a line, got another JSON value.")
    return value


def as_text(value: object) -> str | None:
    """A JSON scalar as text, None for null; ``TypeError`` for a list or object."""
    if value is None or isinstance(value, str):
        # JSON may hold half a surrogate pair, which no UTF-8 text can.
        return value if value is None or value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, bool | int | float):
        return str(value)
    raise TypeError


def json_table(path: Path, columns: Sequence[str], *, rows_at_once: int = 200_000) -> Table:
    """The named columns of a file of JSON lines as text; those that no line has are left out."""
    lines: list[int] = []
    chunks: list[pl.DataFrame] = []
    cells: dict[str, list[str | None]] = {column: [] for column in columns}
    seen: set[str] = set()
    for number, record in json_objects(path):
        seen.update(record.keys() & cells.keys())
        for column, values in cells.items():
            try:
                values.append(as_text(record.get(column)))
            except TypeError:
                raise SchemaError(f"{path}, row {number}, column {column}: Expected text or a number.") from None
        lines.append(number)
        if len(lines) % rows_at_once == 0:
            chunks.append(_text_frame(cells))
            cells = {column: [] for column in columns}
    chunks.append(_text_frame(cells))
    frame = pl.concat(chunks).select([column for column in columns if column in seen])
    return Table(path, frame, lines.__getitem__)


def _text_frame(cells: dict[str, list[str | None]]) -> pl.DataFrame:
    return pl.DataFrame(cells, schema=dict.fromkeys(cells, pl.String))


def delimited_table(
    path: Path,
    separator: str,
    *,
    names: Sequence[str] | None = None,
    encoding: str = "utf-8",
    quoted: bool = True,
) -> Table:
    """A file of separated columns, all as text. Blank lines are skipped, yet counted as lines.

    Parameters
    ----------
    path : pathlib.Path
        The file, plain or gzip.
    separator : str
        One character, or ``::``.
    names : sequence of str, optional
        The columns of a file without a header line.
    encoding : str
        ``utf-8`` or ``latin-1``.
    quoted : bool
        Whether double quotes may enclose a value.
    """
    text = _decoded(path, encoding).replace("::", "\x1f") if separator == "::" else _decoded(path, encoding)
    sep = "\x1f" if separator == "::" else separator
    layout = _Layout(text, sep, quoted, header=names is None)
    try:
        frame = pl.read_csv(
            text.encode(),
            separator=sep,
            has_header=names is None,
            quote_char='"' if quoted else None,
            infer_schema=False,
        )
    except pl.exceptions.PolarsError:
        raise DataError(
            f"{path}, row {layout.first_bad_line()}: Expected as many columns as in the first line, "
            "and every quote closed."
        ) from None
    if names is not None:
        if frame.width != len(names):
            raise SchemaError(f"{path}: Expected columns={len(names)} without a header, got columns={frame.width}.")
        frame.columns = list(names)
    filled = ~pl.all_horizontal(pl.all().is_null())
    records = frame.select(filled.arg_true()).to_series()
    if records.is_empty():
        raise DataError(f"{path}: Expected at least one row, the file has none.")
    return Table(path, frame.filter(filled), lambda row: layout.line_of(int(records[row])))


def _decoded(path: Path, encoding: str) -> str:
    with reading(path), opened(path) as file:
        data = file.read()
    if not data.strip():
        raise DataError(f"{path}: Expected data, the file is empty.")
    try:
        return data.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, row {line}: Expected UTF-8 text.") from None


@dataclass(frozen=True, slots=True)
class _Layout:
    """Finds the line of a record. Records may span lines, so this reads again; only errors ask for it."""

    text: str
    separator: str
    quoted: bool
    header: bool

    def _reader(self) -> Any:
        lines = io.StringIO(self.text, newline="")
        if self.quoted:
            return csv.reader(lines, delimiter=self.separator, strict=True)
        return csv.reader(lines, delimiter=self.separator, quoting=csv.QUOTE_NONE, strict=True)

    def line_of(self, record: int) -> int:
        """First line of a record, 1-based; records count from 0 after the header."""
        reader = self._reader()
        for _ in range(record + self.header):
            next(reader)
        return int(reader.line_num) + 1

    def first_bad_line(self) -> int:
        """First line of the first record with more columns than the first, or with a broken quote."""
        reader = self._reader()
        start, width = 1, None
        try:
            for record in reader:
                width = width or len(record)
                if len(record) > width:
                    return start
                start = int(reader.line_num) + 1
        except csv.Error:
            pass
        return start


def parquet_table(path: Path, columns: Sequence[str] | None = None) -> Table:
    """A parquet file, or those of `columns` that it has; a row's number stands for its line.

    Opened once: an import may rename another file in its place at any time.
    """
    with reading(path), path.open("rb") as file:
        try:
            names = list(pl.read_parquet_schema(file))
            wanted = names if columns is None else [name for name in names if name in columns]
            file.seek(0)
            frame = pl.read_parquet(file, columns=wanted)
        except pl.exceptions.PolarsError:
            raise DataError(f"{path}: Expected a whole parquet file; it is damaged or cut short.") from None
    return Table(path, frame, lambda row: row + 1)
