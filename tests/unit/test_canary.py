"""The canary finds each leak that was planted in an evaluator, and says nothing of the honest one."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from shared import metrics
from shared.errors import RankingError
from shared.schema import Histories
from simulations.benchmarks.quality.canary import (
    ALARM,
    CHANCE,
    HELD,
    ITEMS,
    USERS,
    canary_interactions,
    check_evaluator,
)
from simulations.evaluation import Evaluation, Scorer, evaluate, hold_out, seen_pairs

Candidates = Callable[[Histories, NDArray[np.int64], NDArray[np.int32]], NDArray[np.bool_]]
PURCHASE = pl.col("event") == "purchase"


def evaluator_over(candidates_of: Candidates) -> Callable[[Scorer, Histories, NDArray[np.int32]], Evaluation]:
    """An evaluator that ranks among the candidates of its own choice, shape (users, items)."""

    def ranking(scorer: Scorer, histories: Histories, targets: NDArray[np.int32]) -> Evaluation:
        users = np.flatnonzero(targets >= 0)
        wanted = targets[users]
        candidates = candidates_of(histories, users, wanted)
        candidates[np.arange(len(users)), wanted] = True
        ranks = metrics.fractional_ranks(scorer(histories, users), wanted, candidates)
        return Evaluation(users, wanted, ranks, candidates.sum(axis=1), np.zeros((len(users), 10), np.int32))

    return ranking


def unseen(histories: Histories, users: NDArray[np.int64], wanted: NDArray[np.int32]) -> NDArray[np.bool_]:
    candidates = np.ones((len(users), ITEMS), dtype=bool)
    candidates[seen_pairs(histories, users)] = False
    return candidates


def everything(histories: Histories, users: NDArray[np.int64], wanted: NDArray[np.int32]) -> NDArray[np.bool_]:
    return np.ones((len(users), ITEMS), dtype=bool)


def shared_negatives(histories: Histories, users: NDArray[np.int64], wanted: NDArray[np.int32]) -> NDArray[np.bool_]:
    sampled = np.zeros(ITEMS, dtype=bool)
    sampled[np.random.default_rng(1).choice(ITEMS, 50, replace=False)] = True
    return unseen(histories, users, wanted) & sampled


def own_negatives(histories: Histories, users: NDArray[np.int64], wanted: NDArray[np.int32]) -> NDArray[np.bool_]:
    """A third of the catalogue, drawn for each user and call."""
    return unseen(histories, users, wanted) & (np.random.default_rng().random((len(users), ITEMS)) < 1 / 3)


def last_in_the_file(interactions: pl.DataFrame, *, tie_seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    ordered = interactions.sort("user_id", "timestamp", maintain_order=True)
    held_out = ordered.group_by("user_id", maintain_order=True).agg(pl.col("item_id").last())
    return ordered.join(held_out, on=["user_id", "item_id"], how="anti"), held_out


def purchase_alone_leaves(interactions: pl.DataFrame, *, tie_seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    held_out = hold_out(interactions, tie_seed=tie_seed)[1]
    purchases = held_out.with_columns(event=pl.lit("purchase"))
    return interactions.join(purchases, on=["user_id", "item_id", "event"], how="anti"), held_out


def nothing_leaves(interactions: pl.DataFrame, *, tie_seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    return interactions, hold_out(interactions, tie_seed=tie_seed)[1]


def only_some(interactions: pl.DataFrame, *, tie_seed: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    train, held_out = hold_out(interactions, tie_seed=tie_seed)
    return train, held_out.head(USERS - 1)


def generous_ties(scorer: Scorer, histories: Histories, targets: NDArray[np.int32]) -> Evaluation:
    def nudged(own: Histories, users: NDArray[np.int64]) -> NDArray[np.float64]:
        scores = np.array(scorer(own, users), dtype=np.float64)
        scores[np.arange(len(users)), targets[users]] += 1e-9
        return scores

    return evaluate(nudged, histories, targets)


def rate_found(message: str) -> float:
    return float(message.split("got ")[1].split(" ", maxsplit=1)[0])


def test_an_honest_evaluator_is_at_chance_under_every_probe() -> None:
    canary = check_evaluator()
    assert set(canary.hit_rates) == {"file order", "seen items", "shared negatives", "ties"}
    assert pytest.approx(10 / 301) == CHANCE
    # 0.033 and 4.5 standard deviations of 400 users: fails by chance in 1 of about 100,000 seeds; this one is fixed.
    assert all(rate < 0.074 for rate in canary.hit_rates.values())
    assert canary.alarm == ALARM


def test_ties_in_the_order_of_the_file_are_found() -> None:
    with pytest.raises(RankingError, match="leak=file order") as found:
        check_evaluator(hold_out=last_in_the_file)
    assert rate_found(str(found.value)) > 0.9


def test_negatives_that_all_users_share_are_found() -> None:
    with pytest.raises(RankingError, match="leak=shared negatives") as found:
        check_evaluator(evaluate=evaluator_over(shared_negatives))
    assert rate_found(str(found.value)) > 0.8


@pytest.mark.parametrize("leaky", [purchase_alone_leaves, nothing_leaves])
def test_targets_that_were_seen_in_training_are_found(leaky: Callable[..., tuple[pl.DataFrame, pl.DataFrame]]) -> None:
    with pytest.raises(RankingError, match="leak=seen items") as found:
        check_evaluator(hold_out=leaky, evaluate=evaluator_over(everything))
    assert rate_found(str(found.value)) == 1


def test_an_honest_ranking_refuses_targets_that_were_seen_in_training() -> None:
    with pytest.raises(RankingError, match="the target was seen before"):
        check_evaluator(hold_out=purchase_alone_leaves)


def test_ties_in_favour_of_the_target_are_found() -> None:
    with pytest.raises(RankingError, match="leak=ties") as found:
        check_evaluator(evaluate=generous_ties)
    assert rate_found(str(found.value)) == 1


@pytest.mark.parametrize("candidates", [own_negatives, everything])
def test_any_other_choice_of_candidates_is_found(candidates: Candidates) -> None:
    with pytest.raises(RankingError, match=r"all their unseen items|HR@10 up to"):
        check_evaluator(evaluate=evaluator_over(candidates))


def test_users_who_are_left_out_are_found() -> None:
    with pytest.raises(RankingError, match="got users=399"):
        check_evaluator(hold_out=only_some)


def test_every_item_of_the_canary_is_held_by_equally_many_and_no_row_is_out_of_order() -> None:
    data = canary_interactions(np.random.default_rng(0))
    bought = data.filter(PURCHASE)
    assert set(bought.get_column("item_id").value_counts().get_column("count")) == {USERS * HELD // ITEMS}
    assert bought.equals(bought.sort("user_id", "item_id"))
    assert data.filter(~PURCHASE).select("user_id", "item_id").equals(bought.select("user_id", "item_id"))
