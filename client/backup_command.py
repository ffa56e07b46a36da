"""``veilrec partner backup`` and ``restore``.

What was spent must never be forgotten. A ledger that goes on from the archive's is kept, and one that does neither is
refused. Where no newer ledger is left on the disk, only the coordinator can tell that the restored one is old: its
receipt is then ahead, and the agent refuses the next round (`client.agent`). ``docs/operations.md`` has the way out.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from client.premises import Premises

KEPT = (
    "partner.toml",
    "intake.toml",
    "enrolment.json",
    "*.request.json",
    "*.key",
    "node/*.key",
    "node/*.crt",
    "node/node.toml",
    "bundle/**/*",
    "releases/**/*",
    "runs/*/prior.safetensors",
    "intake/receipts/*",
)
"""Beside the ledger, and the intake's marks of users who were erased. No session of a round and no secret of one: an
older session that comes back could answer an exchange twice."""
LEDGER = "ledger.jsonl"
SESSIONS = ("runs/*/round.json", "runs/*/secret", "runs/*/answers")
INTAKE_STATE, REJECTS = "intake/state.json", "intake/rejects.parquet"
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The partner's folder.")]


def backup(
    folder: Folder,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A new file.")],
    *,
    with_data: Annotated[bool, typer.Option("--with-data", help="With interactions and catalogue.")] = False,
    include_plain_keys: Annotated[
        bool, typer.Option("--include-plain-keys", help="With keys that are not encrypted.")
    ] = False,
) -> None:
    """Keep ledger, keys, configuration, receipts and releases of a partner; the agent may run."""
    from client.premises import Premises
    from shared.backup import write_archive

    premises = Premises.open(folder)
    with _sources(premises, with_data) as sources:
        manifest = write_archive(file, "partner", premises.name, sources, plain_keys=include_plain_keys)
    typer.echo(f"{file}: {len(manifest.files)} files of {premises.name}, read back")
    if LEDGER not in {kept.name for kept in manifest.files}:
        typer.echo(f"note: {folder} has no {LEDGER}: right before the first round, and wrong at any time after it")
    if not with_data:
        typer.echo("without data: after a restore the next import reads its sources anew")


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What `veilrec partner backup` wrote.")],
    folder: Folder,
    *,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace files that are there; a longer ledger is kept.")
    ] = False,
) -> None:
    """Put a backup back. The agent must not run. A ledger is never replaced by an older one."""
    from shared.backup import restore_archive
    from shared.privacy.ledger_audit import read_ledger

    with _without_agent(folder):
        settle = {LEDGER: longer_ledger, INTAKE_STATE: never_back}
        manifest = restore_archive(file, folder, "partner", replace=replace, settle=settle, gone=SESSIONS)
    entries = read_ledger(folder / LEDGER).head.count if (folder / LEDGER).exists() else 0
    typer.echo(f"{folder}: {len(manifest.files)} files of {manifest.name} of {manifest.created}")
    typer.echo(f"ledger: {entries} entries. If rounds were answered after this backup, the agent refuses the next.")
    typer.echo("import before the agent is started: who was erased since is then left out")


def longer_ledger(current: bytes, archived: bytes) -> bytes:
    """Of two ledgers the one that goes on from the other, whatever a crash tore of its last line.

    Raises
    ------
    LedgerError
        If neither does: one of them was changed, or they are of two partners.
    """
    from shared.errors import LedgerError

    whole = current[: current.rfind(b"\n") + 1]
    if whole.startswith(archived):
        return current
    if archived.startswith(whole):
        return archived
    raise LedgerError(
        "Expected the ledger that is there, or the archive's, to go on from the other. Neither is replaced: see "
        "docs/operations.md."
    )


def never_back(current: bytes, archived: bytes) -> bytes:
    """The intake's state that goes with the data, and the marks of all users whom either knows as erased.

    Watermarks are of the data that they came with: of the archive's where it has data. Those then count as written by
    something else than an import, so that the next one leaves out who was erased since.
    """
    from dataclasses import replace

    from client.intake.state import IntakeState

    with TemporaryDirectory() as scratch:
        states = []
        for data in (current, archived):
            (Path(scratch) / "state.json").write_bytes(data)
            states.append(IntakeState.read(Path(scratch) / "state.json"))
    there, kept = states
    base = replace(kept, data="") if kept.data else there
    return replace(base, suppressed=there.suppressed | kept.suppressed).to_bytes()


@contextmanager
def _sources(premises: Premises, with_data: bool) -> Iterator[dict[str, Path]]:
    """What goes in, by name; copies of what may change meanwhile."""
    from client.intake.commit import IntakeFolder
    from client.intake.state import IntakeState

    folder, place = premises.folder, IntakeFolder(premises)
    found = {str(file.relative_to(folder)): file for pattern in KEPT for file in folder.glob(pattern) if _plain(file)}
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory()))
        stack.enter_context(place.working() if place.folder.exists() else nullcontext())
        if premises.ledger_file.exists():  # there is none before the first round
            found[LEDGER] = _copy_ledger(premises.ledger_file, scratch)
        if with_data:
            found |= _data(premises)
        elif place.state.exists():
            # The watermarks are of the data: without them the sources are to be read anew.
            marks = IntakeState(suppressed=IntakeState.read(place.state).suppressed)
            found[INTAKE_STATE] = scratch / "state.json"
            found[INTAKE_STATE].write_bytes(marks.to_bytes())
        yield found


def _data(premises: Premises) -> dict[str, Path]:
    from client.data.ingest import INTERACTIONS_FILE, ITEMS_FILE
    from shared.errors import ConfigError

    folder = premises.folder.resolve()
    try:
        where = premises.data.resolve().relative_to(folder)
    except ValueError:
        raise ConfigError(f"{premises.data}: Expected data in the partner's folder for --with-data.") from None
    names = [*(str(where / name) for name in (INTERACTIONS_FILE, ITEMS_FILE)), INTAKE_STATE, REJECTS]
    return {name: folder / name for name in names if (folder / name).exists()}


def _copy_ledger(file: Path, scratch: Path) -> Path:
    """Its whole lines, which are those of a ledger: what is damaged is not kept as if it were none."""
    from shared.errors import LedgerError
    from shared.privacy.ledger_audit import read_ledger

    try:
        data = file.read_bytes()
    except OSError as error:
        raise LedgerError(f"Expected to read {file}, got {error.strerror}.") from None
    copy = scratch / LEDGER
    copy.touch(mode=0o600)
    copy.write_bytes(data[: data.rfind(b"\n") + 1])
    read_ledger(copy)
    return copy


def _plain(file: Path) -> bool:
    return file.is_file() and not file.is_symlink() and not file.name.startswith(".")


@contextmanager
def _without_agent(folder: Path) -> Iterator[None]:
    """Be sure that no agent answers from this folder, and that none begins to."""
    from filelock import FileLock, Timeout

    from client.agent_socket import STATUS, AgentUnavailableError, ask
    from client.listening import OPERATOR_SOCKET
    from client.premises import AGENT_LOCK
    from shared.errors import ConfigError

    running = ConfigError(f"{folder}: Expected no agent at work: stop it before a restore.")
    try:
        ask(folder / OPERATOR_SOCKET, "GET", STATUS, timeout_s=5.0)
    except AgentUnavailableError:
        pass
    else:
        raise running
    lock = FileLock(folder / AGENT_LOCK, timeout=0)
    try:
        with lock if (folder / AGENT_LOCK).exists() else nullcontext():
            yield
    except Timeout:
        raise running from None
