"""What a report is made of, before it is HTML or PDF: both renderers get the same blocks, and so the same numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from simulations.audit.findings import Verdict
from simulations.report.markup import Html

Level = Literal["severe", "warning"]


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Text; `soft` is set in the colour of captions."""

    text: str
    soft: bool = False


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading within a section, with a verdict beside it where it has one."""

    text: str
    verdict: Verdict | None = None


@dataclass(frozen=True, slots=True)
class Notice:
    """A box that a reader must not miss: red where it is severe, amber where it is a warning."""

    title: str
    text: str
    level: Level


@dataclass(frozen=True, slots=True)
class Terms:
    """Names and what is said of each."""

    entries: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Attributes
    ----------
    caption : str
    head : tuple of str
    rows : tuple of tuples of str
        As long as `head`. A cell that is a verdict is coloured as one.
    prose : tuple of int
        Columns of running text: set left, and given the room.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    prose: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawing by `simulations.report.charts`, with a title and a caption."""

    title: str
    svg: Html
    caption: str


Block = Paragraph | Heading | Notice | Terms | Table | Chart


@dataclass(frozen=True, slots=True)
class Section:
    """A section; `key` is its anchor and unique."""

    key: str
    title: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Claim:
    """The box at the top: the verdict and the promise that it is about.

    Attributes
    ----------
    verdict : Verdict
    meaning : str
        Of the verdict, in a sentence or two.
    headline : str
        The promise in one line; in mode none that there is none.
    promise : str
        To whom, about what.
    severe : bool
        There is no promise: the box is red, whatever the verdict.
    """

    verdict: Verdict
    meaning: str
    headline: str
    promise: str
    severe: bool


@dataclass(frozen=True, slots=True)
class Document:
    """A whole report, or a whole label.

    Attributes
    ----------
    title, subtitle : str
    claim : Claim
    sections : tuple of Section
    footer : str
        On every page of the PDF, beside the verdict.
    """

    title: str
    subtitle: str
    claim: Claim
    sections: tuple[Section, ...]
    footer: str


def present(*blocks: Block | None) -> tuple[Block, ...]:
    """The blocks that are there."""
    return tuple(block for block in blocks if block is not None)


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], prose: Sequence[int] = ()) -> Table | None:
    """A table, or None where it has no rows."""
    if not rows:
        return None
    return Table(caption, tuple(head), tuple(tuple(row) for row in rows), tuple(prose))
