"""From users to what may leave: Poisson sampling, noise shares, the lattice, and bugs planted in each.

Seeded; the chance given with a bound is that of correct code failing for a seed drawn at random.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from client import privatize
from client.privatize import LATTICE_STEPS, add_noise_share, sample_users
from shared.errors import SensitivityError
from shared.hazmat.randomness import Randomness, SeededRandomness, SystemRandomness, gaussian
from shared.messages import ClippedSum, NoisedSum, Stage
from shared.privacy.plan import PrivacyPlan

PLAN = PrivacyPlan(
    mode="distributed",
    delta=1e-5,
    sampling_rate=0.3,
    population=1000,
    clip_norm=0.5,
    noise_multiplier=2.0,
    prior_noise_multiplier=1.5,
    rounds=10,
    local_steps=1,
    survivors=4,
    colluders=1,
    partners_per_user=1,
    max_events=100,
)
Sampler = Callable[[tuple[str, ...], PrivacyPlan, Randomness, str], NDArray[np.int64]]
AddShare = Callable[[ClippedSum, PrivacyPlan, Stage, Randomness, str], NoisedSum]
USERS = tuple(f"user-{k:02d}" for k in range(40))
TRIALS, D = 4000, 20_000


# --- sampling


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


# --- noise


def zeros(d: int = D, clip_norm: float = 0.5) -> ClippedSum:
    return ClippedSum(np.zeros(d), clip_norm)


def shares(add: AddShare, plan: PrivacyPlan, stage: Stage, partners: int, at: str = "run/1") -> NDArray[np.float64]:
    clip = 1.0 if stage == "prior" else 0.5
    return np.array(
        [
            add(zeros(clip_norm=clip), plan, stage, SeededRandomness(4, f"partner-{k}"), at).values
            for k in range(partners)
        ]
    )


def check_total_noise(add: AddShare, stage: Stage) -> None:
    """The shares of any ``survivors - colluders`` partners sum to the planned deviation, +- 5 / sqrt(2 d).

    Each of the 3 + 1 comparisons fails with p < 6e-7 for correct code.
    """
    planned = PLAN.prior_noise_multiplier if stage == "prior" else PLAN.noise_multiplier * PLAN.clip_norm
    assert planned is not None
    noise = shares(add, PLAN, stage, 4)
    for honest in ([0, 1, 2], [1, 2, 3], [0, 2, 3]):
        assert abs(noise[honest].sum(axis=0).std() / planned - 1) < 5 / math.sqrt(2 * D)
    everyone = planned * math.sqrt(4 / 3)
    assert abs(noise.sum(axis=0).std() / everyone - 1) < 5 / math.sqrt(2 * D)


def check_shares_are_fresh(add: AddShare) -> None:
    """No correlation across partners, rounds and stages: 66 pairs at 5.5 standard errors, p < 3e-6."""
    rows = [shares(add, PLAN, "train", 4, at) for at in ("run/1", "run/2")]
    rows.append(shares(add, PLAN, "prior", 4, "run/0"))
    correlations = np.corrcoef(np.concatenate(rows)) - np.eye(12)
    assert np.abs(correlations).max() < 5.5 / math.sqrt(D)


def check_lattice(noised: NoisedSum) -> None:
    """All values are whole multiples of one public step, coarse beside the spacing of floats."""
    step = noised.noise_stddev / LATTICE_STEPS
    multiples = noised.values / step
    assert np.abs(multiples - np.round(multiples)).max() < 1e-6
    assert step > 1e6 * np.spacing(np.abs(noised.values).max())


@pytest.mark.parametrize("stage", ["prior", "train"])
def test_the_shares_of_the_honest_partners_sum_to_the_noise_of_the_plan(stage: Stage) -> None:
    check_total_noise(add_noise_share, stage)


def test_shares_are_fresh_for_every_partner_round_and_stage() -> None:
    check_shares_are_fresh(add_noise_share)


def test_shares_of_the_system_source_are_never_the_same() -> None:
    first, second = (add_noise_share(zeros(50), PLAN, "train", SystemRandomness(), "one context") for _ in range(2))
    assert not np.array_equal(first.values, second.values)


def silent_partner(clipped: ClippedSum, plan: PrivacyPlan, stage: Stage, source: Any, context: str) -> NoisedSum:
    """A planted bug: one partner sends its sum as it is, and says that it added noise."""
    noised = add_noise_share(clipped, plan, stage, source, context)
    silent = source.read(8, "") == SeededRandomness(4, "partner-2").read(8, "")
    return replace(noised, values=clipped.values) if silent else noised


def share_of_all_partners(clipped: ClippedSum, plan: PrivacyPlan, stage: Stage, source: Any, context: str) -> NoisedSum:
    """A planted bug: colluders are not provided for."""
    return add_noise_share(clipped, replace(plan, colluders=0), stage, source, context)


def same_every_round(clipped: ClippedSum, plan: PrivacyPlan, stage: Stage, source: Any, context: str) -> NoisedSum:
    return add_noise_share(clipped, plan, stage, source, "fixed")


def same_for_all(clipped: ClippedSum, plan: PrivacyPlan, stage: Stage, source: Any, context: str) -> NoisedSum:
    return add_noise_share(clipped, plan, stage, SeededRandomness(4, "everyone"), context)


@pytest.mark.parametrize("broken", [silent_partner, share_of_all_partners, same_for_all])
def test_a_planted_loss_of_noise_is_caught(broken: AddShare) -> None:
    with pytest.raises(AssertionError):
        check_total_noise(broken, "train")


@pytest.mark.parametrize("broken", [same_every_round, same_for_all])
def test_a_planted_reuse_of_noise_is_caught(broken: AddShare) -> None:
    with pytest.raises(AssertionError):
        check_shares_are_fresh(broken)


def test_noise_that_the_source_code_forgets_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privatize, "gaussian", lambda source, context, n, stddev: np.zeros(n))
    with pytest.raises(AssertionError):
        check_total_noise(add_noise_share, "train")


def test_the_noise_does_not_depend_on_the_data() -> None:
    rng = np.random.default_rng(0)
    users = rng.normal(size=(11, D)) * 0.5 / math.sqrt(D)
    source = SeededRandomness(4, "p")
    residuals = []
    for n in (10, 11):
        total = users[:n].sum(axis=0)
        noised = add_noise_share(ClippedSum(total, 0.5), PLAN, "train", source, "c")
        residuals.append(noised.values - total)
        assert noised.noise_stddev == PLAN.share_stddev("train")
    step = PLAN.share_stddev("train") / LATTICE_STEPS
    assert np.abs(residuals[0] - residuals[1]).max() <= step * (1 + 1e-6)  # the same noise, but for rounding


def test_an_empty_sample_is_noise_alone() -> None:
    noised = add_noise_share(zeros(), PLAN, "train", SeededRandomness(4, "p"), "c")
    assert abs(noised.values.std() / PLAN.share_stddev("train") - 1) < 5 / math.sqrt(2 * D)  # p < 6e-7
    assert noised.noise_stddev == PLAN.share_stddev("train")


@pytest.mark.parametrize("clip_norm", [1e-4, 0.5, 300.0])
def test_values_lie_on_the_public_lattice(clip_norm: float) -> None:
    plan = replace(PLAN, clip_norm=clip_norm)
    total = np.random.default_rng(0).normal(size=1000) * clip_norm
    check_lattice(add_noise_share(ClippedSum(total, clip_norm), plan, "train", SeededRandomness(1, "p"), "c"))


def test_values_off_the_lattice_are_caught() -> None:
    stddev = PLAN.share_stddev("train")
    with pytest.raises(AssertionError):
        check_lattice(NoisedSum(gaussian(SeededRandomness(1, "p"), "c", 1000, stddev), stddev))


def test_rounding_adds_at_most_half_a_step() -> None:
    source = SeededRandomness(1, "p")
    stddev = PLAN.share_stddev("train")
    noised = add_noise_share(zeros(1000), PLAN, "train", source, "c")
    raw = gaussian(source, "c/noise", 1000, stddev)
    assert np.abs(noised.values - raw).max() <= 0.5 * stddev / LATTICE_STEPS * (1 + 1e-9)


# --- what is refused, and what never leaves


@pytest.mark.parametrize(
    ("stage", "clip_norm", "k"),
    [
        ("train", 0.5000001, 1),
        ("train", 0.5, 2),
        ("train", 0.0, 1),
        ("train", -0.5, 1),
        ("train", math.nan, 1),
        ("train", math.inf, 1),
        ("prior", 1.001, 1),
        ("prior", 1.0, 3),
    ],
)
@pytest.mark.parametrize("mode", ["distributed", "local", "none"])
def test_a_sum_clipped_to_another_norm_is_refused(stage: Stage, clip_norm: float, k: int, mode: Any) -> None:
    plan = replace(PLAN, partners_per_user=k, mode=mode)
    with pytest.raises(SensitivityError, match=f"Expected 0 < clip_norm <= .* for stage={stage}"):
        add_noise_share(zeros(4, clip_norm), plan, stage, SystemRandomness(), "c")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_noise_cannot_hide_is_refused(value: float) -> None:
    with pytest.raises(SensitivityError, match="Expected finite values"):
        add_noise_share(ClippedSum(np.array([0.0, value]), 0.5), PLAN, "train", SystemRandomness(), "c")


@pytest.mark.parametrize("k", [1, 2, 3, 7])
def test_a_sum_clipped_as_the_plan_says_is_accepted(k: int) -> None:
    plan = replace(PLAN, partners_per_user=k)
    add_noise_share(zeros(4, plan.partner_clip_norm), plan, "train", SystemRandomness(), "c")
    add_noise_share(zeros(4, 1.0 / k), plan, "prior", SystemRandomness(), "c")


@pytest.mark.parametrize("mode", ["distributed", "local"])
def test_the_loss_stays_where_it_was_measured(mode: Any) -> None:
    clipped = ClippedSum(np.zeros(4), 0.5, private_loss=3.25)
    noised = add_noise_share(clipped, replace(PLAN, mode=mode), "train", SystemRandomness(), "c")
    assert noised.loss is None
    assert "3.25" not in repr(clipped)


def test_without_privacy_the_sum_leaves_as_it_is_and_says_so() -> None:
    plan = replace(PLAN, mode="none", noise_multiplier=0.0)
    noised = add_noise_share(ClippedSum(np.array([1.0, 2.0]), 0.5, 3.25), plan, "train", SystemRandomness(), "c")
    assert noised.values.tolist() == [1.0, 2.0]
    assert (noised.noise_stddev, noised.loss) == (0.0, 3.25)
