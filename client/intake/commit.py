"""Several files that change together: all of them, or none, whatever happens in between.

New files are staged beside the old ones and synced. Then ``intake/commit.json`` is written: from that moment on the
change counts. The staged files are renamed, and the record is taken away. A crash before the record leaves the old
files; after it, `recover` renames what is left to rename. Both are safe to repeat.

Only the renaming needs the agent's lock: a round that computes is not kept waiting while rows are read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl
from filelock import FileLock, Timeout

from client.data.ingest import INTERACTIONS_FILE, ITEMS_FILE
from client.premises import AGENT_LOCK, Premises
from shared.errors import ConfigError, DataError, IntegrityError
from shared.files import sync_folder, write_bytes

AGENT_WAIT_S = 300.0
INTAKE_WAIT_S = 10.0
BLOCK = 1 << 20


@dataclass(frozen=True, slots=True)
class IntakeFolder:
    """Where the intake of a partner keeps its things: ``intake/`` in the partner's folder, mode 0700.

    Parameters
    ----------
    premises : Premises
    """

    premises: Premises

    @property
    def folder(self) -> Path:
        """The folder itself."""
        return self.premises.folder / "intake"

    @property
    def state(self) -> Path:
        """What was taken."""
        return self.folder / "state.json"

    @property
    def rejects(self) -> Path:
        """Rows that could not be used."""
        return self.folder / "rejects.parquet"

    @property
    def scratch(self) -> Path:
        """Pieces of an import that is under way."""
        return self.folder / "next"

    @property
    def receipts(self) -> Path:
        """Signed receipts of erasures."""
        return self.folder / "receipts"

    @property
    def data(self) -> Path:
        """The interactions that the partner trains on."""
        return self.premises.data / INTERACTIONS_FILE

    @property
    def record(self) -> Path:
        """The record of a commit that is not finished."""
        return self.folder / "commit.json"

    def targets(self) -> dict[str, Path]:
        """What a commit may replace."""
        return {"data": self.data, "rejects": self.rejects, "state": self.state}

    @contextmanager
    def working(self) -> Iterator[None]:
        """Be the only one who imports or erases here; what an earlier one left half done is finished first.

        Raises
        ------
        ConfigError
            If another process is at it for long, or the folder cannot be written to.
        """
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            lock = FileLock(self.folder / "lock", timeout=INTAKE_WAIT_S).acquire()
        except Timeout:
            raise ConfigError(
                f"{self.folder}: Expected no other import or erasure, one has been at work for over "
                f"{INTAKE_WAIT_S:g} s. Try again when it is done."
            ) from None
        except OSError as error:
            raise ConfigError(f"{self.folder}: Expected a folder that can be written to: {error.strerror}.") from None
        with lock:
            recover(self)
            try:
                yield
            except OSError as error:
                raise ConfigError(
                    f"{self.folder}: Expected files that can be read and written: {error.strerror or 'I/O error'}. The "
                    "next start finishes or forgets what was begun."
                ) from None
            except pl.exceptions.PolarsError as error:  # whose message may quote a value
                raise DataError(
                    f"{self.folder}: Expected data files that can be read and written, got {type(error).__name__}."
                ) from None
            finally:
                if not self.record.exists():  # else the next start finishes it
                    _discard(self)


def staged(target: Path) -> Path:
    """Where the new form of a file waits: in the same folder, so that it can be renamed."""
    return target.with_name(f".{target.name}.next")


def commit(place: IntakeFolder, names: Collection[str], *, wait_s: float = AGENT_WAIT_S) -> None:
    """Put the staged files in their places, together.

    Parameters
    ----------
    place : IntakeFolder
    names : collection of str
        Of ``data``, ``rejects``, ``state``; each was staged, whole.
    wait_s : float
        How long to wait for a round that computes.

    Raises
    ------
    ConfigError
        If the agent keeps its lock for longer. Nothing was changed then.
    OSError
        If a file cannot be written.
    """
    targets = {name: path for name, path in place.targets().items() if name in names}
    for target in targets.values():
        _settle(staged(target), target)
    for folder in {target.parent for target in targets.values()}:
        sync_folder(folder)
    with agent_waiting(place.premises.folder, wait_s):
        write_bytes(place.record, json.dumps(sorted(targets)).encode())
        sync_folder(place.folder)
        _finish(place, targets)


def recover(place: IntakeFolder, *, wait_s: float = AGENT_WAIT_S) -> None:
    """Finish a commit that was recorded; forget one that was not.

    Raises
    ------
    IntegrityError
        If the record is not one.
    """
    if place.record.exists():
        targets = place.targets()
        try:
            names = json.loads(place.record.read_bytes())
            chosen = {name: targets[name] for name in names}
        except (ValueError, KeyError, TypeError):
            raise IntegrityError(f"{place.record}: Expected the record of a commit.") from None
        with agent_waiting(place.premises.folder, wait_s):
            _finish(place, chosen)
    _discard(place)
    for left in (*place.folder.glob(".commit.json.*"), *place.folder.glob(".erasure.json.*")):
        left.unlink()  # what `shared.files.write_bytes` was killed over; an id may stand in it


@contextmanager
def agent_waiting(folder: Path, wait_s: float = AGENT_WAIT_S) -> Iterator[None]:
    """Hold the agent's lock: no message is answered meanwhile.

    Raises
    ------
    ConfigError
        If the agent is at work for longer than `wait_s`.
    """
    try:
        lock = FileLock(folder / AGENT_LOCK, timeout=wait_s).acquire()
    except Timeout:
        raise ConfigError(
            f"{folder / AGENT_LOCK}: Expected the agent to let go within {wait_s:g} s, it is at work. Nothing was "
            "changed; try again after the round."
        ) from None
    with lock:
        yield


def data_version(premises: Premises) -> str:
    """What changes whenever the partner's data files change, and does not else; costs two calls of ``stat``.

    Whoever holds the data in memory reads them anew when it differs.
    """
    told = [stamp_of(premises.data / name) for name in (INTERACTIONS_FILE, ITEMS_FILE)]
    return hashlib.sha256("|".join(told).encode()).hexdigest()[:16]


def stamp_of(path: Path) -> str:
    """What a file keeps when it is renamed, and loses when it is written anew; "none" of no file."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return "none"
    return f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns}"


def digest_of(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal; of no file that of no bytes."""
    found = hashlib.sha256()
    if path.exists():
        with path.open("rb") as file:
            while block := file.read(BLOCK):
                found.update(block)
    return found.hexdigest()


def _discard(place: IntakeFolder) -> None:
    """Take away what was staged and never recorded."""
    for target in place.targets().values():
        staged(target).unlink(missing_ok=True)
    if place.scratch.is_dir():
        for left in place.scratch.iterdir():
            left.unlink()


def _finish(place: IntakeFolder, targets: dict[str, Path]) -> None:
    for target in targets.values():
        if staged(target).exists():  # else it was renamed before the crash
            staged(target).replace(target)
    for folder in {target.parent for target in targets.values()}:
        sync_folder(folder)
    place.record.unlink()
    sync_folder(place.folder)


def _settle(fresh: Path, target: Path) -> None:
    """A staged file as it will be read: on the disk, and for no more eyes than the old one."""
    mode = target.stat().st_mode & 0o777 if target.exists() else 0o600
    handle = os.open(fresh, os.O_RDONLY)
    try:
        os.fchmod(handle, mode)
        os.fsync(handle)
    finally:
        os.close(handle)
