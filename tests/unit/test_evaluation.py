"""Holding out, ranking, pooling: and that a leak would be noticed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from baseline_setting import histories_of
from numpy.typing import NDArray

from client.data.histories import build_histories
from client.data.pseudonyms import PseudonymKey
from shared.catalogue import build_catalogue
from shared.errors import ConfigError, DataError, EmptyHistoryError, RankingError
from shared.schema import Histories
from simulations.evaluation import (
    Evaluation,
    Scorer,
    bootstrap,
    evaluate,
    evaluate_cold,
    hold_out,
    merge,
    merge_cold,
    paired_bootstrap,
    targets_of,
)

KEY = PseudonymKey.derive(0)


def frame(*rows: tuple[str, str, int, str]) -> pl.DataFrame:
    schema = {"user_id": pl.String, "item_id": pl.String, "timestamp": pl.Int64, "event": pl.String}
    return pl.DataFrame(list(rows), schema=schema, orient="row").with_columns(
        rating=pl.lit(None, dtype=pl.Float64), review=pl.lit("")
    )


def visits(user: str, items: str) -> list[tuple[str, str, int, str]]:
    """One event a second with each of the items, each named by a letter."""
    return [(user, item, time, "view") for time, item in enumerate(items)]


def table(scores: Sequence[Sequence[float]]) -> Scorer:
    """A scorer that looks users up in a table."""
    return lambda histories, users: np.array(scores, dtype=np.float32)[users]


# --- hold_out -------------------------------------------------------------------------------------


def test_the_item_of_the_last_event_is_held_out() -> None:
    train, held_out = hold_out(frame(*visits("ann", "abcde")), tie_seed=0)
    assert held_out.rows() == [("ann", "e")]
    assert train.get_column("item_id").to_list() == ["a", "b", "c", "d"]


def test_every_event_with_the_held_out_item_leaves_the_training_frame() -> None:
    rows = frame(*visits("ann", "abecd"), ("ann", "e", 99, "purchase"), *visits("bob", "ee"))
    train, held_out = hold_out(rows, tie_seed=0)
    assert held_out.rows() == [("ann", "e")]
    left = train.select("user_id", "item_id").rows()
    assert ("ann", "e") not in left
    assert left.count(("bob", "e")) == 2, "another user's events with the item stay"


def test_users_with_few_events_keep_everything_and_have_no_target() -> None:
    rows = frame(*visits("ann", "abcd"))
    train, held_out = hold_out(rows, tie_seed=0)
    assert train.height == 4
    assert held_out.is_empty()
    assert hold_out(rows, tie_seed=0, min_events=4)[1].rows() == [("ann", "d")]


def test_a_user_of_one_item_has_no_target() -> None:
    train, held_out = hold_out(frame(*visits("ann", "aaaaaa")), tie_seed=0)
    assert (train.height, held_out.height) == (6, 0)


def test_last_but_one_holds_out_the_item_before_and_shows_the_last_to_nobody() -> None:
    rows = frame(*visits("ann", "abcde"), *visits("bob", "abc"))
    train, held_out = hold_out(rows, tie_seed=0, which="last_but_one")
    assert held_out.rows() == [("ann", "d")]
    assert train.filter(pl.col("user_id") == "ann").get_column("item_id").to_list() == ["a", "b", "c"]
    assert train.filter(pl.col("user_id") == "bob").height == 3


def test_a_user_of_two_items_is_not_tuned_on_but_the_last_stays_hidden() -> None:
    train, held_out = hold_out(frame(*visits("ann", "aaaab")), tie_seed=0, which="last_but_one")
    assert held_out.is_empty()
    assert set(train.get_column("item_id")) == {"a"}


def test_the_partner_that_saw_the_last_event_is_named() -> None:
    rows = frame(*visits("ann", "abcde")).with_columns(partner=pl.Series([0, 0, 1, 0, 1], dtype=pl.Int32))
    assert hold_out(rows, tie_seed=0)[1].rows() == [("ann", "e", 1)]


def test_equal_times_are_not_ordered_by_the_item_id() -> None:
    rows = frame(*[(f"user {k}", item, 0, "view") for k in range(300) for item in "abcde"])
    shares = hold_out(rows, tie_seed=0)[1].get_column("item_id").value_counts().get_column("count") / 300
    # 0.2 each; 4 standard deviations are 0.09: fails by chance in 1 of about 3,000 seeds; this one is fixed.
    assert shares.len() == 5
    assert shares.is_between(0.11, 0.29).all()


@pytest.mark.parametrize("arguments", [{"which": "first"}, {"min_events": 1}])
def test_hold_out_refuses_what_it_cannot_do(arguments: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="Expected"):
        hold_out(frame(*visits("ann", "abcde")), tie_seed=0, **arguments)  # type: ignore[arg-type]


# --- targets --------------------------------------------------------------------------------------


def test_targets_follow_the_order_of_the_histories() -> None:
    rows = frame(*visits("ann", "abcde"), *visits("bob", "edcba"), *visits("eve", "ab"))
    train, held_out = hold_out(rows, tie_seed=0)
    items = pl.DataFrame({"item_id": list("abcde")}).with_columns(
        title=pl.lit(""), text=pl.lit(""), categories=pl.lit("")
    )
    catalogue = build_catalogue(items)
    histories = build_histories(train, catalogue, KEY, max_events=99, tie_seed=0)
    targets = dict(zip(histories.users, targets_of(held_out, histories, catalogue, KEY).tolist(), strict=True))
    assert targets == {KEY.pseudonym("ann"): 4, KEY.pseudonym("bob"): 0, KEY.pseudonym("eve"): -1}
    with pytest.raises(DataError, match="in the catalogue"):
        targets_of(held_out, histories, build_catalogue(items.head(2)), KEY)


# --- evaluate -------------------------------------------------------------------------------------


def test_the_target_is_ranked_among_the_unseen_items() -> None:
    scores = [[9, 8, 7, 6, 5], [1, 2, 3, 4, 4]]
    found = evaluate(table(scores), histories_of([0, 1], [2, 2]), np.array([4, 3], dtype=np.int32), k=2)
    assert found.ranks.tolist() == [2, 0.5]
    assert found.candidates.tolist() == [3, 4]
    assert found.top.tolist() == [[2, 3], [3, 4]]
    assert found.users.tolist() == [0, 1]


def test_users_without_a_target_are_not_evaluated() -> None:
    scores = [[1, 2, 3], [3, 2, 1], [1, 3, 2]]
    targets = np.array([1, -1, 2], dtype=np.int32)
    found = evaluate(table(scores), histories_of([0], [0], [0]), targets, batch=1)
    assert found.users.tolist() == [0, 2]
    assert found.ranks.tolist() == [1, 1]


def test_nobody_to_evaluate_gives_an_empty_evaluation_that_has_no_metrics() -> None:
    found = evaluate(table([[1, 2]]), histories_of([0]), np.array([-1], dtype=np.int32))
    assert len(found) == 0
    with pytest.raises(EmptyHistoryError):
        found.metrics(np.array([1, 1]))


def test_top_lists_break_ties_by_row_and_leave_missing_places_empty() -> None:
    scores = [[1, 5, 5, 5, 7]]
    targets = np.array([2], dtype=np.int32)
    assert evaluate(table(scores), histories_of([0]), targets, k=2).top.tolist() == [[4, 1]]
    assert evaluate(table(scores), histories_of([0]), targets, k=6).top.tolist() == [[4, 1, 2, 3, -1, -1]]


def test_metrics_have_the_names_of_the_contract() -> None:
    rng = np.random.default_rng(0)
    histories = histories_of(*([k % 5] for k in range(40)))
    targets = rng.integers(5, 30, size=40).astype(np.int32)
    found = evaluate(table(rng.normal(size=(40, 30)).tolist()), histories, targets)
    summary = found.metrics(np.bincount(histories.items, minlength=30))
    names = ["ndcg@10", "hr@10", "mrr", "coverage@10", "novelty@10", "long_tail@10", "users"]
    assert list(summary) == names
    assert summary["users"] == 40
    assert summary["hr@10"] == np.mean(found.ranks < 10)


def test_a_target_that_the_user_has_seen_raises() -> None:
    with pytest.raises(RankingError, match="seen before"):
        evaluate(table([[1, 2, 3]]), histories_of([0, 1]), np.array([1], dtype=np.int32))


def test_the_scorer_gets_no_more_than_histories_without_the_target() -> None:
    """The canary: a scorer that would win by a leak (what the history holds comes first) wins nothing."""

    def copies_the_history(histories: Histories, users: NDArray[np.int64]) -> NDArray[np.float32]:
        scores = np.zeros((len(users), 26), dtype=np.float32)
        for row, user in enumerate(users):
            scores[row, histories[int(user)].items] = 1
        return scores

    letters = "abcdefghijklmnopqrstuvwxyz"
    rng = np.random.default_rng(0)
    users = {f"user {k}": "".join(rng.choice(list(letters), size=8)) for k in range(50)}
    rows = [row for user, items in users.items() for row in visits(user, items)]
    viewed_before = [(user, items[-1], 0, "view") for user, items in users.items()]
    catalogue = build_catalogue(pl.DataFrame({"item_id": list(letters), "title": "", "text": "", "categories": ""}))
    train, held_out = hold_out(frame(*rows, *viewed_before), tie_seed=0)
    histories = build_histories(train, catalogue, KEY, max_events=99, tie_seed=0)
    targets = targets_of(held_out, histories, catalogue, KEY)
    found = evaluate(copies_the_history, histories, targets)
    assert (found.ranks == (found.candidates - 1) / 2).all()

    leaking = build_histories(frame(*rows), catalogue, KEY, max_events=99, tie_seed=0)
    with pytest.raises(RankingError, match="seen before"):
        evaluate(copies_the_history, leaking, targets)


def test_a_constant_scorer_is_in_the_middle_and_never_in_the_first_ten() -> None:
    users, items = 200, 100
    histories = histories_of(*([0] for _ in range(users)))
    targets = np.random.default_rng(0).integers(1, items, size=users).astype(np.int32)
    found = evaluate(lambda _, chosen: np.ones((len(chosen), items)), histories, targets)
    assert (found.ranks == (items - 2) / 2).all()
    assert found.metrics(np.ones(items, dtype=np.int64))["hr@10"] == 0


def test_a_random_scorer_is_at_chance() -> None:
    users, items = 20_000, 101  # 100 candidates
    rng = np.random.default_rng(0)
    histories = histories_of(*([0] for _ in range(users)))
    targets = rng.integers(1, items, size=users).astype(np.int32)
    found = evaluate(lambda _, chosen: rng.random((len(chosen), items), dtype=np.float32), histories, targets)
    # Standard deviation sqrt(0.1 * 0.9 / 20,000) = 0.0021; 4 of them: fails by chance in 1 of 16,000 seeds.
    assert found.metrics(np.ones(items, dtype=np.int64))["hr@10"] == pytest.approx(0.1, abs=0.0085)


@pytest.mark.parametrize(
    ("scores", "match"),
    [
        ([[1.0, np.nan, 2.0]], "finite"),
        ([[1.0, 2.0]], "items=3 or more"),
        ([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], "users=1"),
        ([1.0], "users=1"),
    ],
)
def test_scores_that_cannot_be_ranked_raise(scores: list[list[float]], match: str) -> None:
    with pytest.raises(RankingError, match=match):
        evaluate(lambda *_: np.array(scores), histories_of([0]), np.array([2], dtype=np.int32))


def test_scores_for_fewer_items_than_a_history_has_raise() -> None:
    with pytest.raises(RankingError, match="items=6 or more"):
        evaluate(lambda *_: np.array([[1.0, 2.0, 3.0]]), histories_of([5]), np.array([2], dtype=np.int32))


def test_arguments_out_of_range_raise() -> None:
    histories, targets = histories_of([0]), np.array([1], dtype=np.int32)
    with pytest.raises(DataError, match="users=1"):
        evaluate(table([[1, 2]]), histories, np.array([1, 1], dtype=np.int32))
    with pytest.raises(ConfigError, match="k=0"):
        evaluate(table([[1, 2]]), histories, targets, k=0)
    with pytest.raises(ConfigError, match="batch=0"):
        evaluate(table([[1, 2]]), histories, targets, batch=0)


# --- pooling --------------------------------------------------------------------------------------


def _evaluation(*ranks: float, k: int = 10) -> Evaluation:
    n = len(ranks)
    users = np.arange(n)
    top = np.zeros((n, k), dtype=np.int32)
    return Evaluation(users, users.astype(np.int32), np.array(ranks), np.full(n, 50), top)


def test_pooled_users_weigh_the_same() -> None:
    pooled = merge([_evaluation(0), _evaluation(99, 99, 99)])
    assert pooled.metrics(np.ones(9, dtype=np.int64))["ndcg@10"] == 0.25


def test_evaluations_that_do_not_fit_together_raise() -> None:
    with pytest.raises(EmptyHistoryError, match="at least one evaluation"):
        merge([])
    with pytest.raises(ConfigError, match=r"k=\[5, 10\]"):
        merge([_evaluation(0), _evaluation(0, k=5)])


# --- cold items -----------------------------------------------------------------------------------


def test_cold_users_are_ranked_among_all_and_among_cold_items() -> None:
    histories = histories_of([0], [0], [0])
    counts = np.array([9, 9, 9, 2, 2, 0])
    scores = [[0, 9, 8, 5, 6, 4], [0, 9, 8, 7, 6, 5], [0] * 6]
    targets = np.array([3, 1, -1], dtype=np.int32)  # item 3 is cold, item 1 is not, the last user has no target
    cold = evaluate_cold(table(scores), histories, targets, counts, threshold=2)
    assert cold.overall.users.tolist() == [0]
    assert cold.overall.ranks.tolist() == [3]
    assert cold.among_cold.ranks.tolist() == [1]
    assert cold.among_cold.candidates.tolist() == [3]
    summary = cold.metrics(counts)
    assert summary["among_cold_auc"] == 0.5
    assert summary["among_cold_ndcg@10"] == pytest.approx(1 / np.log2(3))
    assert (summary["users"], summary["threshold"]) == (1, 2)
    assert summary["ndcg@10"] == pytest.approx(1 / np.log2(5))


def test_without_cold_users_there_are_no_figures() -> None:
    counts = np.full(3, 100)
    cold = evaluate_cold(table([[1, 2, 3]]), histories_of([0]), np.array([1], dtype=np.int32), counts)
    assert cold.metrics(counts) == {"users": 0, "threshold": 5}


def test_cold_evaluations_of_partners_are_pooled() -> None:
    counts = np.array([9, 1, 1])
    one = evaluate_cold(table([[0, 1, 2]]), histories_of([0]), np.array([1], dtype=np.int32), counts)
    none = evaluate_cold(table([[0, 1, 2]]), histories_of([0]), np.array([-1], dtype=np.int32), counts)
    assert merge_cold([none, one, one]).metrics(counts)["users"] == 2
    with pytest.raises(ConfigError, match=r"thresholds=\[3, 5\]"):
        merge_cold([one, replace(one, threshold=3)])
    with pytest.raises(EmptyHistoryError):
        merge_cold([])


# --- bootstrap ------------------------------------------------------------------------------------


def test_the_interval_of_a_real_difference_excludes_zero() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 50, size=2000).astype(float)
    difference, low, high = paired_bootstrap(np.maximum(base - 3, 0), base, seed=1)
    assert 0 < low < difference < high
    assert paired_bootstrap(np.maximum(base - 3, 0), base, seed=1) == (difference, low, high)


def test_the_interval_of_two_like_scorers_includes_zero_nineteen_times_in_twenty() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        a, b = rng.integers(0, 50, size=(2, 400)).astype(float)
        _, low, high = paired_bootstrap(a, b, seed=trial, resamples=200)
        covered += low <= 0 <= high
    # 190 of 200 expected, standard deviation 3.1: fails by chance in about 1 of 1,000 seeds; fixed here.
    assert 180 <= covered <= 199


def test_the_interval_is_as_wide_as_the_normal_one() -> None:
    ranks = np.random.default_rng(0).integers(0, 20, size=4000).astype(float)
    gain = np.where(ranks < 10, 1 / np.log2(ranks + 2), 0)
    difference, low, high = paired_bootstrap(ranks, np.full(4000, 99.0), seed=0)
    assert difference == pytest.approx(gain.mean())
    assert high - low == pytest.approx(2 * 1.96 * gain.std() / np.sqrt(4000), rel=0.1)


def test_ranks_of_different_users_cannot_be_paired() -> None:
    with pytest.raises(DataError, match="same users"):
        paired_bootstrap(np.zeros(3), np.zeros(4), seed=0)


def test_the_interval_of_a_mean_lies_around_it_and_needs_somebody() -> None:
    values = np.random.default_rng(0).random(500)
    mean, low, high = bootstrap(values, 1)
    assert mean == pytest.approx(values.mean())
    assert low < mean < high
    # 1.96 standard errors of a uniform number: 0.0253 to each side.
    assert high - low == pytest.approx(0.0506, rel=0.2)
    with pytest.raises(EmptyHistoryError, match="at least one user"):
        bootstrap(np.zeros(0), 1)
