"""All estimators on one set of scores, against what the plan claims: the function that rungs call.

Four tests decide, each with a false-alarm rate of ``(1 - confidence) / (4 parts)`` (Bonferroni), so that a rung that
looks at several parts of a run raises a false alarm with a chance of at most ``1 - confidence``:

- one-run SNJ: its lower bound is above the claimed epsilon. Assumes independent coins, nothing else;
- one-run f-DP: the claimed trade-off curve is rejected. Assumes independent coins, nothing else;
- ROC area: larger than the claimed curve leaves room for. Assumes independent scores as well;
- Gaussian pair: its lower bound is above the claimed epsilon. Assumes independent Gaussian scores: parametric.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from shared.errors import ConfigError
from shared.privacy.plan import PrivacyPlan
from simulations.audit.claims import ABOUT, Claim, Part, claim_of
from simulations.audit.estimators import area, fdp, gaussian_pair, snj
from simulations.audit.estimators.guesses import Guesses, check_confidence, count_guesses
from simulations.audit.findings import RUNG_CONFIDENCE, Estimate, ScoreSet

SNJ, FDP, AREA, PAIR = "one-run SNJ", "one-run f-DP", "ROC area", "Gaussian pair"
ESTIMATORS = (SNJ, FDP, AREA, PAIR)
SHARES = ((3.0, 0.15), (6.0, 0.25), (math.inf, 0.5))
"""Up to which claimed epsilon which r / m: where one-run f-DP has most power against "noise halved" at m = 1000."""
SHARE_UNCLAIMED = 0.7
"""The same without a claim: where both one-run bounds are largest if there is no noise."""


@dataclass(frozen=True, slots=True)
class Refutations:
    """Which tests reject the claim."""

    snj: bool
    fdp: bool
    area: bool
    pair: bool

    @property
    def any(self) -> bool:
        """One of them does: the claim is refuted."""
        return self.snj or self.fdp or self.area or self.pair


def level(confidence: float, parts: int) -> float:
    """The confidence of one test, so that those of all estimators and parts together have `confidence`.

    Raises
    ------
    ConfigError
        If the confidence is not in (0, 1), or there is no part.
    """
    if parts < 1:
        raise ConfigError(f"audit: Expected parts >= 1, got {parts}.")
    check_confidence(confidence, 0.5)
    return 1 - (1 - confidence) / (len(ESTIMATORS) * parts)


def guesses_of(scores: ScoreSet, claim: Claim | None, seed: int) -> Guesses:
    """Guess the share of coins that the claim, and nothing that was measured, asks for (`SHARES`)."""
    share = SHARE_UNCLAIMED if claim is None else next(share for most, share in SHARES if claim.epsilon <= most)
    return count_guesses(scores.inside, scores.outside, share, seed)


def refutations(scores: ScoreSet, counts: Guesses, claim: Claim, confidence: float) -> Refutations:
    """The four tests, each at this confidence. What `assess` and the simulation of its power both decide by."""
    m, r, v = counts.canaries, counts.guesses, counts.correct
    pair = gaussian_pair.estimate(scores.inside, scores.outside, claim.delta, confidence)
    return Refutations(
        snj=snj.p_value(m, r, v, claim.epsilon, claim.delta) < 1 - confidence,
        fdp=not fdp.consistent(m, r, v, claim.curve, 1 - confidence),
        area=area.least_area(scores.inside, scores.outside, confidence) > claim.area,
        pair=pair.lower_bound > claim.epsilon,
    )


def assess(
    scores: ScoreSet,
    plan: PrivacyPlan,
    part: Part,
    *,
    delta: float | None = None,
    confidence: float = RUNG_CONFIDENCE,
    parts: int = 1,
    seed: int = 0,
) -> tuple[Estimate, ...]:
    """Bounds on epsilon from scores of canaries, and whether they refute what the plan claims of a part.

    Parameters
    ----------
    scores : ScoreSet
        Of canaries that each had a fair coin of their own, and of nobody else; higher for those who took part.
    plan : PrivacyPlan
    part : {"prior", "training", "whole"}
        Which releases the scores were made from. Scores of an attacker who saw less than all of a part are fine.
    delta : float or None
        At which bounds and claim are told; None: the plan's.
    confidence : float
        Of all bounds and tests of a rung together.
    parts : int
        How many parts the rung assesses.
    seed : int
        Of the order of equal scores.

    Returns
    -------
    tuple of Estimate
        SNJ, f-DP, ROC area, Gaussian pair. Without privacy (mode ``none``) nothing is claimed and nothing refuted.

    Raises
    ------
    DataError
        If scores are not finite, too few, or not of canaries with fair coins.
    ConfigError, PolicyViolationError, AccountingError
        If the options are impossible, or the plan has no such part or cannot be accounted.
    """
    at, each = plan.delta if delta is None else delta, level(confidence, parts)
    claim = claim_of(plan, part, at)
    counts = guesses_of(scores, claim, seed)
    refuted = Refutations(False, False, False, False) if claim is None else refutations(scores, counts, claim, each)
    pair = gaussian_pair.estimate(scores.inside, scores.outside, at, each)
    least = area.least_area(scores.inside, scores.outside, each)
    m, r, v = counts.canaries, counts.guesses, counts.correct

    def told(estimator: str, bound: float, point: float | None, refutes: bool) -> Estimate:
        claimed = None if claim is None else claim.epsilon
        return Estimate(estimator, ABOUT[part], bound, point, each, estimator == PAIR, claimed, refutes)

    return (
        told(SNJ, snj.lower_bound(m, r, v, at, each), None, refuted.snj),
        told(FDP, fdp.lower_bound(m, r, v, at, each), None, refuted.fdp),
        told(AREA, area.epsilon_of(least, at), None, refuted.area),
        told(PAIR, pair.lower_bound, pair.point, refuted.pair),
    )
