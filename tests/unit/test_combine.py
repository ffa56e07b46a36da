"""Bucket sums become one sum: on one scale, clipped to a public length, moved little by a minority that is poisoned."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from plans import PLAN

from server import combine
from server.combine import BucketSum, Combination, combined, described, limit, noise_left, trimmed
from server.gathering import Gathered
from server.strategy import Run, VeilrecStrategy
from shared.config import RunConfig, parse_config
from shared.privacy.plan import PrivacyPlan

TEN = replace(PLAN, partners=10, survivors=3, buckets=3, partners_per_user=1)
OPEN = replace(TEN, mode="none", noise_multiplier=0.0, prior_noise_multiplier=0.0)
STEP = TEN.step("train")
SIZE = 400


def bucket(number: int, values: NDArray[np.float64], partners: int = 3, plan: PrivacyPlan = OPEN) -> BucketSum:
    """A sum over so many partners, to the nearest lattice step."""
    return BucketSum(number, np.round(values / plan.step("train")).astype(np.int64), partners)


def agreeing(direction: NDArray[np.float64], sizes: tuple[int, ...] = (4, 3, 3)) -> list[BucketSum]:
    """Buckets whose partners all send the same."""
    return [bucket(number, size * direction, size) for number, size in enumerate(sizes)]


def some_direction(length: float = 1.0) -> NDArray[np.float64]:
    direction = np.random.default_rng(1).normal(size=SIZE)
    return direction * length / np.linalg.norm(direction)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-(2**30), 2**30), min_size=3, max_size=7), st.integers(3, 6))
def test_the_plain_sum_of_buckets_is_their_sum(values: list[int], partners: int) -> None:
    """Where nothing is clipped: what would have been opened without buckets."""
    plan = replace(OPEN, population=2**50, buckets=len(values), partners=6 * len(values), survivors=4)
    sums = [BucketSum(at, np.array([value]), partners) for at, value in enumerate(values)]
    total, stddev = combined(sums, plan, "train", "sum")
    assert total[0] == pytest.approx(sum(values) * plan.step("train"), rel=1e-12, abs=1e-9)
    assert stddev == 0.0


@pytest.mark.parametrize("how", ["sum", "median", "trimmed_mean"])
def test_buckets_that_agree_come_to_what_their_plain_sum_is_whatever_their_sizes(how: Combination) -> None:
    direction = some_direction()
    total, _ = combined(agreeing(direction), OPEN, "train", how)
    np.testing.assert_allclose(total, 10 * direction, atol=10 * STEP)


@pytest.mark.parametrize("boost", [1, 10, 100])
@pytest.mark.parametrize("how", ["median", "trimmed_mean"])
def test_one_poisoned_bucket_of_three_moves_the_combination_no_further_than_an_honest_one_lies(
    how: Combination, boost: float
) -> None:
    """Honest buckets differ a little; the third pushes every coordinate the other way, boosted."""
    random, direction = np.random.default_rng(2), some_direction(3.0)
    honest = [3 * direction + random.normal(scale=0.01, size=SIZE) for _ in range(2)]
    poisoned = -3 * boost * direction
    total, _ = combined([bucket(0, honest[0]), bucket(1, honest[1]), bucket(2, poisoned)], OPEN, "train", how)
    low, high = np.minimum(*honest) * 3, np.maximum(*honest) * 3
    assert (low - 10 * STEP <= total).all() and (total <= high + 10 * STEP).all()
    assert np.linalg.norm(total - 9 * direction) < 0.15 * np.linalg.norm(9 * direction)
    plain, _ = combined([bucket(0, honest[0]), bucket(1, honest[1]), bucket(2, poisoned)], OPEN, "train", "sum")
    assert np.linalg.norm(plain - 9 * direction) > 0.6 * np.linalg.norm(9 * direction)  # what no combination does


def test_two_poisoned_of_three_are_too_many_and_two_of_five_are_not() -> None:
    direction = some_direction(2.0)
    good, bad = bucket(0, 3 * direction), bucket(1, -30 * direction)
    lost, _ = combined([good, bad, bad], OPEN, "train", "median")
    assert lost @ direction < 0
    plan = replace(OPEN, partners=15, buckets=5)
    kept, _ = combined([good, bad, good, bad, good], plan, "train", "median")
    np.testing.assert_allclose(kept, 15 * direction, atol=15 * STEP)


@pytest.mark.parametrize(("buckets", "cut"), [(3, 1), (4, 1), (5, 1), (7, 1), (8, 2), (12, 3), (16, 4)])
def test_a_trimmed_mean_leaves_a_quarter_out_at_either_end_and_one_at_least(buckets: int, cut: int) -> None:
    assert trimmed(buckets) == cut
    rows = np.arange(buckets, dtype=np.float64)[:, None] ** 3
    expected = np.mean(sorted(rows[:, 0])[cut : buckets - cut])
    assert combine._combine(rows, "trimmed_mean")[0] == pytest.approx(expected)


def test_a_long_vector_is_combined_in_blocks_that_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = [bucket(at, np.random.default_rng(at).normal(size=SIZE)) for at in range(3)]
    whole, _ = combined(sums, OPEN, "train", "median")
    monkeypatch.setattr(combine, "BLOCK", 7)
    np.testing.assert_array_equal(combined(sums, OPEN, "train", "median")[0], whole)


# --- clipping -------------------------------------------------------------------------------------


def test_the_longest_honest_sum_is_not_clipped_and_what_is_longer_is() -> None:
    """q N0 = 200 users of ten partners: 60 of them in three, all at the clip norm 0.5 and in one direction."""
    longest = 60 * 0.5
    room = limit(bucket(0, some_direction(longest)), OPEN, "train")
    assert longest <= room < longest * 1.01
    sums = [bucket(0, some_direction(longest)), bucket(1, some_direction(100 * longest))]
    assert [line["clipped"] for line in described(sums, OPEN, "train")] == [False, True]
    total, _ = combined(sums, OPEN, "train", "sum")
    assert np.linalg.norm(total) == pytest.approx(2 * longest, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "factor"), [({"mode": "local", "local_steps": 4}, 4.0), ({"clip_norm": 5.0}, 10.0)]
)
def test_the_length_follows_the_plan(changes: dict[str, Any], factor: float) -> None:
    one = BucketSum(0, np.zeros(SIZE, dtype=np.int64), 3)
    plain = replace(OPEN, **({**changes, "mode": "none"}))
    assert limit(one, plain, "train") == pytest.approx(factor * limit(one, OPEN, "train"), rel=0.01)
    assert limit(one, OPEN, "prior") == pytest.approx(1000 * 3 / 10, rel=0.01)
    assert limit(replace(one, partners=4), OPEN, "train") == pytest.approx(limit(one, OPEN, "train") * 4 / 3, rel=1e-3)


@pytest.mark.parametrize("stage", ["prior", "train"])
def test_noise_alone_is_never_clipped(stage: Any) -> None:
    """100 sums of noise; each is too long with chance 3e-7, so that this fails with p < 3e-5."""
    random, stddev = np.random.default_rng(3), math.sqrt(3 * TEN.share_variance(stage, SIZE))
    sums = [BucketSum(0, random.normal(scale=stddev, size=SIZE).astype(np.int64), 3) for _ in range(100)]
    assert not any(line["clipped"] for line in described(sums, TEN, stage))
    assert described(sums[:1], TEN, stage)[0]["norm"] == pytest.approx(
        stddev * TEN.step(stage) * math.sqrt(SIZE), rel=0.2
    )


def test_a_bucket_without_length_stays_what_it_is() -> None:
    nothing = [BucketSum(at, np.zeros(5, dtype=np.int64), 3) for at in range(3)]
    total, _ = combined(nothing, OPEN, "train", "median")
    np.testing.assert_array_equal(total, np.zeros(5))


# --- noise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "how", "variance"),
    [
        (3, "sum", 3.0),
        (3, "median", 1 - math.sqrt(3) / math.pi),
        (5, "median", 0.28683),
        (4, "trimmed_mean", 0.29825),
        (3, "trimmed_mean", 1 - math.sqrt(3) / math.pi),
    ],
)
def test_the_noise_that_is_left_is_that_of_order_statistics(count: int, how: Combination, variance: float) -> None:
    """Variances of medians of normal samples (David, Nagaraja, "Order Statistics", 2003, table 3.2.1)."""
    assert noise_left((2.0,) * count, how) == pytest.approx(2.0 * math.sqrt(variance), rel=0.01)


def test_without_noise_none_is_left() -> None:
    assert noise_left((0.0, 0.0, 0.0), "median") == noise_left((0.0, 0.0, 0.0), "sum") == 0.0


@pytest.mark.parametrize("how", ["sum", "median", "trimmed_mean"])
def test_the_noise_that_is_told_is_the_noise_that_is_there(how: Combination) -> None:
    """Buckets of 4, 3 and 3 with real deviations: 40,000 coordinates, +-2 %, p < 1e-7."""
    size, random = 40_000, np.random.default_rng(4)
    sums = []
    for number, partners in enumerate((4, 3, 3)):
        stddev = math.sqrt(partners * TEN.share_variance("train", size))
        sums.append(BucketSum(number, np.round(random.normal(scale=stddev, size=size)).astype(np.int64), partners))
    total, stddev = combined(sums, TEN, "train", how)
    assert total.std() == pytest.approx(stddev, rel=0.02)


def test_the_strategy_takes_the_combination_that_is_configured_and_records_the_buckets() -> None:
    config = parse_config(
        '{"federation": {"partners": 10, "buckets": 3, "combine": "median"}, "privacy": {"mode": "none"}}'
    )
    assert isinstance(config, RunConfig)
    sums = agreeing(some_direction())
    gathered = Gathered(sum(b.total for b in sums), 10, tuple(range(10)), 0, (), (), tuple(sums))  # type: ignore[arg-type]
    strategy = VeilrecStrategy.__new__(VeilrecStrategy)
    strategy.run, strategy._bytes_down = Run("run", config, OPEN, 5, "digest"), 0
    total, _ = strategy._in_units("train", gathered)
    np.testing.assert_array_equal(total, combined(sums, OPEN, "train", "median")[0])
    record = strategy._record(2, "train", gathered)
    assert [(line["bucket"], line["partners"], line["clipped"]) for line in record["buckets"]] == [
        (0, 4, False),
        (1, 3, False),
        (2, 3, False),
    ]
    assert "buckets" not in strategy._record(2, "train", replace(gathered, buckets=()))
