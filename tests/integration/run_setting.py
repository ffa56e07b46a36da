"""What the tests of whole simulations share: when two runs are the same, and how one is killed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from client.agent import PartnerAgent
from server.admission import Admission
from shared.privacy.ledger_audit import read_ledger
from shared.release_files import SIGNATURE_FILE, read_manifest
from shared.requests import ConsentRequest, KeysRequest, OpenRequest, Request, SharesRequest, SumRequest
from shared.wire import parse_plan
from simulations.progress import RunProgress

if TYPE_CHECKING:
    from conftest import Done

ROUNDS = (1, 2, 3, 4)
"""The prior's, then three of training."""
EXCHANGES = (KeysRequest, SharesRequest, SumRequest, ConsentRequest, OpenRequest)
SECRET = "user 17 hates her neighbour"
Document = dict[str, Any]


class Killed(BaseException):
    """Not an Exception: nothing on the way may catch it, as nothing catches SIGKILL."""


def lasting(document: Document) -> Document:
    """What must not differ between runs: all but times, and the speeds that follow from them."""
    return {key: value for key, value in document.items() if key != "timing"}


def rounds(out: Path) -> list[Document]:
    lines = (out / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    # A partner that comes back is sent the prior once more: bytes, but no other result.
    return [{k: v for k, v in json.loads(line).items() if k not in ("seconds", "bytes_down")} for line in lines]


def files(folder: Path) -> dict[str, bytes]:
    return {entry.name: entry.read_bytes() for entry in sorted(folder.iterdir())}


def released(out: Path) -> dict[str, bytes]:
    """The release of a run, without the signature, which is checked: each coordinator has a key of its own."""
    read_manifest(out / "adapter", Admission.open(out / "partners").key.public)
    return {name: data for name, data in files(out / "adapter").items() if name != SIGNATURE_FILE}


def same_run(out: Path, document: Document, whole: Done) -> None:
    assert lasting(document) == lasting(whole.document)
    assert released(out) == released(whole.out)
    assert rounds(out) == rounds(whole.out)
    paid_once(out)


def paid_once(out: Path) -> None:
    """Every round of the plan was reserved, drawn and opened at every partner, once."""
    for partner in range(3):
        (paid,) = read_ledger(out / "partners" / f"partner-{partner:03d}" / "ledger.jsonl").runs
        assert (paid.planned, paid.reserved, paid.released, paid.opened) == (len(ROUNDS),) * 4


def round_of(agent: PartnerAgent, request: Request) -> int:
    """The round that a request belongs to: all but the first name it by its attempt alone."""
    if isinstance(request, KeysRequest):
        return parse_plan(request.signed.text).round
    state = agent._folder(request.attempt.run_id).state()  # type: ignore[union-attr]
    assert state is not None
    return state.round


def killed_after(number: int, patch: pytest.MonkeyPatch) -> None:
    """As soon as the round is over and told."""
    told = RunProgress.round_done

    def round_done(self: RunProgress, record: Document) -> None:
        told(self, record)
        if record["round"] == number:
            raise Killed

    patch.setattr(RunProgress, "round_done", round_done)
