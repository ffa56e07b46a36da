"""From scores to guesses: who took part, who did not, and how many of the guesses are right.

One-run audits toss a fair coin for each of m canaries, look at the scores, and guess the coins of r of them. r is fixed
before any score is seen, as a share of m. The r/2 highest scores are guessed "took part", the r/2 lowest "did not".

Source: Steinke, Nasr, Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import bdtr

from shared.errors import ConfigError, DataError
from simulations.audit.findings import Scores

UNFAIR = 1e-9
"""Coins this unlikely were not tossed: the one-run bounds hold for fair coins alone."""


@dataclass(frozen=True, slots=True)
class Guesses:
    """What a one-run audit counts.

    Attributes
    ----------
    canaries : int
        m, each with a fair coin of its own.
    guesses : int
        r, fixed before the scores were seen.
    correct : int
        v.
    """

    canaries: int
    guesses: int
    correct: int

    def __post_init__(self) -> None:
        check_counts(self.canaries, self.guesses, self.correct)


def check_counts(m: int, r: int, v: int) -> None:
    """Refuse counts of which no audit can be made.

    Raises
    ------
    DataError
        Unless ``1 <= r <= m`` and ``0 <= v <= r``.
    """
    if not (1 <= r <= m and 0 <= v <= r):
        raise DataError(f"guesses: Expected 1 <= guesses <= canaries and 0 <= correct <= guesses, got {m=} {r=} {v=}.")


def check_confidence(confidence: float, delta: float) -> None:
    """Refuse a confidence or a delta that is no probability.

    Raises
    ------
    ConfigError
        Unless both are inside (0, 1).
    """
    if not (0 < confidence < 1 and 0 < delta < 1):
        raise ConfigError(f"audit: Expected 0 < confidence < 1 and 0 < delta < 1, got {confidence=:g} {delta=:g}.")


def check_scores(inside: Scores, outside: Scores) -> None:
    """Refuse scores that are no numbers, or too few to compare.

    Raises
    ------
    DataError
        Unless both are vectors of at least two finite numbers.
    """
    for name, scores in (("inside", inside), ("outside", outside)):
        if scores.ndim != 1 or scores.size < 2:
            raise DataError(f"scores: Expected at least 2 scores {name}, got shape={scores.shape}.")
        if not np.isfinite(scores).all():
            raise DataError(f"scores: Expected finite scores {name}, got {int((~np.isfinite(scores)).sum())} others.")


def check_coins(n_inside: int, n_outside: int) -> None:
    """Refuse an audit whose coins were not fair.

    Raises
    ------
    DataError
        If fair coins would fall so unevenly with a chance of `UNFAIR` at most.
    """
    fewer, m = min(n_inside, n_outside), n_inside + n_outside
    if 2 * float(bdtr(fewer, m, 0.5)) < UNFAIR:
        raise DataError(f"scores: Expected canaries that fair coins let in, got {n_inside} inside of {m}.")


def count_guesses(inside: Scores, outside: Scores, share: float, seed: int) -> Guesses:
    """Guess a share of the coins and count what is right.

    Parameters
    ----------
    inside, outside : ndarray of float64
        Scores of those whose coin let them in, and of the others.
    share : float
        r / m in (0, 1]; r is rounded down to an even number, and is 2 at least.
    seed : int
        Of the shuffle that breaks ties: equal scores are guessed in an order that knows nothing of the coins.

    Raises
    ------
    DataError
        If scores are not finite, fewer than two on a side, or the coins not fair.
    ConfigError
        If the share is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ConfigError(f"audit: Expected 0 < share of guesses <= 1, got {share:g}.")
    check_scores(inside, outside)
    check_coins(inside.size, outside.size)
    half = max(1, int(share * (inside.size + outside.size)) // 2)
    scores = np.concatenate([inside, outside])
    took_part = np.arange(scores.size) < inside.size
    shuffled = np.random.default_rng(seed).permutation(scores.size)
    order = shuffled[np.argsort(scores[shuffled], kind="stable")]  # lowest first
    correct = int(took_part[order[order.size - half :]].sum()) + int((~took_part[order[:half]]).sum())
    return Guesses(scores.size, 2 * half, correct)
