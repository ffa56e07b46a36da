"""A running ranking service over the session's finished simulation, for several files of tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import StringIO
from pathlib import Path

from client.data.cleaning import clean
from client.data.ingest import RawData
from client.data.pseudonyms import PseudonymKey
from client.ranking.store import EventStore
from client.service.monitor import Monitor
from client.service.service import Service, Source
from client.service.stand import StandMaker
from shared.catalogue import build_catalogue


@contextmanager
def running(folder: Path, data: RawData, source: Source, log: StringIO) -> Iterator[Service]:
    """A service with the data's interactions in its store."""
    cleaned = clean(data)[0]
    catalogue = build_catalogue(cleaned.items)
    store = EventStore.open(f"sqlite:///{folder / 'events.sqlite'}", PseudonymKey.load_or_create(folder / "key"))
    store.import_histories(cleaned.interactions)
    maker = StandMaker(catalogue, catalogue, folder, folder / "texts.sqlite", "cpu")
    service = Service(maker, source, store, Monitor(log), every_s=0.05)
    try:
        yield service
    finally:
        service.close()
