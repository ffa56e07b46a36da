"""The power of attacks that see the release alone: how far apart its scores would be with half of the noise.

What such an attacker sees is made from everything at once, so that no formula tells its scores. Half of the noise at
most doubles how far apart members and others are, in standard deviations: a generous assumption, so the power that is
told is rather too high than too low, and such rungs are INCONCLUSIVE more often than they need be the other way round.
"""

from __future__ import annotations

import numpy as np

from shared.privacy.plan import PrivacyPlan
from simulations.audit.claims import Part, claim_of
from simulations.audit.estimators.assess import guesses_of, level, refutations
from simulations.audit.findings import RUNG_CONFIDENCE, ScoreSet

RUNS = 50


def power_if_doubled(scores: ScoreSet, plan: PrivacyPlan, part: Part, *, parts: int, seed: int) -> float | None:
    """The chance that Gaussian scores twice as far apart as these refute the claim; None without privacy."""
    claim = claim_of(plan, part)
    if claim is None:
        return None
    pooled = float(np.sqrt((scores.inside.var(ddof=1) + scores.outside.var(ddof=1)) / 2))
    apart = max(0.0, float(scores.inside.mean() - scores.outside.mean())) / max(pooled, 1e-12)
    rng, found = np.random.default_rng([seed, 4]), 0
    for run in range(RUNS):
        one = ScoreSet(
            scores.name,
            rng.standard_normal(len(scores.inside)) + 2 * apart,
            rng.standard_normal(len(scores.outside)),
        )
        counts = guesses_of(one, claim, seed + run)
        found += refutations(one, counts, claim, level(RUNG_CONFIDENCE, parts)).any
    return found / RUNS
