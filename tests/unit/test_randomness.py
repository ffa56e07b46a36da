"""Randomness: uniform, normal, independent where it must be, and never replayed outside a simulation.

Draws are seeded, so that a test that passes once passes always; the chance given with each bound is that
of a correct source failing for a seed drawn at random. The one unseeded draw fails with p < 3e-6.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from shared.errors import PolicyViolationError
from shared.hazmat.randomness import (
    Randomness,
    SeededRandomness,
    SystemRandomness,
    gaussian,
    randomness_for,
    uniforms,
)

Draw = Callable[[str, str], NDArray[np.float64]]  # (party, context) -> noise
D = 40_000
CONTEXTS = [
    (party, f"run/{round_number}/{step}/noise")
    for party in ("partner-0", "partner-1", "partner-2")
    for round_number in (1, 2)
    for step in (0, 1)
]


class ConstantBytes:
    """A source that is stuck at one byte."""

    name = "stuck"

    def __init__(self, byte: int) -> None:
        self._byte = bytes([byte])

    def read(self, n: int, context: str) -> bytes:
        return self._byte * n


class ContextBlind(SeededRandomness):
    """A planted bug: the same stream whatever the round."""

    def read(self, n: int, context: str) -> bytes:
        return super().read(n, "")


def check_normal(values: NDArray[np.float64], stddev: float) -> None:
    """Mean, deviation, fourth moment and law of N(0, stddev^2); each bound fails a true normal with p < 1e-6."""
    z, n = values / stddev, len(values)
    assert abs(z.mean()) < 5 / np.sqrt(n)
    assert abs(z.std() - 1) < 5 / np.sqrt(2 * n)
    assert abs(stats.kurtosis(z)) < 5 * np.sqrt(24 / n)
    assert stats.kstest(z, "norm").pvalue > 1e-6


def check_independent(draw: Draw) -> None:
    """No correlation between any two of parties, rounds and steps, nor at lag 1 within one.

    66 pairs and 12 lags at 5.5 standard errors: a correct source fails with p < 4e-6.
    """
    noise = np.array([draw(party, context) for party, context in CONTEXTS])
    correlations = np.corrcoef(noise) - np.eye(len(noise))
    assert np.abs(correlations).max() < 5.5 / np.sqrt(D)
    lagged = [np.corrcoef(row[:-1], row[1:])[0, 1] for row in noise]
    assert np.abs(lagged).max() < 5.5 / np.sqrt(D)


def seeded(party: str, context: str) -> NDArray[np.float64]:
    return gaussian(SeededRandomness(7, party), context, D, 2.5)


@pytest.mark.parametrize("source", [SeededRandomness(3, "a"), SystemRandomness()], ids=["seeded", "system"])
def test_noise_is_normal_with_the_asked_deviation(source: Randomness) -> None:
    check_normal(gaussian(source, "c", 200_001, 0.37), 0.37)


def test_the_two_halves_of_a_box_muller_draw_are_not_correlated() -> None:
    values = gaussian(SeededRandomness(3, "a"), "c", 2 * D, 1.0)
    assert abs(np.corrcoef(values[:D], values[D:])[0, 1]) < 5 / np.sqrt(D)
    assert abs(np.corrcoef(values[:D] ** 2, values[D:] ** 2)[0, 1]) < 5 / np.sqrt(D)


def test_noise_differs_between_parties_rounds_and_steps() -> None:
    check_independent(seeded)


def test_seeds_give_different_noise() -> None:
    a, b = (gaussian(SeededRandomness(seed, "p"), "c", D, 1.0) for seed in (1, 2))
    assert abs(np.corrcoef(a, b)[0, 1]) < 5 / np.sqrt(D)


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(
            lambda party, context: gaussian(ContextBlind(7, party), context, D, 2.5), id="seed reused across rounds"
        ),
        pytest.param(
            lambda party, context: gaussian(SeededRandomness(7, "all"), context, D, 2.5), id="one seed for all partners"
        ),
        pytest.param(
            lambda party, context: seeded(party, context) + 0.5 * seeded("", ""), id="a part of the noise is shared"
        ),
        pytest.param(
            lambda party, context: np.repeat(gaussian(SeededRandomness(7, party), context, D // 2, 2.5), 2),
            id="every value twice",
        ),
    ],
)
def test_a_planted_reuse_of_noise_is_caught(broken: Draw) -> None:
    with pytest.raises(AssertionError):
        check_independent(broken)


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(lambda z: 0.97 * z, id="3 % too little"),
        pytest.param(lambda z: np.clip(z, -2, 2), id="cut off"),
        pytest.param(np.sign, id="two values"),
        pytest.param(lambda z: z + 0.05, id="not centred"),
    ],
)
def test_a_planted_flaw_in_the_law_of_the_noise_is_caught(
    broken: Callable[[NDArray[np.float64]], NDArray[np.float64]],
) -> None:
    with pytest.raises(AssertionError):
        check_normal(broken(gaussian(SeededRandomness(3, "a"), "c", 200_001, 1.0)), 1.0)


@pytest.mark.parametrize("n", [0, 1, 2, 7])
def test_any_number_of_values_can_be_drawn(n: int) -> None:
    assert gaussian(SystemRandomness(), "c", n, 1.0).shape == (n,)


@pytest.mark.parametrize("byte", [0x00, 0xFF])
def test_a_stuck_source_still_gives_finite_values_below_8_6_deviations(byte: int) -> None:
    values = gaussian(ConstantBytes(byte), "c", 6, 1.0)
    assert np.isfinite(values).all()
    assert np.abs(values).max() < 8.6


def test_the_system_source_never_repeats_itself() -> None:
    source = SystemRandomness()
    assert source.name == "system"
    assert len({source.read(16, "same context") for _ in range(100)}) == 100


def test_a_seeded_source_is_shake_256_of_seed_party_and_context() -> None:
    source = SeededRandomness(5, "partner-1")
    expected = hashlib.shake_256(b"veilrec simulation\x005\x00partner-1\x00run/1/0/noise").digest(40)
    assert source.name == "seeded"
    assert source.read(40, "run/1/0/noise") == expected
    assert expected[:8].hex() == VECTOR


VECTOR = "e7682cc720503e21"


def test_only_a_simulation_may_name_a_seed() -> None:
    assert isinstance(randomness_for(seed=0, simulation=True, party="p"), SeededRandomness)
    assert isinstance(randomness_for(seed=None, simulation=True, party="p"), SystemRandomness)
    assert isinstance(randomness_for(seed=None, simulation=False, party="p"), SystemRandomness)
    with pytest.raises(PolicyViolationError, match="seeded noise protects nobody"):
        randomness_for(seed=0, simulation=False, party="p")


def test_uniforms_are_uniform_on_0_to_1() -> None:
    names = tuple(f"user-{k}" for k in range(50_000))
    values = uniforms(SeededRandomness(1, "p"), "c", names)
    assert values.min() >= 0 and values.max() < 1
    assert stats.kstest(values, "uniform").pvalue > 1e-6


def test_the_uniform_of_a_name_depends_neither_on_order_nor_on_other_names() -> None:
    source = SeededRandomness(1, "p")
    together = dict(zip("abcde", uniforms(source, "c", tuple("abcde")), strict=True))
    reordered = dict(zip("edcba", uniforms(source, "c", tuple("edcba")), strict=True))
    assert together == reordered
    assert uniforms(source, "c", ("c",))[0] == together["c"]
    assert uniforms(source, "other context", ("c",))[0] != together["c"]
    assert uniforms(source, "c", ()).shape == (0,)


def test_uniforms_of_the_system_source_have_a_fresh_key_each_time() -> None:
    source = SystemRandomness()
    assert uniforms(source, "c", ("a",))[0] != uniforms(source, "c", ("a",))[0]
