"""However rows are spread over drops, in whatever order and how often: the data set is that of one import."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "unit"))
from crashing import dies_at
from intake_setting import NOW, Row, Shop, open_shop

from client.intake.scrubbing import RuleScrubber

REVIEWS = (
    "",
    "fine",
    "write to ada.lovelace@example.com or call 030 123456789, both do",
    "write to ada.lovelace@example.com or to nobody at all, as you like it best",
    "<b>bold</b> &amp; bright",
    "late  words",
)
rows = st.lists(
    st.tuples(
        st.sampled_from(["ada", "bob", " ada", "zoë"]),
        st.sampled_from(["item 0", "item 1", "item 9"]),
        st.sampled_from([int(NOW), int(NOW) - 5, int(NOW) - 9 * 86_400, -1]),
        st.sampled_from(["view", "rating"]),
        st.sampled_from([None, 1.0, 5.0]),
        st.sampled_from(REVIEWS),
    ),
    min_size=1,
    max_size=12,
)
FORMS = ("csv", "parquet", "jsonl")
SETTINGS = {"scrub": "rules", "retention_days": 5}


def imported(folder: Path, drops: Sequence[Sequence[Row]], forms: Sequence[str], together: int) -> Shop:
    """A partner that was given these drops, `together` of them at each import."""
    shop = open_shop(folder, **SETTINGS)
    for number, (drop, form) in enumerate(zip(drops, forms, strict=True)):
        shop.drop(f"{number}.{form}", drop)
        if number % together == 0:
            shop.take()
    shop.take()
    return shop


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows, st.data())
def test_any_split_in_any_order_with_repeats_gives_the_same_data(told: list[Row], data: st.DataObject) -> None:
    repeated = data.draw(st.permutations(told + data.draw(st.lists(st.sampled_from(told), max_size=4))))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(repeated)), max_size=3)))
    edges = list(zip([0, *cuts], [*cuts, len(repeated)], strict=True))
    drops = [repeated[a:b] for a, b in edges if a < b]
    forms = data.draw(st.lists(st.sampled_from(FORMS), min_size=len(drops), max_size=len(drops)))
    with tempfile.TemporaryDirectory() as folder:
        one = imported(Path(folder) / "one", [told], ["parquet"], 1)
        many = imported(Path(folder) / "many", drops, forms, data.draw(st.integers(1, 3)))
        assert many.rows() == one.rows()
        assert many.rejects() == one.rejects()


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(rows, rows, st.integers(1, 20))
def test_import_crash_import_is_one_import(first: list[Row], second: list[Row], step: int) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        crashed, whole = (open_shop(Path(folder) / name, **SETTINGS) for name in ("crashed", "whole"))
        for shop in (crashed, whole):
            shop.drop("first.csv", first)
            shop.take()
            shop.drop("second.csv", second)
        dies_at(step, crashed.take, patch)
        crashed.take()
        whole.take()
        assert crashed.rows() == whole.rows() and crashed.rejects() == whole.rejects()


pieces = st.sampled_from(
    [
        "a@b.co",
        "+49 30 1234567",
        "12 Main Street",
        " at ",
        "@",
        "4111111111111111",
        "1.2.3.4",
        "DE89",
        "[EMAIL]",
        "http://",
    ]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=8), pieces), max_size=12).map("".join))
def test_scrubbing_twice_changes_nothing(text: str) -> None:
    scrubber = RuleScrubber()
    once, _ = scrubber.scrub(text)
    assert scrubber.scrub(once) == (once, {})
