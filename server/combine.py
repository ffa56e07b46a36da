"""From the sums of a round's buckets to one sum: clipped, brought to one scale, combined coordinate by coordinate.

All of it is post-processing of sums that are released already: no privacy hangs on this file. One partner spoils one
bucket at most, whatever it sends, so that a median of b buckets withstands ``(b - 1) // 2`` of them.

Sources: Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates",
ICML 2018 (definitions 1 and 2: coordinate-wise median and trimmed mean); Karimireddy, He, Jaggi, ICLR 2022 (buckets).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from server.screening import Blocks, screened
from shared.privacy.plan import PrivacyPlan, Stage

Combination = Literal["sum", "median", "trimmed_mean", "screened"]
TRIMMED_SHARE = 0.25
"""Of the buckets at either end of every coordinate, one at least: of three the median is left, of eight four."""
NOISE_ROOM = 5.0
"""Standard deviations: the noise of a bucket is longer than ``stddev (sqrt(P) + 5)`` once in 250,000 sums."""
BLOCK = 2**18
"""Coordinates at a time: a sketch has millions of them."""
DRAWS, DRAW_SEED = 2**16, 20261122
"""Of the noise that a robust combination leaves (`noise_left`), to 0.3 %. Public: the draw says nothing of a run."""


@dataclass(frozen=True, slots=True)
class BucketSum:
    """The opened sum of one bucket.

    Attributes
    ----------
    number : int
        Of the bucket, from 0, as `shared.buckets.assign` deals them.
    total : (P,) int64
        Lattice steps.
    partners : int
        m, the partners that are in it.
    """

    number: int
    total: NDArray[np.int64]
    partners: int


def combined(
    buckets: Sequence[BucketSum], plan: PrivacyPlan, stage: Stage, how: Combination, prior: tuple[str, int] = ("", 0)
) -> tuple[NDArray[np.float64], float]:
    """One sum over all partners that are in some bucket.

    Parameters
    ----------
    buckets : sequence of BucketSum
        Of one size P; three at least for a robust combination.
    plan : PrivacyPlan
    stage : {"prior", "train"}
    how : {"sum", "median", "trimmed_mean", "screened"}
    prior : (str, int)
        Kind of the prior and number of items, whose rows ``screened`` compares in the prior's stage.

    Returns
    -------
    total : (P,) float64
        In units of the clip norm's scale. A bucket's sum counts ``M / m`` times, M partners in all buckets, before
        the median or the trimmed mean is taken: each then estimates what the plain sum is.
    stddev : float
        Of one release's noise in every coordinate of it (`noise_left`).
    """
    everybody = sum(bucket.partners for bucket in buckets)
    plain = how in ("sum", "screened")
    raised = [1.0 if plain else everybody / bucket.partners for bucket in buckets]
    size, step = len(buckets[0].total), plan.step(stage)
    factors = step * np.array([up * _shortened(b, plan, stage) for b, up in zip(buckets, raised, strict=True)])
    if how == "screened":
        return _screened(
            buckets, plan, stage, factors, Blocks.of_prior(*prior) if stage == "prior" else Blocks.one(size)
        )
    total = np.empty(size)
    for start in range(0, size, BLOCK):
        block = np.stack([bucket.total[start : start + BLOCK] for bucket in buckets])
        total[start : start + BLOCK] = _combine(block * factors[:, None], how)
    noises = [up * _stddev(bucket, plan, stage) for bucket, up in zip(buckets, raised, strict=True)]
    return total, noise_left(tuple(noises), how)


def _screened(
    buckets: Sequence[BucketSum], plan: PrivacyPlan, stage: Stage, factors: NDArray[np.float64], blocks: Blocks
) -> tuple[NDArray[np.float64], float]:
    everybody = sum(bucket.partners for bucket in buckets)
    stddevs = np.array([_stddev(bucket, plan, stage) * math.sqrt(_releases(plan, stage)) for bucket in buckets])
    scales = np.array([everybody / bucket.partners for bucket in buckets])
    raw = np.stack([bucket.total for bucket in buckets]) * factors[:, None]
    total, _ = screened(raw, scales, stddevs, blocks)
    return total, math.hypot(*(_stddev(bucket, plan, stage) for bucket in buckets))


def described(buckets: Sequence[BucketSum], plan: PrivacyPlan, stage: Stage) -> list[dict[str, Any]]:
    """For the round's record, a line a bucket: its number, partners, norm, and whether it was longer than `limit`."""
    return [
        {
            "bucket": bucket.number,
            "partners": bucket.partners,
            "norm": plan.step(stage) * _norm(bucket),
            "clipped": _shortened(bucket, plan, stage) < 1.0,
        }
        for bucket in buckets
    ]


def limit(bucket: BucketSum, plan: PrivacyPlan, stage: Stage) -> float:
    """The length to which a bucket's sum is clipped, in units of the clip norm's scale; public.

    Its part, ``m / n``, of the users that the plan declares for a sum, all of them at the clip norm and pointing the
    same way, and room for the noise and for rounding. No honest bucket of about its share of users comes near;
    clipping bounds what a boosted update moves, and removes nothing.
    """
    users = plan.population if stage == "prior" else plan.normaliser
    reach = 1.0 if stage == "prior" else plan.clip_norm
    signal = _releases(plan, stage) * reach * users * bucket.partners / plan.partners
    size = len(bucket.total)
    noise = _stddev(bucket, plan, stage) * math.sqrt(_releases(plan, stage)) * (math.sqrt(size) + NOISE_ROOM)
    return signal + noise + plan.step(stage) * bucket.partners * math.sqrt(size)


@lru_cache(maxsize=256)
def noise_left(stddevs: tuple[float, ...], how: Combination) -> float:
    """Standard deviation of the noise after sums with noise of these deviations are combined.

    Exact for ``sum``. For the others as it is where buckets differ by noise alone: drawn, with a fixed seed, from
    normal noise, as unequal deviations have no closed form. Where the honest buckets lie further apart than their
    noise, the combination follows one of them, and up to its whole deviation is left.
    """
    if how == "sum" or not any(stddevs):
        return math.hypot(*stddevs) if how == "sum" else 0.0
    draws = np.random.default_rng(DRAW_SEED).normal(size=(len(stddevs), DRAWS)) * np.array(stddevs)[:, None]
    return math.sqrt(float(np.mean(_combine(draws, how) ** 2)))


def _combine(rows: NDArray[np.float64], how: Combination) -> NDArray[np.float64]:
    """Rows (b, P) to (P,)."""
    if how == "sum":
        return np.asarray(rows.sum(axis=0))
    if how == "median":
        return np.asarray(np.median(rows, axis=0))
    cut = trimmed(len(rows))
    return np.asarray(np.sort(rows, axis=0)[cut : len(rows) - cut].mean(axis=0))


def trimmed(buckets: int) -> int:
    """Buckets that a trimmed mean leaves out at either end of every coordinate."""
    return max(1, int(TRIMMED_SHARE * buckets))


def _shortened(bucket: BucketSum, plan: PrivacyPlan, stage: Stage) -> float:
    norm = plan.step(stage) * _norm(bucket)
    return min(1.0, limit(bucket, plan, stage) / norm) if norm else 1.0


def _norm(bucket: BucketSum) -> float:
    return float(np.linalg.norm(bucket.total.astype(np.float64)))


def _stddev(bucket: BucketSum, plan: PrivacyPlan, stage: Stage) -> float:
    """Of one release's noise in a bucket's sum, as all of its partners add a share."""
    return plan.step(stage) * math.sqrt(bucket.partners * plan.share_variance(stage, len(bucket.total)))


def _releases(plan: PrivacyPlan, stage: Stage) -> int:
    return 1 if stage == "prior" else plan.local_steps
