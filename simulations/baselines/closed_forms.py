"""Popularity, item cosine, EASE and next-item ridge from one noisy sum: what a closed form is worth under privacy.

Every user adds one vector of L2 norm at most 1 (1/k at each of k partners), the sum gets Gaussian noise once, and
all that follows is post-processing. Ridges and floors follow from the noise and the size of the catalogue, both
public, times a factor of the grid. The symmetric sum travels packed (`shared.model.prior.pack_symmetric`), which
halves the variance of the noise on every entry off the diagonal: the baseline is as strong as the federated prior.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack

from client.statistics import cooccurrences, next_item_moments, popularity_votes
from shared.config import PriorConfig
from shared.model.prior import pack_symmetric, unpack_symmetric
from shared.schema import Histories
from simulations.baselines.classical import ease_weights, nearest
from simulations.baselines.linear import Constant, Linear
from simulations.baselines.next_item import solve_ridge
from simulations.baselines.noise import add_noise, sum_noise
from simulations.baselines.problem import Budget, Problem, Settings


def private_popularity(problem: Problem, settings: Settings, budget: Budget, seed: int) -> Constant:
    """Items by a noisy sum of the users' distinct items, scaled to norm 1 a user."""
    return Constant(noisy_popularity(problem, budget, seed).astype(np.float32))


def noisy_popularity(problem: Problem, budget: Budget, seed: int) -> NDArray[np.float64]:
    """The noisy sum behind `private_popularity`, shape (I,); it may be negative."""
    total, _ = _released(problem, budget, seed, lambda part: popularity_votes(part, problem.items))
    return total


def private_item_knn(problem: Problem, settings: Settings, budget: Budget, seed: int) -> Linear:
    """Cosines from the noisy co-occurrence sum.

    Settings: ``neighbours`` as `simulations.baselines.classical.item_knn`; ``floor``, in noise of one entry: what is
    added to an item's noisy mass, so that rare items do not divide by noise.
    """
    G, stddev = _gram(problem, budget, seed)
    mass = np.sqrt(np.maximum(G.diagonal(), 0) + settings["floor"] * stddev + 1e-6)
    weights = (G / np.outer(mass, mass)).astype(np.float32)
    np.fill_diagonal(weights, 0)
    return Linear(nearest(weights, int(settings["neighbours"])))


def private_ease(problem: Problem, settings: Settings, budget: Budget, seed: int) -> Linear:
    """EASE from the noisy co-occurrence sum.

    Settings: ``ridge``, in users, plus ``edge`` times the noise's largest eigenvalue; ``decay`` as
    `simulations.baselines.classical.ease`.
    """
    G, stddev = _gram(problem, budget, seed)
    ridge = _ridge(problem, settings, stddev)
    return Linear(ease_weights(_definite(G, ridge).astype(np.float32), ridge), settings["decay"])


def private_next_item(problem: Problem, settings: Settings, budget: Budget, seed: int) -> Linear:
    """Next-item ridge from one noisy sum of co-occurrences and next-item moments, scaled to norm 1 together.

    Settings: ``ridge`` and ``edge`` as `private_ease`; ``decay``; ``targets``, the newest first meetings of a user
    that count; ``gram``, the co-occurrences' part of the squared norm.
    """
    n, gram = problem.items, settings["gram"]
    moments = PriorConfig(decay=settings["decay"], max_targets=int(settings["targets"]))

    def own(part: Histories) -> NDArray[np.float64]:
        G, B = cooccurrences(part, n), next_item_moments(part, n, moments)
        return np.concatenate([math.sqrt(gram) * pack_symmetric(G), math.sqrt(1 - gram) * B.ravel()])

    total, stddev = _released(problem, budget, seed, own)
    packed = n * (n + 1) // 2
    G = unpack_symmetric(total[:packed], n) / math.sqrt(gram)
    B = total[packed:].reshape(n, n) / math.sqrt(1 - gram)
    ridge = _ridge(problem, settings, stddev / math.sqrt(gram))
    return Linear(solve_ridge(_definite(G, ridge).astype(np.float32), B.astype(np.float32), ridge), settings["decay"])


def _released(
    problem: Problem, budget: Budget, seed: int, own: Callable[[Histories], NDArray[np.float64]]
) -> tuple[NDArray[np.float64], float]:
    """The noisy sum of what `own` gives, in users, and the standard deviation of its noise.

    `own` is a sum over users of vectors of norm at most 1. At each of k partners a user counts 1/k: the noise is
    k times as large in users.
    """
    stddev = sum_noise(problem, budget) * problem.partners_per_user
    total = own(problem.histories[0])
    for part in problem.histories[1:]:
        total += own(part)
    return add_noise(total, stddev, seed), stddev


def _gram(problem: Problem, budget: Budget, seed: int) -> tuple[NDArray[np.float64], float]:
    n = problem.items
    total, stddev = _released(problem, budget, seed, lambda part: pack_symmetric(cooccurrences(part, n)))
    return unpack_symmetric(total, n), stddev


def _definite(G: NDArray[np.float64], ridge: float) -> NDArray[np.float64]:
    """G, or its nearest positive semidefinite matrix where the noise is so large that ``G + ridge I`` is none.

    At an ``edge`` of 1 the ridge lies where the spectrum of the noise ends in expectation: a draw may go beyond.
    """
    held = G.copy()
    held[np.diag_indices(len(G))] += 0.99 * ridge  # what is left of the ridge is for float32
    if not lapack.dpotrf(held, lower=1, overwrite_a=1)[1]:
        return G
    values, vectors = np.linalg.eigh(G)
    positive: NDArray[np.float64] = (vectors * np.maximum(values, 0.0)) @ vectors.T
    return positive


def _ridge(problem: Problem, settings: Settings, stddev: float) -> float:
    # Entries off the diagonal carry stddev / sqrt(2): the spectrum of the noise ends at sqrt(2) stddev sqrt(I).
    return settings["ridge"] + settings["edge"] * math.sqrt(2 * problem.items) * stddev
