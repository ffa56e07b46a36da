"""Import from a real PostgreSQL: by watermark, with late rows, in windows, without a password in sight."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from intake_setting import NOW, Shop, open_shop
from postgres_server import execute, postgres_url

from client.intake.state import IntakeState
from client.ranking.store import EventStore

__all__ = ["postgres_url"]

DAY = 86_400
TIME = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
SOURCE = {
    "kind": "database",
    "name": "shop",
    "url_env": "SHOP_DATABASE",
    "table": "Events",
    "watermark": "updated_at",
    "overlap": "10m",
    "columns": {"user": "who", "item": "sku", "timestamp": "at", "review": "note", "rating": "stars", "event": "kind"},
}


@pytest.fixture
def shop(tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> Shop:
    monkeypatch.setenv("SHOP_DATABASE", postgres_url)
    execute(
        """CREATE TABLE "Events" (who bigint, sku text, at timestamptz, stars numeric(3, 1), note text, kind text,
        updated_at timestamptz, serial bigserial, photo bytea DEFAULT '\\x00')""",
        postgres_url,
    )
    return open_shop(tmp_path / "partner", scrub="rules", sources=[SOURCE])


def add(url: str, *rows: tuple[int, str, int, str]) -> None:
    """User, item, minutes before now of the update, note."""
    for who, sku, minutes, note in rows:
        updated = (TIME - datetime.timedelta(minutes=minutes)).isoformat()
        execute(
            f"""INSERT INTO "Events" (who, sku, at, stars, note, kind, updated_at)
            VALUES ({who}, '{sku}', '{TIME.isoformat()}', 4.5, '{note}', 'rating', '{updated}')""",
            url,
        )


def test_rows_come_by_their_watermark_and_late_ones_are_neither_lost_nor_doubled(shop: Shop, postgres_url: str) -> None:
    add(postgres_url, (1, "item 1", 60, "100% it''s bright"), (2, "item 2", 30, "mail me: a.b@example.com"))
    assert (report := shop.take()).rows == 2 and report.scrubbed == {"EMAIL": 1} and not report.failed
    mark = IntakeState.read(shop.place.state).source("shop").watermark
    assert mark is not None and mark.kind == "time"
    assert not shop.take().changed
    add(
        postgres_url,
        (3, "item 3", 30, "at the watermark itself"),
        (4, "item 3", 35, "within the overlap"),
        (5, "item 3", 45, "too late for it"),
        (6, "item 4", 0, "new"),
    )
    assert (report := shop.take()).added == 3
    assert report.counts["read"] == 4  # one of those was known, and stays single
    shop.configure(sources=[{**SOURCE, "overlap": "1h"}])
    assert shop.take().added == 1
    assert len(shop.rows()) == 6
    assert shop.rows()[0] == ("1", "item 1", int(NOW), "rating", 4.5, "100% it's bright")


@pytest.mark.parametrize("watermark", ["serial", "updated_at", "who"])
def test_windows_read_all_rows_once(
    shop: Shop, postgres_url: str, monkeypatch: pytest.MonkeyPatch, watermark: str
) -> None:
    source = {name: value for name, value in SOURCE.items() if name != "overlap"}
    query = "SELECT * FROM \"Events\" WHERE note NOT LIKE '%skip%';"
    shop.configure(sources=[{**source, "watermark": watermark, "table": query}])
    add(postgres_url, *((k % 7, f"item {k % 5}", k // 4, "skip" if k == 3 else "") for k in range(40)))
    monkeypatch.setattr("client.intake.databases.windows_of.__defaults__", (3,))
    report = shop.take()
    assert not report.failed and report.counts["read"] == 39
    add(postgres_url, (9, "item 1", 0, ""))
    assert shop.take().added == 1


def test_what_the_database_refuses_is_told_without_a_value_and_the_watermark_stays(
    shop: Shop, postgres_url: str
) -> None:
    add(postgres_url, (1, "item 1", 60, "secret words"))
    shop.take()
    before = IntakeState.read(shop.place.state).sources
    execute('ALTER TABLE "Events" RENAME COLUMN updated_at TO changed', postgres_url)
    report = shop.take()
    assert "there is no such column" in report.failed["shop"] and "secret" not in report.failed["shop"]
    assert IntakeState.read(shop.place.state).sources == before


def test_an_erasure_reaches_a_store_in_postgresql(
    shop: Shop, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from client.data.pseudonyms import PseudonymKey
    from client.intake.erasure import erase
    from client.ranking.store import Event
    from shared.schema import Catalogue

    state = shop.folder / "serve"
    state.mkdir()
    with EventStore.open(postgres_url, PseudonymKey.load_or_create(state / "pseudonyms.key")) as store:
        store.append("1", [Event("item 1", "view", 5)], Catalogue((), (), (), ()))
        add(postgres_url, (1, "item 1", 60, ""), (2, "item 2", 30, ""))
        monkeypatch.setenv("STORE", postgres_url)
        shop.configure(sources=[SOURCE], ranking={"state": "serve", "url_env": "STORE"})
        shop.take()
        _, receipt = erase(shop.premises, "1")
        assert receipt.removed["store_events"] == 1 and store.users() == 0
    shop.configure(sources=[{**SOURCE, "overlap": "7d"}])
    assert shop.take().counts["suppressed"] == 1 and [told[0] for told in shop.rows()] == ["2"]
