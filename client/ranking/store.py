"""The event store: what the local ranking service knows of its users, in SQLite or PostgreSQL.

Users are held by pseudonym alone. Reviews are held as they are: they are the partner's own, and the model reads
the reviews of a user for that user. Nothing here leaves the premises.

The order of events within one time needs the user's id (`client.data.histories`), which whoever asks brings along.
It is not stored: a hash of the id under a public seed would let a reader of the file try out ids.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Literal, Self

import polars as pl
from sqlalchemy import Engine

from client.data.databases import answering, is_sqlite, label, open_engine, parse_url
from client.data.pseudonyms import PseudonymKey
from client.ranking import store_tables as tables
from client.ranking.store_rows import Event, Held, as_histories, checked, cleaned, in_order, tidy, writable
from shared.errors import ConfigError, RankingError, SchemaError, UnknownUserError
from shared.schema import Catalogue, Histories, UserHistory

CONNECTIONS = 8
"""Kept open by one process; its threads wait for one another beyond that."""
ROWS_AT_ONCE = 50_000  # of an import: one transaction, after which other writers have their turn
USERS_AT_ONCE = 5_000  # SQLite takes 32,766 parameters


@dataclass(frozen=True, slots=True)
class Appended:
    """What became of appended events.

    Parameters
    ----------
    written : int
        New or changed; an event that is held already, with the same rating and review, is not counted.
    unknown : int
        Of those given, events with an item that the catalogue does not have.
    """

    written: int
    unknown: int


class EventStore:
    """Events of a partner's users. Safe for the threads of one process and for several processes.

    Made by `open`. All methods raise `RankingError` if the database is locked for long, gone or damaged.
    """

    def __init__(self, engine: Engine, name: str, key: PseudonymKey, max_history: int, tie_seed: int) -> None:
        self._engine, self._name, self._key = engine, name, key
        # A single SELECT needs no transaction around it.
        self._reader = engine.execution_options(isolation_level="AUTOCOMMIT")
        self._max_history, self._tie_seed = max_history, tie_seed
        self._one, self._many = tables.newest_of_one(), tables.newest_of_many()
        self._erase, self._users = tables.erase(), tables.users()

    @classmethod
    def open(cls, url: str, key: PseudonymKey, *, max_history: int = 1000, tie_seed: int = 0) -> Self:
        """Open a store; what is missing of it is made.

        Parameters
        ----------
        url : str
            ``sqlite:///PATH`` (a file of mode 0600) or ``postgresql://USER@HOST/NAME``.
        key : PseudonymKey
            The partner's own, from a file that is kept as long as the store is.
        max_history : int
            The newest events of a user that are read; `shared.config.ModelConfig.max_history` of the release.
        tie_seed : int
            Orders events of equal time, see `client.data.histories.in_time_order`.

        Raises
        ------
        ConfigError
            If the URL is none, the database cannot be reached, is of a newer schema or of another key.
        """
        if max_history < 1:
            raise ConfigError(f"Expected max_history of at least 1, got max_history={max_history}.")
        parsed = parse_url(url)
        if is_sqlite(parsed):
            tables.make_file(Path(str(parsed.database)))
        engine = open_engine(parsed, connections=CONNECTIONS)
        try:
            tables.make_tables(engine, label(parsed), key.pseudonym("\0the key of an event store"))  # no user's id
        except BaseException:
            engine.dispose()
            raise
        return cls(engine, label(parsed), key, max_history, tie_seed)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def pseudonym(self, user_id: str) -> str:
        """The name of a user in `Histories.users`.

        Raises
        ------
        SchemaError
            If the id is empty or no Unicode text.
        """
        return self._key.pseudonym(tidy(user_id, "user_id"))

    def import_histories(self, interactions: pl.DataFrame) -> int:
        """Load cleaned interactions; a second time nothing changes.

        Users who were forgotten stay so: what an import still holds of them is left out.

        Parameters
        ----------
        interactions : polars.DataFrame
            As `client.data.cleaning.clean` leaves them: one row a user, item, time and event.

        Returns
        -------
        int
            Events that were new or changed.

        Raises
        ------
        SchemaError
            If an event, a time or the length of an item id is not one that the store can hold.
        """
        rows = self._without_forgotten(writable(interactions, self._key))
        written = 0
        for chunk in rows.iter_slices(ROWS_AT_ONCE):
            written += self._write(chunk)
        return written

    def append(
        self,
        user_id: str,
        events: Sequence[Event],
        catalogue: Catalogue,
        *,
        unknown_items: Literal["keep", "ignore", "refuse"] = "keep",
    ) -> Appended:
        """Add events of one user in one transaction; the next `history` knows them.

        Parameters
        ----------
        user_id : str
        events : sequence of Event
            An event that is held already (same user, item, time and kind) is held once: the last rating and
            review stay, so that a report may be sent again.
        catalogue : Catalogue
        unknown_items : {"keep", "ignore", "refuse"}
            What is done with an event whose item the catalogue does not have. Shops sell new items before a
            release knows them, so by default it is kept, and read as soon as a catalogue has the item.

        Raises
        ------
        SchemaError
            If the id or a field of an event is not what was expected; nothing is written then.
        """
        user = tidy(user_id, "user_id")
        rows = [checked(event, user, f"event {k} of {len(events)}") for k, event in enumerate(events, start=1)]
        known = [row for row in rows if row[1] in catalogue.rows]
        unknown = len(rows) - len(known)
        if unknown and unknown_items == "refuse":
            raise SchemaError(f"Expected items of the catalogue, got unknown={unknown} of events={len(rows)}.")
        kept = known if unknown_items == "ignore" else rows
        if not kept:
            return Appended(0, unknown)
        return Appended(self._write(writable(cleaned(kept), self._key)), unknown)

    def history(self, user_id: str, catalogue: Catalogue) -> tuple[UserHistory, tuple[str, ...]]:
        """The newest events of a user in time order, and the texts of which `UserHistory.reviews` are rows.

        Raises
        ------
        UnknownUserError
            If nothing is held of the user, or no item that the catalogue has.
        """
        found = self._found({self.pseudonym(user_id): tidy(user_id, "user_id")}, catalogue)
        if not found:
            raise UnknownUserError("Expected a user of the store: nothing is held of this one.")
        return found[0], found.review_texts

    def histories(self, user_ids: Iterable[str], catalogue: Catalogue) -> Histories:
        """The histories of many users in few queries, by `pseudonym`; those of whom nothing is held are left out."""
        ids = [tidy(user_id, "user_id") for user_id in user_ids]
        return self._found(dict(zip(self._key.pseudonyms(ids), ids, strict=True)), catalogue)

    def sample(self, most: int, catalogue: Catalogue) -> Histories:
        """The histories of at most `most` users, for figures about all: always the same users while they are held.

        Their ids are not known here, so that events of one user at one time may be in another order than in training.
        """
        with answering(self._name, RankingError), self._reader.connect() as db:
            keys = [bytes(row.user_key) for row in db.execute(tables.some_users(most))]
        return self._found({key.hex(): key.hex() for key in keys}, catalogue)

    def reviews(self, user_id: str) -> frozenset[str]:
        """All texts that are held of a user, whether or not the catalogue has the items."""
        user = bytes.fromhex(self.pseudonym(user_id))
        return frozenset(row.review for rows in self._read([user], None).values() for row in rows if row.review)

    def ping(self) -> None:
        """Return if the database answers."""
        with answering(self._name, RankingError), self._reader.connect() as db:
            db.exec_driver_sql("SELECT 1")

    def users(self) -> int:
        """Users of whom anything is held."""
        with answering(self._name, RankingError), self._reader.connect() as db:
            return int(db.execute(self._users).scalar_one())

    def forget(self, user_id: str) -> int:
        """Erase all that is held of a user, and say how many events that were. Imports bring nothing of it back.

        A SQLite file is overwritten where they stood, and its log cut off; PostgreSQL reuses the space when it
        next vacuums.
        """
        user = bytes.fromhex(self.pseudonym(user_id))
        with answering(self._name, RankingError):
            with self._engine.begin() as db:
                erased = db.execute(self._erase, {"user": user}).rowcount
                if erased:
                    tables.remember_forgotten(db, self._mark(user))
            if self._engine.dialect.name == "sqlite":
                with self._reader.connect() as db:
                    db.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
        return erased

    def _mark(self, user: bytes) -> bytes:
        """By which a user who was forgotten is known, and by nothing else."""
        return bytes.fromhex(self._key.pseudonym(f"\0forgotten {user.hex()}"))  # no user's id begins so

    def _without_forgotten(self, rows: pl.DataFrame) -> pl.DataFrame:
        with answering(self._name, RankingError), self._reader.connect() as db:
            marks = {bytes(row.mark) for row in db.execute(tables.forgotten())}
        if not marks:
            return rows
        gone = [user for user in rows.get_column("user_key").unique() if self._mark(user) in marks]
        return rows.filter(~pl.col("user_key").is_in(gone))

    def _write(self, rows: pl.DataFrame) -> int:
        with answering(self._name, RankingError), self._engine.begin() as db:
            return tables.write(db, rows)

    def _found(self, users: Mapping[str, str], catalogue: Catalogue) -> Histories:
        """Histories of users given as pseudonym and id."""
        ids = {bytes.fromhex(pseudonym): user_id for pseudonym, user_id in users.items()}
        read = self._read(list(ids), self._max_history)
        # Items that are not in the catalogue may have taken the places of older ones that are.
        short = [key for key, rows in read.items() if self._cut_short(rows, catalogue)]
        if short:
            read |= self._read(short, None)
        ordered = {
            key.hex(): in_order(read[key], ids[key], catalogue, self._tie_seed)[-self._max_history :]
            for key in sorted(read)
        }
        return as_histories({user: rows for user, rows in ordered.items() if rows}, catalogue)

    def _cut_short(self, rows: list[Held], catalogue: Catalogue) -> bool:
        if len(rows) < self._max_history:
            return False
        return sum(row.item_id in catalogue.rows for row in rows) < self._max_history

    def _read(self, keys: list[bytes], newest: int | None) -> dict[bytes, list[Held]]:
        skip = (newest or 2**62) - 1
        with answering(self._name, RankingError), self._reader.connect() as db:
            if len(keys) == 1:
                one = [Held._make(row) for row in db.execute(self._one, {"user": keys[0], "skip": skip}).all()]
                return {keys[0]: one} if one else {}
            found: dict[bytes, list[Held]] = {}
            for start in range(0, len(keys), USERS_AT_ONCE):
                chunk = {"users": keys[start : start + USERS_AT_ONCE], "skip": skip}
                rows = [Held._make(row) for row in db.execute(self._many, chunk).all()]
                found |= {key: list(group) for key, group in groupby(rows, key=itemgetter(0))}
            return found
