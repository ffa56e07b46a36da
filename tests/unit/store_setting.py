"""Stores on SQLite and on a real PostgreSQL, and what the tests put into them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest
from postgres_server import postgres_url

from client.data.cleaning import clean
from client.data.formats.columns import INTERACTION_COLUMNS, no_items
from client.data.ingest import RawData
from client.data.pseudonyms import PseudonymKey
from client.ranking.store import EventStore
from shared.catalogue import build_catalogue
from shared.schema import Catalogue

__all__ = ["ITEMS", "KEY", "catalogue", "cleaned", "postgres_url", "sqlite_url", "store", "url"]

KEY = PseudonymKey.derive(7)


def catalogue(*ids: str) -> Catalogue:
    return build_catalogue(pl.DataFrame({"item_id": list(ids), "title": "", "text": "", "categories": ""}))


ITEMS = catalogue(*(f"i{k}" for k in range(9)))


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return sqlite_url(tmp_path) if request.param == "sqlite" else request.getfixturevalue("postgres_url")


@pytest.fixture
def store(url: str) -> Iterator[EventStore]:
    with EventStore.open(url, KEY) as opened:
        yield opened


def sqlite_url(folder: Path) -> str:
    return f"sqlite:///{folder / 'store' / 'events.db'}"


def cleaned(*rows: tuple[str, str, int, str, float | None, str]) -> pl.DataFrame:
    kinds = (pl.String, pl.String, pl.Int64, pl.String, pl.Float64, pl.String)
    schema = dict(zip(INTERACTION_COLUMNS, kinds, strict=True))
    return clean(RawData("", pl.DataFrame(rows, schema=schema, orient="row"), no_items()))[0].interactions
