"""Interests, attributes, similar items and users: the arithmetic, and the benchmark's figures on planted answers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from client.ranking import interests as interests_module
from client.ranking.audience import Wanting
from client.ranking.interests import attributes, clusters_of, interests, mass, words_of
from client.ranking.rerank_stages import Groups
from client.ranking.similar import SimilarItems, nearest_users
from client.ranking.tastes import temperature_of
from shared.config import PriorConfig
from shared.errors import RankingError
from shared.model.prior import CollaborativePrior
from shared.schema import Catalogue
from simulations.benchmarks import questions as benchmark
from simulations.benchmarks.questions_setting import Setting

TOLD = ("Tea|Gifts", "Tea", "", "Books", "Books|Gifts")
GROUPS = Groups.of(TOLD, split=True)  # Books, Gifts, Tea
SHARES = np.array([0.4, 0.2, 0.1, 0.2, 0.1], dtype=np.float32)
EVEN = np.full(5, 0.2, dtype=np.float32)


def named(**titles: str) -> Catalogue:
    nothing = ("",) * len(titles)
    return Catalogue(tuple(sorted(titles)), tuple(titles[key] for key in sorted(titles)), nothing, nothing)


def unit(rows: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


# --- interests and attributes


def test_interests_add_up_to_one_with_what_is_not_named() -> None:
    found = interests(SHARES, EVEN, "category", GROUPS, 2)
    assert [one.name for one in found.found] == ["Tea", "Books"]
    assert [one.probability for one in found.found] == pytest.approx([0.4, 0.25])
    assert found.other == pytest.approx(0.25 + 0.1), "Gifts, and the item in no group"
    assert [one.lift for one in found.found] == pytest.approx([0.4 / 0.3, 0.25 / 0.3])
    assert [one.rows for one in found.found] == [(0, 1), (3, 4)]


def test_what_may_not_be_shown_counts_but_is_not_named() -> None:
    shown = np.array([False, True, True, True, True])
    tea = interests(SHARES, EVEN, "category", GROUPS, 1, shown).found[0]
    assert tea.rows == (1,) and tea.probability == pytest.approx(0.4)


@settings(max_examples=50, deadline=None)
@given(
    told=st.lists(st.sampled_from(["", "a", "b", "a|b", "a|b|c", "c"]), min_size=1, max_size=12),
    data=st.data(),
    n=st.integers(1, 5),
)
def test_probability_is_neither_lost_nor_made(told: list[str], data: st.DataObject, n: int) -> None:
    weights = data.draw(st.lists(st.floats(0.01, 1.0), min_size=len(told), max_size=len(told)))
    shares = (np.array(weights) / np.sum(weights)).astype(np.float32)
    found = interests(shares, shares, "category", Groups.of(told, split=True), n)
    assert sum(one.probability for one in found.found) + found.other == pytest.approx(1.0, abs=1e-5)
    assert all(one.lift == pytest.approx(1.0, abs=1e-4) for one in found.found)


def test_attributes_overlap_and_are_those_that_tell_a_user_from_others() -> None:
    usual = np.array([0.1, 0.1, 0.1, 0.1, 0.6], dtype=np.float32)
    found = attributes(SHARES, usual, {"category": GROUPS, "brand": Groups.of(("", "", "Oak", "", ""))}, 5)
    assert [(one.kind, one.name) for one in found] == [("category", "Tea")], "what is wanted less than usual tells none"
    assert found[0].probability == pytest.approx(0.6) and found[0].lift == pytest.approx(3.0)
    np.testing.assert_allclose(mass(SHARES, GROUPS, split=False), [0.3, 0.5, 0.6], atol=1e-6)


def test_words_that_few_or_most_titles_have_are_no_attributes() -> None:
    titles = {f"i{k:02d}": f"The {'Oak' if k < 6 else 'Elm'} chair{k}" for k in range(20)}
    assert words_of(named(**titles)).names == ("oak",), "of 20: oak 6 times, elm 14, the 20, all others once"


def test_groups_of_another_catalogue_are_refused() -> None:
    with pytest.raises(RankingError, match="items=5"):
        mass(SHARES, Groups.of(("a", "b")), split=True)


def test_clusters_find_what_lies_together(rng: np.random.Generator) -> None:
    middles = unit(rng.normal(size=(3, 16)))
    vectors = unit(np.repeat(middles, 10, axis=0) + 0.05 * rng.normal(size=(30, 16)))
    catalogue = named(**{f"i{k:02d}": f"title {k // 10}" for k in range(30)})
    found = clusters_of(vectors, catalogue, n=6)
    for code in np.unique(found.codes):
        members = np.flatnonzero(found.codes[:, 0] == code) // 10
        assert len(set(members)) == 1, "no cluster of two sorts"
        assert found.names[code] == f"like title {members[0]}"


# --- similar


def test_nobody_is_like_themselves_and_the_nearest_come_first(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("client.ranking.similar.USERS_AT_ONCE", 7)
    crowd = unit(rng.normal(size=(40, 8)))
    asked = np.arange(0, 40, 2)
    places, cosines = nearest_users(crowd[asked], crowd, 5, itself=asked)
    for k, user in enumerate(asked):
        likeness = crowd @ crowd[user]
        likeness[user] = -np.inf
        np.testing.assert_array_equal(places[k], np.argsort(-likeness)[:5])
        np.testing.assert_allclose(cosines[k], np.sort(likeness)[::-1][:5], atol=1e-6)
    alone, _ = nearest_users(crowd[:1], crowd[:1], 3, itself=np.array([0]))
    assert (alone == -1).all()
    assert nearest_users(crowd[:2], crowd[:0], 3)[0].shape == (2, 0)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_an_item_is_not_like_itself_and_only_what_is_allowed_is_named(rng: np.random.Generator) -> None:
    vectors = unit(rng.normal(size=(12, 8)))
    similar = SimilarItems(vectors, CollaborativePrior(np.zeros(12, np.float32)))
    rows, scores = similar.nearest(3, 12).of(0)
    expected = np.argsort(-(vectors @ vectors[3]))
    np.testing.assert_array_equal(rows, expected[expected != 3])
    assert (np.diff(scores) <= 0).all()
    even = np.arange(12) % 2 == 0
    assert set(similar.nearest(3, 12, even).of(0)[0]) == set(range(0, 12, 2))
    assert even.sum() == 6, "the caller's mask stays as it was"


def test_a_product_of_weights_is_read_as_the_matrix_that_it_makes(rng: np.random.Generator) -> None:
    vectors, popularity = unit(rng.normal(size=(12, 8))), np.zeros(12, np.float32)
    left, right = rng.normal(size=(2, 12, 3)).astype(np.float32)
    whole = SimilarItems(vectors, CollaborativePrior(popularity, left @ right.T))
    parts = SimilarItems(vectors, CollaborativePrior(popularity, left, right.T.copy()))
    for row in range(12):
        np.testing.assert_allclose(whole.scores(row), parts.scores(row), atol=1e-4)
        other = (row + 5) % 12
        assert whole._both_ways(row)[other] == pytest.approx(whole._both_ways(other)[row], abs=1e-5)


def test_who_meets_both_counts_beside_text_but_not_for_an_item_that_nobody_met(rng: np.random.Generator) -> None:
    vectors, weights = unit(rng.normal(size=(12, 8))), np.zeros((12, 12), np.float32)
    weights[4, 9] = 5.0  # one way is enough
    unseen = np.zeros(12, np.float32)
    unseen[7] = 1.0
    similar = SimilarItems(vectors, CollaborativePrior(np.zeros(12, np.float32), weights, unseen=unseen))
    assert similar.nearest(9, 1).of(0)[0][0] == 4 and similar.nearest(4, 1).of(0)[0][0] == 9
    likeness = vectors @ vectors[7]
    likeness[7] = -np.inf
    np.testing.assert_array_equal(similar.nearest(7, 11).of(0)[0], np.argsort(-likeness)[:11])


# --- audience


def test_an_audience_is_in_the_order_of_wanting_and_without_those_who_have_it() -> None:
    found = Wanting(np.array([0.1, 0.0, 0.3, 0.1], np.float32), np.array([4, 0, 1, 9]), np.array([0, 1, 0, 0], bool))
    np.testing.assert_array_equal(found.order(), [2, 0, 3])


# --- temperature


def test_the_less_of_the_prior_was_trained_with_the_higher_the_temperature() -> None:
    told = [temperature_of(PriorConfig(training_share=share)) for share in (0.0, 0.5, 1.0)]
    assert told == [3.0, 2.0, 1.0]


def test_the_temperature_that_made_the_answers_is_found(rng: np.random.Generator) -> None:
    scores = (3 * rng.normal(size=(4000, 20))).astype(np.float32)
    for true in (0.7, 2.0):
        answers = np.argmax(scores / true + rng.gumbel(size=scores.shape), axis=1)  # drawn from the softmax
        assert benchmark.fitted_temperature(scores, answers) == pytest.approx(true, rel=0.08)


# --- the benchmark's figures


def test_calibration_error_is_nothing_for_the_truth_and_seen_when_one_is_too_sure(rng: np.random.Generator) -> None:
    shares = rng.dirichlet(np.ones(4), size=20_000)
    answers = (rng.random(len(shares))[:, None] > shares.cumsum(axis=1)).sum(axis=1)
    truth = np.eye(4)[np.minimum(answers, 3)]
    assert benchmark._told(shares, truth)["calibration_error"] < 0.02
    sure = shares**3 / (shares**3).sum(axis=1, keepdims=True)
    too_sure = benchmark._told(sure, truth)
    assert too_sure["calibration_error"] > 0.1
    assert too_sure["log_loss"] > benchmark._told(shares, truth)["log_loss"]


def test_takers_are_measured_among_those_who_have_it_not(world_of: Setting) -> None:
    """40 users, all of whom take item 0 or 1 next; a quarter have item 2, which nobody is offered."""
    perfect = np.zeros(world_of.scores.shape)
    perfect[np.arange(40), world_of.targets] = 1.0
    offered = np.array([0, 1])
    assert benchmark._first_takers(perfect, world_of, offered)["auc"] == 1.0
    assert benchmark._first_takers(-perfect, world_of, offered)["auc"] == 0.0
    assert benchmark._first_takers(np.zeros_like(perfect), world_of, offered)["auc"] == 0.5
    owned = np.where(world_of.met, 9.0, perfect)  # a score for who has the item must not matter
    assert benchmark._first_takers(owned, world_of, offered)["auc"] == 1.0


@pytest.fixture
def world_of() -> Setting:
    met = np.zeros((40, 3), dtype=bool)
    targets = np.arange(40) % 2
    met[np.arange(40), 1 - targets] = np.arange(40) < 10  # ten have the other item already
    met[:10, 2] = True
    return Setting(
        None,  # type: ignore[arg-type]
        np.zeros((40, 3), np.float32),
        met,
        met.astype(np.float32),
        np.zeros((40, 2), np.float32),
        np.zeros(40, np.int64),
        targets,
        np.zeros(40, np.int64),
    )


def test_a_group_that_takes_more_than_its_part_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: an item in two groups counts twice."""
    real = interests_module.mass
    monkeypatch.setattr(interests_module, "mass", lambda shares, groups, *, split: real(shares, groups, split=False))
    found = interests(SHARES, EVEN, "category", GROUPS, 3)
    assert sum(one.probability for one in found.found) + found.other != pytest.approx(1.0, abs=1e-3)
