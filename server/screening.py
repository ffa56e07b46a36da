"""Leave out of a sum what one bucket says and the others, but for noise, do not.

A coordinate-wise median withstands a poisoned bucket, but not for nothing: drawn far out, that bucket makes the median
take the larger of two honest values in every coordinate that the attacker cares for, and under noise the larger of two
is larger by half a deviation each time. Over the row of one item, or along one gradient, that adds up to an attack.
Here the buckets are compared block by block (an item's row of the prior's sum; a whole gradient), over whose many
coordinates noise averages out, and a bucket's block that lies apart from most of the others' is left out. What is left
is added up as it is: without an outlier the result is the plain sum, bit by bit.

All of it is post-processing of sums that are released already: no privacy hangs on this file. What it cannot see is a
bucket that stays within noise and `FACTOR` of the others; such a one is in the sum with its plain weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared.model.prior import SKETCH_RANK

FACTOR = 3.0
"""Between two honest buckets' blocks, once they are on one scale: partners' users differ."""
DEVIATIONS = 4.0
"""Of noise, beyond `FACTOR`: one block in 30,000 on either side."""
Rows = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Blocks:
    """Which coordinates of a sum are compared together.

    Attributes
    ----------
    first, second : (P,) int64
        The blocks of each coordinate: of an entry of a symmetric matrix, those of its row and of its column; else twice
        the same.
    count : int
    """

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    count: int

    @classmethod
    def one(cls, size: int) -> Blocks:
        """All coordinates together: a gradient."""
        return cls(np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64), 1)

    @classmethod
    def of_prior(cls, kind: str, n_items: int) -> Blocks:
        """A block an item, in the layout of `shared.model.prior.statistics_size`; of a sketch, one in each part."""
        parts = _parts(kind, n_items)
        starts = np.cumsum([0, *(int(first.max()) + 1 for first, _ in parts)])
        shifted = [[each + start for each in part] for part, start in zip(parts, starts, strict=False)]
        first, second = (np.concatenate([part[side] for part in shifted]) for side in range(2))
        return cls(first, second, int(starts[-1]))

    def added(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sums of the coordinates of each block, shape ``(count,)``."""
        total = np.bincount(self.first, values, self.count)
        apart = self.first != self.second
        total += np.bincount(self.second[apart], values[apart], self.count)
        return np.asarray(total)


def screened(raw: Rows, scales: NDArray[np.float64], stddevs: NDArray[np.float64], blocks: Blocks) -> tuple[Rows, int]:
    """One sum of all buckets.

    Parameters
    ----------
    raw : (b, P)
        The buckets' sums, in one unit; three at least.
    scales : (b,)
        What brings each to the scale of the whole: ``M / m`` for m of M partners.
    stddevs : (b,)
        Of the noise in every coordinate of `raw`.
    blocks : Blocks

    Returns
    -------
    total : (P,)
        The sum of those buckets that are not left out at a coordinate, times ``sqrt(b / kept)``: it has the noise of
        the coordinates with all of them. Raised to the whole it would have more, and what is ranked high by noise alone
        is what an attacker wants; the honest signal is smaller by ``sqrt(kept / b)``.
    left_out : int
        Blocks of all buckets together.
    """
    far = outliers(raw * scales[:, None], stddevs * scales, blocks)  # (b, B)
    if not far.any():
        return np.asarray(raw.sum(axis=0)), 0
    total, kept = np.zeros(raw.shape[1]), np.zeros(raw.shape[1])
    for row, out in zip(raw, far, strict=True):
        stays = ~(out[blocks.first] | out[blocks.second])
        total += np.where(stays, row, 0.0)
        kept += stays
    return total * np.sqrt(len(raw) / np.maximum(kept, 1.0)), int(far.sum())


def outliers(rows: Rows, stddevs: NDArray[np.float64], blocks: Blocks) -> NDArray[np.bool_]:
    """Which block of which bucket lies apart from more than half of the other buckets', shape ``(b, count)``."""
    b = len(rows)
    sums = np.stack([blocks.added(row) for row in rows])  # (b, B)
    squares = np.stack([blocks.added(row**2) for row in rows])
    sizes = blocks.added(np.ones(rows.shape[1]))
    apart = np.zeros((b, blocks.count), dtype=np.int64)
    for k in range(b):
        for j in range(k + 1, b):
            stddev = math.hypot(stddevs[k], stddevs[j])
            far = _sums_differ(sums[k], sums[j], np.sqrt(sizes) * stddev)
            # What is certainly signal in the shorter of the two, by which honest ones may differ as well.
            signal = np.minimum(squares[k] - sizes * stddevs[k] ** 2, squares[j] - sizes * stddevs[j] ** 2)
            distances = blocks.added((rows[k] - rows[j]) ** 2)
            far |= _lie_apart(distances, np.maximum(signal, 0.0), sizes, stddev)
            apart[[k, j]] += far
    return apart > (b - 1) // 2


def _sums_differ(one: Rows, other: Rows, noise: Rows) -> NDArray[np.bool_]:
    """Whether two sums are further apart than noise, and `FACTOR` between two of one sign, explain."""
    alike = np.where(np.sign(one) == np.sign(other), np.minimum(np.abs(one), np.abs(other)), 0.0)
    return np.asarray(np.abs(one - other) > (FACTOR - 1) * alike + DEVIATIONS * noise)


def _lie_apart(distances: Rows, signal: Rows, sizes: Rows, stddev: float) -> NDArray[np.bool_]:
    """Whether a squared distance is more than noise, a chi-squared number, and `FACTOR` times the signal explain."""
    noise = stddev**2 * (sizes + DEVIATIONS * np.sqrt(2 * sizes))
    return np.asarray(distances > noise + FACTOR**2 * signal)


def _parts(kind: str, n_items: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Blocks of the coordinates of each part of a prior's sum."""
    items = np.arange(n_items)
    if kind == "popularity":
        return [(items, items)]
    if kind in ("sketch", "hybrid_sketch"):
        rows = np.repeat(items, SKETCH_RANK)
        parts = [(items, items), (rows, rows)]
        return parts if kind == "sketch" else [*parts, (rows, rows)]
    rows, columns = np.triu_indices(n_items)
    packed = (rows.astype(np.int64), columns.astype(np.int64))
    square = (np.repeat(items, n_items), np.tile(items, n_items))
    return [packed] if kind == "ease" else [packed, square]
