"""The lattice: room for everybody's sum, and how far rounding lets one user move it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from shared.privacy.lattice import LARGEST_SCALE, LARGEST_VECTOR, ROUNDING_FAILURE, scale_for, sensitivity


@given(st.floats(0.0, 1e12))
def test_the_scale_is_a_power_of_two_that_leaves_half_of_the_ring(users: float) -> None:
    scale = scale_for(users)
    assert scale & (scale - 1) == 0 and 1 <= scale <= LARGEST_SCALE
    if users <= 2**30:
        assert scale * users <= 2**30
    if scale < LARGEST_SCALE and users < 2**29:
        assert 2 * scale * users > 2**30  # and is no coarser than it has to be


@pytest.mark.parametrize(
    ("users", "scale"), [(0, 2**16), (2**14, 2**16), (2**14 + 1, 2**15), (10**6, 2**10), (2**30, 1), (1e12, 1)]
)
def test_the_scale_by_hand(users: float, scale: int) -> None:
    assert scale_for(users) == scale


@given(scale=st.sampled_from([2**bits for bits in range(17)]), size=st.integers(1, LARGEST_VECTOR), k=st.integers(1, 8))
def test_rounding_can_only_add_to_what_a_user_moves(scale: int, size: int, k: int) -> None:
    reach = sensitivity(scale, size, k)
    assert reach > scale
    assert reach <= sensitivity(scale, size + 1, k)
    assert reach < sensitivity(2 * scale, size, k)
    assert reach < sensitivity(scale, size, k + 1)  # the same clip norm, rounded at more partners
    assert reach <= scale + k * (math.sqrt(size) / 2 + math.sqrt(2 * math.log(1 / ROUNDING_FAILURE)) + 1)


def test_at_the_finest_scale_rounding_costs_a_thousandth_of_the_noise() -> None:
    assert sensitivity(LARGEST_SCALE, 300_000, 1) < 1.001 * LARGEST_SCALE
    assert sensitivity(2**10, 300_000, 1) > 1.03 * 2**10


def moved(
    add: NDArray[np.float64], rng: np.random.Generator, rounded: Callable[[NDArray[np.float64]], NDArray[np.float64]]
) -> float:
    """How far a user who adds `add` moves one rounded sum of others; the dither is the same with and without."""
    others, dither = 1000 * rng.standard_normal(add.shape), rng.random(add.shape)
    with_, without = rounded(others + add + dither), rounded(others + dither)
    return float(np.linalg.norm(with_ - without))


CONTRIBUTIONS = {
    "one coordinate": lambda size: np.eye(1, size, 0)[0],
    "all alike": lambda size: np.full(size, size**-0.5),
    "half steps": lambda size: np.where(np.arange(size) < min(size, 4096), 1.0, 0.0) / math.sqrt(min(size, 4096)),
}


@pytest.mark.parametrize("shape", CONTRIBUTIONS)
@pytest.mark.parametrize(("scale", "size"), [(1, 100), (32, 10_000), (1024, 100_000)])
def test_no_user_moves_a_rounded_sum_further_than_the_sensitivity(shape: str, scale: int, size: int) -> None:
    # 50 trials at 1e-12 each: false failures have a chance of 5e-11.
    rng = np.random.default_rng(3)
    add = scale * CONTRIBUTIONS[shape](size)
    worst = max(moved(add, rng, np.floor) for _ in range(50))
    assert worst <= sensitivity(scale, size, 1)


def test_the_bound_is_needed_rounding_does_move_a_sum_further_than_the_clip_norm() -> None:
    # Half steps in all coordinates: each is 0 or 1, the squared norm is d/2 where d/4 was clipped.
    rng = np.random.default_rng(3)
    add = np.full(4096, 0.5)
    assert moved(add, rng, np.floor) > 1.3 * np.linalg.norm(add)
    assert moved(add, rng, np.floor) <= sensitivity(32, 4096, 1)


def test_rounding_to_the_nearest_without_dither_could_double_what_a_user_moves() -> None:
    # Why there is a dither: halves that add up from many partners would all be rounded up together.
    add = np.full(4096, 0.5001)
    without_dither = np.linalg.norm(np.rint(add) - np.rint(0 * add))
    assert without_dither > 1.9 * np.linalg.norm(add)


def test_a_user_at_several_partners_moves_the_sum_of_their_rounded_sums_no_further() -> None:
    # 20 trials at 3e-12 each.
    rng = np.random.default_rng(5)
    scale, size, k = 64, 10_000, 3
    part = scale / k * CONTRIBUTIONS["all alike"](size)
    for _ in range(20):
        total = np.zeros(size)
        for _ in range(k):
            others, dither = 100 * rng.standard_normal(size), rng.random(size)
            total += np.floor(others + part + dither) - np.floor(others + dither)
        assert np.linalg.norm(total) <= sensitivity(scale, size, k)
