"""From users to what may leave: the recipe, on one screen.

Each round, every user takes part with the public probability q; the users' gradients are clipped once
each and summed; the sum is rounded to a public lattice; the partner adds its share of integer noise; masks
that only cancel in the sum of all partners go on top. There is no other way to a `MaskedUpdate`, and the
wire takes nothing else.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from client.secure_sum import MaskingSession
from shared.errors import PolicyViolationError, SensitivityError
from shared.hazmat.fixed_point import limit_sum, room, round_to_lattice, to_ring
from shared.hazmat.noise import skellam
from shared.hazmat.randomness import Randomness, uniforms
from shared.messages import ClippedSum, MaskedUpdate, NoisedSum
from shared.privacy.plan import PrivacyPlan, Stage

NOISE_ROOM = 12
"""Standard deviations of a share that must fit in the half of a partner's room that is kept for it."""


def sample_users(users: tuple[str, ...], plan: PrivacyPlan, source: Randomness, context: str) -> NDArray[np.int64]:
    """Rows of the users that take part: each independently with probability ``plan.sampling_rate``.

    Guarantees
    ----------
    Poisson sampling: whether a user takes part depends on nothing but a fresh key and that user; an
    empty sample is a valid one, and still gets noise.
    """
    return np.flatnonzero(uniforms(source, f"{context}/sample", users) < plan.sampling_rate)


def add_noise_share(
    clipped: ClippedSum, plan: PrivacyPlan, stage: Stage, source: Randomness, context: str
) -> NoisedSum:
    """Round a clipped sum to the lattice and add the partner's share of the noise.

    Guarantees
    ----------
    The noise of the shares of any ``survivors - colluders`` honest partners is Skellam with at least the
    variance that the plan is accounted with, for sums in which one user moves at most the clip norm of
    the plan; a sum that was clipped to more is refused. Rounding is dithered and its part in the
    sensitivity is counted (`shared.privacy.lattice`). What does not fit in the ring is cut off before the
    noise, which moves no two sums further apart: cut off after it, the share would be lost from the total.

    Raises
    ------
    SensitivityError
        If the sum was clipped to more than the plan's norm, or is not finite.
    PolicyViolationError
        If the noise of the plan does not fit in the ring.
    """
    allowed = (1.0 if stage == "prior" else plan.clip_norm) / plan.partners_per_user
    if not 0 < clipped.clip_norm <= allowed:  # written so that NaN is refused too
        raise SensitivityError(f"Expected 0 < clip_norm <= {allowed:g} for stage={stage}, got {clipped.clip_norm:g}.")
    if not np.isfinite(clipped.values).all():
        raise SensitivityError("Expected finite values in a clipped sum: no noise hides a value that is not.")
    variance = plan.share_variance(stage, len(clipped.values))
    if NOISE_ROOM * math.sqrt(variance) > room(plan.partners) / 2:
        raise PolicyViolationError("Expected noise that fits in the ring with the sum: too many steps per clip norm.")
    steps = round_to_lattice(clipped.values, plan.step(stage), source, f"{context}/dither")
    noise = skellam(source, f"{context}/noise", len(steps), variance)
    loss = clipped.private_loss if plan.mode == "none" else None
    return NoisedSum(limit_sum(steps, plan.partners) + noise, loss)


def mask(noised: NoisedSum, plan: PrivacyPlan, session: MaskingSession) -> MaskedUpdate:
    """Put the masks of a session over a noised sum.

    Guarantees
    ----------
    To all who do not hold the secrets of the session, the result is uniform in the ring whatever the sum
    is.
    """
    return MaskedUpdate(session.mask(to_ring(noised.values, plan.partners)), masked=True, loss=noised.loss)


def leave_bare(noised: NoisedSum, plan: PrivacyPlan) -> MaskedUpdate:
    """A noised sum without masks, where the plan says that sums are not masked.

    Raises
    ------
    PolicyViolationError
        If the plan masks sums.
    """
    if plan.masked:
        raise PolicyViolationError("Expected masks on a sum: the plan says masked=true.")
    return MaskedUpdate(to_ring(noised.values, plan.partners), masked=False, loss=noised.loss)
