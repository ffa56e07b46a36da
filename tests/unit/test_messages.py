"""What a round's messages are bound to: the signed text, the request behind it, the model it starts from."""

from __future__ import annotations

import hashlib
import json
from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from shared.config import PrivacyConfig, RunConfig, TrainingConfig
from shared.messages import ClippedSum, MaskedUpdate, NoisedSum, RoundPlan, SignedPlan, model_digest
from shared.model.prior import CollaborativePrior
from shared.privacy.accounting import build_plan

CONFIG = RunConfig(training=TrainingConfig(rounds=2), privacy=PrivacyConfig(mode="none", population=10))
PLAN = build_plan(CONFIG)
ORDER = RoundPlan("run", 2, "train", CONFIG, PLAN, "catalogue", "model", "0" * 32)
CHANGES: dict[str, Any] = {
    "run_id": "other",
    "round": 3,
    "stage": "prior",
    "config": CONFIG.model_copy(update={"seed": 1}),
    "plan": replace(PLAN, rounds=3),
    "catalogue_digest": "other",
    "model_digest": "other",
    "attempt": "1" * 32,
}
PARAMETERS = np.array([0.5, -1.25, 3.0], dtype=np.float32)
PRIOR = CollaborativePrior(np.arange(2, dtype=np.float32), np.eye(2, dtype=np.float32))


def test_every_field_of_a_round_plan_is_in_what_is_signed() -> None:
    assert set(CHANGES) == {field.name for field in fields(RoundPlan)} == set(json.loads(ORDER.text()))
    assert len({replace(ORDER, **{key: value}).text() for key, value in CHANGES.items()} | {ORDER.text()}) == 9


@pytest.mark.parametrize("key", sorted(CHANGES))
def test_two_attempts_ask_for_the_same_and_nothing_else_does(key: str) -> None:
    other = replace(ORDER, **{key: CHANGES[key]})
    assert (other.request == ORDER.request) is (key == "attempt")


def test_equal_plans_have_equal_texts() -> None:
    again = replace(ORDER, config=RunConfig.model_validate_json(CONFIG.model_dump_json()))
    assert again.text() == ORDER.text()
    assert again.request == ORDER.request


def test_the_context_of_an_attempt_is_the_sha_256_of_its_text() -> None:
    signed = SignedPlan(ORDER.text(), bytes(64))
    assert signed.context == hashlib.sha256(ORDER.text().encode()).digest()
    assert replace(signed, signature=b"").context == signed.context
    assert SignedPlan(replace(ORDER, attempt="1" * 32).text(), bytes(64)).context != signed.context


def test_the_digest_of_a_model_is_known_from_its_bytes() -> None:
    """Spelled out, as a coordinator in another language would compute it."""
    h = hashlib.sha256(b"parameters (3,)\n" + PARAMETERS.astype("<f4").tobytes())
    h.update(b"item_to_item (2, 2)\n" + np.eye(2, dtype="<f4").tobytes())
    h.update(b"popularity (2,)\n" + np.arange(2, dtype="<f4").tobytes())
    assert model_digest(PARAMETERS, PRIOR) == h.hexdigest()


def test_models_that_differ_anywhere_have_different_digests() -> None:
    others = [
        (PARAMETERS, PRIOR),
        (PARAMETERS[:2], PRIOR),
        (np.nextafter(PARAMETERS, np.float32(9)), PRIOR),
        (PARAMETERS[::-1], PRIOR),
        (np.append(PARAMETERS, np.float32(0)), PRIOR),
        (PARAMETERS, replace(PRIOR, item_to_item=None)),
        (PARAMETERS, replace(PRIOR, popularity=PRIOR.popularity[::-1])),
        (PARAMETERS, replace(PRIOR, text_weights=np.ones(2, dtype=np.float32))),
        (PARAMETERS, replace(PRIOR, item_to_item=np.ones((2, 2), dtype=np.float32))),
        (PARAMETERS, CollaborativePrior(np.eye(2, dtype=np.float32).ravel(), PRIOR.popularity[:, None])),
    ]
    assert len({model_digest(parameters, prior) for parameters, prior in others}) == len(others)


@given(st_numpy.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 4))))
def test_the_digest_of_a_model_does_not_depend_on_how_it_lies_in_memory(matrix: np.ndarray[Any, Any]) -> None:
    prior = CollaborativePrior(matrix[0], matrix)
    twin = CollaborativePrior(matrix[0].copy(), np.asfortranarray(matrix))
    assert model_digest(PARAMETERS, prior) == model_digest(PARAMETERS.astype(">f4"), twin)


@pytest.mark.parametrize("private", [ClippedSum(np.zeros(1), 1.0, 0.125), NoisedSum(np.zeros(1, np.int64), 0.125)])
def test_a_loss_is_in_no_log(private: ClippedSum | NoisedSum) -> None:
    assert "0.125" not in repr(private)


@pytest.mark.parametrize(
    "message", [ORDER, NoisedSum(np.zeros(1, np.int64)), MaskedUpdate(np.zeros(1, np.uint32), True)]
)
def test_what_flows_is_not_changed_on_the_way(message: Any) -> None:
    name = fields(message)[0].name
    with pytest.raises(FrozenInstanceError):
        setattr(message, name, None)
