"""``audit.json``: bounds made anew from the scores that are in it, verdicts from the numbers that are in it."""

from __future__ import annotations

import math
import re
from typing import Any

from shared.errors import IntegrityError, VeilrecError
from shared.privacy.plan import PrivacyPlan
from simulations.audit.bundle.evidence import AUDIT, PLAN, Evidence
from simulations.audit.claims import ABOUT, Part
from simulations.audit.estimators.assess import ESTIMATORS, assess
from simulations.audit.findings import ENOUGH_POWER, Estimate, Measurement, RungResult, Verdict, overall

AS_TOLD = 1e-4
"""A bound may differ from the recomputed one by this, absolutely and relatively: bisections end, versions differ."""
CLEARLY = 0.01
"""A measurement's ``expected`` is rounded for people: closer to its edge than this share nothing is decided."""
PARTS: dict[str, Part] = {about: part for part, about in ABOUT.items()}
NUMBER = r"[-+0-9.e]+"
AROUND, AT_MOST, AT_LEAST = (
    re.compile(form) for form in (rf"({NUMBER}) ± ({NUMBER})", rf"<= ({NUMBER})", rf">= ({NUMBER})")
)


def check_audit(evidence: Evidence) -> Verdict | None:
    """Check the audit's results, if the bundle has them; returns their verdict.

    Raises
    ------
    IntegrityError
        Names the rung and what does not follow.
    """
    told = evidence.audit
    if told is None:
        return None
    rungs = _rungs(told)
    plan = evidence.plan
    claimed = {"epsilon": evidence.run["privacy"].get("epsilon"), "delta": plan.delta}
    if told.get("claimed") != claimed:
        raise IntegrityError(f"{AUDIT}: Expected claimed={claimed}, got {told.get('claimed')}.")
    if _plan(told) != plan or told.get("run", {}).get("run_id") != evidence.run_id:
        raise IntegrityError(f"{AUDIT}: Expected the run and the plan of {PLAN}, got others.")
    for rung in rungs:
        _check_rung(rung, plan, _seed(told, rung))
    verdict = overall({rung.name: rung.verdict for rung in rungs})
    if told.get("verdict") != verdict.value:
        raise IntegrityError(f"{AUDIT}: Expected verdict={verdict}, which follows from the rungs, got another.")
    return verdict


def _rungs(told: dict[str, Any]) -> list[RungResult]:
    try:
        if told["format"] != 1:
            raise ValueError
        rungs = [RungResult.from_json(one) for one in told["rungs"]]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise IntegrityError(f"{AUDIT}: Expected the results of an audit (format=1).") from None
    if len({rung.name for rung in rungs}) < len(rungs):
        raise IntegrityError(f"{AUDIT}: Expected every rung once.")
    return rungs


def _plan(told: dict[str, Any]) -> PrivacyPlan | None:
    try:
        return PrivacyPlan(**told["plan"])
    except (KeyError, TypeError, VeilrecError):
        return None


def _seed(told: dict[str, Any], rung: RungResult) -> int:
    """By which equal scores were ordered: the rung's own, or the audit's."""
    seed = rung.facts.get("seed", told.get("seed"))
    if not isinstance(seed, int) or seed < 0:
        raise IntegrityError(f"{AUDIT}, {rung.name}: Expected the seed of the audit.")
    return seed


def _check_rung(rung: RungResult, plan: PrivacyPlan, seed: int) -> None:
    for estimate in rung.estimates:
        _check_estimate(rung, estimate, plan, seed)
    for measurement in rung.measurements:
        if _holds(measurement) not in (None, measurement.holds):
            raise IntegrityError(f"{AUDIT}, {rung.name}: Expected holds as the value says of {measurement.name!r}.")
    _check_bound(rung)
    _check_verdict(rung)


def _check_verdict(rung: RungResult) -> None:
    """One way: what a rung may not say, given its numbers. A rung may always know of more that makes it undecided."""
    refuted = any(estimate.refutes for estimate in rung.estimates)
    failed = not all(measurement.holds for measurement in rung.measurements)
    powerful = rung.power is not None and rung.power >= ENOUGH_POWER
    allowed = {
        Verdict.FAIL: refuted or failed,
        Verdict.PASS: powerful and not refuted and not failed,
        Verdict.INCONCLUSIVE: not refuted,
    }
    if not allowed[rung.verdict]:
        raise IntegrityError(
            f"{AUDIT}, {rung.name}: Expected a verdict that follows from its numbers, got {rung.verdict}."
        )


def _check_bound(rung: RungResult) -> None:
    bounds = [estimate.lower_bound for estimate in rung.estimates if estimate.lower_bound is not None]
    told = rung.epsilon_lower_bound
    if told is not None and not any(_close(told, bound) for bound in bounds):
        raise IntegrityError(f"{AUDIT}, {rung.name}: Expected epsilon_lower_bound=one of its estimates', got {told}.")


def _check_estimate(rung: RungResult, estimate: Estimate, plan: PrivacyPlan, seed: int) -> None:
    where = f"{AUDIT}, {rung.name}, {estimate.estimator}, {estimate.about}"
    if estimate.estimator in ESTIMATORS:
        _check_assessed(rung, estimate, plan, seed, where)
        return
    bound, claimed = estimate.lower_bound, estimate.claimed
    above = bound is not None and claimed is not None and bound > claimed
    if estimate.refutes is not above:
        raise IntegrityError(f"{where}: Expected refutes={above}, as bound and claim say, got {estimate.refutes}.")


def _check_assessed(rung: RungResult, estimate: Estimate, plan: PrivacyPlan, seed: int, where: str) -> None:
    """An estimate of `assess`: made anew from the scores of its name."""
    found = [scores for scores in rung.scores if scores.name == estimate.about]
    part = PARTS.get(estimate.about.partition(", ")[0])  # "<part>", or "<part>, <what the scores are>"
    if len(found) != 1 or part is None:
        raise IntegrityError(f"{where}: Expected the scores that it was made from, under its name, got {len(found)}.")
    try:
        confidence = 1 - len(ESTIMATORS) * (1 - estimate.confidence)  # of all of them together, as `assess` takes it
        anew = assess(found[0], plan, part, confidence=confidence, seed=seed)
    except VeilrecError as error:
        raise IntegrityError(f"{where}: {error}") from None
    (expected,) = (one for one in anew if one.estimator == estimate.estimator)
    for name in ("lower_bound", "point", "claimed"):
        if not _close(getattr(estimate, name), getattr(expected, name)):
            told = getattr(estimate, name)
            raise IntegrityError(f"{where}: Expected {name}={getattr(expected, name)} from its scores, got {told}.")
    if (estimate.refutes, estimate.parametric) != (expected.refutes, expected.parametric):
        raise IntegrityError(f"{where}: Expected refutes={expected.refutes} from its scores, got {estimate.refutes}.")


def _holds(measurement: Measurement) -> bool | None:
    """What ``expected`` says of the value, where that is a form that can be read and the value not at its edge."""
    value, expected = measurement.value, measurement.expected
    try:
        if found := AROUND.fullmatch(expected):
            return _within(abs(value - float(found[1])), float(found[2]))
        if found := AT_MOST.fullmatch(expected):
            return _within(value, float(found[1]))
        if found := AT_LEAST.fullmatch(expected):
            return _within(-value, -float(found[1]))
    except (ValueError, TypeError):
        return None
    return None


def _within(value: float, limit: float) -> bool | None:
    edge = CLEARLY * max(abs(limit), 1e-12)
    return None if abs(value - limit) <= edge or math.isnan(value) else value < limit


def _close(told: float | None, expected: float | None) -> bool:
    if told is None or expected is None:
        return told is None and expected is None
    return math.isclose(told, expected, rel_tol=AS_TOLD, abs_tol=AS_TOLD)
