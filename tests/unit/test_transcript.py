"""Transcripts: what is public of a round's sums, signed, one file a round, and no more than that."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evidence_setting import SETTINGS, enrolled, given_sums, trained
from gathering_setting import Federation, configured

from server.checkpoint import Checkpoint, CheckpointStore
from server.transcript import ROUND_TRANSCRIPT, TRANSCRIPTS, transcript_statement
from shared.config import RunConfig
from shared.errors import InvalidSignatureError
from shared.exchange import CONSENT, OFFER, Roster, Survivors, consent_statement, offer_statement, roster_digest
from shared.messages import SignedPlan
from shared.privacy.ledger_heads import from_base64
from simulations.audit.bundle.transcripts import Transcript

KEYS = {"format", "round", "plan", "sums", "record", "signature"}
SUM_KEYS = {"masked", "roster", "survivors", "consents", "heads", "total_sha256"}


@pytest.fixture
def federation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Federation:
    """Four partners of whom three must survive."""
    return Federation.of(tmp_path, monkeypatch)


def test_a_masked_sum_tells_who_was_in_it_and_who_paid(federation: Federation) -> None:
    gathered = federation.attempt(1)
    (told,) = gathered.sums
    names = tuple(federation.partners)
    assert (told.masked, told.survivors) == (True, names)
    assert tuple(offer.name for offer in told.roster) == tuple(one.name for one in told.consents) == names
    assert {name: head.count for name, head in told.heads.items()} == dict.fromkeys(names, 4)
    total = federation.noised(1).astype("<i8")
    assert told.total_sha256 == hashlib.sha256(total.tobytes()).hexdigest()


def test_who_dropped_out_is_in_the_roster_and_nowhere_else(federation: Federation) -> None:
    federation.faults[3, "sum"] = "silent"
    (told,) = federation.attempt(1).sums
    assert len(told.roster) == 4
    assert (
        set(told.survivors)
        == set(told.heads)
        == {one.name for one in told.consents}
        == set(federation.partners) - {"partner-003"}
    )


def test_a_sum_in_the_open_tells_names_heads_and_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation.of(tmp_path, monkeypatch, configured(federation={"secure_sum": False}))
    (told,) = federation.attempt(1).sums
    assert (told.masked, told.roster, told.consents) == (False, (), ())
    assert told.survivors == tuple(sorted(told.heads)) == tuple(federation.partners)
    assert told.total_sha256 == hashlib.sha256(federation.noised(1).astype("<i8").tobytes()).hexdigest()


# --- the files ------------------------------------------------------------------------------------


class Killed(BaseException):
    """Not an Exception: nothing on the way may catch it, as nothing catches SIGKILL."""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "run" / "partners"


def files(out: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted((out / TRANSCRIPTS).iterdir())]


def test_a_transcript_holds_signatures_that_can_be_checked_and_no_secret(home: Path) -> None:
    config = RunConfig.model_validate(SETTINGS)
    admission = enrolled(home, 4)
    with given_sums(home):
        _, records = trained(home.parent, home, admission, config)
    written = files(home.parent)
    assert [told["record"] for told in written] == records and len(written) == 3
    for told in written:
        assert told.keys() == KEYS and told["sums"][0].keys() == SUM_KEYS
        assert {key for offer in told["sums"][0]["roster"] for key in offer} == {
            "name",
            "sealing_key",
            "mask_key",
            "signature",
        }
        check(told, admission)
        told["record"]["cohort"] = 3
        with pytest.raises(InvalidSignatureError):
            check(told, admission)


def check(told: dict[str, Any], admission: Any) -> None:
    """As an outsider would, with the public keys alone."""
    admission.key.public.verify(ROUND_TRANSCRIPT, transcript_statement(told), from_base64(told["signature"]))
    read = Transcript("transcripts/round-0001.json", json.dumps(told).encode())
    context, one = SignedPlan(told["plan"]["text"], b"").context, read.sums[0]
    for offer in one.offers:
        statement = offer_statement(context, offer.name, offer.sealing_key, offer.mask_key)
        admission.identities[offer.name].verify(OFFER, statement, offer.signature)
    digest = roster_digest(context, Roster(one.offers))
    for consent in one.signed:
        statement = consent_statement(digest, Survivors(tuple(one.survivors)))
        admission.identities[consent.name].verify(CONSENT, statement, consent.signature)


def test_a_run_that_is_resumed_keeps_the_transcripts_of_whole_rounds_and_replaces_the_others(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after the second round was opened and told, and before its checkpoint was written."""
    config, out = RunConfig.model_validate(SETTINGS), home.parent
    admission, save = enrolled(home, 4), CheckpointStore.save

    def killed(self: CheckpointStore, checkpoint: Checkpoint) -> None:
        if checkpoint.round == 2:
            raise Killed
        save(self, checkpoint)

    monkeypatch.setattr(CheckpointStore, "save", killed)
    with given_sums(home), pytest.raises(Killed):
        trained(out, home, admission, config)
    first, failed = files(out)
    monkeypatch.setattr(CheckpointStore, "save", save)
    with given_sums(home):
        _, records = trained(out, home, admission, config)
    again = files(out)
    assert len(again) == 3 and again[0] == first
    one, other = (json.loads(told["plan"]["text"]) for told in (failed, again[1]))
    assert one.pop("attempt") != other.pop("attempt") and one == other
    assert again[1]["record"] == records[1] != failed["record"]
    assert again[1]["sums"][0]["total_sha256"] == failed["sums"][0]["total_sha256"]  # one noised sum a round, ever


def test_a_diverged_run_without_noise_is_told_as_well(tmp_path: Path, federation: Federation) -> None:
    """Its loss is no number; that must not end the run."""
    from server.transcript import TranscriptBook

    book = TranscriptBook(tmp_path / "t", federation.admission.key)
    book.keep(1, SignedPlan("{}", b""), federation.attempt(1).sums, {"loss": float("nan")})
    told = json.loads(book.file(1).read_text(encoding="utf-8"))
    assert np.isnan(told["record"]["loss"])
    statement = transcript_statement(told)
    federation.admission.key.public.verify(ROUND_TRANSCRIPT, statement, from_base64(told["signature"]))
