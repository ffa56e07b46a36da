"""The partner's agent as it stays: one process, one partner, one message at a time, for months.

It answers a repeated message as it did before, and takes changed data or a changed floor up between rounds, never
within one.
"""

from __future__ import annotations

import hashlib
import threading
import time
from pathlib import Path
from typing import Protocol

from client.agent import PartnerAgent
from client.answer_book import AnswerBook, Asked
from client.door import refusal_of
from client.intake.commit import data_version, stamp_of
from client.premises import PARTNER_FILE, RUNS, Premises
from shared.requests import (
    BareRequest,
    ConsentRequest,
    KeysRequest,
    OpenRequest,
    Request,
    SharesRequest,
    SumRequest,
)
from shared.wire import parse_plan, unpack_request
from shared.wire_answers import error_name, pack_answer
from shared.wire_frames import from_frame, to_frame

STEPS: dict[type[Request], str] = {
    KeysRequest: "keys",
    SharesRequest: "shares",
    SumRequest: "sum",
    ConsentRequest: "consent",
    OpenRequest: "open",
    BareRequest: "bare",
}
FIRST = (KeysRequest, BareRequest)
"""The requests that begin an attempt."""


class Watcher(Protocol):
    """Who counts what the agent does (`client.agent_monitor.AgentMonitor`)."""

    def answered(self, step: str, seconds: float, bytes_in: int, bytes_out: int) -> None:
        """An answer left."""

    def refused(self, family: str) -> None:
        """A refusal left."""

    def take_up(self, premises: Premises) -> None:
        """The folder says something else now."""


class ResidentAgent:
    """The agent of one folder.

    Parameters
    ----------
    folder : Path
        The partner's.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``mps``.
    watcher : Watcher
    """

    def __init__(self, folder: Path, device: str, watcher: Watcher) -> None:
        self._folder, self._device, self._watcher = folder, device, watcher
        self._turn = threading.Lock()
        self._book = AnswerBook(folder / RUNS)
        self._open()

    @property
    def premises(self) -> Premises:
        """What the agent works with now."""
        return self._agent.premises

    def answer(self, frame: bytes) -> bytes:
        """The answer to a message, or the name of its error's family; both as `shared.wire_frames` writes them."""
        began = time.monotonic()
        with self._turn:
            try:
                request = unpack_request(from_frame(frame))
                answer = self._answer(request, _asked(request, frame))
            except Exception as error:
                refusal = refusal_of(error)
                self._watcher.refused(error_name(refusal))
                return to_frame(refusal)
        self._watcher.answered(STEPS[type(request)], time.monotonic() - began, len(frame), len(answer))
        return answer

    def _answer(self, request: Request, asked: Asked) -> bytes:
        kept = self._book.find(asked)
        if kept is not None:
            return kept
        if isinstance(request, FIRST):
            self._take_up_changes()
        answer = to_frame(pack_answer(self._agent.answer(request)))
        self._book.keep(asked, answer)
        return answer

    def _take_up_changes(self) -> None:
        if self._stamps() != self._seen:
            self._open()
            self._watcher.take_up(self.premises)

    def _open(self) -> None:
        settings = stamp_of(self._folder / PARTNER_FILE)  # before it is read: a floor that changes meanwhile is seen
        premises = Premises.open(self._folder)
        seen = settings, data_version(premises)
        self._agent = PartnerAgent(premises, self._device)
        self._seen = seen

    def _stamps(self) -> tuple[str, str]:
        """Of the files that decide what is answered; all of them are replaced whole, never written in place."""
        return stamp_of(self._folder / PARTNER_FILE), data_version(self.premises)


def _asked(request: Request, frame: bytes) -> Asked:
    step, digest = STEPS[type(request)], hashlib.sha256(frame).hexdigest()
    if isinstance(request, KeysRequest | BareRequest):
        order = parse_plan(request.signed.text)  # nothing but names a file by it; the agent checks all of it
        return Asked(order.run_id, order.attempt, step, digest)
    return Asked(request.attempt.run_id, request.attempt.nonce, step, digest)
