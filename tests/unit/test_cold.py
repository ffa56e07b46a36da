"""Withheld items are nowhere in training, and what is asked of whom gives nothing away."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from shared.catalogue import build_catalogue
from shared.errors import ConfigError, EmptyHistoryError
from shared.schema import Histories
from simulations.cold import chance, cold_parts, cold_row, hold_out_cold, rank_cold
from simulations.evaluation import Evaluation, Scorer

ITEMS = [f"i{k:02d}" for k in range(30)]


def frame(*rows: tuple[str, str, int], partner: int = 0) -> pl.DataFrame:
    schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64}
    return pl.DataFrame(list(rows), schema=schema, orient="row").with_columns(
        event=pl.lit("view"), rating=pl.lit(None, dtype=pl.Float64), review=pl.lit(""), partner=pl.lit(partner)
    )


def shop(users: int = 40, seed: int = 0) -> pl.DataFrame:
    """Everybody meets 12 of 30 items, some of them twice."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        met = rng.permutation(30)[:12].tolist()
        rows += [(f"user {user}", ITEMS[item], time) for time, item in enumerate([*met, *met[:3]])]
    return frame(*rows)


# --- the split ------------------------------------------------------------------------------------


def test_no_event_with_a_withheld_item_is_left_in_training() -> None:
    data = shop()
    split = hold_out_cold(data, 0.2, seed=0)
    assert len(split.withheld) == 6
    assert not set(split.train.get_column("item_id")) & set(split.withheld)
    assert split.train.height == data.filter(~pl.col("item_id").is_in(split.withheld)).height
    assert set(split.targets.get_column("item_id")) <= set(split.withheld)


def test_the_target_is_the_withheld_item_met_last_and_only_what_came_before_is_read() -> None:
    data = shop()
    split = hold_out_cold(data, 0.2, seed=0)
    for user, item, _ in split.targets.rows():
        own = data.filter(pl.col("user_id") == user).sort("timestamp")
        cold = own.filter(pl.col("item_id").is_in(split.withheld)).unique("item_id", keep="first", maintain_order=True)
        assert cold.get_column("item_id").to_list()[-1] == item
        when = cold.get_column("timestamp").to_list()[-1]
        before = split.before.filter(pl.col("user_id") == user)
        assert before.get_column("timestamp").to_list() == list(range(when))
        inputs = split.inputs.filter(pl.col("user_id") == user)
        assert not set(inputs.get_column("item_id")) & set(split.withheld)


def test_what_is_withheld_follows_from_ids_and_seed_alone() -> None:
    data = shop()
    split = hold_out_cold(data, 0.2, seed=0)
    shuffled = hold_out_cold(data.sample(fraction=1.0, shuffle=True, seed=5), 0.2, seed=0)
    assert shuffled.withheld == split.withheld
    assert shuffled.targets.equals(split.targets)
    assert hold_out_cold(shop(seed=1), 0.2, seed=0).withheld == split.withheld
    assert hold_out_cold(data, 0.2, seed=1).withheld != split.withheld


def test_a_user_of_two_partners_is_asked_where_the_target_was_seen() -> None:
    items = [(f"i{k}", k) for k in range(10)]
    here = frame(*(("ann", item, time) for item, time in items if time % 2), partner=1)
    there = frame(*(("ann", item, time) for item, time in items if not time % 2), partner=0)
    split = hold_out_cold(pl.concat([here, there]), 0.1, seed=2)
    ((_, item, partner),) = split.targets.rows()
    assert partner == int(item[1:]) % 2
    assert split.before.get_column("partner").unique().to_list() == [partner]


def test_users_who_met_nothing_before_are_not_asked() -> None:
    data = pl.concat([shop(), frame(*(("eve", item, 0) for item in hold_out_cold(shop(), 0.2, seed=0).withheld[:1]))])
    assert "eve" not in hold_out_cold(data, 0.2, seed=0).targets.get_column("user_id")


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 0.001, 0.999])
def test_a_share_that_withholds_nothing_or_all_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=f"items=30, got share={share}"):
        hold_out_cold(shop(), share, seed=0)


def test_a_split_that_asks_nobody_is_refused() -> None:
    with pytest.raises(EmptyHistoryError, match="users=0"):
        hold_out_cold(frame(*((f"user {k}", f"i{k}", 0) for k in range(10))), 0.5, seed=0)


# --- ranking --------------------------------------------------------------------------------------


def ranked(scorer: Scorer, share: float = 0.3) -> tuple[Evaluation, Evaluation]:
    data = shop(400)
    split = hold_out_cold(data, share, seed=0)
    items = pl.DataFrame({"item_id": ITEMS}).with_columns(title=pl.lit(""), text=pl.lit(""), categories=pl.lit(""))
    catalogue = build_catalogue(items)
    parts = cold_parts(split, catalogue, seed=0, max_history=1000)
    withheld = np.isin(np.array(catalogue.item_ids), split.withheld)
    return rank_cold(lambda *_: scorer, parts, withheld)


def asked(scorer: Scorer) -> dict[str, float]:
    return cold_row(*ranked(scorer), 30)


def by_count(histories: Histories, users: NDArray[np.int64]) -> NDArray[np.float32]:
    """Popularity of training: nobody has a withheld item."""
    split = hold_out_cold(shop(400), 0.3, seed=0)
    counts = np.bincount([ITEMS.index(item) for item in split.train.get_column("item_id")], minlength=30)
    return np.tile(counts.astype(np.float32), (len(users), 1))


def test_popularity_is_chance_among_withheld_items_and_last_among_all() -> None:
    row = asked(by_count)
    assert row["among_cold_auc"] == 0.5
    assert row["chance_hr@10"] == 1.0, "nine items fit into a list of ten"
    assert row["hr@10"] < 0.2


def test_an_answer_known_by_heart_is_at_the_ceiling_and_a_random_one_at_chance() -> None:
    rng = np.random.default_rng(0)
    row = asked(lambda _, users: rng.random((len(users), 30), dtype=np.float32))
    # 0.5 with a standard deviation of 0.3 / sqrt(390) = 0.015: 4 of them; the seed is fixed.
    assert row["among_cold_auc"] == pytest.approx(0.5, abs=0.06)
    assert row["to_chance"] == pytest.approx(row["among_cold_hr@10"] / row["chance_hr@10"])


def test_chance_is_what_random_ties_give() -> None:
    assert chance(np.array([20, 40])) == pytest.approx((0.5 + 0.25) / 2)
    assert chance(np.array([5])) == 1.0
    rng = np.random.default_rng(0)
    drawn = np.mean(rng.permuted(np.tile(np.arange(25), (4000, 1)), axis=1)[:, 0] < 10)
    # Standard deviation 0.0077; 4 of them; the seed is fixed.
    assert chance(np.array([25])) == pytest.approx(drawn, abs=0.031)


def test_an_item_withheld_and_met_before_is_no_candidate() -> None:
    seen: list[int] = []

    def scorer(histories: Histories, users: NDArray[np.int64]) -> NDArray[np.float32]:
        seen.extend(int(item) for k in users for item in histories[int(k)].items)
        return np.zeros((len(users), 30), dtype=np.float32)

    data = shop(400)
    split = hold_out_cold(data, 0.3, seed=0)
    assert split.before.filter(pl.col("item_id").is_in(split.withheld)).height > 0, "else this shows nothing"
    overall, among_cold = ranked(scorer)
    assert not {ITEMS[item] for item in seen} & set(split.withheld)
    assert len(overall) == split.targets.height
    met = split.before.group_by("user_id").agg(
        pl.col("item_id").n_unique().alias("all"),
        pl.col("item_id").filter(pl.col("item_id").is_in(split.withheld)).n_unique().alias("cold"),
    )
    assert sorted(overall.candidates) == sorted(30 - met.get_column("all"))
    assert sorted(among_cold.candidates) == sorted(len(split.withheld) - met.get_column("cold"))
