"""The tables of the event store, and how they are made, locked and recognised.

Three tables, so that they can live in a PostgreSQL database beside others:

- ``veilrec_events``: one row an event. The primary key is the covering index: SQLite keeps the rows in its order
  (WITHOUT ROWID), so that the history of a user is one run of neighbouring pages.
- ``veilrec_forgotten``: marks of users who were forgotten, by which an import that still holds them knows them. A
  mark is a keyed hash of the pseudonym, not the pseudonym.
- ``veilrec_store``: the version of the schema, and by which pseudonym key the store was made.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

import polars as pl
from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Delete,
    Double,
    Engine,
    FromClause,
    LargeBinary,
    MetaData,
    Select,
    SmallInteger,
    Table,
    Text,
    bindparam,
    delete,
    func,
    insert,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite

from client.data.databases import answering
from shared.errors import ConfigError

SCHEMA_VERSION = 1
LOCK = 0x7665_696C  # any number that nobody else takes an advisory lock of
MAX_ITEM_BYTES = 512  # a row of PostgreSQL's index holds at most 2,704 bytes

_tables = MetaData()
EVENTS = Table(
    "veilrec_events",
    _tables,
    Column("user_key", LargeBinary, primary_key=True),  # the pseudonym's 16 bytes
    Column("timestamp", BigInteger, primary_key=True, autoincrement=False),
    Column("item_id", Text, primary_key=True),
    Column("event", SmallInteger, primary_key=True, autoincrement=False),  # place in EVENT_KINDS
    Column("rating", Double),
    Column("review", Text, nullable=False),
    sqlite_with_rowid=False,
)
FORGOTTEN = Table("veilrec_forgotten", _tables, Column("mark", LargeBinary, primary_key=True))
STORE = Table(
    "veilrec_store",
    _tables,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
_READ = (EVENTS.c.user_key, EVENTS.c.timestamp, EVENTS.c.item_id, EVENTS.c.event, EVENTS.c.rating, EVENTS.c.review)

_other = EVENTS.alias()


def newest_of_one() -> Select[Any]:
    """The newest events of one user by time: parameters ``user`` and ``skip`` (one less than the events wanted).

    All events of the oldest time that is read are read: which of them stay is decided by the tie rule.
    """
    own = EVENTS.c.user_key == bindparam("user", type_=LargeBinary)
    return select(*_READ).where(own, EVENTS.c.timestamp >= _oldest(own)).order_by(EVENTS.c.timestamp)


def newest_of_many() -> Select[Any]:
    """The same for many users at once: parameters ``users`` and ``skip``; rows by user, then time."""
    wanted = EVENTS.c.user_key.in_(bindparam("users", expanding=True, type_=LargeBinary))
    users = select(EVENTS.c.user_key).where(wanted).distinct().subquery()
    # Materialised: one range of the index for each user. Ranking all rows in a window took half as long again.
    since = select(users.c.user_key, _oldest(_other.c.user_key == users.c.user_key, _other).label("oldest"))
    ranges = since.cte().prefix_with("MATERIALIZED")
    own = (EVENTS.c.user_key == ranges.c.user_key) & (EVENTS.c.timestamp >= ranges.c.oldest)
    return select(*_READ).join_from(ranges, EVENTS, own).order_by(EVENTS.c.user_key, EVENTS.c.timestamp)


def _oldest(own: ColumnElement[bool], events: FromClause = EVENTS) -> ColumnElement[int]:
    """The time of the oldest event that is wanted of a user; 0 of a user with fewer events."""
    skip = bindparam("skip", type_=BigInteger)
    times = select(events.c.timestamp).where(own).order_by(events.c.timestamp.desc()).limit(1).offset(skip)
    return func.coalesce(times.scalar_subquery(), 0)


def users() -> Select[Any]:
    """How many users there are."""
    return select(func.count()).select_from(select(EVENTS.c.user_key).distinct().subquery())


def some_users(most: int) -> Select[Any]:
    """Keys of at most `most` users: pseudonyms, so that the first of them are as good as drawn."""
    return select(EVENTS.c.user_key).distinct().order_by(EVENTS.c.user_key).limit(most)


def write(db: Connection, rows: pl.DataFrame) -> int:
    """Write events, one row a key; of one that is held already rating and review are replaced where they differ.

    Returns
    -------
    int
        Events that were new or changed.
    """
    inserts = (sqlite.insert if db.dialect.name == "sqlite" else postgresql.insert)(EVENTS)
    new = inserts.excluded
    differs = EVENTS.c.rating.is_distinct_from(new.rating) | (EVENTS.c.review != new.review)
    replacing = inserts.on_conflict_do_update(
        index_elements=list(EVENTS.primary_key), set_={"rating": new.rating, "review": new.review}, where=differs
    )
    return db.execute(replacing, rows.to_dicts(), execution_options={"preserve_rowcount": True}).rowcount


def erase() -> Delete:
    """Delete all events of one user: parameter ``user``."""
    return delete(EVENTS).where(EVENTS.c.user_key == bindparam("user", type_=LargeBinary))


def remember_forgotten(db: Connection, mark: bytes) -> None:
    """Keep the mark of a user who was forgotten."""
    inserts = (sqlite.insert if db.dialect.name == "sqlite" else postgresql.insert)(FORGOTTEN)
    db.execute(inserts.on_conflict_do_nothing(), {"mark": mark})


def forgotten() -> Select[Any]:
    """All marks."""
    return select(FORGOTTEN.c.mark)


def make_file(path: Path) -> None:
    """Make the file of a store, readable by its owner alone, if it is not there.

    Raises
    ------
    ConfigError
        If it cannot be made, or others may read the one that is there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise ConfigError(f"{path}: Expected a file that can be read and written: {error.strerror}.") from None
    if os.name == "posix" and mode & 0o077:
        raise ConfigError(f"{path}: Expected mode=0600, got mode={mode:04o}: others than its owner may read it.")


def make_tables(engine: Engine, name: str, key_check: str) -> None:
    """Make what is missing of the tables, and check that they are of this schema and key.

    Several processes may do so at once.

    Raises
    ------
    ConfigError
        If the database cannot be reached, is of a newer schema, or was made with another pseudonym key.
    """
    with answering(name, ConfigError, "a database that can be opened"), engine.begin() as db:
        _lock(db)
        _tables.create_all(db)
        held = {row.name: row.value for row in db.execute(select(STORE))}
        if not held:
            held = {"schema": str(SCHEMA_VERSION), "key": key_check}
            db.execute(insert(STORE), [{"name": k, "value": v} for k, v in held.items()])
    version = held.get("schema", "")
    if not version.isdecimal() or int(version) > SCHEMA_VERSION:
        raise ConfigError(f"{name}: Expected a store of schema<={SCHEMA_VERSION}; a newer Veilrec has made this one.")
    if held.get("key") != key_check:
        raise ConfigError(f"{name}: Expected the pseudonym key with which the store was made; this is another.")


def _lock(db: Connection) -> None:
    """Until the end of the transaction nobody else makes tables."""
    if db.dialect.name == "sqlite":
        db.exec_driver_sql("PRAGMA journal_mode = WAL")  # readers go on while one writes
        db.exec_driver_sql("BEGIN IMMEDIATE")
        return
    db.execute(select(func.pg_advisory_xact_lock(LOCK)))
    if db.exec_driver_sql("SHOW server_encoding").scalar_one() != "UTF8":
        raise ConfigError("Expected a PostgreSQL database with ENCODING 'UTF8'.")
