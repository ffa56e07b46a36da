"""Epsilon: of reference plans against stored figures, of the audited plan against closed forms, all releases counted.

Stored figures: Google dp_accounting 0.6, PLD, delta 1e-5, add-or-remove, as published with this project's evidence.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from statistics import NormalDist

from server.strategy import Run
from shared.errors import AccountingError
from shared.privacy import accounting
from shared.privacy.accounting import build_plan, epsilon_spent
from shared.privacy.plan import PrivacyPlan
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
from simulations.audit.mechanism.rehearsal import CATALOGUE, ITEMS, RUN, config_of

CHECKS: list[Check] = []
FIGURES: tuple[tuple[float, int, float, float | None, float], ...] = (
    (0.05, 200, 2.0, None, 1.56),
    (0.2, 50, 1.5, None, 5.26),
    (1.0, 20, 4.0, None, 4.98),
    (0.1, 20, 1.5, 2.0, 2.611),
)
"""Rate, rounds, noise multiplier, that of the prior, epsilon."""
DIGITS, TOLERANCE = 0.005, 1e-3
"""Half a unit of the figures' last digit, and what accountants of other versions grid otherwise."""


@check(CHECKS, "an accountant that reports less than is spent: the prior, local steps or rounds not counted")
def figures(setting: Setting) -> Iterator[Finding]:
    """Reference plans spend the stored epsilon."""
    for q, rounds, z, prior, epsilon in FIGURES:
        plan = _plan(q, rounds, z, prior)
        name = f"epsilon of q={q:g} T={rounds} z={z:g}" + (f" after a prior with z={prior:g}" if prior else "")
        within = (DIGITS + TOLERANCE * epsilon) / epsilon
        yield equal(name, _spent(plan), epsilon, "an accountant that reports less than is spent", within=within)
    q, rounds, z, _, epsilon = FIGURES[0]
    stepped = replace(_plan(q, rounds // 10, z), mode="local", local_steps=10, colluders=0)
    within = (DIGITS + TOLERANCE * epsilon) / epsilon
    name = f"epsilon of {rounds // 10} rounds of 10 local steps"
    yield equal(name, _spent(stepped), epsilon, "local steps not counted", within=within)


@check(CHECKS, "an epsilon below a bound that needs no accountant")
def exact(setting: Setting) -> Iterator[Finding]:
    """Gaussian mechanisms without sampling: Balle and Wang (ICML 2018), theorem 8, is exact; no plan may cost less."""
    for rounds, z in ((20, 4.0), (1, 2.0)):
        told, mu = _spent(_plan(1.0, rounds, z)), math.sqrt(rounds) / z
        name = f"epsilon of {rounds} full releases at z={z:g} over the exact Gaussian's"
        yield at_least(name, told / _gaussian_epsilon(mu, REFERENCE.delta), 1 - TOLERANCE, "epsilon too small")
        yield at_most(name, told / _gaussian_epsilon(mu, REFERENCE.delta), 1.01, "a figure that is of another plan")


@check(CHECKS, "partners of a user that are not counted")
def worlds(setting: Setting) -> Iterator[Finding]:
    """A user at k partners is billed as if they sampled together and as if apart; the larger is reported."""
    k, rounds = 4, 10
    plan = replace(_plan(0.1, rounds, 1.0), partners_per_user=k)
    for larger, told in ((rounds, "together"), (k * rounds, "apart")):
        asked: list[int] = []

        def spent(world: tuple[accounting._Event, ...], delta: float, larger: int = larger) -> float:
            asked.append(world[0].times)  # noqa: B023
            return 2.0 if world[0].times == larger else 1.0

        with exchanged(accounting, "_spent", spent):
            reported = epsilon_spent(plan, rounds)
        name = f"epsilon reported if {k} partners that sample {told} cost 2 and else 1"
        yield equal(name, reported or 0.0, 2.0, "a user at several partners costs more than is billed")
        yield none_of(f"worlds that are not billed, {told}", len({rounds, k * rounds} - set(asked)), "a world left out")


@check(CHECKS, "a cross-check that is dropped")
def cross_check(setting: Setting) -> Iterator[Finding]:
    """An accountant that is above either RDP bound must be wrong, and is not believed."""
    plan = _plan(0.05, 200, 1.0)
    for bound, factor in (("_rdp", 0.8), ("_skellam_rdp", 0.6)):
        true = getattr(accounting, bound)
        with exchanged(accounting, bound, lambda events, delta, t=true, f=factor: f * t(events, delta)):
            yield refused(
                f"a PLD above {bound.strip('_')} at {factor:g} of its value",
                AccountingError,
                lambda: epsilon_spent(plan, plan.rounds),
                "two accountants that disagree go unnoticed",
            )
    for value in (math.nan, math.inf):
        with exchanged(accounting, "_pld", lambda *_, v=value: v):
            yield refused(
                f"a PLD of {value}",
                AccountingError,
                lambda: epsilon_spent(plan, plan.rounds),
                "an accountant without an answer is believed",
            )


@check(CHECKS, "an iterate that is not billed")
def iterates(setting: Setting) -> Iterator[Finding]:
    """Every round costs, whether or not its model is released: the coordinator and all partners see it."""
    rounds = 3
    for average_from in (0.1, 1.0):
        config = config_of(3, training={"average_from": average_from, "rounds": rounds, "sampling_rate": 0.3})
        run = Run(RUN, config, build_plan(config), ITEMS, CATALOGUE)
        spent = [run.epsilon_after(number) or 0.0 for number in range(rounds + 1)]
        free = sum(later <= earlier for earlier, later in pairwise(spent))
        yield none_of(
            f"rounds that cost nothing, mean of iterates from {average_from:g}", free, "an iterate not billed"
        )
        yield equal(
            f"epsilon after the last round over that of the plan, mean of iterates from {average_from:g}",
            spent[-1] / _spent(run.plan),
            1.0,
            "one round too few billed",
        )


@check(CHECKS, "a plan that costs more than it claims")
def audited(setting: Setting) -> Iterator[Finding]:
    """The audited plan's epsilon within what its configuration asked for, above what one exact release costs."""
    plan, private = setting.plan, setting.config.privacy
    if plan.mode == "none":
        return
    told = _spent(plan)
    if private.noise_multiplier is None and private.mode == plan.mode:
        yield at_most(
            "epsilon of the audited plan", told, private.epsilon, "noise for a larger epsilon than was asked for"
        )
    if plan.prior_noise_multiplier is not None:
        # Rounding, closeness and delta are billed on top of the Gaussian with the same noise.
        alone = _gaussian_epsilon(1 / plan.prior_noise_multiplier, plan.delta)
        yield at_least(
            "epsilon of the audited plan over its prior's alone", told / alone, 1 - TOLERANCE, "the prior not counted"
        )
    if plan.steps:
        # Of one step without amplification epsilon is larger than with it, so that only q = 1 has a closed form.
        once = _spent(replace(plan, rounds=1, prior_noise_multiplier=None))
        yield at_least("epsilon of the audited plan over that of one round", told / once, 1.0, "rounds not counted")
        # What Skellam noise and rounding add is small, or refused.
        most = 1.05 * _gaussian_epsilon(_total_mu(plan), plan.delta) + 0.2
        yield at_most("epsilon of the audited plan, against that without amplification", told, most, "no composition")


def _plan(q: float, rounds: int, z: float, prior: float | None = None) -> PrivacyPlan:
    return replace(
        REFERENCE,
        sampling_rate=q,
        rounds=rounds,
        noise_multiplier=z,
        prior_noise_multiplier=prior,
        partners_per_user=1,
        population=1000,
    )


def _spent(plan: PrivacyPlan) -> float:
    return epsilon_spent(plan, plan.rounds) or 0.0


def _total_mu(plan: PrivacyPlan) -> float:
    """Of all releases if it were known who takes part: Gaussians compose as their squares add up."""
    squares = plan.steps / plan.noise_multiplier**2
    if plan.prior_noise_multiplier is not None:
        squares += plan.prior_noise_multiplier**-2
    return math.sqrt(squares)


def _gaussian_epsilon(mu: float, delta: float) -> float:
    """The epsilon at which ``Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu) = delta``, by bisection."""
    phi = NormalDist().cdf
    low, high = 0.0, mu * mu / 2 + mu * math.sqrt(2 * math.log(1 / delta)) + 1.0
    for _ in range(100):
        middle = (low + high) / 2
        spent = phi(mu / 2 - middle / mu) - math.exp(min(middle, 700.0)) * phi(-mu / 2 - middle / mu)
        low, high = (middle, high) if spent > delta else (low, middle)
    return high
