"""Attempts at a round that failed: counted, told, and made again after a pause.

An attempt costs partners nothing but time: their noised sum of a round is drawn and paid for once, and handed in again.
"""

from __future__ import annotations

import json
import logging
import time
from contextlib import suppress
from pathlib import Path

from server.patience import Patience
from shared.errors import ProtocolError

ATTEMPTS_FILE = "attempts.jsonl"
_log = logging.getLogger("veilrec.server")


class Attempts:
    """The failed attempts of one process at one run.

    Parameters
    ----------
    file : Path
        A line for each of them: time, round, family and text of the error, seconds until the next.
    patience : Patience
    """

    def __init__(self, file: Path, patience: Patience) -> None:
        self._file, self._patience = file, patience
        self._round, self._failed = 0, 0

    def failed(self, round_: int, error: ProtocolError) -> None:
        """Note a failure, and wait until the next attempt may begin.

        Raises
        ------
        ProtocolError
            The failure, if it was the last of as many in a row at one round as the coordinator's patience allows.
        """
        self._failed = self._failed + 1 if round_ == self._round else 1
        self._round = round_
        last = self._failed >= self._patience.attempts
        pause = 0.0 if last else self._patience.pause(self._failed)
        if self._patience.attempts > 1:  # a simulation has one, and its error is told anyway
            told = {"family": error.wire_name, "why": str(error)}
            line = {"time": round(time.time(), 3), "round": round_, **told, "pause_s": pause}
            self._write(json.dumps(line).encode() + b"\n")
            _log.warning("round %d, attempt %d failed: %s", round_, self._failed, error)
        if last:
            raise error
        time.sleep(pause)

    def _write(self, line: bytes) -> None:
        """Add a whole line or none: a disk that is full costs the count, not the run."""
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("ab", buffering=0) as file:
                size = file.tell()
                if file.write(line) != len(line):
                    file.truncate(size)
