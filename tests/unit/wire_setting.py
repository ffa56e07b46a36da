"""One request of each exchange and one answer to each, and ways to spoil what crosses."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import strategies as st

from shared.config import PrivacyConfig, RunConfig, TrainingConfig
from shared.exchange import Consent, Consents, Inbox, KeyOffer, Opening, Outbox, Roster, Survivors
from shared.messages import MaskedUpdate, RoundPlan, SignedPlan
from shared.model.prior import CollaborativePrior
from shared.privacy.accounting import build_plan
from shared.privacy.ledger import LedgerHead, Receipt
from shared.requests import (
    Answer,
    Attempt,
    BareRequest,
    ConsentRequest,
    Contribution,
    KeysRequest,
    Model,
    OpenRequest,
    Request,
    SharesRequest,
    SumRequest,
)

CONFIG = RunConfig(training=TrainingConfig(rounds=2), privacy=PrivacyConfig(mode="none", population=10))
ORDER = RoundPlan("run", 2, "train", CONFIG, build_plan(CONFIG), "catalogue", "model", "0" * 32)
SIGNED = SignedPlan(ORDER.text(), bytes(range(64)))
ATTEMPT = Attempt("run", "0123456789abcdef" * 2)
PRIOR = CollaborativePrior(np.arange(2, dtype=np.float32), item_to_item=np.eye(2, dtype=np.float32))
MODEL = Model(np.array([0.5, -1.25, 3.0], dtype=np.float32), PRIOR)
RECEIPT = Receipt("a", 4, "ab" * 32, "server", "signature")
OFFERS = tuple(KeyOffer(name, bytes([k] * 32), bytes([k + 9] * 32), bytes([k] * 64)) for k, name in enumerate("abc"))
CONSENTS = Consents((Consent("a", bytes(64)), Consent("c", bytes(range(64)))))

REQUESTS: dict[str, Request] = {
    "keys": KeysRequest(SIGNED),
    "shares": SharesRequest(ATTEMPT, Roster(OFFERS), RECEIPT),
    "sum": SumRequest(ATTEMPT, Inbox({"b": b"\x00\xff", "c": b""}), MODEL),
    "consent": ConsentRequest(ATTEMPT, Survivors(("a", "c"))),
    "open": OpenRequest(ATTEMPT, CONSENTS),
    "bare": BareRequest(SIGNED, MODEL, RECEIPT),
}
VALUES = np.array([0, 1, 2**31, 2**32 - 1], dtype=np.uint32)
PAID = Contribution("a", MaskedUpdate(VALUES, masked=True), LedgerHead(4, "ab" * 32))
ANSWERS: dict[str, Answer] = {
    "KeyOffer": OFFERS[1],
    "Outbox": Outbox("a", {"b": b"\x00\xff", "c": b""}),
    "Contribution": PAID,
    "Consent": CONSENTS.consents[1],
    "Opening": Opening("a", {"a": bytes(33), "c": bytes(range(33))}, {"b": bytes(33)}),
}


_HEADER = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,), }\n"
NO_ARRAYS = [
    b"",
    b"not an array",
    b"PK\x03\x04",
    b"\x93NUMPY",
    b"\x93NUMPY\x01\x00\xff\xff{",
    b"\x93NUMPY\x01\x00" + len(_HEADER).to_bytes(2, "little") + _HEADER,  # 4 TiB
]


def arrays(array: np.ndarray[Any, Any], name: str = "flat") -> ArrayRecord:
    """A record of one array."""
    return ArrayRecord(OrderedDict({name: Array(array)}))


def junk(data: bytes) -> Array:
    """What says that it is an array."""
    return Array("float32", (3,), "numpy.ndarray", data)


def copied(content: RecordDict) -> RecordDict:
    """Another message with the same content."""
    made = RecordDict()
    for name, record in content.items():
        made[name] = ArrayRecord(OrderedDict(record)) if isinstance(record, ArrayRecord) else ConfigRecord(dict(record))
    return made


scalars = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(),
    st.text(max_size=5),
    st.binary(max_size=5),
)
config_values = st.one_of(
    scalars,
    st.lists(st.booleans(), max_size=3),
    st.lists(st.integers(0, 9), max_size=3),
    st.lists(st.floats(), max_size=3),
    st.lists(st.text(max_size=3), max_size=3),
    st.lists(st.binary(max_size=3), max_size=3),
)
"""All that a field of Flower's ConfigRecord can be."""
array_bytes = st.one_of(
    st.binary(max_size=8),
    st.binary(max_size=40).map(b"\x93NUMPY\x01\x00".__add__),
    st.binary(max_size=40).map(b"PK\x03\x04".__add__),
)
"""Bytes that are no array, some of which begin as one."""
array_values = st.one_of(
    array_bytes.map(junk),
    st.sampled_from(["<f4", "<f8", "<u4", "<i8", ">f4", "S3"]).map(lambda dtype: Array(np.zeros(3, dtype=dtype))),
    st.sampled_from([(), (0,), (2, 2)]).map(lambda shape: Array(np.zeros(shape, dtype=np.float32))),
)
other_records = st.one_of(
    st.dictionaries(st.text(max_size=5), config_values, max_size=2).map(ConfigRecord),
    st.dictionaries(st.text(max_size=5), st.integers(0, 9), max_size=2).map(lambda named: MetricRecord(dict(named))),
    st.dictionaries(st.text(max_size=5), array_values, max_size=2).map(lambda named: ArrayRecord(OrderedDict(named))),
)
WAYS = (
    "drop a record",
    "rename a record",
    "another record",
    "one more record",
    "drop a field",
    "a field",
    "one more field",
)


@st.composite
def spoilt(draw: st.DrawFn, content: RecordDict) -> RecordDict:
    """The message with one to three random changes."""
    made = copied(content)
    for way in draw(st.lists(st.sampled_from(WAYS), min_size=1, max_size=3)):
        if not made:
            break
        name = draw(st.sampled_from(sorted(made)))
        if way == "drop a record":
            del made[name]
        elif way == "rename a record":
            made[draw(st.text(max_size=5))] = made.pop(name)
        elif way == "another record":
            made[name] = draw(other_records)
        elif way == "one more record":
            made[draw(st.sampled_from(["receipt", "prior", "parameters", "error", "update", "x"]))] = draw(
                other_records
            )
        else:
            _spoil_field(draw, made[name], way)
    return made


def _spoil_field(draw: st.DrawFn, record: Any, way: str) -> None:
    values = array_values if isinstance(record, ArrayRecord) else config_values
    if isinstance(record, MetricRecord):
        values = st.integers(0, 9)
    if way == "one more field":
        record[draw(st.text(max_size=5))] = draw(values)
    elif record:
        key = draw(st.sampled_from(sorted(record)))
        if way == "drop a field":
            del record[key]
        else:
            record[key] = draw(values)
