"""From real sums to integers of a ring and back.

The lattice and its sensitivity are in `shared.privacy.lattice`; this file is the arithmetic. The order is
`round_to_lattice`, `limit_sum`, noise, `to_ring`, masks; after the sum of all partners, `from_ring`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from shared.errors import PolicyViolationError, SensitivityError
from shared.hazmat.randomness import Randomness

RING_BITS = 32
LARGEST_ROUNDED = 2**62
"""Lattice values end here, so that noise can be added in 64 bits without overflow."""


def round_to_lattice(values: NDArray[np.float64], step: float, source: Randomness, context: str) -> NDArray[np.int64]:
    """Return ``floor(values / step + u)`` with a uniform u in (0, 1) for each value, shape ``(P,)``.

    Parameters
    ----------
    values : float64, shape (P,)
    step : float
        The length of one lattice step, in the unit of `values`.
    source, context
        Where u comes from; `context` must be a fresh one.

    Raises
    ------
    SensitivityError
        If a value is not finite, or `step` is no positive number.

    Guarantees
    ----------
    - u is an odd multiple of 2^-53, the same whatever the values: two sums under one u differ as the sensitivity
      in `shared.privacy.lattice` says. The comparison with u is exact; ``values / step`` is a float division.
    - Unbiased up to 2^-53 steps; a value on the lattice stays where it is.
    - Values beyond +-2^62 steps are clamped, which moves no two sums further apart.
    """
    if not 0 < step < np.inf:
        raise SensitivityError(f"Expected a finite lattice step > 0, got {step}.")
    if not np.isfinite(values).all():
        raise SensitivityError("Expected finite values in the sum that is rounded to the lattice, got NaN or infinity.")
    words = np.frombuffer(source.read(8 * values.size, context), dtype="<u8").reshape(values.shape)
    # 1 - u: floor(x + u) is one above floor(x) exactly where x - floor(x) >= 1 - u. Nothing is rounded here.
    complement = ((words >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    with np.errstate(over="ignore"):  # an infinite quotient is clamped too
        steps = np.clip(values / step, -float(LARGEST_ROUNDED), float(LARGEST_ROUNDED))
    below = np.floor(steps)
    return below.astype(np.int64) + (steps - below >= complement)


def room(parties: int) -> int:
    """The largest absolute value that one of `parties` may add to a sum in the ring.

    Raises
    ------
    PolicyViolationError
        If `parties` is not positive.

    Guarantees
    ----------
    No sum of `parties` values of at most this size wraps around.
    """
    if parties < 1:
        raise PolicyViolationError(f"Expected parties >= 1 in a sum, got {parties}.")
    return int((2 ** (RING_BITS - 1) - 1) // parties)


def limit_sum(values: NDArray[np.int64], parties: int) -> NDArray[np.int64]:
    """Clamp a partner's rounded sum, before noise, to half of its room in the ring.

    Guarantees
    ----------
    Clamping is 1-Lipschitz in every coordinate: two sums come no further apart, so the sensitivity stands. The other
    half of the room is for noise, so that `to_ring` has nothing to clamp unless a noise share exceeds it.
    """
    half = room(parties) // 2
    return np.clip(values, -half, half)


def to_ring(values: NDArray[np.int64], parties: int) -> NDArray[np.uint32]:
    """Clamp noised integers to ``+-room(parties)`` and take them modulo 2^32, same shape.

    Guarantees
    ----------
    - The sum of `parties` such values modulo 2^32, read by `from_ring`, is the sum of the clamped integers:
      nothing overflows, whatever the values are. The bound is public.
    - Clamping is post-processing of one partner's noised sum. It is not post-processing of the sum of all: a
      share of noise that is clamped away is missing there. Values that went through `limit_sum` reach the
      bound only if the noise share alone exceeds half of the room.
    """
    bound = room(parties)
    return np.clip(values, -bound, bound).astype(np.int32).view(np.uint32)


def from_ring(total: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Read ring elements as the integers of least absolute value, in ``[-2^31, 2^31)``, same shape.

    Guarantees
    ----------
    The inverse of `to_ring`, and of any sum of its results over the declared number of parties.
    """
    return total.astype(np.uint32, copy=False).view(np.int32).astype(np.int64)
