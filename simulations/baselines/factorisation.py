"""Matrix factorisation with the library `implicit`: ALS with confidence weights, and BPR.

Both run in one thread: with a seed the result is then the same every time, which BPR's lock-free updates in several
threads would not be. All partners' users are pooled; a person of two partners is two users for ALS, and one for BPR,
which keeps a vector a user and finds it by pseudonym.

Sources: Y. Hu, Y. Koren and C. Volinsky, "Collaborative filtering for implicit feedback datasets", ICDM 2008;
S. Rendle et al., "BPR: Bayesian personalized ranking from implicit feedback", UAI 2009.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from shared.errors import ConfigError
from shared.schema import Histories
from simulations.baselines.linear import all_seen, seen_items
from simulations.baselines.problem import Budget, Problem, Settings

NOT_INSTALLED = "Expected the package implicit, for als and bpr: pip install 'veilrec[bench]'."


@dataclass(frozen=True, slots=True)
class Als:
    """Users are folded in: their vectors are solved for from the histories that are ranked for."""

    model: Any
    items: int

    def __call__(self, histories: Histories, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores of users, shape (n, I)."""
        seen = csr_matrix(seen_items(histories, users, self.items))
        vectors = self.model.recalculate_user(np.arange(len(users)), seen)
        scores: NDArray[np.float32] = vectors @ self.model.item_factors.T
        return scores


@dataclass(frozen=True, slots=True)
class Bpr:
    """Users are looked up by pseudonym; one who was not trained on gets the mean of all.

    Attributes
    ----------
    places : mapping of str to int
        Row of each user in `user_factors`.
    user_factors : array of float32, shape (users, D)
    item_factors : array of float32, shape (I, D)
    """

    places: Mapping[str, int]
    user_factors: NDArray[np.float32]
    item_factors: NDArray[np.float32]

    def __call__(self, histories: Histories, users: NDArray[np.int64]) -> NDArray[np.float32]:
        """Scores of users, shape (n, I)."""
        stranger = len(self.user_factors)
        factors = np.vstack([self.user_factors, self.user_factors.mean(0, keepdims=True)])
        rows = [self.places.get(histories.users[int(k)], stranger) for k in users]
        scores: NDArray[np.float32] = factors[rows] @ self.item_factors.T
        return scores


def als(problem: Problem, settings: Settings, budget: Budget | None, seed: int) -> Als:
    """Settings: ``factors``, ``regularization``, ``alpha``, ``iterations``, as in `implicit`.

    Raises
    ------
    ConfigError
        If `implicit` is not installed.
    """
    try:
        from implicit.cpu.als import AlternatingLeastSquares
    except ImportError:
        raise ConfigError(NOT_INSTALLED) from None
    model = _fitted(AlternatingLeastSquares, all_seen(problem.histories, problem.items), settings, seed)
    return Als(model, problem.items)


def bpr(problem: Problem, settings: Settings, budget: Budget | None, seed: int) -> Bpr:
    """Settings: ``factors``, ``learning_rate``, ``regularization``, ``iterations``, as in `implicit`.

    Raises
    ------
    ConfigError
        If `implicit` is not installed.
    """
    try:
        from implicit.cpu.bpr import BayesianPersonalizedRanking
    except ImportError:
        raise ConfigError(NOT_INSTALLED) from None
    places: dict[str, int] = {}
    for part in problem.histories:
        for user in part.users:
            places.setdefault(user, len(places))
    model = _fitted(BayesianPersonalizedRanking, _pooled(problem, places), settings, seed)
    return Bpr(places, model.user_factors, model.item_factors)


def _fitted(kind: Any, seen: csr_matrix, settings: Settings, seed: int) -> Any:
    """A model of `implicit` with these settings, in one thread."""
    whole = {name: int(settings[name]) for name in ("factors", "iterations")}
    with threadpool_limits(1, "blas"):  # else implicit warns, and BLAS threads get into each other's way
        model = kind(**{**settings, **whole}, num_threads=1, random_state=seed)
        model.fit(seen, show_progress=False)
    return model


def _pooled(problem: Problem, places: Mapping[str, int]) -> csr_matrix:
    """Binary matrix with one row a pseudonym, shape (users, I)."""
    rows = [np.repeat([places[user] for user in part.users], part.lengths) for part in problem.histories]
    pairs = np.concatenate(rows), np.concatenate([part.items for part in problem.histories])
    matrix = csr_matrix((np.ones(len(pairs[0]), dtype=np.float32), pairs), shape=(len(places), problem.items))
    matrix.data[:] = 1
    return matrix
