"""Rung 4: user inference. Somebody holds later events and reviews of a user: do they tell that earlier ones were used?

Source: Kandpal et al., "User Inference Attacks on Large Language Models", EMNLP 2024: the mean ratio of likelihoods of
the trained and the pretrained model, over a user's fresh texts.
"""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from shared.adapter import load_release
from simulations.audit.black_box import gains
from simulations.audit.claims import ABOUT
from simulations.audit.estimators.assess import assess
from simulations.audit.findings import Estimate, RungResult, ScoreSet, judge
from simulations.audit.rerun import FRESH_SHARE, Rerun, rows_of
from simulations.audit.rungs.gradient_canaries import named, told_apart
from simulations.audit.separation import power_if_doubled

NAME, TITLE = "4-user-inference", "User inference from fresh events and reviews"
TRAINED, FRESH = 0, 1
"""Folders of the workspace apart: what candidates were trained with, and what came later."""


def user_inference_rung(made: Rerun, *, seed: int) -> RungResult:
    """What the release of an audited re-run tells about real users, from events that nobody trained on."""
    start, plan = time.monotonic(), made.plan
    fresh, trained = _scores(made, FRESH, "fresh events"), _scores(made, TRAINED, "trained events")
    estimates: list[Estimate] = []
    powers: list[float] = []
    for scores in (fresh, trained):
        power = power_if_doubled(scores, plan, "whole", parts=2, seed=seed)
        powers.append(power or 0.0)
        estimates += [
            replace(one, power=power) for one in named(assess(scores, plan, "whole", parts=2, seed=seed), scores)
        ]
    measurements = [told_apart(one) for one in (fresh, trained)] if plan.mode == "none" else []
    refuted = any(one.refutes for one in estimates) or not all(one.holds for one in measurements)
    power = None if plan.mode == "none" else max(powers)
    bounds = [one.lower_bound for one in estimates if not one.parametric and one.lower_bound is not None]
    return RungResult(
        name=NAME,
        title=TITLE,
        # The power is an upper bound: with it alone nothing may pass.
        verdict=judge(refuted, None),
        why="The release tells who was trained on." if refuted else _why(power),
        seconds=time.monotonic() - start,
        epsilon_lower_bound=max(bounds, default=None),
        power=power,
        measurements=tuple(measurements),
        estimates=tuple(estimates),
        scores=(fresh, trained),
        facts={"users": len(made.subjects.users), "fresh share of their events": FRESH_SHARE, "seed": seed},
    )


def _scores(made: Rerun, folder: int, name: str) -> ScoreSet:
    histories, gained = gains(load_release(made.adapter), made.apart.learner(folder))
    own, inside = gained[rows_of(histories, made.subjects.users.names)], made.subjects.users.inside
    return ScoreSet(f"{ABOUT['whole']}, {name}", np.asarray(own[inside]), np.asarray(own[~inside]))


def _why(power: float | None) -> str:
    if power is None:
        return "Nothing is claimed, and fresh events tell little."
    return (
        "The release tells no more about who was trained on than the plan allows; an attack as weak as this one would "
        f"hardly have noticed half of the noise (probability {power:.2f})."
    )
