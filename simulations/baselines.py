"""Classical baselines, fitted centrally and without privacy: what a federated model has to beat.

Each is ``fit(histories, items) -> Scorer`` with the histories of all partners, and reads a history as a set
of items: how often, in which order and with what rating does not matter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack
from scipy.sparse import csr_array

from shared.errors import ConfigError, EmptyHistoryError
from shared.schema import Histories
from simulations.evaluation import Scorer, seen_pairs

EASE_RIDGE = 500.0
"""Ridge weight of EASE, its authors' for MovieLens-20M; one value for all data, so that nothing is tuned."""


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
        matrix = _seen_items(part, np.arange(len(part)), items)
        counts += np.bincount(matrix.indices, minlength=items)
    if not counts.any():
        raise EmptyHistoryError("Expected at least one interaction to fit a baseline on.")
    return counts


def popularity(histories: Sequence[Histories], items: int) -> Scorer:
    """Every user gets the same list: items by the number of distinct users that have them."""
    return _Constant(item_counts(histories, items).astype(np.float32))


def item_knn(histories: Sequence[Histories], items: int) -> Scorer:
    """Sum of the cosines between an item and those of the history, over binary user vectors, all neighbours.

    ``score = x S``, ``S_ij = |U_i & U_j| / sqrt(|U_i| |U_j|)`` for i != j, ``S_ii = 0``.

    Source: M. Deshpande and G. Karypis, "Item-based top-N recommendation algorithms", ACM TOIS 22(1),
    2004.
    """
    weights = _co_occurrence(histories, items)
    norms = np.sqrt(np.maximum(weights.diagonal(), 1))
    weights /= norms[:, None]
    weights /= norms[None, :]
    np.fill_diagonal(weights, 0)
    return _Linear(weights)


def ease(histories: Sequence[Histories], items: int, *, ridge: float = EASE_RIDGE) -> Scorer:
    """EASE: the linear item-item model with an empty diagonal that best rebuilds the histories.

    ``P = (XT X + ridge I)^-1``, ``B_ij = -P_ij / P_jj`` for i != j, ``B_ii = 0``; ``score = x B``. Takes
    items^2 numbers of memory and items^3 steps.

    Source: H. Steck, "Embarrassingly shallow autoencoders for sparse data", WWW 2019, eq. 8.

    Raises
    ------
    ConfigError
        If the ridge weight is not positive, or so small that the matrix cannot be inverted in float32.
    """
    if not ridge > 0:
        raise ConfigError(f"Expected ridge above 0, got ridge={ridge}.")
    weights = _co_occurrence(histories, items)
    weights[np.diag_indices(items)] += ridge
    weights = _inverse(weights)
    weights /= -weights.diagonal()[None, :]
    np.fill_diagonal(weights, 0)
    return _Linear(weights)


BASELINES: Mapping[str, Callable[[Sequence[Histories], int], Scorer]] = {
    "popularity": popularity,
    "item_knn": item_knn,
    "ease": ease,
}
"""By the names that ``run.json`` has for them."""


@dataclass(frozen=True, slots=True)
class _Constant:
    scores: NDArray[np.float32]  # (items,)

    def __call__(self, histories: Histories, users: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.tile(self.scores, (len(users), 1))


@dataclass(frozen=True, slots=True)
class _Linear:
    weights: NDArray[np.float32]  # (items, items)

    def __call__(self, histories: Histories, users: NDArray[np.int64]) -> NDArray[np.float32]:
        scores: NDArray[np.float32] = _seen_items(histories, users, len(self.weights)) @ self.weights
        return scores


def _co_occurrence(histories: Sequence[Histories], items: int) -> NDArray[np.float32]:
    """XT X of the binary user-item matrix X of all partners, dense, shape ``(items, items)``.

    float32 counts exactly up to 2^24 users.
    """
    total = np.zeros((items, items), dtype=np.float32)
    for part in histories:
        seen = _seen_items(part, np.arange(len(part)), items)
        total += (seen.T @ seen).toarray()
    if not total.any():
        raise EmptyHistoryError("Expected at least one interaction to fit a baseline on.")
    return total


def _inverse(matrix: NDArray[np.float32]) -> NDArray[np.float32]:
    """Inverse of a symmetric positive definite matrix, through Cholesky: a third of the steps of `inv`."""
    factor, failed = lapack.spotrf(matrix, lower=1)
    if failed:
        raise ConfigError("Expected a larger ridge: the co-occurrence matrix cannot be inverted.")
    inverse: NDArray[np.float32] = lapack.spotri(factor, lower=1, overwrite_c=1)[0]  # right below the diagonal only
    lower = np.tril(inverse)
    return lower + np.tril(lower, -1).T


def _seen_items(histories: Histories, users: NDArray[np.int64], items: int) -> csr_array:
    """Binary matrix of the users' histories, shape ``(n, items)``."""
    pairs = seen_pairs(histories, users)
    matrix = csr_array((np.ones(len(pairs[0]), dtype=np.float32), pairs), shape=(len(users), items))
    matrix.data[:] = 1  # an item that was viewed and bought is one item; csr_array has summed the two
    return matrix
