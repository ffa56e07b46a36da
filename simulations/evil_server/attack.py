"""What an attack is, and what became of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from shared.errors import VeilrecError

if TYPE_CHECKING:
    from simulations.evil_server.adversary import Adversary

Script = Callable[["Adversary"], None]
"""Prepares an attack with requests that are answered (`Adversary.ask`), then aims (`Adversary.aim`)."""


@dataclass(frozen=True, slots=True)
class Attack:
    """One way to get more out of a partner than it should give.

    Attributes
    ----------
    name : str
    description : str
        What it would gain, in one line.
    expected : type of VeilrecError
        The family of the error with which every aimed request must be refused.
    script : callable
    """

    name: str
    description: str
    expected: type[VeilrecError]
    script: Script


@dataclass(frozen=True, slots=True)
class Trial:
    """One aimed request.

    Attributes
    ----------
    got : str
        The family of the error that came back, or what was answered instead.
    changed : tuple of str
        Files that are not as they were before the request.
    """

    got: str
    changed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of an attack.

    Attributes
    ----------
    name, description, expected : str
        As of the `Attack`.
    got : str
        What came back, and which files were changed.
    refused : bool
        Only if every aimed request was refused with the expected error and changed nothing.
    seconds : float
    """

    name: str
    description: str
    expected: str
    got: str
    refused: bool
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The fields, by name."""
        return asdict(self)


def attack(book: list[Attack], name: str, description: str, expected: type[VeilrecError]) -> Callable[[Script], Script]:
    """Enter a script in a book of attacks."""

    def enter(script: Script) -> Script:
        book.append(Attack(name, description, expected, script))
        return script

    return enter
