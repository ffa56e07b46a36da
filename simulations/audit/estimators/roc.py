"""How well scores tell who took part: ROC curve, area, and what is found at few false accusations.

Sources: DeLong, DeLong, Clarke-Pearson, Biometrics 1988 (standard error of the area); Clopper, Pearson, Biometrika 1934
(interval of a proportion); Carlini et al., "Membership Inference Attacks From First Principles", IEEE S&P 2022
(why low false-positive rates).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv
from scipy.stats import rankdata

from shared.errors import ConfigError
from simulations.audit.estimators.guesses import check_scores
from simulations.audit.findings import CONFIDENCE, Scores, ScoreSet

LOW_RATES = (0.001, 0.01, 0.1)
"""False-positive rates at which the true-positive rate is told."""


@dataclass(frozen=True, slots=True)
class Found:
    """The true-positive rate at one false-positive rate.

    Attributes
    ----------
    false_positive_rate : float
        The most that was allowed.
    true_positive_rate : float
    low, high : float
        Clopper-Pearson interval, given the threshold.
    """

    false_positive_rate: float
    true_positive_rate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Roc:
    """What a score can tell.

    Attributes
    ----------
    false_positive_rates, true_positive_rates : ndarray of float64
        Corners of the curve from (0, 0) to (1, 1); equal scores make one slanted step.
    auc : float
        The chance that one who took part scores higher than one who did not, ties counted half.
    standard_error : float
        Of the area; 0 where the scores are wholly apart, which says little about few scores.
    found : tuple of Found
        At `LOW_RATES`.
    """

    false_positive_rates: NDArray[np.float64]
    true_positive_rates: NDArray[np.float64]
    auc: float
    standard_error: float
    found: tuple[Found, ...]


def roc(scores: ScoreSet) -> Roc:
    """The curve of a set of scores.

    Raises
    ------
    DataError
        If there are fewer than two finite scores on a side.
    """
    inside, outside = scores.inside, scores.outside
    check_scores(inside, outside)
    thresholds = np.unique(np.concatenate([inside, outside]))[::-1]
    false, true = _above(outside, thresholds), _above(inside, thresholds)
    auc, standard_error = _area(inside, outside)
    return Roc(
        np.concatenate([[0.0], false]),
        np.concatenate([[0.0], true]),
        auc,
        standard_error,
        tuple(found_at(scores, rate) for rate in LOW_RATES),
    )


def found_at(scores: ScoreSet, rate: float, confidence: float = CONFIDENCE) -> Found:
    """The share of those inside that is found with at most `rate` of those outside accused.

    With fewer than ``1 / rate`` outside nobody of them may be accused: the threshold is their highest score.

    Raises
    ------
    DataError
        If there are fewer than two finite scores on a side.
    ConfigError
        If the rate or the confidence is not in (0, 1).
    """
    check_scores(scores.inside, scores.outside)
    if not 0 < rate < 1:
        raise ConfigError(f"roc: Expected 0 < false-positive rate < 1, got {rate:g}.")
    allowed = math.floor(rate * scores.outside.size + 1e-9)  # 0.01 x 300 is not quite 3
    threshold = np.sort(scores.outside)[-1 - allowed]
    hits, of = int((scores.inside > threshold).sum()), scores.inside.size
    return Found(rate, hits / of, *proportion(hits, of, confidence))


def proportion(hits: int, of: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """The two-sided Clopper-Pearson interval of a proportion: never narrower than its confidence says.

    Raises
    ------
    ConfigError
        Unless ``0 <= hits <= of``, ``of >= 1`` and the confidence is in (0, 1).
    """
    if not (0 <= hits <= of and of >= 1 and 0 < confidence < 1):
        raise ConfigError(f"proportion: Expected 0 <= hits <= of and 0 < confidence < 1, got {hits=} {of=}.")
    tail = (1 - confidence) / 2
    low = float(betaincinv(hits, of - hits + 1, tail)) if hits else 0.0
    high = float(betaincinv(hits + 1, of - hits, 1 - tail)) if hits < of else 1.0
    return low, high


def area_under(inside: Scores, outside: Scores) -> float:
    """The area under the ROC curve, ties counted half."""
    return _area(inside, outside)[0]


def _above(scores: Scores, thresholds: Scores) -> NDArray[np.float64]:
    below = np.searchsorted(np.sort(scores), thresholds, side="left")
    return np.asarray(1.0 - below / scores.size, dtype=np.float64)


def _area(inside: Scores, outside: Scores) -> tuple[float, float]:
    """Area and DeLong's standard error, from midranks."""
    together = rankdata(np.concatenate([inside, outside]))
    n, m = inside.size, outside.size
    beaten = (together[:n] - rankdata(inside)) / m  # of each inside: the share of those outside below it
    beating = 1.0 - (together[n:] - rankdata(outside)) / n
    return float(beaten.mean()), math.sqrt(float(beaten.var(ddof=1)) / n + float(beating.var(ddof=1)) / m)
