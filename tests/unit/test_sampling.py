"""Poisson sampling: each user by its own coin, in every round anew; and samplers that are not, caught.

Seeded; the chance given with a bound is that of correct code failing for a seed drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from ledgers import PLAN as ANY
from numpy.typing import NDArray

from client.privatize import sample_users
from shared.hazmat.randomness import Randomness, SeededRandomness, SystemRandomness
from shared.privacy.plan import PrivacyPlan

PLAN = replace(ANY, sampling_rate=0.3)
Sampler = Callable[[tuple[str, ...], PrivacyPlan, Randomness, str], NDArray[np.int64]]
USERS = tuple(f"user-{k:02d}" for k in range(40))
TRIALS = 4000


def draw(sampler: Sampler, seed: int = 0) -> NDArray[np.float64]:
    """Who took part in each of many rounds, shape (TRIALS, users)."""
    taken = np.zeros((TRIALS, len(USERS)))
    for t in range(TRIALS):
        taken[t, sampler(USERS, PLAN, SeededRandomness(seed, "federation"), f"run/{t}")] = 1
    return taken


def check_poisson(sampler: Sampler) -> None:
    """Rate q, variance q (1 - q) of each user, covariance 0 of each pair and of successive rounds.

    40 means, the variance of the cohort, 780 pairs and 40 lags, each at 5.5 standard errors: p < 4e-5.
    """
    q, taken = PLAN.sampling_rate, draw(sampler)
    variance = q * (1 - q)
    error = 5.5 * math.sqrt(variance / TRIALS)
    assert np.abs(taken.mean(axis=0) - q).max() < error
    # The size of a Poisson cohort is binomial: a fixed-size shuffle has variance 0 here.
    sizes = taken.sum(axis=1)
    assert abs(sizes.var() / (len(USERS) * variance) - 1) < 5.5 * math.sqrt(2 / TRIALS)
    centred = taken - q
    pairs = (centred.T @ centred / TRIALS)[np.triu_indices(len(USERS), k=1)]
    assert np.abs(pairs).max() < 5.5 * variance / math.sqrt(TRIALS)
    assert np.abs((centred[1:] * centred[:-1]).mean(axis=0)).max() < 5.5 * variance / math.sqrt(TRIALS - 1)


def participation_variance(sampler: Sampler, rounds: int) -> float:
    """Variance over repeated runs of the number of rounds in which a user takes part."""
    counts = draw(sampler, seed=1).reshape(TRIALS // rounds, rounds, len(USERS)).sum(axis=1)
    return float(((counts - rounds * PLAN.sampling_rate) ** 2).mean())


def generator(source: Randomness, context: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(source.read(8, context), "big"))


def fixed_size(users: tuple[str, ...], plan: PrivacyPlan, source: Randomness, context: str) -> NDArray[np.int64]:
    size = round(len(users) * plan.sampling_rate)
    return np.sort(generator(source, context).permutation(len(users))[:size])


def shuffled_epochs(users: tuple[str, ...], plan: PrivacyPlan, source: Randomness, context: str) -> NDArray[np.int64]:
    """What a data loader does: one shuffle an epoch, cut into batches."""
    run, t = context.split("/")
    epoch = round(1 / plan.sampling_rate)
    order = generator(source, f"{run}/{int(t) // epoch}").permutation(len(users))
    return np.sort(np.array_split(order, epoch)[int(t) % epoch])


def one_coin_for_two(users: tuple[str, ...], plan: PrivacyPlan, source: Randomness, context: str) -> NDArray[np.int64]:
    """Couples users: neighbours share a coin."""
    pairs = sample_users(users[::2], plan, source, context)
    return np.sort(np.concatenate([2 * pairs, 2 * pairs + 1]))


def stuck(users: tuple[str, ...], plan: PrivacyPlan, source: Randomness, context: str) -> NDArray[np.int64]:
    return sample_users(users, plan, source, "every round alike")


def test_sampling_is_poisson() -> None:
    check_poisson(sample_users)


def test_participation_over_a_run_has_the_variance_of_a_binomial() -> None:
    # 400 runs x 40 users: standard error of the variance about 1.2 %; 5.5 of them, p < 1e-7.
    rounds, q = 10, PLAN.sampling_rate
    assert participation_variance(sample_users, rounds) == pytest.approx(rounds * q * (1 - q), rel=0.066)


@pytest.mark.parametrize("broken", [fixed_size, shuffled_epochs, one_coin_for_two, stuck])
def test_a_planted_sampler_that_is_not_poisson_is_caught(broken: Sampler) -> None:
    with pytest.raises(AssertionError):
        check_poisson(broken)


def test_whether_a_user_takes_part_depends_neither_on_order_nor_on_other_users() -> None:
    source = SeededRandomness(0, "federation")
    taken = {USERS[k] for k in sample_users(USERS, PLAN, source, "run/1")}
    backwards = USERS[::-1]
    assert {backwards[k] for k in sample_users(backwards, PLAN, source, "run/1")} == taken
    without = USERS[:7] + USERS[8:]
    assert {without[k] for k in sample_users(without, PLAN, source, "run/1")} == taken - {USERS[7]}
    for user in USERS:
        assert (len(sample_users((user,), PLAN, source, "run/1")) == 1) == (user in taken)


def test_every_user_takes_part_where_the_rate_is_one() -> None:
    assert len(sample_users(USERS, replace(PLAN, sampling_rate=1.0), SystemRandomness(), "c")) == len(USERS)


def test_the_system_source_draws_a_new_sample_each_time() -> None:
    samples = {tuple(sample_users(USERS, PLAN, SystemRandomness(), "one context")) for _ in range(10)}
    assert len(samples) == 10  # two of ten alike: p < 1e-8
