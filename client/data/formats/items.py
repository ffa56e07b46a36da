"""A catalogue from one file: parquet, separated columns, RecBole's ``.item``, JSON lines, Amazon metadata."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl

from client.data.formats.columns import ITEM_COLUMNS
from client.data.formats.files import (
    PARQUET_MAGIC,
    Table,
    as_text,
    delimited_table,
    head,
    json_objects,
    parquet_table,
)
from shared.errors import SchemaError

ID_NAMES = ("item_id", "parent_asin", "asin", "movieId", "item", "id")
TITLE_NAMES = ("title", "movie_title", "name", "item_title", "item_name")
TEXT_NAMES = ("text", "description")
CATEGORY_NAMES = ("categories", "category", "class", "genres", "genre", "main_category")


def read_items(path: Path) -> pl.DataFrame:
    """The catalogue in a file; the columns `ITEM_COLUMNS`.

    Raises
    ------
    DataError, SchemaError
        Naming file, row and column.
    """
    start = head(path)
    if start.startswith(PARQUET_MAGIC):
        return items_of(parquet_table(path))
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return _from_json(path)
    first = start.splitlines()[0]
    if b":token" in first:
        return atomic_items(path)
    return items_of(delimited_table(path, "\t" if b"\t" in first else ","))


def items_of(table: Table) -> pl.DataFrame:
    """Items of a table that has an id column and any of a title, a text and categories."""
    columns = table.frame.columns
    item_id = _first_of(ID_NAMES, columns)
    if item_id is None:
        table.require("item_id")
        raise AssertionError
    return table.frame.select(
        item_id=_column(item_id),
        title=_column(_first_of(TITLE_NAMES, columns)),
        text=_column(_first_of(TEXT_NAMES, columns)),
        categories=_column(_first_of(CATEGORY_NAMES, columns)),
    )


def atomic_items(path: Path) -> pl.DataFrame:
    """RecBole's ``.item``: headers ``name:type``; a ``token_seq`` of categories is separated by blanks.

    The year of release, where there is one, goes behind the title, as MovieLens writes it.
    """
    table = untyped(delimited_table(path, "\t", quoted=False))
    items = items_of(table)
    if "release_year" in table.frame.columns:
        year = table.frame.get_column("release_year").fill_null("").str.strip_chars()
        dated = pl.concat_str("title", pl.lit(" ("), year, pl.lit(")"))
        known = year.str.contains(r"^\d{4}$")
        items = items.with_columns(title=pl.when(known).then(dated).otherwise("title"))
    genres = pl.col("categories").str.replace_all(r"\s+", ", ")
    genres = genres.replace("unknown", "")
    # As with MovieLens itself, the genres are all that is known of the item beside its title.
    return items.with_columns(categories=genres, text=pl.when(pl.col("text") == "").then(genres).otherwise("text"))


def untyped(table: Table) -> Table:
    """An atomic file with ``user_id:token`` renamed to ``user_id``."""
    bare = {column: column.rpartition(":")[0] or column for column in table.frame.columns}
    if len(set(bare.values())) != len(bare):
        raise SchemaError(f"{table.path}: Expected every column once.")
    return Table(table.path, table.frame.rename(bare), table.line_of)


def _first_of(names: Sequence[str], columns: Sequence[str]) -> str | None:
    return next((name for name in names if name in columns), None)


def _column(name: str | None) -> pl.Expr:
    return pl.lit("") if name is None else pl.col(name).cast(pl.String).fill_null("")


def _from_json(path: Path) -> pl.DataFrame:
    rows: dict[str, list[str]] = {column: [] for column in ITEM_COLUMNS}
    for number, record in json_objects(path):
        name = _first_of(ID_NAMES, list(record))
        if name is None:
            raise SchemaError(f"{path}, row {number}: Expected column item_id (or asin, parent_asin).")
        rows["item_id"].append(_flat(record[name]))
        rows["title"].append(_flat(record.get(_first_of(TITLE_NAMES, list(record)) or "")))
        rows["text"].append(_description(record))
        rows["categories"].append(_categories(record))
    return pl.DataFrame(rows, schema=dict.fromkeys(ITEM_COLUMNS, pl.String))


def _description(record: dict[str, Any]) -> str:
    """Brand or store, then the description, then the list of features, as far as they are there."""
    maker = _flat(record.get("brand") or record.get("store"))
    words = [_flat(record.get(key)) for key in ("text", "description", "features", "feature")]
    return " | ".join(part for part in (maker, " ".join(word for word in words if word)) if part)


def _categories(record: dict[str, Any]) -> str:
    for name in CATEGORY_NAMES:
        if record.get(name):
            return _flat(record[name], ", ")
    return ""


def _flat(value: object, separator: str = " ") -> str:
    """A text, or the distinct texts of (nested) lists in their order."""
    parts = dict.fromkeys(_leaves(value))
    return separator.join(part for part in parts if part)


def _leaves(value: object) -> list[str]:
    if isinstance(value, list):
        return [leaf for entry in value for leaf in _leaves(entry)]
    return [] if isinstance(value, dict) else [as_text(value) or ""]
