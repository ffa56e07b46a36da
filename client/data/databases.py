"""Connections to SQLite and PostgreSQL: for data that are imported, and for the state of the ranking service.

Nothing that a driver says is passed on: its messages may hold a password, a user's id or text. What is known of
a failure is said in words of our own.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import URL, Engine, create_engine, event, exc, make_url
from sqlalchemy.pool import NullPool, QueuePool

from shared.errors import ConfigError, VeilrecError

WAIT_S = 10
DRIVERS = {
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
}
EXPECTED = "Expected a database as sqlite:///PATH or postgresql://USER@HOST/NAME"
SQLSTATES = {
    "25006": "only reading is allowed, and this would write",
    "3F000": "there is no such schema",
    "42501": "permission is denied",
    "42601": "a syntax error",
    "42702": "the name of a column is ambiguous",
    "42703": "there is no such column",
    "42P01": "there is no such table",
}
PHRASES = {
    "database is locked": f"another process has kept it locked for over {WAIT_S} s",
    "unable to open": "the file is not there or cannot be opened",
    "not a database": "the file is no SQLite database",
    "readonly": "only reading is allowed, and this would write",
    "no such table": "there is no such table",
    "no such column": "there is no such column",
    "ambiguous column": "the name of a column is ambiguous",
    "syntax error": "a syntax error",
    "decode to UTF-8": "a text that is not UTF-8",
    "disk is full": "the disk is full",
    "authentication failed": "the password or user is refused",
    "no password supplied": "it asks for a password, and none is given (PGPASSWORD or ~/.pgpass)",
    "does not exist": "there is no such database or user",
    "Connection refused": "nothing listens at this address",
    "No such file": "nothing listens at this address",
    "resolve host": "there is no host of this name",
    "translate host": "there is no host of this name",
    "timeout": f"no answer within {WAIT_S} s",
    "too many clients": "it has no connection left",
}


def parse_url(text: str) -> URL:
    """The URL of a SQLite file or a PostgreSQL database, with the driver that is used for it.

    Raises
    ------
    ConfigError
        If it is neither; the text is not repeated, since it may hold a password.
    """
    try:
        url = make_url(text)
    except (exc.ArgumentError, ValueError):
        raise ConfigError(f"{EXPECTED}; this is no URL.") from None
    if url.drivername not in DRIVERS:
        raise ConfigError(f"{EXPECTED}; other kinds are not understood.")
    url = url.set(drivername=DRIVERS[url.drivername])
    if is_sqlite(url) and (not url.database or url.database == ":memory:" or url.database.startswith("file:")):
        raise ConfigError("Expected the path of a file as sqlite:///PATH.")
    return url


def is_sqlite(url: URL) -> bool:
    """Whether the database is a SQLite file."""
    return url.drivername == "sqlite"


def label(url: URL) -> str:
    """How a database is named in messages: never with a user, a password or an option."""
    if is_sqlite(url):
        return str(url.database)
    where = f" at {url.host}" if url.host else ""
    return f"PostgreSQL database {url.database or 'of the default name'}{where}"


def open_engine(url: URL, *, read_only: bool = False, connections: int | None = None) -> Engine:
    """An engine of SQLAlchemy; connects when it is first used.

    Parameters
    ----------
    url : sqlalchemy.URL
        See `parse_url`.
    read_only : bool
        Of a SQLite file; a PostgreSQL transaction is made read-only where it begins.
    connections : int, optional
        Kept open for the threads of this process to share; by default none is.

    Raises
    ------
    ConfigError
        If the driver is not installed.
    """
    pool: dict[str, Any] = {"poolclass": NullPool}
    if connections is not None:
        pool = {"poolclass": QueuePool, "pool_size": connections, "max_overflow": 0, "pool_timeout": WAIT_S}
    if is_sqlite(url):
        return _sqlite_engine(Path(str(url.database)), read_only, pool)
    if connections is not None:
        pool["pool_pre_ping"] = True  # a server that was restarted has closed the connections of the pool
    waits = {} if "connect_timeout" in url.query else {"connect_timeout": WAIT_S}
    try:
        return create_engine(url, connect_args=waits, hide_parameters=True, **pool)
    except ImportError:
        raise ConfigError("Expected the driver of PostgreSQL: pip install 'veilrec[postgres]'.") from None
    except (exc.SQLAlchemyError, ValueError, TypeError):
        raise ConfigError(f"{EXPECTED}; an option of this one is not understood.") from None


def _sqlite_engine(path: Path, read_only: bool, pool: dict[str, Any]) -> Engine:
    # Neither mode makes a file: one that is gone is an error, not an empty database.
    address = f"file:{quote(str(path.absolute()))}?mode={'ro' if read_only else 'rw'}"

    def connect() -> sqlite3.Connection:
        db = sqlite3.connect(address, uri=True, timeout=WAIT_S, check_same_thread=False)
        db.execute("PRAGMA secure_delete = ON")  # what is erased is overwritten
        db.execute("PRAGMA synchronous = FULL")
        return db

    def remember_file(_connection: object, record: Any) -> None:
        record.info["file"] = _file_number(path)

    def same_file(_connection: object, record: Any, _proxy: object) -> None:
        if _file_number(path) != record.info["file"]:
            raise exc.DisconnectionError  # the pool opens the file that is there now

    engine = create_engine("sqlite://", creator=connect, hide_parameters=True, **pool)
    event.listen(engine, "connect", remember_file)
    event.listen(engine, "checkout", same_file)
    return engine


def _file_number(path: Path) -> int | None:
    try:
        return os.stat(path).st_ino  # noqa: PTH116  in the way of every request: a third of Path.stat's time
    except OSError:
        return None


@contextmanager
def answering(name: str, error: type[VeilrecError], expected: str = "a database that answers") -> Iterator[None]:
    """Turn whatever SQLAlchemy or a driver raises into one `error` that holds no value and no password."""
    try:
        yield
    except exc.SQLAlchemyError as caught:
        raise error(f"{name}: Expected {expected}: {_reason(caught)}.") from None


def _reason(caught: exc.SQLAlchemyError) -> str:
    if isinstance(caught, exc.TimeoutError):
        return f"no connection became free within {WAIT_S} s"
    original = getattr(caught, "orig", None) or caught
    known = SQLSTATES.get(getattr(original, "sqlstate", None) or "")
    said = str(original)
    return known or next((words for phrase, words in PHRASES.items() if phrase in said), type(original).__name__)
