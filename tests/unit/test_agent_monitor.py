"""What an agent tells of itself, to whom, and that none of it is a user's."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from partner_setting import CONFIG, NAME, SECRET, SIMULATED, Federation, changed

from client.agent_monitor import AgentMonitor
from client.premises import Premises
from shared.errors import BudgetExhaustedError
from shared.hazmat.signing import SigningKey
from shared.privacy.ledger import Ledger
from shared.privacy.ledger_audit import read_ledger

EPSILON = 6.83


@pytest.fixture
def federation(tmp_path: Path) -> Federation:
    return Federation.of(tmp_path)


def monitor_of(federation: Federation, **told: Any) -> AgentMonitor:
    return AgentMonitor(Premises.open(federation.folder), **told)


def metrics(monitor: AgentMonitor) -> dict[str, float]:
    """By name and labels."""
    lines = [line for line in monitor.exposition().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_the_budget_is_what_the_ledger_says_against_the_floor(federation: Federation) -> None:
    monitor = monitor_of(federation)
    before = monitor.status()
    assert before["budget"]["epsilon_spent"] == 0 and before["budget"]["epsilon_left"] == 12.0
    assert before["ledger"]["entries"] == 1 and before["last_round"] is None
    federation.play().finish()
    told, ledger = monitor.status(), read_ledger(federation.ledger_file)
    assert told["budget"]["epsilon_spent"] == ledger.spent.epsilon == pytest.approx(EPSILON, abs=0.01)
    assert told["budget"]["epsilon_left"] == pytest.approx(12 - ledger.spent.epsilon)
    assert told["budget"]["delta_left"] == pytest.approx(1e-4 - 1e-5) and told["budget"]["plans"] == 1
    assert told["ledger"] == {"entries": ledger.head.count, "head": ledger.head.hash, "receipts": 0}
    assert told["last_round"] == {"run": "run", "round": 1, "stage": "prior", "state": "opened"}
    shown = metrics(monitor)
    assert shown["veilrec_agent_epsilon_spent"] == ledger.spent.epsilon
    assert shown["veilrec_agent_epsilon_limit"] == 12.0 and shown["veilrec_agent_ledger_ok"] == 1.0


def test_a_round_that_stopped_on_its_way_says_how_far_it_came(federation: Federation) -> None:
    from shared.requests import ConsentRequest

    federation.play().to(ConsentRequest)
    assert monitor_of(federation).status()["last_round"]["state"] == "released"


def test_answers_and_refusals_are_counted_and_the_last_error_is_a_name(federation: Federation) -> None:
    monitor = monitor_of(federation, device="cuda:0")
    # An alert on an increase would not see a first refusal whose series begins with it.
    assert metrics(monitor)['veilrec_agent_refusals_total{family="LedgerError"}'] == 0
    monitor.answered("sum", 2.5, 1000, 50_000)
    monitor.answered("sum", 0.5, 1000, 50_000)
    monitor.refused(BudgetExhaustedError("of a message that is not told").wire_name)
    shown, told = metrics(monitor), monitor.status()
    assert shown['veilrec_agent_answers_total{step="sum"}'] == 2
    assert shown['veilrec_agent_answer_seconds_sum{step="sum"}'] == 3.0
    assert shown['veilrec_agent_bytes_total{direction="out"}'] == 100_000
    assert shown['veilrec_agent_refusals_total{family="BudgetExhaustedError"}'] == 1
    assert told["last_error"]["family"] == "BudgetExhaustedError" and told["device"] == "cuda:0"
    assert abs(told["last_answer"] - time.time()) < 60 and abs(told["last_error"]["time"] - time.time()) < 60


def test_a_label_is_never_what_a_message_brought(federation: Federation) -> None:
    """Each new label is kept for ever, and is shown."""
    monitor = monitor_of(federation)
    for k in range(100):
        monitor.answered(f"{SECRET} {k}", 0.1, 1, 1)
        monitor.refused(f"{SECRET} {k}")
    told = monitor.exposition().decode() + json.dumps(monitor.status())
    assert SECRET not in told
    shown = metrics(monitor)
    assert shown['veilrec_agent_answers_total{step="other"}'] == shown['veilrec_agent_refusals_total{family="other"}']


def test_neither_status_nor_metrics_hold_a_user_an_item_or_a_text(federation: Federation) -> None:
    federation.play().finish()
    monitor = monitor_of(federation, data_version=lambda: "2026-01-31T06:00:00Z")
    monitor.answered("sum", 2.5, 1000, 50_000)
    told = monitor.exposition().decode() + json.dumps(monitor.status())
    assert not re.search(rf"user \d|item \d|Lamp|{SECRET}", told)
    assert federation.server.public.text not in told
    assert monitor.status()["data_version"] == "2026-01-31T06:00:00Z"
    assert monitor_of(federation, data_version=lambda: f"after {SECRET}").status()["data_version"] is None


def test_the_node_is_told_the_same_whatever_the_data_are_and_did(tmp_path: Path) -> None:
    """Users, times, errors, and what was spent: none of them moves a byte of it."""
    told = []
    for k, users in enumerate((2, 40)):
        federation = Federation.of(tmp_path / str(k), users=users)
        monitor = monitor_of(federation, device=("cpu", "cuda:0")[k], data_version=lambda users=users: f"rows-{users}")
        told.append(json.dumps(monitor.public_status()))
        if k:
            federation.play().finish()
            monitor.answered("sum", 7.0 * users, users, users)
            monitor.refused("EmptyHistoryError")
        told.append(json.dumps(monitor.public_status()))
    assert len(set(told)) == 1
    assert set(json.loads(told[0])) == {"partner", "version", "state"} and json.loads(told[0])["partner"] == NAME


def test_the_operator_s_own_status_would_not_pass_that_test(federation: Federation) -> None:
    """Else the two levels would be one."""
    monitor = monitor_of(federation)
    before = monitor.status()
    monitor.answered("sum", 7.0, 1, 1)
    monitor.refused("EmptyHistoryError")
    assert before != monitor.status()


@pytest.mark.parametrize("how", ["changed", "another's", "gone", "no ledger"])
def test_a_ledger_that_cannot_be_believed_is_said_to_be_so(federation: Federation, how: str) -> None:
    federation.play().finish()
    monitor = monitor_of(federation)
    assert monitor.status()["ledger_error"] is None
    file, whole = federation.ledger_file, federation.ledger_file.read_bytes()
    match how:
        case "changed":
            file.write_bytes(whole.replace(b'"round":1', b'"round":2', 1))
        case "another's":
            file.unlink()
            Ledger(file, SigningKey.generate())
        case "gone":
            file.unlink()
        case _:
            file.write_bytes(b"")
    told, shown = monitor.status(), metrics(monitor)
    assert told["ledger"] is None and told["ledger_error"] == "LedgerError"
    assert told["budget"] == {"epsilon_limit": 12.0, "delta_limit": 1e-4}
    assert shown["veilrec_agent_ledger_ok"] == 0 and "veilrec_agent_epsilon_spent" not in shown
    file.write_bytes(whole)
    assert monitor.status()["ledger"]["entries"] == len(whole.splitlines())


def test_a_ledger_that_grows_is_read_on_from_where_it_was(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger of years would otherwise be verified anew at every scrape."""
    monitor = monitor_of(federation)
    monitor.status()
    federation.play().finish()
    read: list[int] = []
    inner = SigningKey.generate().public.__class__.verify
    monkeypatch.setattr("shared.hazmat.signing.VerifyKey.verify", lambda *told: (read.append(1), inner(*told))[1])
    monitor.status()
    assert len(read) == len(federation.ledger_file.read_bytes().splitlines()) - 1
    monitor.status()
    assert len(read) == len(federation.ledger_file.read_bytes().splitlines()) - 1


def test_a_line_that_is_still_being_written_is_waited_for(federation: Federation) -> None:
    federation.play().finish()
    file, whole = federation.ledger_file, federation.ledger_file.read_bytes()
    file.write_bytes(whole[:-20])
    monitor = monitor_of(federation)
    assert monitor.status()["ledger"]["entries"] == len(whole.splitlines()) - 1
    file.write_bytes(whole)
    assert monitor.status()["ledger"]["entries"] == len(whole.splitlines())


def test_a_monitor_makes_no_ledger_and_needs_no_key(federation: Federation) -> None:
    federation.ledger_file.unlink()
    (federation.folder / "identity.key").unlink()
    assert monitor_of(federation).status()["ledger_error"] == "LedgerError"
    assert not federation.ledger_file.exists() and not (federation.folder / "identity.key").exists()


def test_a_floor_that_was_lowered_is_taken_up(federation: Federation) -> None:
    monitor = monitor_of(federation)
    file = federation.folder / "partner.toml"
    file.write_text(file.read_text().replace("max_epsilon = 12.0", "max_epsilon = 3.0"))
    assert monitor.status()["budget"]["epsilon_limit"] == 12.0
    monitor.take_up(Premises.open(federation.folder))
    assert monitor.status()["budget"]["epsilon_limit"] == monitor.status()["budget"]["epsilon_left"] == 3.0


def test_no_bound_is_null_in_json_and_infinite_in_metrics(tmp_path: Path) -> None:
    federation = Federation.of(tmp_path, simulated=True, config=changed(CONFIG, SIMULATED))
    told = monitor_of(federation)
    budget = json.loads(json.dumps(told.status()))["budget"]
    assert budget["epsilon_limit"] is None and budget["epsilon_left"] is None and budget["epsilon_spent"] == 0
    assert metrics(told)["veilrec_agent_epsilon_limit"] == float("inf")


def test_only_releases_of_the_coordinator_are_told(federation: Federation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three one is signed by the pinned key; the manifest's own form is checked by `shared.release_files`."""
    from shared.release_signature import signature_text

    monkeypatch.setattr("shared.release_files.parse_manifest", lambda data, file: json.loads(data))
    for number, key in ((1, federation.server), (2, SigningKey.generate()), (3, None)):
        folder = federation.folder / "releases" / str(number)
        folder.mkdir(parents=True)
        text = json.dumps({"version": number}).encode()
        (folder / "manifest.json").write_bytes(text)
        if key is not None:
            (folder / "manifest.sig").write_bytes(signature_text(key, text))
    assert monitor_of(federation).status()["releases"] == [1]
