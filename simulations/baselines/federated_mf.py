"""Federated matrix factorisation, as repositories of federated recommenders do it.

User vectors never leave a user's partner. In each round the coordinator sends the item factors Q; every user that
takes part solves for the own vector p in closed form and adds the gradient of Q under the own data to a sum; the
coordinator divides by the public number of users and takes a step of Adam. With a budget, users are Poisson-sampled,
a user's gradient is clipped to norm 1 as one vector, and the sum gets Gaussian noise: user-level DP on Q.

``p = argmin sum_i c_i (x_i - p q_i)^2 + ridge |p|^2``, gradient of Q: ``-c_i (x_i - p q_i) p``, with c_i = 1 + alpha
on the user's items and 1 on all others.

Source: M. Ammad-ud-din et al., "Federated collaborative filtering for privacy-preserving personalized recommendation
system", arXiv:1901.09888, eqs. 6 to 9; averaging as in B. McMahan et al., AISTATS 2017; DP as in H. B. McMahan et
al., "Learning differentially private recurrent language models", ICLR 2018.

Shapes: n users, I items, D factors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from shared.schema import Histories
from simulations.baselines.linear import everybody, seen_items
from simulations.baselines.noise import step_noise
from simulations.baselines.problem import Budget, Problem, Settings

USERS_AT_ONCE = 512
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class FederatedMf:
    """Item factors; users solve for their vectors where they are ranked for.

    Attributes
    ----------
    factors : array of float32, shape (I, D)
    alpha, ridge : float
    """

    factors: Floats
    alpha: float
    ridge: float

    def __call__(self, histories: Histories, users: NDArray[np.int64]) -> Floats:
        """Scores of users, shape (n, I)."""
        return user_vectors(seen_items(histories, users, len(self.factors)), self) @ self.factors.T


def federated_mf(problem: Problem, settings: Settings, budget: Budget | None, seed: int) -> FederatedMf:
    """Train the item factors round by round.

    Settings: ``factors``, ``alpha``, ``ridge``, ``rounds``, ``sampling_rate``, ``learning_rate`` (of Adam). The clip
    norm is 1 with and without a budget: it is of no matter to Adam, and keeps heavy users from deciding alone.
    """
    q, rounds = settings["sampling_rate"], int(settings["rounds"])
    stddev = step_noise(problem, budget, sampling_rate=q, steps=rounds) * problem.partners_per_user
    rng = np.random.default_rng(seed)
    factors = rng.normal(scale=0.1, size=(problem.items, int(settings["factors"]))).astype(np.float32)
    seen = [seen_items(part, everybody(part), problem.items) for part in problem.histories]
    first, second = np.zeros_like(factors), np.zeros_like(factors)
    for step in range(1, rounds + 1):
        model = FederatedMf(factors, settings["alpha"], settings["ridge"])
        total = np.zeros_like(factors)
        for part in seen:
            total += clipped_gradients(part[np.flatnonzero(rng.random(part.shape[0]) < q)], model)
        if stddev:
            total += rng.normal(scale=stddev, size=total.shape).astype(np.float32)
        mean = total / np.float32(q * problem.population)
        first, second = 0.9 * first + 0.1 * mean, 0.99 * second + 0.01 * mean**2
        unbiased = np.sqrt(second / (1 - 0.99**step)) + np.float32(1e-8)
        factors = factors - np.float32(settings["learning_rate"] / (1 - 0.9**step)) * first / unbiased
    return FederatedMf(factors, settings["alpha"], settings["ridge"])


def user_vectors(seen: csr_array, model: FederatedMf) -> Floats:
    """Each user's own vector under the item factors, shape (n, D)."""
    Q, alpha = model.factors, np.float32(model.alpha)
    base = Q.T @ Q + np.float32(model.ridge) * np.eye(Q.shape[1], dtype=np.float32)
    vectors = np.empty((seen.shape[0], Q.shape[1]), dtype=np.float32)
    for k in range(seen.shape[0]):
        own = Q[seen.indices[seen.indptr[k] : seen.indptr[k + 1]]]
        vectors[k] = np.linalg.solve(base + alpha * own.T @ own, (1 + alpha) * own.sum(0))
    return vectors


def clipped_gradients(seen: csr_array, model: FederatedMf) -> Floats:
    """Sum of the users' gradients of the item factors, each clipped to norm 1, shape (I, D).

    A user's gradient is ``-r p^T`` with r the weighted residuals: its norm is ``|r| |p|``, and the sum of all is one
    product. Nobody's I x D numbers are ever written down.
    """
    total = np.zeros_like(model.factors)
    for start in range(0, seen.shape[0], USERS_AT_ONCE):
        own = seen[start : start + USERS_AT_ONCE]
        P, x = user_vectors(own, model), own.toarray()  # (n, D), (n, I)
        residuals = (1 + np.float32(model.alpha) * x) * (x - P @ model.factors.T)
        norms = np.linalg.norm(residuals.astype(np.float64), axis=1) * np.linalg.norm(P.astype(np.float64), axis=1)
        P *= (1 / np.maximum(norms, 1.0)).astype(np.float32)[:, None]
        total -= residuals.T @ P
    return total
