"""What must hold of reranking for any candidates, any facts and any rules."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from client.ranking.business_rules import Arrange, CapPerGroup, Pin
from client.ranking.rerank import rerank
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
from shared.errors import ConfigError

ITEMS = 14
NOW = 1000.0
FLOATS = st.floats(-5, 5, width=32)


def lists(elements: st.SearchStrategy[float] | st.SearchStrategy[int]) -> st.SearchStrategy[list[float]]:
    return st.lists(elements, min_size=ITEMS, max_size=ITEMS)


@st.composite
def users(draw: st.DrawFn, least: int = 0) -> tuple[Candidates, ItemFacts]:
    """Few items, groups and values: ties and shared groups everywhere."""
    rows = draw(st.lists(st.integers(0, ITEMS - 1), unique=True, min_size=least))
    values = draw(st.one_of(lists(st.integers(-2, 2)), lists(FLOATS)))[: len(rows)]
    vectors = np.random.default_rng(draw(st.integers(0, 9))).normal(size=(ITEMS, 3)).astype(np.float32)
    vectors[draw(st.integers(0, ITEMS - 1))] = vectors[0]
    added = draw(lists(st.sampled_from([0.0, 900.0, NOW, 2000.0, np.nan])))
    brands, categories = (draw(st.lists(st.sampled_from(x), min_size=ITEMS, max_size=ITEMS)) for x in (BRANDS, KINDS))
    facts = ItemFacts(
        vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        np.array(draw(lists(st.integers(-2, 2))), dtype=np.float32),
        np.array(added),
        {"brand": Groups.of(brands), "category": Groups.of(categories, split=True)},
    )
    return Candidates(np.array(rows, dtype=np.int32), np.array(sorted(values, reverse=True), dtype=np.float32)), facts


BRANDS = ["a", "b", ""]
KINDS = ["x", "y", "x, y", "z > x", ""]
STRENGTHS = st.floats(0, 3)
SCORE_STAGES = st.one_of(
    st.builds(LongTailBoost, STRENGTHS),
    st.builds(Freshen, st.floats(0.1, 1e4), STRENGTHS, st.just(NOW)),
    st.builds(Diversify, st.floats(0, 1), st.integers(1, 20)),
)
PINS = st.lists(
    st.builds(Pin, st.integers(0, ITEMS - 1), st.integers(1, 12)),
    max_size=3,
    unique_by=(lambda pin: pin.row, lambda pin: pin.place),
)
CAPS = st.lists(
    st.builds(CapPerGroup, st.sampled_from(["brand", "category"]), st.integers(1, 3), st.integers(1, 12)), max_size=3
)
EXCLUDED = st.builds(
    Exclude,
    st.lists(st.integers(0, ITEMS - 1), max_size=3).map(tuple),
    st.lists(st.tuples(st.just("category"), st.sampled_from(["x", "y", "z"])), max_size=2).map(tuple),
)
NEUTRAL = (LongTailBoost(0), Freshen(1, 0, NOW), Diversify(1), Exclude(), Arrange(), Top(ITEMS))


def bits(candidates: Candidates) -> tuple[bytes, bytes]:
    return candidates.rows.tobytes(), candidates.scores.tobytes()


@settings(max_examples=50)
@given(users(), st.lists(SCORE_STAGES, max_size=1))
def test_stages_of_no_strength_change_nothing_to_the_bit(
    user: tuple[Candidates, ItemFacts], before: list[Stage]
) -> None:
    facts = user[1]
    candidates = rerank(user[0], facts, before)
    assert bits(rerank(candidates, facts, NEUTRAL)) == bits(candidates)


@settings(max_examples=50)
@given(users(), st.lists(SCORE_STAGES, max_size=4))
def test_stages_of_scores_and_diversity_keep_all_candidates_and_invent_none(
    user: tuple[Candidates, ItemFacts], stages: list[Stage]
) -> None:
    candidates, facts = user
    given_to_them = bits(candidates)
    after = rerank(candidates, facts, stages)
    assert sorted(after.rows.tolist()) == sorted(candidates.rows.tolist())
    assert bits(candidates) == given_to_them
    assert bits(rerank(candidates, facts, stages)) == bits(after)


@settings(max_examples=50)
@given(users(least=2), SCORE_STAGES, st.data())
def test_items_that_a_stage_cannot_tell_apart_stay_in_the_order_given(
    user: tuple[Candidates, ItemFacts], stage: Stage, data: st.DataObject
) -> None:
    candidates, facts = user
    first, second = data.draw(st.permutations(range(len(candidates))))[:2]
    one, other = candidates.rows[sorted((first, second))].tolist()
    scores, vectors = candidates.scores.copy(), facts.vectors.copy()
    scores[first] = scores[second]
    vectors[one] = vectors[other]
    popularity, added = facts.popularity.copy(), np.array(facts.added)
    popularity[one], added[one] = popularity[other], added[other]
    after = stage(Candidates(candidates.rows, scores), ItemFacts(vectors, popularity, added)).rows.tolist()
    assert after.index(one) < after.index(other)


@given(users(), st.lists(SCORE_STAGES, max_size=2), PINS, CAPS, EXCLUDED)
def test_rules_hold_whatever_came_before(
    user: tuple[Candidates, ItemFacts],
    stages: list[Stage],
    pins: list[Pin],
    caps: list[CapPerGroup],
    exclude: Exclude,
) -> None:
    candidates, facts = user
    rules = Arrange(tuple(pins), tuple(caps))
    assume(not exclude.gone(rules.pinned, facts).any())
    try:
        rules.check(facts)
    except ConfigError:
        assume(False)
    before = rerank(candidates, facts, stages)
    left = exclude(before, facts)
    after = rules(left, facts).rows
    listed, pinned = after.tolist(), {pin.row for pin in pins}

    assert not exclude.gone(after, facts).any()
    assert set(listed) <= set(left.rows.tolist()) | pinned, "nothing is invented"
    for cap in caps:
        codes = facts.groups[cap.kind].codes[after[: cap.first]]
        assert (np.bincount(codes[codes >= 0], minlength=1) <= cap.most).all()
    for pin in pins:
        if pin.row not in listed:
            assert caps, "only a cap takes an item away"
        elif (place := listed.index(pin.row) + 1) != pin.place:
            assert place < pin.place and set(listed[place - 1 :]) <= pinned, "moved up, at the end of a list too short"
    if not caps:
        assert set(listed) == set(left.rows.tolist()) | pinned
        assert [row for row in listed if row not in pinned] == [row for row in left.rows if row not in pinned]


@settings(max_examples=50)
@given(users(), CAPS)
def test_a_list_ends_early_only_where_a_cap_is_against_all_that_is_left(
    user: tuple[Candidates, ItemFacts], caps: list[CapPerGroup]
) -> None:
    candidates, facts = user
    listed = Arrange(caps=tuple(caps))(candidates, facts).rows
    for row in set(candidates.rows.tolist()) - set(listed.tolist()):
        one_more = np.append(listed, row)
        broken = False
        for cap in caps:
            codes = facts.groups[cap.kind].codes[one_more[: cap.first]]
            broken |= bool((np.bincount(codes[codes >= 0], minlength=1) > cap.most).any())
        assert broken


@settings(max_examples=50)
@given(users(), st.integers(1, 20))
def test_the_top_is_the_beginning(user: tuple[Candidates, ItemFacts], k: int) -> None:
    candidates, facts = user
    assert Top(k)(candidates, facts).rows.tolist() == candidates.rows.tolist()[:k]
