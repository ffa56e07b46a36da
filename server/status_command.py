"""``veilrec server status``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

NOT_RUNNING = 1


def status(
    home: Annotated[Path, typer.Argument(metavar="HOME", help="What `veilrec server init` made.")],
    *,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")
    ] = False,
) -> None:
    """Rounds, partners, budget, last errors and versions of a coordinator; exit code 1 if it does not run."""
    from server.monitor import CoordinatorMonitor
    from shared.errors import ConfigError

    if not home.is_dir():
        raise ConfigError(f"{home}: no such folder. Expected a coordinator's.")
    told = CoordinatorMonitor(home).status()
    if as_json:
        typer.echo(json.dumps(told, allow_nan=False))
    else:
        _print(told)
    if told["coordinator"]["state"] != "running":
        raise typer.Exit(NOT_RUNNING)


def _print(told: dict[str, Any]) -> None:
    from shared.status_table import show
    from shared.status_words import moment, size

    partners = [
        (
            str(row["name"]),
            str(row["status"]),
            "connected" if row["online"] else "not connected",
            moment(row["seen"]),
            "none" if row["receipt"] is None else f"{row['receipt']} lines",
            size(row["bytes_in"]),
            size(row["bytes_out"]),
        )
        for row in told["partners"]
    ]
    errors = [(moment(one["time"]), one["family"]) for one in told["errors"][:5]]
    heads = ("partner", "registry", "node", "last seen", "ledger countersigned", "received", "sent")
    notes = [(note["file"], note["what"]) for note in told["notes"]]
    show(_facts(told), (heads, partners), (("last errors", ""), errors), (("file", ""), notes))


def _facts(told: dict[str, Any]) -> list[tuple[str, str]]:
    from shared.status_words import UNKNOWN, duration, moment, number, spent_of

    run, coordinator = told["run"], told["coordinator"]
    last = run["rounds"][-1] if run["rounds"] else {}
    planned = UNKNOWN if run["rounds_planned"] is None else run["rounds_planned"]
    state = coordinator["state"]
    if coordinator["silent"]:
        state = f"{state}: no sign since {moment(coordinator['heard'])}"
    budget = f"{spent_of(run['epsilon'], run['epsilon_planned'])} planned, delta {number(run['delta'])}"
    restarts = ", ".join(f"{name} {count}" for name, count in sorted(told["restarts"].items()))
    days = ", ".join(f"{name} {one['days_left']:.0f} days" for name, one in sorted(told["certificates"].items()))
    return [
        ("coordinator", f"{state}, since {moment(coordinator['since'])}"),
        ("version", told["version"]),
        ("run", f"{run['run_id'] or 'none'}, {run['state']}"),
        ("rounds", f"{run['rounds_done']} of {planned}, the last {moment(run['last_round_at'])}"),
        ("round", f"{duration(last.get('seconds'))}, {last.get('cohort', 0)} partners"),
        ("epsilon", "no bound: mode none" if run["mode"] == "none" else budget),
        ("releases", str(told["releases"])),
        ("certificates", days or UNKNOWN),
        ("restarts", restarts or "none"),
    ]
