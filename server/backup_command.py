"""``veilrec server backup`` and ``restore``."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

DATABASE = "superlink/state.db"
LEFT_OUT = frozenset({"superlink", "home"})
"""Folders of processes that make them anew: Flower's, but for its database, and caches."""
ENDINGS = (".lock", ".sock", ".log", ".tar")
JOURNALS = (f"{DATABASE}-wal", f"{DATABASE}-shm", f"{DATABASE}-journal")
PASSPHRASE_VARIABLE = "VEILREC_PASSPHRASE_FILE"
Home = Annotated[Path, typer.Argument(metavar="HOME", help="The coordinator's folder.")]


def backup(
    home: Home,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file.")],
    *,
    include_plain_keys: Annotated[
        bool, typer.Option("--include-plain-keys", help="With keys that are not encrypted.")
    ] = False,
) -> None:
    """Keep a coordinator's folder: keys, registry, receipts, releases, checkpoints, SuperLink; it may run."""
    from server.settings import ServerSettings
    from shared.backup import write_archive

    ServerSettings.open(home)
    with TemporaryDirectory() as scratch:
        sources = _sources(home, file)
        if (home / DATABASE).exists():
            sources[DATABASE] = _copy_database(home / DATABASE, Path(scratch) / "state.db")
        manifest = write_archive(file, "server", "", sources, plain_keys=include_plain_keys)
    typer.echo(f"{file}: {len(manifest.files)} files, read back")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `veilrec server backup` wrote.")],
    home: Home,
    *,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace files that are there; newer receipts and releases are kept.")
    ] = False,
) -> None:
    """Put a backup back. The coordinator must not run. No receipt and no release is forgotten that is there."""
    from server.monitor import CoordinatorMonitor
    from server.receipts import RECEIPTS_FILE
    from server.release import RELEASES_FILE
    from shared.backup import restore_archive
    from shared.errors import ConfigError

    if CoordinatorMonitor(home).status()["coordinator"]["state"] == "running":
        raise ConfigError(f"{home}: Expected no coordinator at work: stop it before a restore.")
    settle = {RECEIPTS_FILE: newer_receipts, RELEASES_FILE: all_releases}
    manifest = restore_archive(file, home, "server", replace=replace, settle=settle, gone=JOURNALS)
    typer.echo(f"{home}: {len(manifest.files)} files of {manifest.created}")
    typer.echo("revoke again whom you revoked since; of rounds since, partners answer the next one alone")


def newer_receipts(current: bytes, archived: bytes) -> bytes:
    """Of each partner the receipt with the higher count: an older one would let a ledger be rolled back to it."""
    kept, others = _parsed(current, dict), _parsed(archived, dict)
    if kept is None or others is None:
        return archived if kept is None else current
    merged = others | {name: told for name, told in kept.items() if _count(told) >= _count(others.get(name))}
    return (json.dumps(merged, indent=1) + "\n").encode()


def all_releases(current: bytes, archived: bytes) -> bytes:
    """The longer list of releases: a version that was given once is not given again.

    Raises
    ------
    IntegrityError
        If neither list goes on from the other.
    """
    from shared.errors import IntegrityError

    kept, others = _parsed(current, list), _parsed(archived, list)
    if kept is None or others is None:
        return archived if kept is None else current
    if kept[: len(others)] == others:
        return current
    if others[: len(kept)] == kept:
        return archived
    raise IntegrityError("Expected the releases that are there, or the archive's, to go on from the other.")


def _sources(home: Path, archive: Path) -> dict[str, Path]:
    """All of the folder but what is made anew, the passphrase, and archives beside it."""
    named = os.environ.get(PASSPHRASE_VARIABLE)
    apart = {archive.resolve().parent} - {home.resolve()}
    secret = Path(named).resolve() if named else None
    found: dict[str, Path] = {}
    for folder, folders, files in os.walk(home):
        at = Path(folder)
        top = at == home
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and not (top and name in LEFT_OUT) and (at / name).resolve() not in apart
        ]
        for name in files:
            path = at / name
            hidden = name.startswith((".", "passphrase")) or name.endswith(ENDINGS)
            if not hidden and path.is_file() and not path.is_symlink() and path.resolve() != secret:
                found[str(path.relative_to(home))] = path
    return found


def _copy_database(file: Path, copy: Path) -> Path:
    """As SQLite copies a database that others write to: whole, as of one moment."""
    from shared.errors import IntegrityError

    try:
        source = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=30.0)
        with closing(source), closing(sqlite3.connect(copy)) as target:
            source.backup(target)
            (found,) = target.execute("PRAGMA integrity_check").fetchone()
            target.execute("PRAGMA journal_mode = DELETE")
    except sqlite3.Error as error:
        raise IntegrityError(f"{file}: Expected the SuperLink's database, got {type(error).__name__}.") from None
    if found != "ok":
        raise IntegrityError(f"{file}: Expected a whole database, got a damaged one.")
    copy.chmod(0o600)
    return copy


def _parsed(data: bytes, kind: type[Any]) -> Any:
    """JSON of one kind; None for what is damaged, which keeps nothing back."""
    try:
        told = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return told if isinstance(told, kind) else None


def _count(receipt: object) -> int:
    count = receipt.get("count") if isinstance(receipt, dict) else None
    return count if type(count) is int else -1
