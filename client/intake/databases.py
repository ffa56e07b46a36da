"""Rows of a database from a watermark on, in windows of bounded size.

A row that comes late may carry the watermark's own value, or one a little below: reading begins at the watermark less
an overlap, and what is read twice is one row in the data set. Rows without a watermark are read each time.
"""

from __future__ import annotations

import datetime
import decimal
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from client.data.databases import answering, is_sqlite, label, open_engine, parse_url
from client.data.formats.database import NAME, QUERY, TABLE, read_tables
from client.data.formats.files import Table
from client.intake.pieces import PIECE_ROWS, columns_of
from client.intake.settings import DatabaseSource, seconds_of
from client.intake.state import Watermark
from shared.errors import ConfigError, DataError

DEFAULT_OVERLAP_S = 3600


@dataclass(frozen=True, slots=True)
class Window:
    """A range of the watermark column.

    Parameters
    ----------
    condition : str
        SQL.
    end : Watermark or None
        Up to where everything is read once this window is; None for rows without a watermark.
    """

    condition: str
    end: Watermark | None


def windows_of(source: DatabaseSource, url: str, since: Watermark | None, rows: int = PIECE_ROWS) -> list[Window]:
    """What is to be read of a database, in order.

    Parameters
    ----------
    source : DatabaseSource
    url : str
    since : Watermark, optional
        Up to where it was read before.
    rows : int
        Of a window, about.

    Raises
    ------
    ConfigError
        If the database cannot be reached, or the overlap does not go with the column.
    DataError
        If it cannot read the table or the column.
    """
    column = '"' + source.watermark.replace('"', '""') + '"'
    asked = f"({query_of(source.table)}) AS intake_rows"
    name = f"source {source.name} of {label(parse_url(url))}"
    with _reading(url, name) as db, answering(name, DataError, "a table and a watermark column that can be read"):
        last = _one(db, f"SELECT max({column}) FROM {asked}")
        windows = [Window(f"{column} IS NULL", None)]
        if last is None:
            return windows
        after, begin = _start(source, since, column)
        while True:
            sql = f"SELECT {column} FROM {asked} WHERE {begin} ORDER BY {column} LIMIT 1 OFFSET {rows - 1}"
            edge = _one(db, sql)
            end = watermark_of(last if edge is None else edge)
            windows.append(
                Window(f"{after} AND {column} <= {_literal(end)}" if after else f"{column} <= {_literal(end)}", end)
            )
            if edge is None or edge == last:
                return windows
            after = begin = f"{column} > {_literal(end)}"


def read_window(source: DatabaseSource, url: str, window: Window) -> Table:
    """The rows of a window, as `client.data.formats.database` reads them."""
    sql = f"SELECT * FROM ({query_of(source.table)}) AS intake_rows WHERE {window.condition}"
    return read_tables(url, sql, None, columns_of(source.mapping))[0]


def query_of(table: str) -> str:
    """One SELECT: the one that was given, or all of a table.

    Raises
    ------
    ConfigError
        If it is neither.
    """
    asked = table.strip().rstrip(";").rstrip()
    if QUERY.match(asked):
        return f"{asked}\n"
    if TABLE.fullmatch(asked):
        parts = (part if part.startswith('"') else f'"{part}"' for part in re.findall(NAME, asked))
        return f"SELECT * FROM {'.'.join(parts)}"
    raise ConfigError("Expected table=TABLE, table=SCHEMA.TABLE or table='SELECT ...'.")


def watermark_of(value: object) -> Watermark:
    """A value of a watermark column, as it is kept.

    Raises
    ------
    DataError
        If values of its kind have no order here.
    """
    if isinstance(value, bool) or not isinstance(value, int | float | decimal.Decimal | datetime.date | str):
        raise DataError(f"Expected a watermark column of numbers, times or texts, got {type(value).__name__}.")
    if isinstance(value, str):
        return Watermark("text", value)
    if isinstance(value, datetime.date):
        return Watermark("time", value.isoformat())
    return Watermark("number", format(value, "f") if isinstance(value, decimal.Decimal) else repr(value))


def _start(source: DatabaseSource, since: Watermark | None, column: str) -> tuple[str, str]:
    """The lower bound of the first window as SQL, empty for none; and the same as a whole condition."""
    if since is None:
        return "", f"{column} IS NOT NULL"
    bound = f"{column} >= {_literal(_less(since, source.overlap))}"
    return bound, bound


def _less(since: Watermark, overlap: str | float | None) -> Watermark:
    if since.kind == "time":
        if isinstance(overlap, int | float):
            raise ConfigError("overlap: Expected a duration such as 10m: the watermark column holds times.")
        back = datetime.timedelta(seconds=DEFAULT_OVERLAP_S if overlap is None else seconds_of(overlap))
        if "T" not in since.value:
            days = -(-back.total_seconds() // 86_400)
            return Watermark("time", (datetime.date.fromisoformat(since.value) - datetime.timedelta(days)).isoformat())
        return Watermark("time", (datetime.datetime.fromisoformat(since.value) - back).isoformat())
    if isinstance(overlap, str):
        raise ConfigError(f"overlap: Expected a number: the watermark column holds {since.kind}s.")
    if since.kind == "text" or not overlap:
        return since  # rows at the watermark's own value are read again all the same
    return Watermark("number", format(decimal.Decimal(since.value) - decimal.Decimal(repr(overlap)), "f"))


def _literal(mark: Watermark) -> str:
    return mark.value if mark.kind == "number" else "'" + mark.value.replace("'", "''") + "'"


def _one(db: Connection, sql: str) -> object:
    with db.exec_driver_sql(sql, execution_options={"no_parameters": True}) as found:
        row = found.first()
    return None if row is None else row[0]


@contextmanager
def _reading(url: str, name: str) -> Iterator[Connection]:
    parsed = parse_url(url)
    engine = open_engine(parsed, read_only=True)
    options: dict[str, Any] = {} if is_sqlite(parsed) else {"postgresql_readonly": True}
    try:
        with answering(name, ConfigError, "a database that can be opened"):
            db = engine.connect()
        with db:
            yield db.execution_options(**options)
    finally:
        engine.dispose()
