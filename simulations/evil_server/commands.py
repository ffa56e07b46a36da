"""The command ``veilrec partner check``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from simulations.evil_server.attack import Result
    from simulations.evil_server.premises_check import Check

partner_app = typer.Typer(no_args_is_help=True, help="A partner's own installation.")


@partner_app.callback()
def _partner() -> None:
    """Keep ``check`` a command of its own, even while there is one alone."""


@partner_app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The partner's folder, with partner.toml.")],
    *,
    evil_server: Annotated[
        bool, typer.Option("--evil-server", help="Attack a practice federation under this partner's policy.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
    ] = False,
) -> None:
    """Look at a partner's folder; with --evil-server, see this installation refuse what it should refuse.

    DIR is only read. The attacks are made on invented people in a temporary folder. Exit code 0 only if all is well.
    """
    if evil_server:
        _attack(folder, as_json)
        return
    from client.premises import Premises
    from simulations.evil_server.premises_check import check_premises, policy_in_words

    checks = check_premises(folder)
    words = policy_in_words(Premises.open(folder).policy) if checks[0].ok else []
    if as_json:
        typer.echo(json.dumps({"checks": [each.to_json() for each in checks], "policy": words}))
    else:
        _print_checks(checks)
        for line in words:
            typer.echo(f"  {line}")
    if not all(each.ok for each in checks):
        raise typer.Exit(1)


def _attack(folder: Path, as_json: bool) -> None:
    from client.premises import Premises
    from shared.errors import IntegrityError
    from simulations.evil_server.premises_check import fingerprint
    from simulations.evil_server.runner import attack_partner

    policy, before = Premises.open(folder).policy, fingerprint(folder)
    results = attack_partner(policy, observer=None if as_json else _print_result)
    if fingerprint(folder) != before:
        raise IntegrityError(f"{folder}: Expected every file as it was, got others: was it used in the meantime?")
    refused = sum(result.refused for result in results)
    if as_json:
        told = [result.to_json() for result in results]
        typer.echo(json.dumps({"attacks": told, "refused": refused, "total": len(results)}))
    else:
        typer.echo(f"{refused} of {len(results)} attacks refused, without trace; {folder} is as it was.")
    if refused < len(results):
        raise typer.Exit(1)


def _print_result(result: Result) -> None:
    """A row at a time: the whole takes some seconds."""
    what = result.got if result.refused else f"{result.got} (expected {result.expected})"
    typer.echo(f"{'ok  ' if result.refused else 'FAIL'}  {result.name:<44}  {what}")


def _print_checks(checks: list[Check]) -> None:
    for each in checks:
        typer.echo(f"{'ok  ' if each.ok else 'FAIL'}  {each.name:<14}  {each.found}")
