"""Each stage against figures worked out by hand, and what is refused."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from client.ranking.business_rules import Arrange, CapPerGroup, Pin
from client.ranking.rerank import DAY, RerankSettings, pipeline, read_settings, rerank
from client.ranking.rerank_stages import (
    Candidates,
    Diversify,
    Exclude,
    Freshen,
    Groups,
    ItemFacts,
    LongTailBoost,
    Stage,
    Top,
)
from shared.errors import ConfigError, RankingError
from shared.schema import Catalogue

ITEMS = 8
BRANDS = ("acme", "acme", "acme", "bolt", "bolt", "cog", "", "")
CATEGORIES = ("Horror", "Drama, Horror", "Drama", "Drama", "Toys > Horror", "Comedy", "", "Comedy")
NAMES = tuple(f"i{row}" for row in range(ITEMS))
CATALOGUE = Catalogue(NAMES, NAMES, NAMES, CATEGORIES)


def facts(**changes: Any) -> ItemFacts:
    told: dict[str, Any] = {
        "vectors": np.eye(ITEMS, dtype=np.float32),
        "popularity": np.arange(ITEMS, dtype=np.float32)[::-1] - 3.5,
        "groups": {"brand": Groups.of(BRANDS), "category": Groups.of(CATEGORIES, split=True)},
    }
    return ItemFacts(**told | changes)


def of(*rows: int, scores: list[float] | None = None) -> Candidates:
    """Candidates in this order; scores fall by 1 unless told."""
    falling = [float(-place) for place in range(len(rows))] if scores is None else scores
    return Candidates(np.array(rows, dtype=np.int32), np.array(falling, dtype=np.float32))


def order(stage: Stage, candidates: Candidates, known: ItemFacts | None = None) -> list[int]:
    return stage(candidates, facts() if known is None else known).rows.tolist()


# --- candidates -----------------------------------------------------------------------------------


def test_the_best_are_without_what_was_seen_and_equals_stand_by_row() -> None:
    scores = np.array([1, 5, 3, 5, 9, 0, 0, 3], dtype=np.float32)
    best = Candidates.best(scores, 4, seen=np.array([4, 4], dtype=np.int32))
    assert best.rows.tolist() == [1, 3, 2, 7]
    assert best.scores.tolist() == [5, 5, 3, 3]
    assert scores[4] == 9, "the scores that were given stay as they were"
    assert len(Candidates.best(scores, 20, seen=np.array([4], dtype=np.int32))) == ITEMS - 1


@pytest.mark.parametrize(
    ("rows", "scores"), [([1, 1], [0, 0]), ([1, 2], [0]), ([1, 2], [0, np.inf]), ([[1, 2]], [[0, 0]])]
)
def test_candidates_that_are_none_are_refused(rows: Any, scores: Any) -> None:
    with pytest.raises(RankingError, match="Expected"):
        Candidates(np.array(rows, dtype=np.int32), np.array(scores, dtype=np.float32))


def test_facts_of_other_items_are_refused() -> None:
    with pytest.raises(RankingError, match=r"items=\[7, 8\]"):
        facts(popularity=np.zeros(7, dtype=np.float32))
    with pytest.raises(RankingError, match=r"items=\[3, 8\]"):
        facts(added=np.zeros(3))


# --- scores ---------------------------------------------------------------------------------------


def test_the_long_tail_is_raised_by_standardised_popularity() -> None:
    # Popularity of rows 0, 2, 4 is 3.5, 1.5, -0.5: standardised +r, 0, -r with r = sqrt(3/2). Scores 1, 0, -1 have
    # deviation sqrt(2/3), so that strength t adds -t, 0, t.
    boosted = LongTailBoost(0.25)(of(0, 2, 4, scores=[1, 0, -1]), facts())
    assert boosted.rows.tolist() == [0, 2, 4]
    assert boosted.scores.tolist() == pytest.approx([0.75, 0, -0.75])
    assert order(LongTailBoost(1.01), of(0, 2, 4, scores=[1, 0, -1])) == [4, 2, 0]


def test_one_strength_means_the_same_however_scores_and_popularity_are_scaled() -> None:
    rng = np.random.default_rng(0)
    scores, popularity = -np.sort(rng.normal(size=ITEMS)), rng.normal(size=ITEMS).astype(np.float32)
    told = order(LongTailBoost(0.7), of(*range(ITEMS), scores=list(scores)), facts(popularity=popularity))
    other = facts(popularity=0.06 * popularity + 2)
    assert told != list(range(ITEMS))
    assert order(LongTailBoost(0.7), of(*range(ITEMS), scores=list(20 * scores - 5)), other) == told


def test_where_all_are_as_popular_the_long_tail_is_nobody() -> None:
    candidates = of(3, 1, 2)
    assert LongTailBoost(5)(candidates, facts(popularity=np.zeros(ITEMS, dtype=np.float32))) is candidates


def test_half_of_the_freshness_is_left_after_a_half_life() -> None:
    added = np.array([100.0, 90.0, np.nan, 200.0, 0, 0, 0, 0])
    fresh = Freshen(half_life=10, strength=2, now=100)(of(0, 1, 2, 3, scores=[1, 1, -1, -1]), facts(added=added))
    scores = dict(zip(fresh.rows.tolist(), fresh.scores.tolist(), strict=True))
    assert scores == pytest.approx({0: 3, 1: 2, 2: -1, 3: 1}), "deviation 1; unknown: nothing; to come: all"
    assert fresh.rows.tolist() == [0, 1, 3, 2]


def test_freshness_without_times_is_refused() -> None:
    with pytest.raises(ConfigError, match="times"):
        Freshen(10, 1, 0)(of(1, 2), facts())


# --- diversity ------------------------------------------------------------------------------------


def slow_mmr(candidates: Candidates, vectors: NDArray[np.float32], trade_off: float, depth: int) -> list[int]:
    """As the paper writes it."""
    rows, scores = candidates.rows.tolist(), candidates.scores.astype(float)
    unit = dict(zip(rows, (scores - scores.min()) / (scores.max() - scores.min()), strict=True))
    chosen: list[int] = []
    while len(chosen) < min(depth, len(rows)):
        left = [row for row in rows if row not in chosen]
        worth = [
            trade_off * unit[row]
            - (1 - trade_off) * max((float(vectors[row] @ vectors[other]) for other in chosen), default=-1.0)
            for row in left
        ]
        chosen.append(left[int(np.argmax(worth))])
    return chosen + [row for row in rows if row not in chosen]


def a_user(items: int, n: int, seed: int, width: int = 16) -> tuple[Candidates, ItemFacts]:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(items, width)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    rows = rng.permutation(items)[:n].astype(np.int32)
    candidates = Candidates(rows, -np.sort(rng.normal(size=n)).astype(np.float32))
    return candidates, ItemFacts(vectors, np.zeros(items, dtype=np.float32))


@pytest.mark.parametrize("trade_off", [0.0, 0.3, 0.7, 0.95])
def test_diversity_is_that_of_the_paper(trade_off: float) -> None:
    for seed in range(5):
        candidates, known = a_user(60, 40, seed)
        told = Diversify(trade_off, depth=12)(candidates, known)
        assert told.rows.tolist() == slow_mmr(candidates, known.vectors, trade_off, 12)
        score = dict(zip(candidates.rows.tolist(), candidates.scores.tolist(), strict=True))
        assert told.scores.tolist() == [score[row] for row in told.rows.tolist()], "each keeps its own"


def test_the_double_of_the_first_waits_for_something_else() -> None:
    vectors = np.eye(ITEMS, dtype=np.float32)
    vectors[1] = vectors[0]
    candidates = of(0, 1, 2, 3, scores=[1, 0.9, 0.6, 0])
    assert order(Diversify(0.5), candidates, facts(vectors=vectors)) == [0, 2, 3, 1]
    assert order(Diversify(0.9), candidates, facts(vectors=vectors)) == [0, 1, 2, 3]


def test_ten_of_two_hundred_are_chosen_in_less_than_two_milliseconds() -> None:
    candidates, known = a_user(5000, 200, 0, width=384)
    stage, best = Diversify(0.5), np.inf
    for _ in range(30):
        began = time.perf_counter()
        stage(candidates, known)
        best = min(best, time.perf_counter() - began)
    assert best < 2e-3


# --- rules ----------------------------------------------------------------------------------------


def test_an_item_goes_with_any_of_its_groups() -> None:
    everything = of(*range(ITEMS))
    assert order(Exclude(groups=(("category", "Horror"),)), everything) == [2, 3, 5, 6, 7]
    assert order(Exclude(rows=(5,), groups=(("category", "Horror"), ("brand", "bolt"))), everything) == [2, 6, 7]
    assert order(Exclude(groups=(("category", "Opera"),)), everything) == list(range(ITEMS))
    with pytest.raises(ConfigError, match="brand, category"):
        Exclude(groups=(("colour", "red"),))(everything, facts())


def test_a_pinned_item_is_at_its_place_whether_it_was_retrieved_or_not() -> None:
    arranged = Arrange((Pin(4, place=1), Pin(7, place=3)))(of(0, 1, 2, 4), facts())
    assert arranged.rows.tolist() == [4, 0, 7, 1, 2]
    assert arranged.scores[:2].tolist() == [-3, 0] and np.isnan(arranged.scores[2])


def test_in_a_list_too_short_pinned_items_move_up() -> None:
    assert order(Arrange((Pin(7, 9), Pin(6, 2), Pin(5, 5))), of(0, 1)) == [0, 6, 1, 5, 7]
    assert order(Arrange((Pin(7, 2),)), of()) == [7]
    counted = Arrange((Pin(1, 3),), (CapPerGroup("brand", 1, first=3),))
    assert order(counted, of()) == [1], "its cap has counted it, once"


def test_a_cap_puts_the_surplus_behind_its_places() -> None:
    assert order(Arrange(caps=(CapPerGroup("brand", 1, first=3),)), of(0, 1, 2, 3, 4, 5)) == [0, 3, 5, 1, 2, 4]
    assert order(Arrange(caps=(CapPerGroup("brand", 1, first=2),)), of(6, 7, 0, 1)) == [6, 7, 0, 1], "none: no cap"
    pinned_later = Arrange((Pin(7, 3),), (CapPerGroup("brand", 1, first=1),))
    assert order(pinned_later, of(0, 1, 2)) == [0, 1, 7, 2], "behind its places a cap is over"


def test_a_pinned_item_counts_for_its_cap_from_the_first_place_on() -> None:
    rules = Arrange((Pin(1, place=2),), (CapPerGroup("brand", 1, first=3),))
    assert order(rules, of(0, 2, 3, 5)) == [3, 1, 5, 0, 2]


def test_a_cap_is_kept_rather_than_a_length() -> None:
    assert order(Arrange(caps=(CapPerGroup("brand", 2, first=10),)), of(0, 1, 2)) == [0, 1]
    one_more = Arrange((Pin(2, place=12),), (CapPerGroup("brand", 2, first=10),))
    assert order(one_more, of(0, 1)) == [0, 1], "moved up it would be the third"


def test_two_caps_hold_together_where_one_after_the_other_does_not() -> None:
    brand, category = CapPerGroup("brand", 1, first=3), CapPerGroup("category", 1, first=3)
    candidates = of(2, 3, 5, 0, 6)

    def most(kind: str, rows: list[int]) -> int:
        codes = facts().groups[kind].codes[rows[:3]]
        return int(np.bincount(codes[codes >= 0]).max())

    together = order(Arrange(caps=(brand, category)), candidates)
    assert (most("brand", together), most("category", together)) == (1, 1)
    after = Arrange(caps=(category,))(Arrange(caps=(brand,))(candidates, facts()), facts())
    before = Arrange(caps=(brand,))(Arrange(caps=(category,))(candidates, facts()), facts())
    broken = [max(most("brand", x.rows.tolist()), most("category", x.rows.tolist())) for x in (after, before)]
    assert max(broken) > 1, "or the one pass would be for nothing"


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        (lambda: Arrange((Pin(1, 2), Pin(1, 3))), "each pinned item"),
        (lambda: Arrange((Pin(1, 2), Pin(3, 2))), "each pinned place"),
        (lambda: Arrange((Pin(99, 1),)), "items=8"),
        (lambda: Arrange((Pin(0, 1), Pin(1, 3)), (CapPerGroup("brand", 1, first=3),)), "cap of 1 in the first 3"),
        (lambda: Arrange(caps=(CapPerGroup("colour", 1),)), "brand, category"),
    ],
)
def test_rules_that_no_list_can_keep_are_refused(rules: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rules()(of(0, 1), facts())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: LongTailBoost(-0.1),
        lambda: LongTailBoost(float("nan")),
        lambda: Freshen(0, 1, 0),
        lambda: Freshen(1, -1, 0),
        lambda: Freshen(1, 1, float("inf")),
        lambda: Diversify(1.1),
        lambda: Diversify(0.5, depth=0),
        lambda: Pin(0, 0),
        lambda: Pin(-1, 1),
        lambda: CapPerGroup("brand", 0),
        lambda: CapPerGroup("brand", 1, first=0),
        lambda: Top(0),
    ],
)
def test_parameters_out_of_bounds_are_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match="Expected"):
        wrong()


@pytest.mark.parametrize("stage", [LongTailBoost(1), Freshen(1, 1, 0), Diversify(0.5)])
def test_a_stage_of_scores_after_a_pinned_item_without_one_is_refused(stage: Stage) -> None:
    pinned = Arrange((Pin(7, 1),))(of(0, 1), facts())
    with pytest.raises(RankingError, match="finite scores"):
        stage(pinned, facts(added=np.zeros(ITEMS)))


# --- settings -------------------------------------------------------------------------------------

EVERYTHING = {
    "cap": [{"kind": "brand", "most": 1, "first": 3}],
    "pin": [{"item": "i7", "place": 2}],
    "exclude": {"items": ["i5"], "groups": {"category": ["Horror"]}},
    "diversify": {"trade_off": 0.8, "depth": 5},
    "freshen": {"strength": 0.5, "half_life_days": 2},
    "long_tail": {"strength": 0.3},
}


def test_settings_become_stages_in_a_fixed_order_whatever_theirs_was() -> None:
    told = pipeline(read_settings(EVERYTHING), CATALOGUE, facts(added=np.zeros(ITEMS)), now=5.0, k=3)
    assert told == (
        Exclude((5,), (("category", "Horror"),)),
        LongTailBoost(0.3),
        Freshen(2 * DAY, 0.5, 5.0),
        Diversify(0.8, 5),
        Arrange((Pin(7, 2),), (CapPerGroup("brand", 1, 3),)),
        Top(3),
    )
    listed = rerank(of(*range(ITEMS)), facts(added=np.zeros(ITEMS)), told).rows.tolist()
    assert len(listed) == 3 and listed[1] == 7 and not {0, 1, 4, 5} & set(listed)


def test_without_settings_the_list_is_the_model_s() -> None:
    candidates = of(3, 1, 2)
    assert rerank(candidates, facts(), pipeline(read_settings({}), CATALOGUE, facts(), now=0.0)) is candidates


@pytest.mark.parametrize(
    ("tree", "where"),
    [
        ({"longtail": {"strength": 1}}, "longtail"),
        ({"long_tail": {"strength": -1}}, "long_tail.strength"),
        ({"long_tail": {"strength": float("nan")}}, "long_tail.strength"),
        ({"long_tail": {}}, "long_tail.strength"),
        ({"diversify": {"trade_off": 1.5}}, "diversify.trade_off"),
        ({"freshen": {"strength": 1, "half_life_days": 0}}, "freshen.half_life_days"),
        ({"pin": [{"item": "i1", "place": 0}]}, "pin.0.place"),
        ({"cap": [{"kind": "brand", "most": 1, "first": 10_000}]}, "cap.0.first"),
        ({"pin": [{"item": f"i{n}", "place": n} for n in range(1, 102)]}, "pin"),
    ],
)
def test_settings_out_of_bounds_are_named_and_refused(tree: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError, match=f"^{where}: "):
        read_settings(tree)


@pytest.mark.parametrize(
    ("tree", "where"),
    [
        ({"pin": [{"item": "secret", "place": 1}]}, "pin"),
        ({"exclude": {"items": ["secret"]}}, "exclude.items"),
        ({"freshen": {"strength": 0.0}}, "freshen"),
        ({"pin": [{"item": "i0", "place": 1}], "exclude": {"groups": {"category": ["Horror"]}}}, "pin"),
        ({"pin": [{"item": "i0", "place": 1}], "exclude": {"items": ["i0"]}}, "pin"),
    ],
)
def test_settings_that_do_not_fit_the_catalogue_are_refused_without_repeating_them(
    tree: dict[str, Any], where: str
) -> None:
    with pytest.raises(ConfigError, match=f"^{where}: Expected") as refused:
        pipeline(read_settings(tree), CATALOGUE, facts(), now=0.0)
    assert "secret" not in str(refused.value)


def test_a_schema_made_of_the_settings_tells_their_bounds() -> None:
    schema = RerankSettings.model_json_schema()
    assert schema["additionalProperties"] is False
    trade_off = schema["$defs"]["DiversifySettings"]["properties"]["trade_off"]
    assert (trade_off["minimum"], trade_off["maximum"]) == (0, 1)
    assert schema["properties"]["pin"]["maxItems"] == 100
