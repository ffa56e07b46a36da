"""Rung 1: gradient canaries in the real trainer, seen by an insider who knows everybody else.

A thousand invented users, each with a coordinate of the gradient and a pair of items of its own, take part or not by a
coin. The installed code samples, clips, rounds, adds noise, masks and opens; the scores are the log-likelihood ratios
of what is left in the released sums. This is the adversary that differential privacy is defined against.
"""

from __future__ import annotations

import time
from dataclasses import replace

from simulations.audit.claims import ABOUT, Part, parts_of
from simulations.audit.estimators.assess import AREA, FDP, PAIR, SNJ, assess
from simulations.audit.estimators.insider import insider_scores
from simulations.audit.findings import RungResult, ScoreSet, judge
from simulations.audit.power import HALVED, Power, measure
from simulations.audit.rerun import Rerun
from simulations.audit.verdicts import largest_bound, told_apart

NAME, TITLE = "1-gradient-canaries", "Insider with gradient canaries in the real trainer"


def gradient_canaries_rung(made: Rerun, *, seed: int, began: float | None = None) -> RungResult:
    """What the released sums of an audited re-run tell about its gradient canaries.

    Parameters
    ----------
    made : Rerun
    seed : int
        Of ties and of the simulated power.
    began : float, optional
        ``time.monotonic()`` before the re-run, whose time is then counted.
    """
    start = time.monotonic() if began is None else began
    parts = testable_parts(made)
    inside = made.subjects.gradient.inside
    scores: dict[Part, ScoreSet] = {}
    for part in parts:
        told = insider_scores(made.plan, part, prior=made.prior, training=made.training, prior_signal=made.prior_signal)
        scores[part] = ScoreSet(ABOUT[part], told[inside], told[~inside])
    powers = {part: _power(made, part, scores[part], len(parts), seed) for part in parts}
    estimates = [
        replace(one, power=None if (found := powers[part]) is None else of_estimator(found, one.estimator))
        for part in parts
        for one in assess(scores[part], made.plan, part, parts=len(parts), seed=seed)
    ]
    refuted = any(one.refutes for one in estimates)
    measurements = []
    if made.plan.mode == "none":
        measurements = [told_apart(scores[part]) for part in parts]
        refuted = not all(one.holds for one in measurements)
    known = [power.refuted for power in powers.values() if power is not None]
    power = min(known) if len(known) == len(parts) > 0 else None
    return RungResult(
        name=NAME,
        title=TITLE,
        verdict=judge(refuted, power),
        why=_why(made, refuted, power),
        seconds=time.monotonic() - start,
        epsilon_lower_bound=largest_bound(estimates),
        power=power,
        measurements=tuple(measurements),
        estimates=tuple(estimates),
        scores=tuple(scores.values()),
        facts={
            "canaries": len(inside),
            "inside": int(inside.sum()),
            "rounds": made.training.shape[1],
            "seed": seed,
            "parts": [ABOUT[part] for part in parts],
        },
    )


def testable_parts(made: Rerun) -> tuple[Part, ...]:
    """The parts of the plan of which the re-run has residuals."""
    parts = parts_of(made.plan)
    return parts if made.prior is not None else tuple(part for part in parts if part == "training")


def _power(made: Rerun, part: Part, scores: ScoreSet, parts: int, seed: int) -> Power | None:
    """Of the tests of one part, if the noise were halved; None where it cannot be simulated."""
    if made.plan.mode == "none" or made.plan.local_steps > 1:
        return None
    return measure(
        made.plan,
        part,
        len(scores.inside) + len(scores.outside),
        noise_factor=HALVED * made.noise_factor,
        seed=seed,
        parts=parts,
        prior_signal=made.prior_signal or 1.0,
    )


def of_estimator(power: Power, estimator: str) -> float:
    """The share of one estimator, by its name in findings."""
    return {SNJ: power.snj, FDP: power.fdp, AREA: power.area, PAIR: power.pair}[estimator]


def _why(made: Rerun, refuted: bool, power: float | None) -> str:
    if made.plan.mode == "none":
        return "Nothing is claimed, and members are told from others." if refuted else "Nothing is claimed."
    if refuted:
        return "The released sums tell more about a canary than the plan allows."
    if power is None:
        return "Several local steps are summed before they are seen: the power of this rung is not known."
    return f"No bound is above the claim; half of the noise would have been noticed with probability {power:.2f}."
