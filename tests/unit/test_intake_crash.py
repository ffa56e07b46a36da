"""A crash at any step of an import leaves the old data and watermark or the new ones, and loses and doubles nothing."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from crashing import dies_at, killed_at
from intake_setting import NOW, Shop, open_shop, row

from client.intake.commit import staged
from client.intake.state import IntakeState
from shared.errors import IntegrityError

HELD = [row("ada", 1, 50, "rating", 3.0, "dim"), row("bob", 2, 40)]
NEW = [row("ada", 1, 50, "rating", 5.0, "bright, on second thoughts"), row("cleo", 3, 30), row("cleo", 77, 20)]
SOURCES = [
    {"kind": "files", "name": "till", "folder": "drops", "after": "delete"},
    {"kind": "database", "name": "db", "url_env": "CRASH_URL", "table": "events", "watermark": "id"},
]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Partners with held rows, one import behind them, and new rows waiting in a folder and a database."""
    monkeypatch.setenv("CRASH_URL", f"sqlite:///{tmp_path / 'events.sqlite'}")
    with sqlite3.connect(tmp_path / "events.sqlite") as db:
        db.execute("CREATE TABLE events (id INTEGER, user_id TEXT, item_id TEXT, timestamp INTEGER)")
        db.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", [(k, f"d{k}", "item 4", int(NOW)) for k in range(3)])

    def made(name: str) -> Shop:
        shop = open_shop(tmp_path / name, sources=SOURCES)
        shop.drop("first.csv", HELD)
        shop.configure(sources=SOURCES[:1])
        shop.take()
        shop.configure(sources=SOURCES)
        shop.drop("second.parquet", NEW)
        return shop

    return made


def known(shop: Shop) -> tuple[Any, ...]:
    """All that an import decides: rows, rejects, what was taken."""
    state = IntakeState.read(shop.place.state)
    taken = {name: (sorted(one.taken), one.watermark) for name, one in state.sources.items()}
    return shop.rows(), shop.rejects(), taken


@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_a_crash_at_each_step_leaves_the_old_or_the_new(
    make: Any, monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    whole = make("whole")
    before = known(whole)
    whole.take()
    after = known(whole)
    outcomes = set()
    for step in range(1, 100, stride):
        shop = make(f"crash-{step}")
        if not dies_at(step, shop.take, monkeypatch):
            break
        data = shop.rows()
        assert data in (before[0], after[0])  # what a reader sees who knows of no recovery
        with shop.place.working():
            found = known(shop)
        assert found in (before, after)
        outcomes.add(found == after)
        shop.take()
        assert known(shop) == after
        assert not shop.place.record.exists() and not list(shop.place.scratch.iterdir())
        assert not any(staged(target).exists() for target in shop.place.targets().values())
    assert step > 10 and outcomes == {True, False}


def test_an_import_that_is_killed_between_two_renames_is_finished(make: Any) -> None:
    """A real SIGKILL, at the step where data are new and the watermark is old."""
    shop, whole = make("killed"), make("whole")
    whole.take()
    assert killed_at(10**6, "import_once(premises, now=now)", shop.folder, NOW, before="state.json") == -9
    assert shop.place.record.exists()
    assert json.loads(shop.place.record.read_text()) == ["data", "rejects", "state"]
    assert shop.rows() == whole.rows() and known(shop) != known(whole)
    shop.take()
    assert known(shop) == known(whole)


@pytest.mark.slow
def test_an_import_that_is_killed_at_any_step_is_finished(make: Any) -> None:
    whole = make("whole")
    whole.take()
    for step in range(1, 40):
        shop = make(f"killed-{step}")
        killed = killed_at(step, "import_once(premises, now=now)", shop.folder, NOW) == -9
        shop.take()
        assert known(shop) == known(whole)
        if not killed:
            break
    assert step > 10


def test_a_record_that_is_none_is_refused(make: Any) -> None:
    shop = make("odd")
    shop.place.record.write_text('["ledger"]')
    with pytest.raises(IntegrityError, match="record of a commit"):
        shop.take()
