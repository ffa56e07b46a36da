"""Skellam noise: its Rényi bound, its closeness to a rounded Gaussian, and that both are paid for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from accounting_setting import VECTORS, Published, config_of, plan_of, raw, spent
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import gammaln, ive, logsumexp, ndtr

from shared.config import PriorConfig, PrivacyConfig, RunConfig, TrainingConfig
from shared.errors import AccountingError
from shared.privacy import accounting, lattice, skellam
from shared.privacy.accounting import RDP_ORDERS, build_plan
from shared.privacy.plan import PrivacyPlan
from shared.privacy.skellam import gaussian_closeness, matched_variance, sampled_rdp, skellam_rdp

Floats = NDArray[np.float64]
NODES, WEIGHTS = np.polynomial.legendre.leggauss(8)


def laws(variance: float, reach: float) -> tuple[Floats, Floats, Floats]:
    """Integers within `reach` standard deviations, and the log laws of Skellam and of the rounded Gaussian."""
    whole = math.floor(reach * math.sqrt(variance))
    x = np.arange(-whole, whole + 1, dtype=np.float64)
    of_skellam = np.log(ive(np.abs(x), variance))
    v = skellam.matched_variance(variance)
    # The cell around x by Gauss and Legendre's rule: a difference of distribution functions would lose digits.
    slope = np.exp(-((x[:, None] + NODES / 2) ** 2 - x[:, None] ** 2) / (2 * v))
    of_gaussian = -(x**2) / (2 * v) - 0.5 * math.log(2 * math.pi * v) + np.log(slope @ WEIGHTS / 2)
    return x, of_skellam, of_gaussian


def test_the_laws_that_the_tests_compare_with_are_the_laws() -> None:
    x, of_skellam, of_gaussian = laws(1000.0, 12)
    # Poisson minus Poisson, added up; and the distribution function, near the middle where no digits are lost.
    k = np.arange(200, 900)
    assert math.exp(of_skellam[x == 7.0][0]) == pytest.approx(
        np.exp(-1000 + (2 * k + 7) * math.log(500) - gammaln(k + 1) - gammaln(k + 8)).sum(), rel=1e-11
    )
    s = math.sqrt(1000 - 1 / 12)
    assert math.exp(of_gaussian[x == 7.0][0]) == pytest.approx(ndtr(7.5 / s) - ndtr(6.5 / s), rel=1e-11)
    assert np.exp(of_skellam).sum() == pytest.approx(1.0, abs=1e-12)
    assert np.exp(of_gaussian).sum() == pytest.approx(1.0, abs=1e-12)


# --- Rényi


@pytest.mark.parametrize("variance", [200.0, 1000.0, 5000.0])
@pytest.mark.parametrize("shift", [1, 5, 15])
def test_the_bound_is_above_the_exact_divergence_of_one_coordinate_and_not_far_above(
    variance: float, shift: int
) -> None:
    whole = round(20 * math.sqrt(variance))
    x = np.arange(-whole, whole + 1)
    here, moved = (np.log(ive(np.abs(x - s), variance)) for s in (0, shift))
    for order in (2, 3, 8):
        exact = float(logsumexp(order * moved - (order - 1) * here)) / (order - 1)
        bound = skellam_rdp(order, shift, shift, variance)
        assert exact <= bound * (1 + 1e-9)
        assert bound <= 1.1 * exact


def test_the_bound_tends_to_the_gaussian_one() -> None:
    assert skellam_rdp(8, 1e6, 1e3, 1e6) == pytest.approx(8 / 2, rel=1e-5)


def sampled_gaussian(order: int, rate: float, z: float) -> float:
    """Mironov, Talwar and Zhang (2019), equation for whole orders: exact."""
    j = np.arange(order + 1)
    choose = gammaln(order + 1) - gammaln(j + 1) - gammaln(order - j + 1)
    terms = choose + (order - j) * math.log1p(-rate) + j * math.log(rate) + (j * j - j) / (2 * z * z)
    return float(logsumexp(terms)) / (order - 1)


@pytest.mark.parametrize("rate", [0.01, 0.2, 0.9])
def test_sampling_a_general_mechanism_is_bounded_by_three_times_the_exact_moments(rate: float) -> None:
    curve = np.arange(65) / (2 * 1.5**2)
    assert sampled_rdp(2, rate, curve) == pytest.approx(sampled_gaussian(2, rate, 1.5), rel=1e-9)
    for order in (3, 8, 64):
        exact, bound = sampled_gaussian(order, rate, 1.5), sampled_rdp(order, rate, curve)
        assert exact < bound <= exact + math.log(3) / (order - 1) + 1e-9


def test_sampling_by_hand_for_order_three() -> None:
    q, curve = 0.3, np.array([0.0, 0.0, 0.7, 0.9])
    moments = 0.7**2 * (3 * q - q + 1) + 3 * q**2 * 0.7 * math.exp(0.7) + 3 * q**3 * math.exp(2 * 0.9)
    assert sampled_rdp(3, q, curve) == pytest.approx(math.log(moments) / 2, rel=1e-12)


def test_sampling_everybody_or_at_huge_divergence_does_not_break() -> None:
    curve = np.full(1025, 1e4)
    assert sampled_rdp(1024, 1.0, curve) == 1e4
    assert 9.9e3 < sampled_rdp(1024, 0.1, curve) < 1e4 + 1


def test_rounding_to_a_coarse_lattice_costs_the_published_epsilon(monkeypatch: pytest.MonkeyPatch) -> None:
    from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

    told = VECTORS["skellam"]

    def epsilon(l2: float, scale: float) -> float:
        l1 = min(l2**2, math.sqrt(told["size"]) * l2)
        return float(compute_epsilon(RDP_ORDERS, [skellam_rdp(a, l1, l2, scale**2) for a in RDP_ORDERS], 1e-5)[0])

    assert epsilon(2.0**30, 2.0**30) == pytest.approx(told["gaussian"], abs=0.005)
    monkeypatch.setattr(lattice, "ROUNDING_FAILURE", told["rounding_failure"])
    for scale, published in told["by_scale"].items():
        reach = lattice.sensitivity(int(scale), told["size"], 1)
        assert epsilon(reach, int(scale)) == pytest.approx(published, abs=published.half_a_step)
        # What a plan does: the noise grows with the reach, and rounding costs noise instead of epsilon.
        assert epsilon(reach, reach) == pytest.approx(told["gaussian"], abs=0.005)


def test_published_figures_know_their_digits() -> None:
    assert Published("4.94").half_a_step == pytest.approx(0.005)


# --- closeness: the constants on the exact laws


def constants_hold(variance: float) -> None:
    x, p, r = laws(variance, 12)
    ratio, y = p - r, np.abs(x) / math.sqrt(variance)
    blur = 1e-12  # of the Bessel functions, in a logarithm
    assert np.all(np.abs(ratio) <= np.maximum(y, 2) ** 4 / (24 * variance) + blur)
    for law in (np.exp(p), np.exp(r)):
        assert (law * ratio**2).sum() <= skellam.VARIANCE_FACTOR / variance**2
        assert abs((law * ratio).sum()) <= skellam.MEAN_FACTOR / variance**2 + blur


@pytest.mark.parametrize("variance", [1e3, 3e3, 1e4, 1e5, 1e6, 1e7])
def test_the_constants_of_the_derivation_hold_on_the_exact_laws(variance: float) -> None:
    constants_hold(variance)


@pytest.mark.parametrize("variance", [1e3, 1e4, 1e5])
def test_the_log_ratio_is_the_fourth_hermite_polynomial(variance: float) -> None:
    x, p, r = laws(variance, 12)
    y = x / math.sqrt(variance)
    rest = (p - r) - (y**4 - 6 * y**2 + 3) / (24 * variance)
    assert np.all(np.abs(rest) <= 0.07 * (1 + y**6) / variance**2 + 1e-12)


def test_a_gaussian_of_another_variance_would_not_do(monkeypatch: pytest.MonkeyPatch) -> None:
    # The noise of the plan is not the Gaussian's: 1/12 of it comes from rounding.
    monkeypatch.setattr(skellam, "matched_variance", lambda variance: variance)
    with pytest.raises(AssertionError):
        constants_hold(1e4)


@pytest.mark.parametrize("variance", [1e5, 1e6])
@pytest.mark.parametrize(("coordinates", "failure"), [(1.0, 1e-3), (1e5, 1e-9), (1e7, 1e-14)])
def test_the_bound_holds_by_chernoffs_inequality_on_the_exact_laws(
    variance: float, coordinates: float, failure: float
) -> None:
    eta = gaussian_closeness(variance, coordinates, failure)
    reach = math.sqrt(2 * math.log(8 * coordinates / failure))
    inside, p, r = laws(variance, reach)
    outside = 1.01 * 2 * ndtr(-reach)  # of both laws; where it counts, next to what may be lost
    assert coordinates * outside <= failure / 2
    assert len(inside) > 100
    slopes = np.geomspace(0.01, 100, 60) * math.log(2 / failure) / eta
    for law, ratio in ((p, p - r), (r, r - p)):
        with_slope = [coordinates * math.log(math.fsum(np.exp(law + s * ratio))) - s * eta for s in slopes]
        assert min(with_slope) <= math.log(failure / 2)


def test_the_bound_is_not_idle() -> None:
    # Within a factor of two of what a normal law of the same moments would give.
    normal = math.sqrt(2e9 / 24 * math.log(2e12)) / 4e9
    assert normal < gaussian_closeness(4e9, 1e9, 1e-12) < 2 * normal


def test_one_skellam_value_is_as_private_as_the_bound_says() -> None:
    # The whole statement, on one coordinate: (eps + 2 eta, e^eta delta + (1 + e^(eps + eta)) f).
    variance, shift, failure = 2000.0, 45, 1e-6
    eta = gaussian_closeness(variance, 1, failure)
    x, p, _ = laws(variance, 12)
    moved = np.log(ive(np.abs(x - shift), variance))
    s = math.sqrt(matched_variance(variance))
    for epsilon in (0.5, 2.0, 4.0):
        gauss = ndtr(shift / (2 * s) - epsilon * s / shift) - math.exp(epsilon) * ndtr(
            -shift / (2 * s) - epsilon * s / shift
        )
        exact = np.maximum(np.exp(moved) - np.exp(epsilon + 2 * eta + p), 0).sum()
        assert exact <= math.exp(eta) * gauss + (1 + math.exp(epsilon + eta)) * failure


@given(st.floats(1e6, 1e11), st.floats(1, 1e12), st.floats(1e-40, 1e-3), st.floats(1.01, 10))
def test_closeness_grows_with_coordinates_and_certainty_and_falls_with_noise(
    variance: float, coordinates: float, failure: float, factor: float
) -> None:
    here = gaussian_closeness(variance, coordinates, failure)
    assert gaussian_closeness(variance * factor, coordinates, failure) < here
    assert gaussian_closeness(variance, coordinates * factor, failure) > here
    assert gaussian_closeness(variance, coordinates, failure / factor) > here


@pytest.mark.parametrize(
    ("variance", "coordinates", "failure"),
    [(999.0, 1, 0.5), (5e3, 1e9, 1e-12), (1e9, 1e9, 0.0), (1e9, 0, 0.1), (math.nan, 1e3, 0.1), (1e9, math.nan, 0.1)],
)
def test_where_the_derivation_ends_nothing_is_promised(variance: float, coordinates: float, failure: float) -> None:
    assert gaussian_closeness(variance, coordinates, failure) == math.inf


# --- what both cost a plan


def test_with_the_finest_lattice_the_bills_are_lost_in_the_third_digit() -> None:
    plan = plan_of(0.05, 200, 1.0)
    assert raw(plan, 1e-5) < spent(plan) < raw(plan, 1e-5) + 2e-3


def test_a_coarser_lattice_costs_more_until_it_is_refused() -> None:
    told = [spent(replace(plan_of(0.05, 50, 1.5), population=users)) for users in (10**4, 10**7)]
    assert told[0] + 5e-3 < told[1] < told[0] + 4 * accounting.LARGEST_CLOSENESS
    with pytest.raises(AccountingError, match="Expected noise within a factor"):
        spent(replace(plan_of(0.05, 50, 1.5), population=10**9))


def test_a_delta_that_roundings_use_up_is_refused() -> None:
    with pytest.raises(AccountingError, match=r"Expected delta >= 1\.1e-07 for 1000 rounded sums"):
        spent(plan_of(0.05, 1000, 2.0, delta=1e-7))
    with pytest.raises(AccountingError, match="Expected delta"):
        build_plan(config_of(3.0, 1e-10))


def test_noise_that_is_too_coarse_is_refused_when_the_plan_is_made() -> None:
    private = PrivacyConfig(population=10**9, noise_multiplier=1.0)
    with pytest.raises(AccountingError, match="Expected noise within a factor"):
        build_plan(RunConfig(privacy=private, training=TrainingConfig(rounds=10), prior=PriorConfig(kind="none")))


def test_calibration_raises_the_noise_where_the_lattice_is_too_coarse_for_less() -> None:
    plan = build_plan(RunConfig(privacy=PrivacyConfig(population=10**7), training=TrainingConfig(rounds=10)))
    assert 0 < spent(plan) < 8.0
    with pytest.raises(AccountingError, match="Expected noise within a factor"):
        spent(replace(plan, prior_noise_multiplier=plan.prior_noise_multiplier / 2))  # type: ignore[operator]


# --- planted bugs: what each check would miss, it is not a check for


def steps_are_counted() -> None:
    row = VECTORS["rows"][4]
    assert spent(plan_of(row["q"], row["T"], row["z"])) == row["pld"].about()


def partners_have_the_noise_of_their_part() -> None:
    plan = replace(plan_of(0.1, 10, 1.5), partners_per_user=4)
    together, apart = (accounting._pld(((0.1, z, times),), 1e-5) for z, times in ((1.5, 10), (3.0, 40)))
    assert spent(plan) == pytest.approx(max(together, apart), rel=2e-3)


def failures_come_off_delta() -> None:
    plan = plan_of(0.05, 88, 1.5, delta=1e-8)  # 88 roundings at 1e-12 take 0.88 % of it
    assert spent(plan) >= raw(plan, (1 - accounting.CLOSENESS_SHARE) * plan.delta - 88e-12)
    assert spent(plan) > raw(plan, plan.delta) + 1e-4


def closeness_is_added() -> None:
    plan = replace(plan_of(0.05, 50, 1.5), population=10**7)
    assert spent(plan) > raw(plan, plan.delta) + 5e-3


def _one_step_too_few(plan: PrivacyPlan, rounds: int, k: int) -> Any:
    return tuple(event._replace(times=event.times - 1) for event in TRUE_EVENTS(plan, rounds, k))


def _whole_noise_at_each_partner(plan: PrivacyPlan, rounds: int, k: int) -> Any:
    return tuple(event._replace(noise=event.noise / math.sqrt(k)) for event in TRUE_EVENTS(plan, rounds, k))


def _too_much_noise_together(plan: PrivacyPlan, rounds: int, k: int) -> Any:
    noise = plan.noise_multiplier * math.sqrt(plan.partners_per_user)
    return tuple(event._replace(noise=noise) for event in TRUE_EVENTS(plan, rounds, k))


TRUE_EVENTS = accounting._events


@pytest.mark.parametrize(
    ("check", "name", "bug"),
    [
        (steps_are_counted, "_events", _one_step_too_few),
        (partners_have_the_noise_of_their_part, "_events", _whole_noise_at_each_partner),
        (partners_have_the_noise_of_their_part, "_events", _too_much_noise_together),
        (failures_come_off_delta, "_rounding_failure", lambda *_: 0.0),
        (closeness_is_added, "gaussian_closeness", lambda *_: 0.0),
    ],
)
def test_a_planted_bug_is_caught(
    monkeypatch: pytest.MonkeyPatch, check: Callable[[], None], name: str, bug: Callable[..., Any]
) -> None:
    check()
    monkeypatch.setattr(accounting, name, bug)
    with pytest.raises(AssertionError):
        check()
