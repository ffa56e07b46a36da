"""A lower bound on epsilon from one run that assumes nothing but the coins.

Source: Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023, the bound for
(epsilon, delta); the formula was compared with google-deepmind/jax_privacy.
"""

from __future__ import annotations

import numpy as np
from scipy.special import expit
from scipy.stats import binom

from simulations.audit.estimators.guesses import check_confidence, check_counts

PRECISION = 1e-6


def p_value(m: int, r: int, v: int, epsilon: float, delta: float) -> float:
    """The chance, at most, that an (epsilon, delta)-private mechanism lets v or more of r guesses be right.

    With ``f(v) = P[Bin(r, e^eps / (1 + e^eps)) >= v]``: ``f(v) + 2 m delta max_(1 <= i <= v) (f(v - i) - f(v)) / i``.

    Parameters
    ----------
    m, r, v : int
        Canaries, guesses, right guesses.
    epsilon, delta : float
        What the mechanism is said to be, adding or removing one canary.

    Raises
    ------
    DataError
        Unless ``1 <= r <= m`` and ``0 <= v <= r``.
    """
    check_counts(m, r, v)
    right = expit(epsilon)
    by_luck = float(binom.sf(v - 1, r, right))
    fewer = np.arange(1, v + 1)
    by_failure = np.max((binom.sf(v - fewer - 1, r, right) - by_luck) / fewer, initial=0.0)
    return min(1.0, by_luck + 2 * m * delta * float(by_failure))


def lower_bound(m: int, r: int, v: int, delta: float, confidence: float) -> float:
    """The largest epsilon (to `PRECISION`) that the guesses refute at this delta.

    Guarantees
    ----------
    If the mechanism is (epsilon, delta)-private and the coins of the canaries are fair and independent, the bound
    exceeds epsilon with a chance of at most ``1 - confidence``.

    Raises
    ------
    DataError, ConfigError
        If counts, delta or confidence are impossible.
    """
    check_confidence(confidence, delta)

    def refuted(epsilon: float) -> bool:
        return p_value(m, r, v, epsilon, delta) < 1 - confidence

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high):
        low, high = high, 2 * high
    while high - low > PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low
