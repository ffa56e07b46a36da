"""A ledger in the hands of an auditor: what it tells, and what it cannot hide."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from ledgers import BARE, COHORT, KEY, PLAN, SERVER, asked, digest, flat, forge, make, whole_round
from typer.testing import CliRunner

from shared.errors import (
    ConfigError,
    DataError,
    LedgerError,
)
from shared.privacy.commands import ledger_app
from shared.privacy.ledger import Ledger, sign_receipt
from shared.privacy.ledger_audit import LedgerReport, read_ledger, verify_ledger
from shared.privacy.ledger_entries import (
    Body,
    Declaration,
    Genesis,
    Opened,
    Release,
)
from shared.privacy.ledger_heads import LedgerHead


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "partner" / "ledger.jsonl"


@pytest.fixture
def ledger(path: Path) -> Ledger:
    return make(path)


# --- the auditor ----------------------------------------------------------------------------------


def test_an_audit_tells_what_was_spent_and_what_was_left_hanging(ledger: Ledger, path: Path) -> None:
    whole_round(ledger, 1, "prior")
    ledger.reserve(asked(2))  # and then a crash
    ledger.accept_receipt(sign_receipt(SERVER, "north", ledger.head()), SERVER.public)
    ledger.declare("bare", BARE, None, math.inf, 1.0)
    report = verify_ledger(path, KEY.public, SERVER.public, accountant=flat)
    run, bare = report.runs
    assert (run.planned, run.reserved, run.released, run.opened, run.dangling) == (4, 2, 1, 1, 1)
    assert (run.epsilon, run.recomputed_epsilon, bare.epsilon, bare.recomputed_epsilon) == (3.0, 3.0, None, None)
    assert (report.receipts, report.countersigned) == (1, 6)
    assert (report.head, report.identity) == (ledger.head(), KEY.public.text)


def test_an_audit_needs_a_ledger(path: Path) -> None:
    with pytest.raises(LedgerError, match="Expected a ledger at"):
        read_ledger(path)
    path.parent.mkdir()
    path.write_bytes(b"")
    with pytest.raises(LedgerError, match="without one whole line"):
        read_ledger(path)


def test_an_audit_knows_the_keys(ledger: Ledger, path: Path) -> None:
    ledger.accept_receipt(sign_receipt(SERVER, "north", ledger.head()), SERVER.public)
    with pytest.raises(LedgerError, match=r"ledger\.jsonl, line 1: Expected identity"):
        verify_ledger(path, SERVER.public, accountant=flat)
    with pytest.raises(LedgerError, match=r"ledger\.jsonl, line 3: Expected a receipt by the pinned"):
        verify_ledger(path, KEY.public, KEY.public, accountant=flat)


def test_an_audit_does_not_believe_a_receipt_that_the_partner_made_up(ledger: Ledger, path: Path) -> None:
    forge(path, replace(sign_receipt(KEY, "north", ledger.head()), server=SERVER.public.text))
    with pytest.raises(LedgerError, match="line 3: Expected a signature"):
        verify_ledger(path, server=SERVER.public, accountant=flat)
    with pytest.raises(LedgerError, match="line 3: Expected a signature"):
        verify_ledger(path, accountant=flat)


def test_an_audit_recomputes_every_epsilon(ledger: Ledger, path: Path) -> None:
    assert verify_ledger(path, accountant=lambda plan, rounds: 3.001).runs[0].recomputed_epsilon == 3.001
    assert verify_ledger(path, accountant=lambda plan, rounds: 2.0).runs[0].recomputed_epsilon == 2.0
    for more in (3.01, math.nan):
        with pytest.raises(LedgerError, match="line 2: Expected epsilon >= "):
            verify_ledger(path, accountant=lambda plan, rounds, more=more: more)  # type: ignore[misc]


def test_an_audit_asks_the_real_accountant_about_the_whole_plan(path: Path) -> None:
    from shared.privacy.accounting import epsilon_spent

    plan = replace(PLAN, rounds=1, sampling_rate=1.0, partners_per_user=1)
    epsilon = epsilon_spent(plan, 1)
    assert epsilon is not None
    Ledger(path, KEY).declare("run", plan, epsilon, 80.0, 1e-4)
    assert verify_ledger(path).runs[0].recomputed_epsilon == epsilon


def _declaration(**changes: Any) -> Declaration:
    honest = Declaration("second", asdict(PLAN), PLAN.digest(), 3.0, 1e-5, 8.0, 1e-4)
    return replace(honest, **changes)


@pytest.mark.parametrize(
    ("bodies", "told"),
    [
        ([_declaration(epsilon=5.5)], "Expected epsilon <= 5 left"),
        ([_declaration(max_delta=1e-5)], "Expected delta <= 0 left"),
        ([_declaration(delta=0.0)], "Expected delta=1e-05 as in the declared plan"),
        ([_declaration(plan_digest="0" * 64)], "digest of the declared plan"),
        ([_declaration(plan={"mode": "none"})], "fields of a PrivacyPlan"),
        ([_declaration(run_id="run")], "changes nothing"),
        ([Release("run", 1, digest("sum"))], "a reservation before"),
        ([asked(1), asked(1)], "changes nothing"),
        ([asked(1), asked(1, of="again")], "same request"),
        ([asked(1), asked(2), asked(3), asked(4)], "at most 3 rounds"),
        ([replace(asked(1), noise_multiplier=1.0)], "the plan's rate"),
        ([asked(1), Opened("run", 1, COHORT)], "a release before"),
        ([asked(1), Release("run", 1, digest("sum")), Opened("run", 1, COHORT[:3])], "survivors >= 4"),
        ([asked(1), Release("run", 1, digest("sum")), Opened("run", 1, COHORT[::-1])], "in order"),
        ([Genesis("0" * 32, KEY.public.text)], "in the first line and nowhere else"),
        ([sign_receipt(SERVER, "north", LedgerHead(2, "0" * 64))], "rolled back or forked"),
        ([sign_receipt(SERVER, "north", LedgerHead(3, "0" * 64))], "rolled back or forked"),
    ],
)
def test_an_audit_finds_what_a_partner_wrote_against_the_rules(
    ledger: Ledger, path: Path, bodies: list[Body], told: str
) -> None:
    forge(path, *bodies)
    with pytest.raises(LedgerError, match=rf"ledger\.jsonl, line {2 + len(bodies)}: .*{told}"):
        verify_ledger(path, accountant=flat)


def test_a_plan_of_an_older_version_is_still_read(path: Path) -> None:
    # As if `mechanism` had not been a field when this was written: the digest of today's plan is another.
    fields = {key: value for key, value in asdict(PLAN).items() if key != "mechanism"}
    genesis = Genesis("0" * 32, KEY.public.text)
    forge(
        path,
        genesis,
        _declaration(plan=fields, plan_digest="1" * 64),
        replace(asked(1, run="second"), plan_digest="1" * 64),
    )
    ledger = Ledger(path, KEY)
    assert ledger.spent().epsilon == 3.0
    ledger.declare("run", PLAN, 3.0, 8.0, 1e-4)


# --- the command ----------------------------------------------------------------------------------


def _run(*arguments: str) -> str:
    ended = CliRunner().invoke(ledger_app, list(arguments), catch_exceptions=False)
    assert ended.exit_code == 0
    return ended.stdout


def test_the_command_shows_a_ledger(ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    whole_round(ledger, 1)
    ledger.reserve(asked(2))
    shown = _run("show", str(path))
    for told in ("run", "distributed", "dangling", "spent: epsilon 3, delta 1e-05", "6 entries", KEY.public.text):
        assert told in shown
    assert "torn" not in shown
    path.write_bytes(path.read_bytes() + b"{")
    assert "torn: 1 bytes" in _run("show", str(path))


def test_the_command_prints_one_json_document(ledger: Ledger, path: Path) -> None:
    ledger.reserve(asked(1))
    told = json.loads(_run("show", str(path), "--json"))
    assert told["runs"][0]["dangling"] == 1
    assert told["spent"] == {"epsilon": 3.0, "delta": 1e-5, "plans": 1}
    assert told["head"] == asdict(ledger.head())
    ledger.declare("bare", BARE, None, math.inf, 1.0)
    assert json.loads(_run("show", str(path), "--json"))["spent"]["epsilon"] is None


def test_the_command_verifies_with_the_accountant(ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from shared.privacy import accounting

    keys = ("--identity", KEY.public.text, "--server", SERVER.public.text)
    monkeypatch.setattr(accounting, "epsilon_spent", flat)
    assert "epsilon 3 declared, 3 recomputed" in _run("verify", str(path), *keys)
    assert json.loads(_run("verify", str(path), *keys, "--json"))["runs"][0]["recomputed_epsilon"] == 3.0
    with pytest.raises(LedgerError, match="another partner's"):
        _run("verify", str(path), "--identity", SERVER.public.text)
    monkeypatch.setattr(accounting, "epsilon_spent", lambda plan, rounds: 4.0)
    with pytest.raises(LedgerError, match="Expected epsilon >= 4"):
        _run("verify", str(path))


def test_the_command_takes_the_receipts_of_the_server(ledger: Ledger, path: Path, tmp_path: Path) -> None:
    ledger.declare("bare", BARE, None, math.inf, 1.0)
    short = tmp_path / "short.jsonl"
    forge(short, Genesis("0" * 32, KEY.public.text))
    receipt = sign_receipt(SERVER, "north", read_ledger(short).head)
    book = tmp_path / "receipts.json"
    book.write_text(json.dumps({"north": asdict(receipt), "south": {}, "east": asdict(replace(receipt, count=0))}))
    _run("verify", str(short), "--receipts", str(book), "--partner", "north", "--server", SERVER.public.text)
    with pytest.raises(LedgerError, match=r"a receipt of the server's: .* rolled back or forked"):
        _run("verify", str(path), "--receipts", str(book), "--partner", "north")
    for partner in ("south", "east", "west"):
        with pytest.raises(DataError, match="hold a receipt"):
            _run("verify", str(short), "--receipts", str(book), "--partner", partner)
    with pytest.raises(ConfigError, match="--partner"):
        _run("verify", str(short), "--receipts", str(book))


def test_the_report_has_no_field_that_depends_on_data(ledger: Ledger, path: Path) -> None:
    whole_round(ledger, 1)
    report: LedgerReport = read_ledger(path)
    assert digest("sum 1") not in json.dumps(asdict(report))
