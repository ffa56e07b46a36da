"""Cleaning: what is no interaction leaves, what is no text leaves the texts, and every thing done is counted.

Which rows stay, and how they read, does not depend on the order of the rows; cleaning twice changes nothing.
"""

from __future__ import annotations

import html
import re
import time
from dataclasses import dataclass

import polars as pl

from client.data.ingest import RawData
from shared.errors import EmptyHistoryError

MAX_TEXT_CHARS = 4_000  # about twice what BERT reads of one text
DAY = 86_400
EVENT = ("user_id", "item_id", "timestamp", "event")
CONTROL = r"[\p{Cc}\x{200B}\x{FEFF}]"
CONTROL_BUT_LINES = r"[\x00-\x08\x0B\x0C\x0E-\x1F\x7F-\x9F\x{200B}\x{FEFF}]"
HIDDEN = re.compile(r"<!--.*?-->|<(script|style)\b[^<>]*>.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
TAG = re.compile(r"</?[a-zA-Z][^<>]*>")
ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")


@dataclass(frozen=True, slots=True)
class CleaningReport:
    """What cleaning found and did; all are counts of rows.

    Parameters
    ----------
    interactions_in, interactions_out : int
        Before and after.
    empty_ids : int
        Interactions without a user or an item: dropped.
    impossible_times : int
        Interactions before 1970 or more than a day in the future: dropped. Ordinals pass.
    duplicates : int
        Repetitions of one user, item, time and event: all but one dropped.
    reviews_with_markup, reviews_with_control_characters : int
        Reviews that held HTML tags or entities, or control characters: cleaned.
    reviews_shortened : int
        Reviews cut to `MAX_TEXT_CHARS` characters.
    items_in, items_out : int
        Catalogue before and after.
    items_without_id, duplicate_items : int
        Dropped; of items with one id the one with the longest title and text stays.
    items_added : int
        Items that occur in interactions only: added to the catalogue with an empty title.
    """

    interactions_in: int
    interactions_out: int
    empty_ids: int
    impossible_times: int
    duplicates: int
    reviews_with_markup: int
    reviews_with_control_characters: int
    reviews_shortened: int
    items_in: int
    items_out: int
    items_without_id: int
    duplicate_items: int
    items_added: int


def clean(data: RawData, *, now: float | None = None) -> tuple[RawData, CleaningReport]:
    """Clean interactions and catalogue.

    Parameters
    ----------
    data : RawData
        As read.
    now : float, optional
        UTC seconds; by default the clock's.

    Returns
    -------
    tuple of RawData and CleaningReport

    Raises
    ------
    EmptyHistoryError
        If no interaction is left.
    """
    latest = int(time.time() if now is None else now) + DAY
    identified = _with_ids(data.interactions, "user_id", "item_id")
    possible = identified.filter(pl.col("timestamp").is_between(0, latest))
    texts, markup, control, shortened = _clean_texts(possible, "review")
    interactions = _without_duplicates(texts)
    if interactions.is_empty():
        raise EmptyHistoryError(
            f"Expected at least one interaction after cleaning, got none of interactions={data.interactions.height}."
        )
    items, catalogue_counts = _clean_items(data.items, interactions.get_column("item_id"))
    report = CleaningReport(
        interactions_in=data.interactions.height,
        interactions_out=interactions.height,
        empty_ids=data.interactions.height - identified.height,
        impossible_times=identified.height - possible.height,
        duplicates=possible.height - interactions.height,
        reviews_with_markup=markup,
        reviews_with_control_characters=control,
        reviews_shortened=shortened,
        items_in=data.items.height,
        items_out=items.height,
        **catalogue_counts,
    )
    return RawData(data.name, interactions, items), report


def plain_text(text: str) -> str:
    """A text without HTML tags and with its entities resolved, however often they were escaped.

    ``&lt;b&gt;`` becomes ``<b>`` and then nothing; "a < b" and "I <3 this" stay.
    """
    while True:
        bare = TAG.sub(" ", HIDDEN.sub(" ", text))
        plain = ENTITY.sub(lambda match: html.unescape(match.group()), bare)
        if plain == text:
            return text
        text = plain


def _with_ids(frame: pl.DataFrame, *columns: str) -> pl.DataFrame:
    """Rows in which every id holds something; blanks and control characters around an id go."""
    stripped = frame.with_columns(
        pl.col(column).fill_null("").str.replace_all(CONTROL, " ").str.strip_chars() for column in columns
    )
    return stripped.filter(pl.all_horizontal(pl.col(column) != "" for column in columns))


def _clean_texts(frame: pl.DataFrame, column: str) -> tuple[pl.DataFrame, int, int, int]:
    """The frame with clean texts, and how many had markup, had control characters, were too long."""
    distinct = frame.select(text=pl.col(column).fill_null("")).filter(pl.col("text") != "").unique()
    if distinct.is_empty():
        return frame.with_columns(pl.col(column).fill_null("")), 0, 0, 0
    cleaned = _cleaned(distinct)
    joined = frame.with_columns(pl.col(column).fill_null("")).join(
        cleaned, left_on=column, right_on="text", how="left", maintain_order="left"
    )
    counts = joined.select(pl.col("_markup", "_control", "_long").sum()).row(0)
    result = joined.with_columns(pl.col("_clean").fill_null("").alias(column)).select(frame.columns)
    return result, int(counts[0]), int(counts[1]), int(counts[2])


def _cleaned(texts: pl.DataFrame) -> pl.DataFrame:
    """Columns text, _clean and, for each, what was wrong with it. One place defines what a clean text is."""
    # The work on one text stays bounded: no more than four times what is kept is looked at.
    raw = texts.with_columns(_clean=pl.col("text").str.slice(0, 4 * MAX_TEXT_CHARS))
    suspect = raw.get_column("_clean").str.contains("[<&]")
    plain = [plain_text(text) for text in raw.get_column("_clean").filter(suspect).to_list()]
    unmarked = raw.get_column("_clean").scatter(suspect.arg_true(), plain) if plain else raw.get_column("_clean")
    spaced = unmarked.str.replace_all(CONTROL, " ").str.replace_all(r"\s+", " ").str.strip_chars()
    return raw.with_columns(
        _markup=unmarked != raw.get_column("_clean"),
        _control=unmarked.str.contains(CONTROL_BUT_LINES),
        _long=(spaced.str.len_chars() > MAX_TEXT_CHARS) | (pl.col("text").str.len_chars() > 4 * MAX_TEXT_CHARS),
        _clean=spaced.str.slice(0, MAX_TEXT_CHARS).str.strip_chars(),
    )


def _without_duplicates(interactions: pl.DataFrame) -> pl.DataFrame:
    """Of rows that are one event the one with the longest review, then the highest rating, stays."""
    repeated = interactions.select(pl.struct(EVENT).is_duplicated()).to_series()
    if not repeated.any():
        return interactions
    size = pl.col("review").str.len_chars()
    best = (
        interactions.filter(repeated)
        .sort(*EVENT, size, "rating", "review")
        .unique(EVENT, keep="last", maintain_order=True)
    )
    return pl.concat([interactions.filter(~repeated), best])


def _clean_items(items: pl.DataFrame, used: pl.Series) -> tuple[pl.DataFrame, dict[str, int]]:
    """The catalogue sorted by id, one row an id, and complete."""
    identified = _with_ids(items, "item_id")
    tidy = identified
    for column in ("title", "text", "categories"):
        tidy = _clean_texts(tidy, column)[0]
    size = pl.col("title").str.len_chars() + pl.col("text").str.len_chars()
    single = tidy.sort("item_id", size, "title", "text", "categories").unique("item_id", keep="last")
    missing = used.unique().to_frame("item_id").join(single, on="item_id", how="anti")
    added = missing.with_columns(title=pl.lit(""), text=pl.lit(""), categories=pl.lit(""))
    counts = {
        "items_without_id": items.height - identified.height,
        "duplicate_items": identified.height - single.height,
        "items_added": added.height,
    }
    return pl.concat([single.select(added.columns), added]).sort("item_id"), counts
