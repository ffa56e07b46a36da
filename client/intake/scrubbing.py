"""Personal data in a text, each replaced by the name of its kind: ``write to [EMAIL]``.

Rules find what has a form. Names of persons have none: they need a model (`client.intake.presidio`). What the rules
find and what they miss is measured by ``veilrec bench pii``; see ``docs/partner-data.md``.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from typing import Protocol

import polars as pl

from client.data.cleaning import MAX_TEXT_CHARS
from client.intake.pii_rules import RULES, Span

VERSION = 1
"""Of the rules. Reviews that were scrubbed by another version are scrubbed anew."""
WORTH_A_LOOK = (
    r"\d|[@＠]|://|(?i:www\.|mailto:|[\[({<] ?(?:at|ät|a|arroba) ?[\])}>]|(?:\bat|ät|arroba)\b|\.(?:com|me|tv|ru)/)"
)
"""A text without any of these holds nothing that a rule could find."""


class Scrubber(Protocol):
    """Replaces personal data in texts."""

    @property
    def identity(self) -> str:
        """Changes with what is found."""
        ...

    def scrub(self, text: str) -> tuple[str, Counter[str]]:
        """One text, and how much of each kind was replaced in it."""
        ...

    def column(self, texts: pl.Series) -> tuple[pl.Series, Counter[str]]:
        """A column of texts, and how much of each kind was replaced, each distinct text once."""
        ...


class RuleScrubber:
    """Scrubs by `client.intake.pii_rules.RULES`."""

    @property
    def identity(self) -> str:
        """Changes with the rules."""
        return f"rules-{VERSION}"

    def scrub(self, text: str) -> tuple[str, Counter[str]]:
        """One text of at most `MAX_TEXT_CHARS` characters: what is longer is cut, since nothing unread may stay.

        Each pass over a text takes time in proportion to its length. Scrubbing twice changes nothing.
        """
        text = plain_digits(text[:MAX_TEXT_CHARS])
        counts: Counter[str] = Counter()
        while True:  # what is glued to something else shows once that is replaced; each pass leaves less
            before = text
            for kind, find in RULES:
                text, found = replaced(text, kind, find(text))
                counts[kind] += found
            if text == before:
                return text, +counts

    def column(self, texts: pl.Series) -> tuple[pl.Series, Counter[str]]:
        """A column of texts; only those with a digit or a sign of an address are looked at."""
        return scrubbed_column(self, texts, WORTH_A_LOOK)


def scrubbed_column(scrubber: Scrubber, texts: pl.Series, pattern: str | None) -> tuple[pl.Series, Counter[str]]:
    """Scrub the distinct texts of a column that `pattern` says are worth a look; all of them for None."""
    short = texts.str.slice(0, MAX_TEXT_CHARS)
    distinct = short.unique().drop_nulls()
    suspect = distinct if pattern is None else distinct.filter(distinct.str.contains(pattern))
    counts: Counter[str] = Counter()
    final: dict[str, str] = {}
    for text in suspect.to_list():
        clean, found = scrubber.scrub(text)
        counts += found
        if clean != text:
            final[text] = clean
    if not final:
        return short, counts
    return short.replace(list(final), list(final.values())), counts


def replaced(text: str, kind: str, spans: object) -> tuple[str, int]:
    """The text with each span as ``[KIND]``, spans that overlap as one; and how many were replaced."""
    ordered: list[Span] = sorted(spans)  # type: ignore[call-overload]
    parts: list[str] = []
    end, count = 0, 0
    for start, stop in ordered:
        if stop <= end:
            continue
        if start >= end:
            parts += [text[end:start], f"[{kind}]"]
            count += 1
        end = stop
    return ("".join(parts) + text[end:], count) if count else (text, 0)


def plain_digits(text: str) -> str:
    """Digits of other scripts and forms as 0 to 9, one for one: a number written in them is a number."""
    if text.isascii():
        return text
    return "".join(str(unicodedata.decimal(one)) if not one.isascii() and one.isdecimal() else one for one in text)


def scrubber_of(setting: str) -> Scrubber | None:
    """The scrubber that ``intake.toml`` names; None for ``off``.

    Raises
    ------
    ConfigError
        If it needs what is not installed.
    """
    if setting == "off":
        return None
    if setting == "presidio":
        from client.intake.presidio import PresidioScrubber

        return PresidioScrubber.installed()
    return RuleScrubber()
