"""From scores to estimates, bounds and verdicts: what several rungs have in common."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from shared.privacy.plan import PrivacyPlan
from simulations.audit.claims import ABOUT
from simulations.audit.estimators.assess import assess
from simulations.audit.estimators.roc import area_under
from simulations.audit.findings import Estimate, Measurement, RungResult, ScoreSet, Verdict
from simulations.audit.separation import power_if_doubled

FOUND_AUC = 0.9
"""Without a claim there is no bound to exceed: users of such a run are found if they are told apart this well."""


def of_release(
    name: str,
    title: str,
    plan: PrivacyPlan,
    scores: Sequence[ScoreSet],
    *,
    seed: int,
    began: float,
    facts: Mapping[str, Any],
) -> RungResult:
    """The result of a rung whose attacks see the release alone.

    Parameters
    ----------
    scores : sequence of ScoreSet
        One an attack, by the name of the attack.
    seed : int
        Of ties and of the simulated power.
    began : float
        ``time.monotonic()`` before the rung.
    facts : mapping
    """
    estimates = bounded(scores, plan, seed)
    measurements = [told_apart(one) for one in scores] if plan.mode == "none" else []
    verdict, why = decided(plan, estimates, measurements)
    return RungResult(
        name,
        title,
        verdict,
        why,
        time.monotonic() - began,
        epsilon_lower_bound=largest_bound(estimates),
        power=max((one.power for one in estimates if one.power is not None), default=None),
        measurements=tuple(measurements),
        estimates=tuple(estimates),
        scores=tuple(replace(one, name=about(one)) for one in scores),
        facts={"seed": seed, "power": "an upper estimate: half of the noise at most doubles the distance", **facts},
    )


def bounded(scores: Sequence[ScoreSet], plan: PrivacyPlan, seed: int, parts: int = 0) -> list[Estimate]:
    """Bounds on the whole run's epsilon from every set of scores, with an upper estimate of their power.

    Parameters
    ----------
    parts : int
        How many sets of scores the rung looks at in all, if these are not all of them.
    """
    among, made = parts or len(scores), []
    for one in scores:
        power = power_if_doubled(one, plan, "whole", parts=among, seed=seed)
        found = assess(one, plan, "whole", parts=among, seed=seed)
        made += [replace(estimate, about=about(one), power=power) for estimate in found]
    return made


def about(scores: ScoreSet) -> str:
    """What estimates from scores of the release are about: ``<part>, <what they are>``."""
    return f"{ABOUT['whole']}, {scores.name}"


def told_apart(scores: ScoreSet) -> Measurement:
    """How well members are told from others, where nothing is claimed."""
    area = area_under(scores.inside, scores.outside)
    name = f"user membership AUC, {scores.name}"
    return Measurement(name, area, f"<= {FOUND_AUC}", area <= FOUND_AUC, "no privacy at all")


def largest_bound(estimates: Sequence[Estimate]) -> float | None:
    """The largest bound that assumes no form of the scores; one of a part of the run is one of the whole."""
    bounds = [one.lower_bound for one in estimates if not one.parametric and one.lower_bound is not None]
    return max(bounds, default=None)


def decided(
    plan: PrivacyPlan, estimates: Sequence[Estimate], measurements: Sequence[Measurement]
) -> tuple[Verdict, str]:
    """FAIL or INCONCLUSIVE: the power of an attack on the release is known from above only, so it never says PASS."""
    if any(one.refutes for one in estimates):
        worst = max((one for one in estimates if one.refutes), key=lambda one: one.lower_bound or 0.0)
        return Verdict.FAIL, f"The release tells more than the plan allows: {worst.estimator}, {worst.about}."
    if not all(one.holds for one in measurements):
        return Verdict.FAIL, "The release tells who was trained on: nothing protects them."
    if plan.mode == "none":
        return Verdict.INCONCLUSIVE, "Nothing is claimed, and these attacks tell little."
    power = max((one.power or 0.0 for one in estimates), default=0.0)
    return Verdict.INCONCLUSIVE, (
        "The release tells no more than the plan allows; an attack on the release alone would have noticed half of the "
        f"noise with a probability of at most {power:.2f}."
    )
