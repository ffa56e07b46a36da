"""The clip: what one user moves a sum by, in one learner and over all partners that hold the user."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import numpy as np

from client import learner as learner_module
from client.privatize import add_noise_share
from client.statistics import clipped_statistics
from shared.config import PriorConfig
from shared.errors import SensitivityError
from shared.hazmat.randomness import SystemRandomness
from shared.messages import ClippedSum
from shared.model.prior import statistics_size
from shared.privacy.plan import Mode, Stage
from simulations.audit.mechanism.checks import (
    REFERENCE,
    Check,
    Finding,
    Setting,
    at_least,
    at_most,
    check,
    equal,
    exchanged,
    none_of,
    refused,
)
from simulations.audit.mechanism.rehearsal import (
    ITEMS,
    Rehearsal,
    config_like,
    gradient_of,
    histories_of,
    order_under,
)

CHECKS: list[Check] = []
KINDS = ("popularity", "hybrid", "ease")
MODES: tuple[Mode, ...] = ("distributed", "local", "none")
HUGE = 1e6
CATALOGUE_ITEMS = 30


@check(CHECKS, "a clip that is missing, measured on a part, or at C instead of C / k")
def user(setting: Setting) -> Iterator[Finding]:
    """A user with a gradient of `HUGE` clip norms at all k partners moves their sums by at most C together."""
    for k in sorted({1, 2, 4, setting.plan.partners_per_user}):
        plan = replace(setting.noisy, mode="none", sampling_rate=1.0, partners_per_user=k, local_steps=1)
        config = config_like(plan, seed=setting.seed)
        federation = Rehearsal.of(setting.folder(), 1, gradient=gradient_of(400, length=HUGE * plan.clip_norm))
        steps = federation.noised(0, config, plan=plan).values
        moved = k * float(np.linalg.norm(steps * plan.step("train"))) / plan.clip_norm
        rounding = k * math.sqrt(len(steps)) * plan.step("train") / plan.clip_norm
        name = f"how far a user at {k} partners moves the sum, in C, with rounding"
        yield at_most(name, moved, 1 + rounding, "clip missing, or C instead of C / k")
        yield at_least(f"{name}, at least", moved, 0.99 - rounding, "a check that looks at nothing")


@check(CHECKS, "a prior that is not clipped to 1 / k")
def prior(setting: Setting) -> Iterator[Finding]:
    """The same of the prior's sum, whose sensitivity is 1."""
    for k in sorted({1, 2, 4, setting.plan.partners_per_user}):
        plan = replace(REFERENCE, mode="none", partners_per_user=k)
        config = config_like(plan, seed=setting.seed)
        config = config.model_copy(update={"prior": config.prior.model_copy(update={"kind": "popularity"})})
        order = replace(order_under(plan, config), stage="prior")
        steps = Rehearsal.of(setting.folder(), 1).learner(0).noised_statistics(order).values
        moved, rounding = (
            k * float(np.linalg.norm(steps * plan.step("prior"))),
            k * math.sqrt(ITEMS) * plan.step("prior"),
        )
        name = f"how far a user at {k} partners moves the prior's sum, with rounding"
        yield at_most(name, moved, 1 + rounding, "prior clipped at 1 instead of 1 / k")
        yield at_least(f"{name}, at least", moved, 0.5, "a check that looks at nothing")


@check(CHECKS, "statistics that grow with what a user did")
def statistics(setting: Setting) -> Iterator[Finding]:
    """One event or 1,200, different items or the same: the user's statistics have norm 1 / k at most."""
    lives = ([3, 4], [*range(CATALOGUE_ITEMS)], [*range(CATALOGUE_ITEMS)] * 40, [7] * 500)
    for kind in KINDS:
        worst, wrong = 0.0, 0
        for items in lives:
            for k in (1, setting.plan.partners_per_user):
                made = clipped_statistics(histories_of([items]), CATALOGUE_ITEMS, PriorConfig(), kind, clip_norm=1 / k)
                worst = max(worst, k * float(np.linalg.norm(made.values)))
                wrong += len(made.values) != statistics_size(kind, CATALOGUE_ITEMS)
        yield at_most(
            f"norm of a user's statistics, {kind}, the worst of {len(lives)}", worst, 1 + 1e-9, "prior not clipped"
        )
        yield none_of(f"statistics of another size than declared, {kind}", wrong, "a size that depends on data")


@check(CHECKS, "a clip norm that hangs on the round or on data")
def constant(setting: Setting) -> Iterator[Finding]:
    """The norm that is clipped to is the plan's in every round: a bit about norms would have to be billed."""
    plan = setting.noisy
    config = config_like(plan, seed=setting.seed)
    federation = Rehearsal.of(setting.folder(), 3)
    for round_ in (1, 2, 3):
        federation.noised(0, config, round_, plan=plan)
    clips = federation.learner(0).clips
    yield equal("steps in which a clip norm was asked for", len(clips), 3 * plan.local_steps, "a step without a clip")
    for name, clip in (("smallest", min(clips)), ("largest", max(clips))):
        told = f"the {name} norm clipped to in three rounds, over C / k"
        yield equal(told, clip / (plan.clip_norm / plan.partners_per_user), 1.0, "an adaptive clip norm", within=1e-12)


@check(CHECKS, "a sum accepted that was clipped to another norm")
def bounds(setting: Setting) -> Iterator[Finding]:
    """No noise is added to a sum that the plan's noise does not cover, in any mode."""
    C = REFERENCE.clip_norm
    cases: tuple[tuple[Stage, float, int], ...] = (
        ("train", C * 1.000001, 1),
        ("train", C, 2),
        ("train", 0.0, 1),
        ("train", math.nan, 1),
        ("train", math.inf, 1),
        ("prior", 1.001, 1),
        ("prior", 1.0, 3),
    )
    for stage, clip, k in cases:
        for mode in MODES:
            yield _refused_norm(stage, clip, k, mode)
    for value in (math.nan, math.inf):
        total = ClippedSum(np.array([0.0, value]), REFERENCE.partner_clip_norm)
        yield refused(
            f"a sum that holds {value}",
            SensitivityError,
            partial(add_noise_share, total, REFERENCE, "train", SystemRandomness(), "c"),
            "a value that no noise hides",
        )


@check(CHECKS, "coarse floats under the noise")
def precision(setting: Setting) -> Iterator[Finding]:
    """In bfloat16 one user would move the rounding of all others: only without noise, or where users stand alone."""
    with exchanged(learner_module, "has_fast_bf16", lambda kind: True):
        for mode in MODES:
            for alone in (False, True):
                config = config_like(replace(REFERENCE, mode=mode, colluders=0), seed=setting.seed)
                federation = Rehearsal.of(setting.folder(), 2)
                federation.learner(0).stands_alone = alone
                federation.noised(0, config)
                coarse, wanted = federation.learner(0).precisions, mode == "none" or alone
                name = f"steps in bfloat16 in mode {mode}, users {'alone' if alone else 'not alone'} in it"
                yield equal(name, sum(coarse), wanted * len(coarse), "bfloat16 under the noise")


def _refused_norm(stage: Stage, clip: float, k: int, mode: Mode) -> Finding:
    plan, total = replace(REFERENCE, partners_per_user=k, mode=mode), ClippedSum(np.zeros(4), clip)
    return refused(
        f"a sum of the {stage} stage clipped to {clip:g} at k={k} in mode {mode}",
        SensitivityError,
        lambda: add_noise_share(total, plan, stage, SystemRandomness(), "c"),
        "a clip norm that the plan does not allow accepted",
    )
