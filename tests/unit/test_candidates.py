"""A softmax over some of a large catalogue."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from client import workbench
from client.workbench import Workbench
from shared.config import PriorConfig
from shared.model import prior_scores
from shared.model.behaviour import EventBatch
from shared.model.candidates import Candidates, SampledPrior, draw_candidates
from shared.model.prior import CollaborativePrior
from shared.model.prior_scores import RULED_OUT, PriorScorer, mask_seen

if TYPE_CHECKING:
    from conftest import World

T = 6
Exact = Callable[[EventBatch], Tensor]
KINDS = ("whole", "factors", "popularity")


def prior_of(kind: str, n: int) -> CollaborativePrior:
    rng = np.random.default_rng(2)

    def draw(*shape: int) -> NDArray[np.float32]:
        return rng.normal(size=shape).astype(np.float32)

    popularity, texts = draw(n), np.array([3.0, 0.0], dtype=np.float32)
    if kind == "popularity":
        return CollaborativePrior(popularity, text_weights=texts)
    if kind == "whole":
        return CollaborativePrior(popularity, draw(n, n), text_weights=texts)
    return CollaborativePrior(popularity, draw(n, 4), draw(4, n) + 1.0, text_weights=texts)


@pytest.fixture(params=KINDS)
def scorer(request: pytest.FixtureRequest, world: World) -> PriorScorer:
    return PriorScorer(prior_of(request.param, world.n_items), PriorConfig(), world.catalogue.items)


@pytest.fixture
def batch(world: World) -> EventBatch:
    """Five users of 2 to 6 events, whose targets are items that they have not met; one has none."""
    rng = np.random.default_rng(1)
    rows = np.stack([rng.permutation(world.n_items)[: T + 1] for _ in range(5)])
    items, targets = torch.from_numpy(rows[:, :T].copy()), torch.from_numpy(rows[:, 1:].copy())
    lengths = torch.tensor([6, 2, 5, 6, 3])
    real = torch.arange(T) < lengths.unsqueeze(1)
    items, targets = torch.where(real, items, -1), torch.where(real, targets, -1)
    items[0, 2], targets[4] = -1, -1  # a query has no item
    codes = torch.zeros_like(items)
    return EventBatch(items, codes, codes, lengths, None, targets)


def every_item_once(n: int) -> Candidates:
    return Candidates(torch.arange(n), torch.zeros(n))


def exact(scorer: PriorScorer, batch: EventBatch) -> Tensor:
    return mask_seen(scorer.all_positions(batch.items), batch.items)


def sampled(scorer: PriorScorer, batch: EventBatch, candidates: Candidates) -> SampledPrior:
    return scorer.of_candidates(batch.items, batch.targets, candidates)


# --- the loss -------------------------------------------------------------------------------------


def test_with_every_item_for_a_candidate_it_is_the_exact_loss(
    world: World, batch: EventBatch, scorer: PriorScorer
) -> None:
    whole = world.model(batch, world.catalogue, exact(scorer, batch))
    some = world.model(batch, world.catalogue, sampled(scorer, batch, every_item_once(world.n_items)))
    torch.testing.assert_close(some, whole, rtol=1e-5, atol=1e-5)
    assert some[4] == 0 and (some[:4] > 0).all()


def test_gradients_of_users_go_to_the_exact_ones(world: World, batch: EventBatch, scorer: PriorScorer) -> None:
    expected, _ = world.gradients.of(batch, world.catalogue, exact(scorer, batch))
    likeness = []
    for count in (8, 30_000):
        drawn = draw_candidates(scorer.popularity, b"1", count)
        found, _ = world.gradients.of(batch, world.catalogue, sampled(scorer, batch, drawn))
        likeness.append(torch.nn.functional.cosine_similarity(found[:4], expected[:4]).min())
    assert likeness[1] > 0.99 > likeness[0]


def others_of_a_changed_user_stay(world: World, batch: EventBatch, scorer: PriorScorer) -> bool:
    drawn = draw_candidates(scorer.popularity, b"1", 16)
    before = world.model(batch, world.catalogue, sampled(scorer, batch, drawn))
    items, targets = batch.items.clone(), batch.targets.clone()
    items[1], targets[1] = (items[1] + 1) % world.n_items, (targets[1] + 3) % world.n_items
    other = replace(batch, items=items, targets=targets)
    after = world.model(other, world.catalogue, sampled(scorer, other, drawn))
    assert before[1] != after[1]
    return torch.equal(before[[0, 2, 3, 4]], after[[0, 2, 3, 4]])


def test_a_user_s_loss_hangs_on_no_other_user(world: World, batch: EventBatch, scorer: PriorScorer) -> None:
    assert others_of_a_changed_user_stay(world, batch, scorer)


def test_what_others_met_would_be_seen(
    world: World, batch: EventBatch, scorer: PriorScorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A planted bug: candidates that anybody in the batch has met count for nobody."""
    rule = prior_scores.not_to_be_ranked

    def for_all(*args: Tensor) -> Tensor:
        out = rule(*args)
        return out.any(dim=0, keepdim=True).expand_as(out)

    monkeypatch.setattr(prior_scores, "not_to_be_ranked", for_all)
    assert not others_of_a_changed_user_stay(world, batch, scorer)


def test_neither_what_was_met_nor_the_target_is_among_the_others(batch: EventBatch, scorer: PriorScorer) -> None:
    n = len(scorer.popularity)
    out = sampled(scorer, batch, every_item_once(n)).logits[..., 1:] == RULED_OUT
    for user in range(len(batch.items)):
        for t in range(T):
            met = {int(item) for item in (*batch.items[user, : t + 1], batch.targets[user, t])} - {-1}
            assert set(out[user, t].nonzero().flatten().tolist()) == met


# --- the sample -----------------------------------------------------------------------------------


def test_the_sample_stands_for_the_catalogue() -> None:
    """The mean of the estimates is the sum over all items, for scores that go with popularity and for others."""
    popularity = torch.linspace(4, -4, 200, dtype=torch.float32)
    draws = [draw_candidates(popularity, str(k).encode(), 100) for k in range(400)]
    for scores in (popularity, -popularity, torch.zeros(200)):
        estimates = torch.stack([torch.exp(scores[one.items] + one.weights).sum() for one in draws])
        error = estimates.mean() / torch.exp(scores).sum() - 1
        assert abs(error) < 4 * estimates.std() / estimates.mean() / math.sqrt(len(draws))
        assert estimates.std() / estimates.mean() < 0.5


def test_the_sample_is_the_same_for_the_same_key_and_another_for_another() -> None:
    popularity = torch.linspace(1, -1, 1000)
    one, same, other = (draw_candidates(popularity, key, 50) for key in (b"1", b"1", b"2"))
    assert torch.equal(one.items, same.items) and torch.equal(one.weights, same.weights)
    assert not torch.equal(one.items, other.items)
    assert one.weights.max() <= math.log(2 * 1000 / 50) + 1e-6


# --- where it is used -----------------------------------------------------------------------------


def test_only_rounds_over_large_catalogues_are_sampled(
    world: World, batch: EventBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Workbench(world.model, world.gradients, world.catalogue, None)  # type: ignore[arg-type]
    prior = prior_of("popularity", world.n_items)
    assert isinstance(bench.prior_logits(prior, PriorConfig(), 3)(batch), Tensor)
    monkeypatch.setattr(workbench, "MOST_EXACT", world.n_items - 1)
    assert isinstance(bench.prior_logits(prior, PriorConfig())(batch), Tensor)
    told = [bench.prior_logits(prior, PriorConfig(), number)(batch) for number in (3, 3, 4)]
    assert all(isinstance(one, SampledPrior) for one in told)
    one, same, other = (one.items for one in told if isinstance(one, SampledPrior))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_the_spread_of_scores_is_that_of_the_whole_catalogue(world: World, batch: EventBatch) -> None:
    """A sample of alike items would otherwise be drawn apart."""
    prior = replace(prior_of("factors", world.n_items), text_weights=None)
    scorer = PriorScorer(prior, PriorConfig(), world.catalogue.items)
    some = Candidates(torch.tensor([3, 3, 5]), torch.zeros(3))
    found = sampled(scorer, batch, some).logits[..., 1:]
    expected = scorer.all_positions(batch.items)[..., some.items]
    kept = found != prior_scores.RULED_OUT
    torch.testing.assert_close(found[kept], expected[kept], rtol=1e-4, atol=1e-4)
