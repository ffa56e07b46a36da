"""Rounding: a public lattice, a dither that no data touch, and its part in what one user moves.

The formulas are written down here once more, from the paper and not from the code: Kairouz, Liu, Steinke, "The
Distributed Discrete Gaussian Mechanism for Federated Learning with Secure Aggregation", ICML 2021.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from client.privatize import add_noise_share
from shared.hazmat.fixed_point import from_ring, limit_sum, room, to_ring
from shared.hazmat.randomness import SeededRandomness, SystemRandomness
from shared.messages import ClippedSum
from shared.privacy.lattice import sensitivity
from shared.privacy.plan import PrivacyPlan, Stage
from simulations.audit.mechanism.checks import (
    REFERENCE,
    STANDARD_ERRORS,
    Check,
    Finding,
    Setting,
    at_least,
    at_most,
    check,
    equal,
    near,
    none_of,
)
from simulations.audit.mechanism.rehearsal import SIZE, Rehearsal, config_like, gradient_of, nothing

CHECKS: list[Check] = []
FAILURE = 1e-12
"""Chance with which rounding may move a sum further than `reach` says; billed in delta."""
PAIRS = 200


def reach(scale: float, size: int, k: int) -> float:
    """How far one user at `k` partners moves a rounded sum, in steps; k times what one partner's sum moves."""
    own = scale / k
    slack = math.sqrt(2 * math.log(1 / FAILURE))
    return k * math.sqrt(own**2 + size / 4 + slack * (own + math.sqrt(size) / 2))


def steps_a_clip_norm(users: float) -> int:
    """The finest lattice, up to 2^16, on which all users' sum fills at most half of 32 bits."""
    return int(min(2**16, 2 ** max(0, math.floor(math.log2(2**30 / max(users, 1.0))))))


def billed(plan: PrivacyPlan, stage: Stage, size: int) -> float:
    """Standard deviation, in steps, of the noise that the accountant charges for: z times one user's reach."""
    users = plan.population if stage == "prior" else plan.sampling_rate * plan.population
    z = plan.prior_noise_multiplier if stage == "prior" else plan.noise_multiplier
    return (z or 0.0) * reach(steps_a_clip_norm(users), size, plan.partners_per_user)


@check(CHECKS, "rounding that is not in the sensitivity, or noise for the bare clip norm")
def variance(setting: Setting) -> Iterator[Finding]:
    """The variance of a share against the formula, on fine and coarse lattices, for short and long vectors."""
    coarse = replace(REFERENCE, population=2**26, sampling_rate=1.0)
    for plan in (setting.noisy, REFERENCE, coarse):
        shares = plan.survivors - plan.colluders if plan.mode == "distributed" else 1
        for size in (1, 1000, 10**6):
            told = math.sqrt(plan.share_variance("train", size) * shares)
            name = (
                f"noise of {size} coordinates at {plan.scale('train')} steps a clip norm, over z times a user's reach"
            )
            yield equal(name, told / billed(plan, "train", size), 1.0, "rounding is not billed", within=1e-9)
    audited = setting.noisy
    public = steps_a_clip_norm(audited.sampling_rate * audited.population)
    yield equal("steps a clip norm of the audited plan", audited.scale("train"), public, "a lattice that is not public")


@check(CHECKS, "a user that moves the rounded sum further than is billed")
def moves(setting: Setting) -> Iterator[Finding]:
    """Sums with and without a user of norm C under one dither, as an adversary would have it, on a coarse lattice."""
    plan = replace(REFERENCE, mode="none", noise_multiplier=0.0, population=10**9, partners_per_user=1)
    rng, worst = np.random.default_rng(setting.seed), 0.0
    for pair in range(PAIRS):
        user = rng.normal(size=400) * (rng.random(400) < 0.05 + 0.95 * rng.random())  # few coordinates, or all
        user *= plan.clip_norm / max(float(np.linalg.norm(user)), 1e-9)
        others, source = rng.normal(size=400), SeededRandomness(setting.seed + pair, "p")
        both, alone = (
            add_noise_share(ClippedSum(total, plan.clip_norm), plan, "train", source, "c").values
            for total in (others + user, others)
        )
        worst = max(worst, float(np.linalg.norm(both - alone)) / sensitivity(plan.scale("train"), 400, 1))
    name = f"how far a user of norm C moves a rounded sum, over what is billed, the worst of {PAIRS}"
    yield at_most(name, worst, 1.0, "a sensitivity without rounding", false_alarm=PAIRS * FAILURE)


@check(CHECKS, "rounding that hangs on the data: no dither")
def dither(setting: Setting) -> Iterator[Finding]:
    """Half a step rounds up half of the time; without dither all of the coordinates go one way."""
    plan = replace(REFERENCE, mode="none", noise_multiplier=0.0)
    total = ClippedSum(np.full(SIZE, 0.5 * plan.step("train")), plan.partner_clip_norm)
    steps = add_noise_share(total, plan, "train", SeededRandomness(setting.seed, "p"), "c").values
    yield none_of(
        "coordinates that are rounded by more than a step", int(np.sum((steps < 0) | (steps > 1))), "no lattice"
    )
    yield near("part of half steps that is rounded up", steps.mean(), 0.5, 0.5 / math.sqrt(SIZE), "dither missing")


@check(CHECKS, "noise with low bits of floats under it")
def whole(setting: Setting) -> Iterator[Finding]:
    """Integers all the way: a sum, its noise and their difference have fair parities."""
    config = config_like(replace(REFERENCE, sampling_rate=1.0), seed=setting.seed)  # a sum without users is even
    noised = Rehearsal.of(setting.folder(), 5, gradient=gradient_of(SIZE)).noised(0, config).values
    noise = Rehearsal.of(setting.folder(), 5, gradient=nothing(SIZE)).noised(0, config).values
    wrong = sum(values.dtype != np.int64 for values in (noised, noise))
    yield none_of("noised sums that are not of integers", wrong, "floating-point noise (Mironov, CCS 2012)")
    for name, values in (("a noised sum", noised), ("noise", noise), ("their difference", noised - noise)):
        error = 0.5 / math.sqrt(SIZE)
        yield near(
            f"part of odd integers in {name}",
            float(np.mean(values % 2)),
            0.5,
            error,
            "values that only one sum leads to",
        )


@check(CHECKS, "noise that is cut off in the ring")
def ring(setting: Setting) -> Iterator[Finding]:
    """A sum that is too large is cut off before the noise: in the ring, all of the noise is there."""
    for plan in (setting.noisy, REFERENCE):
        huge = ClippedSum(np.full(SIZE, 1e12 * plan.clip_norm), plan.partner_clip_norm)
        noised = add_noise_share(huge, plan, "train", SystemRandomness(), "c").values
        received = from_ring(to_ring(noised, plan.partners))
        noise = received - limit_sum(np.full(SIZE, 2**60), plan.partners)
        share = math.sqrt(plan.survivors - plan.colluders) if plan.mode == "distributed" else 1.0
        ratio = noise.std() * share / billed(plan, "train", SIZE)
        name = f"noise of a sum too large for the ring of {plan.partners}, over the billed one"
        yield near(name, ratio, 1.0, 1 / math.sqrt(2 * SIZE), "a share of the noise is lost in the ring")
        most = np.abs(received).max() / room(plan.partners)
        # Half of the room is for noise: that a share exceeds it takes a dozen deviations.
        yield at_most(
            "the largest value of it, over a partner's room", most, 1.0, "values that wrap around", false_alarm=1e-20
        )
        rest = room(plan.partners) / 2 / math.sqrt(plan.share_variance("train", SIZE))
        yield at_least("room for noise, in deviations of a share", rest, 2 * STANDARD_ERRORS, "noise that is cut off")
