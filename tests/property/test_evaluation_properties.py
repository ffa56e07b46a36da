"""What must hold of evaluation and partition for any data."""

from __future__ import annotations

import numpy as np
import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from client.data.histories import build_histories, in_time_order
from client.data.pseudonyms import PseudonymKey
from shared import metrics
from shared.catalogue import build_catalogue
from shared.schema import Histories
from simulations.baselines import BASELINES, item_counts
from simulations.evaluation import evaluate, hold_out, targets_of
from simulations.partition import partition

KEY = PseudonymKey.derive(0)
LETTERS = "abcdefgh"
ITEMS = pl.DataFrame(
    {
        "item_id": list(LETTERS),
        "title": list(LETTERS),
        "text": "",
        "categories": [f"even, {c}" if k % 2 else f"odd, {c}" for k, c in enumerate(LETTERS)],
    }
)
CATALOGUE = build_catalogue(ITEMS)

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["ann", "bob", "eve", "joe"]),
        st.sampled_from(LETTERS),
        st.integers(0, 5),
        st.sampled_from(["view", "purchase"]),
    ),
    min_size=1,
    max_size=40,
)
"""Few users, items and moments: ties and repetitions everywhere."""


def _frame(events: list[tuple[str, str, int, str]]) -> pl.DataFrame:
    frame = pl.DataFrame(events, schema=["user_id", "item_id", "timestamp", "event"], orient="row")
    return frame.with_columns(rating=pl.lit(None, dtype=pl.Float64), review=pl.lit(""))


def _run(interactions: pl.DataFrame, which: str) -> list[object]:
    """Everything that evaluation says of a data set, for each baseline."""
    train, held_out = hold_out(interactions, tie_seed=3, which=which)  # type: ignore[arg-type]
    if held_out.is_empty():
        return []
    histories = build_histories(train, CATALOGUE, KEY, max_events=100, tie_seed=3)
    targets, counts = (
        targets_of(held_out, histories, CATALOGUE, KEY),
        item_counts([histories], len(CATALOGUE)),
    )
    return [
        evaluate(fit([histories], len(CATALOGUE)), histories, targets).metrics(counts) for fit in BASELINES.values()
    ]


@settings(deadline=None)
@given(EVENTS, st.sampled_from(["last", "last_but_one"]))
def test_the_target_is_the_last_item_and_in_no_event_that_is_left(
    events: list[tuple[str, str, int, str]], which: str
) -> None:
    interactions = _frame(events)
    train, held_out = hold_out(interactions, tie_seed=3, which=which)  # type: ignore[arg-type]
    left = set(train.select("user_id", "item_id").rows())
    ordered = in_time_order(interactions, 3)
    for user, target in held_out.rows():
        own = ordered.filter(pl.col("user_id") == user).get_column("item_id").to_list()
        assert len(own) >= 5
        assert (user, target) not in left
        assert any(name == user for name, _ in left), "something is left to rank from"
        if which == "last_but_one":
            assert (user, own[-1]) not in left
            own = [item for item in own if item != own[-1]]
        assert own[-1] == target
    if which == "last":
        gone = {tuple(row) for row in held_out.rows()}
        assert left | gone == set(interactions.select("user_id", "item_id").rows())
        untouched = ~pl.col("user_id").is_in(held_out.get_column("user_id").to_list())
        assert train.filter(untouched).height == interactions.filter(untouched).height


@settings(max_examples=40, deadline=None)
@given(EVENTS, st.randoms(use_true_random=False), st.sampled_from(["last", "last_but_one"]))
def test_shuffling_the_rows_changes_no_metric(
    events: list[tuple[str, str, int, str]], random: object, which: str
) -> None:
    shuffled = list(events)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert _run(_frame(events), which) == _run(_frame(shuffled), which)


@st.composite
def _problems(draw: st.DrawFn) -> tuple[NDArray[np.float64], Histories, NDArray[np.int32]]:
    """Scores with many ties, histories with repetitions, unseen targets; some users have none."""
    users, items = draw(st.integers(1, 6)), draw(st.integers(2, 9))
    row = st.lists(st.integers(0, 3), min_size=items, max_size=items)
    scores = np.array(draw(st.lists(row, min_size=users, max_size=users)), dtype=float)
    seen = [draw(st.lists(st.integers(0, items - 2), max_size=8)) for _ in range(users)]
    targets = [draw(st.sampled_from([-1, *(item for item in range(items) if item not in own)])) for own in seen]
    flat = np.array([item for own in seen for item in own], dtype=np.int32)
    n = len(flat)
    histories = Histories(
        users=tuple(map(str, range(users))),
        offsets=np.cumsum([0, *map(len, seen)]),
        items=flat,
        timestamps=np.arange(n),
        events=np.zeros(n, dtype=np.int8),
        ratings=np.zeros(n, dtype=np.float32),
        reviews=np.full(n, -1, dtype=np.int32),
    )
    return scores, histories, np.array(targets, dtype=np.int32)


@settings(deadline=None)
@given(_problems(), st.integers(1, 4), st.integers(1, 12))
def test_evaluation_agrees_with_a_loop_over_users(
    problem: tuple[NDArray[np.float64], Histories, NDArray[np.int32]], batch: int, k: int
) -> None:
    scores, histories, targets = problem
    found = evaluate(lambda _, users: scores[users], histories, targets, batch=batch, k=k)
    evaluated = [user for user in range(len(histories)) if targets[user] >= 0]
    assert found.users.tolist() == evaluated
    for place, user in enumerate(evaluated):
        candidates = [item for item in range(scores.shape[1]) if item not in histories[user].items]
        own = scores[user, targets[user]]
        better = sum(scores[user, item] > own for item in candidates)
        equal = sum(scores[user, item] == own for item in candidates) - 1
        assert found.ranks[place] == better + equal / 2
        assert found.candidates[place] == len(candidates)
        best = sorted(candidates, key=lambda item: (-scores[user, item], item))[:k]
        assert found.top[place].tolist() == best + [-1] * (k - len(best))


@settings(deadline=None)
@given(st.lists(st.integers(0, 60).map(lambda halves: halves / 2), min_size=1, max_size=30), st.integers(1, 20))
def test_accuracy_metrics_are_shares_and_a_better_rank_never_hurts(ranks: list[float], k: int) -> None:
    before = np.array(ranks)
    after = np.maximum(before - 1, 0)
    for metric in (
        lambda r: metrics.ndcg(r, k),
        lambda r: metrics.hit_rate(r, k),
        metrics.mean_reciprocal_rank,
    ):
        assert 0 <= metric(before) <= metric(after) <= 1
    assert metrics.ndcg(before, k) <= metrics.hit_rate(before, k)


@settings(max_examples=30, deadline=None)
@given(EVENTS, st.randoms(use_true_random=False), st.sampled_from(["iid", "dirichlet"]), st.integers(0, 5))
def test_shuffling_the_rows_moves_no_user(
    events: list[tuple[str, str, int, str]], random: object, method: str, seed: int
) -> None:
    shuffled = list(events)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert _placed(events, method, seed) == _placed(shuffled, method, seed)


def _placed(events: list[tuple[str, str, int, str]], method: str, seed: int) -> set[tuple[str, int]] | str:
    from shared.errors import ConfigError

    try:
        placed = partition(_frame(events), ITEMS, partners=2, method=method, seed=seed)  # type: ignore[arg-type]
    except ConfigError as error:  # all users at one partner: then in any order
        return str(error)
    return set(placed.select("user_id", "partner").rows())
