"""Buckets: a public split that nobody has to believe, sums of their own under masks, and the noise of each of them.

Partners, agents, keys, ledgers and the coordinator's gathering are real; only what a partner learns from is given.
"""

from __future__ import annotations

import json
import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from bucket_setting import BUCKETED, KNOWN, NAMES
from hypothesis import given
from hypothesis import strategies as st
from plans import PLAN

from shared.buckets import assign, largest_bucket, own_bucket, smallest_bucket
from shared.config import RunConfig, parse_config
from shared.errors import (
    ConfigError,
    PolicyViolationError,
    ProtocolError,
)
from shared.hazmat.fixed_point import round_to_lattice
from shared.hazmat.randomness import SeededRandomness
from shared.privacy import accounting
from shared.privacy.accounting import build_plan
from shared.privacy.lattice import sensitivity

# --- the split ------------------------------------------------------------------------------------


@given(
    names=st.sets(st.text(min_size=1, max_size=8), min_size=9, max_size=40),
    buckets=st.integers(1, 12),
    number=st.integers(1, 99),
)
def test_every_partner_is_in_one_bucket_and_sizes_differ_by_one_at_most(
    names: set[str], buckets: int, number: int
) -> None:
    dealt = assign("run", number, names, buckets)
    assert sorted(name for bucket in dealt for name in bucket) == sorted(names)
    sizes = {len(bucket) for bucket in dealt}
    assert sizes <= {smallest_bucket(len(names), buckets), largest_bucket(len(names), buckets)}
    assert all(list(bucket) == sorted(bucket) for bucket in dealt)


def test_the_split_is_the_same_for_whoever_has_pinned_the_same_names_in_whatever_order() -> None:
    dealt = assign("run", 5, NAMES, 3)
    assert assign("run", 5, reversed(NAMES), 3) == dealt
    for name in NAMES:
        assert name in own_bucket("run", 5, NAMES, 3, name) and own_bucket("run", 5, NAMES, 3, name) in dealt
    with pytest.raises(ProtocolError, match="own name"):
        own_bucket("run", 5, NAMES, 3, "somebody")


def test_the_split_of_a_known_round_is_what_other_versions_and_verifiers_come_to() -> None:
    assert assign("0123456789abcdef", 7, NAMES, 3) == KNOWN


def test_every_round_and_every_run_deals_anew_so_that_any_two_partners_meet_and_part() -> None:
    """Each pair shares a bucket with chance 12 / 45: over 200 rounds from 20 to 90 times but for p < 2e-6 a pair."""
    met = dict.fromkeys(combinations(NAMES, 2), 0)
    for number in range(1, 201):
        for bucket in assign("run", number, NAMES, 3):
            for pair in combinations(bucket, 2):
                met[pair] += 1
    assert min(met.values()) >= 20 and max(met.values()) <= 90
    assert assign("run", 1, NAMES, 3) != assign("other", 1, NAMES, 3)


# --- configuration and plan -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("federation", "private", "told"),
    [
        ({"partners": 10, "buckets": 2}, {}, "buckets must be 1 or at least 3"),
        ({"partners": 8, "buckets": 3}, {}, "buckets=3 of 8 partners leave fewer than 3"),
        ({"partners": 9, "buckets": 3, "secure_sum": False}, {}, "need masked sums"),
        ({"partners": 9, "buckets": 3, "quorum": 9}, {}, "quorum=9 must be from 3 to 3: of each bucket"),
        ({"partners": 12, "buckets": 3, "quorum": 2}, {}, "quorum=2 must be from 3 to 4"),
        ({"partners": 12, "buckets": 3, "quorum": 3}, {"colluders": 2}, "above half of a bucket's 4 and all"),
        ({"partners": 10, "buckets": 3}, {"colluders": 2}, "above half of a bucket's 4 and all"),
        ({"partners": 10, "combine": "median"}, {}, "combine=median needs federation.buckets"),
    ],
)
def test_buckets_that_cannot_be_are_refused_by_name(
    federation: dict[str, Any], private: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        parse_config(json.dumps({"federation": federation, "privacy": private}))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"buckets": 0}, "buckets >= 1"),
        ({"buckets": 2}, "buckets must be 1 or at least 3"),
        ({"buckets": 4}, "leave fewer than 3"),
        ({"masked": False}, "need masked sums"),
        ({"survivors": 4}, "the smallest bucket, got 4"),
        ({"survivors": 2, "colluders": 0}, "the smallest bucket, got 2"),
        ({"colluders": 2}, "two different sums of one bucket could be opened"),
    ],
)
def test_a_plan_with_buckets_that_protect_nobody_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(PolicyViolationError, match=told):
        replace(BUCKETED, **changes)


def test_the_quorum_of_a_plan_with_buckets_is_that_of_each_of_them() -> None:
    config = parse_config(
        '{"federation": {"partners": 10, "buckets": 3}, "privacy": {"mode": "none", "population": 9}}'
    )
    plan = build_plan(config)
    assert (plan.buckets, plan.survivors, plan.largest_cohort, config.federation.least) == (3, 3, 4, 9)
    five = parse_config('{"federation": {"partners": 20, "buckets": 5, "quorum": 3}}').federation
    assert (five.survivors, five.least) == (3, 9)


def test_without_buckets_every_text_and_every_digest_is_that_of_earlier_versions() -> None:
    """Ledgers, run ids and requests hang on them."""
    assert PLAN.digest() == "004b41cbbc5894f69cc8097e93a51cf5eebcf19b0cabe06a135c4fec376c5c50"
    assert "buckets" not in PLAN.told() and BUCKETED.told()["buckets"] == 3
    assert "buckets" not in RunConfig().model_dump_json() and "combine" not in RunConfig().model_dump_json()
    several = parse_config('{"federation": {"partners": 10, "buckets": 3, "combine": "median"}}')
    assert parse_config(several.model_dump_json()) == several


# --- what one user moves --------------------------------------------------------------------------


def occupancies(k: int) -> list[tuple[int, ...]]:
    """All ways in which k partners of one user can fall into buckets: partitions of k."""

    def parts(left: int, most: int) -> list[tuple[int, ...]]:
        return [()] if not left else [(j, *rest) for j in range(min(left, most), 0, -1) for rest in parts(left - j, j)]

    return parts(k, k)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_a_user_in_several_buckets_moves_their_vector_by_no_more_than_is_billed(k: int) -> None:
    """Both worlds of the accountant, for every way in which the user's partners can fall into buckets."""
    for split in occupancies(k):
        together = math.sqrt(sum((j / k) ** 2 for j in split))  # partner's clips add up in a bucket, in units of C
        assert together <= 1 + 1e-12
        for j in split:  # the noise of a bucket in as many parts as it has of the user's partners, in units of z C
            assert math.sqrt(1 / j) >= math.sqrt(1 / k) - 1e-12


def test_the_billed_epsilon_is_above_that_of_every_way_into_buckets() -> None:
    """PLD of what an adversary sees of a user at two partners, in one bucket or in two, sampled together or not."""
    plan = replace(BUCKETED, partners_per_user=2, prior_noise_multiplier=None, rounds=4, noise_multiplier=1.0)
    billed, q, z = accounting._coarse(plan), plan.sampling_rate, plan.noise_multiplier
    seen = {
        "one bucket, together": (q, z, 4),
        "two buckets, together": (q, z * math.sqrt(2), 4),  # moves (C/2, C/2), noise z C in both
        "one bucket, independently": (q, z * math.sqrt(2), 8),  # two parts of half the variance, C/2 in each
        "two buckets, independently": (q, z * 2, 8),  # all of the noise for each, C/2 in each
    }
    spent = {case: accounting._pld((event,), plan.delta, 1e-3) for case, event in seen.items()}
    assert billed >= max(spent.values())
    assert spent["two buckets, together"] < spent["one bucket, together"]
    assert spent["two buckets, independently"] < spent["one bucket, independently"]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_with_rounding_too_the_vector_of_buckets_moves_no_further_than_the_sensitivity(k: int) -> None:
    """Every partner of the user is in another bucket; each rounds with a dither that the user does not touch.

    The bound fails for one release with chance 1e-12.
    """
    size, scale, random = 500, 64, np.random.default_rng(k)
    moved = 0.0
    for at in range(k):
        rest = random.normal(size=size) * scale
        own = random.normal(size=size)
        own *= scale / k / np.linalg.norm(own)
        source = SeededRandomness(1, f"partner {at}")
        steps = [round_to_lattice(values, 1.0, source, f"round {at}") for values in (rest, rest + own)]
        moved += float(np.sum((steps[1] - steps[0]).astype(np.float64) ** 2))
    assert scale / k * 0.9 < math.sqrt(moved) <= sensitivity(scale, size, k)
