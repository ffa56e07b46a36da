"""The way to a partner: every request comes out as it went in, and everything else is refused."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import fields, replace
from typing import Any, get_args

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st
from wire_setting import (
    ATTEMPT,
    MODEL,
    NO_ARRAYS,
    OFFERS,
    ORDER,
    PRIOR,
    RECEIPT,
    REQUESTS,
    SIGNED,
    arrays,
    copied,
    junk,
    spoilt,
)

from shared.errors import ProtocolError, VersionMismatchError
from shared.exchange import Consent, Consents, Inbox, KeyOffer, Roster, Survivors
from shared.messages import SignedPlan
from shared.requests import (
    Attempt,
    BareRequest,
    ConsentRequest,
    KeysRequest,
    Model,
    OpenRequest,
    Request,
    SharesRequest,
    SumRequest,
)
from shared.wire import CONTENT, PARAMETERS, STEP, pack_request, parse_plan, payload_bytes, unpack_request

STEPS = sorted(REQUESTS)


def packed(step: str) -> RecordDict:
    return copied(pack_request(REQUESTS[step]))


# --- there and back -------------------------------------------------------------------------------


def same(one: Request, other: Request) -> bool:
    """Equal, arrays and all."""
    return type(one) is type(other) and pack_request(one) == pack_request(other)


def test_there_is_one_request_of_each_kind_here() -> None:
    assert {type(request) for request in REQUESTS.values()} == set(get_args(Request))


@pytest.mark.parametrize("step", STEPS)
def test_a_request_comes_out_as_it_went_in(step: str) -> None:
    request = unpack_request(packed(step))
    assert same(request, REQUESTS[step])
    for field in fields(request):
        if field.name != "model":
            assert getattr(request, field.name) == getattr(REQUESTS[step], field.name)


def test_a_model_comes_out_as_it_went_in() -> None:
    request = unpack_request(packed("sum"))
    assert isinstance(request, SumRequest) and request.model.prior is not None
    np.testing.assert_array_equal(request.model.parameters, MODEL.parameters)
    assert request.model.prior.arrays().keys() == PRIOR.arrays().keys()
    for name, array in PRIOR.arrays().items():
        np.testing.assert_array_equal(request.model.prior.arrays()[name], array)


@pytest.mark.parametrize(
    "model",
    [
        Model(),
        replace(MODEL, prior=None),
        replace(MODEL, parameters=None),
        Model(prior=replace(PRIOR, item_to_item=None)),
    ],
    ids=["nothing", "parameters", "a prior", "popularity alone"],
)
def test_what_was_not_packed_is_absent(model: Model) -> None:
    for request in (SumRequest(ATTEMPT, Inbox({}), model), BareRequest(SIGNED, model)):
        out = unpack_request(pack_request(request))
        assert isinstance(out, SumRequest | BareRequest) and same(out, request)
        assert (out.model.parameters is None) == (model.parameters is None)
        assert (out.model.prior is None) == (model.prior is None)
    shares = unpack_request(pack_request(SharesRequest(ATTEMPT, Roster(OFFERS))))
    assert isinstance(shares, SharesRequest) and shares.receipt is None


names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)
attempts = st.builds(
    Attempt, st.from_regex(r"[A-Za-z0-9_-]{1,64}", fullmatch=True), st.from_regex(r"[0-9a-f]{32}", fullmatch=True)
)
data = st.binary(max_size=40)
consents = st.lists(st.builds(Consent, names, data), max_size=4).map(lambda each: Consents(tuple(each)))
offers = st.lists(st.builds(KeyOffer, names, data, data, data), max_size=4).map(lambda each: Roster(tuple(each)))
requests = st.one_of(
    st.builds(KeysRequest, st.builds(SignedPlan, st.text(st.characters(codec="utf-8"), max_size=8), data)),
    st.builds(SharesRequest, attempts, offers, st.none() | st.just(RECEIPT)),
    st.builds(SumRequest, attempts, st.dictionaries(names, data, max_size=4).map(Inbox), st.just(Model())),
    st.builds(ConsentRequest, attempts, st.lists(names, max_size=4).map(lambda each: Survivors(tuple(each)))),
    st.builds(OpenRequest, attempts, consents),
)


@given(requests)
def test_any_request_comes_out_as_it_went_in(request: Request) -> None:
    """Whether what it says makes sense, the partner's session decides."""
    assert unpack_request(pack_request(request)) == request


def test_the_bytes_of_a_message_are_those_of_arrays_texts_and_numbers() -> None:
    small = payload_bytes(pack_request(BareRequest(SIGNED, Model())))
    assert small == len("bare") + 8 + len(SIGNED.text) + len(SIGNED.signature)
    large = [payload_bytes(pack_request(BareRequest(SIGNED, Model(np.zeros(n, dtype=np.float32))))) for n in (3, 1003)]
    assert large[1] - large[0] == 4000 and large[0] > small
    receipt = len("a") + 8 + len("ab" * 32) + len("server") + len("signature")
    assert payload_bytes(pack_request(BareRequest(SIGNED, Model(), RECEIPT))) == small + receipt


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("extra", [ConfigRecord({"x": 1}), MetricRecord({"x": 1}), arrays(np.zeros(1))])
def test_a_record_too_many_is_refused(step: str, extra: ConfigRecord | MetricRecord | ArrayRecord) -> None:
    content = packed(step)
    content["x"] = extra
    with pytest.raises(ProtocolError, match=f"Expected the fields of exchange {step} and no others"):
        unpack_request(content)


@pytest.mark.parametrize("step", STEPS)
def test_a_field_too_many_in_any_record_is_refused(step: str) -> None:
    for name, record in packed(step).items():
        content = packed(step)
        more: Any = content[name]
        more["x"] = Array(np.zeros(1, dtype=np.float32)) if isinstance(record, ArrayRecord) else 1
        with pytest.raises(ProtocolError):
            unpack_request(content)


@pytest.mark.parametrize("step", STEPS)
def test_a_field_too_few_in_any_record_is_refused(step: str) -> None:
    for name in packed(step):
        for key in list(packed(step)[name]):
            if key == "item_to_item":  # a prior of popularity alone has none
                continue
            content = packed(step)
            fewer: Any = content[name]
            del fewer[key]
            with pytest.raises(ProtocolError):
                unpack_request(content)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("wrong", [3, True, 0.5, "x", b"x"], ids=repr)
def test_a_field_of_another_type_is_refused(step: str, wrong: Any) -> None:
    """Alone, and as often as the list that it stands for is long."""
    for name, record in packed(step).config_records.items():
        for key, value in record.items():
            for other in (wrong, [wrong] * _length(value), _different(wrong, _length(value))):
                if _kind(value) != _kind(other):
                    content = packed(step)
                    content.config_records[name][key] = other
                    with pytest.raises(ProtocolError):
                        unpack_request(content)


def _different(value: Any, n: int) -> list[Any]:
    """A list of the same type, all of them different (no more than two truth values are)."""
    kind = type(value)
    return [bytes([k]) if kind is bytes else kind(k) for k in range(n)]


def _length(value: Any) -> int:
    return len(value) if isinstance(value, list) else 1


def _kind(value: Any) -> object:
    return (list, type(value[0])) if isinstance(value, list) else type(value)


@pytest.mark.parametrize("name", [PARAMETERS, "prior", STEP, CONTENT])
def test_another_kind_of_record_is_refused(name: str) -> None:
    for other in (MetricRecord({"flat": 1}), ConfigRecord({"flat": 1.0}), arrays(np.zeros(3))):
        content = packed("sum")
        content[name] = other
        with pytest.raises(ProtocolError):
            unpack_request(content)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int32, ">f4"])
@pytest.mark.parametrize("step", ["sum", "bare"])
def test_parameters_of_another_type_are_refused(step: str, dtype: Any) -> None:
    content = packed(step)
    content[PARAMETERS] = arrays(np.zeros(3, dtype=dtype))
    with pytest.raises(ProtocolError):
        unpack_request(content)


def test_a_prior_with_an_unknown_array_is_refused() -> None:
    content = packed("sum")
    content["prior"] = ArrayRecord(OrderedDict(popularity=Array(PRIOR.popularity), users=Array(PRIOR.popularity)))
    with pytest.raises(ProtocolError):
        unpack_request(content)


@pytest.mark.parametrize("spoil", NO_ARRAYS, ids=lambda data: f"{len(data)} bytes")
def test_bytes_that_are_no_array_are_refused(spoil: bytes) -> None:
    content = packed("sum")
    content[PARAMETERS] = ArrayRecord({"flat": junk(spoil)})
    with pytest.raises(ProtocolError):
        unpack_request(content)


@pytest.mark.parametrize("step", ["shares", "sum", "consent", "open"])
@pytest.mark.parametrize(
    "run_id", ["", ".", "..", "../run", "a/b", "/run", "a\\b", "a b", "rün", "a\n", "a" * 65, "a\0"]
)
def test_a_run_id_that_could_be_a_path_is_refused(step: str, run_id: str) -> None:
    content = packed(step)
    content.config_records[STEP]["run_id"] = run_id
    with pytest.raises(ProtocolError):
        unpack_request(content)
    with pytest.raises(ProtocolError):
        parse_plan(replace(ORDER, run_id=run_id).text())


@pytest.mark.parametrize("step", ["shares", "sum", "consent", "open"])
@pytest.mark.parametrize("nonce", ["", "0" * 31, "0" * 33, "A" * 32, "g" * 32, "0" * 32 + "\n", "../" + "0" * 29])
def test_a_nonce_in_another_form_is_refused(step: str, nonce: str) -> None:
    content = packed(step)
    content.config_records[STEP]["nonce"] = nonce
    with pytest.raises(ProtocolError):
        unpack_request(content)
    with pytest.raises(ProtocolError):
        parse_plan(replace(ORDER, attempt=nonce).text())


def test_shares_of_one_peer_twice_are_refused() -> None:
    content = packed("sum")
    content.config_records[CONTENT]["names"] = ["b", "b"]
    with pytest.raises(ProtocolError):
        unpack_request(content)


@pytest.mark.parametrize("step", ["", "Keys", "train", "evaluate", "keys "])
def test_an_exchange_that_is_none_is_refused(step: str) -> None:
    content = packed("keys")
    content.config_records[STEP]["step"] = step
    with pytest.raises(ProtocolError, match="Expected one of the exchanges of a round"):
        unpack_request(content)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("version", [0, 2, 1.0, True, "1"])
def test_another_version_of_the_exchanges_is_refused_by_name(step: str, version: Any) -> None:
    content = packed(step)
    content.config_records[STEP]["protocol"] = version
    with pytest.raises(VersionMismatchError, match="Expected protocol=1 of the exchanges"):
        unpack_request(content)


def test_an_empty_message_is_refused() -> None:
    with pytest.raises(ProtocolError):
        unpack_request(RecordDict())


@pytest.mark.parametrize("step", STEPS)
@settings(max_examples=60)
@given(st.data())
def test_whatever_comes_is_read_or_refused_in_one_way(step: str, data: st.DataObject) -> None:
    content = data.draw(spoilt(pack_request(REQUESTS[step])))
    try:
        request = unpack_request(content)
    except ProtocolError:
        return
    assert pack_request(request) == content  # nothing came along unread
