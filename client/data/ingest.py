"""A partner's files or tables as two frames: `read` any form that is understood, `write` the parquet form."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from client.data.formats import movielens
from client.data.formats.columns import (
    INTERACTION_COLUMNS,
    ITEM_COLUMNS,
    KNOWN_MAPPINGS,
    PLACEHOLDER,
    ColumnMapping,
    no_items,
    repeated_titles,
    to_interactions,
)
from client.data.formats.files import (
    PARQUET_MAGIC,
    Table,
    delimited_table,
    head,
    json_objects,
    json_table,
    parquet_table,
)
from client.data.formats.items import atomic_items, items_of, read_items, untyped
from shared.errors import ConfigError, DataError, SchemaError

__all__ = ["ColumnMapping", "RawData", "data_home", "read", "write"]

INTERACTIONS_FILE = "interactions.parquet"
ITEMS_FILE = "items.parquet"
UNDERSTOOD = (
    "a folder with interactions.parquet and items.parquet; a MovieLens folder (u.data and u.item, "
    "ratings.dat and movies.dat, or ratings.csv and movies.csv); RecBole atomic files (.inter and .item); "
    "a file of CSV, TSV, parquet or JSON lines (Amazon reviews among them), plain or .gz"
)
SEPARATORS = "\t,;|"

Frames = tuple[pl.DataFrame, pl.DataFrame]


@dataclass(frozen=True, slots=True)
class RawData:
    """What a source holds, in one form; not yet cleaned or pseudonymised.

    Parameters
    ----------
    name : str
        Of the data set.
    interactions : polars.DataFrame
        user_id, item_id (str), timestamp (i64, UTC seconds, or an ordinal), event (str, one of
        `shared.schema.EVENT_KINDS`), rating (f64, null when implicit), review (str, empty when there is none;
        the review's title is joined in front).
    items : polars.DataFrame
        item_id, title, text, categories (str, empty when unknown).
    """

    name: str
    interactions: pl.DataFrame
    items: pl.DataFrame


def data_home() -> Path:
    """The folder of imported data sets: ``$VEILREC_HOME/data``, by default ``~/.veilrec/data``."""
    home = os.environ.get("VEILREC_HOME")
    return (Path(home) if home else Path.home() / ".veilrec") / "data"


def locate(name_or_path: str) -> Path | None:
    """The folder of an imported set of this name, else the path if there is one; None if there is neither.

    Where a set and a path have one name the set is meant; ``./name`` means the path.
    """
    plain = bool(name_or_path) and Path(name_or_path).name == name_or_path and name_or_path not in (".", "..")
    if plain and (data_home() / name_or_path).is_dir():
        return data_home() / name_or_path
    return Path(name_or_path) if name_or_path and Path(name_or_path).exists() else None


def read(
    path: str | Path,
    *,
    mapping: ColumnMapping | None = None,
    items: str | Path | None = None,
    interactions: str | None = None,
    name: str | None = None,
) -> RawData:
    """Read a file, a folder or a database; the form of a file is told from its content.

    Parameters
    ----------
    path : str or pathlib.Path
        See `UNDERSTOOD`.
    mapping : ColumnMapping, optional
        The columns of a table whose names are not known ones.
    items : str or pathlib.Path, optional
        A file with the catalogue, where it is apart; replaces the one that the source brings. Of a database: a
        table or a SELECT.
    interactions : str, optional
        Of a database, and of nothing else: a table or a SELECT.
    name : str, optional
        Of the data set; by default the name of the file, folder or database.

    Returns
    -------
    RawData

    Raises
    ------
    ConfigError
        If a mapping is given for a form whose columns are fixed, or a database is not told as it should be.
    SchemaError
        If the form is not understood, or a column or value is missing or mistyped.
    DataError
        If a file is absent, empty, damaged, or not UTF-8.
    """
    if "://" in str(path):
        return _read_database(str(path), interactions, None if items is None else str(items), mapping, name)
    if interactions is not None:
        raise ConfigError("Expected interactions=TABLE only beside the URL of a database.")
    path = Path(path)
    found, catalogue = _read_folder(path, mapping) if path.is_dir() else _read_file(path, mapping)
    if found.is_empty():
        raise DataError(f"{path}: Expected at least one interaction, there is none.")
    if items is not None:
        catalogue = read_items(Path(items))
    # "reviews.jsonl.gz" is the data set "reviews".
    default = path.resolve().name if path.is_dir() else path.name.split(".")[0]
    return RawData(name or default, found, catalogue)


def write(data: RawData, folder: str | Path) -> None:
    """Write the parquet form: two whole files in `folder`, or none.

    Both are written in a temporary folder and then moved, interactions last: a folder that has them is whole.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".import-") as scratch:
            data.items.select(ITEM_COLUMNS).write_parquet(Path(scratch) / ITEMS_FILE)
            data.interactions.select(INTERACTION_COLUMNS).write_parquet(Path(scratch) / INTERACTIONS_FILE)
            for name in (ITEMS_FILE, INTERACTIONS_FILE):
                (Path(scratch) / name).replace(folder / name)
    except OSError as error:
        raise ConfigError(f"{folder}: Expected a folder that can be written to: {error.strerror}.") from None


def _read_folder(folder: Path, mapping: ColumnMapping | None) -> Frames:
    names = {entry.name for entry in folder.iterdir()}
    if INTERACTIONS_FILE in names:
        catalogue = read_items(folder / ITEMS_FILE) if ITEMS_FILE in names else no_items()
        return _from_table(_parquet(folder / INTERACTIONS_FILE, mapping), mapping, catalogue)
    _refuse(mapping, folder)
    if {"u.data", "u.item"} <= names:
        return movielens.read_100k(folder)
    if {"ratings.dat", "movies.dat"} <= names:
        return movielens.read_dat(folder)
    if {"ratings.csv", "movies.csv"} <= names:
        return movielens.read_csv(folder)
    atomic = sorted(name for name in names if name.endswith(".inter"))
    if len(atomic) == 1:
        return _read_atomic(folder / atomic[0])
    kinds = sorted({Path(name).suffix for name in names if Path(name).suffix}) or ["none"]
    raise SchemaError(
        f"{folder}: found a folder of {len(names)} entries (suffixes: {', '.join(kinds[:8])}). Expected {UNDERSTOOD}."
    )


def _read_database(
    source: str, interactions: str | None, items: str | None, mapping: ColumnMapping | None, name: str | None
) -> RawData:
    from client.data.formats import database  # SQLAlchemy is slow to load, and seldom needed

    if interactions is None:
        raise ConfigError("Expected interactions=TABLE or interactions='SELECT ...' beside the URL of a database.")
    table, titles = database.read_tables(source, interactions, items, [*_wanted(mapping), PLACEHOLDER])
    found, repeated = _from_table(table, mapping)
    if found.is_empty():
        raise DataError(f"{table.path}: Expected at least one interaction, there is none.")
    return RawData(name or database.default_name(source), found, repeated if titles is None else items_of(titles))


def _read_file(path: Path, mapping: ColumnMapping | None) -> Frames:
    start = head(path)
    if start.startswith(PARQUET_MAGIC):
        return _from_table(_parquet(path, mapping), mapping)
    if start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{"):
        return _from_table(_json(path, mapping), mapping)
    first = start.lstrip(b"\xef\xbb\xbf").splitlines()[0]
    if b":token" in first:
        _refuse(mapping, path)
        return _read_atomic(path)
    separator = max(SEPARATORS, key=lambda character: first.count(character.encode()))
    if first.count(separator.encode()) < 2 or b"\0" in start:
        raise SchemaError(
            f"{path}: found a file with suffix {path.suffix or 'none'} that is neither parquet nor JSON "
            f"lines nor has three separated columns in its first line. Expected {UNDERSTOOD}."
        )
    return _from_table(delimited_table(path, separator), mapping)


def _from_table(table: Table, mapping: ColumnMapping | None, catalogue: pl.DataFrame | None = None) -> Frames:
    found = repeated_titles(table, mapping)
    return to_interactions(table, mapping), found if catalogue is None or not found.is_empty() else catalogue


def _parquet(path: Path, mapping: ColumnMapping | None) -> Table:
    return parquet_table(path, [*_wanted(mapping), PLACEHOLDER])


def _json(path: Path, mapping: ColumnMapping | None) -> Table:
    if mapping is None:
        # What Amazon calls "title" is another thing in other files: only the columns that fit are read.
        first = next(json_objects(path))[1]
        fitting = [m for m in KNOWN_MAPPINGS if {m.user, m.item, m.timestamp} <= first.keys()]
        return json_table(path, (fitting or list(KNOWN_MAPPINGS))[0].columns)
    return json_table(path, _wanted(mapping))


def _wanted(mapping: ColumnMapping | None) -> list[str]:
    mappings = KNOWN_MAPPINGS if mapping is None else (mapping.completed(),)
    return list(dict.fromkeys(column for known in mappings for column in known.columns))


def _read_atomic(path: Path) -> Frames:
    beside = path.with_suffix(".item")
    table = untyped(delimited_table(path, "\t", quoted=False))
    return to_interactions(table), atomic_items(beside) if beside.exists() else no_items()


def _refuse(mapping: ColumnMapping | None, path: Path) -> None:
    if mapping is not None:
        raise ConfigError(f"{path}: Expected no column mapping: this form has fixed columns.")
