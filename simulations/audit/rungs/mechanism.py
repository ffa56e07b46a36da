"""Rung 0: deterministic tests of the mechanism as it is installed, under the audited run's plan.

No bound on epsilon from canaries shows noise that is used twice, or a sampler that is not Poisson: these checks do.
`planted` tells which check was seen to fail on which planted bug.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from shared.config import RunConfig
from shared.model.weights import find_base
from shared.privacy.plan import PrivacyPlan
from simulations.audit.findings import Measurement, RungResult, Verdict
from simulations.audit.mechanism.checks import Check, Outcome, Setting, run_check
from simulations.audit.mechanism.registry import all_checks

NAME, TITLE = "0-mechanism", "The mechanism, part by part"
PLANTED_FILE = Path(__file__).parents[1] / "mechanism" / "planted.json"
Observer = Callable[[Outcome], None]


def mechanism_rung(
    plan: PrivacyPlan,
    config: RunConfig,
    run: Path | None,
    seed: int,
    *,
    checks: Sequence[Check] | None = None,
    observer: Observer | None = None,
) -> RungResult:
    """Look at every part of the installed mechanism, and at what the run itself left behind.

    Parameters
    ----------
    plan : PrivacyPlan
        Of the audited run: its rates, noise, clip norm, threshold and scales are those that are looked at.
    config : RunConfig
        Of the audited run: the model whose gradients are clipped.
    run : Path or None
        The run's folder, with ``rounds.jsonl``, ``run.json`` and ``ledgers/``; None to look at the code alone.
    seed : int
        Of the audit's own coins.
    checks : sequence of Check, optional
        All of them by default.
    observer : callable, optional
        Called after each check.

    Returns
    -------
    RungResult
        FAIL if one number is not what it had to be, else PASS. Its power is told as 1: halved noise is ten standard
        errors and more away, and every bug in `planted` was seen to be found.

    Guarantees
    ----------
    Right code fails with a probability of at most ``facts["false_alarm"]`` (all statistics together); the practice
    federations are of invented people, in a temporary folder.

    Raises
    ------
    ConfigError
        If the base model of the configuration is not on this machine.
    """
    began, outcomes = time.monotonic(), list[Outcome]()
    wanted = all_checks() if checks is None else checks
    if any(one.name.startswith("gradients.") for one in wanted):
        find_base(config.model.base, local_only=True)  # that it is not here says nothing of the mechanism
    with tempfile.TemporaryDirectory(prefix="veilrec-audit-") as folder:
        setting = Setting(plan, config, seed, Path(folder), run)
        for one in wanted:
            outcomes.append(run_check(one, setting))
            if observer:
                observer(outcomes[-1])
    return _result(outcomes, seed, time.monotonic() - began)


def planted() -> list[dict[str, str]]:
    """Which rung and check catches which planted bug: ``bug``, ``rung``, ``check``."""
    told: list[dict[str, str]] = json.loads(PLANTED_FILE.read_text(encoding="utf-8"))
    return told


def _result(outcomes: Sequence[Outcome], seed: int, seconds: float) -> RungResult:
    measurements = tuple(_named(outcome, one.measurement) for outcome in outcomes for one in outcome.findings)
    broken = [outcome for outcome in outcomes if outcome.broken]
    looked = [outcome for outcome in outcomes if outcome.findings]
    return RungResult(
        name=NAME,
        title=TITLE,
        verdict=Verdict.FAIL if broken else Verdict.PASS if looked else Verdict.INCONCLUSIVE,
        why=_why(broken, len(looked), len(measurements)),
        seconds=seconds,
        power=1.0 if looked else None,
        measurements=measurements,
        facts=_facts(outcomes, seed),
    )


def _why(broken: Sequence[Outcome], looked: int, measured: int) -> str:
    if not looked:
        return "There was nothing to look at."
    if not broken:
        return f"All {measured} numbers of {looked} checks are what they have to be."
    first = broken[0].broken[0]
    wrong = sum(len(each.broken) for each in broken)
    return f"{wrong} of {measured} numbers are not what they have to be: {first.name}."


def _facts(outcomes: Sequence[Outcome], seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "checks": [
            {"name": each.name, "holds": not each.broken, "seconds": round(each.seconds, 3)} for each in outcomes
        ],
        "false_alarm": sum(one.false_alarm for outcome in outcomes for one in outcome.findings),
        "planted_bugs": len(planted()),
    }


def _named(outcome: Outcome, measurement: Measurement) -> Measurement:
    """Under the name of its check, so that a reader finds the code."""
    return replace(measurement, name=f"[{outcome.name}] {measurement.name}")
