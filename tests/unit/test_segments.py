"""Rare items, little history, no history: what is read, what is a candidate, and who is asked."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
from numpy.typing import NDArray

from shared.schema import Catalogue, Histories
from simulations.evaluation import Evaluation, Scorer
from simulations.segments import (
    SHARED_BY,
    Part,
    blind,
    category_popularity,
    few_events,
    measure_segments,
    query_of_items,
    query_only,
    rank_all,
    sampled_users,
    selected,
    tail_items,
    with_target_in,
)

if TYPE_CHECKING:
    from conftest import HistoriesOf

ITEMS = 40


def catalogue(*categories: str) -> Catalogue:
    n = len(categories)
    return Catalogue(tuple(f"i{k:03d}" for k in range(n)), ("",) * n, ("",) * n, categories)


def targets(*rows: int) -> NDArray[np.int32]:
    return np.array(rows, dtype=np.int32)


def descending(histories: Histories, users: NDArray[np.int64]) -> NDArray[np.float32]:
    """The first rows of the catalogue first, for everybody."""
    return np.tile(-np.arange(ITEMS, dtype=np.float32), (len(users), 1))


# --- long tail ------------------------------------------------------------------------------------


def test_the_tail_is_the_least_popular_part_with_all_that_tie() -> None:
    assert tail_items(np.array([9, 1, 5, 2, 3])).tolist() == [False, True, True, True, True]
    assert tail_items(np.array([9, 5, 5, 5, 1]), share=0.4).tolist() == [False, True, True, True, True]
    assert tail_items(np.array([3, 3, 3])).all()


def test_the_order_of_equally_popular_items_does_not_matter() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 4, size=50)
    order = rng.permutation(50)
    assert (tail_items(counts)[order] == tail_items(counts[order])).all()


def test_the_long_tail_keeps_the_ranks_of_the_whole(histories_of: HistoriesOf) -> None:
    parts = [Part(histories_of([[0], [1], [2]]), targets(5, 6, 7))]
    whole = rank_all(lambda *_: descending, parts)
    only = np.zeros(ITEMS, dtype=bool)
    only[[5, 7]] = True
    rare = with_target_in(whole, only)
    assert rare.targets.tolist() == [5, 7]
    assert rare.ranks.tolist() == whole.ranks[[0, 2]].tolist()


# --- few events -----------------------------------------------------------------------------------


def test_only_the_newest_events_are_read_and_none_that_was_met_is_a_candidate(histories_of: HistoriesOf) -> None:
    read: list[int] = []

    def scorer_over(partner: int, histories: Histories) -> Scorer:
        def scores(_: Histories, users: NDArray[np.int64]) -> NDArray[np.float32]:
            read.extend(len(histories[int(k)]) for k in users)
            assert all(histories[int(k)].items[-1] == 9 for k in users)
            return descending(histories, users)

        return scores

    people = [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]] * 60
    found = few_events(scorer_over, [Part(histories_of(people), targets(*[10] * 60))], seed=0)
    assert found is not None
    assert set(read) == {1, 2, 3, 4}
    assert (found.ranks == 0).all(), "rows 0 to 8 were cut off, and are still no answer"
    assert (found.candidates == ITEMS - 10).all()


def test_a_history_that_is_cut_brings_only_the_reviews_of_its_events(histories_of: HistoriesOf) -> None:
    from dataclasses import replace

    whole = replace(
        histories_of([[0, 1], [2, 3], [4]]),
        reviews=np.array([0, 1, -1, 2, 1], dtype=np.int32),
        review_texts=("old", "twice", "last"),
    )
    cut = selected(whole, np.array([0, 1]), newest=np.array([1, 5]))
    assert cut.users == ("u000", "u001")
    assert (cut[0].items.tolist(), cut[1].items.tolist()) == ([1], [2, 3])
    assert [cut.review_texts[k] if k >= 0 else "" for k in cut.reviews] == ["twice", "", "last"]
    assert cut.review_texts == ("twice", "last")


def test_the_sample_is_of_people_and_not_of_rows_or_partners(histories_of: HistoriesOf) -> None:
    wanted = targets(*[1] * 30)
    together = histories_of([[0]] * 30)
    one = [together.users[k] for k in sampled_users([Part(together, wanted)], 7, most=10)[0]]
    halves = [Part(selected(together, np.arange(a, a + 15)), wanted[:15]) for a in (0, 15)]
    two = [halves[k].histories.users[n] for k, users in sampled_users(halves, 7, most=10).items() for n in users]
    assert sorted(one) == sorted(two)
    assert len(one) == 10
    assert sorted(one) != [together.users[k] for k in sampled_users([Part(together, wanted)], 8, most=10)[0]]


def test_partners_without_an_evaluated_user_are_not_asked(histories_of: HistoriesOf) -> None:
    nobody = Part(histories_of([[0]]), targets(-1))
    assert sampled_users([nobody, Part(histories_of([[0]]), targets(1))], 0).keys() == {1}
    assert few_events(lambda *_: descending, [nobody], seed=0) is None


# --- query only -----------------------------------------------------------------------------------


def test_a_query_names_the_rarest_category_that_gives_no_item_away() -> None:
    many, few = ["Drama"] * (SHARED_BY + 5), ["Drama, War"] * SHARED_BY
    told = query_of_items(catalogue(*many, *few, "Drama | Heist", "Heist", ""))
    assert told[0] == "something in the category Drama"
    assert told[SHARED_BY + 5] == "something in the category War"
    deep = query_of_items(catalogue(*[f"Games > Kind {k}" for k in range(SHARED_BY)]))
    assert set(deep) == {"something in the category Games"}
    assert told[-3:] == ["something in the category Drama", "", ""]


def test_a_query_is_told_of_the_category_and_of_nothing_else_of_the_item(histories_of: HistoriesOf) -> None:
    asked: list[str] = []

    def scores_of(texts: list[str]) -> NDArray[np.float32]:
        asked.extend(texts)
        return np.tile(-np.arange(ITEMS, dtype=np.float32), (len(texts), 1))

    shop = catalogue(*["Tea"] * (ITEMS // 2), *["Cocoa"] * (ITEMS // 2))
    parts = [Part(histories_of([[0], [1], [2]]), targets(3, 30, 30))]
    found = query_only(scores_of, shop, parts, seed=0)  # type: ignore[arg-type]
    assert found is not None
    assert asked == ["something in the category Cocoa", "something in the category Tea"]
    # Row 3 is behind 0, 1, 2, of which the first user has met one; row 30 behind 29 others.
    assert sorted(found.ranks) == [2, 29, 29]


def test_without_categories_there_is_no_segment(histories_of: HistoriesOf) -> None:
    parts = [Part(histories_of([[0]]), targets(3))]
    assert query_only(blind(np.ones(ITEMS, dtype=np.int64)), catalogue(*[""] * ITEMS), parts, seed=0) is None
    shop = catalogue(*["Tea"] * (ITEMS - 1), "")
    parts = [Part(histories_of([[0]]), targets(ITEMS - 1))]
    assert query_only(blind(np.ones(ITEMS, dtype=np.int64)), shop, parts, seed=0) is None


def test_the_popular_of_a_category_come_before_all_others() -> None:
    counts = np.arange(ITEMS)
    shop = catalogue(*["Tea"] * (ITEMS // 2), *["Cocoa, Tea"] * (ITEMS // 4), *["Cocoa"] * (ITEMS // 4))
    scores = category_popularity(shop, counts)(["something in the category Tea"])[0]
    assert np.argsort(-scores)[:3].tolist() == [29, 28, 27]
    assert np.argsort(-scores)[30] == ITEMS - 1


# --- all of them ----------------------------------------------------------------------------------


def test_segments_are_told_by_method_and_left_out_without_users(histories_of: HistoriesOf) -> None:
    parts = [Part(histories_of([[0], [1], [2]]), targets(3, 4, 5))]
    counts = np.array([9] * 8 + [0] * (ITEMS - 8))  # all targets are popular
    ranked: dict[str, Evaluation] = {"federated": rank_all(lambda *_: descending, parts)}
    found = measure_segments(
        ranked,
        {"federated": lambda *_: descending},
        {"popularity": blind(counts)},
        catalogue(*["Tea"] * ITEMS),
        parts,
        counts,
        seed=0,
    )
    assert set(found) == {"few_events", "query_only"}
    assert found["few_events"]["federated"]["users"] == 3
    assert found["query_only"]["popularity"]["hr@10"] == 1


def test_what_is_blind_to_history_ranks_alike_in_all_segments(histories_of: HistoriesOf) -> None:
    """A cut history changes what is read, never who is ranked among what."""
    rng = np.random.default_rng(3)
    people = [rng.permutation(ITEMS - 5)[: rng.integers(5, 20)].tolist() for _ in range(50)]
    parts = [Part(histories_of(people), targets(*rng.integers(ITEMS - 5, ITEMS, size=50)))]
    whole, short = rank_all(lambda *_: descending, parts), few_events(lambda *_: descending, parts, seed=0)
    assert short is not None
    assert math.isclose(float(short.ranks.mean()), float(whole.ranks.mean()))


@pytest.mark.parametrize("newest", [1, 3])
def test_selecting_everybody_whole_changes_nothing(histories_of: HistoriesOf, newest: int) -> None:
    whole = histories_of([[0, 1, 2], [3], [4, 5]])
    same = selected(whole, np.arange(3))
    assert (same.items == whole.items).all() and (same.offsets == whole.offsets).all()
    cut = selected(whole, np.arange(3), newest=np.full(3, newest))
    assert cut.lengths.tolist() == [min(newest, length) for length in (3, 1, 2)]
