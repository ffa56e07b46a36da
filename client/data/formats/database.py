"""Tables and queries of a SQLite or PostgreSQL database, read as a file of separated columns would be.

Every value becomes text first, as in CSV, so that the same data give the same interactions whichever way they come.
The database is only read: in a read-only transaction, in chunks, and of each row only the columns that are used.
"""

from __future__ import annotations

import datetime
import decimal
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
from sqlalchemy import Connection

from client.data.databases import answering, is_sqlite, label, open_engine, parse_url
from client.data.formats.files import Table
from client.data.formats.items import CATEGORY_NAMES, ID_NAMES, TEXT_NAMES, TITLE_NAMES
from shared.errors import ConfigError, DataError, SchemaError

ROWS_AT_ONCE = 20_000
ITEM_NAMES = (*ID_NAMES, *TITLE_NAMES, *TEXT_NAMES, *CATEGORY_NAMES)
NAME = r'(?:"(?:[^"]|"")+"|[^\s".;()\']+)'
TABLE = re.compile(rf"{NAME}(?:\.{NAME}){{0,2}}")
QUERY = re.compile(r"\s*(?:--[^\n]*\n\s*)*(?:select|with|values)\b", re.IGNORECASE)


def default_name(source: str) -> str:
    """The name of a data set from a database: that of the database, or of its file."""
    return Path(str(parse_url(source).database or "database")).name.split(".")[0]


def read_tables(
    source: str, interactions: str, items: str | None, columns: Sequence[str]
) -> tuple[Table, Table | None]:
    """Read interactions, and the catalogue where there is one, in one transaction.

    Parameters
    ----------
    source : str
        URL of the database; see `client.data.databases.parse_url`.
    interactions, items : str
        A table, as ``table`` or ``schema.table`` with names as the database has them, or one SELECT.
    columns : sequence of str
        Those of the interactions that are read, as far as they are there.

    Returns
    -------
    tuple of Table
        Columns of text; a row's number is its place in what the database gave.

    Raises
    ------
    ConfigError
        If the URL is none, the database cannot be reached, or what is to be read is no table and no SELECT.
    DataError
        If the database cannot read it.
    SchemaError
        If a value is no text, number or time.
    """
    sql = _sql(interactions, "interactions")
    items_sql = None if items is None else _sql(items, "items")
    name = label(parse_url(source))
    with _reading(source) as db:
        first = _table(db, sql, columns, f"interactions of {name}")
        return first, None if items_sql is None else _table(db, items_sql, ITEM_NAMES, f"items of {name}")


@contextmanager
def _reading(source: str) -> Iterator[Connection]:
    """A transaction that sees one state of the database and cannot change it."""
    url = parse_url(source)
    engine = open_engine(url, read_only=True)
    options = {} if is_sqlite(url) else {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}
    try:
        with answering(label(url), ConfigError, "a database that can be opened"):
            db = engine.connect()
        with db:
            with answering(label(url), ConfigError, "a database that can be opened"):
                db.execution_options(**options)
                if is_sqlite(url):
                    db.exec_driver_sql("BEGIN")
                    db.exec_driver_sql("SELECT count(*) FROM sqlite_master")  # only now is the file looked at
            yield db
    finally:
        engine.dispose()


def _sql(asked: str, what: str) -> str:
    """What stands behind FROM."""
    query = asked.strip().rstrip(";").rstrip()
    if QUERY.match(query):
        return f"(\n{query}\n) AS asked"
    if TABLE.fullmatch(query):
        return ".".join(_quoted(part) for part in re.findall(NAME, query))
    raise ConfigError(f"Expected {what}=TABLE, {what}=SCHEMA.TABLE or {what}='SELECT ...'.")


def _quoted(name: str) -> str:
    return name if name.startswith('"') else f'"{name}"'


def _table(db: Connection, sql: str, columns: Sequence[str], name: str) -> Table:
    # The driver gets the statement as it is: % and : in a SELECT are the user's own.
    plain: dict[str, Any] = {"no_parameters": True}
    streaming = {**plain, "stream_results": True, "max_row_buffer": ROWS_AT_ONCE}
    with answering(name, DataError, "a table or SELECT that can be read"):
        with db.exec_driver_sql(f"SELECT * FROM {sql} LIMIT 0", execution_options=plain) as nothing:
            there = list(nothing.keys())
        wanted = [column for column in dict.fromkeys(columns) if column in there]
        if not wanted:
            raise SchemaError(f"{name}: Expected known columns or a mapping such as user=COLUMN, found none.")
        names = ", ".join('"' + column.replace('"', '""') + '"' for column in wanted)
        with db.exec_driver_sql(f"SELECT {names} FROM {sql}", execution_options=streaming) as rows:
            chunks = [_texts(chunk, wanted, name) for chunk in rows.partitions(ROWS_AT_ONCE)]
    return Table(Path(name), pl.concat([_texts([], wanted, name), *chunks]), lambda row: row + 1)


def _texts(rows: Sequence[Sequence[object]], columns: Sequence[str], name: str) -> pl.DataFrame:
    cells: dict[str, list[str | None]] = {}
    for k, column in enumerate(columns):
        try:
            cells[column] = [_text(row[k]) for row in rows]
        except TypeError as error:
            raise SchemaError(f"{name}, column {column}: Expected text, numbers or times, got {error}.") from None
    return pl.DataFrame(cells, schema=dict.fromkeys(columns, pl.String))


def _text(value: object) -> str | None:
    """A value as CSV has it; ``TypeError`` of the value's kind where there is no such form."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        return value.astimezone(datetime.UTC).isoformat()
    if isinstance(value, datetime.date):  # a time without a zone is one, and is taken for UTC
        return value.isoformat()
    if isinstance(value, decimal.Decimal):
        return format(value, "f")
    if isinstance(value, bool | int | float | uuid.UUID):
        return str(value)
    raise TypeError(type(value).__name__)
