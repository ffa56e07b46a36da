"""Rows come in once, whichever way; wrong ones are set aside; what is too old goes; errors tell no secret."""

from __future__ import annotations

import gzip
import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from filelock import FileLock
from intake_setting import DAY, NOW, Shop, open_shop, row

from client.intake import pieces, traces
from client.intake.commands import watch_sources
from client.intake.commit import data_version
from client.intake.importing import due_in, import_once, retain
from client.intake.settings import IntakeSettings
from client.intake.state import IntakeState
from client.premises import AGENT_LOCK, Premises
from shared.errors import ConfigError, IntegrityError


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return open_shop(tmp_path / "partner")


def test_a_name_that_is_not_imported_is_that_of_the_other() -> None:
    from client.ranking.personal_files import PERSONAL_FOLDER

    assert traces.PERSONAL_FOLDER == PERSONAL_FOLDER


@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.jsonl"])
def test_a_file_of_each_form_is_taken_once_even_if_it_is_renamed(shop: Shop, name: str) -> None:
    rows = [row("ada", 1, 5, "rating", 4.5, "so bright"), row("bob", 2, 9)]
    path = shop.drop(name, rows)
    assert (shop.take().added, shop.rows()) == (2, sorted(rows, key=repr))
    assert not (again := shop.take()).changed and again.files == 0
    (shop.drops / f"again-{name}").write_bytes(path.read_bytes())  # another inode, the same bytes
    path.rename(path.with_name(f"moved-{name}"))
    assert not (again := shop.take()).changed and again.files == 0


def test_what_is_still_being_written_is_left(shop: Shop) -> None:
    shop.drop("a.csv", [row("ada")]).rename(shop.drops / "a.csv.part")
    assert shop.take().rows == 0
    (shop.drops / "a.csv.part").rename(shop.drops / "a.csv")
    assert shop.take().rows == 1


def test_a_file_that_may_go_goes_after_the_commit_and_only_then(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.configure(sources=[{"kind": "files", "name": "till", "folder": "drops", "after": "delete"}])
    path = shop.drop("a.csv", [row("ada")])
    with FileLock(shop.folder / AGENT_LOCK), pytest.raises(ConfigError, match="Nothing was changed"):
        shop.take()
    assert path.exists() and shop.rows() == []
    assert shop.take().rows == 1
    assert not path.exists()


def test_a_column_mapping_says_what_is_what(shop: Shop) -> None:
    columns = {"user": "who", "item": "sku", "timestamp": "at", "review": "words"}
    shop.configure(sources=[{"kind": "files", "name": "till", "folder": "drops", "columns": columns}])
    (shop.drops / "a.csv").write_text("who;sku;at;words\nada;item 1;2023-11-01T00:00:00Z;bright\n")
    assert shop.take().rows == 1
    assert shop.rows() == [("ada", "item 1", 1698796800, "review", None, "bright")]


def test_wrong_rows_are_set_aside_and_counted_and_the_others_stay(shop: Shop) -> None:
    (shop.drops / "a.csv").write_text(
        "user_id,item_id,timestamp,event,rating,review\n"
        f"ada,item 1,{int(NOW)},rating,4,fine\n"
        "ada,item 2,yesterday,rating,4,\n"
        f"bob,item 2,{int(NOW)},rating,many,\n"
        f",item 2,{int(NOW)},view,,\n"
        f"bob,item 3,{int(NOW) + 9 * DAY},view,,\n"
        f"bob,item 77,{int(NOW)},view,,\n"
    )
    report = shop.take()
    expected = {"bad_rating": 1, "bad_time": 1, "empty_id": 1, "impossible_time": 1, "unknown_item": 1}
    assert (report.rows, report.rejected) == (1, expected)
    assert {told[0] for told in shop.rejects()} == expected.keys()
    assert shop.place.rejects.stat().st_mode & 0o077 == 0


def test_a_row_waits_for_its_item_to_come_into_the_catalogue(shop: Shop) -> None:
    shop.drop("a.parquet", [row("ada", 1), row("ada", 7, 3, "rating", 2.0, "too dim")])
    assert shop.take().rejected == {"unknown_item": 1}
    items = pl.read_parquet(shop.premises.data / "items.parquet")
    new = items.head(1).with_columns(item_id=pl.lit("item 7"))
    pl.concat([items, new]).write_parquet(shop.premises.data / "items.parquet")
    assert shop.take().added == 1
    assert row("ada", 7, 3, "rating", 2.0, "too dim") in shop.rows() and shop.rejects() == []


def test_a_file_that_is_not_what_the_mapping_says_is_refused_whole_and_others_are_taken(shop: Shop) -> None:
    shop.drop("good.csv", [row("ada")])
    (shop.drops / "bad.csv").write_text("user_id,item_id,timestamp\n" + "ada,item 1,whenever\n" * 300)
    (shop.drops / "torn.parquet").write_bytes(b"PAR1 and no more")
    report = shop.take()
    assert (report.rows, report.files, list(report.failed)) == (1, 1, ["till"])
    (shop.drops / "bad.csv").write_text(f"user_id,item_id,timestamp\nbob,item 1,{int(NOW)}\n")
    (shop.drops / "torn.parquet").unlink()
    assert (again := shop.take()).rows == 2 and not again.failed


@pytest.mark.parametrize("packed", [False, True])
def test_a_large_file_is_read_in_pieces_that_end_between_records(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, packed: bool
) -> None:
    rows = [row(f"u{k}", k % 6, k, "rating", 1.0, f'5" tall,\nsaid "{k}"' if k % 3 else 'a 5" lamp') for k in range(60)]
    path = shop.drop("a.csv", rows)
    if packed:
        (shop.drops / "a.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    monkeypatch.setattr(pieces, "PIECE_BYTES", 300)
    cut = list(pieces.tables_of(next(shop.drops.iterdir()), None, shop.drops.parent / "data"))
    assert len(cut) > 5 and sum(table.frame.height for table in cut) == 60
    assert shop.take().rows == 60
    assert {told[5].replace("\n", " ") for told in rows} == {told[5] for told in shop.rows()}
    assert list(shop.place.scratch.iterdir()) == []


def test_large_parquet_and_json_come_in_pieces_too(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_ROWS", 7)
    monkeypatch.setattr(pieces, "PIECE_BYTES", 300)
    shop.drop("a.parquet", [row(f"u{k}", k % 6, k) for k in range(20)])
    shop.drop("b.jsonl", [row(f"v{k}", k % 6, k) for k in range(20)])
    assert shop.take().rows == 40


def test_old_rows_leave_and_do_not_come_back(shop: Shop) -> None:
    shop.drop("a.csv", [row("ada", 1, 10 * DAY), row("ada", 2, DAY)])
    assert shop.take().rows == 2
    shop.configure(retention_days=5)
    assert (report := shop.take()).dropped == 1 and report.rows == 1
    shop.drop("b.csv", [row("bob", 1, 10 * DAY), row("bob", 1, 2 * DAY)])
    assert (report := shop.take()).counts["too_old"] == 1 and report.rows == 2
    assert retain(shop.premises, days=1, now=NOW).rows == 1
    with pytest.raises(ConfigError, match="ordinals"):
        shop.hold([("ada", "item 1", 7, "view", None, "")])
        shop.take()


def test_retention_has_to_be_told(shop: Shop) -> None:
    with pytest.raises(ConfigError, match="retention_days"):
        retain(shop.premises)


def test_data_that_were_there_before_come_under_the_rules(shop: Shop) -> None:
    shop.hold([row("ada", 1, 3, review="write to ada@example.com")])
    shop.configure(scrub="rules")
    assert shop.take().scrubbed == {"EMAIL": 1}
    assert shop.rows()[0][5] == "write to [EMAIL]"
    assert not shop.take().changed
    shop.hold([row("ada", 1, 3, review="call +49 30 123456789")])  # by something else than an import
    assert shop.take().scrubbed == {"PHONE": 1}


def test_reviews_are_scrubbed_before_they_are_written_also_where_the_row_is_set_aside(shop: Shop) -> None:
    shop.configure(scrub="rules")
    (shop.drops / "a.csv").write_text(
        "user_id,item_id,timestamp,review\n"
        f"ada,item 1,{int(NOW)},mail ada&#64;example.com\n"
        "ada,item 2,ada@example.com,mail ada@example.com\n"
        f"bob,item 99,{int(NOW)},mail ada@example.com\n"
    )
    assert shop.take().rejected == {"bad_time": 1, "unknown_item": 1}
    assert shop.rows()[0][5] == "mail [EMAIL]"
    kept = [path for path in shop.folder.rglob("*") if path.is_file() and path.parent != shop.drops]
    frames = [str(pl.read_parquet(path).rows()) for path in kept if path.suffix == ".parquet"]
    assert not any("ada@" in told for told in frames)
    assert not any(b"ada@" in path.read_bytes() for path in kept if path.suffix != ".parquet")


def test_an_agent_that_computes_is_waited_for_and_nothing_changes(shop: Shop) -> None:
    shop.drop("a.csv", [row("ada")])
    before = data_version(shop.premises)
    with FileLock(shop.folder / AGENT_LOCK), pytest.raises(ConfigError, match="it is at work"):
        shop.take()
    assert data_version(shop.premises) == before and not shop.place.state.exists()
    assert shop.take().rows == 1
    assert data_version(shop.premises) != before


def test_two_imports_at_once_are_one_after_the_other(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("client.intake.commit.INTAKE_WAIT_S", 0.05)
    shop.place.folder.mkdir()
    with FileLock(shop.place.folder / "lock"), pytest.raises(ConfigError, match="no other import"):
        shop.take()


def test_the_version_of_the_data_changes_when_they_do_and_only_then(shop: Shop) -> None:
    shop.drop("a.csv", [row("ada")])
    shop.take()
    before = data_version(shop.premises)
    assert not shop.take().changed and data_version(shop.premises) == before
    shop.drop("b.csv", [row("bob")])
    shop.take()
    assert data_version(shop.premises) != before


def test_a_state_that_is_damaged_is_refused_rather_than_begun_anew(shop: Shop) -> None:
    shop.drop("a.csv", [row("ada")])
    shop.take()
    shop.place.state.write_text("{}")
    with pytest.raises(IntegrityError, match="state of an intake"):
        shop.take()


def test_without_a_catalogue_nothing_is_imported(shop: Shop) -> None:
    (shop.premises.data / "items.parquet").unlink()
    with pytest.raises(ConfigError, match="catalogue"):
        shop.take()


def test_a_database_is_read_from_its_watermark_on(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    url = _database(shop)
    source = {"kind": "database", "name": "db", "url_env": "SHOP_URL", "table": "events", "watermark": "id"}
    shop.configure(sources=[source])
    monkeypatch.setenv("SHOP_URL", f"sqlite:///{url}")
    monkeypatch.setattr("client.intake.databases.PIECE_ROWS", 2)
    assert shop.take().rows == 5
    mark = IntakeState.read(shop.place.state).source("db").watermark
    assert mark is not None and mark.value == "5"
    _add(url, [(5, "late", "item 1", int(NOW)), (6, "new", "item 1", int(NOW)), (2, "too late", "item 1", int(NOW))])
    assert (report := shop.take()).added == 2 and report.counts["read"] == 3
    shop.configure(sources=[{**source, "overlap": 4}])
    assert shop.take().added == 1


def test_a_window_of_many_equal_watermarks_is_read_whole(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    url = _database(shop)
    _add(url, [(3, f"same {k}", "item 2", int(NOW)) for k in range(9)] + [(None, "none", "item 2", int(NOW))])
    monkeypatch.setenv("SHOP_URL", f"sqlite:///{url}")
    source = {"kind": "database", "name": "db", "url_env": "SHOP_URL", "table": "events", "watermark": "id"}
    shop.configure(sources=[source])
    from client.intake.databases import windows_of

    (told,) = IntakeSettings.read(shop.folder).sources
    assert told.kind == "database"
    assert len(windows_of(told, f"sqlite:///{url}", None, rows=2)) > 3
    assert shop.take().rows == 15


def test_a_password_is_in_no_message(shop: Shop) -> None:
    file = shop.folder / "shop.url"
    file.write_text("postgresql://ada:hunter2@127.0.0.1:1/shop")
    file.chmod(0o600)
    source = {"kind": "database", "name": "db", "url_file": "shop.url", "table": "events", "watermark": "id"}
    shop.configure(sources=[source])
    pytest.importorskip("psycopg")
    failed = shop.take().failed["db"]
    assert "Expected a database" in failed and "hunter2" not in failed and "ada" not in failed
    file.chmod(0o644)
    assert "mode=0600" in shop.take().failed["db"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("evry = '1h'", "evry"),
        ("every = 'soon'", "duration"),
        ("retention_days = 0", "retention_days"),
        ("[[sources]]\nkind = 'files'\nname = 'a b'\nfolder = 'x'", "name"),
        ("[[sources]]\nkind = 'database'\nname = 'a'\ntable = 't'\nwatermark = 'w'", "url_env"),
        ("[[sources]]\nkind = 'database'\nname = 'a'\nurl = 'postgresql://u:pw1234@h/d'\ntable = 't'", "url"),
        ("[[sources]]\nkind = 'files'\nname = 'a'\nfolder = 'x'\ncolumns = { usr = 'x' }", "Expected keys"),
        ("[[sources]]\nkind = 'files'\nname = 'a'\nfolder = 'x'\n" * 2, "another name"),
        ("password = 'pw1234", "TOML"),
    ],
)
def test_a_wrong_key_is_named_and_its_value_is_not(shop: Shop, text: str, told: str) -> None:
    (shop.folder / "intake.toml").write_text(text)
    with pytest.raises(ConfigError, match=told) as error:
        shop.take()
    assert "pw1234" not in str(error.value)


def test_a_partner_without_sources_is_told_so(shop: Shop) -> None:
    (shop.folder / "intake.toml").unlink()
    with pytest.raises(ConfigError, match="there is none"):
        shop.take()


def test_the_watch_imports_when_it_is_due_and_ends_when_told(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.configure(every="1s", sources=[{"kind": "files", "name": "till", "folder": "drops"}])
    stop = threading.Event()
    watcher = threading.Thread(target=watch_sources, args=(shop.premises, stop), daemon=True)
    watcher.start()
    try:
        for count, name in enumerate("ab", start=1):
            shop.drop(f"{name}.csv", [row(name)])
            for _ in range(500):
                if len(shop.rows()) == count:
                    break
                time.sleep(0.01)
            assert len(shop.rows()) == count
    finally:
        stop.set()
        watcher.join(5.0)
    assert not watcher.is_alive()
    assert "1 new events" in capsys.readouterr().out


def test_an_import_is_due_by_the_schedule(shop: Shop) -> None:
    assert due_in(shop.premises) == 0
    shop.take()
    assert due_in(shop.premises, now=NOW + 600) == 3000


def test_an_import_says_nothing_of_a_user(shop: Shop) -> None:
    shop.drop("a.csv", [row("ada-4711", 1, 3, review="my secret words"), row("ada-4711", 99)])
    told = repr(shop.take()) + shop.place.state.read_text()
    assert "ada-4711" not in told and "secret" not in told


def test_no_space_left_is_one_clear_error_and_the_old_data_stay(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.drop("a.csv", [row("ada")])
    shop.take()
    shop.drop("b.csv", [row("bob")])

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(ConfigError, match="No space left"):
        patch.setattr("polars.LazyFrame.sink_parquet", full)
        shop.take()
    assert len(shop.rows()) == 1
    assert shop.take().rows == 2


def test_the_catalogue_and_where_the_data_lie_are_the_partners_own(shop: Shop, tmp_path: Path) -> None:
    elsewhere = tmp_path / "disk"
    (shop.premises.data).rename(elsewhere)
    moved = Shop(replace(shop.premises, data=elsewhere))
    moved.drop("a.csv", [row("ada")])
    assert import_once(moved.premises, now=NOW).rows == 1
    assert isinstance(moved.premises, Premises) and (elsewhere / "interactions.parquet").exists()


def _database(shop: Shop) -> Path:
    path = shop.folder / "shop.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE events (id INTEGER, user_id TEXT, item_id TEXT, timestamp INTEGER)")
    _add(path, [(k + 1, f"u{k}", f"item {k}", int(NOW) - k) for k in range(5)])
    return path


def _add(path: Path, rows: list[tuple[int | None, str, str, int]]) -> None:
    with sqlite3.connect(path) as db:
        db.executemany("INSERT INTO events VALUES (?, ?, ?, ?)", rows)
