"""The types that flow through a partner: catalogue, histories, ranked lists.

All are immutable. Items are referred to by their *row* in the `Catalogue`, users by pseudonym.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from shared.errors import SchemaError

EVENT_KINDS = ("view", "cart", "purchase", "rating", "review", "checkin", "tip", "query", "other")
"""Kinds of event; an event's code is its place in this tuple. Append only: adapters depend on it."""


@dataclass(frozen=True)
class Catalogue:
    """The items of the federation: public, and in the same order at every partner.

    Parameters
    ----------
    item_ids : tuple of str
        Unique ids, sorted: the row of an item does not depend on the order of a file.
    titles, texts, categories : tuple of str
        One entry an item; empty where unknown.
    """

    item_ids: tuple[str, ...]
    titles: tuple[str, ...]
    texts: tuple[str, ...]
    categories: tuple[str, ...]

    def __post_init__(self) -> None:
        if not len(self.item_ids) == len(self.titles) == len(self.texts) == len(self.categories):
            raise SchemaError("Expected one title, text and categories entry for every item id.")
        if list(self.item_ids) != sorted(set(self.item_ids)):
            raise SchemaError("Expected item ids that are unique and sorted.")

    def __len__(self) -> int:
        return len(self.item_ids)

    @cached_property
    def rows(self) -> dict[str, int]:
        """Row of every item id."""
        return {item_id: row for row, item_id in enumerate(self.item_ids)}

    def passages(self) -> list[str]:
        """What BERT reads of each item, in row order: title, then text, then categories not in the text."""
        return [
            _passage(title, text, categories)
            for title, text, categories in zip(self.titles, self.texts, self.categories, strict=True)
        ]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over ids and passages: two sides with one digest mean the same item by the same row."""
        h = hashlib.sha256()
        for item_id, passage in zip(self.item_ids, self.passages(), strict=True):
            for part in (item_id, passage):
                data = part.encode()
                h.update(len(data).to_bytes(8, "big") + data)
        return h.hexdigest()


def _passage(title: str, text: str, categories: str) -> str:
    parts = [title, text]
    if categories and categories not in text:
        parts.append(categories)
    return ". ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class UserHistory:
    """All that a partner holds of one user, in time order: one privacy unit.

    Arrays have one entry an event, shape ``(n,)``: `items` catalogue rows, `timestamps` seconds,
    `events` codes of `EVENT_KINDS`, `ratings` with NaN where there is none, `reviews` rows of
    `Histories.review_texts` with -1 where there is none.
    """

    user: str
    items: NDArray[np.int32]
    timestamps: NDArray[np.int64]
    events: NDArray[np.int8]
    ratings: NDArray[np.float32]
    reviews: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True)
class Histories(Sequence[UserHistory]):
    """Many user histories in columns: user ``k`` owns ``[offsets[k], offsets[k + 1])``.

    Users are sorted by pseudonym, so that the order of the input files leaves no trace.
    Column meanings and dtypes are those of `UserHistory`.
    """

    users: tuple[str, ...]
    offsets: NDArray[np.int64]
    items: NDArray[np.int32]
    timestamps: NDArray[np.int64]
    events: NDArray[np.int8]
    ratings: NDArray[np.float32]
    reviews: NDArray[np.int32]
    review_texts: tuple[str, ...] = field(default=())

    def __post_init__(self) -> None:
        if len(self.offsets) != len(self.users) + 1 or int(self.offsets[-1]) != len(self.items):
            raise SchemaError("Expected offsets with one entry more than users, ending at the event count.")

    def __len__(self) -> int:
        return len(self.users)

    def __getitem__(self, index: int) -> UserHistory:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        k = index % len(self)
        cut = slice(int(self.offsets[k]), int(self.offsets[k + 1]))
        return UserHistory(
            self.users[k],
            self.items[cut],
            self.timestamps[cut],
            self.events[cut],
            self.ratings[cut],
            self.reviews[cut],
        )

    def __iter__(self) -> Iterator[UserHistory]:
        return (self[k] for k in range(len(self)))

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Events of each user, shape ``(users,)``."""
        return np.diff(self.offsets)


@dataclass(frozen=True, slots=True)
class RankedItem:
    """One place of a ranked list."""

    rank: int
    item_id: str
    title: str
    score: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class RankedList:
    """What a partner shows: items by falling score, without those that the user has seen."""

    subject: str
    items: tuple[RankedItem, ...]
