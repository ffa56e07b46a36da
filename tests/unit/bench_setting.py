"""Work for processes of their own: in a module that imports little, as each of them imports it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from shared.errors import ConfigError

if TYPE_CHECKING:
    from simulations.benchmarks.turns import Turn


def hold(megabytes: int) -> bytearray:
    """Memory that is there: every page of it was written to."""
    held = bytearray(megabytes << 20)
    held[::4096] = b"x" * len(held[::4096])
    return held


def working(megabytes: int) -> int:
    """Hold some memory for a moment; the number of the process."""
    return os.getpid() if hold(megabytes) else 0


def raising() -> None:
    """An error of ours."""
    raise ConfigError("Expected x=1, got 2.")


def noted(name: str, file: Path, megabytes: int = 0) -> Turn:
    """A contender that notes its turns in a file and holds some memory."""
    held = hold(megabytes)

    def turn() -> dict[str, float]:
        with file.open("a") as notes:
            notes.write(name)
        return {"pid": os.getpid(), "held": len(held)}

    return turn


def failing(error: Exception | None) -> Turn:
    """A contender that raises, or ends its process, on its first turn."""

    def turn() -> dict[str, float]:
        if error is None:
            os._exit(3)
        raise error

    return turn
