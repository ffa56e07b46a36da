"""The audit's own error rates: it does not cry wolf, it sees planted bugs, and it never passes what it cannot see."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from audit_setting import DELTA, DEMO, FULL, OPEN, RARE, gaussian_scores

from shared.errors import ConfigError, DataError
from shared.privacy.plan import PrivacyPlan
from simulations.audit.claims import ABOUT, Part, parts_of
from simulations.audit.estimators.assess import AREA, ESTIMATORS, FDP, PAIR, SNJ, assess, level
from simulations.audit.estimators.insider import insider_scores
from simulations.audit.findings import ENOUGH_POWER, RUNG_CONFIDENCE, ScoreSet, Verdict, judge
from simulations.audit.power import measure, power, simulate

HONEST: list[tuple[PrivacyPlan, Part]] = [(FULL, "training"), (DEMO, "prior"), (DEMO, "training"), (DEMO, "whole")]
IDS = ["full", "prior", "training", "whole"]
RUNS = 200


# --- false alarms


@pytest.mark.parametrize(("plan", "part"), HONEST, ids=IDS)
@pytest.mark.parametrize("m", [60, 1000])
def test_false_alarms_at_the_claimed_noise_are_at_most_5_percent_over_200_runs(
    plan: PrivacyPlan, part: Part, m: int
) -> None:
    # The true rate is at most 1.7 % (2,000 runs): more than 10 of 200 has a chance of 4e-4 over fresh seeds.
    assert measure(plan, part, m, noise_factor=1.0, runs=RUNS).refuted <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "part"), [*HONEST, (RARE, "training"), (replace(DEMO, partners_per_user=2), "training")]
)
def test_all_of_assess_raises_at_most_5_percent_false_alarms_and_bounds_nothing_above_the_claim(
    plan: PrivacyPlan, part: Part
) -> None:
    alarms = above = 0
    for seed in range(RUNS):
        told = assess(simulate(plan, 1000, part, 1.0, seed), plan, part, seed=seed)
        alarms += any(one.refutes for one in told)
        above += any((one.lower_bound or 0) > (one.claimed or 0) for one in told)
    assert alarms <= 0.05 * RUNS
    assert above == alarms  # a bound above the claim is a refutation, never a mere figure


# --- power


@pytest.mark.parametrize("part", parts_of(DEMO))
def test_halved_noise_is_seen_with_a_power_above_95_percent(part: Part) -> None:
    seen = measure(DEMO, part, 1000, parts=3)
    assert seen.refuted > 0.95
    assert seen.refuted >= max(seen.snj, seen.fdp, seen.area, seen.pair)
    assert power(DEMO, part, 1000, parts=3) == seen.refuted


def test_power_rises_with_canaries_and_falls_with_noise() -> None:
    few, some, many = (power(FULL, "training", m, runs=60) for m in (20, 60, 300))
    assert few < some < many == 1.0
    assert power(FULL, "training", 300, noise_factor=0.9, runs=60) < 0.5
    assert power(FULL, "training", 300, noise_factor=2.0, runs=60) == 0.0


def test_canaries_that_move_a_sum_by_half_of_the_sensitivity_cannot_see_halved_noise() -> None:
    assert measure(FULL, "training", 1000, signal=0.5).refuted <= 0.05


@pytest.mark.parametrize(("plan", "part"), HONEST, ids=IDS)
@pytest.mark.parametrize("noise_factor", [1.0, 0.5])
def test_an_underpowered_audit_never_says_pass(plan: PrivacyPlan, part: Part, noise_factor: float) -> None:
    known = power(plan, part, 20)
    assert known < ENOUGH_POWER
    for seed in range(10):
        told = assess(simulate(plan, 20, part, noise_factor, seed), plan, part, seed=seed)
        assert judge(any(one.refutes for one in told), known) in (Verdict.INCONCLUSIVE, Verdict.FAIL)


# --- planted bugs, through the scores that a rung would see


def _residuals(plan: PrivacyPlan, seed: int, *, signal: float = 1.0, rate: float | None = None):  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(seed)
    inside = rng.random(1000) < 0.5
    taken = rng.random((1000, plan.steps)) < (plan.sampling_rate if rate is None else rate)
    return inside, signal * (inside[:, None] & taken) + plan.noise_multiplier * rng.standard_normal(taken.shape)


def _verdicts(plan: PrivacyPlan, inside: np.ndarray, training: np.ndarray) -> dict[str, bool]:
    scores = insider_scores(plan, "training", training=training)
    told = assess(ScoreSet("training", scores[inside], scores[~inside]), plan, "training")
    return {one.estimator: one.refutes for one in told}


@pytest.mark.parametrize(
    "bug",
    [{"signal": 5.0}, {"rate": 1.0}],
    ids=["the clip is missing", "always in, billed as sampled"],
)
def test_a_planted_bug_is_refuted(bug: dict[str, float]) -> None:
    plan = replace(DEMO, prior_noise_multiplier=None)
    assert not any(_verdicts(plan, *_residuals(plan, 0)).values())
    seen = _verdicts(plan, *_residuals(plan, 0, **bug))
    assert seen[AREA]
    assert seen[PAIR]


# --- what is told


def test_assess_tells_every_estimator_its_claim_and_its_share_of_the_confidence() -> None:
    told = assess(gaussian_scores(1000, 1.0, 0), DEMO, "prior", parts=2)
    assert tuple(one.estimator for one in told) == ESTIMATORS == (SNJ, FDP, AREA, PAIR)
    assert {one.about for one in told} == {ABOUT["prior"]}
    assert {one.confidence for one in told} == {level(RUNG_CONFIDENCE, 2)} == {1 - 0.01 / 8}
    assert [one.parametric for one in told] == [False, False, False, True]
    assert all(one.claimed == pytest.approx(7.2, abs=0.02) for one in told)
    assert all(one.lower_bound is not None and 0 < one.lower_bound < 7.2 and not one.refutes for one in told)


def test_without_a_claim_bounds_are_told_and_nothing_is_refuted() -> None:
    told = assess(gaussian_scores(1000, 100.0, 0), OPEN, "prior")
    assert all(one.claimed is None and not one.refutes for one in told)
    bounds = {one.estimator: one.lower_bound for one in told}
    assert 4 < (bounds[SNJ] or 0) < (bounds[FDP] or 0) < (bounds[PAIR] or 0)


def test_scores_with_swapped_labels_refute_nothing() -> None:
    one = simulate(DEMO, 1000, "whole", 0.25, 0)
    told = assess(ScoreSet("swapped", one.outside, one.inside), DEMO, "whole")
    assert all(each.lower_bound == 0.0 and not each.refutes for each in told)


def test_the_same_seed_tells_the_same() -> None:
    scores = ScoreSet("ties", np.ones(300), np.ones(300))
    assert assess(scores, FULL, "training", seed=3) == assess(scores, FULL, "training", seed=3)
    assert measure(FULL, "training", 60, runs=20, seed=1) == measure(FULL, "training", 60, runs=20, seed=1)
    one, other = simulate(FULL, 50, "training", 1.0, 1), simulate(FULL, 50, "training", 1.0, 2)
    assert not np.array_equal(one.inside[:5], other.inside[:5])


def test_an_insiders_score_is_the_log_likelihood_ratio() -> None:
    prior, training = np.array([0.3, -1.0]), np.array([[0.5, 2.0], [0.0, -0.5]])
    plan = replace(DEMO, rounds=2)

    def density(x: float, mean: float, z: float) -> float:
        return float(np.exp(-((x - mean) ** 2) / (2 * z**2)))

    z0, z, q = 0.655, 1.163, 0.2
    for row, score in enumerate(insider_scores(plan, "whole", prior=prior, training=training, prior_signal=0.7)):
        ratio = density(prior[row], 0.7, z0) / density(prior[row], 0.0, z0)
        for x in training[row]:
            ratio *= 1 - q + q * density(x, 1.0, z) / density(x, 0.0, z)
        assert score == pytest.approx(np.log(ratio))
    full = insider_scores(replace(plan, sampling_rate=1.0), "training", training=training)
    assert np.argmax(full) == 0


# --- input that is refused


def test_residuals_that_do_not_fit_are_refused() -> None:
    good = np.zeros((5, 8))
    for prior, training in ((None, None), (None, good), (np.zeros(4), good), (np.full(5, np.nan), good), (good, good)):
        with pytest.raises(DataError, match="residuals: Expected"):
            insider_scores(DEMO, "whole", prior=prior, training=training)


def test_simulations_of_nothing_are_refused() -> None:
    for call in (
        lambda: simulate(OPEN, 100, "prior", 1.0, 0),
        lambda: simulate(DEMO, 0, "prior", 1.0, 0),
        lambda: simulate(DEMO, 100, "prior", 0.0, 0),
        lambda: measure(OPEN, "prior", 100),
        lambda: measure(FULL, "training", 100, runs=0),
        lambda: level(0.95, 0),
        lambda: level(1.0, 1),
    ):
        with pytest.raises(ConfigError, match="Expected"):
            call()
    with pytest.raises(DataError, match="finite"):
        assess(ScoreSet("bad", np.full(30, np.nan), np.ones(30)), FULL, "training", delta=DELTA)
