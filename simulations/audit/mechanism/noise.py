"""The noise: its deviation against the billed one, fresh in every draw, and all of it whoever takes part."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from client.privatize import add_noise_share
from server.optimizer import ServerState
from shared.hazmat.randomness import SeededRandomness, randomness_for
from shared.messages import ClippedSum
from shared.privacy.accounting import build_plan
from shared.privacy.plan import PrivacyPlan
from simulations.audit.mechanism.checks import (
    REFERENCE,
    Check,
    Finding,
    Setting,
    at_least,
    at_most,
    chance,
    check,
    near,
    none_of,
)
from simulations.audit.mechanism.lattice import billed
from simulations.audit.mechanism.rehearsal import (
    SIZE,
    Rehearsal,
    config_like,
    gradient_of,
    nothing,
    order_of,
    without_noise,
)

CHECKS: list[Check] = []
ROUNDS = 3
ERROR = 1 / math.sqrt(2 * SIZE)
"""Standard error of a deviation of `SIZE` coordinates, relative."""


@check(CHECKS, "a plan without noise")
def there(setting: Setting) -> Iterator[Finding]:
    """The audited plan has noise at all."""
    plan = setting.plan
    z = 0.0 if plan.mode == "none" else plan.noise_multiplier if plan.steps else plan.prior_noise_multiplier or 0.0
    yield at_least("noise multiplier of the audited plan", z, 1e-9, "noise missing")


@check(CHECKS, "noise that is missing, too little, or shared among too many")
def deviation(setting: Setting) -> Iterator[Finding]:
    """One partner's own noise over its share of what is billed: under the audited plan, and under others."""
    for plan in setting.plans:
        values = _alone(setting, plan).std() * math.sqrt(_shares(plan) / plan.local_steps)
        name = f"noise of a share, {_told(plan)}, deviation over the billed one"
        yield near(name, values / billed(plan, "train", SIZE), 1.0, ERROR, "noise halved, missing, or for n shares")
        if plan.prior_noise_multiplier is not None:
            clip = 1.0 / plan.partners_per_user
            zeros = ClippedSum(np.zeros(SIZE), clip)
            drawn = add_noise_share(zeros, plan, "prior", SeededRandomness(setting.seed, "p"), "run/1").values
            ratio = drawn.std() * math.sqrt(_shares(plan)) / billed(plan, "prior", SIZE)
            yield near(f"noise of a share of the prior, {_told(plan)}", ratio, 1.0, ERROR, "noise halved or missing")


@check(CHECKS, "noise lost between partner and opened sum")
def opened(setting: Setting) -> Iterator[Finding]:
    """Opened sum minus the sum without noise, of whole rounds of a federation: never below what is billed."""
    for plan in dict.fromkeys((setting.noisy, REFERENCE)):
        config = config_like(plan, seed=setting.seed, rounds=ROUNDS)
        counts = [3, 1, 5, 2, *[2] * 10][: config.federation.partners]
        federation = Rehearsal.of(setting.folder(), *counts, gradient=gradient_of(SIZE))
        federation.train(config, setting.folder())
        played, bare = build_plan(config), without_noise(config)
        plain = [sum(federation.noised(k, bare, t).values for k in range(len(counts))) for t in range(1, ROUNDS + 1)]
        residuals = np.array(federation.totals) - np.array(plain)
        ratio = residuals.std() / (billed(played, "train", SIZE) * math.sqrt(played.local_steps))
        expected = math.sqrt(len(counts) / _shares(played))
        error = ERROR / math.sqrt(ROUNDS)
        name = f"noise of an opened sum, {_told(played)}, deviation over the billed one"
        yield near(name, ratio, expected, error * expected, "shares of the noise lost, or for too many")
        yield at_least(f"{name}, at least", ratio, 1 - 5 * error, "less noise than is billed", false_alarm=chance())


@check(CHECKS, "rounds without users that are not noised")
def empty(setting: Setting) -> Iterator[Finding]:
    """A step in which nobody takes part is as noisy as any, also at a partner without users."""
    plan = replace(setting.noisy, sampling_rate=1e-12)
    config = config_like(setting.noisy, seed=setting.seed)
    drawn = []
    for users in (4, 0):
        federation = Rehearsal.of(setting.folder(), users, size=SIZE)
        drawn.append(federation.noised(0, config, plan=plan).values)
        ratio = drawn[-1].std() * math.sqrt(_shares(plan) / plan.local_steps) / billed(plan, "train", SIZE)
        name = f"noise of a step without users, {users} at the partner, over the billed one"
        yield near(name, ratio, 1.0, ERROR, "an empty sample is skipped")
    yield none_of(
        "coordinates that tell an empty sample from no users", int(np.sum(drawn[0] != drawn[1])), "presence told"
    )


@check(CHECKS, "noise that hangs on the data")
def apart(setting: Setting) -> Iterator[Finding]:
    """From one source, users with and without a gradient get the same noise, to the bit; N and N + 1 one deviation."""
    config = config_like(replace(REFERENCE, sampling_rate=1.0), seed=setting.seed)  # all users are there
    some = Rehearsal.of(setting.folder(), 3, gradient=gradient_of(100))
    none = Rehearsal.of(setting.folder(), 3, gradient=nothing(100))
    difference = some.noised(0, config).values - none.noised(0, config).values
    changed = int(np.sum(difference != some.noised(0, without_noise(config)).values))
    yield none_of("coordinates in which the noise hangs on what users do", changed, "noise that depends on data")
    fresh = config_like(setting.noisy, seed=None)
    few, more = (
        Rehearsal.of(setting.folder(), n, gradient=nothing(SIZE)).noised(0, fresh).values.std() for n in (10, 11)
    )
    name = "noise of N + 1 users over that of N"
    yield near(name, more / few, 1.0, math.sqrt(2) * ERROR, "noise or normaliser that depends on N")


@check(CHECKS, "noise that is used twice")
def fresh(setting: Setting) -> Iterator[Finding]:
    """Residuals of rounds and of partners are not correlated: noise that was drawn once has correlation 1."""
    config = config_like(REFERENCE, seed=setting.seed, rounds=ROUNDS)
    federation = Rehearsal.of(setting.folder(), 3, 3, 3, gradient=gradient_of(SIZE))
    bare = without_noise(config)
    rows = [
        federation.noised(k, config, t).values - federation.noised(k, bare, t).values
        for k in range(3)
        for t in range(1, ROUNDS + 1)
    ]
    yield _correlation("rounds and partners", np.array(rows), "one context of the noise, or one seed, for all")


@check(CHECKS, "one draw of noise for several steps of a round")
def steps(setting: Setting) -> Iterator[Finding]:
    """Two local steps: with one draw for both, their sum has sqrt(2) too much, and a half of it is the other's."""
    plan = replace(REFERENCE, mode="local", colluders=0)
    one, two = (config_like(replace(plan, local_steps=n), seed=setting.seed) for n in (1, 2))
    federation = Rehearsal.of(setting.folder(), 1, gradient=nothing(SIZE))
    twice, once = federation.noised(0, two).values, federation.noised(0, one).values
    ratio = twice.std() / once.std() / math.sqrt(2)
    yield near(
        "noise of two steps over that of one, by sqrt(2)", ratio, 1.0, math.sqrt(2) * ERROR, "one draw for all steps"
    )
    yield _correlation("two steps of a round", np.array([twice - once, once]), "one draw for all steps")


@check(CHECKS, "noise that another run, or a restart, draws again")
def runs(setting: Setting) -> Iterator[Finding]:
    """Seeded sources draw by run; the system's source never draws the same again."""
    plan, zeros = REFERENCE, ClippedSum(np.zeros(500), REFERENCE.partner_clip_norm)
    source = randomness_for(seed=setting.seed, simulation=True, party="p")
    draws = [add_noise_share(zeros, plan, "train", source, f"{run}/1/0").values for run in ("one", "other")]
    # Integers of a deviation of 1e4 and more: two of them agree in one place of ten thousand.
    yield at_most("coordinates that two contexts share", float(np.mean(draws[0] == draws[1])), 0.1, "equal noise")
    config = config_like(REFERENCE, seed=setting.seed)
    federation = Rehearsal.of(setting.folder(), 1, gradient=nothing(500))
    start = ServerState.start(np.zeros(500, dtype=np.float32)).parameters.astype(np.float32)
    orders = [replace(order_of(config), run_id=run) for run in ("one", "other")]
    ours = [federation.learner(0).noised_gradients(order, start, None).values for order in orders]
    same = float(np.mean(ours[0] == ours[1]))
    yield at_most("coordinates that two runs of one seed share", same, 0.1, "the same noise in every run")
    unseeded = config_like(REFERENCE, seed=None)
    again = [Rehearsal.of(setting.folder(), 1, gradient=nothing(500)).noised(0, unseeded).values for _ in range(2)]
    same = float(np.mean(again[0] == again[1]))
    yield at_most("coordinates that a partner draws again when it starts anew", same, 0.1, "noise that can be replayed")


def _alone(setting: Setting, plan: PrivacyPlan) -> NDArray[np.int64]:
    """The noise of one partner under this very plan, its sum being zero."""
    federation = Rehearsal.of(setting.folder(), 2, gradient=nothing(SIZE))
    return federation.noised(0, config_like(plan, seed=setting.seed), plan=plan).values


def _correlation(what: str, rows: NDArray[np.float64], catches: str) -> Finding:
    pairs = np.asarray(np.corrcoef(rows))[np.triu_indices(len(rows), k=1)]
    worst = pairs[np.abs(pairs).argmax()]
    name = f"correlation of the noise of {what}, the pair furthest off"
    return near(name, worst, 0.0, 1 / math.sqrt(rows.shape[1]), catches, comparisons=len(pairs))


def _shares(plan: PrivacyPlan) -> int:
    """Shares that add up to the noise of the plan."""
    return plan.survivors - plan.colluders if plan.mode == "distributed" else 1


def _told(plan: PrivacyPlan) -> str:
    told = f"{plan.mode}, n={plan.partners} t={plan.survivors} c={plan.colluders} k={plan.partners_per_user}"
    return told if plan.buckets == 1 else f"{told} b={plan.buckets}"
