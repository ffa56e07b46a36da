"""Fixed point: unbiased rounding, and ring arithmetic that cannot overflow.

Draws are seeded; the chance given with a bound is that of correct code failing for a seed drawn at random.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.errors import PolicyViolationError, SensitivityError
from shared.hazmat import fixed_point
from shared.hazmat.fixed_point import LARGEST_ROUNDED, from_ring, limit_sum, room, round_to_lattice, to_ring
from shared.hazmat.noise import skellam
from shared.hazmat.randomness import SeededRandomness

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "hazmat.json").read_text())
SOURCE = SeededRandomness(11, "fixed point")
N = 100_000
EXTREMES = np.array([2**62, -(2**62), np.iinfo(np.int64).max, np.iinfo(np.int64).min], dtype=np.int64)


class NoDither(SeededRandomness):
    """A planted bug: the dither is always 1/2, values are rounded to the nearest step."""

    def read(self, n: int, context: str) -> bytes:
        return b"\0\0\0\0\0\0\0\x80" * (n // 8)


def check_unbiased(source: SeededRandomness) -> None:
    """The mean of many roundings is the value; 5 standard errors, p < 6e-7 for each of 4 values."""
    for value in (0.3, -0.3, 7.01, -123.999):
        steps = round_to_lattice(np.full(N, value), 1.0, source, f"unbiased {value}")
        fraction = value - math.floor(value)
        assert abs(steps.mean() - value) < 5 * math.sqrt(fraction * (1 - fraction) / N)


def sum_in_ring(parts: list[NDArray[np.int64]], parties: int) -> NDArray[np.int64]:
    return from_ring(np.sum([to_ring(part, parties) for part in parts], axis=0, dtype=np.uint32))


# --- rounding -------------------------------------------------------------------------------------


def test_rounding_gives_the_frozen_steps() -> None:
    case = VECTORS["own"]["lattice"]
    source = SeededRandomness(20261122, "vectors")
    assert round_to_lattice(np.array(case["values"]), case["step"], source, "vector").tolist() == case["steps"]


def test_rounding_is_unbiased() -> None:
    check_unbiased(SOURCE)


def test_rounding_without_dither_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_unbiased(NoDither(0, ""))


def test_the_dither_does_not_depend_on_the_values() -> None:
    """Shifting by whole steps shifts the result: the same u, whatever the data."""
    values = np.linspace(-5, 5, N)
    assert np.array_equal(
        round_to_lattice(values + 2**20, 1.0, SOURCE, "c") - 2**20,
        round_to_lattice((values + 2**20) - 2**20, 1.0, SOURCE, "c"),
    )


def test_dithers_of_two_contexts_are_not_correlated() -> None:
    """5 standard errors: p < 6e-7."""
    a, b = (round_to_lattice(np.full(N, 0.5), 1.0, SOURCE, context) for context in ("a", "b"))
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / math.sqrt(N)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(SensitivityError, match="Expected finite values"):
        round_to_lattice(np.array([0.0, bad]), 1.0, SOURCE, "c")


@pytest.mark.parametrize("step", [0.0, -1.0, math.nan, math.inf])
def test_a_step_that_is_no_length_is_refused(step: float) -> None:
    with pytest.raises(SensitivityError, match="Expected a finite lattice step"):
        round_to_lattice(np.array([0.0]), step, SOURCE, "c")


def test_values_beyond_the_largest_are_clamped_even_if_the_quotient_is_infinite() -> None:
    steps = round_to_lattice(np.array([1e300, -1e300, 1e25]), 1e-300, SOURCE, "c")
    assert steps.tolist() == [LARGEST_ROUNDED, -LARGEST_ROUNDED, LARGEST_ROUNDED]


# --- the ring -------------------------------------------------------------------------------------


@pytest.mark.parametrize("parties", [1, 2, 3, 50])
def test_no_values_whatever_overflow_the_sum(parties: int) -> None:
    total = sum_in_ring([EXTREMES] * parties, parties)
    assert total.tolist() == [sign * parties * room(parties) for sign in (1, -1, 1, -1)]


def test_a_ring_without_room_for_all_parties_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fixed_point, "room", lambda parties: 2**31 - 1)
    total = sum_in_ring([EXTREMES] * 2, 2)
    assert np.sign(total).tolist() != [1, -1, 1, -1]


def test_a_limited_sum_and_its_noise_are_not_clamped() -> None:
    """Fails if a noise share exceeds 21 standard deviations: p < 1e-90."""
    parties, variance = 50, 1e12
    sums = limit_sum(np.full(N, 2**62), parties)
    noise = skellam(SOURCE, "noise", N, variance)
    assert np.array_equal(from_ring(to_ring(sums + noise, parties)), sums + noise)


def test_limiting_brings_no_two_sums_further_apart() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(-(2**33), 2**33, N)
    b = a + rng.integers(-100, 101, N)
    apart = np.abs(limit_sum(a, 3) - limit_sum(b, 3))
    assert (apart <= np.abs(a - b)).all()
    assert (apart < np.abs(a - b)).any()


@pytest.mark.parametrize("parties", [0, -1])
def test_a_sum_of_nobody_is_refused(parties: int) -> None:
    with pytest.raises(PolicyViolationError, match="Expected parties >= 1"):
        to_ring(np.zeros(1, dtype=np.int64), parties)


def test_from_ring_reads_the_whole_range() -> None:
    total = np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 1], dtype=np.uint32)
    assert from_ring(total).tolist() == [0, 1, 2**31 - 1, -(2**31), -1]
