"""What leaves a partner is on the allow-list, field by field; nothing else can be packed."""

from __future__ import annotations

from dataclasses import astuple, fields, replace
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_setting import ANSWERS, NO_ARRAYS, PAID, VALUES, arrays, copied, junk, spoilt

from shared.errors import PolicyViolationError, ProtocolError, VeilrecError
from shared.exchange import Consent, KeyOffer, Opening, Outbox
from shared.messages import ClippedSum, MaskedUpdate, NoisedSum
from shared.privacy.ledger import LedgerHead
from shared.requests import Answer, Contribution
from shared.wire_answers import ALLOWED, ANSWER, UPDATE, Field, error_name, pack_answer, unpack_answer
from shared.wire_frames import ERROR, pack_error

KINDS = sorted(ANSWERS)
WITH_LOSS = replace(PAID, update=replace(PAID.update, masked=False, loss=1.5))
WHOLE = {**ANSWERS, "Contribution": WITH_LOSS}


def packed(kind: str) -> RecordDict:
    return copied(pack_answer(ANSWERS[kind]))


def leaving(content: RecordDict) -> set[str]:
    """Names of all that is in a message: of fields, and of records of arrays."""
    told = {key for record in content.config_records.values() for key in record} - {"kind"}
    return told | set(content.array_records) | {key for record in content.metric_records.values() for key in record}


# --- the allow-list -------------------------------------------------------------------------------


def check_allowed(answers: dict[str, Answer]) -> None:
    """Every field that leaves is on the list, and every field on the list leaves with some answer."""
    emitted = {kind: leaving(pack_answer(answer)) for kind, answer in answers.items()}
    emitted["error"] = leaving(pack_error("VeilrecError"))
    assert emitted == {kind: set(allowed) for kind, allowed in ALLOWED.items()}


def test_the_allow_list_is_what_leaves_no_more_and_no_less() -> None:
    assert {type(answer) for answer in ANSWERS.values()} == set(get_args(Answer))
    assert {kind: type(answer).__name__ for kind, answer in ANSWERS.items()} == {kind: kind for kind in ANSWERS}
    check_allowed(WHOLE)


def test_a_field_that_nobody_sends_any_more_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = {**ALLOWED, "Consent": {**ALLOWED["Consent"], "users": Field("public", "")}}
    monkeypatch.setitem(ALLOWED, "Consent", allowed["Consent"])
    with pytest.raises(AssertionError):
        check_allowed(WHOLE)


def test_a_field_that_is_not_on_the_list_cannot_be_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    for kind, allowed in ALLOWED.items():
        for key in allowed if kind in ANSWERS else ():
            if key == UPDATE:
                continue
            with monkeypatch.context() as patch:
                patch.setitem(ALLOWED, kind, {name: field for name, field in allowed.items() if name != key})
                with pytest.raises(ProtocolError, match=f"Expected only fields of {kind} that may leave, got {key}"):
                    pack_answer(WHOLE[kind])


def test_whatever_is_on_the_list_says_why_and_only_the_update_is_of_the_data() -> None:
    for kind, allowed in ALLOWED.items():
        for key, field in allowed.items():
            assert field.kind in ("public", "secret share", "paid") and len(field.why) > 10
            assert (field.kind == "paid") == ((kind, key) == ("Contribution", UPDATE))


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_has_its_two_records_and_no_others(kind: str) -> None:
    content = packed(kind)
    assert set(content) == ({ANSWER, UPDATE} if kind == "Contribution" else {ANSWER})
    assert content.config_records[ANSWER]["kind"] == kind
    assert [list(record) for record in content.array_records.values()] == [["flat"]] * (kind == "Contribution")


def test_a_loss_leaves_only_where_there_is_one() -> None:
    assert "loss" not in packed("Contribution").config_records[ANSWER]
    assert pack_answer(WITH_LOSS).config_records[ANSWER]["loss"] == 1.5


# --- what cannot be packed ------------------------------------------------------------------------

PRIVATE: list[Any] = [
    NoisedSum(np.zeros(3, dtype=np.int64)),
    ClippedSum(np.zeros(3), 1.0, private_loss=2.0),
    PAID.update,
    {field.name: getattr(PAID, field.name) for field in fields(PAID)},
    astuple(PAID),
    VALUES,
    "text",
    None,
]
NAMES = ["a noised sum", "a clipped sum", "a bare update", "a dictionary", "a tuple", "an array", "a text", "nothing"]


@pytest.mark.parametrize("other", PRIVATE, ids=NAMES)
def test_nothing_but_an_answer_can_be_packed(other: Any) -> None:
    with pytest.raises(
        ProtocolError, match=f"Expected an answer of one of the exchanges .* got {type(other).__name__}"
    ):
        pack_answer(other)


@pytest.mark.parametrize("other", [each for each in PRIVATE if each is not PAID.update], ids=str)
def test_nothing_but_a_masked_update_can_be_sent_in_a_contribution(other: Any) -> None:
    with pytest.raises(ProtocolError, match=f"Expected a MaskedUpdate to send, got {type(other).__name__}"):
        pack_answer(replace(PAID, update=other))


def test_what_only_looks_like_a_masked_update_cannot_be_sent() -> None:
    twin = SimpleNamespace(values=VALUES, masked=True, loss=None)
    with pytest.raises(ProtocolError, match="Expected a MaskedUpdate to send, got SimpleNamespace"):
        pack_answer(replace(PAID, update=twin))  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32, np.int64, np.uint64, np.uint8, ">u4"])
def test_values_of_another_type_cannot_be_sent(dtype: Any) -> None:
    """A float or a signed sum was never in the ring."""
    update = MaskedUpdate(np.zeros(3, dtype=dtype), masked=True)
    with pytest.raises(ProtocolError, match="Expected a MaskedUpdate to send"):
        pack_answer(replace(PAID, update=update))


# --- there and back -------------------------------------------------------------------------------


def same(one: Answer, other: Answer) -> bool:
    return type(one) is type(other) and pack_answer(one) == pack_answer(other)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_comes_out_as_it_went_in(kind: str) -> None:
    answer = unpack_answer(packed(kind))
    assert same(answer, ANSWERS[kind])
    if not isinstance(answer, Contribution):
        assert answer == ANSWERS[kind]


def test_a_contribution_comes_out_as_it_went_in() -> None:
    for sent in (PAID, WITH_LOSS):
        answer = unpack_answer(pack_answer(sent))
        assert isinstance(answer, Contribution)
        np.testing.assert_array_equal(answer.update.values, VALUES)
        assert answer.update.values.dtype == np.uint32
        assert (answer.name, answer.head) == (sent.name, sent.head)
        assert (answer.update.masked, answer.update.loss) == (sent.update.masked, sent.update.loss)


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
data = st.binary(max_size=40)
boxes = st.dictionaries(names, data, max_size=4)
answers = st.one_of(
    st.builds(KeyOffer, names, data, data, data),
    st.builds(Outbox, names, boxes),
    st.builds(Consent, names, data),
    st.builds(Opening, names, boxes, boxes),
)
updates = st.builds(
    MaskedUpdate,
    st.lists(st.integers(0, 2**32 - 1), max_size=9).map(lambda values: np.array(values, dtype=np.uint32)),
    st.booleans(),
    st.none() | st.floats(allow_nan=False),
)
heads = st.builds(LedgerHead, st.integers(1, 2**40), st.from_regex("[0-9a-f]{64}", fullmatch=True))


@given(answers)
def test_any_answer_comes_out_as_it_went_in(answer: Answer) -> None:
    """Whether what it says makes sense, the coordinator's secure sum decides."""
    assert unpack_answer(pack_answer(answer)) == answer


@given(st.builds(Contribution, names, updates, heads))
def test_any_contribution_comes_out_as_it_went_in(answer: Contribution) -> None:
    assert same(unpack_answer(pack_answer(answer)), answer)


# --- what the coordinator refuses to read ---------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_without_one_of_its_fields_is_refused(kind: str) -> None:
    for key in packed(kind).config_records[ANSWER]:
        content = packed(kind)
        del content.config_records[ANSWER][key]
        with pytest.raises(ProtocolError, match="Expected a partner's answer"):
            unpack_answer(content)


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_without_one_of_its_records_or_with_another_kind_is_refused(kind: str) -> None:
    for name in packed(kind):
        content = packed(kind)
        del content[name]
        with pytest.raises(ProtocolError):
            unpack_answer(content)
        content[name] = MetricRecord({"flat": 1})
        with pytest.raises(ProtocolError):
            unpack_answer(content)


@pytest.mark.parametrize(
    "values",
    [
        np.zeros((4, 1), dtype=np.uint32),
        np.zeros((), dtype=np.uint32),
        np.zeros(4, dtype=np.int32),
        np.zeros(4, dtype=np.uint64),
        np.zeros(4, dtype=np.float32),
        np.zeros(4, dtype=">u4"),
    ],
    ids=["two axes", "no axis", "int32", "uint64", "float32", "big-endian"],
)
def test_a_vector_that_is_not_one_of_the_ring_is_refused(values: np.ndarray[Any, Any]) -> None:
    content = packed("Contribution")
    content[UPDATE] = arrays(values)
    with pytest.raises(ProtocolError):
        unpack_answer(content)


@pytest.mark.parametrize("spoil", NO_ARRAYS, ids=lambda data: f"{len(data)} bytes")
def test_a_partner_cannot_end_the_coordinator_with_bytes_that_are_no_array(spoil: bytes) -> None:
    content = packed("Contribution")
    content[UPDATE] = ArrayRecord({"flat": junk(spoil)})
    with pytest.raises(ProtocolError):
        unpack_answer(content)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("KeyOffer", "kind", "Rumour"),
        ("KeyOffer", "mask_key", "text"),
        ("Outbox", "recipients", ["b", "b"]),
        ("Outbox", "recipients", ["b"]),
        ("Outbox", "recipients", [1, 2]),
        ("Outbox", "sealed", ["text", "text"]),
        ("Opening", "dropped", ["b", "c"]),
        ("Opening", "survivors", [1, 2]),
        ("Contribution", "head_count", "many"),
        ("Contribution", "head_count", float("inf")),
        ("Contribution", "loss", "little"),
    ],
)
def test_an_answer_with_a_wrong_field_is_refused(kind: str, key: str, value: Any) -> None:
    content = packed(kind)
    content.config_records[ANSWER][key] = value
    with pytest.raises(ProtocolError):
        unpack_answer(content)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=60)
@given(st.data())
def test_whatever_comes_is_read_or_refused_in_one_way(kind: str, data: st.DataObject) -> None:
    content = data.draw(spoilt(pack_answer(ANSWERS[kind])))
    try:
        answer = unpack_answer(content)
    except ProtocolError:
        return
    assert isinstance(answer, get_args(Answer))
    pack_answer(answer)  # of the types that a partner sends


# --- refusals -------------------------------------------------------------------------------------


def test_a_refusal_is_the_name_of_its_family_and_nothing_else() -> None:
    content = pack_error(PolicyViolationError("Expected epsilon <= 8, user 17 has more.").wire_name)
    assert set(content) == {ERROR}
    assert dict(content.config_records[ERROR]) == {"family": "PolicyViolationError"}
    assert error_name(content) == "PolicyViolationError"
    with pytest.raises(ProtocolError, match="the partner refused with PolicyViolationError"):
        unpack_answer(content)


def test_every_error_crosses_by_name() -> None:
    found, todo = set[type[VeilrecError]](), [VeilrecError]
    while todo:
        found.add(todo[-1])
        todo.extend(todo.pop().__subclasses__())
    names = {error_name(pack_error(family("secret").wire_name)) for family in found}
    assert names == {family.__name__ for family in found}


@pytest.mark.parametrize("name", ["user 17 bought a ring", "Error: /home/me", "x" * 60, "", "\x1b[2J"])
def test_a_partner_cannot_smuggle_text_into_the_coordinator_s_log(name: str) -> None:
    assert error_name(pack_error(name)) == "an error"


def test_a_refusal_in_the_wrong_kind_of_record_has_no_name() -> None:
    assert error_name(RecordDict({ERROR: ConfigRecord({})})) == "an error"
    assert error_name(RecordDict({ERROR: arrays(VALUES)})) == "an error"
    assert error_name(RecordDict({ERROR: MetricRecord({"family": 3})})) == "an error"
