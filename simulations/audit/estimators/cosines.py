"""Epsilon from random directions that took part, and nothing else: no retraining, no canaries left out.

A canary is a direction c, uniform on the unit sphere, that is inserted at full length. Had it not been, its cosine with
what was released would be ``N(0, 1/d)`` to a very good approximation; so that side need not be observed.

Source: Andrew, Kairouz, Oh, Oprea, McMahan, Suriyakumar, "One-shot Empirical Privacy Estimation for Federated
Learning", ICLR 2024. Here both Gaussians get the larger of the two standard deviations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from shared.errors import ConfigError, DataError
from simulations.audit.estimators.guesses import check_confidence
from simulations.audit.estimators.tradeoff import gdp_epsilon
from simulations.audit.findings import Scores

FEW = 100
"""Up to ``d / FEW`` canaries disturb each other little; with more it has a ceiling of ``mu = sqrt(d / k)``."""


@dataclass(frozen=True, slots=True)
class CosineEstimate:
    """What the cosines say. All of it parametric.

    Attributes
    ----------
    mu : float
        Mean of the cosines over the larger of their own standard deviation and ``1 / sqrt(d)``.
    point, lower_bound : float
        Epsilon at the asked delta; the bound one-sided, at the asked confidence.
    few_enough : bool
        At most ``d / FEW`` canaries.
    """

    mu: float
    point: float
    lower_bound: float
    few_enough: bool


def estimate(cosines: Scores, dimension: int, delta: float, confidence: float) -> CosineEstimate:
    """Fit a Gaussian to the cosines of the canaries that took part.

    Parameters
    ----------
    cosines : ndarray of float64, shape (k,)
        ``<c_i, released> / |released|``; k at least 2.
    dimension : int
        d, of the released vector.
    delta, confidence : float

    Raises
    ------
    DataError
        If there are fewer than two cosines, or one is not in [-1, 1].
    ConfigError
        If the dimension is below 2, or delta or confidence is impossible.
    """
    check_confidence(confidence, delta)
    if dimension < 2:
        raise ConfigError(f"cosines: Expected dimension >= 2, got {dimension}.")
    if cosines.ndim != 1 or cosines.size < 2 or not bool((np.abs(cosines) <= 1 + 1e-9).all()):
        raise DataError(f"cosines: Expected at least 2 cosines, all in [-1, 1], got shape={cosines.shape}.")
    k = cosines.size
    mu = float(cosines.mean()) / max(dimension**-0.5, float(cosines.std(ddof=1)))
    least = mu - float(ndtri(confidence)) * math.sqrt(1 / k + mu**2 / (2 * k))
    return CosineEstimate(mu, gdp_epsilon(mu, delta), gdp_epsilon(least, delta), few_enough=k * FEW <= dimension)
