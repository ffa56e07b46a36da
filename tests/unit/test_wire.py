"""The wire: what may cross, and what happens to everything else."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import asdict, fields, replace
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from shared.config import PrivacyConfig, RunConfig, TrainingConfig
from shared.errors import PolicyViolationError, ProtocolError
from shared.messages import ClippedSum, NoisedSum, RoundPlan
from shared.model.prior import CollaborativePrior
from shared.privacy.accounting import build_plan
from shared.wire import (
    ERROR,
    PARAMETERS,
    PLAN,
    UPDATE,
    error_name,
    pack_error,
    pack_round,
    pack_update,
    payload_bytes,
    unpack_round,
    unpack_update,
)

CONFIG = RunConfig(
    training=TrainingConfig(rounds=2),
    privacy=PrivacyConfig(mode="none", population=10),
)
ROUND = RoundPlan("run", 2, "train", CONFIG, build_plan(CONFIG), "digest")
PARAMETERS_OF_3 = np.array([0.5, -1.25, 3.0], dtype=np.float32)
PRIOR = CollaborativePrior(np.arange(2, dtype=np.float32), item_to_item=np.eye(2, dtype=np.float32))
TOLD: dict[str, Any] = json.loads(str(pack_round(ROUND)[PLAN]["json"]))


def arrays(array: np.ndarray[Any, Any], name: str = "flat") -> ArrayRecord:
    return ArrayRecord(OrderedDict({name: Array(array)}))


def told(text: str) -> RecordDict:
    return RecordDict({PLAN: ConfigRecord({"json": text})})


# --- to a partner ---------------------------------------------------------------------------------


def test_a_round_plan_comes_out_as_it_went_in() -> None:
    plan, parameters, prior = unpack_round(pack_round(ROUND, PARAMETERS_OF_3, PRIOR))
    assert plan == ROUND
    assert parameters is not None and prior is not None
    np.testing.assert_array_equal(parameters, PARAMETERS_OF_3)
    for name, array in PRIOR.arrays().items():
        np.testing.assert_array_equal(prior.arrays()[name], array)


def test_a_private_plan_keeps_every_digit_of_its_noise() -> None:
    config = RunConfig(
        training=TrainingConfig(rounds=2), privacy=PrivacyConfig(population=10, noise_multiplier=1 / 3, epsilon=50)
    )
    plan = replace(build_plan(CONFIG), mode="distributed", noise_multiplier=1 / 3, prior_noise_multiplier=2 / 7)
    assert unpack_round(pack_round(RoundPlan("run", 1, "prior", config, plan, "d")))[0].plan == plan


def test_what_was_not_packed_is_absent() -> None:
    plan, parameters, prior = unpack_round(pack_round(ROUND))
    assert (plan, parameters, prior) == (ROUND, None, None)


def test_a_prior_of_popularity_alone_has_no_matrix() -> None:
    prior = unpack_round(pack_round(ROUND, prior=CollaborativePrior(PRIOR.popularity)))[2]
    assert prior is not None
    assert prior.item_to_item is None


def test_the_bytes_of_a_message_are_those_of_its_arrays() -> None:
    assert payload_bytes(pack_round(ROUND)) == 0
    small = payload_bytes(pack_round(ROUND, PARAMETERS_OF_3))
    large = payload_bytes(pack_round(ROUND, np.zeros(1003, dtype=np.float32)))
    assert large - small == 4000


@pytest.mark.parametrize("key", sorted(TOLD))
def test_a_plan_without_one_of_its_fields_is_refused(key: str) -> None:
    with pytest.raises(ProtocolError, match="Expected a round plan"):
        unpack_round(told(json.dumps({k: v for k, v in TOLD.items() if k != key})))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("round", "two"),
        ("round", None),
        ("round", float("inf")),
        ("stage", "evaluate"),
        ("config", {"no such section": {}}),
        ("config", {"training": {"rounds": -1}}),
        ("config", []),
        ("plan", {}),
        ("plan", []),
        ("plan", {**TOLD["plan"], "backdoor": True}),
        ("plan", {**TOLD["plan"], "mode": "distributed", "noise_multiplier": "much", "prior_noise_multiplier": 1.0}),
    ],
)
def test_a_plan_with_a_wrong_field_is_refused(key: str, value: object) -> None:
    with pytest.raises(ProtocolError):
        unpack_round(told(json.dumps({**TOLD, key: value})))


@pytest.mark.parametrize("text", ["", "{", "null", "[]", "3", '"plan"', "NaN", "[" * 100_000])
def test_a_plan_that_is_no_json_object_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        unpack_round(told(text))


@pytest.mark.parametrize("record", [ConfigRecord({}), MetricRecord({"json": 1}), arrays(PARAMETERS_OF_3)])
def test_a_plan_in_the_wrong_kind_of_record_is_refused(record: ConfigRecord | MetricRecord | ArrayRecord) -> None:
    with pytest.raises(ProtocolError):
        unpack_round(RecordDict({PLAN: record}))


def test_a_plan_without_noise_in_a_private_mode_is_refused_by_name() -> None:
    silent = {**TOLD["plan"], "mode": "distributed", "noise_multiplier": 0.0, "prior_noise_multiplier": 1.0}
    with pytest.raises(PolicyViolationError):
        unpack_round(told(json.dumps({**TOLD, "plan": silent})))


@pytest.mark.parametrize("name", [PARAMETERS, "prior"])
def test_arrays_in_the_wrong_kind_of_record_are_refused(name: str) -> None:
    content = pack_round(ROUND)
    content[name] = ConfigRecord({"flat": 1.0})
    with pytest.raises(ProtocolError):
        unpack_round(content)


def test_an_empty_message_is_refused() -> None:
    with pytest.raises(ProtocolError):
        unpack_round(RecordDict())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(json_values)
def test_any_json_is_refused_in_one_way(value: object) -> None:
    with pytest.raises(ProtocolError):
        unpack_round(told(json.dumps(value)))


@given(st.sampled_from(sorted(TOLD)), json_values)
def test_any_value_of_any_field_is_read_or_refused_in_one_way(key: str, value: object) -> None:
    try:
        plan = unpack_round(told(json.dumps({**TOLD, key: value})))[0]
    except ProtocolError:
        return
    assert isinstance(plan, RoundPlan)


@given(st.sampled_from(sorted(TOLD["plan"])), json_values)
def test_any_value_of_any_field_of_the_mechanism_is_read_or_refused_in_one_way(key: str, value: object) -> None:
    mechanism = {**TOLD["plan"], "mode": "distributed", "noise_multiplier": 1.0, "prior_noise_multiplier": 1.0}
    try:
        plan = unpack_round(told(json.dumps({**TOLD, "plan": {**mechanism, key: value}})))[0]
    except (ProtocolError, PolicyViolationError):
        return
    # What it says need not be sensible: the agent compares it with the plan that it makes itself.
    assert isinstance(plan, RoundPlan)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32])
def test_parameters_of_another_type_are_refused(dtype: type) -> None:
    content = pack_round(ROUND)
    content[PARAMETERS] = arrays(np.zeros(3, dtype=dtype))
    with pytest.raises(ProtocolError, match="float32"):
        unpack_round(content)


def test_a_prior_with_an_unknown_array_is_refused() -> None:
    content = pack_round(ROUND)
    content["prior"] = ArrayRecord(OrderedDict(popularity=Array(PRIOR.popularity), users=Array(PRIOR.popularity)))
    with pytest.raises(ProtocolError):
        unpack_round(content)


def test_bytes_that_are_no_array_are_refused() -> None:
    content = pack_round(ROUND)
    content[PARAMETERS] = ArrayRecord(OrderedDict(flat=Array("float32", (3,), "numpy.ndarray", b"not an array")))
    with pytest.raises(ProtocolError):
        unpack_round(content)


# --- to the coordinator ---------------------------------------------------------------------------

NOISED = NoisedSum(np.array([1.0, -2.0, 0.5]), 0.25)


def test_a_noised_sum_comes_out_as_it_went_in() -> None:
    update = unpack_update(pack_update(NOISED), 3)
    np.testing.assert_array_equal(update.values, NOISED.values)
    assert update.values.dtype == np.float64
    assert (update.noise_stddev, update.loss) == (0.25, None)


def test_an_answer_holds_the_values_and_the_public_noise_and_nothing_else() -> None:
    content = pack_update(NOISED)
    assert set(content) == {UPDATE, PLAN}
    assert list(content.array_records[UPDATE]) == ["flat"]
    assert dict(content.config_records[PLAN]) == {"noise_stddev": 0.25}


def test_a_loss_travels_only_where_there_is_no_noise() -> None:
    assert unpack_update(pack_update(NoisedSum(NOISED.values, 0.0, loss=1.5)), 3).loss == 1.5
    content = pack_update(NoisedSum(NOISED.values, 0.25, loss=1.5))
    assert "loss" not in content.config_records[PLAN]
    assert unpack_update(content, 3).loss is None


@pytest.mark.parametrize(
    "other",
    [
        ClippedSum(NOISED.values, 1.0, private_loss=2.0),
        NOISED.values,
        {field.name: getattr(NOISED, field.name) for field in fields(NOISED)},
        None,
    ],
    ids=["a clipped sum", "an array", "a dictionary", "nothing"],
)
def test_nothing_but_a_noised_sum_can_be_packed(other: Any) -> None:
    with pytest.raises(ProtocolError, match="Expected a NoisedSum"):
        pack_update(other)


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(2, dtype=np.float32),
        np.zeros(4, dtype=np.float32),
        np.zeros((3, 1), dtype=np.float32),
        np.zeros(3, dtype=np.float64),
        np.zeros(3, dtype=np.int32),
        np.array([0, np.nan, 0], dtype=np.float32),
        np.array([0, np.inf, 0], dtype=np.float32),
    ],
    ids=["short", "long", "two axes", "float64", "int32", "nan", "inf"],
)
def test_an_answer_of_another_size_type_or_with_a_value_that_is_no_number_is_refused(
    values: np.ndarray[Any, Any],
) -> None:
    content = pack_update(NOISED)
    content[UPDATE] = arrays(values)
    with pytest.raises(ProtocolError):
        unpack_update(content, 3)


def test_a_sum_too_large_for_its_type_is_refused_and_does_not_become_infinite() -> None:
    with pytest.raises(ProtocolError), np.errstate(over="ignore"):
        unpack_update(pack_update(NoisedSum(np.array([1e300]), 1.0)), 1)


@pytest.mark.parametrize("name", [UPDATE, PLAN])
def test_an_answer_without_one_of_its_records_is_refused(name: str) -> None:
    content = RecordDict({key: record for key, record in pack_update(NOISED).items() if key != name})
    with pytest.raises(ProtocolError):
        unpack_update(content, 3)


@pytest.mark.parametrize("name", [UPDATE, PLAN])
def test_an_answer_with_the_wrong_kind_of_record_is_refused(name: str) -> None:
    content = pack_update(NOISED)
    content[name] = MetricRecord({"flat": 1.0})
    with pytest.raises(ProtocolError):
        unpack_update(content, 3)


@pytest.mark.parametrize(
    "public",
    [{}, {"noise_stddev": "little"}, {"noise_stddev": float("nan")}, {"noise_stddev": -1.0}, {"noise_stddev": [1.0]}],
    ids=["absent", "a word", "nan", "negative", "a list"],
)
def test_an_answer_whose_noise_is_no_number_is_refused(public: dict[str, Any]) -> None:
    content = pack_update(NOISED)
    content[PLAN] = ConfigRecord(public)
    with pytest.raises(ProtocolError):
        unpack_update(content, 3)


# --- refusals -------------------------------------------------------------------------------------


def test_a_refusal_is_the_family_and_nothing_else() -> None:
    content = pack_error("PolicyViolationError")
    assert set(content) == {ERROR}
    assert dict(content.config_records[ERROR]) == {"family": "PolicyViolationError"}
    assert error_name(content) == "PolicyViolationError"
    with pytest.raises(ProtocolError, match="the partner answered PolicyViolationError"):
        unpack_update(content, 3)


@pytest.mark.parametrize("name", ["user 17 bought a ring", "Error: /home/me", "x" * 60, "", "\x1b[2J"])
def test_a_partner_cannot_smuggle_text_into_the_coordinator_s_log(name: str) -> None:
    assert error_name(pack_error(name)) == "an error"


def test_a_refusal_in_the_wrong_kind_of_record_has_no_name() -> None:
    assert error_name(RecordDict({ERROR: ConfigRecord({})})) == "an error"
    assert error_name(RecordDict({ERROR: arrays(PARAMETERS_OF_3)})) == "an error"


def test_the_wire_carries_every_field_of_the_plan() -> None:
    assert set(TOLD["plan"]) == set(asdict(ROUND.plan))
    assert set(TOLD) == {field.name for field in fields(RoundPlan)}
