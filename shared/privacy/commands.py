"""``veilrec ledger show`` and ``veilrec ledger verify``."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from shared.privacy.ledger import Receipt
    from shared.privacy.ledger_audit import LedgerReport

ledger_app = typer.Typer(no_args_is_help=True, help="Read and audit a partner's privacy ledger.")

LedgerPath = Annotated[Path, typer.Argument(metavar="PATH", help="The ledger: JSON lines.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]


@ledger_app.callback()
def _ledger() -> None:
    """Read and audit a partner's privacy ledger."""


@ledger_app.command()
def show(path: LedgerPath, *, as_json: Json = False) -> None:
    """Tell what was declared, reserved, released and spent; chain and signatures are checked, epsilons are not.

    The column "rounds" is reserved/planned; a dangling round was reserved and never released.
    """
    from shared.privacy.ledger_audit import read_ledger

    _print(read_ledger(path), as_json)


@ledger_app.command()
def verify(
    path: LedgerPath,
    *,
    identity: Annotated[str | None, typer.Option(help="The partner's public key, as base64.")] = None,
    server: Annotated[str | None, typer.Option(help="The server's public key, as base64.")] = None,
    receipts: Annotated[
        Path | None, typer.Option(help="The server's receipts, JSON by partner; with --partner.")
    ] = None,
    partner: Annotated[str | None, typer.Option(help="The partner's name in --receipts.")] = None,
    as_json: Json = False,
) -> None:
    """Audit a ledger without its secrets: chain, signatures, receipts, rules, budgets, and every epsilon anew.

    That the last lines are missing shows only against the server's --receipts.
    """
    from shared.hazmat.signing import VerifyKey
    from shared.privacy.ledger_audit import verify_ledger

    keys = [None if text is None else VerifyKey.from_text(text) for text in (identity, server)]
    told = [] if receipts is None else [_receipt(receipts, partner)]
    _print(verify_ledger(path, *keys, receipts=told), as_json)


def _receipt(file: Path, partner: str | None) -> Receipt:
    from shared.errors import ConfigError, DataError, LedgerError
    from shared.privacy.ledger_entries import validate
    from shared.privacy.ledger_heads import Receipt

    if partner is None:
        raise ConfigError("Expected --partner NAME with --receipts.")
    try:
        receipt = Receipt(**json.loads(file.read_text(encoding="utf-8"))[partner])
        validate(receipt)
    except (OSError, ValueError, TypeError, KeyError, LedgerError):
        raise DataError(f"Expected {file} to hold a receipt for the partner, as the server writes it.") from None
    return receipt


def _print(report: LedgerReport, as_json: bool) -> None:
    from shared.privacy.ledger_audit import to_json

    if as_json:
        typer.echo(json.dumps(to_json(report)))
        return
    from rich.console import Console

    console = Console()
    console.print(_table(report))
    for line in _lines(report):
        console.print(line, highlight=False, soft_wrap=True, markup=False)


def _table(report: LedgerReport) -> object:
    from rich.table import Table

    table = Table(
        title=f"ledger {report.ledger_id}", box=None, padding=(0, 1, 0, 0), pad_edge=False, title_justify="left"
    )
    table.add_column("run", overflow="fold")
    for name in ("mode", "plan"):
        table.add_column(name, no_wrap=True)
    for name in ("epsilon", "delta", "rounds", "released", "opened", "dangling"):
        table.add_column(name, justify="right", no_wrap=True)
    for run in report.runs:
        reserved = f"{run.reserved:,}/{run.planned:,}"
        counts = [f"{count:,}" for count in (run.released, run.opened, run.dangling)]
        cost = (_epsilon(run.epsilon), f"{run.delta:g}")
        table.add_row(run.run_id, run.mode, run.plan_digest[:4], *cost, reserved, *counts)
    return table


def _lines(report: LedgerReport) -> list[str]:
    spent = report.spent
    lines = [
        f"spent: epsilon {_epsilon(spent.epsilon)}, delta {spent.delta:g}, over {spent.plans} declared plans; "
        "a plan counts whole, a dangling round counts as spent",
        f"head: {report.head.count} entries, {report.head.hash}",
        f"receipts: {report.receipts}; a rollback shows up to entry {report.countersigned}",
        f"identity: {report.identity}",
    ]
    if report.torn_bytes:
        lines.append(f"torn: {report.torn_bytes} bytes of a last line that was never finished")
    lines += [
        f"run {run.run_id}: {run.canaries} audit canaries in each step, seed committed to as {run.commitment}"
        for run in report.runs
        if run.commitment is not None
    ]
    checked = [run for run in report.runs if run.recomputed_epsilon is not None]
    return lines + [
        f"run {run.run_id}: epsilon {_epsilon(run.epsilon)} declared, {_epsilon(run.recomputed_epsilon)} recomputed"
        for run in checked
    ]


def _epsilon(value: float | None) -> str:
    return "inf" if value is None or math.isinf(value) else f"{value:.4g}"
