"""What integer Skellam noise protects: its own Rényi bound, and how close it is to a rounded Gaussian.

The headline epsilon is the Gaussian's (PLD). Two things make it hold for the noise that is really drawn:
adding a Gaussian and rounding is post-processing of the Gaussian mechanism where sums are integers, and over
all that a run releases the likelihood ratio of Skellam to that rounded Gaussian stays within ``e^(+-eta)``
but for a chance f (`gaussian_closeness`). So, for every set A of outputs and neighbours x, x':

    P_S(A|x)  <=  e^eta P_G(A|x) + f                      closeness at x
              <=  e^eta (e^eps P_G(A|x') + delta) + f     the Gaussian run is (eps, delta)
              <=  e^(eps + 2 eta) P_S(A|x') + e^eta delta + (1 + e^(eps + eta)) f

The Rényi bound needs no Gaussian; it is looser under sampling and serves as the check.

Sources: Agarwal, Kairouz, Liu, "The Skellam Mechanism for Differentially Private Federated Learning",
NeurIPS 2021, corollary 4.1; Zhu, Wang, "Poisson Subsampled Rényi Differential Privacy", ICML 2019,
theorem 5. The closeness is derived here.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

VARIANCE_FACTOR = 1.05 / 24
"""A coordinate's log ratio has at most this second moment over the variance squared; exactly 1/24 in the limit."""
MEAN_FACTOR = 1.05 / 48
"""Its mean, a divergence, is at most this over the variance squared; exactly 1/48 in the limit."""
SMALLEST_VARIANCE = 1e3
"""Below it the constants were not checked."""


def skellam_rdp(order: int, l1: float, l2: float, variance: float) -> float:
    """Rényi divergence of a whole order >= 2 of integer sums with Skellam noise.

    Parameters
    ----------
    order : int
    l1, l2 : float
        The most that one user moves the sum, in lattice steps.
    variance : float
        Of the noise of one coordinate, in lattice steps squared.

    Guarantees
    ----------
    An upper bound for every two integer sums that differ by at most `l1` and `l2`. The first term is the
    Gaussian's; the second is what being discrete costs.
    """
    gaussian = order * l2**2 / (2 * variance)
    fine = ((2 * order - 1) * l2**2 + 6 * l1) / (4 * variance**2)
    return gaussian + min(fine, 3 * l1 / (2 * variance))


def sampled_rdp(order: int, rate: float, curve: NDArray[np.float64]) -> float:
    """Rényi divergence of whole order >= 2 if each user takes part with probability `rate` alone.

    Parameters
    ----------
    order : int
    rate : float
        q in (0, 1].
    curve : ndarray of shape (at least order + 1,)
        ``curve[j]`` bounds the divergence of order j without sampling; entries 0 and 1 are not read.

    Guarantees
    ----------
    An upper bound for any mechanism with that curve, under add-or-remove of one user (the factor 3 is the
    price of not knowing the mechanism). In log space: no overflow.
    """
    if rate == 1.0:
        return float(curve[order])
    j = np.arange(2, order + 1)
    weight = np.where(j == 2, 0.0, math.log(3.0))
    choose = gammaln(order + 1) - gammaln(j + 1) - gammaln(order - j + 1)
    terms = weight + choose + (order - j) * math.log1p(-rate) + j * math.log(rate) + (j - 1) * curve[j]
    none = (order - 1) * math.log1p(-rate) + math.log1p((order - 1) * rate)
    return float(logsumexp(np.append(terms, none))) / (order - 1)


def matched_variance(variance: float) -> float:
    """The Gaussian that, rounded to integers, has the variance of the noise: rounding adds 1/12 (Sheppard)."""
    return variance - 1 / 12


def gaussian_closeness(variance: float, coordinates: float, failure: float) -> float:
    """eta: how far Skellam noise and the rounded Gaussian of the same variance are apart, over a whole run.

    Parameters
    ----------
    variance : float
        mu, of the noise of one coordinate, in lattice steps squared.
    coordinates : float
        D, independent noise values in all releases together.
    failure : float
        f, the chance with which the ratio may leave the bound.

    Returns
    -------
    float
        eta; infinite where the derivation does not hold (coarse noise, or an f of 0).

    Guarantees
    ----------
    Let P be D independent Skellam values of variance mu, R as many values of ``round(N(0, mu - 1/12))``
    and L = log dP/dR. Then ``P(L > eta) <= f`` and ``R(L < -eta) <= f``. Releases may depend on earlier
    ones: L is a function of the noise alone.

    Notes
    -----
    One coordinate at ``x = y sqrt(mu)`` has the log ratio ``l = He4(y) / (24 mu) + O(1 / mu^2)`` with
    ``He4 = y^4 - 6 y^2 + 3``: both laws are symmetric, their variances are the same, and the excess
    kurtosis of Skellam is 1/mu (Edgeworth). Hence ``|l| <= y^4 / (24 mu)`` for y >= 2,
    ``E l^2 = 4! / (24 mu)^2 = 1 / (24 mu^2)``, and the mean is half of it, up or down
    (the divergences of P from R and of R from P). The tests check all three on the exact laws.

    1. Outside ``|y| <= r`` lie at most ``4 e^(-r^2 / 2)`` of either law if ``mu >= r^4`` (Chernoff: Skellam's
       rate is at least ``u^2/2 - u^4/24`` at ``u = r / sqrt(mu)``). With ``r^2 = 2 ln(8 D / f)`` this happens
       to any coordinate with chance f/2 at most.
    2. Inside, l is bounded by ``b = r^4 / (24 mu)``: Bernstein's inequality with that bound, the second
       moment and ``ln(2 / f)`` gives the other f/2.
    """
    if not 0 < failure < 1 or not coordinates >= 1:
        return math.inf
    reach = 2 * math.log(8 * coordinates / failure)  # r^2
    if not variance >= max(reach**2, SMALLEST_VARIANCE):
        return math.inf
    tail = math.log(2 / failure)
    linear = reach**2 / (24 * variance) * tail / 3
    spread = 2 * coordinates * VARIANCE_FACTOR / variance**2 * tail
    return coordinates * MEAN_FACTOR / variance**2 + linear + math.sqrt(linear**2 + spread)
