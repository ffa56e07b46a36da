"""Opening a store, many writers at once, and a database that does not answer."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from postgres_server import execute
from store_setting import ITEMS, KEY, catalogue, postgres_url, sqlite_url, store, url

from client.data import databases
from client.data.pseudonyms import PseudonymKey
from client.ranking.store import Event, EventStore
from shared.errors import ConfigError, RankingError

__all__ = ["postgres_url", "store", "url"]  # fixtures


ROOT = Path(__file__).parents[2]


# --- opening --------------------------------------------------------------------------------------


def test_a_store_is_found_again_and_only_with_its_own_key(url: str) -> None:
    with EventStore.open(url, KEY) as store:
        store.append("u", [Event("i1", "view", 1)], ITEMS)
    with EventStore.open(url, KEY) as store:
        assert store.users() == 1
    with pytest.raises(ConfigError, match="pseudonym key"):
        EventStore.open(url, PseudonymKey.derive(8))


@pytest.mark.parametrize("version", ["2", "soon"])
def test_a_store_of_a_newer_schema_is_refused(tmp_path: Path, version: str) -> None:
    EventStore.open(sqlite_url(tmp_path), KEY).close()
    with sqlite3.connect(tmp_path / "store" / "events.db") as db:
        db.execute("UPDATE veilrec_store SET value = ? WHERE name = 'schema'", [version])
    db.close()
    with pytest.raises(ConfigError, match="schema<=1"):
        EventStore.open(sqlite_url(tmp_path), KEY)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("hunter2", "no URL"),
        ("mysql://u:hunter2@host/db", "other kinds"),
        ("postgresql://u:hunter2@host:port/db", "no URL"),
        ("postgresql://u:hunter2@/db?host=/nowhere", "nothing listens"),
        ("postgresql://u@/db?host=/nowhere&password=hunter2", "nothing listens"),
        ("postgresql+psycopg://u:hunter2@localhost:1/db", "nothing listens"),
        ("postgresql://u:hunter2@/db?host=/nowhere&hunter2=1", "Expected"),
        ("sqlite://", "path of a file"),
        ("sqlite:///:memory:", "path of a file"),
        ("sqlite:////dev/null/x.db", "can be read and written"),
    ],
)
def test_a_url_that_cannot_be_used_is_one_config_error_without_its_password(bad: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        EventStore.open(bad, KEY)
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    path = tmp_path / "store" / "events.db"
    path.write_bytes(b"not a database, yet long enough to look at" * 99)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="no SQLite database"):
        EventStore.open(sqlite_url(tmp_path), KEY)


def test_without_the_driver_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(ConfigError, match=r"pip install 'veilrec\[postgres\]'"):
        EventStore.open("postgresql://u@localhost/db", KEY)


def test_the_file_of_a_store_may_have_any_name(tmp_path: Path) -> None:
    with EventStore.open(f"sqlite:///{tmp_path / 'a b#100%ä.db'}", KEY) as store:
        store.append("u", [Event("i1", "view", 1)], ITEMS)
    assert [path.name for path in tmp_path.iterdir()] == ["a b#100%ä.db"]


# --- many at once ---------------------------------------------------------------------------------

WRITER = """
import sys
from client.data.pseudonyms import PseudonymKey
from client.ranking.store import Event, EventStore
from shared.schema import Catalogue
with EventStore.open(sys.argv[1], PseudonymKey.derive(7)) as store:
    for k in range(60):
        store.append(f"u{k % 3}", [Event(f"{sys.argv[2]}-{k}", "view", k)], Catalogue((), (), (), ()))
"""


@pytest.mark.e2e
def test_two_processes_that_append_to_one_new_file_lose_no_event(tmp_path: Path) -> None:
    url, environment = sqlite_url(tmp_path), {**os.environ, "PYTHONPATH": str(ROOT)}
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, url, name], env=environment, cwd=tmp_path) for name in "ab"
    ]
    assert [writer.wait(timeout=60) for writer in writers] == [0, 0]
    everything = catalogue(*(f"{name}-{k}" for name in "ab" for k in range(60)))
    with EventStore.open(url, KEY) as store:
        assert store.histories(["u0", "u1", "u2"], everything).lengths.tolist() == [40, 40, 40]


def test_threads_that_append_and_read_lose_no_event(store: EventStore) -> None:
    failures: list[BaseException] = []

    def work(name: int) -> None:
        try:
            for k in range(5):
                store.append("u", [Event(f"i{k}", "view", name)], ITEMS)
                assert len(store.history("u", ITEMS)[0]) > k
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(12)]  # more than connections
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(store.history("u", ITEMS)[0]) == 60


def test_a_database_that_stays_locked_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(databases, "WAIT_S", 0.05)
    with EventStore.open(sqlite_url(tmp_path), KEY) as store:
        other = sqlite3.connect(tmp_path / "store" / "events.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RankingError, match="locked") as caught:
            store.append("hush", [Event("i1", "view", 1, None, "hush")], ITEMS)
        assert "hush" not in str(caught.value)
        assert store.users() == 0  # reading goes on
        other.execute("ROLLBACK")
        other.close()
        assert store.append("u", [Event("i1", "view", 1)], ITEMS).written == 1


def test_a_file_that_is_gone_is_one_error_and_is_not_made_anew(tmp_path: Path) -> None:
    with EventStore.open(sqlite_url(tmp_path), KEY) as store:
        store.append("u", [Event("i1", "view", 1)], ITEMS)
        for path in (tmp_path / "store").iterdir():
            path.unlink()
        for use in (lambda: store.history("u", ITEMS), lambda: store.append("u", [Event("i1", "view", 2)], ITEMS)):
            with pytest.raises(RankingError, match="not there"):
                use()
        assert list((tmp_path / "store").iterdir()) == []


def test_a_server_that_cut_its_connections_is_asked_again(postgres_url: str) -> None:
    with EventStore.open(postgres_url, KEY) as store:
        store.append("u", [Event("i1", "view", 1)], ITEMS)
        cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid()"
        execute(f"{cut} AND datname = current_database()", postgres_url)
        assert len(store.history("u", ITEMS)[0]) == 1


def test_a_table_that_was_dropped_is_one_error(postgres_url: str) -> None:
    with EventStore.open(postgres_url, KEY) as store:
        execute("DROP TABLE veilrec_events", postgres_url)
        with pytest.raises(RankingError, match="no such table"):
            store.users()
