"""Whatever the histories: one user moves every sum by at most its clip norm, and no other user's part of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from ledgers import PLAN

from client.batches import BatchMaker
from client.privatize import add_noise_share, sample_users
from client.statistics import clipped_statistics
from client.training import clip_and_sum
from shared.config import ModelConfig, PriorConfig, TrainingConfig
from shared.hazmat.randomness import SeededRandomness
from shared.messages import ClippedSum
from shared.model.behaviour import EventBatch
from shared.privacy.lattice import sensitivity

if TYPE_CHECKING:
    from conftest import HistoriesOf, World

N = 8
item = st.integers(0, N - 1)
short = st.lists(item, min_size=1, max_size=12)
# Repetitive ones too: a short pattern many times over, with a tail.
repeated = st.builds(lambda pattern, times, tail: pattern * times + tail, short, st.integers(1, 30), short)
history = short | repeated
crowd = st.lists(history, max_size=5)
priors = st.builds(
    PriorConfig, decay=st.floats(0.01, 1.0), history_decay=st.floats(0.01, 1.0), max_targets=st.integers(1, 60)
)
calm = settings(deadline=None)


@calm
@given(
    others=crowd,
    user=history,
    place=st.integers(0, 5),
    prior=priors,
    kind=st.sampled_from(["hybrid", "ease", "hybrid_sketch", "sketch", "popularity"]),
    clip_norm=st.sampled_from([1.0, 0.5, 1 / 3]),
)
def test_adding_a_user_moves_the_statistics_by_at_most_the_clip_norm(
    histories_of: HistoriesOf,
    others: list[list[int]],
    user: list[int],
    place: int,
    prior: PriorConfig,
    kind: str,
    clip_norm: float,
) -> None:
    joined = [*others[:place], user, *others[place:]]
    after, before = (
        clipped_statistics(histories_of(some), N, prior, kind, clip_norm=clip_norm).values for some in (joined, others)
    )
    assert np.linalg.norm(after - before) <= clip_norm * (1 + 1e-9)


rows = arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.integers(1, 40)),
    elements=st.floats(width=32, allow_nan=True, allow_infinity=True),
)


@calm
@given(gradients=rows, clip_norm=st.floats(1e-3, 10.0), gone=st.integers(0, 5))
def test_removing_any_gradient_moves_the_clipped_sum_by_at_most_the_clip_norm(
    gradients: np.ndarray[tuple[int, int], np.dtype[np.float32]], clip_norm: float, gone: int
) -> None:
    tensor = torch.from_numpy(gradients)
    stays = torch.arange(len(tensor)) != gone % len(tensor)
    single = clip_and_sum(tensor[~stays], clip_norm).double()
    assert torch.isfinite(single).all()
    assert single.norm() <= clip_norm * (1 + 1e-6)
    moved = clip_and_sum(tensor, clip_norm).double() - clip_and_sum(tensor[stays], clip_norm).double()
    # Rounding of a float32 sum of at most six rows of norm C.
    assert (moved - single).norm() <= 6e-6 * clip_norm


def test_clip_and_sum_scales_each_row_once() -> None:
    gradients = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [torch.nan, 1.0], [torch.inf, 0.0]])
    torch.testing.assert_close(clip_and_sum(gradients, 1.0), torch.tensor([0.6 + 0.3, 0.8 + 0.4]))
    assert clip_and_sum(torch.zeros(0, 2), 1.0).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("value", [1e18, 3e38])
def test_a_gradient_too_long_for_float32_counts_as_nothing(value: float) -> None:
    assert clip_and_sum(torch.full((1, 4), value), 1.0).tolist() == [0.0] * 4


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3, 1e12, 1e15])
@pytest.mark.parametrize("shape", [(1, 3), (1, 300_000)])
def test_a_row_of_any_length_and_scale_keeps_the_bound(scale: float, shape: tuple[int, int]) -> None:
    # The worst for a float32 norm: a few large entries, then very many small ones.
    random = torch.Generator().manual_seed(0)
    row = torch.randn(shape, generator=random)
    row[0, :2] *= 300
    assert clip_and_sum(scale * row, 0.01).double().norm() <= 0.01 * (1 + 1e-6)


def logits(world: World, batch: EventBatch) -> torch.Tensor:
    return torch.zeros(*batch.items.shape, world.n_items)


@settings(deadline=None, max_examples=15)
@given(others=st.lists(history, min_size=1, max_size=3), user=history, data=st.data())
def test_a_users_gradient_is_the_same_in_any_company(
    world: World, histories_of: HistoriesOf, others: list[list[int]], user: list[int], data: st.DataObject
) -> None:
    everyone = histories_of([user, *others])  # the user is u000 in both
    model: ModelConfig = world.model.config
    training = TrainingConfig(drop_events=data.draw(st.sampled_from([0.0, 0.5])), microbatch=1)
    nothing = np.zeros((0, world.model.width), dtype=np.float16)
    (alone,) = BatchMaker(histories_of([user]), nothing, model).training(np.array([0]), training, b"k")
    together = BatchMaker(everyone, nothing, model).training(
        np.arange(len(everyone)), training.model_copy(update={"microbatch": 8}), b"k"
    )
    expected, _ = world.gradients.of(alone, world.catalogue, logits(world, alone))
    (batch,) = together
    found, _ = world.gradients.of(batch, world.catalogue, logits(world, batch))
    gaps = (found - expected).norm(dim=1)
    assert gaps.min() <= 1e-5 * expected.norm()


@calm
@given(
    users=st.sets(st.text(min_size=1, max_size=6), min_size=2, max_size=12),
    q=st.floats(0.05, 0.95),
    context=st.text(max_size=8),
)
def test_no_user_decides_whether_another_takes_part(users: set[str], q: float, context: str) -> None:
    plan = replace(PLAN, sampling_rate=q)
    source = SeededRandomness(0, "federation")
    names = tuple(sorted(users))
    taken = {names[k] for k in sample_users(names, plan, source, context)}
    rest = names[1:]
    assert {rest[k] for k in sample_users(rest, plan, source, context)} == taken - {names[0]}


@calm
@given(
    pair=arrays(np.float64, st.tuples(st.just(2), st.integers(1, 60)), elements=st.floats(-1e6, 1e6)),
    population=st.sampled_from([10, 10**7, 10**9]),
    partners_per_user=st.integers(1, 3),
    seed=st.integers(0, 2**16),
)
def test_a_user_moves_what_is_noised_by_at_most_the_sensitivity_whatever_the_others_sum_to(
    pair: np.ndarray[tuple[int, int], np.dtype[np.float64]], population: int, partners_per_user: int, seed: int
) -> None:
    """Rounding included, with the dither that both sums share; an example fails with p <= 1e-12 for correct code."""
    plan = replace(PLAN, mode="none", population=population, partners_per_user=partners_per_user)
    others, user = pair
    length = np.linalg.norm(user)
    user = user * (plan.partner_clip_norm / length) if length > plan.partner_clip_norm else user
    source = SeededRandomness(seed, "p")
    with_user, without = (
        add_noise_share(ClippedSum(total, plan.partner_clip_norm), plan, "train", source, "c").values
        for total in (others + user, others)
    )
    moved, scale = np.linalg.norm(with_user - without), plan.scale("train")
    # One partner's part of it; floats of 1e6 are good to 1e-10.
    own = sensitivity(scale, len(user), partners_per_user) / partners_per_user
    assert moved <= own + 1e-9 * scale
