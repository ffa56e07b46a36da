"""Integer noise: the law of Skellam at every rate, independent where it must be, and bugs that are caught.

Draws are seeded, so that a test that passes once passes always; the chance given with each bound is that of
a correct sampler failing for a seed drawn at random. All checks of this file together: below 1e-3.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from shared.errors import PolicyViolationError, PrivacyError
from shared.hazmat import noise
from shared.hazmat.noise import LARGEST_VARIANCE, skellam
from shared.hazmat.randomness import SeededRandomness, SystemRandomness

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[1] / "vectors" / "hazmat.json").read_text())
Integers = NDArray[np.int64]
Draw = Callable[[str, str], Integers]  # (party, context) -> noise

N = 200_000
D = 2 * noise._BLOCK + 7_000  # three blocks
SMALL = [1.0, 6.0, 20.0, 60.0, 2e3]
LARGE = [2e6, 2e9, 2e12]
CONTEXTS = [
    (party, f"run/{round_number}/{step}/noise")
    for party in ("partner-0", "partner-1", "partner-2")
    for round_number in (1, 2)
    for step in (0, 1)
]


class ContextBlind(SeededRandomness):
    """A planted bug: the same stream whatever the context."""

    def read(self, n: int, context: str) -> bytes:
        return super().read(n, "")


class Stuck:
    """A source that is stuck at one byte."""

    name = "stuck"

    def __init__(self, byte: int) -> None:
        self._byte = bytes([byte])

    def read(self, n: int, context: str) -> bytes:
        return self._byte * n


class Counting(SeededRandomness):
    """Counts the bytes and notes the contexts that are read."""

    def __init__(self) -> None:
        super().__init__(1, "counting")
        self.contexts: list[str] = []
        self.bytes = 0

    def read(self, n: int, context: str) -> bytes:
        self.contexts.append(context)
        self.bytes += n
        return super().read(n, context)


def fits(values: Integers, edges: NDArray[np.float64], cdf: NDArray[np.float64]) -> None:
    """Chi-square over the bins between `edges`; fails a true law with p = 1e-6."""
    observed = np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1)
    expected = len(values) * np.diff(np.concatenate([[0.0], cdf, [1.0]]))
    rare = expected < 20
    # Rare bins make one with the first that is not rare: chi-square needs counts in every bin.
    home = int(np.argmin(rare))
    observed[home] += observed[rare].sum()
    expected[home] += expected[rare].sum()
    observed, expected = observed[~rare], expected[~rare]
    statistic = ((observed - expected) ** 2 / expected).sum()
    assert stats.chi2.sf(statistic, len(expected) - 1) > 1e-6


def check_law(values: Integers, variance: float) -> None:
    """Mean, variance, fourth moment, distribution, parity and lag of Skellam; each bound fails with p <= 1e-6."""
    n, deviation = len(values), math.sqrt(variance)
    z = values / deviation
    assert abs(z.mean()) < 5 / math.sqrt(n)
    assert abs((z**2).mean() - 1) < 5 * math.sqrt((2 + 1 / variance) / n)
    inverse = 1 / variance
    of_fourth = 96 + 204 * inverse + 62 * inverse**2 + inverse**3
    assert abs((z**4).mean() - 3 - inverse) < 5 * math.sqrt(of_fourth / n)
    assert abs(np.mean(z[1:] * z[:-1])) < 5 / math.sqrt(n)
    if variance <= 2e3:
        reach = int(8 * deviation) + 10
        edges = np.arange(-reach, reach) + 0.5
        cdf = np.cumsum(stats.skellam.pmf(np.arange(-reach, reach), variance / 2, variance / 2))
    else:
        edges = np.floor(deviation * stats.norm.ppf(np.arange(1, 256) / 256)) + 0.5
        cdf = stats.norm.cdf(edges / deviation)
        # whole numbers, each as likely as its neighbours: the low bits are uniform
        fits(values % 16, np.arange(15) + 0.5, np.arange(1, 16) / 16)
    fits(values, edges, cdf)


def check_independent(draw: Draw) -> None:
    """No correlation between parties, rounds and steps, nor between the blocks of one draw.

    66 pairs and 12 pairs of blocks at 5.5 standard errors: a correct source fails with p < 4e-6.
    """
    drawn = np.array([draw(party, context) for party, context in CONTEXTS], dtype=np.float64)
    correlations = np.corrcoef(drawn) - np.eye(len(drawn))
    assert np.abs(correlations).max() < 5.5 / math.sqrt(D)
    block = noise._BLOCK
    between = [np.corrcoef(row[:block], row[block : 2 * block])[0, 1] for row in drawn]
    assert np.abs(between).max() < 5.5 / math.sqrt(block)


def seeded(party: str, context: str) -> Integers:
    return skellam(SeededRandomness(7, party), context, D, 2e9)


# --- the law --------------------------------------------------------------------------------------


@pytest.mark.parametrize("variance", SMALL + LARGE)
def test_noise_has_the_law_of_skellam(variance: float) -> None:
    check_law(skellam(SeededRandomness(3, "a"), "law", N, variance), variance)


def test_noise_of_the_system_source_has_the_law_of_skellam() -> None:
    check_law(skellam(SystemRandomness(), "law", N, 2e3), 2e3)


@pytest.mark.parametrize("rate", [0.5, 3.0, 9.99])
def test_small_rates_are_poisson(rate: float) -> None:
    values = noise._Table.of(rate).draw(SeededRandomness(4, "a"), "poisson", N)
    k = np.arange(0, 60)
    fits(values, k + 0.5, stats.poisson.cdf(k, rate))


@pytest.mark.parametrize("rate", [10.0, 10.5, 30.0, 1e3, 1e6 + 0.5])
def test_rates_from_10_on_are_poisson(rate: float) -> None:
    values = noise._Transformed.of(rate).draw(SeededRandomness(4, "a"), "poisson", N) + math.floor(rate)
    k = np.unique(stats.poisson.ppf(np.arange(1, 1000) / 1000, rate))
    fits(values, k + 0.5, stats.poisson.cdf(k, rate))


def test_the_sum_of_shares_is_skellam_of_the_sum_of_variances() -> None:
    shares = [skellam(SeededRandomness(5, f"partner-{i}"), "share", N, 4.0) for i in range(5)]
    check_law(np.sum(shares, axis=0), 20.0)


@pytest.mark.parametrize(("k", "rate", "expected"), VECTORS["log_poisson"]["cases"])
def test_log_probabilities_keep_their_digits_at_any_rate(k: int, rate: float, expected: float) -> None:
    found = float(noise._log_poisson(np.array([float(k)]), rate)[0])
    assert found == pytest.approx(expected, rel=1e-13, abs=1e-13)


# --- independence ---------------------------------------------------------------------------------


def test_noise_differs_between_parties_rounds_steps_and_blocks() -> None:
    check_independent(seeded)


def test_no_context_is_read_twice_and_few_reads_are_made() -> None:
    source = Counting()
    skellam(source, "c", 2 * noise._BLOCK, 2e9)
    assert len(set(source.contexts)) == len(source.contexts) < 40
    assert source.bytes < 2 * 16 * 1.2 * 2 * noise._BLOCK


# --- planted bugs: the checks above can fail ----------------------------------------------------


@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(lambda party, context: skellam(ContextBlind(7, party), context, D, 2e9), id="context ignored"),
        pytest.param(lambda party, context: skellam(SeededRandomness(7, ""), context, D, 2e9), id="one seed for all"),
        pytest.param(lambda party, context: seeded(party, context) + seeded("", "") // 2, id="a part is shared"),
        pytest.param(lambda party, context: np.tile(seeded(party, context)[: noise._BLOCK], 3)[:D], id="block again"),
    ],
)
def test_a_planted_reuse_of_noise_is_caught(broken: Draw) -> None:
    with pytest.raises(AssertionError):
        check_independent(broken)


@pytest.mark.parametrize("variance", [6.0, 60.0, 2e9])
@pytest.mark.parametrize(
    "broken",
    [
        pytest.param(lambda v, n: skellam(SeededRandomness(3, "a"), "law", n, v / 2), id="half the variance"),
        pytest.param(lambda v, n: skellam(SeededRandomness(3, "a"), "law", n, 0.96 * v), id="2 % less deviation"),
        pytest.param(lambda v, n: 2 * skellam(SeededRandomness(3, "a"), "law", n, v / 4), id="even numbers only"),
        pytest.param(
            lambda v, n: np.repeat(skellam(SeededRandomness(3, "a"), "law", n // 2, v), 2), id="every value twice"
        ),
        pytest.param(
            lambda v, n: np.clip(skellam(SeededRandomness(3, "a"), "law", n, v), -int(2 * v**0.5), int(2 * v**0.5)),
            id="tails cut off",
        ),
        pytest.param(
            lambda v, n: skellam(SeededRandomness(3, "a"), "law", n, v) + math.ceil(0.05 * v**0.5), id="not centred"
        ),
    ],
)
def test_a_planted_flaw_in_the_law_is_caught(broken: Callable[[float, int], Integers], variance: float) -> None:
    with pytest.raises(AssertionError):
        check_law(broken(variance, N), variance)


@pytest.mark.parametrize("variance", [6.0, 60.0, 2e9])
def test_one_stream_for_both_poissons_is_caught(monkeypatch: pytest.MonkeyPatch, variance: float) -> None:
    for sampler in (noise._Table, noise._Transformed):
        draw = sampler.draw
        monkeypatch.setattr(sampler, "draw", lambda self, s, c, n, draw=draw: np.tile(draw(self, s, c, n // 2), 2))
    with pytest.raises(AssertionError):
        check_law(skellam(SeededRandomness(3, "a"), "law", N, variance), variance)


@pytest.mark.parametrize(
    "flaw",
    [
        pytest.param(lambda self, values, edge, v: v < 2, id="nothing rejected"),
        pytest.param(lambda self, values, edge, v: v < 0, id="only sure candidates"),
        pytest.param(lambda self, values, edge, v: v <= self.sure, id="the squeeze as the test"),
    ],
)
def test_a_sampler_without_its_exact_test_is_caught(monkeypatch: pytest.MonkeyPatch, flaw: Any) -> None:
    monkeypatch.setattr(noise._Transformed, "_accept", flaw)
    with pytest.raises(AssertionError):
        check_law(skellam(SeededRandomness(3, "a"), "law", N, 2e9), 2e9)


# --- edges ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", VECTORS["own"]["skellam"], ids=lambda case: f"variance {case['variance']:g}")
def test_seeded_draws_are_the_frozen_ones(case: dict[str, Any]) -> None:
    source = SeededRandomness(20261122, "vectors")
    assert skellam(source, "vector", case["n"], case["variance"]).tolist() == case["values"]


@pytest.mark.parametrize("n", [0, 1, 2, 7, noise._BLOCK + 1])
@pytest.mark.parametrize("variance", [0.0, 1e-300, 1.0, 2e9, LARGEST_VARIANCE])
def test_any_number_of_values_can_be_drawn(n: int, variance: float) -> None:
    values = skellam(SystemRandomness(), "c", n, variance)
    assert values.shape == (n,)
    assert values.dtype == np.int64


def test_no_variance_is_no_noise_and_reads_nothing() -> None:
    source = Counting()
    assert not skellam(source, "c", 100, 0.0).any()
    assert source.bytes == 0


@pytest.mark.parametrize("variance", [-1.0, math.nan, math.inf, 2 * LARGEST_VARIANCE])
def test_a_variance_out_of_range_is_refused(variance: float) -> None:
    with pytest.raises(PolicyViolationError, match="Expected 0 <= variance"):
        skellam(SystemRandomness(), "c", 1, variance)


def test_a_stuck_source_is_refused_not_waited_for() -> None:
    with pytest.raises(PrivacyError, match="Expected random bytes"):
        skellam(Stuck(0), "c", 10, 2e9)


@pytest.mark.parametrize("byte", [0x00, 0x7F, 0xFF])
def test_a_table_never_leaves_its_range(byte: int) -> None:
    values = noise._Table.of(9.99).draw(Stuck(byte), "c", 5)
    assert 0 <= values.min() <= values.max() < 60
