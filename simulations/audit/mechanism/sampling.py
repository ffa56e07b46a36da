"""Who takes part: each user by a coin of its own, in every step anew, at a public rate (Poisson sampling).

The amplification that epsilon is billed with holds for nothing else: shuffled epochs and batches of a fixed size cost
more (Chua et al., "How Private are DP-SGD Implementations?", ICML 2024).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from client.privatize import sample_users
from shared.hazmat.randomness import SeededRandomness
from shared.privacy.plan import PrivacyPlan
from simulations.audit.mechanism.checks import Check, Finding, Setting, check, near, none_of
from simulations.audit.mechanism.rehearsal import Rehearsal, config_like, nothing

CHECKS: list[Check] = []
RUNS, STEPS, USERS, ROUNDS = 1000, 10, 12, 200


@check(CHECKS, "a sampler that is not Poisson: shuffled epochs, fixed batches, users that are always in")
def coins(setting: Setting) -> Iterator[Finding]:
    """Mean, variance and covariance of participation over `RUNS` runs of `STEPS` steps.

    A shuffle that visits everybody equally often has variance 0; a batch of a fixed size a negative covariance, and
    all of it a cohort without variance.
    """
    q = _rate(setting.noisy)
    counts = _participation(replace(setting.noisy, sampling_rate=q), setting.seed)
    variance = STEPS * q * (1 - q)
    worst = counts.mean(axis=0)[np.abs(counts.mean(axis=0) - STEPS * q).argmax()]
    yield near(
        f"steps of {STEPS} in which a user takes part, mean, the user furthest off",
        worst,
        STEPS * q,
        math.sqrt(variance / RUNS),
        "users that are always in, or a rate that is not the plan's",
        comparisons=USERS,
    )
    # Var of a sample variance of a binomial: the fourth moment adds a little to the Gaussian 2 / n.
    error = math.sqrt((2 + (1 - 6 * q * (1 - q)) / variance) / RUNS)
    ratios = counts.var(axis=0) / variance
    worst = ratios[np.abs(ratios - 1).argmax()]
    yield near(
        "variance of a user's participation over T q (1 - q), the user furthest off",
        worst,
        1.0,
        error,
        "shuffled epochs",
        comparisons=USERS,
    )
    cohort = counts.sum(axis=1).var() / (USERS * variance)
    yield near("variance of the cohort over a Poisson cohort's", cohort, 1.0, error, "batches of a fixed size")
    pairs = np.asarray(np.corrcoef(counts.T))[np.triu_indices(USERS, k=1)]
    worst = pairs[np.abs(pairs).argmax()]
    yield near(
        "correlation of two users' participation, the pair furthest off",
        worst,
        0.0,
        1 / math.sqrt(RUNS),
        "users that share a coin",
        comparisons=len(pairs),
    )


@check(CHECKS, "a rate that is made from the size of the data")
def rate(setting: Setting) -> Iterator[Finding]:
    """One user more changes nobody's coin."""
    plan, source = replace(setting.noisy, sampling_rate=_rate(setting.noisy)), SeededRandomness(setting.seed, "one")
    users, changed = tuple(f"user-{k:02d}" for k in range(USERS)), 0
    for step in range(50):
        few = {users[k] for k in sample_users(users[:-1], plan, source, str(step))}
        more = {users[k] for k in sample_users(users, plan, source, str(step))}
        changed += more - {users[-1]} != few
    yield none_of("samples of 50 in which one user more changes another's coin", changed, "a rate made from N")


@check(CHECKS, "a learner that samples once, or with a period")
def learner(setting: Setting) -> Iterator[Finding]:
    """Over `ROUNDS` rounds of a real learner, with the noise of the system's source, nobody is in by habit."""
    users, q = 6, 0.5
    plan = replace(setting.noisy, sampling_rate=q)
    config = config_like(plan, seed=None, rounds=ROUNDS)
    federation = Rehearsal.of(setting.folder(), users, gradient=nothing(3))
    for round_ in range(1, ROUNDS + 1):
        federation.noised(0, config, round_, plan=plan)
    made = federation.learner(0)
    taken = np.array([[user in step for user in made.users] for step in made.taken], dtype=np.float64)
    n = len(taken)
    means, centred = taken.mean(axis=0), taken - q
    lags = (centred[1:] * centred[:-1]).mean(axis=0)
    yield near(
        "part of the steps in which a user takes part, the user furthest off",
        means[np.abs(means - q).argmax()],
        q,
        math.sqrt(q * (1 - q) / n),
        "users that are always or never in",
        comparisons=users,
    )
    yield near(
        "covariance of a user's participation in two steps that follow each other, the user furthest off",
        lags[np.abs(lags).argmax()],
        0.0,
        q * (1 - q) / math.sqrt(n - 1),
        "one sample for several steps",
        comparisons=users,
    )


def _rate(plan: PrivacyPlan) -> float:
    """The plan's q where its statistics can be told from others with so few steps; else one that can."""
    return plan.sampling_rate if 0.1 <= plan.sampling_rate <= 0.9 else 0.25


def _participation(plan: PrivacyPlan, seed: int) -> NDArray[np.float64]:
    """In how many of the steps each user takes part, shape (RUNS, USERS)."""
    users = tuple(f"user-{k:02d}" for k in range(USERS))
    counts = np.zeros((RUNS, USERS))
    for run in range(RUNS):
        source = SeededRandomness(seed * RUNS + run, "federation")
        for step in range(STEPS):
            counts[run, sample_users(users, plan, source, f"{step}/0")] += 1
    return counts
