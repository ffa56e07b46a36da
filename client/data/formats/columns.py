"""From the columns of any table to the columns of interactions; the one place where values are checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

import polars as pl

from client.data.formats.files import Table
from shared.errors import ConfigError, SchemaError
from shared.schema import EVENT_KINDS

PLACEHOLDER = "date_is_placeholder"
EVENT_SYNONYMS = {
    "click": "view",
    "pageview": "view",
    "pv": "view",
    "addtocart": "cart",
    "add_to_cart": "cart",
    "buy": "purchase",
    "order": "purchase",
    "transaction": "purchase",
    "rate": "rating",
    "check-in": "checkin",
    "search": "query",
}
ISO_FORMS = ("%Y-%m-%d", "%F %T%.f", "%FT%T%.f", "%F %T%.f%#z", "%FT%T%.f%#z", "%FT%H:%M", "%F %H:%M")
INTERACTION_COLUMNS = ("user_id", "item_id", "timestamp", "event", "rating", "review")
ITEM_COLUMNS = ("item_id", "title", "text", "categories")


@dataclass(frozen=True, slots=True)
class ColumnMapping:
    """Which column of a table is what.

    Parameters
    ----------
    user, item, timestamp : str
        Columns that must be there.
    rating, event, review, title : str, optional
        Columns of the rating, the kind of event, the review and the review's title. When not given, the
        columns ``rating``, ``event``, ``review`` and ``review_title`` are used where the table has them.
    item_title : str, optional
        Column of the item's title, where the table repeats it in every row.
    """

    user: str = "user_id"
    item: str = "item_id"
    timestamp: str = "timestamp"
    rating: str | None = None
    event: str | None = None
    review: str | None = None
    title: str | None = None
    item_title: str | None = None

    @classmethod
    def parse(cls, pairs: Iterable[str]) -> ColumnMapping:
        """From texts of ``user=COLUMN`` pairs, separated by commas; `ConfigError` for an unknown key."""
        known = [field.name for field in fields(cls)]
        found: dict[str, str] = {}
        for pair in (part for text in pairs for part in text.split(",")):
            key, equals, column = (part.strip() for part in pair.partition("="))
            if not equals or not column or key not in known or key in found:
                raise ConfigError(f"Expected each mapping once, as key=COLUMN with a key of {', '.join(known)}.")
            found[key] = column
        return cls(**found)

    @property
    def columns(self) -> list[str]:
        """All columns that are named."""
        return [name for name in (getattr(self, field.name) for field in fields(self)) if name]

    def completed(self) -> ColumnMapping:
        """With the usual names where none is given."""
        return replace(
            self,
            rating=self.rating or "rating",
            event=self.event or "event",
            review=self.review or "review",
            title=self.title or "review_title",
        )


USUAL = ColumnMapping().completed()
KNOWN_MAPPINGS = (
    USUAL,
    ColumnMapping("reviewerID", "asin", "unixReviewTime", "overall", None, "reviewText", "summary"),
    ColumnMapping("user_id", "parent_asin", "timestamp", "rating", None, "text", "title"),
    ColumnMapping("user_id", "asin", "timestamp", "rating", None, "text", "title"),
    ColumnMapping("userId", "movieId", "timestamp", "rating"),
)
"""The usual names, Amazon reviews of 2014/2018 and of 2023, MovieLens; the first that fits is taken."""


def guess_mapping(columns: Sequence[str]) -> ColumnMapping:
    """The first of `KNOWN_MAPPINGS` whose required columns are there, else the usual names."""
    for mapping in KNOWN_MAPPINGS:
        if {mapping.user, mapping.item, mapping.timestamp} <= set(columns):
            return mapping
    return USUAL


def to_interactions(table: Table, mapping: ColumnMapping | None = None) -> pl.DataFrame:
    """Interactions of a table, checked cell by cell.

    Parameters
    ----------
    table : Table
        Any table with one row an interaction.
    mapping : ColumnMapping, optional
        When not given, known column names are recognised.

    Returns
    -------
    polars.DataFrame
        The columns `INTERACTION_COLUMNS`. Rows whose date is marked as a placeholder are left out.

    Raises
    ------
    SchemaError
        For a missing column, or a time or rating that is none: names file, row and column.
    """
    given = mapping or guess_mapping(table.frame.columns)
    table.require(
        *(given.columns if mapping else (given.user, given.item, given.timestamp)),
        hint=" Name the columns with a mapping, as in user=COLUMN.",
    )
    names = given.completed() if mapping else given
    _refuse_nested(table, names.columns)
    frame = table.frame.select(
        user_id=_text(names.user, table),
        item_id=_text(names.item, table),
        timestamp=seconds(table, names.timestamp),
        _event=_text(names.event, table),
        rating=_ratings(table, names.rating),
        _title=_text(names.title, table),
        _review=_text(names.review, table),
    )
    frame = frame.with_columns(review=_joined("_title", "_review")).with_columns(event=_event_kind())
    if PLACEHOLDER in table.frame.columns:
        marked = table.frame.get_column(PLACEHOLDER).cast(pl.String).str.to_lowercase().is_in(["true", "1"])
        frame = frame.filter(~marked.fill_null(False))
    return frame.select(INTERACTION_COLUMNS)


def no_items() -> pl.DataFrame:
    """A catalogue of no item: cleaning completes it from the interactions."""
    return pl.DataFrame(schema=dict.fromkeys(ITEM_COLUMNS, pl.String))


def repeated_titles(table: Table, mapping: ColumnMapping | None) -> pl.DataFrame:
    """Items titled in a table of interactions; of several titles of one item the last by alphabet."""
    if mapping is None or mapping.item_title is None:
        return no_items()
    rows = table.frame.select(item_id=_text(mapping.item, table), title=_text(mapping.item_title, table))
    titles = rows.group_by("item_id").agg(pl.col("title").max()).sort("item_id")
    return titles.with_columns(text=pl.lit(""), categories=pl.lit(""))


def _refuse_nested(table: Table, columns: Sequence[str]) -> None:
    """A parquet column of lists, bytes or durations is no id, time, rating or text."""
    for column in columns:
        kind = table.frame.schema.get(column, pl.String())
        if kind.is_nested() or kind in (pl.Binary, pl.Object, pl.Time, pl.Duration):
            raise SchemaError(f"{table.path}, column {column}: Expected text, numbers or dates, got {kind}.")


def _text(column: str | None, table: Table) -> pl.Expr:
    if column is None or column not in table.frame.columns:
        return pl.lit("", dtype=pl.String)
    return pl.col(column).cast(pl.String).fill_null("")


def seconds(table: Table, column: str) -> pl.Series:
    """UTC seconds of a column of numbers, dates or texts; milli-, micro- and nanoseconds are told by size.

    A number of 10^11 or more would be after the year 5000 in seconds, so it is taken for milliseconds.
    """
    raw = table.frame.get_column(column)
    if raw.dtype in (pl.Date, pl.Datetime):
        raw = raw.dt.epoch("s")
    number = _numbers(raw)
    if raw.dtype == pl.String and number.null_count():
        number = number.fill_null(_from_iso(raw.str.strip_chars()))
    if number.null_count():
        row = int(number.is_null().arg_max() or 0)
        raise table.bad_cell(row, column, "a time (seconds, milliseconds or ISO 8601)")
    t, size = pl.col("t"), pl.col("t").abs()
    seconds = pl.when(size >= 10**17).then(t // 10**9).when(size >= 10**14).then(t // 10**6)
    return number.to_frame("t").select(seconds.when(size >= 10**11).then(t // 10**3).otherwise(t)).to_series()


def _numbers(raw: pl.Series) -> pl.Series:
    """Whole numbers, rounded down; null where there is none."""
    if raw.dtype == pl.String:
        raw = raw.str.strip_chars()
    whole = raw.cast(pl.Int64, strict=False)
    if whole.null_count() and raw.dtype == pl.String:
        return whole.fill_null(raw.cast(pl.Float64, strict=False).floor().cast(pl.Int64, strict=False))
    return whole


def _from_iso(texts: pl.Series) -> pl.Series:
    """Seconds of dates and times in ISO 8601, UTC where no offset is given; null where the text is none."""
    parsed = [pl.col("t").str.to_datetime(form, strict=False, time_zone="UTC") for form in ISO_FORMS]
    return texts.to_frame("t").select(pl.coalesce(parsed).dt.epoch("s")).to_series()


def _ratings(table: Table, column: str | None) -> pl.Series:
    """Ratings as f64, null where there is none."""
    if column is None or column not in table.frame.columns:
        return pl.repeat(None, table.frame.height, dtype=pl.Float64, eager=True)
    raw = table.frame.get_column(column)
    if raw.dtype == pl.String:
        raw = raw.str.strip_chars().replace("", None)
    rating = raw.cast(pl.Float64, strict=False)
    wrong = (rating.is_null() & raw.is_not_null()) | rating.is_infinite().fill_null(False)
    if wrong.any():
        raise table.bad_cell(int(wrong.arg_max() or 0), column, "a number")
    return rating.fill_nan(None)


def _joined(title: str, review: str) -> pl.Expr:
    """The title in front of the review, with a full stop between unless the title ends its own sentence."""
    first, then = pl.col(title).str.strip_chars(), pl.col(review).str.strip_chars()
    stop = pl.when(first.str.contains(r"[.!?…]$")).then(pl.lit(" ")).otherwise(pl.lit(". "))
    both = pl.concat_str(first, stop, then)
    return pl.when((first == "") | (first == then)).then(then).when(then == "").then(first).otherwise(both)


def _event_kind() -> pl.Expr:
    """The kind that the table names, "other" for one unknown; without any, what the row holds tells it."""
    named = pl.col("_event").str.strip_chars().str.to_lowercase().replace(EVENT_SYNONYMS)
    held = (
        pl.when(pl.col("rating").is_not_null())
        .then(pl.lit("rating"))
        .when(pl.col("review") != "")
        .then(pl.lit("review"))
        .otherwise(pl.lit("other"))
    )
    known = pl.when(named.is_in(EVENT_KINDS)).then(named).otherwise(pl.lit("other"))
    return pl.when(named == "").then(held).otherwise(known)
