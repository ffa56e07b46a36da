"""The resident agent says the same twice, takes changes up between rounds, and never spends twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from partner_setting import NAME, Federation

from client.answer_book import AnswerBook, Asked
from client.premises import PARTNER_FILE, Premises
from client.resident import STEPS, ResidentAgent
from shared.errors import LedgerError, ReplayError
from shared.exchange import KeyOffer
from shared.requests import Answer, KeysRequest, Request
from shared.wire import pack_request
from shared.wire_answers import unpack_answer
from shared.wire_frames import from_frame, pack_error, to_frame


class Told:
    """What the agent told its watcher."""

    def __init__(self) -> None:
        self.answers: list[str] = []
        self.refusals: list[str] = []
        self.floors: list[float] = []

    def answered(self, step: str, seconds: float, bytes_in: int, bytes_out: int) -> None:
        assert seconds >= 0 and bytes_in > 0 and bytes_out > 0
        self.answers.append(step)

    def refused(self, family: str) -> None:
        self.refusals.append(family)

    def take_up(self, premises: Premises) -> None:
        self.floors.append(premises.policy.max_epsilon)


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation.of(tmp_path)


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def agent(federation: Federation, told: Told) -> Iterator[ResidentAgent]:
    yield ResidentAgent(federation.folder, "cpu", told)


def frame(request: Request) -> bytes:
    return to_frame(pack_request(request))


def keys(federation: Federation, **changes: object) -> KeysRequest:
    return KeysRequest(federation.signed(federation.order(**changes)))


def lines(federation: Federation) -> int:
    return len((federation.folder / "ledger.jsonl").read_text().splitlines())


# --- the same, again ------------------------------------------------------------------------------


def test_a_repeated_message_gets_the_same_answer(federation: Federation, agent: ResidentAgent, told: Told) -> None:
    """The keys are fresh random ones: only the kept answer can be the same."""
    asked = frame(keys(federation))
    first = agent.answer(asked)
    assert isinstance(unpack_answer(from_frame(first)), KeyOffer)
    assert agent.answer(asked) == first
    assert told.answers == ["keys", "keys"] and told.refusals == []


def test_a_repeated_message_gets_the_same_answer_after_the_agent_was_started_again(
    federation: Federation, agent: ResidentAgent, told: Told
) -> None:
    asked = frame(keys(federation))
    first = agent.answer(asked)
    assert ResidentAgent(federation.folder, "cpu", told).answer(asked) == first


def test_another_message_of_the_same_exchange_is_refused(
    federation: Federation, agent: ResidentAgent, told: Told
) -> None:
    order = federation.order()
    first = agent.answer(frame(KeysRequest(federation.signed(order))))
    other = federation.signed(federation.order(attempt=order.attempt, model_digest="0" * 64))
    assert from_frame(agent.answer(frame(KeysRequest(other)))) == pack_error("ReplayError")
    assert agent.answer(frame(KeysRequest(federation.signed(order)))) == first
    assert told.refusals == ["ReplayError"]


def test_a_whole_round_asked_twice_is_spent_once(federation: Federation, told: Told) -> None:
    resident = ResidentAgent(federation.folder, "cpu", told)
    frames: list[tuple[bytes, bytes]] = []

    class Framed:
        def answer(self, request: Request) -> Answer:
            asked = frame(request)
            frames.append((asked, resident.answer(asked)))
            return unpack_answer(from_frame(frames[-1][1]))

    federation.play(agent=Framed()).finish()
    spent = lines(federation)
    assert [resident.answer(asked) for asked, _ in frames] == [given for _, given in frames]
    assert lines(federation) == spent
    assert set(told.answers) == set(STEPS.values()) - {"bare"}


def test_without_the_book_a_repeated_message_would_be_refused(
    federation: Federation, agent: ResidentAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The planted bug: an agent that forgets what it said drops out of the round."""
    monkeypatch.setattr(AnswerBook, "find", lambda *_: None)
    asked = frame(keys(federation))
    agent.answer(asked)
    assert from_frame(agent.answer(asked)) == pack_error("ReplayError")


# --- changes --------------------------------------------------------------------------------------


def test_a_floor_that_was_raised_counts_from_the_next_round_on(
    federation: Federation, agent: ResidentAgent, told: Told
) -> None:
    assert isinstance(unpack_answer(from_frame(agent.answer(frame(keys(federation))))), KeyOffer)
    file = federation.folder / PARTNER_FILE
    fresh = file.with_suffix(".new")
    fresh.write_text(file.read_text().replace("max_epsilon = 12.0", "max_epsilon = 1.0"))
    fresh.replace(file)
    assert from_frame(agent.answer(frame(keys(federation)))) == pack_error("PolicyViolationError")
    assert told.floors == [1.0]


def test_what_is_no_message_is_refused_by_name(agent: ResidentAgent, told: Told) -> None:
    for junk in (b"", b"junk", b"\xff" * 50):
        assert from_frame(agent.answer(junk)) == pack_error("ProtocolError")
    assert told.refusals == ["ProtocolError"] * 3


def test_the_agent_of_a_folder_has_its_name(agent: ResidentAgent) -> None:
    assert agent.premises.name == NAME


# --- the book -------------------------------------------------------------------------------------

ASKED = Asked("run", "0" * 32, "keys", "digest")


def test_a_damaged_answer_counts_as_none(tmp_path: Path) -> None:
    book = AnswerBook(tmp_path)
    assert book.find(ASKED) is None
    book.keep(ASKED, b"answer\nwith lines")
    assert book.find(ASKED) == b"answer\nwith lines"
    (tmp_path / "run" / "answers" / "keys").write_bytes(b"{")
    assert book.find(ASKED) is None


def test_an_answer_of_an_earlier_attempt_is_not_one_of_this(tmp_path: Path) -> None:
    book = AnswerBook(tmp_path)
    book.keep(ASKED, b"answer")
    assert book.find(Asked("run", "1" * 32, "keys", "digest")) is None
    with pytest.raises(ReplayError, match="exchange keys"):
        book.find(Asked("run", "0" * 32, "keys", "another"))


def test_an_answer_that_cannot_be_kept_does_not_leave(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file where a folder should be")
    with pytest.raises(LedgerError, match="Expected to keep the answer of exchange keys"):
        AnswerBook(tmp_path).keep(ASKED, b"answer")


def test_a_kept_answer_names_its_request_and_nothing_of_a_user(tmp_path: Path) -> None:
    AnswerBook(tmp_path).keep(ASKED, b"answer")
    head = (tmp_path / "run" / "answers" / "keys").read_bytes().split(b"\n")[0]
    assert json.loads(head) == {"run_id": "run", "nonce": "0" * 32, "step": "keys", "digest": "digest"}
