"""A file as tables of bounded size, whatever its own: large ones are cut between records into pieces first.

The cutting knows records and nothing else; what a piece says is read by the readers of `client.data.formats`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import polars as pl

from client.data.formats.columns import KNOWN_MAPPINGS, PLACEHOLDER, ColumnMapping
from client.data.formats.files import (
    PARQUET_MAGIC,
    Table,
    delimited_table,
    head,
    json_objects,
    json_table,
    opened,
    parquet_table,
    reading,
)
from client.data.ingest import SEPARATORS
from shared.errors import DataError, SchemaError

PIECE_BYTES = 32 << 20
PIECE_ROWS = 200_000


def columns_of(mapping: ColumnMapping | None) -> list[str]:
    """The columns that are read of a table: those of the mapping, or of all known ones."""
    mappings = KNOWN_MAPPINGS if mapping is None else (mapping.completed(),)
    return [*dict.fromkeys(column for known in mappings for column in known.columns), PLACEHOLDER]


def tables_of(path: Path, mapping: ColumnMapping | None, scratch: Path) -> Iterator[Table]:
    """The rows of a file, in tables of at most about `PIECE_BYTES` or `PIECE_ROWS`.

    Parameters
    ----------
    path : pathlib.Path
        CSV, TSV, parquet or JSON lines, told from the content.
    mapping : ColumnMapping, optional
    scratch : pathlib.Path
        An empty folder of the partner's own, for pieces; each is taken away after it was read.

    Raises
    ------
    SchemaError
        If the form is not understood.
    DataError
        If the file is absent, empty, damaged or not UTF-8.
    """
    start = head(path)
    first = start.lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(PARQUET_MAGIC):
        yield from _parquet(path, mapping)
    elif first.startswith(b"{"):
        for piece in _cut(path, scratch, None):
            yield _json(piece, mapping)
    else:
        line = start.lstrip(b"\xef\xbb\xbf").splitlines()[0]
        separator = max(SEPARATORS, key=lambda character: line.count(character.encode()))
        if line.count(separator.encode()) < 2 or b"\0" in start:
            raise SchemaError(f"{path}: Expected a file of CSV, TSV, parquet or JSON lines, plain or .gz.")
        for piece in _cut(path, scratch, separator):
            yield delimited_table(piece, separator)


def _parquet(path: Path, mapping: ColumnMapping | None) -> Iterator[Table]:
    with reading(path):
        try:
            names = [name for name in pl.read_parquet_schema(path) if name in columns_of(mapping)]
            rows = int(pl.scan_parquet(path).select(pl.len()).collect().item())
        except pl.exceptions.PolarsError:
            raise DataError(f"{path}: Expected a whole parquet file; it is damaged or cut short.") from None
    if rows <= PIECE_ROWS:
        yield parquet_table(path, names)
        return
    for start in range(0, rows, PIECE_ROWS):
        frame = pl.scan_parquet(path).select(names).slice(start, PIECE_ROWS).collect(engine="streaming")
        yield Table(path, frame, lambda row, start=start: start + row + 1)  # type: ignore[misc]


def _json(path: Path, mapping: ColumnMapping | None) -> Table:
    if mapping is not None:
        return json_table(path, columns_of(mapping))
    # What Amazon calls "title" is another thing in other files: only the columns that fit are read.
    first = next(json_objects(path))[1]
    fitting = [known for known in KNOWN_MAPPINGS if {known.user, known.item, known.timestamp} <= first.keys()]
    return json_table(path, (fitting or list(KNOWN_MAPPINGS))[0].columns)


def _cut(path: Path, scratch: Path, separator: str | None) -> Iterator[Path]:
    """The file itself where it is small; else copies of its parts, each with the header, cut between records."""
    with reading(path), opened(path) as file:
        small = len(file.read(PIECE_BYTES + 1)) <= PIECE_BYTES
    if small:
        yield path
        return
    with reading(path), opened(path) as file:
        header = b"" if separator is None else file.readline()
        piece, size = scratch / path.name, 0
        out = piece.open("wb")
        try:
            for record in _records(file, separator, path):
                if size == 0:
                    out.write(header)
                out.write(record)
                size += len(record)
                if size >= PIECE_BYTES:
                    out.close()
                    yield piece
                    out, size = piece.open("wb"), 0
            out.close()
            if size:
                yield piece
        finally:
            out.close()
            piece.unlink(missing_ok=True)


def _records(file: IO[bytes], separator: str | None, path: Path) -> Iterator[bytes]:
    """The bytes of each record: a line, or several where quotes enclose line feeds."""
    lines: list[bytes] = []

    def told() -> Iterator[str]:
        for line in file:
            lines.append(line)
            yield line.decode("latin-1")  # only quotes and separators are looked at, and they are ASCII

    if separator is None:
        for _ in told():
            yield lines.pop()
        return
    try:
        for _ in csv.reader(told(), delimiter=separator):
            yield b"".join(lines)
            lines.clear()
    except csv.Error:
        raise DataError(f"{path}: Expected every quote closed, and no value of over 128 KiB.") from None
