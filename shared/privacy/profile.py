"""The privacy profile of a plan: epsilon at many deltas, from which a trade-off curve follows.

Source: as `shared.privacy.accounting`, whose bills for Skellam noise and rounding are in every point.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np

from shared.errors import AccountingError
from shared.privacy import accounting
from shared.privacy.lattice import ROUNDING_FAILURE
from shared.privacy.plan import PrivacyPlan

DELTAS = tuple(float(delta) for delta in (*np.geomspace(1e-8, 0.05, 30), *np.linspace(0.06, 0.99, 30)))
"""For the tails and for the bulk of the curve."""


def epsilon_profile(plan: PrivacyPlan, rounds: int) -> tuple[tuple[float, float], ...] | None:
    """(epsilon, delta) of the prior's sum and the first `rounds` training rounds; None in mode ``none``.

    ``plan.delta`` is not read. Deltas that are too small for the number of rounded sums are left out.

    Guarantees
    ----------
    Each pair is an upper bound as `shared.privacy.accounting.epsilon_spent` is, and a little larger (PLD at
    ``COARSE_INTERVAL``, also pessimistic). They hold together: they are of one mechanism.

    Raises
    ------
    AccountingError
        If no delta of the profile can be accounted.
    """
    if plan.mode == "none":
        return None
    worlds = accounting._worlds(plan, rounds)
    sums = max(sum(event.sums for event in world) for world in worlds)
    bound = partial(accounting._pld, interval=accounting.COARSE_INTERVAL)
    points = [
        (max(accounting._quote(world, delta, bound) for world in worlds), delta)
        for delta in DELTAS
        if sums * ROUNDING_FAILURE <= accounting.ROUNDING_SHARE * delta
    ]
    finite = tuple((max(epsilon, 0.0), delta) for epsilon, delta in points if math.isfinite(epsilon))
    if not finite:
        raise AccountingError(accounting.COARSE_NOISE)
    return finite
