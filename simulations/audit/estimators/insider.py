"""The score of one who knows everybody else: what a canary left in the sums, as evidence that it took part.

The insider subtracts all that others gave from every released sum and looks along the canary's own direction. What is
left, in units of the sensitivity, is ``x = s b + z N(0, 1)``: s how far the canary moved the sum, b whether it did.

- prior: b is the canary's coin, so ``x0`` itself, as a log-likelihood ratio;
- training: in every step b is the coin times a Bernoulli(q), and steps that the canary did not take part in look like
  those of one that was never there. A step's ratio is ``log((1 - q) + q exp((2 x s - s^2) / (2 z^2)))``;
- whole run: the sum of both. Given everybody else, prior and steps are independent.

By the Neyman-Pearson lemma no score tells more, if the noise is what the plan says.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared.errors import DataError
from shared.privacy.plan import PrivacyPlan
from simulations.audit.claims import Part
from simulations.audit.findings import Scores

Residuals = NDArray[np.float64]


def insider_scores(
    plan: PrivacyPlan,
    part: Part,
    *,
    prior: Residuals | None = None,
    training: Residuals | None = None,
    prior_signal: float = 1.0,
    signal: float = 1.0,
) -> Scores:
    """Log-likelihood ratios of "took part" to "did not", under the plan's own noise.

    Parameters
    ----------
    plan : PrivacyPlan
        Without noise (mode ``none``) residuals are compared with noise of 1: the order of the scores is what counts.
    part : {"prior", "training", "whole"}
        Which of the releases are looked at. ``whole`` uses those that the plan has.
    prior : ndarray of shape (m,)
        Residuals of the prior's sum along each canary's direction, in units of its sensitivity.
    training : ndarray of shape (m, T)
        The same of every step, in units of the clip norm C.
    prior_signal, signal : float
        s: how far a canary moves a sum it is in, in the same units; 1 for one at the clip norm, less for a canary
        that is at one of several partners only.

    Returns
    -------
    ndarray of float64, shape (m,)
        Higher: rather took part.

    Raises
    ------
    DataError
        If residuals that the part needs are missing, of another shape, or not finite.
    PolicyViolationError
        If the plan has no such part.
    """
    scores = []
    if part == "prior" or (part == "whole" and plan.prior_noise_multiplier is not None):
        noise = plan.multiplier("prior") or 1.0
        scores.append(_evidence(_checked("prior", prior, 1), prior_signal, noise))
    if part == "training" or (part == "whole" and plan.steps):
        steps = _checked("training", training, 2)
        scores.append(_sampled(steps, signal, plan.multiplier("train") or 1.0, plan.sampling_rate))
    if not scores or len({one.shape for one in scores}) != 1:
        raise DataError(f"residuals: Expected residuals of the same canaries in all stages of part={part}.")
    return np.asarray(sum(scores), dtype=np.float64)


def _checked(name: str, residuals: Residuals | None, axes: int) -> Residuals:
    if residuals is None or residuals.ndim != axes:
        got = None if residuals is None else residuals.shape
        raise DataError(f"residuals: Expected {name} residuals of {axes} axes, got shape={got}.")
    if not np.isfinite(residuals).all():
        raise DataError(f"residuals: Expected finite {name} residuals.")
    return residuals


def _evidence(x: Residuals, signal: float, noise: float) -> Residuals:
    return (2 * x * signal - signal**2) / (2 * noise**2)


def _sampled(x: Residuals, signal: float, noise: float, rate: float) -> Residuals:
    evidence = _evidence(x, signal, noise)
    if rate < 1:
        evidence = np.logaddexp(np.log1p(-rate), np.log(rate) + evidence)
    return np.asarray(evidence.sum(axis=1), dtype=np.float64)
