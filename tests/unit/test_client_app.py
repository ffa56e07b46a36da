"""The relay between the coordinator and a partner's agent: what crosses, and what stays."""

from __future__ import annotations

from pathlib import Path

import pytest
from flwr.app import RecordDict
from partner_setting import NAME, SECRET, Federation

from client.agent import PartnerAgent
from client.app import app as client_app
from shared.exchange import KeyOffer
from shared.requests import (
    KeysRequest,
)
from shared.wire import pack_request, payload_bytes
from shared.wire_answers import pack_answer, unpack_answer
from shared.wire_frames import pack_error
from simulations.federation import InProcessGrid


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation.of(tmp_path)


# --- the relay ------------------------------------------------------------------------------------


def relayed(federation: Federation, content: RecordDict) -> RecordDict:
    """What comes back through Flower's client app."""
    grid = InProcessGrid(client_app, range(1), federation.root)
    return next(iter(grid.send_and_receive([grid.create_message(content, "train", 1, "1")]))).content


def test_an_answer_crosses_as_what_may_leave(federation: Federation) -> None:
    content = relayed(federation, pack_request(KeysRequest(federation.signed(federation.order()))))
    offer = unpack_answer(content)
    assert isinstance(offer, KeyOffer) and offer.name == NAME


def test_a_refusal_crosses_as_the_name_of_its_family(federation: Federation) -> None:
    order = federation.order(catalogue_digest="other")
    content = relayed(federation, pack_request(KeysRequest(federation.signed(order))))
    assert content == pack_error("AdapterMismatchError")


def test_the_text_of_an_unforeseen_error_stays_at_the_partner(
    federation: Federation, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(SECRET)

    monkeypatch.setattr(PartnerAgent, "answer", fail)
    content = relayed(federation, pack_request(KeysRequest(federation.signed(federation.order()))))
    assert content == pack_error("VeilrecError")
    assert SECRET in caplog.text  # where the operator of the partner reads it


def test_a_message_that_is_no_request_is_refused_by_name(federation: Federation) -> None:
    assert relayed(federation, RecordDict()) == pack_error("ProtocolError")


def test_the_size_of_an_answer_tells_nothing_of_the_data(tmp_path: Path) -> None:
    sizes = []
    for users in (1, 30):
        federation = Federation.of(tmp_path / str(users), users=users)
        play = federation.play()
        play.finish()
        sizes.append([payload_bytes(pack_answer(answer)) for answer in play.answers])
    assert sizes[0] == sizes[1]
