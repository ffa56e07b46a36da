"""Metrics against figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from shared import metrics
from shared.errors import EmptyHistoryError, RankingError

ALL = np.ones((1, 4), dtype=bool)


def _rank(scores: list[float], target: int, candidates: np.ndarray = ALL) -> float:
    return float(metrics.fractional_ranks(np.array([scores]), np.array([target]), candidates)[0])


def test_the_best_score_has_rank_zero() -> None:
    assert _rank([0.1, 0.9, 0.5, 0.2], 1) == 0
    assert _rank([0.1, 0.9, 0.5, 0.2], 0) == 3


def test_an_equal_score_counts_half() -> None:
    assert _rank([0.9, 0.5, 0.5, 0.1], 1) == 1.5
    assert _rank([0.9, 0.5, 0.5, 0.1], 2) == 1.5
    assert _rank([1, 1, 1, 1], 3) == 1.5


def test_items_that_are_no_candidates_do_not_count() -> None:
    candidates = np.array([[False, True, True, False]])
    assert _rank([9, 5, 5, 5], 1, candidates) == 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_raises_even_where_it_is_no_candidate(bad: float) -> None:
    with pytest.raises(RankingError, match="finite scores"):
        _rank([bad, 0.5, 0.1, 0.2], 1, np.array([[False, True, True, True]]))


def test_a_target_that_was_seen_raises() -> None:
    with pytest.raises(RankingError, match="among its user's candidates"):
        _rank([1, 2, 3, 4], 0, np.array([[False, True, True, True]]))


def test_ndcg_is_the_discount_of_the_place() -> None:
    assert metrics.ndcg(np.array([0.0])) == 1
    assert metrics.ndcg(np.array([1.0])) == pytest.approx(1 / np.log2(3))
    assert metrics.ndcg(np.array([9.0])) == pytest.approx(1 / np.log2(11))
    assert metrics.ndcg(np.array([10.0])) == 0
    assert metrics.ndcg(np.array([0.0, 10.0, 2.0])) == pytest.approx((1 + 0 + 0.5) / 3)


def test_a_fractional_rank_is_used_as_it_stands() -> None:
    assert metrics.ndcg(np.array([1.5])) == pytest.approx(1 / np.log2(3.5))
    assert metrics.ndcg(np.array([9.5])) == 0, "between the tenth and the eleventh place"
    assert metrics.hit_rate(np.array([8.5, 9.0, 9.5])) == pytest.approx(2 / 3)


def test_hit_rate_and_reciprocal_rank() -> None:
    ranks = np.array([0.0, 1.0, 3.0, 19.0])
    assert metrics.hit_rate(ranks, 10) == 0.75
    assert metrics.hit_rate(ranks, 1) == 0.25
    assert metrics.mean_reciprocal_rank(ranks) == pytest.approx((1 + 1 / 2 + 1 / 4 + 1 / 20) / 4)


def test_auc_is_the_share_of_others_below() -> None:
    assert metrics.auc(np.array([0.0]), np.array([5])) == 1
    assert metrics.auc(np.array([4.0]), np.array([5])) == 0
    assert metrics.auc(np.array([2.0, 1.0]), np.array([5, 5])) == pytest.approx((0.5 + 0.75) / 2)
    assert metrics.auc(np.array([0.0]), np.array([1])) == 0.5, "alone: nothing was told apart"


def test_coverage_counts_each_listed_item_once() -> None:
    assert metrics.coverage(np.array([[0, 1], [1, 2], [2, -1]]), 6) == 0.5


def test_novelty_is_the_self_information_of_the_listed_items() -> None:
    counts = np.array([7, 3, 1, 1])  # with one more each: 8, 4, 2, 2 of 16
    assert metrics.novelty(np.array([[0]]), counts) == pytest.approx(1)
    assert metrics.novelty(np.array([[2, 3]]), counts) == pytest.approx(3)
    assert metrics.novelty(np.array([[0, 1], [2, -1]]), counts) == pytest.approx((1 + 2 + 3) / 3)


def test_the_long_tail_is_what_four_fifths_of_the_interactions_leave() -> None:
    counts = np.array([10, 60, 20, 5, 5])  # 60 + 20 reach 80 of 100
    assert metrics.long_tail_share(np.array([[1, 2]]), counts) == 0
    assert metrics.long_tail_share(np.array([[0, 1], [3, 4]]), counts) == 0.75


def test_equally_popular_items_are_on_the_same_side_of_the_head() -> None:
    assert metrics.long_tail_share(np.array([[0, 1, 2, 3]]), np.array([5, 5, 5, 5])) == 0


def test_no_ranks_and_no_lists_raise() -> None:
    nothing = np.zeros(0)
    for metric in (metrics.ndcg, metrics.hit_rate, metrics.mean_reciprocal_rank):
        with pytest.raises(EmptyHistoryError, match="at least one evaluated user"):
            metric(nothing)
    with pytest.raises(EmptyHistoryError, match="at least one listed item"):
        metrics.coverage(np.full((2, 3), -1), 5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -0.5])
def test_an_impossible_rank_raises(bad: float) -> None:
    with pytest.raises(RankingError, match="finite ranks"):
        metrics.mean_reciprocal_rank(np.array([0.0, bad]))
