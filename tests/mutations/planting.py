"""A bug to be planted, and how it is planted in a copy of the project. Imports nothing of the project."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COLLECT = "--collect"
"""Asks the runner whether all named tests exist."""
MECHANISM_RUNG = "0-mechanism"
COPIED = ("server", "client", "shared", "simulations", "tests")


@dataclass(frozen=True, slots=True)
class Mutation:
    """One planted bug.

    Attributes
    ----------
    name : str
        What is wrong, in words.
    file : str
        Relative to the repository.
    old, new : str
        `old` is found exactly once in the file and replaced by `new`.
    killers : tuple of str
        Tests of which one must fail, relative to ``tests/``.
    check : str
        The check of the audit that must fail too: ``noise.deviation`` (rung 0), or the name of another rung.
    """

    name: str
    file: str
    old: str
    new: str
    killers: tuple[str, ...]
    check: str = ""

    @property
    def rung(self) -> str:
        """The rung of the audit that catches it."""
        return MECHANISM_RUNG if "." in self.check else self.check

    @property
    def module(self) -> str:
        """The module that holds the bug."""
        return self.file.removesuffix(".py").replace("/", ".")


class PlantingError(Exception):
    """The text of a mutation is not in its file exactly once: the mutation is out of date."""


def planted(mutation: Mutation, source: str) -> str:
    """The source with the bug.

    Raises
    ------
    PlantingError
        If the old text is not found exactly once, or nothing would change.
    """
    found = source.count(mutation.old)
    if found != 1 or mutation.old == mutation.new:
        raise PlantingError(f"{mutation.file}: Expected the text of '{mutation.name}' once, found it {found} times.")
    return source.replace(mutation.old, mutation.new)


def copy_with(mutation: Mutation | None, folder: Path) -> None:
    """Copy the project (files that stay are linked) and plant a bug in it.

    Raises
    ------
    PlantingError
        As `planted`.
    """
    for name in COPIED:
        shutil.copytree(ROOT / name, folder / name, copy_function=_link)
    _link(str(ROOT / "pyproject.toml"), str(folder / "pyproject.toml"))
    if mutation is not None:
        file = folder / mutation.file
        source = planted(mutation, file.read_text(encoding="utf-8"))
        file.unlink()  # a link: writing to it would change the project
        file.write_text(source, encoding="utf-8")


def _link(source: str, target: str) -> str:
    """A hard link, or a copy where the temporary folder is on another file system."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target
