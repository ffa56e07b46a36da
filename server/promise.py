"""Whose sum a round is: what the first attempt that came as far as its opening was bound to.

A partner consents to one set of survivors a round, ever (`shared.privacy.ledger.Ledger.open`). A coordinator that lost
the opening, or was killed before it, so has to open the same set in the next attempt, and leaves everybody else out.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path

from shared.errors import CheckpointError, CohortTooSmallError
from shared.files import write_json

PROMISE_FILE, BUCKET_PROMISE_FILE = "promise.json", "promise-{}.json"


class Promise:
    """The survivors of one sum of one round of one run, kept on the disk before any partner is asked to consent.

    Parameters
    ----------
    folder : Path
        The run's checkpoints.
    run_id : str
    round_ : int
        The round that is attempted now; a promise of another one binds nobody any more.
    file : str
        Its name: every bucket of a round has a promise of its own (`of_bucket`).

    Raises
    ------
    CheckpointError
        If the file is not what was written.
    """

    def __init__(self, folder: Path, run_id: str, round_: int, file: str = PROMISE_FILE) -> None:
        self._file, self._run_id, self._round = folder / file, run_id, round_
        self._names: frozenset[str] | None = None
        try:
            told = json.loads(self._file.read_text(encoding="utf-8"))
            if (str(told["run_id"]), int(told["round"])) == (run_id, round_):
                self._names = frozenset(map(str, told["survivors"]))
        except FileNotFoundError:
            pass
        except (OSError, KeyError, TypeError, ValueError):
            raise CheckpointError(f"{self._file}: Expected the survivors of a round.") from None

    def of_bucket(self, number: int) -> Promise:
        """That of one of several sums of the same round: one that cannot be had again ends its bucket alone."""
        return Promise(self._file.parent, self._run_id, self._round, BUCKET_PROMISE_FILE.format(number))

    def allows(self, name: str) -> bool:
        """Whether a partner may take part in this attempt."""
        return self._names is None or name in self._names

    def make(self, names: Collection[str]) -> None:
        """Bind the round to these survivors, durably.

        Raises
        ------
        CohortTooSmallError
            If it is bound to others: some of them are missing in this attempt.
        """
        if self._names is not None and self._names != frozenset(names):
            missing = len(self._names - frozenset(names))
            raise CohortTooSmallError(f"Expected the survivors of the first attempt, {missing} are missing.")
        self._names = frozenset(names)
        write_json(self._file, {"run_id": self._run_id, "round": self._round, "survivors": sorted(names)})
