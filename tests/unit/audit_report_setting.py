"""Audits to report on, made of the types that the rungs return."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np

from shared.privacy.plan import PrivacyPlan
from simulations.audit.findings import Estimate, Measurement, RungResult, ScoreSet, Verdict, overall

PLAN = PrivacyPlan(
    mode="distributed",
    delta=1e-5,
    sampling_rate=1.0,  # without sampling the delta curve is computed in a moment
    population=6500,
    clip_norm=0.15,
    noise_multiplier=2.6,
    prior_noise_multiplier=None,
    rounds=8,
    local_steps=1,
    partners=5,
    survivors=4,
    colluders=1,
    masked=True,
    partners_per_user=1,
    max_events=1000,
)
EPSILON = 4.8271234
RUN: dict[str, Any] = {
    "veilrec_version": "0.1.0",
    "engine": "inprocess",
    "data": {"name": "marketplace", "users": 6614},
    "privacy": {**asdict(PLAN), "epsilon": EPSILON, "randomness": "system", "ledger": {"plans": 1, "epsilon": 5.0}},
    "epsilons": [
        {"name": "headline", "unit": "user", "adjacency": "add-or-remove", "epsilon": EPSILON, "note": "quote this"},
        {"name": "replace-one", "unit": "user", "adjacency": "replace-one", "epsilon": 11.4321, "note": "exchanged"},
    ],
    "timing": {"total_s": 82.9},
}


def mechanism(holds: bool = True) -> RungResult:
    """Rung 0."""
    checks = (
        Measurement("noise of a share over the billed one", 0.998765432, "1 ± 0.004", holds, "noise halved"),
        Measurement("norm of the longest contribution over C", 0.75, "<= 1", True, "clip missing"),
    )
    verdict = Verdict.PASS if holds else Verdict.FAIL
    return RungResult("0-mechanism", "the installed code", verdict, "2 of 2 checks hold", 12.5, None, 1.0, checks)


def canaries(verdict: Verdict = Verdict.PASS, power: float = 0.987654, shift: float = 0.4) -> RungResult:
    """Rung 1, with the scores of 300 canaries."""
    coins = np.random.default_rng(7)
    scores = ScoreSet("gradient canaries", coins.normal(shift, 1, 1200), coins.normal(0, 1, 1100))
    refutes = verdict is Verdict.FAIL
    bound = 9.87654 if refutes else 3.21987
    estimates = (
        Estimate("one-run f-DP", "whole run", bound, None, 0.983333, False, EPSILON, refutes, power),
        Estimate("Gaussian pair", "whole run", 2.5123, 3.1416, 0.983333, True, EPSILON, False, None),
    )
    why = "the claimed curve is rejected" if refutes else "no estimator rejects the claim"
    return RungResult(
        "1-gradient-canaries",
        "insider canaries in the trainer",
        verdict,
        why,
        61.25,
        bound,
        power,
        (),
        estimates,
        (scores,),
        {"canaries": 2300, "seed": 77, "guesses": {"right": 512, "of": 1024}},
    )


def audit(*rungs: RungResult, plan: PrivacyPlan = PLAN) -> dict[str, Any]:
    """An ``audit.json`` of these rungs."""
    private = plan.mode != "none"
    return {
        "format": 1,
        "veilrec_version": "0.1.0",
        "verdict": overall({one.name: one.verdict for one in rungs}).value,
        "claimed": {"epsilon": EPSILON if private else None, "delta": plan.delta if private else None},
        "plan": asdict(plan),
        "run": {"run_id": "eb27a466f947b46a", "data": "marketplace", "partners": 5, "users": 6614},
        "seed": 20,
        "started": "2026-11-22T20:01:06+00:00",
        "seconds": 300.5,
        "versions": {"dp-accounting": "0.6.0", "numpy": "2.3.4"},
        "code_sha256": {"shared/a.py": "a" * 64, "client/b.py": "b" * 64},
        "rungs": [one.to_json() for one in rungs],
    }


def passed() -> dict[str, Any]:
    """An audit that says PASS, with all that an audit may bring."""
    return audit(mechanism(), canaries()) | {
        "poisoning": {
            "columns": ["Defence", "ER@10", "Noise"],
            "rows": [["none", 0.3125, 1], ["median of 3 buckets", 0.0625, 1.73]],
            "text": "promotion by one of ten partners at boost 10",
        },
        "mutations": [{"bug": "noise halved", "rung": "0-mechanism", "check": "noise of a share"}],
    }


def without_privacy() -> dict[str, Any]:
    """Mode none: the audit finds its users."""
    plan = replace(PLAN, mode="none", noise_multiplier=0.0)
    found = canaries(Verdict.FAIL, shift=3.0)
    estimates = tuple(replace(one, claimed=None) for one in found.estimates)
    return audit(mechanism(), replace(found, estimates=estimates), plan=plan)


def without_privacy_run() -> dict[str, Any]:
    """The run of `without_privacy`."""
    plan = replace(PLAN, mode="none", noise_multiplier=0.0)
    return RUN | {"privacy": {**asdict(plan), "epsilon": None, "randomness": "seeded"}, "epsilons": []}


def inconclusive() -> dict[str, Any]:
    """Too few canaries to notice."""
    return audit(mechanism(), canaries(Verdict.INCONCLUSIVE, power=0.79999))
