"""The behaviour stage: causal, blind to padding, and equal to its formula."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from shared.config import ModelConfig
from shared.errors import ConfigError
from shared.model.behaviour import (
    AGE_EDGES,
    QUERY_EVENT,
    SCALE_GAIN,
    BehaviourStage,
    CatalogueVectors,
    EventBatch,
    lora_target_pattern,
    trainable_parameters,
)
from shared.model.weights import BaseModel, load_bert
from shared.schema import EVENT_KINDS

if TYPE_CHECKING:
    from conftest import World

B, T = 3, 6


@pytest.fixture(scope="module")
def batch(world: World) -> EventBatch:
    random = torch.Generator().manual_seed(9)
    draw = lambda low, high: torch.randint(low, high, (B, T), generator=random)  # noqa: E731
    texts = torch.randn(B, T, world.model.width, generator=random)
    return EventBatch(
        draw(0, world.n_items), draw(0, 9), draw(0, 6), torch.full((B,), T), texts, draw(0, world.n_items)
    )


@pytest.fixture(scope="module")
def fresh(base: BaseModel, tiny_model: ModelConfig) -> BehaviourStage:
    """An untrained stage."""
    return BehaviourStage(base, tiny_model, n_items=30, seed=1)


def hidden(world: World, batch: EventBatch) -> Tensor:
    with torch.no_grad():
        return world.model.hidden(batch, world.catalogue)


def check_causal(states_of: object, world: World, batch: EventBatch) -> None:
    """Events from place 3 on change no state before it."""
    assert callable(states_of)
    items, events, ratings = batch.items.clone(), batch.events.clone(), batch.ratings.clone()
    assert batch.texts is not None
    texts = batch.texts.clone()
    items[:, 3:], events[:, 3:], ratings[:, 3:], texts[:, 3:] = 1, 2, 3, 4.0
    changed = replace(batch, items=items, events=events, ratings=ratings, texts=texts)
    before, after = states_of(world, batch), states_of(world, changed)
    torch.testing.assert_close(before[:, :3], after[:, :3], atol=1e-5, rtol=1e-5)
    assert (before[:, 3:] - after[:, 3:]).abs().amax(dim=-1).min() > 1e-3


def test_a_state_depends_on_no_later_event(world: World, batch: EventBatch) -> None:
    check_causal(hidden, world, batch)


def test_a_look_into_the_future_is_caught(world: World, batch: EventBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "tril", lambda mask: mask)
    with pytest.raises(AssertionError):
        check_causal(hidden, world, batch)


def check_newest(world: World, batch: EventBatch) -> None:
    """The short way to the newest state is the long one, for rows of all lengths, whatever the padding holds."""
    ragged = replace(batch, lengths=torch.tensor([1, 4, T]))
    with torch.no_grad():
        states = world.model.hidden(ragged, world.catalogue)
        newest = world.model.newest(ragged, world.catalogue)
    torch.testing.assert_close(newest, states[torch.arange(B), ragged.lengths - 1], atol=1e-5, rtol=1e-5)


def test_the_newest_state_is_that_of_the_whole_pass(world: World, batch: EventBatch) -> None:
    check_newest(world, batch)


def test_a_newest_state_that_reads_the_padding_is_caught(
    world: World, batch: EventBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend = F.scaled_dot_product_attention

    def everywhere(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor, **rest: Any) -> Tensor:
        return attend(query, key, value, torch.ones_like(attn_mask) if query.shape[2] == 1 else attn_mask, **rest)

    monkeypatch.setattr(F, "scaled_dot_product_attention", everywhere)
    with pytest.raises(AssertionError):
        check_newest(world, batch)


def test_padding_changes_no_state(world: World, batch: EventBatch) -> None:
    cut = EventBatch(
        *(
            None if (v := getattr(batch, f.name)) is None else v if f.name == "lengths" else v[:, :4]
            for f in fields(batch)
        )
    )  # type: ignore[arg-type]
    short = replace(cut, lengths=torch.full((B,), 4))
    padded = replace(batch, lengths=short.lengths, items=batch.items.clone())
    padded.items[:, 4:] = -1
    torch.testing.assert_close(hidden(world, padded)[:, :4], hidden(world, short), atol=1e-5, rtol=1e-5)


def test_no_texts_are_the_same_as_texts_of_zeros(world: World, batch: EventBatch) -> None:
    assert batch.texts is not None
    zeros = replace(batch, texts=torch.zeros_like(batch.texts))
    assert torch.equal(hidden(world, replace(batch, texts=None)), hidden(world, zeros))


def test_every_input_is_read(world: World, batch: EventBatch) -> None:
    states = hidden(world, batch)
    assert batch.texts is not None
    for change in (
        {"items": (batch.items + 1) % world.n_items},
        {"events": 8 - batch.events},
        {"ratings": 5 - batch.ratings},
        {"texts": -batch.texts},
        {"lengths": batch.lengths + 10},  # older events
    ):
        assert not torch.allclose(states, hidden(world, replace(batch, **change)), atol=1e-3)


def test_a_query_has_no_item(world: World, batch: EventBatch) -> None:
    query = replace(batch, items=torch.full_like(batch.items, -1), events=torch.full_like(batch.events, QUERY_EVENT))
    elsewhere = CatalogueVectors(torch.zeros_like(world.catalogue.texts), world.catalogue.items)
    with torch.no_grad():
        assert torch.equal(hidden(world, query), world.model.hidden(query, elsewhere))
    assert EVENT_KINDS[QUERY_EVENT] == "query"


# --- the formula


def test_the_score_is_the_scaled_cosine_plus_the_residuals(world: World, batch: EventBatch) -> None:
    model, catalogue, states = world.model, world.catalogue, hidden(world, batch)
    assert model.head is not None and model.residuals is not None
    W = np.eye(model.width) + (model.head.up.weight @ model.head.down.weight).detach().numpy()
    h = states.numpy().astype(np.float64)
    wanted = h @ W.T
    tau = model.config.temperature * np.exp(SCALE_GAIN * model.scale.weight.item())
    cosine = wanted / np.linalg.norm(wanted, axis=-1, keepdims=True) @ catalogue.items.numpy().T
    residuals = h @ (model.residuals.factors.weight @ model.residuals.narrow.weight).detach().numpy().T
    with torch.no_grad():
        np.testing.assert_allclose(model.score(states, catalogue), tau * cosine + residuals, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.score(states[:, -1], catalogue), model.score(states, catalogue)[:, -1])


def test_the_loss_is_the_mean_cross_entropy_of_a_users_own_targets(world: World, batch: EventBatch) -> None:
    targets = batch.targets.clone()
    targets[0, 2:], targets[2] = -1, -1
    random = torch.Generator().manual_seed(1)
    prior = torch.randn(B, T, world.n_items, generator=random)
    some = replace(batch, targets=targets)
    with torch.no_grad():
        losses = world.model(some, world.catalogue, prior)
        log_p = (world.model.score(hidden(world, some), world.catalogue) + prior).log_softmax(-1)
    for b in range(2):
        own = [-log_p[b, t, i].item() for t, i in enumerate(targets[b].tolist()) if i >= 0]
        assert losses[b].item() == pytest.approx(np.mean(own), rel=1e-5)
    assert losses[2].item() == 0.0


def test_an_untrained_stage_reads_as_the_plain_bert_does(base: BaseModel, fresh: BehaviourStage, world: World) -> None:
    rows = torch.tensor([[4, 8, 15]])
    nothing = torch.zeros_like(rows)
    batch = EventBatch(rows, nothing, nothing, torch.tensor([3]), None, nothing)
    causal = torch.ones(3, 3, dtype=torch.bool).tril()[None, None]
    with torch.no_grad():
        expected = load_bert(base).encoder.layer[-1](world.catalogue.texts[rows], attention_mask=causal)
        found = fresh.hidden(batch, world.catalogue)
        torch.testing.assert_close(found, expected)
        cosine = torch.nn.functional.normalize(found, dim=-1) @ world.catalogue.items.T
        torch.testing.assert_close(fresh.score(found, world.catalogue), fresh.config.temperature * cosine)


def test_ages_begin_new_embeddings_at_their_edges(world: World) -> None:
    n = 40
    rows = torch.zeros(1, n, dtype=torch.long)
    seen: list[Tensor] = []
    hook = world.model.age_embedding.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    try:
        hidden(world, EventBatch(rows, rows, rows, torch.tensor([n]), None, rows))
    finally:
        hook.remove()
    ages = seen[0][0].flip(0).tolist()  # by age, 0 first
    assert ages == [sum(age >= edge for edge in AGE_EDGES) for age in range(n)]
    assert max(ages) == len(AGE_EDGES)


# --- what is trained


def test_partners_start_from_the_same_weights(base: BaseModel, tiny_model: ModelConfig, fresh: BehaviourStage) -> None:
    state = torch.random.get_rng_state()
    same, other = (BehaviourStage(base, tiny_model, n_items=30, seed=seed) for seed in (1, 2))
    assert torch.equal(torch.random.get_rng_state(), state)  # and nobody's random state is touched
    here = trainable_parameters(fresh)
    assert all(torch.equal(p, here[name]) for name, p in trainable_parameters(same).items())
    assert any(not torch.equal(p, here[name]) for name, p in trainable_parameters(other).items())


def test_only_lora_the_head_and_the_small_embeddings_are_trained(world: World) -> None:
    names = list(trainable_parameters(world.model))
    assert names == sorted(names)
    kinds = {name.split(".")[0] if ".lora_" not in name else "lora" for name in names}
    assert kinds == {
        "lora", "head", "residuals", "event_embedding", "rating_embedding", "age_embedding", "scale"
    }  # fmt: skip
    assert sum(".lora_" in name for name in names) == 2 * 6  # A and B of six linear maps


@pytest.mark.parametrize(("changes", "gone"), [({"head_rank": 0}, "head"), ({"item_rank": 0}, "residuals")])
def test_a_rank_of_zero_leaves_a_part_out(
    base: BaseModel, tiny_model: ModelConfig, changes: dict[str, int], gone: str
) -> None:
    model = BehaviourStage(base, tiny_model.model_copy(update={"item_rank": 1} | changes), n_items=4)
    assert getattr(model, gone) is None
    assert not any(name.startswith(gone) for name in trainable_parameters(model))


def test_lora_reaches_the_asked_layers_and_maps_alone() -> None:
    config = ModelConfig(adapted_layers=2, lora_targets=("attention.self.query", "output.dense"))
    assert lora_target_pattern(config, 6) == r".*encoder\.layer\.(4|5)\.(attention\.self\.query|output\.dense)"


def test_more_adapted_layers_than_bert_has_are_refused(base: BaseModel) -> None:
    with pytest.raises(ConfigError, match=r"Expected model\.adapted_layers <= 6, got 7"):
        BehaviourStage(base, ModelConfig(adapted_layers=7), n_items=3)


def test_no_layer_draws_at_random(world: World, batch: EventBatch) -> None:
    # Opacus needs the trained leaves in training mode; dropout must not be among them.
    assert torch.equal(hidden(world, batch), hidden(world, batch))
    dropouts = [m for m in world.model.modules() if isinstance(m, torch.nn.Dropout)]
    assert dropouts and not any(m.training for m in dropouts)


def test_dropout_is_on_inside_its_context_alone_and_its_seed_decides(world: World, batch: EventBatch) -> None:
    before, state = hidden(world, batch), torch.get_rng_state()
    drawn = []
    for seed in (1, 1, 2):
        with world.model.dropping_out(0.3, seed):
            drawn.append(hidden(world, batch))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2]) and not torch.equal(drawn[0], before)
    with pytest.raises(ZeroDivisionError), world.model.dropping_out(0.3, 1):
        raise ZeroDivisionError
    assert torch.equal(hidden(world, batch), before)
    assert torch.equal(torch.get_rng_state(), state)  # nobody else's draws moved


def test_learned_items_are_one_table_and_begin_without_a_say(base: BaseModel, tiny_model: ModelConfig) -> None:
    model = BehaviourStage(base, tiny_model.model_copy(update={"item_rank": 3}), n_items=5)
    names = [name for name in trainable_parameters(model) if name.startswith("residuals")]
    assert names == ["residuals.factors.weight", "residuals.narrow.weight", "residuals.widen.weight"]
    assert model.residuals is not None
    with torch.no_grad():
        assert not model.residuals.inputs(torch.arange(5)).any()
        assert not model.residuals.outputs(torch.ones(1, model.width)).any()


def test_renaming_the_items_renames_the_scores(world: World, fresh: BehaviourStage, batch: EventBatch) -> None:
    order = torch.randperm(world.n_items, generator=torch.Generator().manual_seed(0))
    renamed = CatalogueVectors(world.catalogue.texts[order], world.catalogue.items[order])
    other = replace(batch, items=torch.argsort(order)[batch.items])
    with torch.no_grad():
        here = fresh.score(fresh.hidden(batch, world.catalogue), world.catalogue)
        there = fresh.score(fresh.hidden(other, renamed), renamed)
    torch.testing.assert_close(there, here[..., order], atol=1e-5, rtol=1e-5)


def test_the_catalogue_moves_whole_to_a_device(world: World) -> None:
    moved = world.catalogue.to(torch.device("meta"))
    assert moved.texts.device.type == moved.items.device.type == "meta"
