"""What the partners' ledgers hold: before a run for the person who starts it, after it for the run folder."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from client.app import partner_folder
from client.premises import Premises
from shared.files import write_bytes
from shared.privacy.ledger_audit import read_ledger
from shared.privacy.ledger_state import Spent
from simulations.workspace import Workspace


def spent(workspace: Workspace) -> Spent:
    """The most that any partner's users have spent, over all runs on their data."""
    found = [read_ledger(file).spent for file in _ledgers(workspace).values() if file.exists()]
    return max(found, key=lambda one: (one.epsilon, one.delta), default=Spent(0.0, 0.0, 0))


def spent_document(workspace: Workspace) -> dict[str, Any]:
    """The same for ``run.json``; epsilon is null where a plan had no bound."""
    total = spent(workspace)
    epsilon = total.epsilon if math.isfinite(total.epsilon) else None
    return {"epsilon": epsilon, "delta": total.delta, "plans": total.plans}


def told(before: Spent) -> str:
    """One line about what earlier runs have spent; empty if there were none."""
    if not before.plans:
        return ""
    many = "plan" if before.plans == 1 else "plans"
    return (
        f"the partners' ledgers hold {before.plans} {many} over these data: epsilon = {before.epsilon:.4g}, "
        f"delta = {before.delta:.2g} are spent before this run"
    )


def export_ledgers(workspace: Workspace, out: Path) -> None:
    """Copy every partner's ledger to ``ledgers/<partner>.jsonl``."""
    for name, file in _ledgers(workspace).items():
        if file.exists():
            write_bytes(out / "ledgers" / f"{name}.jsonl", file.read_bytes())


def _ledgers(workspace: Workspace) -> dict[str, Path]:
    premises = [Premises.open(partner_folder(workspace.root, k)) for k in range(workspace.partners)]
    return {one.name: one.ledger_file for one in premises}
