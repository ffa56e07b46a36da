"""Time order without file order, pseudonyms, the cap, and the columns of `Histories`."""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from client.data.histories import build_histories, in_time_order
from client.data.pseudonyms import PseudonymKey
from shared.catalogue import build_catalogue
from shared.errors import ConfigError, DataError, EmptyHistoryError, IntegrityError, SchemaError
from shared.schema import EVENT_KINDS, Catalogue

KEY = PseudonymKey.derive(7)


def frame(*rows: tuple[str, str, int, str, float | None, str]) -> pl.DataFrame:
    names = ("user_id", "item_id", "timestamp", "event", "rating", "review")
    kinds = (pl.String, pl.String, pl.Int64, pl.String, pl.Float64, pl.String)
    return pl.DataFrame(rows, schema=dict(zip(names, kinds, strict=True)), orient="row")


def catalogue(*ids: str) -> Catalogue:
    columns = {"item_id": list(ids), "title": [""] * len(ids), "text": "", "categories": ""}
    return build_catalogue(pl.DataFrame(columns))


def test_events_are_in_time_order_and_a_tie_is_ordered_by_the_keyed_hash() -> None:
    tied = [("u", f"i{k}", 5, "view", None, "") for k in range(8)]
    rows = [("u", "last", 6, "view", None, ""), *tied, ("u", "first", 4, "view", None, "")]
    found = in_time_order(frame(*rows), 3).get_column("item_id").to_list()

    def digest(item_id: str) -> bytes:
        return hashlib.blake2b(f"u|{item_id}".encode(), key=b"3", digest_size=8).digest()

    assert found == ["first", *sorted((f"i{k}" for k in range(8)), key=digest), "last"]
    assert found != in_time_order(frame(*rows), 4).get_column("item_id").to_list()


def test_events_with_one_item_at_one_time_are_in_the_order_of_their_kinds() -> None:
    rows = [("u", "i", 5, event, None, "") for event in reversed(EVENT_KINDS)]
    assert in_time_order(frame(*rows), 0).get_column("event").to_list() == list(EVENT_KINDS)


def test_an_unknown_event_is_refused() -> None:
    with pytest.raises(SchemaError, match="view, cart"):
        in_time_order(frame(("u", "i", 1, "levitate", None, "")), 0)


def test_histories_hold_every_column_in_the_users_time_order() -> None:
    rows = [
        ("u", "b", 9, "review", 2.0, "bad"),
        ("v", "a", 3, "view", None, ""),
        ("u", "a", 1, "view", None, ""),
        ("v", "c", 4, "review", None, "bad"),
        ("v", "b", 5, "tip", 4.5, "good"),
    ]
    histories = build_histories(frame(*rows), catalogue("c", "b", "a"), KEY, max_events=10, tie_seed=0)
    assert histories.users == tuple(sorted(KEY.pseudonyms(["u", "v"])))
    by_user = {history.user: history for history in histories}
    u, v = by_user[KEY.pseudonym("u")], by_user[KEY.pseudonym("v")]
    assert u.items.tolist() == [0, 1]
    assert u.timestamps.tolist() == [1, 9]
    assert u.events.tolist() == [EVENT_KINDS.index("view"), EVENT_KINDS.index("review")]
    assert np.isnan(u.ratings[0])
    assert u.ratings[1] == 2.0
    assert v.items.tolist() == [0, 2, 1]
    assert [histories.review_texts[k] if k >= 0 else "" for k in v.reviews] == ["", "bad", "good"]
    assert sorted(histories.review_texts) == ["bad", "good"]
    kinds = [histories.items, histories.timestamps, histories.events, histories.ratings, histories.reviews]
    assert [array.dtype for array in kinds] == [np.int32, np.int64, np.int8, np.float32, np.int32]


def test_only_the_last_events_of_each_user_are_kept_with_their_reviews() -> None:
    rows = [("u", f"i{k}", k, "review", None, f"text {k}") for k in range(9)]
    rows.append(("v", "i0", 1, "view", None, ""))
    ids = catalogue(*(f"i{k}" for k in range(9)))
    histories = build_histories(frame(*rows), ids, KEY, max_events=4, tie_seed=0)
    assert sorted(histories.lengths.tolist()) == [1, 4]
    longest = max(histories, key=len)
    assert longest.timestamps.tolist() == [5, 6, 7, 8]
    assert histories.review_texts == ("text 5", "text 6", "text 7", "text 8")


def test_an_item_that_is_not_in_the_catalogue_is_refused_without_naming_it() -> None:
    with pytest.raises(DataError, match="missing=1 of interactions=1") as caught:
        build_histories(frame(("u", "secret", 1, "view", None, "")), catalogue("a"), KEY, max_events=1, tie_seed=0)
    assert "secret" not in str(caught.value)


def test_no_interaction_and_no_room_for_events_are_refused() -> None:
    with pytest.raises(EmptyHistoryError, match="interactions=0"):
        build_histories(frame(), catalogue("a"), KEY, max_events=1, tie_seed=0)
    with pytest.raises(ConfigError, match="max_events=0"):
        build_histories(frame(("u", "a", 1, "view", None, "")), catalogue("a"), KEY, max_events=0, tie_seed=0)


def test_a_catalogue_is_sorted_as_python_sorts_and_refuses_an_id_twice() -> None:
    ids = ["é", "z", "Z", "10", "9", "😀", "\uffff"]
    assert catalogue(*ids).item_ids == tuple(sorted(ids))
    with pytest.raises(SchemaError, match="once"):
        catalogue("a", "a")


def test_a_pseudonym_is_the_keyed_hash_and_differs_between_partners() -> None:
    expected = hmac.new(KEY.secret, "ü-1".encode(), hashlib.sha256).hexdigest()[:32]
    assert KEY.pseudonym("ü-1") == expected
    assert PseudonymKey.derive(8).pseudonym("ü-1") != expected
    assert PseudonymKey.generate() != PseudonymKey.generate()


def test_the_secret_is_not_shown() -> None:
    assert "secret" not in repr(KEY)
    assert KEY.secret.hex() not in repr(KEY)


def test_a_key_is_made_once_readable_by_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "keys" / "pseudonyms.key"
    key = PseudonymKey.load_or_create(path)
    assert PseudonymKey.load_or_create(path) == key
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_of_two_processes_that_make_a_key_at_once_the_first_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pseudonyms.key"
    real_link = os.link

    def late(source: str, target: Path) -> None:
        other = tmp_path / "other"
        other.write_bytes(b"o" * 32)
        other.chmod(0o600)
        other.replace(path)
        real_link(source, target)

    monkeypatch.setattr(os, "link", late)
    assert PseudonymKey.load_or_create(path).secret == b"o" * 32
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_key_that_others_can_read_or_that_is_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "pseudonyms.key"
    PseudonymKey.load_or_create(path)
    path.chmod(0o644)
    if os.name == "posix":
        with pytest.raises(ConfigError, match="mode=0600"):
            PseudonymKey.load_or_create(path)
    path.chmod(0o600)
    path.write_bytes(b"short")
    with pytest.raises(IntegrityError, match="bytes=5"):
        PseudonymKey.load_or_create(path)
    with pytest.raises(ConfigError, match="bytes=5"):
        PseudonymKey(b"short")
