"""Trade-off functions: the least chance of missing who took part, by the chance of a false accusation.

Sources: Dong, Roth, Su, "Gaussian Differential Privacy", JRSS B 2022 (f-DP, its duality with epsilon and delta);
Balle, Wang, "Improving the Gaussian Mechanism for Differential Privacy", ICML 2018 (its exact delta).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import log_ndtr, ndtr, ndtri

from shared.errors import ConfigError

Tradeoff = Callable[[float], float]
"""f: [0, 1] -> [0, 1], convex, falling, its own inverse; f(a) at a rate a of false accusations."""
LARGEST_MU = 100.0
"""Where scores are apart without any noise the estimate is told as this, epsilon 5,000 and more: no mechanism."""


def gaussian(mu: float) -> Tradeoff:
    """``f(a) = Phi(Phi^-1(1 - a) - mu)``: two Gaussians of one variance, mu standard deviations apart."""

    def f(a: float) -> float:
        return float(ndtr(ndtri(1 - a) - mu))

    return f


def gdp_delta(mu: float, epsilon: float) -> float:
    """Delta of the Gaussian mechanism of signal `mu`: ``Phi(mu/2 - eps/mu) - e^eps Phi(-mu/2 - eps/mu)``."""
    if mu <= 0:
        return 0.0
    return float(ndtr(mu / 2 - epsilon / mu)) - math.exp(epsilon + float(log_ndtr(-mu / 2 - epsilon / mu)))


def gdp_epsilon(mu: float, delta: float) -> float:
    """Epsilon of the Gaussian mechanism of signal `mu` at `delta`; 0 where mu is not above 0.

    Raises
    ------
    ConfigError
        If delta is not in (0, 1) or mu no number.
    """
    if math.isnan(mu) or not 0 < delta < 1:
        raise ConfigError(f"audit: Expected a mu and 0 < delta < 1, got {mu=} {delta=}.")
    mu = min(mu, LARGEST_MU)
    if gdp_delta(mu, 0.0) <= delta:
        return 0.0
    above = mu * (mu / 2 - float(ndtri(delta)))  # where the first term alone is delta
    return float(brentq(lambda epsilon: gdp_delta(mu, epsilon) - delta, 0.0, above, xtol=1e-9))


@dataclass(frozen=True, slots=True, eq=False)
class TradeoffCurve:
    """A trade-off function as the upper envelope of straight lines: convex, and below the true one.

    Attributes
    ----------
    intercepts, slopes : ndarray of float64, shape (lines,)
    points : tuple of (float, float)
        The (epsilon, delta) pairs that the lines were made from.

    Guarantees
    ----------
    A mechanism that is (epsilon, delta)-private for all points has errors nowhere below the curve. So rejecting the
    curve rejects at least one of the points.
    """

    intercepts: NDArray[np.float64]
    slopes: NDArray[np.float64]
    points: tuple[tuple[float, float], ...]

    @classmethod
    def of_points(cls, points: Iterable[tuple[float, float]]) -> TradeoffCurve:
        """The curve of all (epsilon, delta) points together.

        ``f(a) = max(0, 1 - delta - e^eps a, e^-eps (1 - delta - a))``, the largest over the points. It is its own
        inverse: the two lines of a point mirror each other.
        """
        told = tuple((float(epsilon), float(delta)) for epsilon, delta in points)
        if not told or any(not (0 <= epsilon < math.inf and 0 <= delta <= 1) for epsilon, delta in told):
            raise ConfigError("claim: Expected (epsilon, delta) points with epsilon >= 0 and 0 <= delta <= 1.")
        epsilon, rest = np.array([e for e, _ in told]), np.array([1 - d for _, d in told])
        return cls(
            intercepts=np.concatenate([rest, np.exp(-epsilon) * rest, [0.0]]),
            slopes=np.concatenate([-np.exp(epsilon), -np.exp(-epsilon), [0.0]]),
            points=told,
        )

    def __call__(self, a: float) -> float:
        """f(a), the least rate of misses."""
        return float((self.intercepts + self.slopes * a).max())
