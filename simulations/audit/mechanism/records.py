"""What the audited run itself left behind: its ledgers, the lines of its rounds, and the numbers that it claims."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from server.receipts import RECEIPTS_FILE, ReceiptBook
from shared.errors import IntegrityError, LedgerError
from shared.privacy.accounting import epsilon_spent
from shared.privacy.ledger import replay
from shared.privacy.ledger_audit import EPSILON_TOLERANCE, verify_ledger
from shared.privacy.ledger_state import LedgerState, RunState
from shared.privacy.plan import PrivacyPlan
from simulations.audit.findings import Measurement
from simulations.audit.mechanism.checks import Check, Finding, Setting, at_least, check, equal, none_of

CHECKS: list[Check] = []
LEAST = 1 - EPSILON_TOLERANCE
AUDIT_LINE = "audit"
"""The kind of a ledger's line that declares audit users."""


@dataclass(frozen=True)
class Books:
    """A partner's ledger, read; `run` is the last run in it that was declared with the audited plan."""

    name: str
    run: RunState | None
    audits: int


@check(CHECKS, "rounds that are not those of the plan, or an epsilon that is not theirs")
def rounds(setting: Setting) -> Iterator[Finding]:
    """Lines of ``rounds.jsonl``: whole, of enough partners, and billed as the accountant finds."""
    done = _rounds(setting)
    if not done:
        return
    plan = setting.plan
    planned = plan.rounds + (plan.prior_noise_multiplier is not None)
    numbers = [int(record["round"]) for record in done]
    yield none_of(
        "rounds that are missing or there twice", numbers != [*range(1, len(done) + 1)], "rounds not recorded"
    )
    yield none_of("rounds beyond the plan", max(0, len(done) - planned), "a round that nobody billed")
    small = sum(int(record["cohort"]) < plan.survivors for record in done)
    yield none_of("rounds with fewer partners than have to answer", small, "less noise than is billed")
    told = done[-1].get("epsilon")
    trained = sum(record["stage"] == "train" for record in done)
    spent = epsilon_spent(plan, trained)
    if spent is None:
        return
    name = "epsilon told of the last round over that recomputed"
    yield at_least(name, (told or 0.0) / spent, LEAST, "epsilon told too small")


@check(CHECKS, "a claim that is not that of the plan")
def claim(setting: Setting) -> Iterator[Finding]:
    """What ``run.json`` says of privacy."""
    told = _document(setting).get("privacy")
    if not isinstance(told, dict):
        return
    plan = setting.plan
    other = [
        field.name for field in fields(plan) if field.name in told and told[field.name] != getattr(plan, field.name)
    ]
    yield none_of("fields of the claim that are not the plan's", len(other), "another plan than was audited")
    spent, claimed = epsilon_spent(plan, plan.rounds), told.get("epsilon")
    if spent is not None:
        name = "epsilon claimed over that recomputed"
        yield at_least(name, (claimed or 0.0) / spent, LEAST, "epsilon claimed too small")
    seeded = told.get("randomness") == "seeded" and not setting.config.simulation
    yield none_of("seeded sources in a run over real data", seeded, "noise that can be drawn again")


@check(CHECKS, "ledgers that were changed, or rounds that they did not pay for")
def ledgers(setting: Setting) -> Iterator[Finding]:
    """Every ledger verifies with its epsilon recomputed, and has paid for every round that was done."""
    files = _files(setting)
    if not files:
        return
    refused = {path.name: why for path in files if (why := _refusal(setting, path))}
    yield none_of("ledgers that do not verify", len(refused), "a ledger that was changed, or bills too little")
    for name, why in refused.items():
        yield Finding(Measurement(f"{name}: {why}", 1.0, "0", False, "a ledger that was changed, or bills too little"))
    books = [_books(setting, path) for path in files if path.name not in refused]
    runs = [each.run for each in books if each.run is not None]
    yield none_of(
        "ledgers without the audited plan", len(books) - len(runs), "sums of a partner that paid for another plan"
    )
    yield from _paid(setting.plan, runs, _rounds(setting))
    declared = setting.plan.canaries
    wrong = sum(each.audits != bool(declared) for each in books)
    yield none_of(
        "ledgers in which audit users are not as the configuration says", wrong, "canaries that nobody declared"
    )


def _paid(plan: PrivacyPlan, runs: list[RunState], done: list[dict[str, Any]]) -> Iterator[Finding]:
    """Rounds done against rounds paid for, partner by partner."""
    numbers = {int(record["round"]) for record in done}
    unpaid = unknown = torn = 0
    for record in done:
        states = [run.rounds.get(int(record["round"])) for run in runs]
        paid = [state for state in states if state is not None and state.output is not None]
        unpaid += max(0, int(record["cohort"]) - len(paid))
        sets = {frozenset(state.survivors) for state in paid if state.survivors is not None}
        torn += any(one != other and one & other for one in sets for other in sets)
    going = {max(numbers, default=0) + 1}  # a round that was cut short is asked again, and paid for already
    for run in runs:
        unknown += len(set(run.rounds) - numbers - going)
    if done:
        yield none_of("sums in rounds done that no ledger released", unpaid, "a sum that nobody paid for")
        yield none_of("rounds in ledgers that are not recorded", unknown, "a round that is not recorded")
        yield none_of("rounds opened for sets that overlap and differ", torn, "the difference of two sums")
    billed = [sum(state.reservation.releases for state in run.rounds.values()) for run in runs]
    planned = plan.steps + (plan.prior_noise_multiplier is not None)
    over = sum(each > planned for each in billed)
    yield none_of("ledgers with more sums than the plan", over, "epsilon from a wrong number of steps")
    whole = len(numbers) == plan.rounds + (plan.prior_noise_multiplier is not None)
    if whole and plan.survivors == plan.partners:  # nobody may be missing
        paid_for = min(billed, default=0) / max(planned, 1)
        yield equal("sums that every ledger has paid for, over the plan's", paid_for, 1.0, "a round that is not billed")


def _refusal(setting: Setting, path: Path) -> str:
    """Why a ledger does not verify; empty if it does."""
    try:
        book = ReceiptBook(_run(setting) / "partners" / RECEIPTS_FILE)
        receipt = book.last(path.stem)
        verify_ledger(path, receipts=[receipt] if receipt else [], accountant=_spent)
    except (LedgerError, IntegrityError) as error:
        return str(error)
    return ""


@lru_cache(maxsize=64)
def _spent(plan: PrivacyPlan, rounds_: int) -> float | None:
    return epsilon_spent(plan, rounds_)


def _books(setting: Setting, path: Path) -> Books:
    state, data = LedgerState(), path.read_bytes()
    for _ in replay(data, 0, state, path):
        pass
    digest = setting.plan.digest()
    runs = [run for run in state.runs.values() if run.declaration.plan_digest == digest]
    own = runs[-1].declaration.run_id if runs else ""
    lines = [json.loads(line) for line in data.splitlines() if line.endswith(b"}")]
    audits = sum(line["kind"] == AUDIT_LINE and line["fields"].get("run_id") == own for line in lines)
    return Books(path.stem, runs[-1] if runs else None, audits)


def _files(setting: Setting) -> list[Path]:
    return sorted((_run(setting) / "ledgers").glob("*.jsonl")) if setting.run else []


def _rounds(setting: Setting) -> list[dict[str, Any]]:
    """The lines of ``rounds.jsonl``; none without a run."""
    file = _run(setting) / "rounds.jsonl" if setting.run else None
    if file is None or not file.exists():
        return []
    return [_object(line, file) for line in file.read_text(encoding="utf-8").splitlines() if line]


def _document(setting: Setting) -> dict[str, Any]:
    file = _run(setting) / "run.json" if setting.run else None
    return _object(file.read_text(encoding="utf-8"), file) if file is not None and file.exists() else {}


def _object(text: str, file: Path) -> dict[str, Any]:
    try:
        told = json.loads(text)
    except ValueError:
        told = None
    if not isinstance(told, dict):
        raise IntegrityError(f"{file}: Expected JSON objects as a run writes them.")
    return told


def _run(setting: Setting) -> Path:
    return setting.run or Path()
