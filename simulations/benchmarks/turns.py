"""Contenders take turns, each in a process of its own: what else the machine does hits all of them alike.

::

    A set-up   B set-up   | A B A B A B ... |   peak memory of A, of B
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection

from shared.errors import IntegrityError, VeilrecError
from simulations.benchmarks.memory import peak_rss_mb

Turn = Callable[[], dict[str, float]]
"""Does the work once, and tells figures of it."""
Contender = Callable[[], Turn]
"""Sets up, in a process of its own: picklable, so a function of a module, or a partial of one."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a contender came to.

    Attributes
    ----------
    turns : tuple of dict
        The figures of each turn, the first one left out: it warms up.
    peak_rss_mb : float
        Of the contender's process.
    """

    turns: tuple[dict[str, float], ...]
    peak_rss_mb: float

    def median(self, name: str) -> float:
        """The median of a figure over the turns."""
        return statistics.median(turn[name] for turn in self.turns)


def take_turns(
    contenders: Mapping[str, Contender], repeat: int, told: Callable[[str], None] = lambda _: None
) -> dict[str, Measured]:
    """Let every contender work once, then every one a second time, and so on: ``repeat`` times after a first.

    Parameters
    ----------
    contenders : mapping of str to Contender
    repeat : int
        At least 1.
    told : callable
        Called with a line about what is going on.

    Raises
    ------
    VeilrecError
        What a contender raised.
    IntegrityError
        If a contender's process ended, or raised anything else.
    """
    with _processes(contenders, told) as pipes:
        turns: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
        for number in range(1 + repeat):
            told(f"turn {number} of {repeat}")
            for name, pipe in pipes.items():
                pipe.send(True)
                turns[name].append(_heard(name, pipe))
        peaks = {}
        for name, pipe in pipes.items():
            pipe.send(False)
            peaks[name] = _heard(name, pipe)["peak_rss_mb"]
    return {name: Measured(tuple(figures[1:]), peaks[name]) for name, figures in turns.items()}


@contextmanager
def _processes(contenders: Mapping[str, Contender], told: Callable[[str], None]) -> Iterator[dict[str, Connection]]:
    """One process a contender, set up one after the other; all are gone afterwards."""
    context, pipes, processes = get_context("spawn"), {}, []
    try:
        for name, contender in contenders.items():
            told(f"setting up: {name}")
            here, there = context.Pipe()
            process = context.Process(target=_work, args=(contender, there), daemon=True)
            process.start()
            there.close()
            processes.append(process)
            pipes[name] = here
            _heard(name, here)
        yield pipes
    finally:
        for pipe in pipes.values():
            pipe.close()
        for process in processes:
            process.terminate()
            process.join()
            process.close()


def _heard(name: str, pipe: Connection) -> dict[str, float]:
    try:
        answer = pipe.recv()
    except EOFError:
        raise IntegrityError(f"Expected an answer of contender={name}, its process ended.") from None
    if isinstance(answer, VeilrecError):
        raise answer
    if isinstance(answer, str):
        raise IntegrityError(f"Expected figures of contender={name}, it raised {answer}.")
    figures: dict[str, float] = answer
    return figures


def _work(contender: Contender, pipe: Connection) -> None:
    """A contender's process."""
    try:
        turn = contender()
        pipe.send({})
        while pipe.recv():
            pipe.send(turn())
        pipe.send({"peak_rss_mb": peak_rss_mb()})
    except VeilrecError as error:
        pipe.send(error)
    except Exception as error:  # the text of an unforeseen error may hold data
        pipe.send(type(error).__name__)
