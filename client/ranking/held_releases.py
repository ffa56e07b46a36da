"""Which releases the promotion gate held back, and why: in a file beside what a partner remembers of releases."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from client.ranking.release_memory import memory_of
from shared.errors import IntegrityError
from shared.files import write_json

HELD_FILE = "held.json"


@dataclass(frozen=True)
class HeldReleases:
    """Why releases were held back, by fingerprint. Not in a log: a reason names items and shares of users."""

    file: Path

    def read(self) -> dict[str, str]:
        """All of them.

        Raises
        ------
        IntegrityError
            If the file cannot be read: nothing is served on a guess.
        """
        try:
            told = json.loads(self.file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError):
            told = None
        if not isinstance(told, dict) or not all(isinstance(reason, str) for reason in told.values()):
            raise IntegrityError(f"{self.file}: Expected why releases were held back, by fingerprint.")
        return told

    def keep(self, fingerprint: str, reason: str | None) -> None:
        """Write a reason down, or take it away."""
        before = self.read()
        after = {k: v for k, v in before.items() if k != fingerprint} | ({fingerprint: reason} if reason else {})
        if after != before:
            write_json(self.file, after)


def held_of(state: Path | None) -> HeldReleases:
    """Those of a service's folder of state, by default ``$VEILREC_HOME/serve``: for service and commands alike."""
    return HeldReleases(memory_of(state).with_name(HELD_FILE))
