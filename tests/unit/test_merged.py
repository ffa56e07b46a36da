"""LoRA merged into the maps that it adapts: the same numbers, by plain layers, and the given model untouched."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from shared.adapter import flatten_parameters, load_parameters
from shared.config import ModelConfig
from shared.errors import AdapterMismatchError
from shared.model.behaviour import BehaviourStage, CatalogueVectors, EventBatch, trainable_parameters
from shared.model.merged import merged
from shared.model.weights import BaseModel

if TYPE_CHECKING:
    from conftest import World

B, T = 4, 6


@pytest.fixture(scope="module")
def model(base: BaseModel, tiny_model: ModelConfig, world: World) -> BehaviourStage:
    """The world's parameters without Opacus' hooks, as a release has them: with item residuals and a head."""
    bare = BehaviourStage(base, tiny_model.model_copy(update={"item_rank": 2}), n_items=world.n_items)
    load_parameters(bare, flatten_parameters(world.model))
    return bare


def said(model: BehaviourStage, catalogue: CatalogueVectors) -> tuple[torch.Tensor, torch.Tensor]:
    """States and scores of made-up histories."""
    items = torch.randint(0, len(catalogue.items), (B, T), generator=torch.Generator().manual_seed(2))
    batch = EventBatch(items, items % 9, items % 6, torch.full((B,), T), None, items)
    with torch.inference_mode():
        hidden = model.hidden(batch, catalogue)
        return hidden, model.score(hidden, catalogue)


def test_a_merged_model_says_what_the_model_says(model: BehaviourStage, world: World) -> None:
    before = flatten_parameters(model)
    plain = merged(model)
    for mine, theirs in zip(said(plain, world.catalogue), said(model, world.catalogue), strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=1e-5)
    assert not [name for name, _ in plain.named_modules() if "lora" in name]
    np.testing.assert_array_equal(flatten_parameters(model), before)
    assert [name for name, _ in model.named_modules() if "lora" in name]


def test_merging_twice_is_merging_once(model: BehaviourStage, world: World) -> None:
    once = merged(model)
    assert all(map(torch.equal, said(merged(once), world.catalogue), said(once, world.catalogue)))


@pytest.mark.parametrize("factor", [0.0, 0.5])
def test_a_merge_that_left_out_lora_or_its_scale_would_be_seen(
    model: BehaviourStage, world: World, factor: float
) -> None:
    wrong = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in trainable_parameters(wrong).items():
            if "lora_B" in name:
                parameter.mul_(factor)
    assert (said(merged(wrong), world.catalogue)[0] - said(model, world.catalogue)[0]).abs().max() > 1e-3


def test_a_merged_model_takes_no_training(model: BehaviourStage) -> None:
    plain = merged(model)
    assert not trainable_parameters(plain)
    with pytest.raises(AdapterMismatchError, match="Expected parameters of shape"):
        load_parameters(plain, flatten_parameters(model))
