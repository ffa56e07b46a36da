"""The second moments of histories that the collaborative prior is made from: one clipped sum.

Under noise every user adds ``G_u = y y^T`` (y: the user's distinct items, weighted by recency and scaled to norm 1).
Without it ``[w G_u, sqrt(1 - w^2) B_u]``, with ``B_u = sum_p phi_p e_p^T / sqrt(m)`` over the user's m newest first
meetings p, phi_p the decayed items before p, scaled to norm 1. Where that is too much, the user adds
``[sqrt(1 - v^2) y, v y y^T S]`` with public signs S (without noise beside ``B_u^T S``), or y alone, without
weights. See `shared.model.prior` for which, and for what becomes of the sum.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from shared.config import PriorConfig
from shared.messages import ClippedSum
from shared.model.prior import COOCCURRENCE_WEIGHT, SKETCH_WEIGHT, pack_symmetric, sketch_signs, statistics_size
from shared.schema import Histories

CHUNK = 50_000
"""Targets whose histories are held at once."""
WINDOW = 50
"""Events before a target that are read."""


def clipped_statistics(
    histories: Histories, n_items: int, config: PriorConfig, kind: str, *, clip_norm: float
) -> ClippedSum:
    """Sum the statistics of all users; the layout is that of `shared.model.prior.statistics_size`.

    Guarantees
    ----------
    One user moves the sum by at most `clip_norm` in L2: ``|y y^T|_F = |y|^2 <= 1``, and since the m
    targets of a user are distinct items, the columns of B_u do not overlap and
    ``|B_u|_F^2 = sum_p |phi_p|^2 / m <= 1``. The packing keeps norms, and w^2 + (1 - w^2) = 1. In a sketch
    ``y^T S`` and every ``phi_p^T S`` are clipped to norm 1, so that ``|y y^T S|_F = |y| |y^T S| <= 1`` and
    ``|B_u^T S|_F <= 1`` whatever the signs.
    """
    if kind == "popularity":
        values = popularity_votes(histories, n_items)
    elif kind in ("sketch", "hybrid_sketch"):
        values = _sketched(_incidence(histories, n_items, config.history_decay))
    else:
        values = pack_symmetric(cooccurrences(histories, n_items, config.history_decay))
    if kind.startswith("hybrid"):
        of = next_item_moments if kind == "hybrid" else sketched_next_items
        B = of(histories, n_items, config).ravel()
        values = np.concatenate([COOCCURRENCE_WEIGHT * values, math.sqrt(1 - COOCCURRENCE_WEIGHT**2) * B])
    if len(values) != statistics_size(kind, n_items):
        raise AssertionError(f"statistics of kind {kind} have another size than declared")
    return ClippedSum(clip_norm * values, clip_norm)


def _sketched(y: sparse.csr_matrix) -> NDArray[np.float64]:
    """``sum_u [sqrt(1 - v^2) y, v y clip(y^T S)]``, flat; the clip is at norm 1."""
    n_items = y.shape[1]
    seen = _clipped(y @ sketch_signs(n_items))  # (U, r)
    votes = np.asarray(y.sum(axis=0)).ravel()
    return np.concatenate([math.sqrt(1 - SKETCH_WEIGHT**2) * votes, SKETCH_WEIGHT * (y.T @ seen).ravel()])


def _clipped(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of norm at most 1."""
    norms: NDArray[np.float64] = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(norms, 1.0)


def popularity_votes(histories: Histories, n_items: int) -> NDArray[np.float64]:
    """``sum_u y``, shape (I,): votes of norm 1 a user."""
    votes: NDArray[np.float64] = np.asarray(_incidence(histories, n_items).sum(axis=0)).ravel()
    return votes


def cooccurrences(histories: Histories, n_items: int, decay: float = 1.0) -> NDArray[np.float64]:
    """``sum_u y y^T``, shape (I, I)."""
    y = _incidence(histories, n_items, decay)
    gram: NDArray[np.float64] = (y.T @ y).toarray()
    return gram


def next_item_moments(histories: Histories, n_items: int, config: PriorConfig) -> NDArray[np.float64]:
    """``sum_u sum_p phi_p e_p^T / sqrt(m)``, shape (I, I); row = history item, column = target."""
    moments = np.zeros((n_items, n_items))
    for phi, items, m in next_item_rows(histories, n_items, decay=config.decay, most=config.max_targets):
        following = sparse.csr_matrix((1.0 / np.sqrt(m), (np.arange(len(items)), items)), shape=phi.shape)
        moments += (phi.T @ following).toarray()
    return moments


def sketched_next_items(histories: Histories, n_items: int, config: PriorConfig) -> NDArray[np.float64]:
    """``sum_u sum_p e_p clip(phi_p^T S) / sqrt(m)``, shape (I, r); row = target."""
    signs = sketch_signs(n_items)
    moments = np.zeros_like(signs)
    for phi, items, m in next_item_rows(histories, n_items, decay=config.decay, most=config.max_targets):
        following = sparse.csr_matrix((1.0 / np.sqrt(m), (np.arange(len(items)), items)), shape=phi.shape)
        moments += following.T @ _clipped(phi @ signs)
    return moments


def next_item_rows(
    histories: Histories, n_items: int, *, decay: float, most: int, window: int = WINDOW
) -> Iterator[tuple[sparse.csr_matrix, NDArray[np.int32], NDArray[np.int64]]]:
    """The newest `most` first meetings p of each user, in parts that fit in memory.

    Yields
    ------
    phi : csr_matrix, shape (P, I)
        ``phi_p``: the at most `window` items before p by ``decay^age``, of norm 1.
    items : array of int32, shape (P,)
        What was met.
    m : array of int64, shape (P,)
        How many meetings of the same user count.
    """
    user = np.repeat(np.arange(len(histories)), histories.lengths)
    position = np.arange(len(user)) - histories.offsets[user]
    targets = _targets(histories.items, user, position, n_items, most)
    counts = np.bincount(user[targets], minlength=len(histories))
    for start in range(0, len(targets), CHUNK):
        some = targets[start : start + CHUNK]
        phi = _decayed(histories.items, some, position[some], n_items, decay, window)
        yield phi, histories.items[some], counts[user[some]]


def _decayed(
    items: NDArray[np.int32],
    targets: NDArray[np.int64],
    position: NDArray[np.int64],
    n_items: int,
    decay: float,
    window: int,
) -> sparse.csr_matrix:
    """``phi_p`` of each target: the items before it by ``decay^age``, those met twice added up, of norm 1."""
    ages = np.arange(min(window, int(position.max(initial=0))))
    rows, age = np.nonzero(position[:, None] > ages)  # (row of a target, age of an event before it)
    weights = decay ** age.astype(np.float64)
    phi = sparse.csr_matrix((weights, (rows, items[targets[rows] - 1 - age])), shape=(len(targets), n_items))
    norms = np.sqrt(np.asarray(phi.multiply(phi).sum(axis=1)).ravel())
    return sparse.diags(1.0 / norms).dot(phi).tocsr()


def _targets(
    items: NDArray[np.int32], user: NDArray[np.int64], position: NDArray[np.int64], n_items: int, most: int
) -> NDArray[np.int64]:
    """Events at which a user met an item for the first time, with something before: the newest `most` of each."""
    first = np.zeros(len(items), dtype=bool)
    first[np.unique(user * n_items + items, return_index=True)[1]] = True
    found = np.flatnonzero(first & (position > 0))
    counts = np.bincount(user[found], minlength=int(user.max(initial=-1)) + 1)
    left = (np.cumsum(counts)[user[found]] - 1) - np.arange(len(found))  # of the user's targets after this one
    return found[left < most]


def _incidence(histories: Histories, n_items: int, decay: float = 1.0) -> sparse.csr_matrix:
    """Users' distinct items as rows of norm 1, shape (U, I): each weighs ``decay^age`` by the newest event with it."""
    user = np.repeat(np.arange(len(histories)), histories.lengths)
    age = np.repeat(histories.offsets[1:], histories.lengths) - 1 - np.arange(len(user))
    # np.unique keeps the first of equals: read from the newest event back, that is the newest.
    newest = len(user) - 1 - np.unique((user * n_items + histories.items)[::-1], return_index=True)[1]
    # No user's newest item has weight 0, however small the decay.
    weights = decay ** age[newest].astype(np.float64)
    y = sparse.csr_matrix((weights, (user[newest], histories.items[newest])), shape=(len(histories), n_items))
    norms = np.sqrt(np.asarray(y.multiply(y).sum(axis=1)).ravel())
    return sparse.diags(1.0 / np.where(norms > 0, norms, 1.0)).dot(y).tocsr()
