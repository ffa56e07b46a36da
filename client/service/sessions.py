"""Histories of one batch of requests: what is held of each user, and the events that the session brought along."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from client.ranking.store import EventStore
from client.service.requests import EventIn, RankRequest
from shared.schema import EVENT_KINDS, Catalogue, Histories, UserHistory

CODES = {kind: code for code, kind in enumerate(EVENT_KINDS)}


def histories_of(requests: Sequence[RankRequest], store: EventStore, catalogue: Catalogue) -> tuple[Histories, int]:
    """One row a request, without events where nothing is known; users are named by their place.

    Events with items that the catalogue does not have are left out.

    Returns
    -------
    histories : Histories
    brought : int
        How many of its texts, at their end, sessions brought along: nothing of them is to be kept.
    """
    named = {request.user_id for request in requests if request.user_id is not None}
    held = store.histories(sorted(named), catalogue) if named else None
    place = {pseudonym: k for k, pseudonym in enumerate(held.users)} if held else {}
    texts = list(held.review_texts) if held else []
    rows = []
    for request in requests:
        known = None
        if held is not None and request.user_id is not None:
            known = place.get(store.pseudonym(request.user_id))
        before = held[known] if held is not None and known is not None else _nothing()
        rows.append(_followed(before, _readable(request.events, catalogue), catalogue, texts))
    return _joined(rows, tuple(texts)), len(texts) - (len(held.review_texts) if held else 0)


def _readable(events: Sequence[EventIn], catalogue: Catalogue) -> list[EventIn]:
    return [event for event in events if event.item_id in catalogue.rows]


def _followed(history: UserHistory, events: Sequence[EventIn], catalogue: Catalogue, texts: list[str]) -> UserHistory:
    """A history with a session's events after it, in the order given; their reviews are added to `texts`."""
    if not events:
        return history
    now = int(time.time())
    reviews = []
    for event in events:
        reviews.append(len(texts) if event.review else -1)
        if event.review:
            texts.append(event.review)
    ratings = [np.nan if event.rating is None else event.rating for event in events]
    stamps = [now if event.timestamp is None else event.timestamp for event in events]
    rows = [catalogue.rows[event.item_id] for event in events]
    return UserHistory(
        history.user,
        np.append(history.items, np.array(rows, dtype=np.int32)),
        np.append(history.timestamps, np.array(stamps, dtype=np.int64)),
        np.append(history.events, np.array([CODES[event.kind] for event in events], dtype=np.int8)),
        np.append(history.ratings, np.array(ratings, dtype=np.float32)),
        np.append(history.reviews, np.array(reviews, dtype=np.int32)),
    )


def _joined(rows: Sequence[UserHistory], texts: tuple[str, ...]) -> Histories:
    return Histories(
        tuple(f"{k:06d}" for k in range(len(rows))),
        np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64),
        np.concatenate([row.items for row in rows]),
        np.concatenate([row.timestamps for row in rows]),
        np.concatenate([row.events for row in rows]),
        np.concatenate([row.ratings for row in rows]),
        np.concatenate([row.reviews for row in rows]),
        texts,
    )


def _nothing() -> UserHistory:
    return UserHistory(
        "",
        np.zeros(0, np.int32),
        np.zeros(0, np.int64),
        np.zeros(0, np.int8),
        np.zeros(0, np.float32),
        np.zeros(0, np.int32),
    )
