"""The public lattice on which sums travel: its scale, and what one user can move on it.

A sum is rounded to whole steps before noise and mask, because masks need a finite ring and noise that is
exact in every bit has to be an integer. Rounding moves a sum, so it is part of the sensitivity.

Source: Kairouz, Liu, Steinke, "The Distributed Discrete Gaussian Mechanism for Federated Learning with
Secure Aggregation", ICML 2021, proposition on randomised rounding; Agarwal, Kairouz, Liu, "The Skellam
Mechanism for Differentially Private Federated Learning", NeurIPS 2021.
"""

from __future__ import annotations

import math

LARGEST_SCALE = 2**16
"""Steps per clip norm at most: finer steps would change nothing that noise leaves to be seen."""
ROUNDING_FAILURE = 1e-12
"""Chance with which rounding moves one release further than `sensitivity` says; billed in delta."""
LARGEST_VECTOR = 2**24
"""Coordinates of a sum at most; the accountant counts on it."""


def scale_for(users: float) -> int:
    """Steps per clip norm, a power of two, for a sum over about `users` users.

    Even if all of them pointed the same way, their sum would fill half of the ring of 32 bits.
    """
    return int(min(LARGEST_SCALE, 2 ** max(0, math.floor(math.log2(2**30 / max(users, 1.0))))))


def sensitivity(scale: int, size: int, partners_per_user: int) -> float:
    """How far one user moves a sum of `size` coordinates, in steps and in L2.

    Guarantees
    ----------
    At every one of k partners the user moves the sum by at most ``scale / k`` steps before rounding. With
    a uniform dither u that no data touch, ``floor(x + g + u) - floor(x + u)`` is the randomised rounding
    of g, so that its squared norm is at most ``|g|^2 + d/4 + sqrt(2 ln(1/beta)) (|g| + sqrt(d)/2)`` but for
    a chance beta = `ROUNDING_FAILURE`. Over k partners the norms add up (triangle), and so do the chances.
    """
    own = scale / partners_per_user
    slack = math.sqrt(2 * math.log(1 / ROUNDING_FAILURE))
    return partners_per_user * math.sqrt(own**2 + size / 4 + slack * (own + math.sqrt(size) / 2))
