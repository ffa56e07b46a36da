"""The order of rows leaves no trace, and cleaning is done once."""

from __future__ import annotations

import random

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from client.data.cleaning import clean, plain_text
from client.data.histories import build_histories, in_time_order
from client.data.ingest import RawData
from client.data.pseudonyms import PseudonymKey
from shared.catalogue import build_catalogue
from shared.schema import EVENT_KINDS, Histories

NOW = 1_000
SCHEMA = {
    "user_id": pl.String,
    "item_id": pl.String,
    "timestamp": pl.Int64,
    "event": pl.String,
    "rating": pl.Float64,
    "review": pl.String,
}
ITEMS = dict.fromkeys(("item_id", "title", "text", "categories"), pl.String)
# Few values, so that ties and duplicates are the rule.
rows = st.lists(
    st.tuples(
        st.sampled_from(["u", "v", "w", " u", ""]),
        st.sampled_from(["a", "b", "c", "d|e", "é"]),
        st.integers(-1, 3),
        st.sampled_from(EVENT_KINDS[:3]),
        st.sampled_from([None, 1.0, 2.5]),
        st.sampled_from(["", "good", "bad", "go<b>od", "x\x00y"]),
    ),
    min_size=1,
    max_size=30,
).map(lambda drawn: [("u", "a", 1, "view", None, ""), *drawn])
items = st.lists(
    st.tuples(st.sampled_from(["a", "b", "b ", ""]), st.sampled_from(["", "T", "<i>U"]), st.just(""), st.just("")),
    max_size=5,
)
markup = st.text(alphabet=st.sampled_from(list("<>/!-&;#abltgmpx1 \t\x00\u200b")), max_size=40)


on_a_busy_machine = settings(deadline=None)  # the first examples wait for imports and for others


def prepared(interactions: list[tuple[object, ...]], catalogue: list[tuple[str, ...]]) -> Histories:
    frame = pl.DataFrame(interactions, schema=SCHEMA, orient="row")
    data, _ = clean(RawData("t", frame, pl.DataFrame(catalogue, schema=ITEMS, orient="row")), now=NOW)
    key = PseudonymKey.derive(0)
    return build_histories(data.interactions, build_catalogue(data.items), key, max_events=5, tie_seed=1)


def same(a: Histories, b: Histories) -> bool:
    columns = ("offsets", "items", "timestamps", "events", "reviews")
    return (
        a.users == b.users
        and a.review_texts == b.review_texts
        and all(np.array_equal(getattr(a, column), getattr(b, column)) for column in columns)
        and np.array_equal(a.ratings, b.ratings, equal_nan=True)
    )


@on_a_busy_machine
@given(rows, items, st.randoms(use_true_random=False))
def test_shuffling_the_rows_gives_identical_histories(
    interactions: list[tuple[object, ...]], catalogue: list[tuple[str, ...]], source: random.Random
) -> None:
    histories = prepared(interactions, catalogue)
    source.shuffle(interactions)
    source.shuffle(catalogue)
    assert same(histories, prepared(interactions, catalogue))


@on_a_busy_machine
@given(rows, st.randoms(use_true_random=False))
def test_time_order_of_uncleaned_rows_does_not_depend_on_their_order(
    interactions: list[tuple[object, ...]], source: random.Random
) -> None:
    ordered = in_time_order(pl.DataFrame(interactions, schema=SCHEMA, orient="row"), 1)
    source.shuffle(interactions)
    assert ordered.equals(in_time_order(pl.DataFrame(interactions, schema=SCHEMA, orient="row"), 1))


@on_a_busy_machine
@given(rows)
def test_histories_hold_each_users_last_events_in_time_order(interactions: list[tuple[object, ...]]) -> None:
    for history in prepared(interactions, []):
        assert 1 <= len(history) <= 5
        assert (np.diff(history.timestamps) >= 0).all()


@on_a_busy_machine
@given(markup)
def test_plain_text_is_plain(text: str) -> None:
    assert plain_text(plain_text(text)) == plain_text(text)


@on_a_busy_machine
@given(st.one_of(markup, st.text(max_size=40)))
def test_cleaning_twice_is_cleaning_once(review: str) -> None:
    frame = pl.DataFrame([("u", "a", 1, "review", None, review)], schema=SCHEMA, orient="row")
    once, _ = clean(RawData("t", frame, pl.DataFrame(schema=ITEMS)), now=NOW)
    twice, report = clean(once, now=NOW)
    assert twice.interactions.equals(once.interactions)
    assert report.reviews_with_markup == report.reviews_with_control_characters == 0
    assert not any(character in once.interactions.item(0, "review") for character in "\x00\u200b\n\t")
