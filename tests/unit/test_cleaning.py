"""What is no interaction leaves, texts become plain, and everything done is counted."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict

import polars as pl
import pytest

from client.data.cleaning import MAX_TEXT_CHARS, CleaningReport, clean, plain_text
from client.data.ingest import RawData
from shared.errors import EmptyHistoryError

NOW = 1_700_000_000
DAY = 86_400

Row = tuple[str | None, str | None, int, str, float | None, str]


def raw(*rows: Row, items: list[tuple[str | None, str, str, str]] | None = None) -> RawData:
    interactions = pl.DataFrame(
        rows,
        schema={
            "user_id": pl.String,
            "item_id": pl.String,
            "timestamp": pl.Int64,
            "event": pl.String,
            "rating": pl.Float64,
            "review": pl.String,
        },
        orient="row",
    )
    columns = ("item_id", "title", "text", "categories")
    return RawData("t", interactions, pl.DataFrame(items or [], schema=dict.fromkeys(columns, pl.String), orient="row"))


def review_of(text: str) -> tuple[str, CleaningReport]:
    cleaned, report = clean(raw(("u", "i", 1, "review", None, text)), now=NOW)
    return cleaned.interactions.get_column("review")[0], report


def test_a_clean_set_passes_unchanged_and_nothing_is_counted() -> None:
    data = raw(("u", "i", 1, "rating", 4.0, "Good."), items=[("i", "I", "A text", "c")])
    cleaned, report = clean(data, now=NOW)
    assert cleaned.interactions.equals(data.interactions)
    assert cleaned.items.equals(data.items)
    counts = asdict(report)
    assert {name for name, count in counts.items() if count} == {
        "interactions_in",
        "interactions_out",
        "items_in",
        "items_out",
    }


def test_rows_without_a_user_or_an_item_are_dropped_and_counted() -> None:
    rows: list[Row] = [
        ("", "i", 1, "view", None, ""),
        (None, "i", 1, "view", None, ""),
        ("u", " \t", 1, "view", None, ""),
        ("\x00", "i", 1, "view", None, ""),
        (" u ", "i\n", 1, "view", None, ""),
    ]
    cleaned, report = clean(raw(*rows), now=NOW)
    assert report.empty_ids == 4
    assert cleaned.interactions.rows() == [("u", "i", 1, "view", None, "")]


def test_impossible_times_are_dropped_and_counted_and_ordinals_pass() -> None:
    times = [-1, 0, 17, NOW, NOW + DAY, NOW + DAY + 1, 10**12]
    cleaned, report = clean(raw(*(("u", f"i{t}", t, "view", None, "") for t in times)), now=NOW)
    assert cleaned.interactions.get_column("timestamp").to_list() == [0, 17, NOW, NOW + DAY]
    assert report.impossible_times == 3


def test_the_clock_is_read_when_no_time_is_given() -> None:
    assert clean(raw(("u", "i", NOW, "view", None, ""), ("u", "i", 10**11, "view", None, "")))[1].impossible_times == 1


def test_of_duplicates_the_longest_review_then_the_highest_rating_stays_in_any_order() -> None:
    rows: list[Row] = [
        ("u", "i", 1, "rating", 5.0, ""),
        ("u", "i", 1, "rating", 2.0, "long review"),
        ("u", "i", 1, "rating", 3.0, "long review"),
        ("u", "i", 1, "rating", None, "long review"),
        ("u", "i", 1, "view", None, ""),
        ("u", "i", 2, "rating", 5.0, ""),
        ("u", "j", 1, "rating", 5.0, ""),
        ("v", "i", 1, "rating", 5.0, ""),
    ]
    for order in (rows, rows[::-1]):
        cleaned, report = clean(raw(*order), now=NOW)
        assert report.duplicates == 3
        assert sorted(cleaned.interactions.rows(), key=str) == sorted([rows[2], *rows[4:]], key=str)


def test_rows_that_become_equal_by_cleaning_are_duplicates() -> None:
    _, report = clean(raw(("u", "i", 1, "view", None, ""), ("u ", " i", 1, "view", None, "")), now=NOW)
    assert report.duplicates == 1


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("Great<br />product &amp; price", "Great product & price"),
        ("<p class='x'>It&#39;s <b>good</b></p>", "It's good"),
        ("&lt;b&gt;bold&lt;/b&gt;", "bold"),
        ("&amp;amp;quot;yes&amp;quot;", '&quot;yes"'.replace("&quot;", '"')),
        ("<script>alert(1)</script>seen<!-- hidden -->", "seen"),
        ("<SCRIPT type='x'>a < b</Script >seen", "seen"),
        ("I <3 this, 2 < 3 and 5 > 4", "I <3 this, 2 < 3 and 5 > 4"),
        ("AT&T &unknown; R&D &copy 5", "AT&T &unknown; R&D &copy 5"),
        ("caf&eacute; &#x2764; &#128512;", "café ❤ 😀"),
    ],
)
def test_markup_leaves_a_review_and_what_only_looks_like_it_stays(text: str, plain: str) -> None:
    found, report = review_of(text)
    assert found == plain
    assert report.reviews_with_markup == (text != plain)


def test_control_characters_leave_and_blanks_collapse() -> None:
    found, report = review_of("  a\x00b\u200bc\x9d \u3000 d\ufeff\r\n\te ")
    assert found == "a b c d e"
    assert report.reviews_with_control_characters == 1
    _, report = review_of("two\nlines\tand a tab")
    assert report.reviews_with_control_characters == 0


def test_control_characters_written_as_entities_leave_too() -> None:
    assert review_of("a&#1;b &#7;&#x200b;c")[0] == "ab c"


def test_long_reviews_are_cut_and_counted() -> None:
    found, report = review_of("word " * 2000)
    assert len(found) <= MAX_TEXT_CHARS
    assert report.reviews_shortened == 1
    assert review_of("x" * MAX_TEXT_CHARS)[1].reviews_shortened == 0


def test_the_work_on_one_endless_review_is_bounded() -> None:
    found, report = review_of("<script>" * 1_000_000)
    assert len(found) < len("<script>")  # a tag cut in two may stay
    assert report.reviews_shortened == 1


def test_each_row_with_a_dirty_review_counts_even_when_texts_repeat() -> None:
    _, report = clean(raw(*((f"u{k}", "i", 1, "review", None, "a<br>b") for k in range(3))), now=NOW)
    assert report.reviews_with_markup == 3


def test_a_missing_review_is_an_empty_one() -> None:
    data = raw(("u", "i", 1, "view", None, ""))
    absent = data.interactions.with_columns(review=pl.lit(None, dtype=pl.String))
    assert clean(RawData("t", absent, data.items), now=NOW)[0].interactions.rows() == data.interactions.rows()


def test_the_catalogue_is_completed_sorted_and_has_every_item_once() -> None:
    items = [
        ("b", "B", "", ""),
        ("", "nothing", "", ""),
        (None, "nothing", "", ""),
        ("b", "B", "a long <i>text</i>", "c"),
        ("unused", "U", "", ""),
    ]
    data = raw(("u", "b", 1, "view", None, ""), ("u", "a", 2, "view", None, ""), items=items)
    cleaned, report = clean(data, now=NOW)
    assert cleaned.items.rows() == [
        ("a", "", "", ""),
        ("b", "B", "a long text", "c"),
        ("unused", "U", "", ""),
    ]
    assert (report.items_in, report.items_out) == (5, 3)
    assert (report.items_without_id, report.duplicate_items, report.items_added) == (2, 1, 1)


def test_a_set_of_which_nothing_is_left_is_an_empty_history() -> None:
    with pytest.raises(EmptyHistoryError, match="interactions=1"):
        clean(raw(("u", "i", -1, "view", None, "")), now=NOW)


def test_the_report_is_frozen() -> None:
    _, report = clean(raw(("u", "i", 1, "view", None, "")), now=NOW)
    with pytest.raises(FrozenInstanceError):
        report.duplicates = 1  # type: ignore[misc]


def test_deeply_escaped_markup_ends() -> None:
    assert plain_text("&" + "amp;" * 300 + "lt;b&gt;x").strip() == "x"
