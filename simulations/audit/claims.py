"""What a plan claims: epsilon of each of its parts, and the whole trade-off curve behind it.

A part of a run is claimed as if it had been the whole of it: the prior's sum alone, the training rounds alone, both.
Each is an upper bound of the same accountant (`shared.privacy.accounting`), so each can be tested by itself; an error
in one stage does not hide behind the budget of the other.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal

from shared.errors import PolicyViolationError
from shared.privacy.accounting import epsilon_spent
from shared.privacy.plan import PrivacyPlan
from shared.privacy.profile import epsilon_profile
from simulations.audit.estimators.area import largest_area
from simulations.audit.estimators.tradeoff import TradeoffCurve

Part = Literal["prior", "training", "whole"]
ABOUT: dict[Part, str] = {"prior": "prior", "training": "training", "whole": "whole run"}
"""How findings name a part (`Estimate.about`)."""


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """What is claimed of a part, ready to be tested.

    Attributes
    ----------
    epsilon : float
        At `delta`.
    delta : float
    curve : TradeoffCurve
        Nowhere above the curve of a mechanism that keeps the claim: to reject it is to refute the claim.
    area : float
        The largest area under an ROC curve that the curve leaves room for.
    """

    epsilon: float
    delta: float
    curve: TradeoffCurve
    area: float


def parts_of(plan: PrivacyPlan) -> tuple[Part, ...]:
    """The parts that release something and differ: ``whole`` alone says nothing new where there is one stage."""
    stages: list[Part] = []
    if plan.prior_noise_multiplier is not None:
        stages.append("prior")
    if plan.steps:
        stages.append("training")
    return (*stages, "whole") if len(stages) > 1 else tuple(stages)


def part_of(plan: PrivacyPlan, part: Part) -> PrivacyPlan:
    """The plan of a run that consists of this part alone.

    Raises
    ------
    PolicyViolationError
        If the plan has no such part.
    """
    missing = (part == "prior" and plan.prior_noise_multiplier is None) or (part == "training" and not plan.steps)
    if missing or not parts_of(plan):
        raise PolicyViolationError(f"audit: Expected a plan with part={part}, got parts={parts_of(plan)}.")
    if part == "prior":
        return replace(plan, rounds=0)
    return replace(plan, prior_noise_multiplier=None) if part == "training" else plan


def claimed_epsilon(plan: PrivacyPlan, part: Part, delta: float | None = None) -> float | None:
    """Epsilon that the plan claims for a part, at its own delta or another; None in mode ``none``.

    Raises
    ------
    PolicyViolationError
        If the plan has no such part, or delta is impossible.
    AccountingError
        If the accountant refuses the plan.
    """
    alone = part_of(plan, part)
    if delta is not None:
        alone = replace(alone, delta=delta)
    return epsilon_spent(alone, alone.rounds)


@lru_cache(maxsize=32)
def tradeoff(plan: PrivacyPlan, part: Part) -> TradeoffCurve | None:
    """The claimed trade-off curve of a part, from its epsilon at many deltas; None in mode ``none``.

    Guarantees
    ----------
    The curve lies nowhere above that of the mechanism as accounted: every point is an upper bound of the accountant,
    between points their lines are used and no interpolation, and where a user may be at several partners the larger
    epsilon of the ways in which these may sample is taken.

    Raises
    ------
    PolicyViolationError
        If the plan has no such part.
    AccountingError
        If no point of the curve can be accounted.
    """
    alone = part_of(plan, part)
    points = epsilon_profile(alone, alone.rounds)
    return None if points is None else TradeoffCurve.of_points(points)


@lru_cache(maxsize=32)
def claim_of(plan: PrivacyPlan, part: Part, delta: float | None = None) -> Claim | None:
    """Epsilon and curve of a part together; None in mode ``none``, which claims nothing.

    Raises
    ------
    PolicyViolationError, AccountingError
        As `claimed_epsilon` and `tradeoff`.
    """
    epsilon, curve = claimed_epsilon(plan, part, delta), tradeoff(plan, part)
    if epsilon is None or curve is None:
        return None
    return Claim(epsilon, plan.delta if delta is None else delta, curve, largest_area(curve))
