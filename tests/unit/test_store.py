"""The event store, on SQLite and on a real PostgreSQL: the same order as in training, no lost event, no raw id."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sqlalchemy import event as sqlalchemy_event
from sqlalchemy.dialects import sqlite
from store_setting import ITEMS, KEY, catalogue, cleaned, postgres_url, sqlite_url, store, url

from client.data.histories import build_histories
from client.ranking import store as store_module
from client.ranking import store_tables
from client.ranking.store import Appended, Event, EventStore
from client.ranking.store_rows import Held, in_order
from shared.errors import ConfigError, EmptyHistoryError, SchemaError, UnknownUserError
from shared.schema import EVENT_KINDS, Catalogue, Histories, UserHistory

__all__ = ["postgres_url", "store", "url"]  # fixtures


def many_ties(seed: int, users: int = 12, events: int = 400) -> pl.DataFrame:
    """Few users, times and items: nearly every event is tied, and some items are in no catalogue."""
    rng = np.random.default_rng(seed)
    return cleaned(
        *(
            (
                f"user {rng.integers(users)}",
                f"i{rng.integers(12)}",
                int(rng.integers(6)),
                EVENT_KINDS[rng.integers(len(EVENT_KINDS))],
                None if rng.random() < 0.5 else float(rng.integers(1, 11)) / 2,
                "" if rng.random() < 0.5 else f"words {rng.integers(5)}",
            )
            for _ in range(events)
        )
    )


def same(found: Histories, expected: Histories) -> None:
    assert found.users == expected.users
    assert found.review_texts == expected.review_texts
    for name in ("offsets", "items", "timestamps", "events", "ratings", "reviews"):
        a, b = getattr(found, name), getattr(expected, name)
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b, err_msg=name)


def item_ids(history: tuple[UserHistory, tuple[str, ...]], of: Catalogue = ITEMS) -> list[str]:
    return [of.item_ids[row] for row in history[0].items]


# --- what is read is what training reads ----------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("cap", [1, 4, 1000])
def test_histories_are_those_of_training_ties_cap_and_reviews_included(url: str, seed: int, cap: int) -> None:
    frame = many_ties(seed)
    known = frame.filter(pl.col("item_id").is_in(list(ITEMS.item_ids)))
    assert known.height < frame.height
    expected = build_histories(known, ITEMS, KEY, max_events=cap, tie_seed=seed)
    ids = frame.get_column("user_id").unique().to_list()
    with EventStore.open(url, KEY, max_history=cap, tie_seed=seed) as store:
        assert store.import_histories(frame) == frame.height
        same(store.histories(ids, ITEMS), expected)
        for user_id in ids:
            history, texts = store.history(user_id, ITEMS)
            reference = expected[expected.users.index(store.pseudonym(user_id))]
            np.testing.assert_array_equal(history.items, reference.items)
            np.testing.assert_array_equal(history.events, reference.events)
            np.testing.assert_array_equal(history.ratings, reference.ratings)
            assert [texts[k] if k >= 0 else "" for k in history.reviews] == [
                expected.review_texts[k] if k >= 0 else "" for k in reference.reviews
            ]


def test_the_order_of_a_tie_depends_on_the_seed(tmp_path: Path) -> None:
    frame = cleaned(*(("u", f"i{k}", 5, "view", None, "") for k in range(9)))
    orders = []
    for seed in (0, 1):
        with EventStore.open(sqlite_url(tmp_path), KEY, tie_seed=seed) as store:
            store.import_histories(frame)
            orders.append(item_ids(store.history("u", ITEMS)))
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_in_which_order_a_database_gives_the_rows_of_a_tie_does_not_matter() -> None:
    rows = [Held(b"", 5, f"i{item}", code, None, "") for item in range(3) for code in range(4)]
    orders = [in_order(given, "u", ITEMS, 0) for given in (rows, rows[::-1])]
    assert orders[0] == orders[1] != rows


def test_an_import_is_written_in_parts_and_a_second_time_changes_nothing(
    store: EventStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "ROWS_AT_ONCE", 50)
    frame = many_ties(3)
    assert store.import_histories(frame) == frame.height
    assert frame.height > 100
    assert store.import_histories(frame.sample(fraction=1.0, shuffle=True, seed=1)) == 0
    assert store.users() == frame.get_column("user_id").n_unique()
    with pytest.raises(EmptyHistoryError):
        cleaned()
    assert store.import_histories(frame.clear()) == 0


def test_many_users_are_read_in_few_queries_and_those_unknown_are_left_out(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "USERS_AT_ONCE", 400)
    with EventStore.open(url, KEY) as store:
        store.import_histories(cleaned(*((f"u{k}", "i0", k, "view", None, "") for k in range(1000))))
        statements: list[str] = []
        sqlalchemy_event.listen(
            store._engine, "before_cursor_execute", lambda _c, _d, statement, *_: statements.append(statement)
        )
        histories = store.histories([*(f"u{k}" for k in range(1000)), "u1", "nobody"], ITEMS)
    assert len(histories) == 1000
    assert list(histories.users) == sorted(histories.users)
    assert sum("FROM veilrec_events" in statement for statement in statements) == 3


def test_a_history_is_one_range_of_the_primary_key(tmp_path: Path) -> None:
    with EventStore.open(sqlite_url(tmp_path), KEY) as store:
        store.import_histories(many_ties(0))
    query = str(store_tables.newest_of_one().compile(dialect=sqlite.dialect()))
    with sqlite3.connect(tmp_path / "store" / "events.db") as db:
        plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {query}", [b"", b"", 1, 49, 0])]
    db.close()
    assert plan[0] == "SEARCH veilrec_events USING PRIMARY KEY (user_key=? AND timestamp>?)"
    assert not any("SCAN" in step or "TEMP B-TREE" in step for step in plan)


# --- what is appended -----------------------------------------------------------------------------


def test_appended_events_are_known_at_once_and_cleaned_as_imported_ones(store: EventStore) -> None:
    with pytest.raises(UnknownUserError):
        store.history("u", ITEMS)
    events = [Event("i1", "review", 20, 4.5, "Good&nbsp;<b>lamp</b>\n"), Event(" i0 ", "view", 10)]
    assert store.append(" u\t", events, ITEMS) == Appended(2, 0)
    history, texts = store.history("u", ITEMS)
    assert item_ids((history, texts)) == ["i0", "i1"]
    assert texts == ("Good lamp",)
    assert history.reviews.tolist() == [-1, 0]
    assert np.isnan(history.ratings[0])
    assert history.ratings[1] == 4.5
    assert history.user == KEY.pseudonym("u")


def test_an_event_sent_again_is_held_once_with_its_last_rating_and_review(store: EventStore) -> None:
    first = Event("i1", "purchase", 20, 3.0, "fine")
    assert store.append("u", [first], ITEMS).written == 1
    assert store.append("u", [first, first], ITEMS).written == 0
    assert store.append("u", [Event("i1", "purchase", 20, 3.0, "broke")], ITEMS).written == 1
    assert store.append("u", [Event("i1", "purchase", 20, 2.0, "broke")], ITEMS).written == 1
    history, texts = store.history("u", ITEMS)
    assert (history.ratings.tolist(), texts) == ([2.0], ("broke",))


def test_an_event_with_a_new_item_is_kept_until_a_catalogue_has_it(url: str) -> None:
    events = [Event("i1", "view", 1), Event("i2", "view", 2), Event("new", "view", 3), Event("new", "cart", 4)]
    with EventStore.open(url, KEY, max_history=2) as store:
        assert store.append("u", events, ITEMS) == Appended(4, 2)
        assert item_ids(store.history("u", ITEMS)) == ["i1", "i2"]
        assert [len(history) for history in store.histories(["u", "v"], ITEMS)] == [2]
        assert item_ids(store.history("u", catalogue("i1", "new")), catalogue("i1", "new")) == ["new", "new"]
        with pytest.raises(UnknownUserError):
            store.history("u", catalogue("other"))


def test_an_event_with_a_new_item_is_refused_or_ignored_where_that_is_asked_for(store: EventStore) -> None:
    events = [Event("i1", "view", 1), Event("hush", "view", 2)]
    with pytest.raises(SchemaError, match="unknown=1 of events=2") as caught:
        store.append("u", events, ITEMS, unknown_items="refuse")
    assert "hush" not in str(caught.value)
    assert store.users() == 0
    assert store.append("u", events[1:], ITEMS, unknown_items="ignore") == Appended(0, 1)
    assert store.append("u", events, ITEMS, unknown_items="ignore") == Appended(1, 1)
    assert len(store.history("u", catalogue("i1", "hush"))[0]) == 1


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (Event("hush", "levitate", 1), "kind"),
        (Event("hush", "view", -1), "timestamp"),
        (Event("hush", "view", 2**62), "timestamp"),
        (Event("hush", "view", 1, float("inf")), "rating"),
        (Event("hush", "view", 1, float("nan")), "rating"),
        (Event(" \0", "view", 1), "item_id"),
        (Event("hush" * 200, "view", 1), "item_id"),
        (Event("hush\ud800", "view", 1), "item_id"),
        (Event("hush", "view", 1, None, "\ud800"), "review"),
    ],
)
def test_of_events_with_a_bad_one_none_is_written_and_the_field_is_named(
    tmp_path: Path, bad: Event, field: str
) -> None:
    with EventStore.open(sqlite_url(tmp_path), KEY) as store:
        with pytest.raises(SchemaError, match=rf"event 2 of 2, {field}: Expected") as caught:
            store.append("u", [Event("i1", "view", 1), bad], ITEMS)
        assert "hush" not in str(caught.value)
        assert store.users() == 0


@pytest.mark.parametrize("user_id", ["", " \t", "\ud800"])
def test_a_user_id_that_is_none_is_refused(tmp_path: Path, user_id: str) -> None:
    with EventStore.open(sqlite_url(tmp_path), KEY) as store, pytest.raises(SchemaError, match="user_id"):
        store.history(user_id, ITEMS)


def test_interactions_that_were_not_cleaned_are_refused(tmp_path: Path) -> None:
    good = cleaned(("u", "i", 1, "view", None, ""))
    with EventStore.open(sqlite_url(tmp_path), KEY) as store:
        with pytest.raises(SchemaError, match="view, cart"):
            store.import_histories(good.with_columns(event=pl.lit("levitate")))
        for bad in (good.with_columns(timestamp=pl.lit(-1)), good.with_columns(item_id=pl.lit("x" * 600))):
            with pytest.raises(SchemaError, match="wrong=1 of interactions=1"):
                store.import_histories(bad)


# --- privacy --------------------------------------------------------------------------------------


def test_no_raw_id_is_in_the_files_and_what_is_forgotten_leaves_no_byte(tmp_path: Path) -> None:
    def held() -> bytes:
        return b"".join(path.read_bytes() for path in (tmp_path / "store").iterdir())

    with EventStore.open(sqlite_url(tmp_path), KEY) as store:
        store.import_histories(
            cleaned(*(("Ada Lovelace", "i1", k, "review", None, f"my secret {k}") for k in range(9)))
        )
        store.append("Charles", [Event("i2", "review", 5, None, "an engine")], ITEMS)
        assert b"my secret" in held()
        assert b"Lovelace" not in held()
        assert bytes.fromhex(KEY.pseudonym("Ada Lovelace")) in held()
        assert store.forget("Ada Lovelace") == 9
        assert b"my secret" not in held()
        assert bytes.fromhex(KEY.pseudonym("Ada Lovelace")) not in held()
        assert b"an engine" in held()


def test_forgetting_erases_one_user_and_says_how_much(store: EventStore) -> None:
    store.append("u", [Event("i1", "view", 1), Event("new", "view", 2)], ITEMS)
    store.append("v", [Event("i1", "view", 1)], ITEMS)
    assert store.forget("u") == 2
    assert store.forget("u") == 0
    with pytest.raises(UnknownUserError):
        store.history("u", ITEMS)
    assert (store.users(), len(store.history("v", ITEMS)[0])) == (1, 1)


def test_an_import_does_not_bring_back_who_was_forgotten(store: EventStore) -> None:
    held = cleaned(*((user, "i1", k, "view", None, "") for user in ("u", "v") for k in range(3)))
    assert store.import_histories(held) == 6
    assert store.forget("u") == 3
    assert store.import_histories(held) == 0
    assert store.users() == 1
    store.append("u", [Event("i2", "view", 9)], ITEMS)  # who comes back to the shop is a user again
    assert store.import_histories(held) == 0
    assert len(store.history("u", ITEMS)[0]) == 1


def test_the_files_can_be_read_by_their_owner_only(tmp_path: Path) -> None:
    with EventStore.open(sqlite_url(tmp_path), KEY) as store:
        store.append("u", [Event("i1", "view", 1)], ITEMS)
        modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "store").iterdir()}
    assert modes == {"events.db": 0o600, "events.db-wal": 0o600, "events.db-shm": 0o600}
    (tmp_path / "store" / "events.db").chmod(0o640)
    if os.name == "posix":
        with pytest.raises(ConfigError, match="mode=0640"):
            EventStore.open(sqlite_url(tmp_path), KEY)
