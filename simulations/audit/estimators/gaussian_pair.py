"""Two Gaussians fitted to the scores: how far apart, and which epsilon a Gaussian mechanism that far apart has.

Parametric: exact for a Gaussian mechanism whose noise is all that moves a score, an estimate for anything else. It
uses every score and not only counts of right guesses, and so sees far more than the one-run bounds.

Source: the Gaussian-pair audit of "Let's Ask Gauss" (2026); standard error of a standardised difference of means:
Hedges, Olkin, "Statistical Methods for Meta-Analysis", 1985.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from scipy.special import ndtri

from simulations.audit.estimators.guesses import check_confidence, check_scores
from simulations.audit.estimators.tradeoff import LARGEST_MU, gdp_epsilon
from simulations.audit.findings import Scores


@dataclass(frozen=True, slots=True)
class GaussianPair:
    """What the pair says.

    Attributes
    ----------
    mu : float
        Difference of the means in pooled standard deviations; below 0 if those who took part score lower.
    standard_error : float
        Of mu.
    point, lower_bound : float
        Epsilon at the asked delta; the bound one-sided, at the asked confidence.
    """

    mu: float
    standard_error: float
    point: float
    lower_bound: float


def estimate(inside: Scores, outside: Scores, delta: float, confidence: float) -> GaussianPair:
    """Fit, and turn the distance into epsilon.

    Parameters
    ----------
    inside, outside : ndarray of float64
        At least two finite scores each.
    delta, confidence : float

    Raises
    ------
    DataError, ConfigError
        If scores, delta or confidence cannot be used.
    """
    check_scores(inside, outside)
    check_confidence(confidence, delta)
    n_inside, n_outside = inside.size, outside.size
    squares = (n_inside - 1) * inside.var(ddof=1) + (n_outside - 1) * outside.var(ddof=1)
    stddev = math.sqrt(squares / (n_inside + n_outside - 2))
    apart = float(inside.mean() - outside.mean())
    mu = apart / stddev if abs(apart) < LARGEST_MU * stddev else math.copysign(LARGEST_MU, apart) if apart else 0.0
    standard_error = math.sqrt(1 / n_inside + 1 / n_outside + mu**2 / (2 * (n_inside + n_outside)))
    least = mu - float(ndtri(confidence)) * standard_error
    return GaussianPair(mu, standard_error, gdp_epsilon(mu, delta), gdp_epsilon(least, delta))
