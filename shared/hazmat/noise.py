"""Integer noise: Skellam draws from a source of uniform bytes.

A Skellam value is the difference of two independent Poisson values of one rate. Sums of independent
Skellam values are Skellam, so that the noise shares of partners add up to noise of a known law.

Source: rates from 10 on, W. Hörmann, "The transformed rejection method for generating Poisson random
variables", Insurance: Mathematics and Economics 12 (1993), algorithm PTRS; its acceptance test with
C. Loader's saddle-point form of the Poisson probability ("Fast and accurate computation of binomial
probabilities", 2000), because ``k log(rate) - rate - log(k!)`` loses all its digits at large rates. Rates
below 10: inversion of the distribution function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shared.errors import PolicyViolationError, PrivacyError
from shared.hazmat.randomness import Randomness

LARGEST_VARIANCE = 2.0**50
"""Above it the floats of the sampler would be too coarse for single integers."""
TABLE_RATE = 10.0
"""Poisson rates below it are drawn from a table."""
_BLOCK = 2**14
"""Coordinates that are drawn at once: work arrays stay in the processor's cache."""
_ATTEMPTS = 64
"""Of the candidates at most a third is rejected: none is rejected as often as this by chance."""
_LOW_52 = np.uint64(2**52 - 1)
_LOW_12 = np.uint64(2**12 - 1)

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class _Sampler(Protocol):
    """Draws of a Poisson variable, less a constant of the sampler."""

    def draw(self, source: Randomness, context: str, n: int) -> Integers: ...


def skellam(source: Randomness, context: str, n: int, variance: float) -> Integers:
    """Draw `n` independent values of ``Poisson(variance / 2) - Poisson(variance / 2)``, shape ``(n,)``.

    Parameters
    ----------
    source : Randomness
    context : str
        Names the draw. Two draws with one `context` from one seeded source are equal: never reuse it.
    n : int
    variance : float
        From 0 (all values are 0) to `LARGEST_VARIANCE`.

    Raises
    ------
    PolicyViolationError
        If `variance` is out of its range.
    PrivacyError
        If `source` is stuck.

    Guarantees
    ----------
    - Values are integers: no low bits of floats that could betray the sum under them.
    - The sum of independent Skellam values is Skellam, its variance the sum of the variances: any subset
      of honest shares is noise of a known law.
    - Uniforms are odd multiples of 2^-53 from the bytes of `source`; no bit is used twice. A comparison with one is
      wrong by at most 2^-53 in probability, so that each Poisson value is within about 2^-52 of its law in total
      variation for this reason; values that are rarer than that may never come.
    - From rate 10 on, a candidate is computed in double precision. For this reason the chance of a single integer
      has a relative error of about 2^-50 times its distance from the rate: 1e-10 at one standard deviation and
      a rate of 1e10. Log-probabilities of the acceptance test are right to about 1e-13.
    - Not guaranteed: constant time. The number of rejected candidates depends on noise alone, not on data.
    """
    if not 0 <= variance <= LARGEST_VARIANCE:
        raise PolicyViolationError(
            f"Expected 0 <= variance <= {LARGEST_VARIANCE:g} of integer noise, got {variance:g}."
        )
    noise = np.zeros(n, dtype=np.int64)
    if variance == 0:
        return noise
    rate = variance / 2
    sampler: _Sampler = _Table.of(rate) if rate < TABLE_RATE else _Transformed.of(rate)
    for block, start in enumerate(range(0, n, _BLOCK)):
        size = min(_BLOCK, n - start)
        both = sampler.draw(source, f"{context}/skellam/{block}", 2 * size)
        np.subtract(both[:size], both[size:], out=noise[start : start + size])
    return noise


@dataclass(frozen=True, slots=True)
class _Table:
    """Inversion: the first value whose distribution function exceeds a uniform."""

    cumulative: Floats

    @classmethod
    def of(cls, rate: float) -> _Table:
        k = np.arange(1, 100)
        pmf = np.exp(-rate) * np.concatenate([[1.0], np.cumprod(rate / k)])
        tail = np.cumsum(pmf[::-1])[::-1]  # tail[k] = P(X >= k), summed from its smallest term
        # Rounding must not send a uniform near 1 past the end: the last value takes the rest.
        return cls(np.cumsum(pmf)[: np.count_nonzero(tail > 2.0**-53) - 1])

    def draw(self, source: Randomness, context: str, n: int) -> Integers:
        words = np.frombuffer(source.read(8 * n, context), dtype="<u8")
        return np.searchsorted(self.cumulative, _uniform(words), side="right").astype(np.int64)


@dataclass(frozen=True, slots=True)
class _Transformed:
    """PTRS: a uniform U, transformed to a table-mountain hat, and a uniform V that accepts or rejects.

    Values are counted from ``floor(rate)``: they stay small numbers, with all their digits, at any rate.
    """

    rate: float
    a: float
    b: float
    inverse_alpha: float
    sure: float  # accept at once below this V, where U is not in the tails

    @classmethod
    def of(cls, rate: float) -> _Transformed:
        b = 0.931 + 2.53 * math.sqrt(rate)
        return cls(rate, -0.059 + 0.02483 * b, b, 1.1239 + 1.1328 / (b - 3.4), 0.9277 - 3.6224 / (b - 2))

    def draw(self, source: Randomness, context: str, n: int) -> Integers:
        values = np.empty(n)
        missing = np.arange(n)
        for attempt in range(_ATTEMPTS):
            candidates, accepted = self._candidates(source, f"{context}/{attempt}", missing.size)
            values[missing] = candidates
            missing = missing[~accepted]
            if not missing.size:
                return values.astype(np.int64)
        raise PrivacyError(f"Expected random bytes, got a source of which {_ATTEMPTS} draws in a row were rejected.")

    def _candidates(self, source: Randomness, context: str, n: int) -> tuple[Floats, NDArray[np.bool_]]:
        """Return `n` candidates and which of them are accepted."""
        words = np.frombuffer(source.read(16 * n, context), dtype="<u8").reshape(2, n)
        # U in [-1/2, 1/2]: its sign is the first word's top bit, its distance `edge` from +-1/2 that word's low 52
        # bits and the second word's low 12, so that small distances have all the digits of a float.
        edge = (words[1] & _LOW_12).astype(np.float64)
        edge += 0.5
        edge *= 2.0**-12
        edge += (words[0] & _LOW_52).astype(np.float64)
        edge *= 2.0**-53
        u = np.copysign(0.5 - edge, words[0].view(np.float64))
        v = _uniform(words[1])
        values = 2 * self.a / edge
        values += self.b
        values *= u
        values += self.rate - math.floor(self.rate) + 0.43
        np.floor(values, out=values)
        accepted = (edge >= 0.07) & (v <= self.sure)
        unsure = np.flatnonzero(~accepted)
        accepted[unsure] = self._accept(values[unsure], edge[unsure], v[unsure])
        return values, accepted

    def _accept(self, values: Floats, edge: Floats, v: Floats) -> NDArray[np.bool_]:
        """The exact test: is V below probability over hat?"""
        k = values + math.floor(self.rate)
        hat = self.a / edge**2 + self.b
        fits = np.log(v * self.inverse_alpha / hat) <= _log_poisson(np.maximum(k, 0.0), self.rate)
        return fits & (k >= 0)


def _uniform(words: NDArray[np.uint64]) -> Floats:
    """Odd multiples of 2^-53 in (0, 1), symmetric about 1/2, from the top 52 bits of each word."""
    uniform = (words >> np.uint64(12)).astype(np.float64)
    uniform += 0.5
    uniform *= 2.0**-52
    return uniform


# log(k!) - k log(k) + k for k = 0..15, where Stirling's series is not good enough.
_SMALL_FACTORIALS = np.array([math.lgamma(k + 1) - k * math.log(max(k, 1)) + k for k in range(16)])


def _log_poisson(k: Floats, rate: float) -> Floats:
    """Log-probabilities of whole ``k >= 0``, as sums of terms of one sign: no digits cancel."""
    stirling_k = np.maximum(k, 16.0)
    inverse = 1 / stirling_k**2
    series = (1 / 12 - inverse * (1 / 360 - inverse * (1 / 1260 - inverse / 1680))) / stirling_k
    factorial = 0.5 * np.log(2 * math.pi * stirling_k) + series
    small = _SMALL_FACTORIALS[np.minimum(k, 15.0).astype(np.int64)]
    return -_deviance(k, rate) - np.where(k < 16, small, factorial)


def _deviance(k: Floats, rate: float) -> Floats:
    """``k log(k / rate) + rate - k``, by its series about ``k = rate`` where the terms would cancel."""
    gap = k - rate
    v = gap / (k + rate)
    v2 = np.minimum(v * v, 0.01)
    # log(k / rate) = 2 artanh(v)
    tail = np.zeros_like(v)
    for power in range(17, 1, -2):
        tail = (tail + 1 / power) * v2
    near = gap * v + 2 * k * v * tail
    far = k * np.log(np.maximum(k, 1.0) / rate) - gap
    return np.where(np.abs(v) < 0.1, near, far)
