"""What of the summed rounds differs from round to round, as noise does, and what all rounds have in common.

With S_t the sum of round t of R, and S their sum, ``(sum |S_t|^2 - |S|^2 / R) / (d (R - 1))`` is the sample variance
between rounds over all d coordinates: what rounds share is not in it, fresh noise is. So noise that is less than what
the plan claims shows without any canary, and what people put in can be told apart from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from server.audit_sum import AuditSum
from shared.privacy.plan import PrivacyPlan
from simulations.audit.findings import Measurement

SURE = 4.0
"""Standard deviations by which the spread may fall short of the claimed noise: by chance once in 30,000."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The parts of the summed rounds, with a canary's length as the unit.

    Attributes
    ----------
    known : bool
        There is more than one round.
    others : float
        Squared length, in the sum of all rounds, of what hides canaries and is not the claimed noise: what the rounds
        share, and the most that fresh samples of people can add to it.
    measurements : tuple of Measurement
        Of the spread against the claimed noise; none without privacy or with one round.

    Guarantees
    ----------
    None against people whose part is new in every round beyond what sampling them makes of it (a model that jumps):
    that passes for noise, and hides a canary as noise does.
    """

    known: bool
    others: float
    measurements: tuple[Measurement, ...]

    @classmethod
    def of(cls, plan: PrivacyPlan, released: AuditSum) -> Spread:
        """From the plan and the lengths of the summed rounds."""
        rounds, d = len(released.rounds), released.total.size
        if rounds < 2:
            return cls(False, 0.0, ())
        unit = (plan.step("train") / plan.partner_clip_norm) ** 2
        whole = float(np.linalg.norm(released.total.astype(np.float64))) ** 2 * unit
        variance = max(0.0, (sum(released.energies) * unit - whole / rounds) / (d * (rounds - 1)))
        claimed = plan.local_steps * claimed_noise(plan) ** 2
        shared = max(0.0, whole - rounds * d * min(variance, claimed or math.inf) - _canaries(plan, released))
        return cls(True, shared + rounds * _sampled(plan), _measured(variance, claimed, d * (rounds - 1)))


def _measured(variance: float, claimed: float, freedom: int) -> tuple[Measurement, ...]:
    if not claimed:
        return ()
    least, ratio = 1 - SURE / math.sqrt(2 * freedom), math.sqrt(variance / claimed)
    words = "spread of the released sums from round to round, over the noise that is claimed"
    return (Measurement(words, ratio, f">= {least:.4f}", ratio >= least, "noise halved, missing or used twice"),)


def claimed_noise(plan: PrivacyPlan) -> float:
    """Standard deviation of a step's noise in a sum, as claimed, with a canary's length as the unit.

    No more than what the plan promises: shares of more partners than it counts on only add to it. In ``local`` mode
    every partner that must be there adds all of it.
    """
    alone = math.sqrt(plan.survivors) if plan.mode == "local" else 1.0
    return plan.multiplier("train") * plan.partners_per_user * alone


def _canaries(plan: PrivacyPlan, released: AuditSum) -> float:
    """Expected squared length of what all canaries put into every round alike."""
    rounds = len(released.rounds)
    taken = rounds * plan.local_steps * plan.sampling_rate * float(np.mean(released.cohorts)) / plan.partners
    return plan.canaries * plan.partners * taken**2


def _sampled(plan: PrivacyPlan) -> float:
    """The most that the samples of the declared people differ in a round: each moves it by C = k lengths, or not."""
    per_step = plan.sampling_rate * (1 - plan.sampling_rate) * plan.population * plan.partners_per_user**2
    return plan.local_steps * per_step
