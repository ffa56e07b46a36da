"""Per-user gradients of the real BERT stage: each user's own, clipped once, whatever the history."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from client import training
from client.batches import BatchMaker
from client.privatize import add_noise_share
from client.training import ROUNDING_SLACK, UserGradients, clip_and_sum
from shared.adapter import flatten_parameters, load_parameters
from shared.config import ModelConfig, PriorConfig, TrainingConfig
from shared.errors import SensitivityError
from shared.hazmat.randomness import SeededRandomness
from shared.model.behaviour import BehaviourStage, CatalogueVectors, EventBatch, trainable_parameters
from shared.model.prior import CollaborativePrior
from shared.model.prior_scores import PriorScorer, mask_seen
from shared.model.weights import has_fast_bf16
from shared.privacy.plan import PrivacyPlan
from shared.schema import Histories

if TYPE_CHECKING:
    from conftest import HistoriesOf, World

C = 0.01  # far below the gradients here: every user is clipped
KEY = b"k" * 32
TOLERANCE = 1e-5
Gradients = Callable[[EventBatch], Tensor]
SumOf = Callable[[Iterable[EventBatch]], NDArray[np.float64]]


@pytest.fixture(scope="module")
def prior(world: World) -> Callable[[EventBatch], Tensor]:
    """The prior's logits as a partner computes them, from random weights."""
    rng = np.random.default_rng(5)
    n = world.n_items
    weights = rng.normal(size=(n, n)).astype(np.float32)
    texts = np.array([5.0, 0.5], dtype=np.float32)
    learned = CollaborativePrior(rng.normal(size=n).astype(np.float32), weights, text_weights=texts)
    scorer = PriorScorer(learned, PriorConfig(), world.catalogue.items)
    return lambda batch: mask_seen(scorer.all_positions(batch.items), batch.items)


@pytest.fixture(scope="module")
def batch(world: World) -> EventBatch:
    """Six users of 1 to 8 events with reviews, ratings, a query, padding, and one without any target."""
    random = torch.Generator().manual_seed(3)
    lengths = torch.tensor([8, 1, 5, 8, 3, 2])
    shape = (6, 8)
    real = torch.arange(8) < lengths.unsqueeze(1)
    draw = lambda low, high: torch.randint(low, high, shape, generator=random)  # noqa: E731
    items = torch.where(real, draw(0, world.n_items), -1)
    items[0, 3] = -1  # a query has no item
    targets = torch.where(real, draw(-1, world.n_items), -1)
    targets[5] = -1
    texts = torch.randn(*shape, world.model.width, generator=random) * (draw(0, 2) * real).unsqueeze(-1)
    return EventBatch(items, draw(0, 9) * real, draw(0, 6) * real, lengths, texts, targets)


def alone(batch: EventBatch, k: int) -> EventBatch:
    """User k without any padding."""
    row, cut = slice(k, k + 1), slice(0, int(batch.lengths[k]))
    return EventBatch(
        batch.items[row, cut],
        batch.events[row, cut],
        batch.ratings[row, cut],
        batch.lengths[row],
        None if batch.texts is None else batch.texts[row, cut],
        batch.targets[row, cut],
    )


def plain_gradient(world: World, batch: EventBatch, prior: Tensor) -> Tensor:
    """The gradient of one user's loss by autograd alone, without Opacus; flat."""
    parameters = list(trainable_parameters(world.model).values())
    loss = world.model(batch, world.catalogue, prior).sum()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])


def check_gradients_equal_a_loop(gradients: Gradients, loop: list[Tensor], batch: EventBatch) -> None:
    """Row k of the batch's gradients is user k's own gradient, to 1e-5 of its norm."""
    rows = gradients(batch)
    assert len(rows) == len(loop)
    for row, expected in zip(rows, loop, strict=True):
        assert (row - expected).norm() <= TOLERANCE * expected.norm()


def check_users_are_apart(gradients: Gradients, batch: EventBatch) -> None:
    """Whatever user 2 does, the gradients of the others are the same to the last bit."""
    assert batch.texts is not None
    items, events, ratings = batch.items.clone(), batch.events.clone(), batch.ratings.clone()
    texts, targets = batch.texts.clone(), batch.targets.clone()
    items[2], events[2], ratings[2], texts[2] = items[2].flip(0), 8 - events[2], 5 - ratings[2], -30 * texts[2]
    targets[2] = (targets[2] + 1).clamp(max=20)
    other = EventBatch(items, events, ratings, batch.lengths, texts, targets)
    before, after = gradients(batch), gradients(other)
    assert not torch.equal(before[2], after[2])
    others = [k for k in range(len(before)) if k != 2]
    assert torch.equal(before[others], after[others])


def test_gradients_of_users_equal_a_loop_over_single_users(
    world: World, batch: EventBatch, prior: Callable[[EventBatch], Tensor]
) -> None:
    users = [alone(batch, k) for k in range(6)]
    loop = [plain_gradient(world, user, prior(user)) for user in users]
    # All of it is trained: LoRA, embeddings, head, residuals; and only the user without a target has no gradient.
    assert [bool(g.norm() > 1) for g in loop] == [True] * 5 + [False]
    check_gradients_equal_a_loop(lambda b: world.gradients.of(b, world.catalogue, prior(b))[0], loop, batch)


def test_every_trained_tensor_gets_a_gradient_and_no_other_does(
    world: World, batch: EventBatch, prior: Callable[[EventBatch], Tensor]
) -> None:
    flat, losses = world.gradients.of(batch, world.catalogue, prior(batch))
    sizes = [p.numel() for p in trainable_parameters(world.model).values()]
    assert flat.shape == (6, world.gradients.size) == (6, sum(sizes))
    assert all(bool(part.norm() > 0) for part in flat.split(sizes, dim=1))
    assert losses.shape == (6,) and float(losses[5]) == 0.0
    assert all(p.grad is None for p in world.model.parameters())


@pytest.mark.parametrize("bf16", [False, True])
def test_another_users_data_do_not_change_a_users_gradient(
    world: World, batch: EventBatch, prior: Callable[[EventBatch], Tensor], bf16: bool
) -> None:
    check_users_are_apart(lambda b: world.gradients.of(b, world.catalogue, prior(b), bf16=bf16)[0], batch)


@pytest.mark.parametrize("coupling", ["in-batch centring", "in-batch negatives"])
def test_a_planted_coupling_of_users_is_caught(
    world: World,
    batch: EventBatch,
    prior: Callable[[EventBatch], Tensor],
    monkeypatch: pytest.MonkeyPatch,
    coupling: str,
) -> None:
    users = [alone(batch, k) for k in range(6)]
    loop = [plain_gradient(world, user, prior(user)) for user in users]
    score = world.model.score

    def coupled(hidden: Tensor, catalogue: CatalogueVectors) -> Tensor:
        logits = score(hidden, catalogue)
        if coupling == "in-batch centring":
            return logits - 0.1 * logits.mean(0, keepdim=True)
        return logits + 0.01 * (hidden.flatten(0, 1).mean(0) @ catalogue.items.T)

    monkeypatch.setattr(world.model, "score", coupled)

    def gradients(b: EventBatch) -> Tensor:
        return world.gradients.of(b, world.catalogue, prior(b))[0]

    with pytest.raises(AssertionError):
        check_gradients_equal_a_loop(gradients, loop, batch)
    with pytest.raises(AssertionError):
        check_users_are_apart(gradients, batch)


# --- one user's contribution


def hostile(histories_of: HistoriesOf) -> tuple[Histories, NDArray[np.float16]]:
    """Users who try to count for more than one, with reviews as large as fp16 holds, and one that is NaN."""
    rng = np.random.default_rng(0)
    users = [
        [*[1, 2] * 600, 3, 1, 4, 2, 5, 1, 6, 2],  # long and repetitive
        list(range(30)) * 40,  # long, everything, over and over: no new item at the end
        [7] * 500,  # one item only: no target
        [3],  # one event
        [3, 4],
        [*range(29, -1, -1)],
        [*rng.integers(0, 20, 900).tolist(), 29, 28, 3, 27, 26],
        [5, 6, 5, 7, 5, 8, 5, 9],
    ]
    plain = histories_of(users)
    width = 384
    reviews = np.full(len(plain.items), -1, dtype=np.int32)
    reviews[plain.offsets[:-1][5] :] = rng.integers(0, 3, len(plain.items) - plain.offsets[5])
    reviews[plain.offsets[7] :] = 3
    vectors = (rng.normal(size=(4, width)) * 1000).astype(np.float16)
    vectors[1] = 60_000
    vectors[3] = np.nan
    ratings = rng.choice([np.nan, -1e30, 0.0, 5.0, 1e30], len(plain.items)).astype(np.float32)
    return replace(plain, reviews=reviews, ratings=ratings, review_texts=("a", "b", "c", "d")), vectors


@pytest.fixture(scope="module")
def maker(histories_of: HistoriesOf, tiny_model: ModelConfig) -> BatchMaker:
    histories, vectors = hostile(histories_of)
    return BatchMaker(histories, vectors, tiny_model)


USERS = 8


def batches(maker: BatchMaker, users: Iterable[int], microbatch: int = 3) -> Iterator[EventBatch]:
    config = TrainingConfig(microbatch=microbatch, drop_events=0.0)
    return maker.training(np.array(list(users), dtype=np.int64), config, KEY)


def check_contribution(sum_of: SumOf, maker: BatchMaker) -> None:
    """No user moves the sum by more than C, alone or beside any others; and the bound is nearly met."""
    everyone = sum_of(batches(maker, range(USERS)))
    norms = []
    for k in range(USERS):
        single = sum_of(batches(maker, [k]))
        assert np.isfinite(single).all()
        norms.append(float(np.linalg.norm(single)))
        without = sum_of(batches(maker, [j for j in range(USERS) if j != k]))
        # Another padding of the others costs float32 rounding, for which the clip norm keeps room.
        assert np.linalg.norm(everyone - without) <= C
    assert max(norms) <= C
    assert sum(norm > C * (1 - 2 * ROUNDING_SLACK) for norm in norms) >= 4  # it is not kept by being far from it


def sum_with(world: World, prior: Callable[[EventBatch], Tensor], *, bf16: bool = False) -> SumOf:
    return lambda made: world.gradients.clipped_sum(made, world.catalogue, prior, C, bf16=bf16).values


def test_no_user_contributes_more_than_the_clip_norm(
    world: World, prior: Callable[[EventBatch], Tensor], maker: BatchMaker
) -> None:
    check_contribution(sum_with(world, prior), maker)


def test_in_bfloat16_no_user_alone_contributes_more_than_the_clip_norm(
    world: World, prior: Callable[[EventBatch], Tensor], maker: BatchMaker
) -> None:
    sum_of = sum_with(world, prior, bf16=True)
    norms = [float(np.linalg.norm(sum_of(batches(maker, [k])))) for k in range(USERS)]
    assert max(norms) <= C
    assert max(norms) > C * (1 - 2 * ROUNDING_SLACK)


def test_users_without_a_usable_gradient_add_nothing(
    world: World, prior: Callable[[EventBatch], Tensor], maker: BatchMaker
) -> None:
    sum_of = sum_with(world, prior)
    for k, why in ((1, "no new item"), (2, "one item"), (3, "one event"), (7, "NaN in a review")):
        assert not sum_of(batches(maker, [k])).any(), why
    with_nan, without = sum_of(batches(maker, [0, 6, 7])), sum_of(batches(maker, [0, 6]))
    assert np.isfinite(with_nan).all()
    assert np.linalg.norm(with_nan - without) <= 1e-5 * C


def no_clip(gradients: Tensor, clip_norm: float) -> Tensor:
    return gradients.nan_to_num(0.0, 0.0, 0.0).sum(0)


def clip_of_batch(gradients: Tensor, clip_norm: float) -> Tensor:
    """Clips the mean of a batch and scales it back: what clipping after aggregation does."""
    return len(gradients) * clip_and_sum(gradients.nan_to_num(0.0, 0.0, 0.0).mean(0, keepdim=True), clip_norm)


def clip_without_head(gradients: Tensor, clip_norm: float) -> Tensor:
    """Measures the norm without the last tenth of the parameters."""
    measured = gradients[:, : gradients.shape[1] * 9 // 10].norm(dim=1).nan_to_num(0.0)
    return (clip_norm / measured.clamp(min=1e-12)).clamp(max=1.0) @ gradients.nan_to_num(0.0)


def clip_by_tensor(gradients: Tensor, clip_norm: float) -> Tensor:
    """Clips two halves of the parameters to C each: sqrt(2) C together."""
    return torch.cat([clip_and_sum(half, clip_norm) for half in gradients.tensor_split(2, dim=1)])


@pytest.mark.parametrize("broken", [no_clip, clip_of_batch, clip_without_head, clip_by_tensor])
def test_a_planted_flaw_in_clipping_is_caught(
    world: World,
    prior: Callable[[EventBatch], Tensor],
    maker: BatchMaker,
    monkeypatch: pytest.MonkeyPatch,
    broken: Callable[[Tensor, float], Tensor],
) -> None:
    monkeypatch.setattr(training, "clip_and_sum", broken)
    with pytest.raises(AssertionError):
        check_contribution(sum_with(world, prior), maker)


def by_position(made: Iterable[EventBatch]) -> Iterator[EventBatch]:
    """A planted bug: every position is a row of its own, and is clipped by itself."""
    for batch in made:
        for k in range(len(batch.items)):
            user = alone(batch, k)
            places = torch.nonzero(user.targets[0] >= 0).flatten()
            if len(places):
                rows = EventBatch(
                    user.items.repeat(len(places), 1),
                    user.events.repeat(len(places), 1),
                    user.ratings.repeat(len(places), 1),
                    user.lengths.repeat(len(places)),
                    None if user.texts is None else user.texts.repeat(len(places), 1, 1),
                    torch.full((len(places), user.items.shape[1]), -1),
                )
                rows.targets[torch.arange(len(places)), places] = user.targets[0, places]
                yield rows


def test_planted_clipping_of_positions_instead_of_users_is_caught(
    world: World, prior: Callable[[EventBatch], Tensor], maker: BatchMaker
) -> None:
    right = sum_with(world, prior)
    with pytest.raises(AssertionError):
        check_contribution(lambda made: right(by_position(made)), maker)


# --- the sum


def test_the_sum_does_not_depend_on_how_users_are_batched(
    world: World, prior: Callable[[EventBatch], Tensor], maker: BatchMaker
) -> None:
    sum_of = sum_with(world, prior)
    together, single = sum_of(batches(maker, range(USERS), 8)), sum_of(batches(maker, range(USERS), 1))
    assert np.linalg.norm(together - single) <= 1e-5 * np.linalg.norm(single)


def test_a_coupling_of_users_in_bfloat16_is_found_out(
    world: World, prior: Callable[[EventBatch], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every row alone has the same bits in every batch; a batch that lends a row a little of its mean has not."""
    honest = world.gradients.rows_stand_alone(world.catalogue, {8}, prior)
    assert honest or not has_fast_bf16("cpu")  # where bf16 is not native, nothing is promised, and it is not used
    of = world.gradients.of

    def coupled(batch: EventBatch, *others: Any, **named: Any) -> tuple[Tensor, Tensor]:
        flat, losses = of(batch, *others, **named)
        return flat + 1e-6 * flat.mean(dim=0), losses

    monkeypatch.setattr(world.gradients, "of", coupled)
    assert not world.gradients.rows_stand_alone(world.catalogue, {8}, prior)


def test_a_coupling_where_the_start_has_no_gradient_is_found_out(
    world: World, prior: Callable[[EventBatch], Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """LoRA begins with B = 0, and so the gradient of A with 0, which any rounding gets right."""
    if not world.gradients.rows_stand_alone(world.catalogue, {8}, prior):
        pytest.skip("no bfloat16 products that stand alone on this machine")
    of, start = world.gradients.of, flatten_parameters(world.model)
    places, zeros = (
        torch.cat([torch.full((p.numel(),), kind in name) for name, p in trainable_parameters(world.model).items()])
        for kind in ("lora_A", "lora_B")
    )
    assert places.any() and zeros.any()

    def coupled(batch: EventBatch, *others: Any, **named: Any) -> tuple[Tensor, Tensor]:
        flat, losses = of(batch, *others, **named)
        return flat + 1e-3 * places * flat.mean(dim=0), losses

    monkeypatch.setattr(world.gradients, "of", coupled)
    zeroed = np.where(zeros, 0, start)
    load_parameters(world.model, zeroed)
    try:
        assert not world.gradients.rows_stand_alone(world.catalogue, {8}, prior)
        assert (flatten_parameters(world.model) == zeroed).all()  # put back
    finally:
        load_parameters(world.model, start)


def test_an_empty_poisson_sample_is_zeros_and_still_gets_noise(
    world: World, prior: Callable[[EventBatch], Tensor], maker: BatchMaker
) -> None:
    clipped = world.gradients.clipped_sum(batches(maker, []), world.catalogue, prior, C)
    assert clipped.values.shape == (world.gradients.size,) and not clipped.values.any()
    assert (clipped.clip_norm, clipped.private_loss) == (C, None)
    plan = PrivacyPlan("distributed", 1e-5, 0.1, 100, C, 2.0, None, 5, 1, 1, 1, 0, False, 1, 100)
    noised = add_noise_share(clipped, plan, "train", SeededRandomness(0, "p"), "c")
    # 5 standard errors of a deviation of d values: p < 6e-7.
    billed = np.sqrt(plan.share_variance("train", world.gradients.size))  # (in lattice steps)
    assert abs(noised.values.std() / billed - 1) < 5 / np.sqrt(2 * world.gradients.size)


def test_small_gradients_are_not_scaled_up(world: World, batch: EventBatch) -> None:
    flat, losses = world.gradients.of(batch, world.catalogue, torch.zeros(6, 8, world.n_items))
    clipped = world.gradients.clipped_sum(
        [batch], world.catalogue, lambda b: torch.zeros(*b.items.shape, world.n_items), 1e6
    )
    np.testing.assert_allclose(clipped.values, flat.sum(0).numpy(), rtol=1e-4, atol=1e-5)
    assert clipped.private_loss == pytest.approx(float(losses.mean()))


def test_a_sum_that_is_not_finite_is_refused(world: World, batch: EventBatch) -> None:
    with pytest.raises(SensitivityError, match="Expected a finite sum"):
        world.gradients.clipped_sum(
            [batch], world.catalogue, lambda b: torch.zeros(*b.items.shape, world.n_items), float("nan")
        )


# --- the hooks


def test_two_backward_passes_are_refused(world: World, batch: EventBatch) -> None:
    flat = torch.zeros(6, 8, world.n_items)
    with world.gradients._hooks():
        world.gradients._hooked(batch, world.catalogue, flat).sum().backward()
        with pytest.raises(SensitivityError, match="Expected one backward pass"):
            world.gradients.of(batch, world.catalogue, flat)


def test_a_pass_cut_short_does_not_spoil_the_next(world: World, batch: EventBatch) -> None:
    logits = torch.zeros(6, 8, world.n_items)
    before, _ = world.gradients.of(batch, world.catalogue, logits)
    with pytest.raises(IndexError):
        world.gradients.of(replace(batch, targets=torch.full_like(batch.targets, 10**6)), world.catalogue, logits)
    with pytest.raises(RuntimeError):
        world.gradients.of(batch, world.catalogue, torch.zeros(2, 2))
    after, _ = world.gradients.of(batch, world.catalogue, logits)
    assert torch.equal(before, after)
    user = alone(batch, 0)
    smaller, _ = world.gradients.of(user, world.catalogue, torch.zeros(1, 8, world.n_items))
    assert (smaller[0] - before[0]).norm() <= TOLERANCE * before[0].norm()


def test_new_rounds_load_new_weights_into_the_hooked_model(
    world: World, batch: EventBatch, prior: Callable[[EventBatch], Tensor]
) -> None:
    begin = flatten_parameters(world.model)
    try:
        load_parameters(world.model, begin * np.float32(0.5))
        loop = [plain_gradient(world, alone(batch, k), prior(alone(batch, k))) for k in range(6)]
        check_gradients_equal_a_loop(lambda b: world.gradients.of(b, world.catalogue, prior(b))[0], loop, batch)
    finally:
        load_parameters(world.model, begin)


def test_hooks_cannot_be_added_twice(base: object, tiny_model: ModelConfig) -> None:
    model = BehaviourStage(base, tiny_model, n_items=3)  # type: ignore[arg-type]
    UserGradients(model)
    with pytest.raises(ValueError, match="hooks twice"):
        UserGradients(model)
