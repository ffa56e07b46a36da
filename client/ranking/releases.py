"""The shelf of releases that a partner serves from: a folder into which somebody copies folders.

Nothing in it is trusted before its signature. The newest release that verifies is served; one that is older than what
was served before is refused, however well it is signed, unless an operator pins it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from client.ranking.release_folders import Refusal, ReleaseFolders, known_of, printable
from client.ranking.release_memory import Known, Memory, ReleaseMemory
from shared.errors import ConfigError, IntegrityError, VeilrecError
from shared.release_signature import Trust

if TYPE_CHECKING:
    from shared.adapter import Release


class Standing(StrEnum):
    """What a shelf makes of a folder."""

    chosen = "chosen"
    """What `ReleaseShelf.latest` gives."""
    waiting = "waiting"
    """May be served, but another is newer or pinned."""
    older = "older"
    """Below what was served before."""
    contradicted = "contradicted"
    """Another release has the same version."""
    refused = "refused"


@dataclass(frozen=True, slots=True)
class ShelvedRelease:
    """A release whose signature, manifest and digests were checked: its `folder` and its `manifest`."""

    folder: Path
    manifest: dict[str, Any]

    @property
    def known(self) -> Known:
        """Its version and fingerprint."""
        return known_of(self.manifest)


@dataclass(frozen=True, slots=True)
class Entry:
    """One folder on the shelf: its `name`, its `standing`, and its `manifest` or the `refusal`."""

    name: str
    standing: Standing
    manifest: dict[str, Any] | None
    refusal: Refusal | None


class ReleaseShelf:
    """Which of the releases in a folder is to be served. Threads may share it; one of them polls.

    Parameters
    ----------
    folder : Path
        Of release folders with any names. It may be absent, come and go.
    trust : VerifyKey or frozenset of VerifyKey
        Whose releases count.
    state_file : Path
        See `ReleaseMemory`.
    """

    def __init__(self, folder: Path, trust: Trust, state_file: Path) -> None:
        self._trust = trust
        self._folders = ReleaseFolders(folder, trust)
        self._memory = ReleaseMemory(state_file)
        self._serving: Known | None = None
        self._lock = threading.RLock()  # over what was looked at; not held while a release is loaded

    @property
    def serving(self) -> Known | None:
        """What `poll` handed over last."""
        return self._serving

    @property
    def remembered(self) -> Memory:
        """The newest release that was ever served here, by any process, and the one that is pinned."""
        return self._memory.read()

    def latest(self) -> ShelvedRelease | None:
        """The release to serve: the pinned one, else the newest not older than what was served; None for none.

        Raises
        ------
        IntegrityError
            If the state file cannot be read.
        """
        with self._lock:
            memory = self._memory.read()
            self._folders.look()
            return self._best(memory)

    def poll(self, on_new: Callable[[Release], object]) -> ShelvedRelease | None:
        """Hand over the release to serve if it is not the one that is served already.

        It is loaded and verified anew, then `on_new` is called. If either raises an error of Veilrec's the release is
        refused until its folder changes, the next best is tried, and what was served before goes on.

        Parameters
        ----------
        on_new : callable
            Begins to serve the release; once it returns, nothing older is served again.

        Returns
        -------
        ShelvedRelease or None
            What was handed over; None if nothing changed.

        Raises
        ------
        IntegrityError
            If the state file cannot be read or written.
        """
        if self._serving is not None:
            self._memory.served(self._serving)  # once more, should it have failed: nothing is written where it did not
        best = self.latest()
        while best is not None and best.known != self._serving:
            try:
                on_new(self._load(best))
            except VeilrecError as error:
                best = self._next_best(best, error)
                continue
            self._serving = best.known  # it is, whether or not that can be written down
            self._memory.served(best.known)
            return best
        return None

    def pin(self, version: int) -> ShelvedRelease:
        """Serve this version from now on, older or newer, until `unpin`.

        Raises
        ------
        ConfigError
            If no release of this version verifies, or several do.
        """
        found = self._of_version(version)
        self._memory.pin(found.known)
        return found

    def unpin(self) -> None:
        """Serve the newest release again; what was served before the pin still counts."""
        self._memory.pin(None)

    def open(self, version: int) -> Release:
        """A verified release of this version, whether or not it is the one to serve: for comparisons.

        Raises
        ------
        ConfigError
            If no release of this version verifies, or several do.
        IntegrityError, AdapterMismatchError
            As `load_release`.
        """
        return self._load(self._of_version(version))

    def entries(self) -> tuple[Entry, ...]:
        """All folders on the shelf by name, each looked at in full."""
        with self._lock:
            memory = self._memory.read()
            self._folders.look()
            names = self._folders.names()
            for name in names:
                self._folders.is_whole(name)
            chosen = self._choice(memory)
            return tuple(self._entry(name, memory, chosen) for name in names)

    def nothing(self) -> IntegrityError:
        """The error of a shelf with nothing to serve, for who has to have something."""
        memory, entries = self._memory.read(), self.entries()
        families = sorted({entry.refusal.family for entry in entries if entry.refusal})
        wanted = f"version >= {memory.newest.version if memory.newest else 1}"
        if memory.pinned:
            wanted = f"version={memory.pinned.version}, which is pinned"
        refused = f"; refused with {', '.join(families)}" if families else ""
        return IntegrityError(
            f"{self._folders.root}: Expected a release of a trusted key with {wanted}, "
            f"got none in {len(entries)} folders{refused}."
        )

    def _of_version(self, version: int) -> ShelvedRelease:
        with self._lock:
            newest = self._memory.read().newest
            self._folders.look()
            found = {
                known: name
                for name, known in reversed(self._folders.known())
                if known.version == version and self._folders.is_whole(name)
            }
            if newest in found:  # which of several was served is known
                found = {newest: found[newest]}
            if len(found) != 1:
                raise ConfigError(
                    f"{self._folders.root}: Expected one verified release of version={version}, got {len(found)}."
                )
            return self._shelved(*found.values())

    def _load(self, shelved: ShelvedRelease) -> Release:
        """Read and verify it anew: what is on the disk may have changed since it was looked at."""
        from shared.adapter import load_release

        release = load_release(shelved.folder, self._trust)
        if release.fingerprint != shelved.known.fingerprint:
            raise IntegrityError(f"{shelved.folder}: Expected a release that stays as it was.")
        return release

    def _next_best(self, refused: ShelvedRelease, error: VeilrecError) -> ShelvedRelease | None:
        with self._lock:
            if refused.folder.name in self._folders.names():  # it may have gone
                self._folders.refuse(refused.folder.name, error)
            return self._best(self._memory.read())

    def _best(self, memory: Memory) -> ShelvedRelease | None:
        while (name := self._choice(memory)) is not None:
            if self._folders.is_whole(name):
                return self._shelved(name)
        return None

    def _shelved(self, name: str) -> ShelvedRelease:
        return ShelvedRelease(self._folders.root / name, self._folders.manifest(name) or {})

    def _choice(self, memory: Memory) -> str | None:
        for name, known in self._folders.known():
            if memory.pinned is not None:
                if known == memory.pinned:
                    return name
            elif self._standing(known, memory) is Standing.waiting:
                return name
        return None

    def _standing(self, known: Known, memory: Memory) -> Standing:
        newest = memory.newest
        if newest is not None and known.version < newest.version:
            return Standing.older
        rivals = {other for _, other in self._folders.known() if other.version == known.version}
        if newest is not None and known.version == newest.version:  # which of several was served is known
            rivals = {newest}
        return Standing.waiting if rivals == {known} else Standing.contradicted

    def _entry(self, name: str, memory: Memory, chosen: str | None) -> Entry:
        manifest, refusal = self._folders.manifest(name), self._folders.refusal(name)
        if manifest is None:
            return Entry(printable(name), Standing.refused, None, refusal)
        standing = Standing.chosen if name == chosen else self._standing(known_of(manifest), memory)
        return Entry(printable(name), standing, manifest, None)
