"""What the coordinator countersigns, keeps, and shows to a partner whose ledger was rolled back."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from gathering_setting import Federation, configured

from server.receipts import ReceiptBook
from shared.errors import IntegrityError, InvalidSignatureError, ProtocolError
from shared.hazmat.signing import SigningKey
from shared.privacy.ledger import LedgerHead
from shared.privacy.ledger_audit import read_ledger, verify_ledger

KEY = SigningKey.generate()


def head(count: int, of: str = "a") -> LedgerHead:
    return LedgerHead(count, of * 64)


@pytest.fixture
def book(tmp_path: Path) -> ReceiptBook:
    return ReceiptBook(tmp_path / "receipts.json")


# --- the book -------------------------------------------------------------------------------------


def test_a_receipt_is_the_coordinator_s_word_on_one_head_of_one_partner(book: ReceiptBook) -> None:
    book.add({"anna": head(3)}, KEY)
    receipt = book.last("anna")
    assert receipt is not None
    assert (receipt.partner, receipt.count, receipt.hash) == ("anna", 3, "a" * 64)
    receipt.verify(KEY.public)
    for changed in (replace(receipt, partner="ben"), replace(receipt, count=4), replace(receipt, hash="b" * 64)):
        with pytest.raises(InvalidSignatureError):
            changed.verify(KEY.public)
    with pytest.raises(InvalidSignatureError):
        receipt.verify(SigningKey.generate().public)


def test_a_book_lasts(book: ReceiptBook, tmp_path: Path) -> None:
    book.add({"anna": head(3), "ben": head(5, "b")}, KEY)
    book.add({"ben": head(6, "c")}, KEY)
    again = ReceiptBook(tmp_path / "receipts.json")
    for name in ("anna", "ben"):
        assert again.last(name) == book.last(name) is not None
    assert again.last("carl") is None
    again.add({"carl": head(1)}, KEY)
    assert ReceiptBook(tmp_path / "receipts.json").last("anna") == book.last("anna")


@pytest.mark.parametrize("back", [head(4), head(4, "b"), head(5, "b"), head(1)], ids=repr)
def test_a_head_that_does_not_go_on_is_not_countersigned(book: ReceiptBook, tmp_path: Path, back: LedgerHead) -> None:
    book.add({"anna": head(5)}, KEY)
    signed = book.last("anna")
    book.add({"anna": back, "ben": head(1)}, KEY)
    assert book.last("anna") == ReceiptBook(tmp_path / "receipts.json").last("anna") == signed
    assert book.last("ben") is not None  # the others are not held up by it


def test_a_crash_while_the_book_is_written_leaves_the_one_before(
    book: ReceiptBook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book.add({"anna": head(5)}, KEY)
    before = (tmp_path / "receipts.json").read_bytes()
    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk"):
        patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError("no disk")))
        book.add({"anna": head(6)}, KEY)
    assert (tmp_path / "receipts.json").read_bytes() == before


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"anna": {}}', '{"anna": 3}', '{"anna": {"count": 3}}'])
def test_what_is_no_book_is_refused(tmp_path: Path, text: str) -> None:
    """An empty one instead would countersign a ledger that was rolled back."""
    (tmp_path / "receipts.json").write_text(text)
    with pytest.raises(IntegrityError, match="Expected receipts of ledgers"):
        ReceiptBook(tmp_path / "receipts.json")


def test_a_book_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "receipts.json").mkdir()
    with pytest.raises(IntegrityError, match="Expected receipts of ledgers"):
        ReceiptBook(tmp_path / "receipts.json")


# --- what it is for -------------------------------------------------------------------------------


@pytest.fixture(params=[True, False], ids=["masked", "bare"])
def federation(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Federation:
    return Federation.of(tmp_path, monkeypatch, configured(federation={"secure_sum": request.param}))


def test_every_round_is_countersigned_and_partners_keep_the_receipts(federation: Federation) -> None:
    for number in (1, 2, 3):
        federation.attempt(number)
    told = json.loads((federation.root / "receipts.json").read_text())
    for k, (name, fragile) in enumerate(federation.partners.items()):
        report = verify_ledger(
            federation.ledger_file(k),
            fragile.agent.premises.identity.public,
            federation.admission.key.public,
            receipts=[receipt for receipt in [federation.receipts.last(name)] if receipt],
        )
        assert report.receipts == 2  # of rounds 1 and 2; that of round 3 comes with round 4
        assert told[name]["count"] > report.countersigned > 1


def rolled_back(federation: Federation, how: str) -> None:
    """Partner 1's disk as it was after round 1, though round 2 was countersigned."""
    file = federation.ledger_file(1)
    federation.attempt(1)
    old = file.read_bytes()
    federation.attempt(2)
    if how == "deleted":
        file.unlink()
    else:
        file.write_bytes(old)
    if how != "under the process":
        federation.restart("partner-001")


@pytest.mark.parametrize("how", ["restored", "deleted", "under the process"])
def test_a_partner_whose_ledger_was_rolled_back_refuses_and_spends_nothing(federation: Federation, how: str) -> None:
    rolled_back(federation, how)
    file = federation.ledger_file(1)
    before = file.read_bytes()
    gathered = federation.attempt(3)  # the quorum is 3 of 4
    assert gathered.partners == 3 and ("partner-001", 3) not in federation.drawn
    assert file.read_bytes() == before
    federation.faults[2, "keys" if federation.config.federation.masked else "bare"] = "silent"
    with pytest.raises(ProtocolError, match="partners refused with LedgerError"):
        federation.attempt(4)
    assert file.read_bytes() == before
    assert len(read_ledger(file).runs) == (0 if how == "deleted" else 1)


def test_without_the_receipt_a_rollback_would_go_unseen(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted bug: the coordinator forgets. Nothing on the partner's own disk could tell."""
    rolled_back(federation, "restored")
    monkeypatch.setattr(ReceiptBook, "last", lambda *_: None)
    assert federation.attempt(3).partners == 4


def test_a_receipt_by_another_coordinator_is_refused(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    federation.attempt(1)
    other, last = SigningKey.generate(), ReceiptBook.last

    def forged(self: ReceiptBook, partner: str) -> Any:
        receipt = last(self, partner)
        return receipt and replace(receipt, server=other.public.text)

    monkeypatch.setattr(ReceiptBook, "last", forged)
    with pytest.raises(ProtocolError, match="partners refused with InvalidSignatureError"):
        federation.attempt(2)
