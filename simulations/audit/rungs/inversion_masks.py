"""Whether masked sums look to all who lack the secrets like what they must: uniform, and like nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, norm

from shared.hazmat.fixed_point import from_ring
from simulations.audit.findings import Measurement

Floats = NDArray[np.float64]


def uniform(
    name: str, leaving: Sequence[NDArray[np.uint32]], bare: Sequence[NDArray[np.uint32]], alarm: float
) -> list[Measurement]:
    """What leaves must look uniform, and like neither the sum below it nor another one that left.

    Parameters
    ----------
    name : str
        Of the release.
    leaving, bare : sequence of (P,) uint32
        What left, and the noised sum below each; at least two.
    alarm : float
        Chance of a false alarm of each measurement.
    """
    signed = [_standard(from_ring(one)) for one in leaving]
    below = [_standard(from_ring(one)) for one in bare]
    with_sum = max(abs(float(one @ two)) for one, two in zip(signed, below, strict=True))
    with_next = max(abs(float(one @ two)) for one, two in pairwise(signed))
    size = len(leaving[0])
    bound = float(norm.isf(alarm / (2 * len(leaving)))) / math.sqrt(size)
    p = byte_p_value(leaving)
    return [
        Measurement(
            f"bytes of {len(leaving)} masked sums, {name}: p of chi-square against uniform",
            p,
            f">= {alarm:.1e}",
            p >= alarm,
            "masks that are missing or not uniform",
        ),
        Measurement(
            f"correlation of a masked sum with the sum below it, {name}: largest of {len(leaving)}",
            with_sum,
            f"<= {bound:.2g}",
            with_sum <= bound,
            "masks that do not cover the sum",
        ),
        Measurement(
            f"correlation of masked sums with each other, {name}: largest of {len(leaving) - 1}",
            with_next,
            f"<= {bound:.2g}",
            with_next <= bound,
            "a mask used twice",
        ),
    ]


def tells_bare(name: str, bare: Sequence[NDArray[np.uint32]], alarm: float) -> Measurement:
    """The same test must tell sums without masks from uniform ones: else it says nothing."""
    p = byte_p_value(bare)
    return Measurement(
        f"bytes of the same sums without masks, {name}: p of chi-square against uniform",
        p,
        f"< {alarm:.1e}: the check tells them apart",
        p < alarm,
        "a check that would not notice missing masks",
    )


def byte_p_value(vectors: Sequence[NDArray[np.uint32]]) -> float:
    """Chi-square of the bytes of ring elements, place by place, against uniform: 4 x 255 degrees of freedom."""
    counts = np.zeros((4, 256))
    for vector in vectors:
        table = np.ascontiguousarray(vector, dtype="<u4").view(np.uint8).reshape(-1, 4)
        for place in range(4):
            counts[place] += np.bincount(table[:, place], minlength=256)
    expected = counts.sum(axis=1, keepdims=True) / 256
    return float(chi2.sf(float((np.square(counts - expected) / expected).sum()), 4 * 255))


def _standard(values: NDArray[np.int64]) -> Floats:
    """Mean 0 and norm 1; zeros stay."""
    centred = values - values.mean()
    return np.asarray(centred / max(float(np.linalg.norm(centred)), 1e-30), dtype=np.float64)
