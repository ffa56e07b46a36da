"""Rows on noise: its scale, its independence of the data's size, its freshness, and that it is whole.

All sources but the system's are seeded; the chance named is that of correct code failing for a seed drawn at random.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stub_federation import Federate, config_of, gradient_of, nothing, order_of

from client.privatize import add_noise_share
from shared.config import RunConfig
from shared.errors import PolicyViolationError
from shared.hazmat.fixed_point import from_ring, limit_sum, room, to_ring
from shared.hazmat.randomness import SystemRandomness, randomness_for
from shared.messages import ClippedSum
from shared.privacy.accounting import build_plan
from shared.privacy.lattice import sensitivity

D, ROUNDS = 20_000, 3
REAL = {"max_epsilon": 8.0, "max_delta": 1e-4, "min_cohort": 3}


def billed(config: RunConfig, size: int) -> float:
    """Standard deviation, in lattice steps, of the noise that the accountant charges for: z times one user's reach."""
    plan = build_plan(config)
    return plan.noise_multiplier * sensitivity(plan.scale("train"), size, plan.partners_per_user)


# --- row: N-dependent q or normaliser ---------------------------------------------------------------


def test_the_noise_of_n_and_of_n_plus_1_users_has_one_deviation(federate: Federate) -> None:
    """Ratio 1 +- 4 / sqrt(d): fails once in 16,000 seeds. Opacus' default missed it by 85 standard errors."""
    config = config_of(1, {"seed": None}, training={"sampling_rate": 0.2})
    deviations = [
        federate(users, gradient=nothing(D), at=f"{users}").noised(0, config).values.std() for users in (10, 11)
    ]
    assert abs(deviations[1] / deviations[0] - 1) < 4 / math.sqrt(D)
    assert abs(deviations[0] / billed(config, D) - 1) < 4 / math.sqrt(2 * D)


def test_what_is_divided_by_is_public(federate: Federate, tmp_path: Path) -> None:
    """The model moves by the opened sum over q N0, and neither knows how many users there are."""
    config = config_of(training={"rounds": 1, "sampling_rate": 0.5})
    federation = federate(2, 9, 4)
    state = federation.train(config, tmp_path / "out").checkpoint.state
    plan = build_plan(config)
    expected = -federation.totals[0] * plan.step("train") / (0.5 * config.privacy.population)
    np.testing.assert_allclose(state.parameters, expected, rtol=1e-12)


# --- row: noise scale or denominator ----------------------------------------------------------------


@pytest.mark.parametrize(("quorum", "colluders"), [(3, 0), (4, 0), (4, 1)])
def test_the_residual_of_an_opened_sum_has_the_deviation_that_is_billed(
    federate: Federate, tmp_path: Path, quorum: int, colluders: int
) -> None:
    """Sum opened minus sum without noise, over T rounds: z times the sensitivity, +-4 / sqrt(2 d T), p < 7e-5.

    All four deliver, so it is sqrt(n / (t - c)) of what the accountant charges for, never below it.
    """
    private = {"colluders": colluders}
    config = config_of(4, {"seed": 5}, privacy=private, federation={"quorum": quorum}, training={"rounds": ROUNDS})
    plain = config.model_copy(update={"privacy": config.privacy.model_copy(update={"mode": "none"})})
    federation = federate(3, 1, 5, 2, size=D)
    federation.train(config, tmp_path / "out")
    noiseless = sum(federation.noised(k, plain).values for k in range(4))
    residuals = np.array(federation.totals) - noiseless
    expected = billed(config, D) * math.sqrt(4 / (quorum - colluders))
    assert abs(residuals.std() / expected - 1) < 4 / math.sqrt(2 * D * ROUNDS)
    assert residuals.std() >= billed(config, D) * (1 - 4 / math.sqrt(2 * D * ROUNDS))


def test_in_local_mode_every_step_of_every_partner_has_all_of_the_noise(federate: Federate) -> None:
    """Two steps: sqrt(2) of what one is billed with, +-4 / sqrt(2 d)."""
    changes = {"local_steps": 2, "local_learning_rate": 1e-30}
    config = config_of(3, training=changes, privacy={"mode": "local"})
    values = federate(2, 2, 2, gradient=nothing(D)).noised(0, config).values
    assert abs(values.std() / (math.sqrt(2) * billed(config, D)) - 1) < 4 / math.sqrt(2 * D)


def test_a_round_in_which_nobody_takes_part_has_all_of_the_noise(federate: Federate) -> None:
    config = config_of(1, training={"sampling_rate": 1e-12})
    values = federate(4, size=D).noised(0, config).values
    assert abs(values.std() / billed(config, D) - 1) < 4 / math.sqrt(2 * D)
    nobody = federate(0, size=D, at="nobody").noised(0, config).values
    np.testing.assert_array_equal(values, nobody)


# --- row: noise reuse, seeded sources, equal seeds --------------------------------------------------


def test_residuals_of_rounds_and_of_partners_are_not_correlated(federate: Federate) -> None:
    """Lag 1 and across partners below 4.5 / sqrt(d): 15 pairs, p < 2e-4. Reused noise has 1.000."""
    config, federation = config_of(4), federate(1, 1, 1, 1, gradient=nothing(D))
    rows = [federation.noised(k, config, round_).values for k in range(4) for round_ in (1, 2)][:6]
    correlations = np.corrcoef(np.array(rows)) - np.eye(len(rows))
    assert np.abs(correlations).max() < 4.5 / math.sqrt(D)


def test_steps_of_one_round_have_noise_of_their_own(federate: Federate) -> None:
    """Two local steps of one round: the sum of two equal draws would have sqrt(2) too much deviation."""
    federation = federate(1, gradient=nothing(D))
    changes = {"local_steps": 2, "local_learning_rate": 1e-30}
    twice = federation.noised(0, config_of(1, training=changes, privacy={"mode": "local"})).values
    once = federation.noised(0, config_of(1, privacy={"mode": "local"})).values
    assert abs(twice.std() / once.std() / math.sqrt(2) - 1) < 4 / math.sqrt(D)
    assert np.abs(np.corrcoef(twice - once, once)[0, 1]) < 4.5 / math.sqrt(D)


def test_a_partner_that_starts_again_draws_other_noise(federate: Federate) -> None:
    config = config_of(1, {"seed": None})
    first, second = (federate(1, gradient=nothing(500), at=at).noised(0, config).values for at in ("a", "b"))
    assert np.mean(first == second) < 0.1  # integers of deviation 1e5: two agree in one place of 1e5


def test_the_noise_of_a_run_over_other_data_is_other_noise_even_with_one_seed(federate: Federate) -> None:
    """A seeded simulation draws by run and round, so that two runs do not cancel each other's noise."""
    plan, total = build_plan(config_of(1)), ClippedSum(np.zeros(500), 0.5)
    source = randomness_for(seed=1, simulation=True, party="p")
    draws = [add_noise_share(total, plan, "train", source, f"{run}/1/0").values for run in ("one", "other")]
    assert np.mean(draws[0] == draws[1]) < 0.1
    federation = federate(1, gradient=nothing(500))
    learner = federation.agent(0).learner
    told = [replace(order_of(config_of(1)), run_id=run) for run in ("one", "other")]
    start = np.zeros(500, dtype=np.float32)
    ours = [learner.noised_gradients(order, start, None).values for order in told]
    assert np.mean(ours[0] == ours[1]) < 0.1


def test_a_seed_is_refused_wherever_data_are_real(federate: Federate) -> None:
    """In the configuration, in the source of randomness, and by the partner's own premises whatever a plan says."""
    with pytest.raises(ValueError, match="seed is only allowed in simulations"):
        config_of(3, {"simulation": False, "seed": 1})
    with pytest.raises(PolicyViolationError, match="seed"):
        randomness_for(seed=1, simulation=False, party="p")
    assert isinstance(randomness_for(seed=None, simulation=False, party="p"), SystemRandomness)
    forged = config_of(3, {"simulation": False, "seed": None}).model_copy(update={"seed": 1})
    with pytest.raises(PolicyViolationError, match="seed"):
        federate(1, 1, 1, gradient=nothing(5), real=REAL).noised(0, forged)


# --- row: float holes -------------------------------------------------------------------------------


def test_noise_is_whole_and_on_a_public_lattice_before_it_is_masked(federate: Federate) -> None:
    """Integers all the way: no low bits of floats, and no value that only one sum could have led to."""
    config = config_of(1)
    noised = federate(5, size=D).noised(0, config).values
    noise = federate(5, gradient=nothing(D), at="noise").noised(0, config).values
    assert noised.dtype == noise.dtype == np.int64
    # Any residue of the sum itself: parity of integers with deviation 1e5 is a fair coin. 4 s.e., p < 7e-5.
    for values in (noised, noise, noised - noise):
        assert abs(np.mean(values % 2) - 0.5) < 4 * 0.5 / math.sqrt(D)


def test_rounding_is_dithered_by_a_coin_that_no_data_touch(federate: Federate) -> None:
    """Half a step rounds up half of the time: without dither its sum would be all up or all down. 5 s.e., p < 6e-7."""
    plan = build_plan(config_of(1, privacy={"mode": "none"}))
    total = ClippedSum(np.full(D, 0.5 * plan.step("train")), plan.clip_norm)
    steps = add_noise_share(total, plan, "train", SystemRandomness(), "c").values
    assert set(np.unique(steps)) == {0, 1}
    assert abs(steps.mean() - 0.5) < 5 * 0.5 / math.sqrt(D)


def test_a_sum_too_large_for_the_ring_loses_none_of_its_noise() -> None:
    """Cut off before the noise, not after: in the ring the residual still has the deviation that is billed."""
    config = config_of(3)
    plan = build_plan(config)
    huge = ClippedSum(np.full(D, 1e12), plan.clip_norm)
    noised = add_noise_share(huge, plan, "train", SystemRandomness(), "c").values
    received = from_ring(to_ring(noised, 3)) - limit_sum(np.full(D, 2**60), 3)
    assert abs(received.std() * math.sqrt(3) / billed(config, D) - 1) < 4.5 / math.sqrt(2 * D)  # p < 7e-6
    assert np.abs(from_ring(to_ring(noised, 3))).max() < room(3)


def test_rounding_is_billed_as_part_of_what_a_user_moves() -> None:
    """A user moves a sum by C / step steps, and by rounding up to another sqrt(d) / 2: noise covers both."""
    for size in (1, 1000, 2**24):
        for k in (1, 3):
            reach = sensitivity(64, size, k)
            assert reach >= math.sqrt(64**2 + k**2 * size / 4)
    # For 67 million users there are 16 steps a clip norm: over a million coordinates rounding moves more than the user.
    plan = replace(build_plan(config_of(3)), population=2**26)
    assert plan.scale("train") == 16
    shares = plan.survivors - plan.colluders
    deviation = math.sqrt(plan.share_variance("train", 10**6) * shares)
    assert deviation >= plan.noise_multiplier * math.sqrt(16**2 + 10**6 / 4)


def test_a_partner_whose_users_hold_nothing_is_as_noisy_as_any(federate: Federate) -> None:
    """Noise says nothing of the users: the same whatever they do, to the bit, from one source."""
    config = config_of(1)
    some = federate(3, gradient=gradient_of(100), at="some")
    none = federate(3, gradient=nothing(100), at="none")
    plain = config.model_copy(update={"privacy": config.privacy.model_copy(update={"mode": "none"})})
    difference = some.noised(0, config).values - none.noised(0, config).values
    np.testing.assert_array_equal(difference, some.noised(0, plain).values)
