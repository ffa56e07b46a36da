"""What a partner remembers of releases, on its own disk: the newest that it ever served, and which one is pinned."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from client.data.ingest import data_home
from shared.errors import IntegrityError
from shared.files import write_json

LOCK_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Known:
    """A release by its `version` and its `fingerprint`: a version alone may be signed twice."""

    version: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Memory:
    """The newest release that was ever served, and the one that an operator pinned; None for none."""

    newest: Known | None = None
    pinned: Known | None = None


class ReleaseMemory:
    """A `Memory` in a file, for all processes that serve from one folder.

    Parameters
    ----------
    file : Path
        Not in the folder of releases: whoever could replace it there could bring an old release back.
    """

    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> Memory:
        """What is remembered: nothing, if there is no file.

        Raises
        ------
        IntegrityError
            If the file cannot be read: nothing is served on a guess.
        """
        try:
            told = json.loads(self._file.read_text(encoding="utf-8"))
            return Memory(_known(told["newest"]), _known(told["pinned"]))
        except FileNotFoundError:
            return Memory()
        except (OSError, ValueError, TypeError, KeyError, RecursionError):
            raise IntegrityError(f"{self._file}: Expected what was served before (newest, pinned).") from None

    def served(self, known: Known) -> None:
        """Remember a release as served; a newer one is not forgotten for it."""
        self._change(lambda now: now if now.newest and now.newest.version >= known.version else _newest(now, known))

    def pin(self, known: Known | None) -> None:
        """Pin a release, or none."""
        self._change(lambda now: replace(now, pinned=known))

    def _change(self, change: Callable[[Memory], Memory]) -> None:
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self._file}.lock", timeout=LOCK_TIMEOUT_S):
                before = self.read()
                after = change(before)
                if after != before:
                    write_json(self._file, asdict(after))
        except (OSError, Timeout) as error:
            raise IntegrityError(f"{self._file}: cannot be written ({type(error).__name__}).") from None


def memory_of(state: Path | None) -> Path:
    """The file in a service's folder of state, by default ``$VEILREC_HOME/serve``: for service and commands alike."""
    return (state or data_home().parent / "serve") / "releases.json"


def _newest(memory: Memory, known: Known) -> Memory:
    return replace(memory, newest=known)


def _known(told: object) -> Known | None:
    if told is None:
        return None
    if not isinstance(told, dict) or set(told) != {"version", "fingerprint"}:
        raise ValueError
    version, fingerprint = told["version"], told["fingerprint"]
    if type(version) is not int or version < 1 or not isinstance(fingerprint, str):
        raise ValueError
    return Known(version, fingerprint)
