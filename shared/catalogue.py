"""The public catalogue as a file: ``items.parquet`` to `Catalogue`."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from shared.errors import SchemaError
from shared.schema import Catalogue

COLUMNS = ("item_id", "title", "text", "categories")


def build_catalogue(items: pl.DataFrame) -> Catalogue:
    """The catalogue of a frame of items (columns item_id, title, text, categories): rows sorted by item id.

    Raises
    ------
    SchemaError
        If an item id is there twice.
    """
    ordered = items.select("item_id", pl.col(COLUMNS[1:]).fill_null("")).sort("item_id")
    if ordered.get_column("item_id").is_duplicated().any():
        raise SchemaError("Expected every item_id once in the items; clean the data first.")
    ids, titles, texts, categories = (tuple(column.to_list()) for column in ordered.get_columns())
    # Python's order of strings, by code point, is the byte order of UTF-8, in which polars sorts.
    return Catalogue(ids, titles, texts, categories)


def read_catalogue(path: Path) -> Catalogue:
    """Read ``items.parquet``.

    Raises
    ------
    SchemaError
        If the file cannot be read or lacks a column.
    """
    try:
        items = pl.read_parquet(path, columns=list(COLUMNS))
    except (OSError, pl.exceptions.PolarsError) as error:
        raise SchemaError(
            f"{path}: cannot be read as a catalogue ({type(error).__name__}). Expected columns {', '.join(COLUMNS)}."
        ) from None
    return build_catalogue(items)
