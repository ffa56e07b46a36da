"""One table on its way into the data set: checked row by row, cleaned, scrubbed; wrong rows are set aside.

Whether a row stays and how it reads depends on that row alone, and of rows that are one event the same one stays
whatever came first. So it does not matter how rows are spread over files, or how often they come.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import polars as pl

from client.data.cleaning import DAY, EVENT, clean
from client.data.formats.columns import (
    INTERACTION_COLUMNS,
    ColumnMapping,
    guess_mapping,
    no_items,
    seconds,
    to_interactions,
)
from client.data.formats.files import Table
from client.data.ingest import RawData
from client.data.pseudonyms import PseudonymKey
from client.intake.scrubbing import Scrubber
from client.intake.suppression import tidied, without
from shared.errors import SchemaError

BLOCK = 4096
"""Rows that are tried together; a block with a wrong cell is halved until the row is found."""
MOST_WRONG, WRONG_SHARE = 200, 0.05
"""A table with more rows that cannot be read, in number and share, is not what the mapping says: none is taken."""
FIRST_REAL_TIME = 10**8
"""As in `client.data.commands`: smaller times are ordinals, which have no age."""

FORM = dict(zip(INTERACTION_COLUMNS, (pl.String, pl.String, pl.Int64, pl.String, pl.Float64, pl.String), strict=True))
REJECT_COLUMNS = ("reason", "source", *INTERACTION_COLUMNS, "rejected")
REJECTS = {**dict.fromkeys(REJECT_COLUMNS, pl.String), "rejected": pl.Int64}
UNKNOWN_ITEM = "unknown_item"


@dataclass(frozen=True, slots=True)
class Rules:
    """What is done with rows.

    Parameters
    ----------
    items : polars.DataFrame
        Column ``item_id``: the catalogue.
    scrubber : Scrubber or None
    suppressed : collection of str
        Marks of users who were erased.
    key : PseudonymKey
    oldest : int or None
        UTC seconds; what is older is dropped.
    now : float
    """

    items: pl.DataFrame
    scrubber: Scrubber | None
    suppressed: Collection[str]
    key: PseudonymKey
    oldest: int | None
    now: float


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a table gave.

    Parameters
    ----------
    rows : polars.DataFrame
        `INTERACTION_COLUMNS`, clean; one row an event.
    rejects : polars.DataFrame
        `REJECT_COLUMNS`.
    counts : Counter
        read, suppressed, too_old, repeated.
    found : Counter
        Personal data that were replaced, by kind, each distinct text once.
    """

    rows: pl.DataFrame
    rejects: pl.DataFrame
    counts: Counter[str] = field(default_factory=Counter)
    found: Counter[str] = field(default_factory=Counter)


def prepare(table: Table, mapping: ColumnMapping | None, source: str, rules: Rules) -> Prepared:
    """Rows of a table as the data set takes them.

    Raises
    ------
    SchemaError
        If a column is missing, or too many rows cannot be read.
    """
    readable, unreadable = _sorted_out(table, mapping, source, rules.now)
    prepared = settle(readable, source, rules)
    found = prepared.found
    rejects = without(unreadable, rules.suppressed, rules.key)
    if rules.scrubber is not None and not rejects.is_empty():
        for column in ("review", "timestamp", "rating", "event"):  # where columns are shifted, words stand anywhere
            texts, more = rules.scrubber.column(rejects.get_column(column).fill_null(""))
            rejects, found = rejects.with_columns(texts.alias(column)), found + more
    counts = prepared.counts + Counter(read=unreadable.height, suppressed=unreadable.height - rejects.height)
    return Prepared(prepared.rows, pl.concat([rejects, prepared.rejects]), counts, found)


def settle(rows: pl.DataFrame, source: str, rules: Rules) -> Prepared:
    """Interactions, cleaned and scrubbed, without those of users who were erased or of times gone by.

    Parameters
    ----------
    rows : polars.DataFrame
        `INTERACTION_COLUMNS`.
    source : str
        Is told of rejected rows.
    rules : Rules
    """
    own = without(rows, rules.suppressed, rules.key)
    kept = young(own, rules.oldest)
    texts, found = final_texts(kept.get_column("review"), rules.scrubber)
    told = kept.with_columns(tidied("user_id"), tidied("item_id"), review=texts).join(
        rules.items.select("item_id", _known=True), on="item_id", how="left", maintain_order="left"
    )
    latest = int(rules.now) + DAY
    reason = (
        pl.when((pl.col("user_id") == "") | (pl.col("item_id") == ""))
        .then(pl.lit("empty_id"))
        .when(~pl.col("timestamp").is_between(0, latest))
        .then(pl.lit("impossible_time"))
        .when(pl.col("_known").is_null())
        .then(pl.lit(UNKNOWN_ITEM))
    )
    judged = told.with_columns(reason=reason)
    wrong = judged.filter(pl.col("reason").is_not_null())
    good = judged.filter(pl.col("reason").is_null()).select(INTERACTION_COLUMNS)
    single = clean(RawData("", good, no_items()), now=rules.now)[0].interactions if good.height else good
    counts = Counter(
        read=rows.height,
        suppressed=rows.height - own.height,
        too_old=own.height - kept.height,
        repeated=good.height - single.height,
    )
    return Prepared(single, _rejects(wrong, source, rules.now), counts, found)


def young(rows: pl.DataFrame, oldest: int | None) -> pl.DataFrame:
    """Rows that retention lets stay."""
    return rows if oldest is None else rows.filter(pl.col("timestamp") >= oldest)


def single_events(rows: pl.DataFrame) -> pl.DataFrame:
    """One row an event, the one that `client.data.cleaning` would keep, in an order of their own."""
    size = pl.col("review").str.len_chars()
    ordered = rows.with_columns(pl.col("rating").fill_nan(None)).sort(*EVENT, size, "rating", "review")
    return ordered.unique(EVENT, keep="last", maintain_order=True)


def final_texts(texts: pl.Series, scrubber: Scrubber | None) -> tuple[pl.Series, Counter[str]]:
    """Reviews as they are kept: cleaned as imported ones are, then scrubbed, and how much was replaced."""
    frame = texts.fill_null("").to_frame("raw")
    distinct = frame.filter(pl.col("raw") != "").unique()
    if distinct.is_empty():
        return frame.get_column("raw").alias("review"), Counter()
    # One row a text, under a number as its user: cleaning then finds no two rows that are one event.
    numbered = distinct.with_row_index("n").with_columns(user_id=pl.col("n").cast(pl.String))
    carrier = numbered.select(
        "user_id", item_id=pl.lit("-"), timestamp=pl.lit(0, pl.Int64), event=pl.lit("other"),
        rating=pl.lit(None, pl.Float64), review="raw",
    )  # fmt: skip
    cleaned = clean(RawData("", carrier, no_items()))[0].interactions.select("user_id", "review")
    found: Counter[str] = Counter()
    if scrubber is not None:
        scrubbed, found = scrubber.column(cleaned.get_column("review"))
        cleaned = cleaned.with_columns(review=scrubbed)
    final = numbered.join(cleaned, on="user_id").select("raw", "review")
    joined = frame.join(final, on="raw", how="left", maintain_order="left")
    return joined.get_column("review").fill_null(""), found


def _sorted_out(
    table: Table, mapping: ColumnMapping | None, source: str, now: float
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The rows that the reader takes, and those that it refuses, cell by cell as it does."""
    given = mapping or guess_mapping(table.frame.columns)
    try:
        return to_interactions(table, mapping), _empty_rejects()
    except SchemaError:
        # A column that is missing is no matter of rows.
        to_interactions(Table(table.path, table.frame.clear(), table.line_of), mapping)
    most = max(MOST_WRONG, int(WRONG_SHARE * table.frame.height))
    good: list[pl.DataFrame] = []
    wrong: list[pl.DataFrame] = []
    for frame, readable in _tried(table, mapping):
        (good if readable else wrong).append(frame)
        if len(wrong) > most:
            raise SchemaError(f"{table.path}: Expected at most {most} rows with a time or rating that is none.")
    names = given.completed() if mapping else given
    refused = [_refused(Table(table.path, row, table.line_of), names, source, now) for row in wrong]
    readable_rows = [pl.DataFrame(schema=FORM), *good]
    return pl.concat(readable_rows), pl.concat([_empty_rejects(), *refused])


def _tried(table: Table, mapping: ColumnMapping | None) -> Iterator[tuple[pl.DataFrame, bool]]:
    """Blocks that can be read, as interactions, and single rows that cannot, as they are."""
    waiting = list(table.frame.iter_slices(BLOCK))[::-1]
    while waiting:
        frame = waiting.pop()
        try:
            yield to_interactions(Table(table.path, frame, table.line_of), mapping), True
        except SchemaError:
            if frame.height == 1:
                yield frame, False
            else:
                half = frame.height // 2
                waiting += [frame.slice(half), frame.slice(0, half)]


def _refused(row: Table, names: ColumnMapping, source: str, now: float) -> pl.DataFrame:
    try:
        seconds(row, names.timestamp)
        reason = "bad_rating"
    except SchemaError:
        reason = "bad_time"
    columns = (names.user, names.item, names.timestamp, names.event, names.rating, names.review)
    cells = {
        name: pl.col(column).cast(pl.String) if column in row.frame.columns else pl.lit("")
        for name, column in zip(INTERACTION_COLUMNS, columns, strict=True)
        if column is not None
    }
    blank = {name: pl.lit("") for name in INTERACTION_COLUMNS if name not in cells}
    if names.title in row.frame.columns:
        cells["review"] = pl.concat_str(pl.col(names.title).fill_null(""), cells["review"].fill_null(""), separator=" ")
    return _rejects(row.frame.select(reason=pl.lit(reason), **cells, **blank), source, now)


def _rejects(wrong: pl.DataFrame, source: str, now: float) -> pl.DataFrame:
    told = wrong.with_columns(source=pl.lit(source), rejected=pl.lit(int(now), pl.Int64))
    return told.select(pl.col(name).cast(kind) for name, kind in REJECTS.items())


def _empty_rejects() -> pl.DataFrame:
    return pl.DataFrame(schema=REJECTS)
