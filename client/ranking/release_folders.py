"""Look at a folder of releases: what verifies, and what is refused, each looked at again only when it changes."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from client.ranking.release_memory import Known
from shared.errors import IntegrityError, VeilrecError
from shared.release_files import MANIFEST_FILE, SIGNATURE_FILE, read_contents, read_manifest
from shared.release_manifest import FILES
from shared.release_signature import Trust

SETTLED_NS = 3_000_000_000
"""A refused folder that changed less than this before it was looked at may be in the middle of a copy that the clock
of its file system is too coarse to show: it is looked at again."""

Stamp = tuple[tuple[int, ...] | None, ...]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a folder is no release: the error's `family` and its message, which names no user."""

    family: str
    reason: str


AGAIN_S = 60.0
"""After which a release that could not be served is tried once more."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """What came of looking at a folder; it holds as long as the `stamp` does."""

    stamp: Stamp
    manifest: dict[str, Any] | None
    refusal: Refusal | None
    whole: bool = False
    """Whether the digests were checked too."""
    settled: bool = True
    again_at: float = math.inf
    """When to look again though nothing changed, by `time.monotonic`: what refused it may have passed."""

    def holds(self, now: float) -> bool:
        """Whether it need not be looked at again while its files stay."""
        return self.settled and now < self.again_at


class ReleaseFolders:
    """The folders on a shelf, by name.

    Parameters
    ----------
    root : Path
        May be absent, come and go.
    trust : VerifyKey or frozenset of VerifyKey
    """

    def __init__(self, root: Path, trust: Trust) -> None:
        self.root = root
        self._trust = trust
        self._seen: dict[str, _Seen] = {}

    def look(self) -> None:
        """Read the manifests of the folders that changed; the others are as they were."""
        seen: dict[str, _Seen] = {}
        for name in _names(self.root):
            stamp, before = _stamp(self.root / name), self._seen.get(name)
            holds = before is not None and before.stamp == stamp and before.holds(time.monotonic())
            seen[name] = before if before is not None and holds else self._opened(name, stamp)
        self._seen = seen

    def names(self) -> tuple[str, ...]:
        """All folders, in order."""
        return tuple(self._seen)

    def manifest(self, name: str) -> dict[str, Any] | None:
        """The signed manifest of a folder; None if it is refused."""
        return self._seen[name].manifest

    def refusal(self, name: str) -> Refusal | None:
        """Why a folder is refused, if it is."""
        return self._seen[name].refusal

    def known(self) -> tuple[tuple[str, Known], ...]:
        """Names and releases of what is not refused, newest first, then by name."""
        named = [(name, known_of(seen.manifest)) for name, seen in self._seen.items() if seen.manifest is not None]
        return tuple(sorted(named, key=lambda pair: -pair[1].version))

    def is_whole(self, name: str) -> bool:
        """Check size and digest of every file, once; a release that is not whole is refused."""
        seen = self._seen[name]
        if seen.manifest is None or seen.whole:
            return seen.whole
        try:
            read_contents(self.root / name, seen.manifest)
        except VeilrecError as error:
            self.refuse(name, error)
            return False
        self._seen[name] = replace(seen, whole=True)
        return True

    def refuse(self, name: str, error: VeilrecError) -> None:
        """Refuse a folder until it changes, or for `AGAIN_S`: the fault may have been this machine's."""
        refused = _refused(self._seen[name].stamp, error)
        self._seen[name] = replace(refused, again_at=time.monotonic() + AGAIN_S)

    def _opened(self, name: str, stamp: Stamp) -> _Seen:
        folder = self.root / name
        try:
            if Path(os.path.realpath(folder)).parent != Path(os.path.realpath(self.root)):
                raise IntegrityError(f"{folder}: Expected a folder on the shelf, got a link that leads away.")
            return _Seen(stamp, read_manifest(folder, self._trust), None)
        except VeilrecError as error:
            return _refused(stamp, error)


def known_of(manifest: dict[str, Any]) -> Known:
    """The release that a manifest is of."""
    return Known(manifest["version"], manifest["fingerprint"])


def printable(text: str) -> str:
    """The text as a terminal may show it: whoever copies folders names them as they like."""
    return text if text.isprintable() else ascii(text)


def _refused(stamp: Stamp, error: VeilrecError) -> _Seen:
    # The error itself is not kept: its traceback would hold all that was read.
    newest = max((change for file in stamp if file for change in file[2:]), default=0)
    refusal = Refusal(error.wire_name, printable(str(error)))
    return _Seen(stamp, None, refusal, settled=newest < time.time_ns() - SETTLED_NS)


def _names(root: Path) -> list[str]:
    """Folders that are not hidden: copies in the making often are."""
    try:
        with os.scandir(root) as entries:
            return sorted(entry.name for entry in entries if not entry.name.startswith(".") and _is_folder(entry))
    except OSError:
        return []


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _stamp(folder: Path) -> Stamp:
    """Of each file of a release what changes with it: inode, size, and when contents and inode changed last."""
    stamps: list[tuple[int, ...] | None] = []
    for name in (MANIFEST_FILE, SIGNATURE_FILE, *FILES):
        try:
            about = (folder / name).stat()
            stamps.append((about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns))
        except OSError:
            stamps.append(None)
    return tuple(stamps)
