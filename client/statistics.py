"""The second moments of histories that the collaborative prior is made from: one clipped sum.

Every user adds ``[w G_u, sqrt(1 - w^2) B_u]`` with ``G_u = y y^T`` (y: the user's distinct newest
items, scaled to norm 1) and ``B_u = sum_p phi_p e_p^T / sqrt(m)`` over the user's m newest first
meetings p, phi_p the decayed items before p, scaled to norm 1. See `shared.model.prior` for what
becomes of the sum.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from shared.config import PriorConfig
from shared.messages import ClippedSum
from shared.model.prior import COOCCURRENCE_WEIGHT, pack_symmetric, statistics_size
from shared.schema import Histories

WINDOW = 50
"""Events before a target that are read, and items of a user that enter the co-occurrences."""


def clipped_statistics(
    histories: Histories, n_items: int, config: PriorConfig, kind: str, *, clip_norm: float
) -> ClippedSum:
    """Sum the statistics of all users; the layout is that of `shared.model.prior.statistics_size`.

    Guarantees
    ----------
    One user moves the sum by at most `clip_norm` in L2: ``|y y^T|_F = |y|^2 <= 1``, and since the m
    targets of a user are distinct items, the rows of B_u do not overlap and
    ``|B_u|_F^2 = sum_p |phi_p|^2 / m <= 1``. The packing keeps norms, and w^2 + (1 - w^2) = 1.
    """
    if kind == "popularity":
        y = _incidence(histories, n_items)
        return ClippedSum(clip_norm * np.asarray(y.multiply(y).sum(axis=0)).ravel(), clip_norm)
    G, B = cooccurrences(histories, n_items), next_item_moments(histories, n_items, config)
    values = np.concatenate(
        [COOCCURRENCE_WEIGHT * pack_symmetric(G), math.sqrt(1 - COOCCURRENCE_WEIGHT**2) * B.ravel()]
    )
    if len(values) != statistics_size(kind, n_items):
        raise AssertionError(f"statistics of kind {kind} have another size than declared")
    return ClippedSum(clip_norm * values, clip_norm)


def cooccurrences(histories: Histories, n_items: int) -> NDArray[np.float64]:
    """``sum_u y y^T``, shape (I, I)."""
    y = _incidence(histories, n_items)
    gram: NDArray[np.float64] = (y.T @ y).toarray()
    return gram


def next_item_moments(histories: Histories, n_items: int, config: PriorConfig) -> NDArray[np.float64]:
    """``sum_u sum_p phi_p e_p^T / sqrt(m)``, shape (I, I); row = history item, column = target."""
    rows: list[NDArray[np.int64]] = []
    columns: list[NDArray[np.int64]] = []
    values: list[NDArray[np.float64]] = []
    ages = config.decay ** np.arange(WINDOW, dtype=np.float64)
    for history in histories:
        items = history.items.astype(np.int64)
        firsts = np.sort(np.unique(items, return_index=True)[1])
        places = firsts[firsts > 0][-config.max_targets :]
        for p in places:
            before = items[max(0, p - WINDOW) : p][::-1]
            phi = _summed(before, ages[: len(before)])
            rows.append(phi[0])
            columns.append(np.full(len(phi[0]), items[p]))
            values.append(phi[1] / (np.linalg.norm(phi[1]) * math.sqrt(len(places))))
    if not rows:
        return np.zeros((n_items, n_items))
    index = np.concatenate(rows) * n_items + np.concatenate(columns)
    weights = np.concatenate(values).astype(np.float64)
    flat = np.bincount(index, weights=weights, minlength=n_items * n_items).astype(np.float64)
    return flat.reshape(n_items, n_items)


def _summed(items: NDArray[np.int64], weights: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Distinct items with their summed weights: a repeated item counts as one coordinate of phi."""
    unique, inverse = np.unique(items, return_inverse=True)
    if len(unique) == len(items):
        return items, weights
    return unique, np.bincount(inverse, weights=weights).astype(np.float64)


def _incidence(histories: Histories, n_items: int) -> sparse.csr_matrix:
    """Users' newest distinct items as rows of norm 1, shape (U, I)."""
    columns = [np.unique(history.items[-WINDOW:]) for history in histories]
    counts = np.array([len(c) for c in columns], dtype=np.int64)
    values = np.repeat(1.0 / np.sqrt(np.maximum(counts, 1)), counts)
    rows = np.repeat(np.arange(len(columns)), counts)
    flat = np.concatenate(columns) if columns else np.zeros(0, dtype=np.int64)
    return sparse.csr_matrix((values, (rows, flat)), shape=(len(columns), n_items))
