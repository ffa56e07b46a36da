"""From cleaned interactions to `Histories`: time order, pseudonyms, a cap on the events of each user.

Many interactions share a timestamp, and within such a tie the order of a file is often the order of the item
ids: a sequence model that is fed file order learns to predict ids. Ties are therefore broken by a seeded hash
of (user_id, item_id), and shuffling the rows of an input changes nothing.
"""

from __future__ import annotations

import hashlib

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.data.pseudonyms import PseudonymKey
from shared.errors import ConfigError, DataError, EmptyHistoryError, SchemaError
from shared.schema import EVENT_KINDS, Catalogue, Histories

TIME_ORDER = ("user_id", "timestamp", "_tie", "_event")
REST = ("item_id", "rating", "review")  # only rows that agree in all of TIME_ORDER are told apart by these


def in_time_order(interactions: pl.DataFrame, tie_seed: int) -> pl.DataFrame:
    """Interactions sorted by user and time; no trace of the order of the rows is left.

    Parameters
    ----------
    interactions : polars.DataFrame
        Columns user_id, item_id, timestamp, event, rating, review.
    tie_seed : int
        Seed of the hash that orders the events of one user at one time.

    Returns
    -------
    polars.DataFrame
        The same rows and columns, by user_id, timestamp, BLAKE2b of ``user_id|item_id`` keyed by `tie_seed`
        (compared only within a tie), event code.

    Raises
    ------
    SchemaError
        If an event is not one of `EVENT_KINDS`.
    """
    tied = interactions.select(pl.struct("user_id", "timestamp").is_duplicated()).to_series()
    keyed = interactions.with_columns(_tie=_tie_hashes(interactions, tied, tie_seed), _event=_event_codes())
    if keyed.get_column("_event").null_count():
        raise SchemaError(f"Expected event to be one of {', '.join(EVENT_KINDS)}.")
    rest = [name for name in REST if name in keyed.columns]
    return keyed.sort(*TIME_ORDER, *rest).drop("_tie", "_event")


def build_histories(
    interactions: pl.DataFrame, catalogue: Catalogue, key: PseudonymKey, *, max_events: int, tie_seed: int
) -> Histories:
    """Group interactions by user, in time order, keeping the last `max_events` of each.

    Parameters
    ----------
    interactions : polars.DataFrame
        Columns user_id, item_id, timestamp, event, rating, review (see `client.data.ingest`).
    catalogue : Catalogue
        Holds every item of `interactions`.
    key : PseudonymKey
        The partner's own.
    max_events : int
        The cap on one user's events, at least 1.
    tie_seed : int
        See `in_time_order`.

    Returns
    -------
    Histories
        Users sorted by pseudonym. A review text that occurs several times is stored once.

    Raises
    ------
    ConfigError
        If `max_events` is below 1.
    DataError
        If an interaction's item is not in the catalogue.
    EmptyHistoryError
        If there is no interaction.
    """
    if max_events < 1:
        raise ConfigError(f"Expected max_events of at least 1, got max_events={max_events}.")
    if interactions.is_empty():
        raise EmptyHistoryError("Expected at least one interaction, got interactions=0.")
    ordered = in_time_order(interactions, tie_seed)
    users, lengths = _runs(ordered.get_column("user_id"))
    pseudonyms = key.pseudonyms(users)
    by_pseudonym = np.array(sorted(range(len(users)), key=pseudonyms.__getitem__), dtype=np.int64)
    take, offsets = _last_events(lengths, by_pseudonym, max_events)
    kept = ordered[take]
    reviews, review_texts = _review_rows(kept.get_column("review"))
    return Histories(
        users=tuple(pseudonyms[k] for k in by_pseudonym),
        offsets=offsets,
        items=_item_rows(kept.get_column("item_id"), catalogue),
        timestamps=kept.get_column("timestamp").to_numpy().astype(np.int64),
        events=kept.select(_event_codes()).to_series().to_numpy().astype(np.int8),
        ratings=kept.get_column("rating").cast(pl.Float32).fill_null(float("nan")).to_numpy().astype(np.float32),
        reviews=reviews,
        review_texts=review_texts,
    )


def _event_codes() -> pl.Expr:
    codes = list(range(len(EVENT_KINDS)))
    kinds = list(EVENT_KINDS)
    return pl.col("event").replace_strict(kinds, codes, default=None, return_dtype=pl.Int8)


def _tie_hashes(interactions: pl.DataFrame, tied: pl.Series, tie_seed: int) -> pl.Series:
    """64-bit keyed hashes of the tied rows, 0 elsewhere: hashing is the dearest part of the sort."""
    hashes = np.zeros(interactions.height, dtype=np.uint64)
    if tied.any():
        keyed = hashlib.blake2b(key=str(tie_seed).encode(), digest_size=8)
        pairs = interactions.filter(tied).select(pl.concat_str("user_id", "item_id", separator="|")).to_series()
        digests = bytearray()
        for pair in pairs.cast(pl.Binary).to_list():
            one = keyed.copy()
            one.update(pair)
            digests += one.digest()
        hashes[tied.to_numpy()] = np.frombuffer(bytes(digests), dtype=">u8")
    return pl.Series("_tie", hashes)


def _runs(users: pl.Series) -> tuple[list[str], NDArray[np.int64]]:
    """The users of a sorted column and the number of rows of each, shape ``(users,)``."""
    runs = users.rle().struct.unnest()
    return runs.get_column("value").to_list(), runs.get_column("len").to_numpy().astype(np.int64)


def _last_events(
    lengths: NDArray[np.int64], order: NDArray[np.int64], max_events: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Row numbers of the last events of each user, users in `order`, and the offsets of the users in them."""
    ends = np.cumsum(lengths)[order]
    kept = np.minimum(lengths, max_events)[order]
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(kept)])
    # Row of event e of user k: ends[k] - kept[k] + (e - offsets[k]).
    take = np.repeat(ends - kept - offsets[:-1], kept) + np.arange(offsets[-1])
    return take, offsets


def _item_rows(item_ids: pl.Series, catalogue: Catalogue) -> NDArray[np.int32]:
    rows = pl.DataFrame(
        {"item_id": list(catalogue.item_ids), "row": np.arange(len(catalogue), dtype=np.int32)},
        schema_overrides={"item_id": pl.String},
    )
    found = item_ids.to_frame("item_id").join(rows, on="item_id", how="left", maintain_order="left").get_column("row")
    if found.null_count():
        raise DataError(
            f"Expected every interaction's item in the catalogue; missing={found.null_count()} of "
            f"interactions={len(found)}. Clean the data first, which completes the catalogue."
        )
    return found.to_numpy().astype(np.int32)


def _review_rows(reviews: pl.Series) -> tuple[NDArray[np.int32], tuple[str, ...]]:
    """Row of each review among the distinct texts in order of first use, -1 for no review."""
    frame = reviews.fill_null("").to_frame("text")
    distinct = frame.filter(pl.col("text") != "").unique(maintain_order=True).with_row_index("row")
    rows = frame.join(distinct, on="text", how="left", maintain_order="left").get_column("row")
    return rows.cast(pl.Int32).fill_null(-1).to_numpy().astype(np.int32), tuple(distinct.get_column("text").to_list())
