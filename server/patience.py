"""How long a coordinator waits for partners, and how often it asks again: no part of what is promised."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, fields

from shared.errors import ConfigError

_MOST_DOUBLED = 60


@dataclass(frozen=True, slots=True)
class Patience:
    """Time-outs of one attempt at a round, and attempts.

    The defaults are those of a simulation, whose partners answer at once or never: one attempt.

    Attributes
    ----------
    gather_s : float, optional
        For all partners to be there before an attempt; then a quorum will do. None: ``federation.timeout_s``.
    exchange_s : float, optional
        For the answers to keys, shares, consent and opening, which take no training. None: ``federation.timeout_s``.
    grace_s : float
        For the rest, once a quorum has answered.
    attempts : int
        At one round, in a row, before the run ends with the error of the last.
    pause_s : float
        Between two of them, at first; doubled each time, up to `longest_pause_s`.
    """

    gather_s: float | None = None
    exchange_s: float | None = None
    grace_s: float = math.inf
    attempts: int = 1
    pause_s: float = 2.0
    longest_pause_s: float = 60.0

    @classmethod
    def from_text(cls, text: str) -> Patience:
        """Read JSON of the attributes; empty text means the defaults.

        Raises
        ------
        ConfigError
            If a key is not one of them, or a value is no number > 0.
        """
        try:
            told = json.loads(text or "{}")
            if not all(type(value) in (int, float) and value > 0 for value in told.values()):
                raise ValueError
            if type(told.get("attempts", 1)) is not int:
                raise ValueError
            return cls(**told)
        except (AttributeError, TypeError, ValueError):
            names = ", ".join(each.name for each in fields(cls))
            raise ConfigError(f"patience: Expected a JSON object of numbers > 0 among {names}.") from None

    def pause(self, failed: int) -> float:
        """Seconds to wait after so many failed attempts in a row."""
        return min(self.longest_pause_s, self.pause_s * 2.0 ** min(failed - 1, _MOST_DOUBLED))


SIMULATED = Patience()
