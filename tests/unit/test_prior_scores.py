"""Scores of the collaborative prior: against plain loops, at every position and at the newest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from shared.config import PriorConfig
from shared.model.prior import CollaborativePrior
from shared.model.prior_scores import RULED_OUT, PriorScorer, mask_seen

N = 12
TEXTS = torch.eye(N)
"""Of items that are all alike to each other."""
CONFIG = PriorConfig()


@pytest.fixture(scope="module")
def scorer() -> PriorScorer:
    rng = np.random.default_rng(2)
    popularity, matrix = rng.normal(size=N).astype(np.float32), rng.normal(size=(N, N)).astype(np.float32)
    return PriorScorer(
        CollaborativePrior(popularity, matrix), PriorConfig(decay=0.7, weight=0.6, popularity_weight=0.2), TEXTS
    )


ITEMS = torch.tensor([[3, 5, 3, 0], [7, -1, -1, -1], [2, -1, 4, -1], [11, 11, 11, 11]])


def newest(items: torch.Tensor) -> list[int]:
    return [max(t for t, item in enumerate(row) if item >= 0) for row in items.tolist()]


def test_scores_equal_a_plain_loop(scorer: PriorScorer) -> None:
    rng = np.random.default_rng(2)
    popularity, matrix = rng.normal(size=N), rng.normal(size=(N, N))
    scores = scorer.all_positions(ITEMS).numpy()
    for b, row in enumerate(ITEMS.tolist()):
        for t in range(len(row)):
            known = [(item, t - s) for s, item in enumerate(row[: t + 1]) if item >= 0]
            x = np.sum([0.7**age * matrix[item] for item, age in known], axis=0)
            expected = 0.2 * popularity + 0.6 * np.arcsinh(3 * (x - x.mean()) / x.std())
            np.testing.assert_allclose(scores[b, t], expected, atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_training_sees_its_share_of_the_item_to_item_scores(share: float) -> None:
    popularity, weights = np.arange(5, dtype=np.float32), np.eye(5, dtype=np.float32)[::-1].copy()
    prior = CollaborativePrior(popularity, weights)
    whole = PriorScorer(prior, PriorConfig(), torch.eye(5))
    part = PriorScorer(prior, PriorConfig(training_share=share), torch.eye(5))
    items = torch.tensor([[0, 2, 4], [1, 3, -1]])
    alone = torch.from_numpy(popularity) * PriorConfig().popularity_weight
    expected = alone + share * (whole.all_positions(items) - alone)
    torch.testing.assert_close(part.all_positions(items), expected)
    torch.testing.assert_close(part.last_position(items), whole.last_position(items))  # ranking has all of it


def test_the_last_position_is_all_positions_at_the_newest_event(scorer: PriorScorer) -> None:
    everywhere, last = scorer.all_positions(ITEMS), scorer.last_position(ITEMS)
    torch.testing.assert_close(last, torch.stack([everywhere[b, t] for b, t in enumerate(newest(ITEMS))]))


@given(
    st.lists(st.lists(st.integers(0, N - 1), min_size=1, max_size=8), min_size=1, max_size=4), st.sampled_from([0, 3])
)
def test_padding_changes_no_score(scorer: PriorScorer, users: list[list[int]], more: int) -> None:
    width = max(map(len, users)) + more
    padded = torch.tensor([user + [-1] * (width - len(user)) for user in users])
    together = scorer.last_position(padded)
    for row, user in zip(together, users, strict=True):
        torch.testing.assert_close(row, scorer.last_position(torch.tensor([user]))[0], atol=1e-4, rtol=1e-4)


def test_a_user_without_items_gets_popularity_alone(scorer: PriorScorer) -> None:
    nobody = torch.full((2, 3), -1)
    popularity = torch.from_numpy(np.random.default_rng(2).normal(size=N).astype(np.float32)) * 0.2
    torch.testing.assert_close(scorer.last_position(nobody), popularity.expand(2, -1))
    torch.testing.assert_close(scorer.all_positions(nobody), popularity.expand(2, 3, -1))


def test_without_item_weights_the_score_is_popularity() -> None:
    scorer = PriorScorer(CollaborativePrior(np.arange(N, dtype=np.float32)), CONFIG, TEXTS)
    expected = CONFIG.popularity_weight * torch.arange(N, dtype=torch.float32)
    torch.testing.assert_close(scorer.last_position(ITEMS), expected.expand(4, -1))
    torch.testing.assert_close(scorer.all_positions(ITEMS), expected.expand(4, 4, -1))


@pytest.fixture(scope="module")
def texts() -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(N, 6, generator=torch.Generator().manual_seed(1)), dim=1)


@pytest.mark.parametrize("with_weights", [True, False])
def test_likeness_is_a_cosine_to_the_recent_texts(texts: torch.Tensor, with_weights: bool) -> None:
    rng = np.random.default_rng(2)
    popularity, matrix = rng.normal(size=N).astype(np.float32), rng.normal(size=(N, N)).astype(np.float32)
    without = CollaborativePrior(popularity, matrix if with_weights else None)
    liking = replace(without, text_weights=np.array([5.0, 0.0], dtype=np.float32))
    before, after = (PriorScorer(prior, CONFIG, texts).all_positions(ITEMS) for prior in (without, liking))
    vectors = texts.numpy().astype(np.float64)
    for b, row in enumerate(ITEMS.tolist()):
        for t in range(len(row)):
            mean = np.sum([0.6 ** (t - s) * vectors[item] for s, item in enumerate(row[: t + 1]) if item >= 0], axis=0)
            cosines = vectors @ mean / np.linalg.norm(mean)
            np.testing.assert_allclose((after - before)[b, t], 5.0 * cosines, atol=1e-5)
    scorer = PriorScorer(liking, CONFIG, texts)
    last, liked = scorer.last_position(ITEMS), scorer.liked(ITEMS)
    torch.testing.assert_close(last, torch.stack([after[b, t] for b, t in enumerate(newest(ITEMS))]))
    assert scorer.is_product is not with_weights and liked is not None
    if scorer.is_product:
        torch.testing.assert_close(liked @ texts.T + scorer.popularity, last)


def test_likeness_is_a_part_of_what_training_has_its_share_of(texts: torch.Tensor) -> None:
    prior = CollaborativePrior(np.arange(N, dtype=np.float32), text_weights=np.array([5.0, 0.0], dtype=np.float32))
    beside = PriorScorer(prior, PriorConfig(training_share=0.0), texts)
    torch.testing.assert_close(beside.all_positions(ITEMS), beside.popularity.expand(4, 4, -1))
    assert not torch.allclose(beside.last_position(ITEMS), beside.popularity)


def test_whoever_met_nothing_is_like_nothing(texts: torch.Tensor) -> None:
    prior = CollaborativePrior(np.arange(N, dtype=np.float32), text_weights=np.array([5.0, 0.0], dtype=np.float32))
    scorer, nobody = PriorScorer(prior, CONFIG, texts), torch.full((2, 3), -1)
    torch.testing.assert_close(scorer.last_position(nobody), scorer.popularity.expand(2, -1))
    torch.testing.assert_close(scorer.all_positions(nobody), scorer.popularity.expand(2, 3, -1))


def test_scores_of_one_user_do_not_depend_on_the_batch(scorer: PriorScorer) -> None:
    everyone = scorer.all_positions(ITEMS)
    for k in range(len(ITEMS)):
        assert torch.equal(scorer.all_positions(ITEMS[k : k + 1])[0], everyone[k])


def test_items_are_ruled_out_from_the_moment_they_are_met() -> None:
    masked = mask_seen(torch.zeros(4, 4, N), ITEMS)
    for b, row in enumerate(ITEMS.tolist()):
        for t in range(4):
            met = {item for item in row[: t + 1] if item >= 0}
            assert {i for i in range(N) if masked[b, t, i] == RULED_OUT} == met
            assert all(masked[b, t, i] == 0 for i in range(N) if i not in met)


def test_ruling_out_leaves_the_given_logits_alone() -> None:
    logits = torch.zeros(4, 4, N)
    mask_seen(logits, ITEMS)
    assert not logits.any()


def test_two_factors_score_as_their_product_does() -> None:
    rng = np.random.default_rng(4)
    popularity, left, right = (rng.normal(size=shape).astype(np.float32) for shape in (N, (N, 5), (5, N)))
    factors, whole = CollaborativePrior(popularity, left, right), CollaborativePrior(popularity, left @ right)
    for of in (PriorScorer.all_positions, PriorScorer.last_position):
        one, other = (of(PriorScorer(p, CONFIG, TEXTS), ITEMS) for p in (factors, whole))
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
