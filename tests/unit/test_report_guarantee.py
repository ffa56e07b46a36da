"""What a report says about the reach of epsilon: the worse case wherever the run is silent."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import SchemaError
from simulations.report.guarantee import guessing_bound, headline, notices, statements
from simulations.report.source import Fields, Run, check_run

UNMASKED = "The sum was not masked"
SEEDED = "Simulation: the noise can be reproduced"
OBSERVERS = "Against whom it holds"


def run_with(engine: str | None = None, **privacy: object) -> Run:
    kept: dict[str, Any] = {"mode": "distributed", "epsilon": 3.0, "delta": 1e-6} | privacy
    return check_run(Fields({"engine": engine, "privacy": kept}, "run.json"))


def told(run: Run) -> dict[str, str]:
    found = {statement.name: statement.text for statement in statements(run)}
    return found | {notice.name: notice.text for notice in notices(run)}


@pytest.mark.parametrize(
    ("privacy", "warned"),
    [
        ({"masked": False}, True),
        ({}, True),
        ({"masked": True}, False),
        ({"mode": "local", "masked": False}, False),
    ],
)
def test_sum_counts_as_not_masked_unless_the_run_says_so(privacy: dict[str, Any], warned: bool) -> None:
    found = told(run_with(**privacy))
    assert (UNMASKED in found) is warned
    assert ("Not against the server" in found[OBSERVERS]) is warned


def test_unmasked_sum_tells_that_a_single_vector_has_less_noise_and_how_much() -> None:
    text = told(run_with(survivors=6, colluders=2))[UNMASKED]
    assert "Epsilon = 3 holds for the released models, against those who see only the sum." in text
    assert "only that partner's share (50 % of the standard deviation by this plan)" in text
    assert "the epsilon against them is larger than stated." in text


@pytest.mark.parametrize("plan", [{}, {"survivors": 1}, {"survivors": 2, "colluders": 3}])
def test_share_of_the_noise_is_left_out_where_the_plan_does_not_say(plan: dict[str, Any]) -> None:
    assert "only that partner's share, and so" in told(run_with(**plan))[UNMASKED]


@pytest.mark.parametrize(
    ("colluders", "expected"),
    [
        (None, "against partners, epsilon may be larger than stated"),
        (0, "against a partner epsilon is larger than stated"),
        (2, "when up to 2 of them do so together"),
    ],
)
def test_partners_that_subtract_their_own_noise_are_told_of(colluders: int | None, expected: str) -> None:
    assert expected in told(run_with(masked=True, colluders=colluders))[OBSERVERS]


@pytest.mark.parametrize(("randomness", "warned"), [("seeded", True), (None, True), ("system", False)])
def test_noise_counts_as_reproducible_unless_the_run_says_it_was_secret(randomness: str | None, warned: bool) -> None:
    found = told(run_with(randomness=randomness))
    assert (SEEDED in found) is warned
    assert ("protects nobody's real data" in found.get(SEEDED, "")) is warned


def test_run_without_privacy_has_one_severe_notice_and_promises_nothing() -> None:
    run = run_with(mode="none", warnings=["x"])
    assert [notice.severe for notice in notices(run)] == [True]
    assert statements(run) == []
    assert headline(run) == "no privacy"


def test_warnings_of_the_run_are_repeated() -> None:
    texts = [notice.text for notice in notices(run_with(masked=True, randomness="system", warnings=["a", "b"]))]
    assert texts == ["a", "b"]


@pytest.mark.parametrize(
    ("privacy", "expected"),
    [
        ({"unit": "event"}, "The unit of privacy is: event."),
        ({}, "A person who is known to several partners is protected less than stated."),
        ({"partners_per_user": 1}, "known to at most one partner;"),
        ({"partners_per_user": 3}, "known to at most 3 partners;"),
    ],
)
def test_unit_says_who_is_protected(privacy: dict[str, Any], expected: str) -> None:
    assert expected in told(run_with(**privacy))["Who is protected"]


def test_terms_that_the_run_does_not_name_are_left_out() -> None:
    optional = {"Compared with what", "How it was computed", "The collaborative prior", "Where it ran"}
    assert not optional & set(told(run_with()))
    named = run_with(engine="ray", adjacency="add-or-remove", accountant="pld", prior_epsilon=1.0)
    assert optional <= set(told(named))


def test_who_adds_the_noise_depends_on_the_mode() -> None:
    assert "a share of the noise" in told(run_with())["Who adds the noise"]
    assert "the whole noise itself" in told(run_with(mode="local"))["Who adds the noise"]


def test_negative_epsilon_of_the_prior_is_an_error() -> None:
    with pytest.raises(SchemaError, match=r"privacy\.prior_epsilon of run\.json"):
        statements(run_with(prior_epsilon=-1))


def test_guessing_bound_is_told_rounded_up() -> None:
    assert "right at most 95.26 % of the time" in told(run_with())["What epsilon means"]


@given(st.floats(0, 30), st.floats(0, 1))
def test_guessing_bound_is_the_crossing_of_both_error_constraints(epsilon: float, delta: float) -> None:
    error = (1 - delta) / (1 + math.exp(epsilon))
    assert guessing_bound(epsilon, delta) == pytest.approx(1 - error, abs=1e-12)
    assert guessing_bound(math.inf, delta) == 1.0
