"""The partners' ledgers: by the keys that are pinned, with the coordinator's receipts in them, over the plan."""

from __future__ import annotations

import tempfile
from pathlib import Path

from shared.errors import IntegrityError, LedgerError
from shared.hazmat.signing import Pin, pin
from shared.privacy.ledger_audit import verify_ledger
from shared.privacy.ledger_state import LedgerState, RunState
from simulations.audit.bundle.evidence import IDENTITIES, LEDGER, PLAN, RECEIPTS, Evidence


def check_ledgers(evidence: Evidence) -> None:
    """Check every ledger by itself, and that all declare the bundle's plan at one epsilon.

    Raises
    ------
    LedgerError, IntegrityError
        Names the ledger and what is wrong.
    """
    if strangers := evidence.ledgers.keys() - evidence.identities.keys():
        raise IntegrityError(
            f"{IDENTITIES}: Expected a key of every partner with a ledger, got none of {min(strangers)}."
        )
    if unknown := evidence.receipts.keys() - evidence.ledgers.keys():
        raise IntegrityError(
            f"{RECEIPTS}: Expected the ledger of every partner with a receipt, got none of {min(unknown)}."
        )
    with tempfile.TemporaryDirectory(prefix="veilrec-evidence-") as folder:
        for name in sorted(evidence.ledgers):
            _check_one(evidence, name, Path(folder))
    for name, state in evidence.ledgers.items():
        _check_run(evidence, name, state)


def confirmed(evidence: Evidence) -> Pin:
    """The coordinator's keys by which partners took receipts into their ledgers: what it signed of the run is by these.

    The bundler names the coordinator; a key of its own beside it would let it sign in the coordinator's place.

    Raises
    ------
    IntegrityError
        If no ledger has a receipt (a run of one round), and several keys are named.
    """
    taken = {receipt.server for state in evidence.ledgers.values() for receipt in state.receipts.values()}
    keys = [key for key in evidence.coordinator.keys if key.text in taken]
    if not keys and len(evidence.coordinator.keys) > 1:
        raise IntegrityError("manifest.json: Expected one coordinator's key where no ledger has a receipt.")
    return pin(keys) if keys else evidence.coordinator


def run_of(evidence: Evidence, name: str) -> RunState:
    """The bundle's run in a partner's ledger.

    Raises
    ------
    LedgerError
        If it was never declared there, or there is no such ledger.
    """
    state = evidence.ledgers.get(name)
    run = None if state is None else state.runs.get(evidence.run_id)
    if run is None:
        raise LedgerError(f"ledgers/{name}.jsonl: Expected a ledger with run {evidence.run_id}, got none.")
    return run


def _check_one(evidence: Evidence, name: str, folder: Path) -> None:
    member = f"ledgers/{name}.jsonl"
    assert LEDGER.fullmatch(member)
    file = folder / f"{name}.jsonl"
    file.write_bytes(evidence.members[member])
    receipt = evidence.receipts.get(name)
    if receipt is not None and receipt.partner != name:
        raise IntegrityError(f"{RECEIPTS}: {name}: Expected a receipt for this partner, got another's.")
    try:
        verify_ledger(
            file,
            evidence.identities[name],
            evidence.coordinator,
            receipts=[] if receipt is None else [receipt],
        )
    except LedgerError as error:
        raise LedgerError(str(error).replace(str(file), member)) from None


def _check_run(evidence: Evidence, name: str, state: LedgerState) -> None:
    for receipt in state.receipts.values():
        if receipt.partner != name:
            raise IntegrityError(f"ledgers/{name}.jsonl: Expected receipts for this partner, got another's.")
    run = state.runs.get(evidence.run_id)
    if run is None:  # it offered keys and was not heard of again: it paid for nothing
        return
    declared = run.declaration
    if run.plan.told() != evidence.plan.told() or declared.plan_digest != evidence.plan.digest():
        raise IntegrityError(f"ledgers/{name}.jsonl, line {run.line}: Expected the plan of {PLAN}, got another.")
    claimed = evidence.run["privacy"].get("epsilon")
    if declared.epsilon != claimed:
        raise IntegrityError(
            f"ledgers/{name}.jsonl, line {run.line}: Expected epsilon={claimed} as in run.json, got {declared.epsilon}."
        )
    last = evidence.prior_rounds + evidence.plan.rounds
    if late := [number for number in run.rounds if not 1 <= number <= last]:
        raise IntegrityError(f"ledgers/{name}.jsonl: Expected rounds 1 to {last} of the run, got round={late[0]}.")
