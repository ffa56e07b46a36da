"""What a plan claims of its parts: epsilon, and a trade-off curve that is never above the true one."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from audit_setting import DEMO, FULL, OPEN

from shared.errors import AccountingError, PolicyViolationError
from shared.privacy.accounting import epsilon_spent
from shared.privacy.profile import epsilon_profile
from simulations.audit.claims import claim_of, claimed_epsilon, part_of, parts_of, tradeoff
from simulations.audit.estimators.tradeoff import gaussian
from simulations.audit.power import simulate

RATES = (1e-4, 1e-3, 0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


def test_the_parts_of_a_plan_are_those_that_release_something() -> None:
    assert parts_of(DEMO) == ("prior", "training", "whole")
    assert parts_of(FULL) == ("training",)
    assert parts_of(replace(DEMO, rounds=0)) == ("prior",)
    assert parts_of(replace(FULL, rounds=0)) == ()
    assert part_of(DEMO, "prior").rounds == 0
    assert part_of(DEMO, "training").prior_noise_multiplier is None
    assert part_of(DEMO, "whole") == DEMO


@pytest.mark.parametrize(
    ("plan", "part"), [(FULL, "prior"), (replace(DEMO, rounds=0), "training"), (replace(FULL, rounds=0), "whole")]
)
def test_a_part_that_releases_nothing_claims_nothing(plan, part) -> None:  # type: ignore[no-untyped-def]
    for call in (part_of, claimed_epsilon, tradeoff, claim_of):
        with pytest.raises(PolicyViolationError, match=f"part={part}"):
            call(plan, part)


def test_the_claim_of_a_part_is_what_the_accountant_says_of_it_alone() -> None:
    prior, training, whole = (claimed_epsilon(DEMO, part) for part in parts_of(DEMO))
    assert whole == epsilon_spent(DEMO, DEMO.rounds)
    assert prior == epsilon_spent(DEMO, 0)
    assert prior is not None and training is not None and whole is not None
    assert max(prior, training) < whole < prior + training
    looser = claimed_epsilon(DEMO, "prior", 1e-3)
    assert looser is not None and looser < prior


def test_without_privacy_nothing_is_claimed() -> None:
    for part in parts_of(OPEN):
        assert claimed_epsilon(OPEN, part) is tradeoff(OPEN, part) is claim_of(OPEN, part) is None


def test_the_curve_of_full_participation_is_the_gaussian_one_or_a_little_below() -> None:
    curve, true = tradeoff(FULL, "training"), gaussian(math.sqrt(20) / 4)
    assert curve is not None
    for rate in RATES:
        assert true(rate) - 0.01 <= curve(rate) <= true(rate)


def test_no_insider_errs_less_than_the_claimed_curve_and_one_errs_little_more() -> None:
    # 100,000 canaries on each side. 4 standard errors at each of 6 rates: a chance of 4e-4 over fresh seeds.
    scores, curve = simulate(DEMO, 200_000, "training", 1.0, seed=1), tradeoff(DEMO, "training")
    assert curve is not None
    thresholds = np.quantile(scores.outside, [0.5, 0.7, 0.8, 0.9, 0.95, 0.99])
    for threshold in thresholds:
        accused, missed = (scores.outside > threshold).mean(), (scores.inside <= threshold).mean()
        error = math.sqrt(missed * (1 - missed) / scores.inside.size) + abs(_slope(curve, accused)) * math.sqrt(
            accused * (1 - accused) / scores.outside.size
        )
        assert curve(accused) - 4 * error <= missed <= curve(accused) + 0.04


def _slope(curve, rate: float) -> float:  # type: ignore[no-untyped-def]
    return float((curve(rate * 1.01) - curve(rate)) / (rate * 0.01))


def test_with_half_of_the_noise_the_insider_errs_less_than_the_claimed_curve() -> None:
    scores, curve = simulate(DEMO, 20_000, "training", 0.5, seed=1), tradeoff(DEMO, "training")
    assert curve is not None
    threshold = np.quantile(scores.outside, 0.9)
    assert (scores.inside <= threshold).mean() < curve(0.1) - 0.15


def test_every_point_of_a_profile_is_no_better_than_the_headline_at_its_delta() -> None:
    points = epsilon_profile(part_of(DEMO, "prior"), 0)
    assert points is not None
    epsilons, deltas = zip(*points, strict=True)
    assert list(epsilons) == sorted(epsilons, reverse=True)
    assert min(deltas) == pytest.approx(1e-8) and max(deltas) == pytest.approx(0.99)
    for epsilon, delta in points[5:30:12]:
        headline = claimed_epsilon(DEMO, "prior", delta)
        assert headline is not None and headline <= epsilon + 1e-3 <= 1.01 * headline + 2e-3


def test_people_at_several_partners_are_claimed_what_the_worse_way_of_sampling_costs() -> None:
    shared = replace(DEMO, rounds=2, partners_per_user=3)
    points = epsilon_profile(part_of(shared, "training"), 2)
    assert points is not None
    for epsilon, delta in points[5:30:12]:
        headline = claimed_epsilon(shared, "training", delta)
        assert headline is not None and headline <= epsilon + 1e-3


def test_noise_too_coarse_to_be_accounted_is_claimed_nothing_for() -> None:
    coarse = replace(FULL, population=10**10)
    for call in (claim_of, tradeoff):
        with pytest.raises(AccountingError, match="Expected noise"):
            call(coarse, "training")


def test_a_plan_without_privacy_has_no_profile() -> None:
    assert epsilon_profile(OPEN, 8) is None
