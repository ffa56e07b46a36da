"""Scorers that are one matrix product: the same list for everybody, or item-to-item weights.

Shapes: n users, I items, W events of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, csr_matrix

from shared.schema import Histories
from simulations.evaluation import seen_pairs


@dataclass(frozen=True, slots=True)
class Constant:
    """Every user gets the same `scores`, shape (I,)."""

    scores: NDArray[np.float32]

    def __call__(self, histories: Histories, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores of users, shape (n, I)."""
        return np.tile(self.scores, (len(users), 1))


@dataclass(frozen=True, slots=True)
class Linear:
    """Sum of the rows of the user's items.

    Attributes
    ----------
    weights : array of float32, shape (I, I)
        Row = an item of the history, column = the item that is scored.
    decay : float
        Weight of an event by its age in events. 1 reads a history as a set.
    """

    weights: NDArray[np.float32]
    decay: float = 1.0

    def __call__(self, histories: Histories, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores of users, shape (n, I)."""
        items = len(self.weights)
        if self.decay == 1.0:
            read = seen_items(histories, users, items)
        else:
            read = recent_items(histories, users, items, self.decay)
        scores: NDArray[np.float32] = read @ self.weights
        return scores


def seen_items(histories: Histories, users: NDArray[np.int64], items: int) -> csr_array:
    """Binary matrix of the users' histories, shape (n, I)."""
    pairs = seen_pairs(histories, users)
    matrix = csr_array((np.ones(len(pairs[0]), dtype=np.float32), pairs), shape=(len(users), items))
    matrix.data[:] = 1  # an item that was viewed and bought is one item; csr_array has summed the two
    return matrix


def recent_items(histories: Histories, users: NDArray[np.int64], items: int, decay: float) -> csr_array:
    """The users' histories as sums of ``decay^age`` over the events of each item, shape (n, I)."""
    rows, columns = seen_pairs(histories, users)
    ends = np.cumsum(histories.lengths[users])
    ages = (ends[rows] - 1 - np.arange(len(rows))).astype(np.float32)
    return csr_array((np.float32(decay) ** ages, (rows, columns)), shape=(len(users), items))


def everybody(histories: Histories) -> NDArray[np.int64]:
    """The indices of all users."""
    return np.arange(len(histories), dtype=np.int64)


def all_seen(histories: Sequence[Histories], items: int) -> csr_matrix:
    """Binary matrix of all partners' users one below the other, shape (users, I), float32."""
    parts = [seen_items(part, everybody(part), items) for part in histories]
    indptr = np.concatenate([[0], np.cumsum(np.concatenate([np.diff(part.indptr) for part in parts]))])
    data, indices = (np.concatenate([getattr(part, name) for part in parts]) for name in ("data", "indices"))
    return csr_matrix((data, indices, indptr), shape=(len(indptr) - 1, items))
