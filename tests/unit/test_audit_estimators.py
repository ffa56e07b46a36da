"""Bounds from canaries: published figures, exact false-alarm rates, monotonicity, and input that is refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from audit_setting import DELTA, gaussian_scores, mu_of, responses
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom, norm

from shared.errors import ConfigError, DataError
from simulations.audit.estimators import area, cosines, fdp, gaussian_pair, snj
from simulations.audit.estimators.guesses import Guesses, count_guesses
from simulations.audit.estimators.roc import LOW_RATES, found_at, proportion, roc
from simulations.audit.estimators.tradeoff import TradeoffCurve, gaussian, gdp_delta, gdp_epsilon
from simulations.audit.findings import ScoreSet

SHARES = (0.1, 0.2, 0.33, 0.5, 0.7)
"""The published bounds are those of the best share of guesses for each row."""
RUNS = 20
TABLE = {  # (m, true epsilon): SNJ, f-DP, Gaussian pair; 95 %, means of 20 runs
    (100, 1.0): (0.04, 0.06, 0.19),
    (100, 2.0): (0.23, 0.40, 0.75),
    (100, 4.0): (0.64, 1.34, 2.72),
    (100, 8.0): (1.59, 3.11, 5.77),
    (100, 16.0): (2.67, 5.83, 12.8),
    (1000, 1.0): (0.26, 0.39, 0.71),
    (1000, 2.0): (0.66, 1.03, 1.59),
    (1000, 4.0): (1.55, 2.26, 3.53),
    (1000, 8.0): (2.83, 4.70, 7.26),
    (1000, 16.0): (4.53, 8.42, 15.1),
}
FAST = [(100, 4.0), (1000, 8.0)]
CELLS = [pytest.param(*cell, marks=[] if cell in FAST else pytest.mark.slow) for cell in TABLE]
WITHOUT_NOISE = [(100, 0.7, 3.13, 6.95), (1000, 0.7, 5.42, 11.04)]


# --- published figures (gaussian mean estimation, canaries at right angles)


@pytest.mark.parametrize(("m", "epsilon"), CELLS)
def test_bounds_are_the_published_ones(m: int, epsilon: float) -> None:
    # Both means are of 20 runs. Over fresh seeds a cell would fail with a chance of 3 x 6e-5 (4 standard errors).
    sets = [gaussian_scores(m, mu_of(epsilon), seed) for seed in range(RUNS)]
    pairs = np.array([gaussian_pair.estimate(one.inside, one.outside, DELTA, 0.95).lower_bound for one in sets])
    for bound, published in zip((_snj, _fdp), TABLE[m, epsilon], strict=False):
        _agrees(max((_over_shares(sets, share, bound) for share in SHARES), key=np.mean), published)
    _agrees(pairs, TABLE[m, epsilon][2])


def _agrees(bounds: np.ndarray, published: float) -> None:
    standard_error = math.sqrt(2) * bounds.std(ddof=1) / math.sqrt(RUNS)
    assert bounds.mean() == pytest.approx(published, abs=4 * standard_error + 0.01)


def _over_shares(sets: list[ScoreSet], share: float, bound: Callable[[Guesses], float]) -> np.ndarray:
    return np.array([bound(count_guesses(one.inside, one.outside, share, 0)) for one in sets])


def _snj(counts: Guesses) -> float:
    return snj.lower_bound(counts.canaries, counts.guesses, counts.correct, DELTA, 0.95)


def _fdp(counts: Guesses) -> float:
    return fdp.lower_bound(counts.canaries, counts.guesses, counts.correct, DELTA, 0.95)


@pytest.mark.parametrize(("m", "share", "by_snj", "by_fdp"), WITHOUT_NOISE)
def test_without_noise_the_one_run_bounds_stop_where_published(
    m: int, share: float, by_snj: float, by_fdp: float
) -> None:
    r = round(share * m)
    assert snj.lower_bound(m, r, r, DELTA, 0.95) == pytest.approx(by_snj, abs=0.006)
    assert fdp.lower_bound(m, r, r, DELTA, 0.95) == pytest.approx(by_fdp, abs=0.006)


@pytest.mark.parametrize(("mu", "epsilon"), [(math.sqrt(20) / 4, 4.98), (1.0, 4.377)])
def test_epsilon_of_a_gaussian_is_the_published_one(mu: float, epsilon: float) -> None:
    assert gdp_epsilon(mu, DELTA) == pytest.approx(epsilon, abs=0.01)
    assert gdp_delta(mu, gdp_epsilon(mu, DELTA)) == pytest.approx(DELTA, rel=1e-6)


# Published, one run each: k = 200 and k = 1,000 of d = 20,000; here the latter at the same k / d, where they crowd.
@pytest.mark.parametrize(
    ("d", "epsilon", "published"),
    [(20_000, 2.0, 2.01), (20_000, 8.0, 8.03), (4000, 2.0, 2.07), (4000, 8.0, 7.17), (4000, 16.0, 12.3)],
)
def test_cosines_give_the_published_epsilon_of_the_mechanism(d: int, epsilon: float, published: float) -> None:
    made = [cosines.estimate(_cosines(200, d, mu_of(epsilon), seed), d, DELTA, 0.95) for seed in range(2)]
    spread = (made[0].point - made[0].lower_bound) / norm.ppf(0.95)  # one standard error, by the estimate itself
    mean = np.mean([one.point for one in made])
    assert abs(mean - published) < 4 * spread * math.sqrt(1 + 1 / 2)  # a false failure has a chance of 6e-5
    assert abs(mean - epsilon) < 4 * spread / math.sqrt(2) or d == 4000
    assert [one.few_enough for one in made] == [d == 20_000] * 2


def test_many_cosines_have_a_ceiling_and_say_so() -> None:
    estimate = cosines.estimate(_cosines(100, 2000, 1e6, 0), 2000, DELTA, 0.95)
    assert estimate.mu == pytest.approx(math.sqrt(20), rel=0.1)
    assert not estimate.few_enough
    assert cosines.estimate(np.full(20, 0.1), 2000, DELTA, 0.95).few_enough


def test_cosines_that_spread_more_than_chance_are_measured_by_their_own_spread() -> None:
    wide = np.array([0.1, 0.5, 0.3, 0.3])
    assert cosines.estimate(wide, 10_000, DELTA, 0.95).mu == pytest.approx(0.3 / wide.std(ddof=1))
    assert cosines.estimate(np.full(4, 0.3), 10_000, DELTA, 0.95).mu == pytest.approx(0.3 * 100)


def _cosines(k: int, d: int, mu: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    canaries = rng.standard_normal((k, d))
    canaries /= np.linalg.norm(canaries, axis=1, keepdims=True)
    released = canaries.sum(axis=0) + rng.standard_normal(d) / mu
    return np.asarray(canaries @ released / np.linalg.norm(released))


# --- rigour: the worst mechanism that keeps the claim, counted exactly


@pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0, 3.0])
@pytest.mark.parametrize(("m", "r"), [(40, 40), (200, 60), (1000, 150)])
def test_the_one_run_tests_hold_their_level_exactly_for_randomised_response(m: int, r: int, epsilon: float) -> None:
    curve, right = TradeoffCurve.of_points([(epsilon, 0.0)]), 1 / (1 + math.exp(-epsilon))
    for rejects in (
        lambda v: snj.p_value(m, r, v, epsilon, 0.0) < 0.05,
        lambda v: not fdp.consistent(m, r, v, curve, 0.05),
    ):
        least = next((v for v in range(r + 1) if rejects(v)), r + 1)
        assert binom.sf(least - 1, r, right) <= 0.05
        assert least == r + 1 or all(rejects(v) for v in range(least, r + 1))
        assert least <= r or right**r > 0.02  # it can reject, unless even r right guesses are no wonder


@pytest.mark.parametrize("epsilon", [0.0, 1.0])
@pytest.mark.parametrize(("r", "v"), [(2, 2), (10, 10), (3, 2), (10, 8), (40, 30)])
def test_f_dp_is_exact_for_randomised_response_where_all_guesses_are_right_and_cautious_elsewhere(
    r: int, v: int, epsilon: float
) -> None:
    curve, chance = TradeoffCurve.of_points([(epsilon, 0.0)]), binom.sf(v - 1, r, 1 / (1 + math.exp(-epsilon)))
    assert fdp.consistent(r, r, v, curve, float(chance) * 0.9999)
    if r == v:
        assert not fdp.consistent(r, r, v, curve, float(chance) * 1.0001)


def test_f_dp_sees_that_half_of_the_claimed_noise_is_missing_and_snj_does_not() -> None:
    # Published at m = 1000, epsilon 4: f-DP 100 %, SNJ 3 %. Here 40 runs with the share of guesses fixed.
    mu, by_fdp, by_snj = mu_of(4.0), 0, 0
    for seed in range(40):
        one = gaussian_scores(1000, 2 * mu, seed)
        counts = count_guesses(one.inside, one.outside, 0.2, seed)
        by_fdp += not fdp.consistent(1000, counts.guesses, counts.correct, gaussian(mu), 0.05)
        by_snj += snj.p_value(1000, counts.guesses, counts.correct, 4.0, DELTA) < 0.05
    assert by_fdp >= 36
    assert by_snj <= 4


def test_the_area_holds_its_level_and_the_gaussian_pair_does_not_where_scores_are_not_gaussian() -> None:
    # The tightest mechanism for an area is randomised response. That the pair errs is why it is labelled parametric.
    largest = area.largest_area(TradeoffCurve.of_points([(1.0, 0.0)]))
    assert largest == pytest.approx(math.e / (1 + math.e), abs=1e-5)
    sets = [responses(500, 1.0, seed) for seed in range(300)]
    alarms = sum(area.least_area(one.inside, one.outside, 0.95) > largest for one in sets)
    assert alarms <= 15  # the true rate is below 0.001: a false failure has a chance below 1e-9
    pair = gaussian_pair.estimate(sets[0].inside, sets[0].outside, DELTA, 0.95)
    assert pair.lower_bound > 1.0


@given(st.floats(0.01, 8), st.floats(1e-9, 0.3))
def test_an_area_that_an_epsilon_leaves_room_for_gives_that_epsilon_back(epsilon: float, delta: float) -> None:
    largest = area.largest_area(TradeoffCurve.of_points([(epsilon, delta)]))
    assert largest >= 1 - (1 - delta) ** 2 / (1 + math.exp(epsilon)) - 1e-12
    assert area.epsilon_of(largest, delta) == pytest.approx(epsilon, rel=1e-3, abs=1e-3)


# --- breaking the win


def test_swapped_labels_bound_nothing() -> None:
    one = gaussian_scores(1000, 3.0, 0)
    counts = count_guesses(one.outside, one.inside, 0.5, 0)
    pair = gaussian_pair.estimate(one.outside, one.inside, DELTA, 0.95)
    assert _snj(counts) == _fdp(counts) == pair.point == pair.lower_bound == 0.0
    assert area.epsilon_of(area.least_area(one.outside, one.inside, 0.95), DELTA) == 0.0


def test_with_few_canaries_one_of_each_is_guessed_at_least() -> None:
    counts = count_guesses(np.arange(6.0) + 3, np.arange(6.0), 0.05, 0)
    assert (counts.canaries, counts.guesses, counts.correct) == (12, 2, 2)


def test_scores_that_are_all_equal_are_guessed_by_luck_alone() -> None:
    # 4,000 fair guesses over 8 seeds: outside 4 standard errors with a chance of 6e-5.
    right = [count_guesses(np.ones(500), np.ones(500), 0.5, seed).correct for seed in range(8)]
    assert abs(sum(right) - 2000) < 4 * math.sqrt(1000)
    assert len(set(right)) > 1
    assert roc(ScoreSet("equal", np.ones(9), np.ones(9))).auc == 0.5


def test_scores_without_any_noise_are_told_as_finite_numbers() -> None:
    pair = gaussian_pair.estimate(np.ones(50), np.zeros(50), DELTA, 0.95)
    assert 2000 < pair.lower_bound < pair.point < 6000
    assert area.least_area(np.ones(50), np.zeros(50), 0.95) == pytest.approx(0.05 ** (1 / 50))
    same = gaussian_pair.estimate(np.ones(50), np.ones(50), DELTA, 0.95)
    assert same.point == same.lower_bound == 0.0


# --- monotone


@settings(max_examples=40)
@given(st.integers(2, 120), st.data())
def test_one_more_right_guess_never_lowers_a_bound_and_one_more_canary_never_raises_it(
    r: int, data: st.DataObject
) -> None:
    v, m = data.draw(st.integers(0, r - 1)), r + data.draw(st.integers(0, 500))
    assert snj.lower_bound(m, r, v, DELTA, 0.95) <= snj.lower_bound(m, r, v + 1, DELTA, 0.95) + 1e-5
    assert fdp.lower_bound(m, r, v, DELTA, 0.95) <= fdp.lower_bound(m, r, v + 1, DELTA, 0.95) + 1e-4
    assert snj.lower_bound(2 * m, r, v, DELTA, 0.95) <= snj.lower_bound(m, r, v, DELTA, 0.95) + 1e-5
    assert snj.lower_bound(m, r, v, DELTA, 0.99) <= snj.lower_bound(m, r, v, DELTA, 0.95) + 1e-5


@given(st.floats(0, 6), st.floats(0, 6), st.floats(1e-9, 0.4))
def test_epsilon_of_a_gaussian_rises_with_its_signal_and_falls_with_delta(a: float, b: float, delta: float) -> None:
    low, high = min(a, b), max(a, b)
    assert gdp_epsilon(low, delta) <= gdp_epsilon(high, delta) + 1e-6
    assert gdp_epsilon(high, 2 * delta) <= gdp_epsilon(high, delta) + 1e-6


@given(st.lists(st.tuples(st.floats(0, 12), st.floats(0, 1)), min_size=1, max_size=6), st.floats(0, 1), st.floats(0, 1))
def test_a_curve_of_points_is_a_trade_off_function(points: list[tuple[float, float]], a: float, b: float) -> None:
    curve = TradeoffCurve.of_points(points)
    assert 0 <= curve(a) <= 1 - a + 1e-12
    assert curve((a + b) / 2) <= (curve(a) + curve(b)) / 2 + 1e-12
    assert curve(curve(a)) <= a + 1e-9  # its own inverse, down to where it is 0


# --- what is told of an attack


def test_an_area_under_the_curve_is_the_chance_to_tell_two_people_apart() -> None:
    # 4 standard errors: a chance of 6e-5 over fresh seeds, for each of the two.
    one = roc(gaussian_scores(4000, 1.0, 3))
    assert one.auc == pytest.approx(norm.cdf(1 / math.sqrt(2)), abs=4 * one.standard_error)
    areas = [roc(gaussian_scores(200, 1.0, seed)) for seed in range(100)]
    spread = np.std([each.auc for each in areas], ddof=1)
    assert spread == pytest.approx(np.mean([each.standard_error for each in areas]), rel=4 / math.sqrt(200))
    x, y = one.false_positive_rates, one.true_positive_rates
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2) == pytest.approx(one.auc)


def test_what_is_found_at_low_rates_accuses_no_more_than_allowed() -> None:
    outside, inside = np.arange(1000.0), np.arange(500.0, 1500.0)
    told = roc(ScoreSet("shifted", inside, outside))
    assert [one.false_positive_rate for one in told.found] == list(LOW_RATES)
    assert [one.true_positive_rate for one in told.found] == [0.501, 0.51, 0.6]
    assert all(one.low < one.true_positive_rate < one.high for one in told.found)
    assert found_at(ScoreSet("few", inside, outside[-50:]), 0.001).true_positive_rate == 0.5


def test_the_interval_of_a_proportion_is_the_textbook_one() -> None:
    assert proportion(0, 10) == (0.0, pytest.approx(1 - 0.025 ** (1 / 10)))
    assert proportion(10, 10) == (pytest.approx(0.025 ** (1 / 10)), 1.0)
    low, high = proportion(8, 20)
    assert binom.sf(7, 20, low) == pytest.approx(0.025)
    assert binom.cdf(8, 20, high) == pytest.approx(0.025)


# --- input that is refused


@pytest.mark.parametrize(("m", "r", "v"), [(0, 0, 0), (10, 0, 0), (10, 11, 5), (10, 5, 6), (10, 5, -1)])
def test_counts_of_which_no_audit_can_be_made_are_refused(m: int, r: int, v: int) -> None:
    for call in (
        lambda: Guesses(m, r, v),
        lambda: snj.p_value(m, r, v, 1.0, DELTA),
        lambda: snj.lower_bound(m, r, v, DELTA, 0.95),
        lambda: fdp.consistent(m, r, v, gaussian(1.0), 0.05),
        lambda: fdp.lower_bound(m, r, v, DELTA, 0.95),
    ):
        with pytest.raises(DataError, match="Expected 1 <= guesses <= canaries"):
            call()


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_scores_that_are_no_numbers_are_refused(broken: float) -> None:
    good, bad = np.arange(20.0), np.array([*range(19), broken])
    for call in (
        lambda: count_guesses(bad, good, 0.5, 0),
        lambda: gaussian_pair.estimate(good, bad, DELTA, 0.95),
        lambda: area.least_area(bad, good, 0.95),
        lambda: roc(ScoreSet("bad", good, bad)),
    ):
        with pytest.raises(DataError, match="Expected finite scores"):
            call()
    with pytest.raises(DataError, match="Expected at least 2 cosines"):
        cosines.estimate(np.array([0.1, broken]), 100, DELTA, 0.95)


def test_too_few_scores_are_refused() -> None:
    with pytest.raises(DataError, match="at least 2 scores inside"):
        count_guesses(np.ones(1), np.ones(20), 0.5, 0)
    with pytest.raises(DataError, match="at least 2 scores outside"):
        roc(ScoreSet("empty", np.ones(3), np.ones(0)))


def test_canaries_that_no_fair_coin_let_in_are_refused() -> None:
    with pytest.raises(DataError, match="fair coins"):
        count_guesses(np.ones(900), np.ones(100), 0.5, 0)


@pytest.mark.parametrize("wrong", [0.0, 1.0, math.nan])
def test_probabilities_that_are_none_are_refused(wrong: float) -> None:
    good = np.arange(20.0)
    for call in (
        lambda: snj.lower_bound(10, 5, 5, wrong, 0.95),
        lambda: fdp.lower_bound(10, 5, 5, DELTA, wrong),
        lambda: fdp.consistent(10, 5, 5, gaussian(1.0), wrong),
        lambda: gaussian_pair.estimate(good, good, DELTA, wrong),
        lambda: cosines.estimate(good / 100, 100, wrong, 0.95),
        lambda: gdp_epsilon(1.0, wrong),
        lambda: area.epsilon_of(0.7, wrong),
        lambda: found_at(ScoreSet("good", good, good), wrong),
    ):
        with pytest.raises(ConfigError, match="Expected"):
            call()
    for share in (0.0, 1.1, math.nan):
        with pytest.raises(ConfigError, match="share of guesses"):
            count_guesses(good, good, share, 0)
    with pytest.raises(ConfigError, match="dimension"):
        cosines.estimate(good / 100, 1, DELTA, 0.95)
    with pytest.raises(ConfigError, match="points"):
        TradeoffCurve.of_points([])
    with pytest.raises(ConfigError, match="hits"):
        proportion(3, 2)
