"""Attempts at a round that failed: counted, told, and made again after a pause.

An attempt costs partners nothing but time: their noised sum of a round is drawn and paid for once, and handed in again.
"""

from __future__ import annotations

import json
import logging
import time
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
        A line for each of them: time, round, family of the error, seconds until the next.
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
            line = {"time": round(time.time(), 3), "round": round_, "family": error.wire_name, "pause_s": pause}
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            _log.warning("round %d, attempt %d failed: %s", round_, self._failed, error)
        if last:
            raise error
        time.sleep(pause)
