"""One run against a whole trade-off curve: is what was guessed possible if the claim is true?

The chance p_i of exactly i right guesses obeys, for every set of counts, an inequality that the trade-off function
gives. A recursion from v downwards finds the least total mass that a tail of alpha would need; if that is more than
there is, v right guesses have a chance below alpha.

Source: Mahloujifar, Melis, Chaudhuri, "Auditing f-Differential Privacy in One Run", ICML 2025, algorithms 3 and 4, for
two outcomes; compared with google-deepmind/jax_privacy.
"""

from __future__ import annotations

from simulations.audit.estimators.guesses import check_confidence, check_counts
from simulations.audit.estimators.tradeoff import LARGEST_MU, Tradeoff, gaussian, gdp_epsilon

PRECISION = 1e-5
"""Of mu."""


def consistent(m: int, r: int, v: int, tradeoff: Tradeoff, alpha: float) -> bool:
    """Whether v of r right guesses about m canaries can be had from a mechanism with that trade-off function.

    Parameters
    ----------
    m, r, v : int
        Canaries, guesses, right guesses.
    tradeoff : callable
        Convex, falling and its own inverse (`TradeoffCurve`, `gaussian`).
    alpha : float
        The chance below which what was seen counts as impossible.

    Returns
    -------
    bool
        False: the claim is rejected.

    Guarantees
    ----------
    For fair independent coins and a mechanism that is private in the sense of the curve, adding or removing one canary,
    False comes with a chance of at most `alpha`. A curve that lies too low only makes False rarer.

    Raises
    ------
    DataError, ConfigError
        If counts or alpha are impossible.
    """
    check_counts(m, r, v)
    check_confidence(1 - alpha, alpha)
    right, wrong = alpha * v / m, alpha * (r - v) / m
    for i in range(v - 1, -1, -1):
        more = max(wrong, tradeoff(1 - right))
        if more == wrong:  # then it stays so
            break
        right = min(right + i / (r - i) * (more - wrong), 1.0)
        wrong = more
    return right + wrong <= r / m


def lower_bound(m: int, r: int, v: int, delta: float, confidence: float) -> float:
    """Epsilon at delta of the noisiest Gaussian mechanism that the guesses do not reject.

    Every Gaussian curve below it is rejected. That refutes Gaussian mechanisms of a smaller epsilon rigorously; of
    another mechanism with another curve it is an estimate. A claim is decided with its own curve (`consistent`).

    Raises
    ------
    DataError, ConfigError
        If counts, delta or confidence are impossible.
    """
    check_counts(m, r, v)
    check_confidence(confidence, delta)

    def refuted(mu: float) -> bool:
        return not consistent(m, r, v, gaussian(mu), 1 - confidence)

    if not refuted(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while refuted(high) and high < LARGEST_MU:
        low, high = high, 2 * high
    while high - low > PRECISION:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return gdp_epsilon(low, delta)
