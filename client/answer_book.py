"""What an agent answered in the current attempt at a round: asked the same again, it says the same again.

Messages are delivered at least once: a node that was killed between the agent's answer and the coordinator's receipt
of it asks again. Nothing is computed, drawn or spent a second time then. A second request that differs is refused.
``runs/<run_id>/answers/<step>`` holds one answer of each exchange; what is in it was allowed to leave.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from shared.errors import LedgerError, ReplayError
from shared.files import write_bytes


@dataclass(frozen=True, slots=True)
class Asked:
    """A request by what names it.

    Attributes
    ----------
    run_id : str
    nonce : str
        Of the attempt.
    step : str
        Which exchange.
    digest : str
        Of all that the request says.
    """

    run_id: str
    nonce: str
    step: str
    digest: str


class AnswerBook:
    """The answers of one partner.

    Parameters
    ----------
    runs : Path
        The folder of the runs' folders.
    """

    def __init__(self, runs: Path) -> None:
        self._runs = runs

    def find(self, asked: Asked) -> bytes | None:
        """The answer that was given to this request; None if there was none.

        Raises
        ------
        ReplayError
            If another request of the same exchange of the same attempt was answered.
        """
        try:
            head, _, answer = self._file(asked).read_bytes().partition(b"\n")
            known = Asked(**json.loads(head))
        except (FileNotFoundError, ValueError, TypeError):  # a damaged one is as none: the agent decides anew
            return None
        if (known.run_id, known.nonce) != (asked.run_id, asked.nonce):
            return None
        if known.digest != asked.digest:
            raise ReplayError(f"Expected the request of exchange {asked.step} that was answered, got another one.")
        return answer

    def keep(self, asked: Asked, answer: bytes) -> None:
        """Keep an answer, durably, before it leaves.

        Raises
        ------
        LedgerError
            If it cannot be written: it may not leave then, and the round is asked for again.
        """
        try:
            write_bytes(self._file(asked), json.dumps(asdict(asked)).encode() + b"\n" + answer)
        except OSError as error:
            raise LedgerError(
                f"Expected to keep the answer of exchange {asked.step}, got {type(error).__name__}."
            ) from None

    def _file(self, asked: Asked) -> Path:
        return self._runs / asked.run_id / "answers" / asked.step
