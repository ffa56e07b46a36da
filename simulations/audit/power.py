"""Would the audit have noticed? The chance that it refutes the claim if the noise were not what is claimed.

One canary under the insider (`simulations.audit.estimators.insider`) is simulated exactly: residuals of the prior's sum
are ``s0 b + f z0 N(0, 1)``, of step t ``s b Bernoulli(q) + f z N(0, 1)``, with f the factor that the noise is off by;
scores are made with the claimed noise, as the audit makes them. The same tests decide (`refutations`). At f = 1 this
is the false-alarm rate, at f = 1/2 the power against "noise halved".

Canaries of one run disturb each other only through the people's gradients, which the insider knows; so they are drawn
independently.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.errors import ConfigError
from shared.privacy.plan import PrivacyPlan
from simulations.audit.claims import ABOUT, Part, claim_of
from simulations.audit.estimators.assess import guesses_of, level, refutations
from simulations.audit.estimators.insider import insider_scores
from simulations.audit.findings import RUNG_CONFIDENCE, ScoreSet

HALVED = 0.5


@dataclass(frozen=True, slots=True)
class Power:
    """The share of simulated audits that refute the claim.

    Attributes
    ----------
    refuted : float
        By any of the four tests.
    snj, fdp, area, pair : float
        By each.
    runs : int
    """

    refuted: float
    snj: float
    fdp: float
    area: float
    pair: float
    runs: int


def simulate(
    plan: PrivacyPlan,
    m: int,
    part: Part,
    noise_factor: float,
    seed: int,
    *,
    prior_signal: float = 1.0,
    signal: float = 1.0,
) -> ScoreSet:
    """Scores of m canaries with fair coins, as the insider would see them.

    Parameters
    ----------
    plan : PrivacyPlan
        With privacy.
    m : int
        Canaries; at least 2 must fall on each side.
    part : {"prior", "training", "whole"}
    noise_factor : float
        Real noise over the claimed one; above 0.
    seed : int
    prior_signal, signal : float
        How far a canary moves a sum it is in, in units of its sensitivity.

    Raises
    ------
    ConfigError
        If there is no noise to multiply, or m or the factor is impossible.
    """
    if plan.mode == "none" or m < 1 or not noise_factor > 0:
        raise ConfigError(f"power: Expected a plan with noise, m >= 1, noise_factor > 0, got {plan.mode=} {m=}.")
    rng = np.random.default_rng(seed)
    inside = rng.random(m) < 0.5
    prior = training = None
    if part != "training" and plan.prior_noise_multiplier is not None:
        prior = prior_signal * inside + noise_factor * plan.multiplier("prior") * rng.standard_normal(m)
    if part != "prior" and plan.steps:
        taken = _taken(rng, inside, plan)
        training = signal * taken + noise_factor * plan.multiplier("train") * rng.standard_normal(taken.shape)
    scores = insider_scores(plan, part, prior=prior, training=training, prior_signal=prior_signal, signal=signal)
    return ScoreSet(ABOUT[part], scores[inside], scores[~inside])


def measure(
    plan: PrivacyPlan,
    part: Part,
    m: int,
    *,
    noise_factor: float = HALVED,
    runs: int = 100,
    seed: int = 0,
    delta: float | None = None,
    confidence: float = RUNG_CONFIDENCE,
    parts: int = 1,
    prior_signal: float = 1.0,
    signal: float = 1.0,
) -> Power:
    """How often `assess` refutes the claim for a part, over seeded simulated audits with m canaries.

    Parameters
    ----------
    plan, part, m, noise_factor, prior_signal, signal
        As `simulate`.
    runs, seed : int
        Run i takes the seed of ``SeedSequence(seed)``'s i-th child.
    delta, confidence, parts
        As `assess`.

    Raises
    ------
    ConfigError, DataError, PolicyViolationError, AccountingError
        As `simulate` and `assess`.
    """
    if runs < 1:
        raise ConfigError(f"power: Expected runs >= 1, got {runs}.")
    claim, each = claim_of(plan, part, delta), level(confidence, parts)
    if claim is None:
        raise ConfigError("power: Expected a plan with privacy: without noise nothing can be halved.")
    seeds = np.random.SeedSequence(seed).generate_state(runs)
    refuted = np.zeros((runs, 5), dtype=bool)
    for run, one in enumerate(seeds):
        scores = simulate(plan, m, part, noise_factor, int(one), prior_signal=prior_signal, signal=signal)
        if min(scores.inside.size, scores.outside.size) < 2:
            continue  # nothing to compare: such an audit refutes nothing
        counts = guesses_of(scores, claim, int(one))
        found = refutations(scores, counts, claim, each)
        refuted[run] = found.any, found.snj, found.fdp, found.area, found.pair
    found_by = [float(share) for share in refuted.mean(axis=0)]
    return Power(found_by[0], found_by[1], found_by[2], found_by[3], found_by[4], runs)


def power(
    plan: PrivacyPlan, part: Part, m: int, noise_factor: float = HALVED, runs: int = 100, seed: int = 0, parts: int = 1
) -> float:
    """`measure`, by any test; for canaries at the full sensitivity and the defaults of `assess`."""
    return measure(plan, part, m, noise_factor=noise_factor, runs=runs, seed=seed, parts=parts).refuted


def _taken(rng: np.random.Generator, inside: NDArray[np.bool_], plan: PrivacyPlan) -> NDArray[np.bool_]:
    """Who is in which step: shape (m, T); nobody whose coin said no."""
    sampled = rng.random((inside.size, plan.steps)) < plan.sampling_rate
    return np.asarray(inside[:, None] & sampled)
