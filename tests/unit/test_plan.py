"""The privacy plan: what it refuses, what its shares add up to, and that no data set can show in it."""

from __future__ import annotations

import inspect
import math
from dataclasses import FrozenInstanceError, asdict, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import PLAN

from shared.errors import PolicyViolationError, PrivacyError
from shared.privacy.accounting import build_plan
from shared.privacy.lattice import LARGEST_VECTOR, sensitivity


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"noise_multiplier": 0.0}, "noise_multiplier > 0"),
        ({"noise_multiplier": -1.0}, "noise_multiplier > 0"),
        ({"noise_multiplier": math.nan}, "noise_multiplier > 0"),
        ({"noise_multiplier": math.inf}, "noise_multiplier > 0"),
        ({"prior_noise_multiplier": 0.0}, "noise_multiplier > 0"),
        ({"prior_noise_multiplier": -0.1, "rounds": 0}, "noise_multiplier > 0"),
        ({"prior_noise_multiplier": math.nan}, "noise_multiplier > 0"),
        ({"sampling_rate": 0.0}, "sampling_rate"),
        ({"sampling_rate": 1.01}, "sampling_rate"),
        ({"sampling_rate": math.nan}, "sampling_rate"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"clip_norm": 0.0}, "clip_norm"),
        ({"clip_norm": -0.5}, "clip_norm"),
        ({"clip_norm": math.inf}, "clip_norm"),
        ({"clip_norm": math.nan}, "clip_norm"),
        ({"partners_per_user": 0}, "partners_per_user"),
        ({"colluders": 4, "masked": False}, "colluders"),
        ({"colluders": 5, "masked": False}, "colluders"),
        ({"colluders": -1}, "colluders"),
        ({"survivors": 6}, "survivors"),
        ({"survivors": 0, "masked": False}, "survivors"),
        ({"survivors": 3}, "2 survivors > partners"),
        ({"colluders": 3}, "2 survivors > partners"),
        ({"survivors": 3, "mode": "none"}, "2 survivors > partners"),
        ({"population": 0}, "population"),
        ({"population": 0, "mode": "none"}, "population"),
    ],
)
def test_a_plan_that_protects_nobody_is_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(PolicyViolationError, match=f"Expected.*{told}"):
        replace(PLAN, **changes)


def test_a_refused_plan_is_a_privacy_error() -> None:
    with pytest.raises(PrivacyError):
        replace(PLAN, mode="local", noise_multiplier=0.0)


def test_noise_that_no_stage_uses_is_not_asked_for() -> None:
    assert replace(PLAN, rounds=0, noise_multiplier=0.0).steps == 0
    assert replace(PLAN, prior_noise_multiplier=None).prior_noise_multiplier is None


def test_a_plan_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        PLAN.noise_multiplier = 0.0  # type: ignore[misc]


def test_a_stage_that_the_plan_has_not_is_refused() -> None:
    with pytest.raises(PolicyViolationError, match="Expected a plan with a prior stage"):
        replace(PLAN, prior_noise_multiplier=None).share_variance("prior", 10)


@pytest.mark.parametrize("size", [0, -1, LARGEST_VECTOR + 1])
def test_a_sum_that_the_accountant_does_not_count_on_is_refused(size: int) -> None:
    with pytest.raises(PolicyViolationError, match="Expected a sum of 1 to 16777216 coordinates"):
        PLAN.share_variance("train", size)


@given(
    survivors=st.integers(1, 50),
    colluders=st.integers(0, 49),
    z=st.floats(0.1, 50),
    k=st.integers(1, 5),
    size=st.integers(1, LARGEST_VECTOR),
)
def test_the_shares_of_the_honest_survivors_add_up_to_the_noise_of_the_plan(
    survivors: int, colluders: int, z: float, k: int, size: int
) -> None:
    if colluders >= survivors:
        return
    plan = replace(
        PLAN,
        partners=survivors,
        survivors=survivors,
        colluders=colluders,
        noise_multiplier=z,
        partners_per_user=k,
    )
    honest = survivors - colluders
    for stage, multiplier in (("train", z), ("prior", 1.5)):
        reach = sensitivity(plan.scale(stage), size, k)  # type: ignore[arg-type]
        total = honest * plan.share_variance(stage, size)  # type: ignore[arg-type]
        assert math.sqrt(total) == pytest.approx(multiplier * reach, rel=1e-12)


def test_in_local_mode_every_partner_adds_all_of_the_noise() -> None:
    plan = replace(PLAN, mode="local")
    for stage, multiplier in (("train", 2.0), ("prior", 1.5)):
        reach = sensitivity(plan.scale(stage), 1000, 2)  # type: ignore[arg-type]
        assert plan.share_variance(stage, 1000) == pytest.approx((multiplier * reach) ** 2)  # type: ignore[arg-type]


def test_without_privacy_no_noise_is_asked_for() -> None:
    plan = replace(PLAN, mode="none", noise_multiplier=0.0, prior_noise_multiplier=0.0)
    assert plan.share_variance("train", 10) == plan.share_variance("prior", 10) == 0.0


def test_noise_in_the_unit_of_the_sum_is_that_of_the_clip_norm_and_a_little_for_rounding() -> None:
    honest = PLAN.survivors - PLAN.colluders
    stddev = math.sqrt(honest * PLAN.share_variance("train", 100_000)) * PLAN.step("train")
    assert 2.0 * 0.5 < stddev < 2.0 * 0.5 * 1.001
    stddev = math.sqrt(honest * PLAN.share_variance("prior", 100_000)) * PLAN.step("prior")
    assert 1.5 < stddev < 1.5 * 1.001


def test_the_lattice_depends_on_what_is_declared_and_on_nothing_else() -> None:
    many = replace(PLAN, population=10**6, sampling_rate=0.1)
    assert (many.scale("prior"), many.scale("train")) == (2**10, 2**13)
    assert (many.step("prior"), many.step("train")) == (2.0**-10, 0.5 * 2.0**-13)


def test_what_is_derived_follows_from_the_fields() -> None:
    assert PLAN.steps == 10
    assert replace(PLAN, mode="local", local_steps=3).steps == 30
    assert PLAN.partner_clip_norm == 0.25
    assert PLAN.normaliser == 0.2 * 1000


def test_neither_the_plan_nor_its_builder_can_see_a_data_set() -> None:
    # The rate, the normaliser and the noise of N and of N + 1 users are the same: there is nothing else to read.
    assert list(inspect.signature(build_plan).parameters) == ["config"]
    assert all(isinstance(value, int | float | str) for value in asdict(PLAN).values())


def test_the_digest_tells_any_two_plans_apart() -> None:
    changes: list[dict[str, Any]] = [
        {"mode": "local"},
        {"delta": 1e-6},
        {"sampling_rate": 0.21},
        {"population": 1001},
        {"clip_norm": 0.51},
        {"noise_multiplier": 2.01},
        {"prior_noise_multiplier": None},
        {"rounds": 11},
        {"local_steps": 2},
        {"partners": 6},
        {"survivors": 5},
        {"colluders": 0},
        {"masked": False},
        {"partners_per_user": 1},
        {"max_events": 99},
        {"unit": "event"},
        {"adjacency": "replace-one"},
        {"mechanism": "gaussian"},
        {"accountant": "rdp"},
        {"canaries": 1},
        {"buckets": 3, "partners": 9, "survivors": 3},
    ]
    assert {key for change in changes for key in change} == set(asdict(PLAN))
    digests = {replace(PLAN, **change).digest() for change in changes} | {PLAN.digest()}
    assert len(digests) == len(changes) + 1
    assert replace(PLAN).digest() == PLAN.digest()
