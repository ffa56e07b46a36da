"""Partners: whole users, no trace of row order, and as different as was asked for."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
import pytest

from shared.errors import ConfigError, SchemaError
from simulations.partition import Method, _balanced, partition

GENRES = ("Comedy", "Horror", "Noir", "Western")
ITEMS = pl.DataFrame(
    {
        "item_id": [f"item {k}" for k in range(40)],
        "title": [f"{GENRES[k % 4].lower()} story number {k}" for k in range(40)],
        "text": "",
        "categories": [f"Film | {GENRES[k % 4]}" for k in range(40)],
    }
)
METHODS: tuple[Method, ...] = ("iid", "dirichlet", "taste")


def _interactions(users: int = 200) -> pl.DataFrame:
    """User k mostly takes items of genre k % 4."""
    rng = np.random.default_rng(0)
    rows = [
        (f"user {k}", f"item {rng.integers(10) * 4 + (k % 4 if rng.random() < 0.8 else rng.integers(4))}")
        for k in range(users)
        for _ in range(10)
    ]
    return pl.DataFrame(rows, schema=["user_id", "item_id"], orient="row")


DATA = _interactions()


def _split(data: pl.DataFrame = DATA, items: pl.DataFrame = ITEMS, **arguments: Any) -> dict[str, int]:
    chosen = {"partners": 4, "method": "iid", "seed": 0, **arguments}
    placed = partition(data, items, **chosen)
    return dict(placed.select("user_id", "partner").unique().rows())


def _skew(placed: dict[str, int]) -> float:
    """Mean share of a partner's most frequent genre of users: 0.25 where all partners are alike."""
    partners = set(placed.values())
    shares = []
    for partner in partners:
        genres = [int(user.split()[1]) % 4 for user, at in placed.items() if at == partner]
        shares.append(max(np.bincount(genres)) / len(genres))
    return float(np.mean(shares))


@pytest.mark.parametrize("method", METHODS)
def test_every_row_keeps_its_place_and_every_user_has_one_partner(method: Method) -> None:
    placed = partition(DATA, ITEMS, partners=4, method=method, seed=0)
    assert placed.drop("partner").equals(DATA)
    assert placed.schema["partner"] == pl.Int32
    assert placed.group_by("user_id").agg(pl.col("partner").n_unique()).get_column("partner").max() == 1
    assert sorted(placed.get_column("partner").unique()) == [0, 1, 2, 3]


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_the_rows_leaves_no_trace(method: Method) -> None:
    shuffled = DATA.sample(fraction=1, shuffle=True, seed=1)
    items = ITEMS.sample(fraction=1, shuffle=True, seed=2)
    assert _split(shuffled, items, method=method) == _split(method=method)


@pytest.mark.parametrize("method", METHODS)
def test_the_seed_decides(method: Method) -> None:
    assert _split(method=method, seed=0) == _split(method=method, seed=0)
    if method != "taste":  # clear tastes are found from every start
        assert _split(method=method, seed=0) != _split(method=method, seed=1)


def test_a_partner_column_that_is_there_already_is_replaced() -> None:
    assert _split(DATA.with_columns(partner=pl.lit(7))) == _split()


def test_iid_does_not_depend_on_who_else_is_there() -> None:
    fewer = _split(DATA.filter(pl.col("user_id").str.ends_with("1")))
    everybody = _split()
    assert fewer == {user: everybody[user] for user in fewer}


def test_iid_partners_are_alike() -> None:
    sizes = np.bincount(list(_split(_interactions(2000)).values()))
    # 500 each, standard deviation 19: 4 of them.
    assert (np.abs(sizes - 500) < 78).all()
    assert _skew(_split(_interactions(2000))) < 0.31


def test_a_small_alpha_makes_partners_of_different_labels() -> None:
    many = _interactions(2000)
    small, large = (_skew(_split(many, method="dirichlet", alpha=alpha, seed=2, partners=3)) for alpha in (0.1, 1000))
    assert large < 0.35
    assert small > large + 0.15


def test_taste_gives_each_partner_a_taste_and_the_same_number_of_users() -> None:
    placed = _split(method="taste")
    assert sorted(np.bincount(list(placed.values()))) == [50, 50, 50, 50]
    assert _skew(placed) > 0.9


def test_sizes_of_taste_partners_differ_by_one_at_most() -> None:
    for partners in (3, 7):
        sizes = np.bincount(list(_split(method="taste", partners=partners).values()))
        assert len(sizes) == partners
        assert sizes.max() - sizes.min() <= 1


def test_who_loses_most_by_the_second_choice_chooses_first() -> None:
    # Both users are nearest to partner 0, which has room for one.
    assert _balanced(np.array([[0.0, 1.0], [1.0, 10.0]])).tolist() == [1, 0]
    assert _balanced(np.array([[0.0, 10.0], [0.5, 1.0]])).tolist() == [0, 1]


def test_taste_reads_titles_where_categories_say_nothing() -> None:
    placed = _split(items=ITEMS.with_columns(categories=pl.lit("Film")), method="taste")
    assert _skew(placed) > 0.9


def test_given_partners_are_numbered_by_value_and_users_may_be_at_several() -> None:
    data = DATA.head(4).with_columns(partner=pl.Series(["shop b", "shop a", "shop a", "shop b"]))
    placed = partition(data, ITEMS, partners=2, method="given", seed=0)
    assert placed.get_column("partner").to_list() == [1, 0, 0, 1]
    assert placed.schema["partner"] == pl.Int32
    assert placed.get_column("user_id").n_unique() == 1


@pytest.mark.parametrize("values", [None, [0, 1, None, 1]])
def test_given_without_a_partner_for_every_row_raises(values: list[int | None] | None) -> None:
    data = DATA.head(4) if values is None else DATA.head(4).with_columns(partner=pl.Series(values))
    with pytest.raises(SchemaError, match="column partner"):
        partition(data, ITEMS, partners=2, method="given", seed=0)


def test_given_with_another_number_of_partners_raises() -> None:
    with pytest.raises(ConfigError, match="partners=3, got users at 2"):
        partition(
            DATA.with_columns(partner=pl.int_range(pl.len()) % 2),
            ITEMS,
            partners=3,
            method="given",
            seed=0,
        )


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"partners": 0}, "partners of at least 1"),
        ({"method": "random"}, "method=random"),
        ({"method": "dirichlet", "alpha": 0}, "alpha above 0"),
        ({"method": "dirichlet", "alpha": float("inf")}, "alpha above 0"),
        ({"method": "dirichlet", "alpha": 0.001, "partners": 30}, "larger alpha"),
        ({"partners": 201}, "partners=201, got users at"),
        ({"method": "taste", "partners": 201}, "different tastes"),
    ],
)
def test_what_cannot_be_partitioned_raises(arguments: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        _split(**arguments)


def test_items_without_any_word_give_one_label_and_no_tastes() -> None:
    bare = ITEMS.with_columns(title=pl.lit(""), categories=pl.lit(None, dtype=pl.String))
    assert set(_split(items=bare, method="dirichlet", alpha=100).values()) == {0, 1, 2, 3}
    with pytest.raises(ConfigError, match="different tastes"):
        _split(items=bare, method="taste")
