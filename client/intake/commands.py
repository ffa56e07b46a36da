"""``veilrec partner import``, ``veilrec partner retain`` and ``veilrec partner erase``."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from client.intake.importing import ImportReport
    from client.premises import Premises

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The partner's folder, with partner.toml and intake.toml.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout and nothing else.")]
Wait = Annotated[float, typer.Option(min=0, help="Seconds to wait for an agent that computes.")]


def import_(
    folder: Folder,
    *,
    once: Annotated[bool, typer.Option(help="Look at all sources once. The default.")] = False,
    watch: Annotated[bool, typer.Option(help="Go on, by `every` of intake.toml, until stopped.")] = False,
    wait: Wait = 300.0,
    as_json: Json = False,
) -> None:
    """Take what is new in the sources of intake.toml: each file once, each database from its watermark on."""
    from client.intake.importing import import_once
    from client.premises import Premises
    from shared.errors import ConfigError

    if once and watch:
        raise ConfigError("Expected one of --once and --watch.")
    premises = Premises.open(folder)
    if not watch:
        report = import_once(premises, wait_s=wait)
        _tell(report, as_json)
        _fail(report)
        return
    watch_sources(premises, threading.Event(), wait_s=wait, as_json=as_json)


def watch_sources(premises: Premises, stop: threading.Event, *, wait_s: float = 300.0, as_json: bool = False) -> None:
    """Import whenever it is due, until `stop` is set; what goes wrong is told, and tried again when it is due next."""
    from client.intake.importing import due_in, import_once
    from client.intake.settings import IntakeSettings, seconds_of
    from shared.errors import VeilrecError

    every = seconds_of(IntakeSettings.read(premises.folder, required=True).every)
    while not stop.is_set():
        try:
            if stop.wait(due_in(premises)):
                return
            _tell(import_once(premises, wait_s=wait_s), as_json)
            every = seconds_of(IntakeSettings.read(premises.folder).every)
        except VeilrecError as error:
            typer.echo(f"veilrec: {type(error).__name__}: {error}", err=True)
            if stop.wait(every):
                return


def retain(
    folder: Folder,
    *,
    days: Annotated[int | None, typer.Option(min=1, help="Instead of retention_days of intake.toml.")] = None,
    wait: Wait = 300.0,
    as_json: Json = False,
) -> None:
    """Drop rows that are older than retention_days."""
    from client.intake.importing import retain as drop_old
    from client.premises import Premises

    _tell(drop_old(Premises.open(folder), days=days, wait_s=wait), as_json)


def erase(
    folder: Folder,
    user: Annotated[
        str, typer.Argument(metavar="USER", help="The user's id, or - to read ids from stdin, one a line.")
    ] = "-",
    *,
    from_: Annotated[Path | None, typer.Option("--from", help="File of ids, one a line.")] = None,
    all_vectors: Annotated[
        bool, typer.Option(help="Empty the text caches: vectors by models of runs that are gone, too.")
    ] = False,
    wait: Wait = 300.0,
    as_json: Json = False,
) -> None:
    """Remove all that is held of a user and write a signed receipt. An id on stdin stays out of the history."""
    from dataclasses import asdict

    from client.intake.erasure import erase as erase_user
    from client.premises import Premises

    premises = Premises.open(folder)
    done = [erase_user(premises, one, all_vectors=all_vectors, wait_s=wait) for one in _users(user, from_)]
    if as_json:
        typer.echo(json.dumps([{"receipt": str(path), **asdict(receipt)} for path, receipt in done]))
        return
    for path, receipt in done:
        counts = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in receipt.removed.items() if count)
        typer.echo(f"removed: {counts or 'nothing was held'}")
        typer.echo(f"receipt: {path}")


def _users(user: str, file: Path | None) -> list[str]:
    from client.intake.erasure import users_of
    from shared.errors import ConfigError

    if file is not None and user != "-":
        raise ConfigError("Expected one of USER and --from.")
    try:
        if file is not None:
            found = users_of(file.read_text(encoding="utf-8"))
        else:
            found = users_of(sys.stdin.read()) if user == "-" else [user]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"Expected a file of ids in UTF-8, one a line ({type(error).__name__}).") from None
    if not found:
        raise ConfigError("Expected at least one id, got none.")
    return found


def _tell(report: ImportReport, as_json: bool) -> None:
    from dataclasses import asdict

    if as_json:
        typer.echo(json.dumps(asdict(report)))
        return
    typer.echo(
        f"{report.added:,} new events, {report.dropped:,} dropped, {report.rows:,} held; {report.files:,} files; "
        f"{report.seconds:.1f} s"
    )
    groups = {"of what came": report.counts, "set aside": report.rejected, "scrubbed": report.scrubbed}
    for title, counts in groups.items():
        told = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in counts.items() if count)
        if told:
            typer.echo(f"{title}: {told}")
    for name, error in report.failed.items():
        typer.echo(f"source {name}: {error}", err=True)


def _fail(report: ImportReport) -> None:
    from shared.errors import DataError

    if report.failed:
        raise DataError(f"Expected every source to be read, failed: {', '.join(report.failed)}. The others were taken.")
