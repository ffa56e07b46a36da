"""Randomness: uniform, independent where it must be, and never replayed outside a simulation.

Draws are seeded, so that a test that passes once passes always; the chance given with each bound is that of a
correct source failing for a seed drawn at random. The law of the noise is in `test_hazmat_noise`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from shared.errors import PolicyViolationError
from shared.hazmat.randomness import Randomness, SeededRandomness, SystemRandomness, randomness_for, uniforms

Stream = Callable[[str, str], bytes]  # (party, context) -> D words
D = 40_000
CONTEXTS = [
    (party, f"run/{round_number}/{step}/noise")
    for party in ("partner-0", "partner-1", "partner-2")
    for round_number in (1, 2)
    for step in (0, 1)
]
VECTOR = "e7682cc720503e21"


class ContextBlind(SeededRandomness):
    """A planted bug: the same stream whatever the round."""

    def read(self, n: int, context: str) -> bytes:
        return super().read(n, "")


def words(stream: bytes) -> NDArray[np.float64]:
    """Uniforms in [0, 1) from 32 bits each."""
    return np.frombuffer(stream, dtype="<u4").astype(np.float64) * 2.0**-32


def check_independent(stream: Stream) -> None:
    """No correlation between any two of parties, rounds and steps, nor within one at lag 1 or half a stream apart.

    66 pairs and 24 lags at 5.5 standard errors: a correct source fails with p < 4e-6.
    """
    drawn = np.array([words(stream(party, context)) for party, context in CONTEXTS])
    correlations = np.corrcoef(drawn) - np.eye(len(drawn))
    assert np.abs(correlations).max() < 5.5 / np.sqrt(D)
    for lag in (1, D // 2):
        lagged = [np.corrcoef(row[:-lag], row[lag:])[0, 1] for row in drawn]
        assert np.abs(lagged).max() < 5.5 / np.sqrt(D - lag)


def seeded(party: str, context: str) -> bytes:
    return SeededRandomness(7, party).read(4 * D, context)


@pytest.mark.parametrize("source", [SeededRandomness(3, "a"), SystemRandomness()], ids=["seeded", "system"])
def test_bytes_are_uniform(source: Randomness) -> None:
    # The system's are not seeded: this fails once in a million runs.
    counts = np.bincount(np.frombuffer(source.read(400_000, "c"), dtype=np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-6


def test_streams_of_parties_rounds_and_steps_are_not_correlated() -> None:
    check_independent(seeded)


def test_streams_of_the_system_source_are_not_correlated() -> None:
    check_independent(lambda party, context: SystemRandomness().read(4 * D, context))  # fails with p < 4e-6


def test_seeds_give_different_streams() -> None:
    one, other = (words(SeededRandomness(seed, "p").read(4 * D, "c")) for seed in (1, 2))
    assert abs(np.corrcoef(one, other)[0, 1]) < 5 / np.sqrt(D)  # p < 6e-7


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(lambda party, context: ContextBlind(7, party).read(4 * D, context), id="seed reused over rounds"),
        pytest.param(lambda party, context: SeededRandomness(7, "all").read(4 * D, context), id="one seed for all"),
        pytest.param(lambda party, context: seeded(party, context)[: 4 * (D // 2)] * 2, id="a stream that repeats"),
        pytest.param(
            lambda party, context: np.repeat(np.frombuffer(seeded(party, context), "<u4")[::2], 2).tobytes(),
            id="every word twice",
        ),
    ],
)
def test_a_planted_reuse_of_bytes_is_caught(broken: Stream) -> None:
    with pytest.raises(AssertionError):
        check_independent(broken)


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
