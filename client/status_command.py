"""``veilrec partner status``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

NOT_RUNNING = 1
TIMEOUT_S = 10.0
NO_LEDGER = "no ledger: right before the first start, and wrong at any time after it"


def status(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="The partner's folder.")],
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
    ] = False,
) -> None:
    """Budget left, ledger, last round and last error of a partner's agent; exit code 1 if it does not run.

    Where no agent answers, what its folder says is told.
    """
    from client.premises import Premises

    premises = Premises.open(folder)
    told = _asked(folder)
    running = told is not None
    told = told or folder_status(premises)
    if as_json:
        typer.echo(json.dumps(told, allow_nan=False))
    else:
        _print(told)
    if not running:
        raise typer.Exit(NOT_RUNNING)


def folder_status(premises: Any) -> dict[str, Any]:
    """What can be told of a partner whose agent does not answer: its ledger against its floor, and its releases."""
    from client.agent_monitor import AgentMonitor

    unknown = {"since": None, "last_answer": None, "last_error": None}
    told = {**AgentMonitor(premises).status(), "state": "down", **unknown}
    return told if premises.ledger_file.exists() else {**told, "ledger_error": NO_LEDGER}


def _asked(folder: Path) -> dict[str, Any] | None:
    """What the agent says of itself; None if nobody answers as an agent does."""
    from client.agent_socket import STATUS, AgentUnavailableError, ask
    from client.listening import OPERATOR_SOCKET

    try:
        code, answer = ask(folder / OPERATOR_SOCKET, "GET", STATUS, timeout_s=TIMEOUT_S)
        told = json.loads(answer) if code == 200 else None
    except (AgentUnavailableError, ValueError):
        return None
    return told if isinstance(told, dict) and "budget" in told else None


def _print(told: dict[str, Any]) -> None:
    from shared.status_table import show

    show(_facts(told))


def _facts(told: dict[str, Any]) -> list[tuple[str, str]]:
    from shared.status_words import moment, number

    budget, ledger, last, error = told["budget"], told["ledger"], told["last_round"], told["last_error"]
    state = "running" if told["state"] == "running" else "down: nobody answers at the agent's socket"
    since = "" if told["since"] is None else f", since {moment(told['since'])}"
    lines = told["ledger_error"]
    spent = "nothing yet" if lines == NO_LEDGER else "not known: the ledger cannot be believed"
    if ledger is not None:
        epsilon = (budget["epsilon_spent"], budget["epsilon_left"], budget["epsilon_limit"])
        spent = "{} spent, {} left of {}".format(*map(number, epsilon))
        spent += f"; delta {number(budget['delta_spent'])} of {number(budget['delta_limit'])}"
        lines = f"{ledger['entries']} entries, {ledger['receipts']} countersigned, head {ledger['head'][:16]}"
    return [
        ("partner", told["partner"] + (" (simulated data)" if told["simulated"] else "")),
        ("agent", state + since),
        ("version", told["version"]),
        ("device", told["device"] or "not known"),
        ("data", told["data_version"] or "not known"),
        ("epsilon", spent),
        ("ledger", lines),
        ("last round", "none" if last is None else f"{last['round']} of run {last['run']}, {last['state']}"),
        ("last answer", moment(told["last_answer"])),
        ("last error", "none" if error is None else f"{error['family']}, {moment(error['time'])}"),
        ("releases", ", ".join(map(str, told["releases"])) or "none"),
    ]
