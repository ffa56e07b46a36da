"""Events on their way into the store and out of it: checked and cleaned, in time order, as `Histories`."""

from __future__ import annotations

import hashlib
import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import polars as pl

from client.data.cleaning import DAY, clean
from client.data.formats.columns import INTERACTION_COLUMNS, no_items
from client.data.ingest import RawData
from client.data.pseudonyms import PseudonymKey
from client.ranking.store_tables import MAX_ITEM_BYTES
from shared.errors import SchemaError
from shared.schema import EVENT_KINDS, Catalogue, Histories

CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u200b\ufeff]")
CODES = {kind: code for code, kind in enumerate(EVENT_KINDS)}
SCHEMA = dict(zip(INTERACTION_COLUMNS, (pl.String, pl.String, pl.Int64, pl.String, pl.Float64, pl.String), strict=True))

Row = tuple[str, str, int, str, float | None, str]


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a user, as a shop reports it.

    Parameters
    ----------
    item_id : str
    kind : str
        One of `shared.schema.EVENT_KINDS`.
    timestamp : int
        UTC seconds, or the ordinal that the partner's data use; not before 0 nor more than a day ahead.
    rating : float, optional
    review : str
        The user's own words; cleaned as imported ones are.
    """

    item_id: str
    kind: str
    timestamp: int
    rating: float | None = None
    review: str = ""


class Held(NamedTuple):
    """A row of the table."""

    user_key: bytes
    timestamp: int
    item_id: str
    event: int
    rating: float | None
    review: str


def tidy(text: str, name: str) -> str:
    """An id as cleaning leaves it; `SchemaError` if nothing is left or it is no Unicode text."""
    kept = CONTROL.sub(" ", text).strip()
    if not kept or not _is_unicode(kept):
        raise SchemaError(f"{name}: Expected Unicode text that is not empty.")
    return kept


def checked(event: Event, user: str, where: str) -> Row:
    """A row of `INTERACTION_COLUMNS`; `SchemaError` names the place and the field, never the value."""
    item = tidy(event.item_id, f"{where}, item_id")
    if len(item.encode()) > MAX_ITEM_BYTES:
        raise SchemaError(f"{where}, item_id: Expected at most bytes={MAX_ITEM_BYTES}.")
    if event.kind not in CODES:
        raise SchemaError(f"{where}, kind: Expected one of {', '.join(EVENT_KINDS)}.")
    if not 0 <= event.timestamp <= time.time() + DAY:
        raise SchemaError(f"{where}, timestamp: Expected UTC seconds, from 1970 to tomorrow.")
    if event.rating is not None and not math.isfinite(event.rating):
        raise SchemaError(f"{where}, rating: Expected a finite number.")
    if not _is_unicode(event.review):
        raise SchemaError(f"{where}, review: Expected Unicode text.")
    return user, item, event.timestamp, event.kind, event.rating, event.review


def _is_unicode(text: str) -> bool:
    """Whether no half of a surrogate pair, which JSON may hold, stands alone."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def cleaned(rows: Sequence[Row]) -> pl.DataFrame:
    """Rows of `INTERACTION_COLUMNS` as `client.data.cleaning` leaves interactions that are imported."""
    return clean(RawData("", pl.DataFrame(rows, schema=SCHEMA, orient="row"), no_items()))[0].interactions


def writable(interactions: pl.DataFrame, secret: PseudonymKey) -> pl.DataFrame:
    """The columns of the table, in the order of its key."""
    users = interactions.get_column("user_id").unique()
    keys = [bytes.fromhex(pseudonym) for pseudonym in secret.pseudonyms(users.to_list())]
    coded = interactions.join(pl.DataFrame({"user_id": users, "user_key": keys}), on="user_id", how="left").select(
        "user_key",
        "timestamp",
        "item_id",
        pl.col("event").replace_strict(list(EVENT_KINDS), list(range(len(EVENT_KINDS))), default=None),
        pl.col("rating").cast(pl.Float64).fill_nan(None),
        pl.col("review").fill_null(""),
    )
    if coded.get_column("event").null_count():
        raise SchemaError(f"Expected event to be one of {', '.join(EVENT_KINDS)}.")
    fits = (pl.col("timestamp") >= 0) & pl.col("item_id").str.len_bytes().is_between(1, MAX_ITEM_BYTES)
    wrong = coded.height - coded.filter(fits).height
    if wrong:
        raise SchemaError(
            f"Expected times from 1970 on and item ids of 1 to {MAX_ITEM_BYTES} bytes, got wrong={wrong} of "
            f"interactions={coded.height}; clean the data first."
        )
    key = ("user_key", "timestamp", "item_id", "event")
    return coded.unique(key, keep="last", maintain_order=True).sort(key)


def in_order(rows: list[Held], user_id: str, catalogue: Catalogue, tie_seed: int) -> list[Held]:
    """Rows of one user, by time already, in the order of `client.data.histories.in_time_order`; known items only."""
    known = [row for row in rows if row.item_id in catalogue.rows]
    if all(a.timestamp < b.timestamp for a, b in pairwise(known)):
        return known
    seeded = hashlib.blake2b(key=str(tie_seed).encode(), digest_size=8)

    def place(row: Held) -> tuple[int, bytes, int]:
        keyed = seeded.copy()
        keyed.update(f"{user_id}|{row.item_id}".encode())
        return row.timestamp, keyed.digest(), row.event

    return sorted(known, key=place)


def as_histories(users: Mapping[str, list[Held]], catalogue: Catalogue) -> Histories:
    """Users by pseudonym, each with rows in order, as columns; a review that occurs several times is held once."""
    rows = [row for held in users.values() for row in held]
    texts = {text: k for k, text in enumerate(dict.fromkeys(row.review for row in rows if row.review))}
    return Histories(
        users=tuple(users),
        offsets=np.cumsum([0, *(len(held) for held in users.values())], dtype=np.int64),
        items=np.array([catalogue.rows[row.item_id] for row in rows], dtype=np.int32),
        timestamps=np.array([row.timestamp for row in rows], dtype=np.int64),
        events=np.array([row.event for row in rows], dtype=np.int8),
        ratings=np.array([row.rating for row in rows], dtype=np.float32),  # None becomes NaN
        reviews=np.array([texts.get(row.review, -1) for row in rows], dtype=np.int32),
        review_texts=tuple(texts),
    )
