"""Row "clip per example, or parameters that the clip misses": one user is one row, however much they wrote."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from stub_federation import Federate, config_of, gradient_of, order_of

from client.batches import BatchMaker
from client.statistics import clipped_statistics
from shared.adapter import flatten_parameters, load_parameters
from shared.config import ModelConfig, PriorConfig, TrainingConfig
from shared.messages import ClippedSum
from shared.model.prior import statistics_size
from shared.privacy.accounting import build_plan

if TYPE_CHECKING:
    from conftest import HistoriesOf, World

C = 0.01  # far below the gradients here: every user is clipped
REVIEWS = 50


@pytest.fixture(scope="module")
def maker(histories_of: HistoriesOf, tiny_model: ModelConfig) -> BatchMaker:
    """A user of one review (and the target after it) and one of 50, with vectors as long as BERT makes them."""
    rng = np.random.default_rng(0)
    many = [*rng.permutation(30).tolist(), *rng.permutation(30)[: REVIEWS - 30].tolist()]
    plain = histories_of([[3, 4], many])
    texts = tuple(f"review {k}" for k in range(len(plain.items)))
    vectors = np.where(rng.random((len(texts), 384)) < 0.5, -1, 1).astype(np.float16)
    reviewed = replace(plain, reviews=np.arange(len(texts), dtype=np.int32), review_texts=texts)
    return BatchMaker(reviewed, vectors, tiny_model.model_copy(update={"max_events": REVIEWS}))


def contribution(world: World, maker: BatchMaker, *users: int) -> ClippedSum:
    config = TrainingConfig(drop_events=0.0)
    batches = maker.training(np.array(users, dtype=np.int64), config, b"k" * 32)
    prior = lambda batch: torch.zeros(*batch.items.shape, world.n_items)  # noqa: E731
    return world.gradients.clipped_sum(batches, world.catalogue, prior, C)


@pytest.mark.parametrize("user", [0, 1])
def test_a_user_of_1_and_one_of_50_maximal_reviews_reach_the_same_norm(
    world: World, maker: BatchMaker, user: int
) -> None:
    """At most C over all that is trained, and not by being far from it."""
    values = contribution(world, maker, user).values
    assert 0.99 * C < np.linalg.norm(values) <= C * (1 + 1e-6)
    trained = sum(p.numel() for p in world.model.parameters() if p.requires_grad)
    assert len(values) == trained  # there is no parameter that moves outside the clip


def test_the_bound_holds_beside_others(world: World, maker: BatchMaker) -> None:
    both, alone = contribution(world, maker, 0, 1).values, contribution(world, maker, 0).values
    assert np.linalg.norm(both - alone) <= C * (1 + 1e-6)


@pytest.mark.parametrize("factor", [1, 10, 100])
def test_a_long_history_moves_no_other_user_whatever_model_the_coordinator_sends(
    world: World, histories_of: HistoriesOf, tiny_model: ModelConfig, factor: int
) -> None:
    """Padding that hangs on the batch turned 32 short histories into NaN at parameters x 100: the sum moved by 32 C."""
    honest = flatten_parameters(world.model)
    plain = histories_of([[3, 4]] * 32 + [[*range(30)]])
    maker = BatchMaker(plain, np.zeros((0, 384), np.float16), tiny_model.model_copy(update={"max_events": REVIEWS}))
    load_parameters(world.model, honest * np.float32(factor))
    try:
        alone = contribution(world, maker, *range(32)).values
        both = contribution(world, maker, *range(33)).values
        long = contribution(world, maker, 32).values
    finally:
        load_parameters(world.model, honest)
    np.testing.assert_allclose(both - alone, long, atol=1e-6 * C)


def test_a_sum_is_a_sum_and_not_divided_by_how_many_took_part(world: World, maker: BatchMaker) -> None:
    """The mean over a sample tells its size; what it is divided by, q N0, is the coordinator's and public."""
    both = contribution(world, maker, 0, 1).values
    apart = sum(contribution(world, maker, user).values for user in (0, 1))
    assert np.linalg.norm(both - apart) <= 1e-4 * C


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("kind", ["popularity", "hybrid", "ease"])
def test_the_statistics_of_a_user_are_clipped_however_many_events_they_have(
    histories_of: HistoriesOf, kind: str, k: int
) -> None:
    for items in ([3, 4], [*range(30)], [*range(30)] * 40, [7] * 500):
        total = clipped_statistics(histories_of([items]), 30, PriorConfig(), kind, clip_norm=1 / k)
        assert len(total.values) == statistics_size(kind, 30)
        assert np.linalg.norm(total.values) <= (1 + 1e-9) / k


@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_user_at_k_partners_moves_the_sum_by_no_more_than_c(federate: Federate, k: int) -> None:
    """Every partner clips to C / k; without noise, of a learner with one user that all partners hold."""
    config = config_of(1, privacy={"mode": "none", "partners_per_user": k})
    plan = build_plan(config)
    steps = federate(1, gradient=gradient_of(400, length=1e6)).noised(0, config).values
    rounding = np.sqrt(len(steps)) * plan.step("train")
    assert k * np.linalg.norm(steps * plan.step("train")) <= plan.clip_norm + k * rounding


@pytest.mark.parametrize("k", [1, 2, 4])
def test_a_user_at_k_partners_moves_the_prior_s_sum_by_no_more_than_1(federate: Federate, k: int) -> None:
    changes = {"mode": "none", "partners_per_user": k}
    order = replace(order_of(config_of(1, privacy=changes, prior={"kind": "popularity"})), stage="prior")
    steps = federate(1).agent(0).learner.noised_statistics(order).values
    rounding = np.sqrt(len(steps)) * order.plan.step("prior")
    assert 0 < k * np.linalg.norm(steps * order.plan.step("prior")) <= 1 + k * rounding
