"""Row "fixed or shuffled batches": users take part by coins of their own, in production code and in the learner."""

from __future__ import annotations

import math

import numpy as np
import pytest
from stub_federation import Federate, config_of, nothing

from client.privatize import sample_users
from shared.hazmat.randomness import SeededRandomness
from shared.privacy.accounting import build_plan

SEEDS, STEPS, Q = 1000, 10, 0.3
USERS = tuple(f"user-{k:02d}" for k in range(12))


def participation(users: tuple[str, ...] = USERS) -> np.ndarray:
    """In how many of the steps each user takes part, shape (SEEDS, users)."""
    plan = build_plan(config_of(training={"sampling_rate": Q}))
    counts = np.zeros((SEEDS, len(users)))
    for seed in range(SEEDS):
        source = SeededRandomness(seed, "federation")
        for step in range(STEPS):
            counts[seed, sample_users(users, plan, source, f"{step}/0")] += 1
    return counts


@pytest.fixture(scope="module")
def counts() -> np.ndarray:
    return participation()


def test_participation_of_a_user_varies_as_independent_coins_do(counts: np.ndarray) -> None:
    """Mean T q and variance T q (1 - q) of each user, +-4.5 standard errors: 24 comparisons, p < 2e-4.

    A shuffle that visits everybody equally often has variance 0, a user who is always in a mean of T.
    """
    variance = STEPS * Q * (1 - Q)
    assert np.abs(counts.mean(axis=0) - STEPS * Q).max() < 4.5 * math.sqrt(variance / SEEDS)
    assert np.abs(counts.var(axis=0) / variance - 1).max() < 4.5 * math.sqrt(2 / SEEDS)


def test_participation_of_two_users_is_not_correlated(counts: np.ndarray) -> None:
    """66 pairs at 5 standard errors: p < 4e-5. A batch of fixed size has a negative covariance."""
    pairs = np.corrcoef(counts.T)[np.triu_indices(len(USERS), k=1)]
    assert np.abs(pairs).max() < 5 / math.sqrt(SEEDS)
    # All pairs together are the variance of the cohort: binomial, not 0. 4.5 standard errors, p < 1e-5.
    cohort = counts.sum(axis=1).var() / (len(USERS) * STEPS * Q * (1 - Q))
    assert abs(cohort - 1) < 4.5 * math.sqrt(2 / SEEDS)


def test_the_rate_does_not_depend_on_how_many_users_there_are() -> None:
    """One user more changes nobody's coin, so the rate is the plan's, not one made from the data's size."""
    plan, source = build_plan(config_of(training={"sampling_rate": Q})), SeededRandomness(3, "federation")
    for step in range(50):
        few = {USERS[k] for k in sample_users(USERS[:-1], plan, source, str(step))}
        more = {USERS[k] for k in sample_users(USERS, plan, source, str(step))}
        assert more - {USERS[-1]} == few


def test_the_learner_samples_anew_in_every_step(federate: Federate) -> None:
    """Over 200 rounds of a real learner no user is always in, never in, or in with a period."""
    config = config_of(1, training={"sampling_rate": 0.5, "rounds": 200})
    federation = federate(6, gradient=nothing(3))
    learner = federation.agent(0).learner
    seen: list[list[int]] = []
    maker = learner.batch_maker(config.model, 0)
    maker.training = lambda taken, training, key: (seen.append(list(taken)), [])[1]
    learner.batch_maker = lambda model, seed: maker
    for round_ in range(1, 201):
        federation.noised(0, config, round_)
    taken = np.zeros((200, 6))
    for round_, users in enumerate(seen):
        taken[round_, users] = 1
    # Six means at 5 standard errors of 0.035, six lags likewise: p < 1e-5.
    assert np.abs(taken.mean(axis=0) - 0.5).max() < 5 * 0.5 / math.sqrt(200)
    centred = taken - 0.5
    assert np.abs((centred[1:] * centred[:-1]).mean(axis=0)).max() < 5 * 0.25 / math.sqrt(199)
