"""Classical baselines, fitted centrally and without privacy: what a federated model has to beat.

Each is ``fit(histories, items) -> Scorer`` with the histories of all partners, and learns from a history as a
set of items: how often, in which order and with what rating does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

from shared.errors import ConfigError, EmptyHistoryError
from shared.schema import Histories
from simulations.baselines.linear import Constant, Linear, all_seen, everybody, seen_items
from simulations.evaluation import Scorer

EASE_RIDGE = 500.0
"""Ridge weight of EASE where it is not tuned: its authors' for MovieLens-20M."""


def item_counts(histories: Sequence[Histories], items: int) -> NDArray[np.int64]:
    """Training interactions of each item, shape ``(items,)``: distinct (user, item) pairs over all partners.

    A user of several partners counts once at each: without a common key nobody can tell that they are one.

    Raises
    ------
    EmptyHistoryError
        If there is not one event.
    """
    counts = np.zeros(items, dtype=np.int64)
    for part in histories:
        counts += np.bincount(seen_items(part, everybody(part), items).indices, minlength=items)
    if not counts.any():
        raise EmptyHistoryError("Expected at least one interaction to fit a baseline on.")
    return counts


def popularity(histories: Sequence[Histories], items: int) -> Scorer:
    """Every user gets the same list: items by the number of distinct users that have them."""
    return Constant(item_counts(histories, items).astype(np.float32))


def item_knn(histories: Sequence[Histories], items: int, *, neighbours: int = 0, shrink: float = 0.0) -> Scorer:
    """Sum of the cosines between an item and those of the history, over binary user vectors.

    ``score = x S``, ``S_ij = |U_i & U_j| / (sqrt(|U_i| |U_j|) + shrink)`` for i != j, ``S_ii = 0``.

    Parameters
    ----------
    histories : sequence of Histories
    items : int
    neighbours : int, default 0
        Only the most similar items of each item of the history count; 0: all.
    shrink : float, default 0
        Takes similarity from pairs that few users have.

    Raises
    ------
    ConfigError
        If a parameter is negative.

    Notes
    -----
    Source: M. Deshpande and G. Karypis, "Item-based top-N recommendation algorithms", ACM TOIS 22(1), 2004;
    shrinkage: R. Bell and Y. Koren, "Scalable collaborative filtering with jointly derived neighborhood
    interpolation weights", ICDM 2007.
    """
    if neighbours < 0 or shrink < 0:
        raise ConfigError(f"Expected neighbours and shrink >= 0, got neighbours={neighbours}, shrink={shrink}.")
    weights = _co_occurrence(histories, items)
    norms = np.sqrt(np.maximum(weights.diagonal(), 1))
    weights /= np.outer(norms, norms) + np.float32(shrink)
    np.fill_diagonal(weights, 0)
    return Linear(nearest(weights, neighbours))


def nearest(weights: NDArray[np.float32], neighbours: int) -> NDArray[np.float32]:
    """Keep the `neighbours` largest entries of each row, with all that equal the last of them; 0 keeps all."""
    if not 0 < neighbours < len(weights):
        return weights
    place = len(weights) - neighbours
    bars = np.partition(weights, place, axis=1)[:, place : place + 1]  # (I, 1)
    return np.where(weights >= bars, weights, np.float32(0))


def ease(histories: Sequence[Histories], items: int, *, ridge: float = EASE_RIDGE, decay: float = 1.0) -> Scorer:
    """EASE: the linear item-item model with an empty diagonal that best rebuilds the histories.

    ``P = (XT X + ridge I)^-1``, ``B_ij = -P_ij / P_jj`` for i != j, ``B_ii = 0``; ``score = x B``. Takes
    items^2 numbers of memory and items^3 steps.

    Parameters
    ----------
    histories : sequence of Histories
    items : int
    ridge : float
    decay : float, default 1
        Below 1 the history that is ranked for counts by recency, ``decay^age``; learning never does.

    Raises
    ------
    ConfigError
        If the ridge weight is not positive, or so small that the matrix cannot be inverted in float32.

    Notes
    -----
    Source: H. Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019, eq. 8.
    """
    if not ridge > 0:
        raise ConfigError(f"Expected ridge above 0, got ridge={ridge}.")
    if 2 * sum(len(part) for part in histories) < items:
        return Linear(_empty_diagonal(_inverse_of_few_users(histories, items, ridge)), decay)
    return Linear(ease_weights(_co_occurrence(histories, items), ridge), decay)


def ease_weights(gram: NDArray[np.float32], ridge: float) -> NDArray[np.float32]:
    """EASE from a Gram matrix, shape (I, I); overwrites it."""
    gram[np.diag_indices(len(gram))] += ridge
    return _empty_diagonal(_inverse(gram))


def _empty_diagonal(P: NDArray[np.float32]) -> NDArray[np.float32]:
    P /= -P.diagonal()[None, :]
    np.fill_diagonal(P, 0)
    return P


BASELINES: Mapping[str, Callable[[Sequence[Histories], int], Scorer]] = {
    "popularity": popularity,
    "item_knn": item_knn,
    "ease": ease,
}
"""The quick ones, untuned, by the names that ``run.json`` has for them."""


def _co_occurrence(histories: Sequence[Histories], items: int) -> NDArray[np.float32]:
    """XT X of the binary user-item matrix X of all partners, dense, shape ``(items, items)``.

    float32 counts exactly up to 2^24 users.
    """
    total = np.zeros((items, items), dtype=np.float32)
    for part in histories:
        seen = seen_items(part, everybody(part), items)
        total += (seen.T @ seen).toarray()
    if not total.any():
        raise EmptyHistoryError("Expected at least one interaction to fit a baseline on.")
    return total


def _inverse_of_few_users(histories: Sequence[Histories], items: int, ridge: float) -> NDArray[np.float32]:
    """``(XT X + ridge I)^-1 = (I - XT (X XT + ridge I)^-1 X) / ridge`` (Woodbury): items^2 users steps."""
    X = all_seen(histories, items)
    if not X.nnz:
        raise EmptyHistoryError("Expected at least one interaction to fit a baseline on.")
    kernel = (X @ X.T).toarray()
    kernel[np.diag_indices(len(kernel))] += ridge
    P: NDArray[np.float32] = X.T @ np.asarray(_inverse(kernel) @ X) * np.float32(-1 / ridge)
    P[np.diag_indices(items)] += 1 / ridge
    return P


def _inverse(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inverse of a symmetric positive definite matrix, through Cholesky: a third of the steps of `inv`."""
    factor, failed = lapack.spotrf(matrix, lower=1)
    if failed:
        raise ConfigError("Expected a larger ridge: the co-occurrence matrix cannot be inverted.")
    inverse: NDArray[np.float32] = lapack.spotri(factor, lower=1, overwrite_c=1)[0]  # right below the diagonal only
    lower = np.tril(inverse)
    return lower + np.tril(lower, -1).T
