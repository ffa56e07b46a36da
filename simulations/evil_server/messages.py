"""Attacks by messages of another form: more, less or other than an exchange has."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from flwr.app import ConfigRecord, RecordDict

from shared.errors import ProtocolError
from shared.exchange import Consents, Survivors
from shared.messages import SignedPlan
from shared.requests import Attempt, BareRequest, ConsentRequest, KeysRequest, Model, OpenRequest, Request, SumRequest
from shared.wire import CONTENT, PLAN, RECEIPT, STEP, array_record, pack_request
from simulations.evil_server.adversary import RUN, Adversary
from simulations.evil_server.attack import Attack, attack
from simulations.evil_server.play import Play

ATTACKS: list[Attack] = []
OUTSIDE = ("../escaped", "../../partner-001", "/dev/null/escaped", "a/b", ".", "..", "a\0b", "")
"""Run ids that would name a folder elsewhere, none of which a partner with a bug could make outside the practice."""


def _requests(evil: Adversary) -> Iterator[RecordDict]:
    """One message of every exchange."""
    play = Play(evil).shares()
    requests: tuple[Request, ...] = (
        play.keys_request,
        play.shares_request(),
        play.sum_request(evil.victim),
        play.consent_request(*evil.names),
        play.open_request(),
        BareRequest(play.signed, Model()),
    )
    for request in requests:
        yield pack_request(request)


@attack(ATTACKS, "extra fields", "an order that is not part of the protocol", ProtocolError)
def _extra_fields(evil: Adversary) -> None:
    for content in _requests(evil):
        body = CONTENT if CONTENT in content else PLAN
        for record in (STEP, body):
            kept = content[record]
            content[record] = ConfigRecord({**content.config_records[record], "debug": True})
            evil.aim(evil.victim, content)
            content[record] = kept
        content["debug"] = ConfigRecord({"send": "interactions.parquet"})
        evil.aim(evil.victim, content)


@attack(ATTACKS, "missing fields", "an exchange without what is checked in it", ProtocolError)
def _missing_fields(evil: Adversary) -> None:
    for content in _requests(evil):
        body = CONTENT if CONTENT in content else PLAN
        for field in content.config_records[body]:
            rest = {key: value for key, value in content.config_records[body].items() if key != field}
            evil.aim(evil.victim, RecordDict({**content, body: ConfigRecord(rest)}))


@attack(ATTACKS, "no exchange at all", "a message that the partner does not know", ProtocolError)
def _no_exchange(evil: Adversary) -> None:
    evil.aim(evil.victim, RecordDict())
    for step in ("", "eval", "sum ", "open\n"):
        evil.aim(evil.victim, RecordDict({STEP: ConfigRecord({"step": step})}))
    evil.aim(evil.victim, RecordDict({STEP: ConfigRecord({"step": "keys"}), PLAN: array_record({"json": np.zeros(3)})}))


@attack(ATTACKS, "fields of another type", "values that pass for what they are not", ProtocolError)
def _other_types(evil: Adversary) -> None:
    play = Play(evil).shares()
    consent = pack_request(play.consent_request(*evil.names))
    for names in ([1, 2, 3], [True], [b"partner-000"], "partner-000", 7):
        evil.aim(evil.victim, RecordDict({**consent, CONTENT: ConfigRecord({"names": names})}))
    keys = pack_request(play.keys_request)
    for plan in (
        ConfigRecord({"json": play.signed.text, "signature": "text"}),
        ConfigRecord({"json": b"bytes", "signature": b""}),
    ):
        evil.aim(evil.victim, RecordDict({**keys, PLAN: plan}))
    vector = {"flat": np.zeros(8, dtype=np.float64)}
    total = pack_request(play.sum_request(evil.victim))
    evil.aim(evil.victim, RecordDict({**total, "parameters": array_record(vector)}))
    shares = pack_request(play.shares_request())
    evil.aim(evil.victim, RecordDict({**shares, RECEIPT: ConfigRecord({"count": 1})}))


@attack(ATTACKS, "huge names", "fill the partner's disk or memory with a name", ProtocolError)
def _huge_names(evil: Adversary) -> None:
    huge, nonce = "a" * 1_000_000, "0" * 32
    order = evil.order()
    evil.aim(evil.victim, KeysRequest(evil.edited(order, {"run_id": huge})))
    evil.aim(evil.victim, KeysRequest(evil.edited(order, {"attempt": huge})))
    evil.aim(evil.victim, ConsentRequest(Attempt(huge, nonce), Survivors(evil.names)))
    evil.aim(evil.victim, OpenRequest(Attempt(RUN, huge), Consents(())))


@attack(ATTACKS, "a run id that is a path", "read or write outside the partner's runs", ProtocolError)
def _path(evil: Adversary) -> None:
    order, play = evil.order(), Play(evil).shares()
    for run_id in OUTSIDE:
        evil.aim(evil.victim, KeysRequest(evil.edited(order, {"run_id": run_id})))
        evil.aim(evil.victim, SumRequest(Attempt(run_id, "0" * 32), play.inbox(evil.victim), Model()))


@attack(ATTACKS, "a plan that is none", "make the partner read what it cannot", ProtocolError)
def _no_plan(evil: Adversary) -> None:
    text = evil.order().text()
    for told in ("", "[]", "null", "{" * 10_000, text + " ", text[:-1], text.replace('"round": 1', '"round": 1.5')):
        evil.aim(evil.victim, KeysRequest(evil.sign(told)))


@attack(ATTACKS, "a plan with more in it", "a field that another version might obey", ProtocolError)
def _larger_plan(evil: Adversary) -> None:
    order = evil.order()
    for place in ("{", '"plan": {', '"config": {', '"privacy": {'):
        signed: SignedPlan = evil.sign(order.text().replace(place, place + '"a": 1, ', 1))
        evil.aim(evil.victim, KeysRequest(signed))
