"""``veilrec partner check``: what a partner sees of its own folder, and of the attacks on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from client.policy import Policy
from client.premises import IDENTITY_FILE, LEDGER_FILE, PARTNER_FILE, Premises
from shared.errors import IntegrityError
from shared.hazmat.signing import SigningKey
from shared.privacy.ledger import Ledger
from simulations.evil_server import runner
from simulations.evil_server.adversary import Adversary
from simulations.evil_server.commands import partner_app
from simulations.evil_server.play import Play
from simulations.evil_server.practice import Practice
from simulations.evil_server.premises_check import Check, check_premises, fingerprint, policy_in_words
from simulations.evil_server.runner import ATTACKS, attack_partner

FEW = tuple(attack for attack in ATTACKS if attack.name in ("unsigned plan", "a ledger rolled back"))


@pytest.fixture
def folder(practice: Practice, tmp_path: Path) -> Path:
    """A partner that has taken part in a round."""
    practice.restore()
    Play(Adversary(practice)).summed()
    copy = tmp_path / "mine"
    shutil.copytree(practice.folder(practice.names[0]), copy)
    practice.restore()
    return copy


def veilrec(*arguments: str | Path) -> Result:
    """``veilrec partner ...``"""
    return CliRunner().invoke(partner_app, [str(argument) for argument in arguments])


def wrong(folder: Path) -> list[Check]:
    return [check for check in check_premises(folder) if not check.ok]


def test_a_folder_in_order_is_described_and_not_touched(folder: Path) -> None:
    before = fingerprint(folder)
    result = veilrec("check", folder)
    assert result.exit_code == 0, result.output
    assert "FAIL" not in result.stdout
    assert "users, 24 items" in result.stdout
    assert "verified; epsilon 4.79" in result.stdout
    assert "All runs on these data together may spend epsilon at most 8 and delta 0.0001" in result.stdout
    assert fingerprint(folder) == before


def test_the_document_of_a_check_holds_what_is_printed(folder: Path) -> None:
    result = veilrec("check", folder, "--json")
    told = json.loads(result.stdout)
    names = [PARTNER_FILE, "coordinator", "identity key", "data", "base model", "ledger"]
    assert [check["name"] for check in told["checks"]] == names
    assert all(check["ok"] for check in told["checks"])
    assert told["policy"] == policy_in_words(Premises.open(folder).policy)


def no_settings(folder: Path) -> None:
    (folder / PARTNER_FILE).unlink()


def no_data(folder: Path) -> None:
    (folder / "interactions.parquet").write_bytes(b"none")


def open_key(folder: Path) -> None:
    (folder / IDENTITY_FILE).chmod(0o644)


def other_key(folder: Path) -> None:
    (folder / IDENTITY_FILE).unlink()
    SigningKey.load_or_create(folder / IDENTITY_FILE)


def no_key(folder: Path) -> None:
    (folder / IDENTITY_FILE).unlink()


def changed_ledger(folder: Path) -> None:
    file = folder / LEDGER_FILE
    file.write_bytes(file.read_bytes().replace(b'"epsilon":4.', b'"epsilon":3.', 1))


def no_base(folder: Path) -> None:
    file = folder / PARTNER_FILE
    file.write_text(file.read_text().replace("all-MiniLM-L6-v2", "no-such-model"))


def other_digest(folder: Path) -> None:
    file = folder / PARTNER_FILE
    file.write_text(file.read_text().replace("all-MiniLM-L6-v2", "0" * 64))


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (no_settings, [PARTNER_FILE]),
        (no_data, ["data"]),
        (open_key, ["identity key", "ledger"]),
        (other_key, ["identity key", "ledger"]),
        (no_key, ["identity key"]),
        (changed_ledger, ["ledger"]),
        (no_base, ["base model"]),
        (other_digest, ["base model"]),
    ],
)
def test_what_is_wrong_with_a_folder_is_named(folder: Path, spoil: Callable[[Path], None], what: list[str]) -> None:
    spoil(folder)
    assert [check.name for check in wrong(folder)] == what
    result = veilrec("check", folder)
    assert result.exit_code == 1
    assert result.stdout.count("FAIL") == len(what)


def test_a_partner_of_simulated_data_needs_neither_key_nor_ledger_but_a_coordinator(tmp_path: Path) -> None:
    (tmp_path / PARTNER_FILE).write_text('name = "me"\nsimulated = true\n')
    checks = {check.name: check for check in check_premises(tmp_path)}
    assert checks["identity key"].found.startswith("none yet")
    assert checks["ledger"].found == "none yet: nothing was spent"
    assert not checks["coordinator"].ok
    assert [path.name for path in tmp_path.iterdir()] == [PARTNER_FILE]


def test_a_policy_without_limits_says_so() -> None:
    words = " ".join(policy_in_words(Policy()))
    assert "epsilon no limit" in words and "any number of training rounds" in words and "one of: any" in words


def test_a_policy_is_told_by_its_own_numbers() -> None:
    policy = Policy(
        min_colluders=2, min_partners_per_user=3, max_epsilon=1.5, max_rounds=9, max_head_rank=7, max_events=33
    )
    words = " ".join(policy_in_words(policy))
    assert "rank of the head 7" in words and "events read of a user 33" in words
    assert "even if 2 of them help" in words and "known to 3 partners" in words
    assert "epsilon at most 1.5" in words and "at most 9 training rounds" in words


def test_the_command_says_how_it_is_used() -> None:
    result = veilrec("check", "--help")
    assert result.exit_code == 0
    assert "DIR" in result.stdout


def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole kit takes longer and is run elsewhere."""
    monkeypatch.setattr(runner, "attack_partner", partial(attack_partner, attacks=FEW))


def test_the_attacks_are_printed_and_the_folder_is_not_touched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch)
    before = fingerprint(folder)
    result = veilrec("check", "--evil-server", folder)
    assert result.exit_code == 0, result.output
    assert "2 of 2 attacks refused" in result.stdout
    assert fingerprint(folder) == before


def test_the_document_of_the_attacks_is_all_that_is_printed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch)
    told = json.loads(veilrec("check", "--evil-server", folder, "--json").stdout)
    assert (told["refused"], told["total"]) == (2, 2)
    keys = {"name", "description", "expected", "got", "refused", "seconds"}
    assert all(set(attack) == keys for attack in told["attacks"])
    assert {attack["got"] for attack in told["attacks"]} == {"InvalidSignatureError", "LedgerError"}


def test_an_attack_that_is_not_refused_fails_the_check(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch)
    monkeypatch.setattr(Ledger, "accept_receipt", lambda *_: None)
    result = veilrec("check", "--evil-server", folder)
    assert result.exit_code == 1
    assert "answered: Outbox (expected LedgerError)" in result.stdout
    assert "1 of 2 attacks refused" in result.stdout


def test_a_folder_that_changed_meanwhile_fails_the_check(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "attack_partner", lambda *_, **__: (folder / "new").touch() or [])
    result = veilrec("check", "--evil-server", folder)
    assert isinstance(result.exception, IntegrityError)
