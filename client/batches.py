"""From user histories to the tensors that the behaviour stage reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from shared.config import ModelConfig, TrainingConfig
from shared.model.behaviour import RATING_STEPS, EventBatch
from shared.schema import Histories, UserHistory

PADDING = 8
"""Training windows are padded to multiples of this."""


@dataclass(frozen=True, slots=True)
class Window:
    """The part of one history that one pass reads: events and, for training, the targets after them."""

    items: NDArray[np.int32]
    events: NDArray[np.int8]
    ratings: NDArray[np.int64]
    reviews: NDArray[np.int32]
    targets: NDArray[np.int64]


class BatchMaker:
    """Makes `EventBatch`es of one partner's histories.

    Parameters
    ----------
    histories : Histories
    review_vectors : (R, H) float16
        Text vectors of ``histories.review_texts``.
    model : ModelConfig
    """

    def __init__(self, histories: Histories, review_vectors: NDArray[np.float16], model: ModelConfig) -> None:
        self.histories = histories
        self._review_vectors = review_vectors
        self._model = model

    def training(self, users: NDArray[np.int64], training: TrainingConfig, key: bytes) -> Iterator[EventBatch]:
        """Batches of the users' training windows, users of one padded length together.

        What is read of a user, and to which length it is padded, depends on the user's own history, the public
        configuration and `key` alone: not on who else is in the batch. (Padding to the longest of a batch
        would let one user change the arithmetic of all others: at worst, from numbers to NaN.)
        """
        windows = [self._training_window(self.histories[int(k)], training, key) for k in users]
        yield from self._batches(windows, training.microbatch)

    def latest(self, users: NDArray[np.int64], batch_size: int) -> Iterator[tuple[NDArray[np.int64], EventBatch]]:
        """Batches of the users' newest events, with the places in `users` that each batch holds."""
        order = np.argsort(self.histories.lengths[users], kind="stable")
        for start in range(0, len(order), batch_size):
            places = order[start : start + batch_size]
            windows = [self._latest_window(self.histories[int(users[k])]) for k in places]
            yield places, self._collate(windows, _longest(windows))

    def one(self, history: UserHistory) -> EventBatch:
        """A batch of one: the user's newest events."""
        window = self._latest_window(history)
        return self._collate([window], len(window.items))

    def _batches(self, windows: list[Window], size: int) -> Iterator[EventBatch]:
        alike: dict[int, list[Window]] = {}
        for window in windows:
            alike.setdefault(self._padded(len(window.items)), []).append(window)
        for width, group in sorted(alike.items()):
            for start in range(0, len(group), size):
                yield self._collate(group[start : start + size], width)

    def _padded(self, length: int) -> int:
        """The length to which a window is padded: whole steps of `PADDING`, up to the model's most."""
        return min(-(-length // PADDING) * PADDING, self._model.max_events)

    def _latest_window(self, history: UserHistory) -> Window:
        cut = slice(max(0, len(history) - self._model.max_events), None)
        return _window(history, np.arange(len(history))[cut], np.zeros(0, dtype=np.int64), self._model.rating_max)

    def _training_window(self, history: UserHistory, training: TrainingConfig, key: bytes) -> Window:
        rng = _rng(key, history.user)
        n, T = len(history), self._model.max_events
        end = n - 1  # the last event is only ever a target
        if end > T and rng.random() < 0.5:
            end = int(rng.integers(T, end + 1))
        kept = np.arange(max(0, end - T), max(end, 1))
        if training.drop_events and len(kept) > 2:
            stays = rng.random(len(kept)) >= training.drop_events
            stays[-1] = True
            kept = kept[stays]
        return _window(history, kept, next_new_items(history.items)[kept], self._model.rating_max)

    def _collate(self, windows: Sequence[Window], width: int) -> EventBatch:
        lengths = np.array([len(window.items) for window in windows], dtype=np.int64)
        shape = (len(windows), width)
        items, targets = np.full(shape, -1, dtype=np.int64), np.full(shape, -1, dtype=np.int64)
        events, ratings = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
        reviews = np.full(shape, -1, dtype=np.int64)
        for row, window in enumerate(windows):
            n = len(window.items)
            items[row, :n], events[row, :n] = window.items, window.events
            ratings[row, :n], reviews[row, :n] = window.ratings, window.reviews
            targets[row, : len(window.targets)] = window.targets
        return EventBatch(
            torch.from_numpy(items),
            torch.from_numpy(events),
            torch.from_numpy(ratings),
            torch.from_numpy(lengths),
            self._texts(reviews),
            torch.from_numpy(targets),
        )

    def _texts(self, reviews: NDArray[np.int64]) -> torch.Tensor | None:
        if not len(self._review_vectors) or not (reviews >= 0).any():
            return None
        vectors = self._review_vectors[np.maximum(reviews, 0)].astype(np.float32)
        return torch.from_numpy(vectors * (reviews >= 0)[..., None])


def _longest(windows: Sequence[Window]) -> int:
    return max(len(window.items) for window in windows)


def next_new_items(items: NDArray[np.int32]) -> NDArray[np.int64]:
    """After each event, the next item that the user had not met before; -1 where there is none.

    A view, a cart and a purchase of one item are one decision: all three predict what comes next.
    """
    n = len(items)
    first = np.zeros(n, dtype=bool)
    first[np.unique(items, return_index=True)[1]] = True
    places = np.where(first, np.arange(n), n)
    following = np.minimum.accumulate(places[::-1])[::-1]  # next first meeting at or after each place
    after = np.append(following[1:], n)
    return np.where(after < n, items[np.minimum(after, n - 1)], -1).astype(np.int64)


def _window(history: UserHistory, kept: NDArray[np.int64], targets: NDArray[np.int64], rating_max: float) -> Window:
    steps = np.clip(np.ceil(history.ratings[kept] * (RATING_STEPS / rating_max)), 1, RATING_STEPS)
    return Window(
        history.items[kept],
        history.events[kept],
        np.nan_to_num(steps, nan=0.0).astype(np.int64),
        history.reviews[kept],
        targets,
    )


def _rng(key: bytes, user: str) -> np.random.Generator:
    digest = hashlib.blake2b(user.encode(), key=key, digest_size=16).digest()
    return np.random.Generator(np.random.Philox(key=int.from_bytes(digest, "big")))
