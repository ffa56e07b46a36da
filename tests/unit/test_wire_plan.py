"""The round plan, from the text that was signed: one spelling, every field, and nothing else."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_setting import ORDER

from shared.errors import PolicyViolationError, ProtocolError
from shared.messages import RoundPlan
from shared.privacy.plan import ADDED_LATER
from shared.wire import parse_plan

TOLD: dict[str, Any] = json.loads(ORDER.text())


def text(told: object) -> str:
    return json.dumps(told, sort_keys=True)


def test_the_text_of_a_plan_carries_every_field() -> None:
    assert set(TOLD["plan"]) == set(asdict(ORDER.plan)) - set(ADDED_LATER)
    assert set(TOLD) == {field.name for field in fields(RoundPlan)}


def test_a_plan_is_read_as_it_was_written() -> None:
    assert parse_plan(ORDER.text()) == ORDER


def test_what_came_later_is_told_where_it_is_asked_for_and_has_one_spelling() -> None:
    audited = replace(ORDER, plan=replace(ORDER.plan, canaries=2))
    assert json.loads(audited.text())["plan"] == {**TOLD["plan"], "canaries": 2}
    assert parse_plan(audited.text()) == audited
    for absent in (0, 0.0, False):
        with pytest.raises(ProtocolError, match="Expected a round plan"):
            parse_plan(text({**TOLD, "plan": {**TOLD["plan"], "canaries": absent}}))


def test_a_plan_keeps_every_digit_of_its_noise() -> None:
    noisy = replace(ORDER.plan, mode="distributed", noise_multiplier=1 / 3, prior_noise_multiplier=2 / 7)
    assert parse_plan(replace(ORDER, plan=noisy).text()).plan == noisy


@pytest.mark.parametrize("key", sorted(TOLD))
def test_a_plan_without_one_of_its_fields_is_refused(key: str) -> None:
    with pytest.raises(ProtocolError, match="Expected a round plan"):
        parse_plan(text({k: v for k, v in TOLD.items() if k != key}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("round", "two"),
        ("round", "2"),
        ("round", 2.0),
        ("round", True),
        ("round", None),
        ("round", 0),
        ("round", float("inf")),
        ("stage", "evaluate"),
        ("stage", []),
        ("config", {"no such section": {}}),
        ("config", {"training": {"rounds": -1}}),
        ("config", {}),
        ("config", []),
        ("config", {**TOLD["config"], "seed": -1}),
        ("plan", {}),
        ("plan", []),
        ("plan", {**TOLD["plan"], "backdoor": True}),
        ("plan", {**TOLD["plan"], "mode": "distributed", "noise_multiplier": "much", "prior_noise_multiplier": 1.0}),
        ("catalogue_digest", 3),
        ("model_digest", None),
        ("backdoor", 1),
    ],
)
def test_a_plan_with_a_wrong_field_is_refused(key: str, value: object) -> None:
    with pytest.raises(ProtocolError, match="Expected a round plan"):
        parse_plan(text({**TOLD, key: value}))


@pytest.mark.parametrize(
    "other",
    [
        json.dumps(TOLD, sort_keys=True, indent=1),
        json.dumps(TOLD, sort_keys=True, separators=(",", ":")),
        json.dumps(dict(reversed(TOLD.items()))),
        ORDER.text() + "\n",
        " " + ORDER.text(),
        ORDER.text().replace('"run"', '"\\u0072un"'),
        ORDER.text().replace('"stage": "train"', '"stage": "prior", "stage": "train"'),
        ORDER.text().replace('"round": 2', '"round": 2.0'),
    ],
    ids=["indented", "tight", "unsorted", "line feed", "space", "escaped", "twice", "float"],
)
def test_a_plan_that_is_spelled_otherwise_is_refused(other: str) -> None:
    """One plan has one text: else one signed request could be shown as two."""
    assert json.loads(other) == TOLD
    with pytest.raises(ProtocolError, match="in the form that"):
        parse_plan(other)


@pytest.mark.parametrize("other", ["", "{", "null", "[]", "3", '"plan"', "NaN", "[" * 100_000])
def test_a_plan_that_is_no_json_object_is_refused(other: str) -> None:
    with pytest.raises(ProtocolError):
        parse_plan(other)


def test_a_plan_without_noise_in_a_private_mode_is_refused_by_name() -> None:
    silent = {**TOLD["plan"], "mode": "distributed", "noise_multiplier": 0.0, "prior_noise_multiplier": 1.0}
    with pytest.raises(PolicyViolationError):
        parse_plan(text({**TOLD, "plan": silent}))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_any_json_is_refused_in_one_way(value: object) -> None:
    with pytest.raises(ProtocolError):
        parse_plan(text(value))


@given(st.sampled_from(sorted(TOLD)), json_values)
def test_any_value_of_any_field_is_read_or_refused_in_one_way(key: str, value: object) -> None:
    try:
        plan = parse_plan(text({**TOLD, key: value}))
    except ProtocolError:
        return
    assert plan.text() == text({**TOLD, key: value})


@given(st.sampled_from(sorted(TOLD["plan"])), json_values)
def test_any_value_of_any_field_of_the_mechanism_is_read_or_refused_in_one_way(key: str, value: object) -> None:
    mechanism = {**TOLD["plan"], "mode": "distributed", "noise_multiplier": 1.0, "prior_noise_multiplier": 1.0}
    try:
        plan = parse_plan(text({**TOLD, "plan": {**mechanism, key: value}}))
    except (ProtocolError, PolicyViolationError):
        return
    # What it says need not be sensible: the agent compares it with the plan that it makes itself.
    assert isinstance(plan, RoundPlan)
