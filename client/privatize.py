"""From users to what may leave: the recipe, on one screen.

Each round, every user takes part with the public probability q; the users' gradients are clipped once
each and summed; the partner adds its share of the noise; the result is put on a public lattice. There
is no other way to a `NoisedSum`, and the wire takes nothing else.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared.errors import SensitivityError
from shared.hazmat.randomness import Randomness, gaussian, uniforms
from shared.messages import ClippedSum, NoisedSum, Stage
from shared.privacy.plan import PrivacyPlan

LATTICE_STEPS = 4096
"""Lattice steps in one standard deviation of a share."""


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
    """Add the partner's share of the noise to a clipped sum.

    Guarantees
    ----------
    The noise of the shares of any ``survivors - colluders`` honest partners has at least the standard
    deviation that the plan is accounted with, for sums in which one user moves at most the clip
    norm of the plan; a sum that was clipped to more is refused. Rounding to the lattice comes after the
    noise: post-processing. In mode ``none`` nothing is added and the values say so.

    Raises
    ------
    SensitivityError
        If the sum was clipped to more than the plan's norm, or is not finite.
    """
    allowed = (1.0 if stage == "prior" else plan.clip_norm) / plan.partners_per_user
    if not 0 < clipped.clip_norm <= allowed:  # written so that NaN is refused too
        raise SensitivityError(f"Expected 0 < clip_norm <= {allowed:g} for stage={stage}, got {clipped.clip_norm:g}.")
    if not np.isfinite(clipped.values).all():
        raise SensitivityError("Expected finite values in a clipped sum: no noise hides a value that is not.")
    stddev = plan.share_stddev(stage)
    if plan.mode == "none":
        return NoisedSum(clipped.values, 0.0, loss=clipped.private_loss)
    noised = clipped.values + gaussian(source, f"{context}/noise", len(clipped.values), stddev)
    step = stddev / LATTICE_STEPS
    return NoisedSum(np.round(noised / step) * step, stddev)
