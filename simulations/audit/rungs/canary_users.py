"""Rung 2: canary users made of real items and of texts, from the released sums and from the release.

Their updates are what BERT makes of them, so that this rung sees what rung 1 cannot: a user who is counted twice, or
whose gradient depends on who else is in the batch. The insider projects the sums on a direction that no other canary
shares; the reader of the release has only losses.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from shared.adapter import load_release
from simulations.audit.black_box import gains
from simulations.audit.claims import ABOUT
from simulations.audit.estimators.assess import assess
from simulations.audit.estimators.insider import insider_scores
from simulations.audit.findings import Estimate, RungResult, ScoreSet, judge
from simulations.audit.power import HALVED, measure
from simulations.audit.rerun import Rerun, rows_of
from simulations.audit.rungs.gradient_canaries import of_estimator
from simulations.audit.verdicts import about, bounded, largest_bound, told_apart

NAME, TITLE = "2-canary-users", "Canary users made of real items and of texts"


def canary_users_rung(made: Rerun, *, seed: int) -> RungResult:
    """What sums and release of an audited re-run tell about its canary users."""
    start, plan = time.monotonic(), made.plan
    sums, release = _insider(made), _reader(made)
    signal = float(made.reach.mean()) if made.reach.size else 0.0
    estimates: list[Estimate] = []
    power: float | None = None
    if plan.steps:
        found = tuple(replace(one, about=sums.name) for one in assess(sums, plan, "training", parts=2, seed=seed))
        if plan.mode != "none" and plan.local_steps == 1:
            told = measure(
                plan,
                "training",
                len(made.subjects.text),
                noise_factor=HALVED * made.noise_factor,
                seed=seed,
                parts=2,
                signal=signal,
            )
            power, found = told.refuted, tuple(replace(one, power=of_estimator(told, one.estimator)) for one in found)
        estimates += found
    estimates += bounded([release], plan, seed, parts=2)
    refuted = any(one.refutes for one in estimates)
    measurements = [told_apart(one) for one in (sums, release)] if plan.mode == "none" else []
    refuted = refuted or not all(one.holds for one in measurements)
    return RungResult(
        name=NAME,
        title=TITLE,
        verdict=judge(refuted, power),
        why=_why(plan.mode == "none", refuted, power),
        seconds=time.monotonic() - start,
        epsilon_lower_bound=largest_bound(estimates),
        power=power,
        measurements=tuple(measurements),
        estimates=tuple(estimates),
        scores=(sums, replace(release, name=about(release))),
        facts={
            "canaries": len(made.subjects.text),
            "inside": int(made.subjects.text.inside.sum()),
            "mean reach along a canary's own direction, in clip norms": signal,
            "seed": seed,
        },
    )


def _insider(made: Rerun) -> ScoreSet:
    """From every round's sum, what lies along the direction that a canary has for itself."""
    inside, signal = made.subjects.text.inside, max(float(made.reach.mean()), 1e-6) if made.reach.size else 1.0
    told = insider_scores(made.plan, "training", training=made.projections, signal=signal)
    return ScoreSet(f"{ABOUT['training']}, released sums", told[inside], told[~inside])


def _reader(made: Rerun) -> ScoreSet:
    """From the release alone."""
    histories, gained = gains(load_release(made.adapter), made.apart.learner(0))
    own, inside = gained[rows_of(histories, made.subjects.text.names)], made.subjects.text.inside
    return ScoreSet("loss under the release", np.asarray(own[inside]), np.asarray(own[~inside]))


def _why(unclaimed: bool, refuted: bool, power: float | None) -> str:
    if unclaimed:
        return "Nothing is claimed, and canary users are told from others." if refuted else "Nothing is claimed."
    if refuted:
        return "A canary user is told from others better than the plan allows."
    return f"No bound is above the claim; half of the noise would have been noticed with probability {power or 0:.2f}."
