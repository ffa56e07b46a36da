"""The area under the ROC curve against the area that the claim leaves room for.

Of a mechanism with the trade-off function f no score has an ROC curve above ``1 - f``, and so no score an area above
``1 - int f``. The measured area is the mean of "this one scores higher" over all pairs of one inside and one outside, a
two-sample U-statistic with values in [0, 1]. With ``k = min(inside, outside)`` its tail is at most that of a mean of k
independent values: ``P[area >= x] <= exp(-k KL(x, truth))`` for x above the truth. Nothing is assumed of the form
of scores, nothing is asymptotic; but scores must be independent of each other, as the insider's of directions at right
angles are. The one-run bounds need only independent coins and pay for it.

Sources: Hoeffding, "Probability Inequalities for Sums of Bounded Random Variables", JASA 1963, section 5;
Dong, Roth, Su, "Gaussian Differential Privacy", JRSS B 2022 (trade-off functions). The bound on epsilon is the area
under the trade-off function of (epsilon, delta), two triangles: ``(1 - delta)^2 / (1 + e^eps)``.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import rel_entr

from simulations.audit.estimators.guesses import check_confidence, check_scores
from simulations.audit.estimators.roc import area_under
from simulations.audit.estimators.tradeoff import TradeoffCurve
from simulations.audit.findings import Scores

CELLS = 4000
"""Of the integral, half of them crowded towards 0, where the curve is steep."""
HALVINGS = 60


def least_area(inside: Scores, outside: Scores, confidence: float) -> float:
    """The least area under the ROC curve that the scores are possible with.

    Parameters
    ----------
    inside, outside : ndarray of float64
        At least two finite scores each.
    confidence : float

    Guarantees
    ----------
    Above the true area with a chance of at most ``1 - confidence``, for independent scores of any form. Below 1.

    Raises
    ------
    DataError, ConfigError
        If scores or confidence cannot be used.
    """
    check_scores(inside, outside)
    check_confidence(confidence, 0.5)
    seen, k = area_under(inside, outside), min(inside.size, outside.size)
    allowed = -math.log1p(-confidence) / k
    low, high = 0.0, seen
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        divergence = float(rel_entr(seen, middle) + rel_entr(1 - seen, 1 - middle))
        low, high = (middle, high) if divergence > allowed else (low, middle)
    return low


def epsilon_of(area: float, delta: float) -> float:
    """The least epsilon whose (epsilon, delta) leaves room for this area.

    Raises
    ------
    ConfigError
        If delta is not in (0, 1).
    """
    check_confidence(0.5, delta)
    return max(0.0, math.log((1 - delta) ** 2 / (1 - area) - 1)) if (1 - delta) ** 2 > 1 - area else 0.0


def largest_area(curve: TradeoffCurve) -> float:
    """``1 - int f``, the largest area under any ROC curve that the claim allows.

    By the midpoint rule, which for a convex f is too small: the area told is not below the true one.
    """
    edges = np.concatenate([[0.0], np.geomspace(1e-9, 0.1, CELLS // 2), np.linspace(0.1, 1.0, CELLS // 2)[1:]])
    middles, widths = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    heights = (curve.intercepts[:, None] + curve.slopes[:, None] * middles).max(axis=0)
    return 1.0 - float(widths @ heights)
