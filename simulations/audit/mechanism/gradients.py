"""Real gradients of the audited model's shape: one user is one row, however much they wrote and whoever is beside them.

The model is the audited one's architecture with random weights; the people and their reviews are invented.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from client.batches import BatchMaker
from client.training import UserGradients
from shared.adapter import flatten_parameters, load_parameters
from shared.config import ModelConfig, TrainingConfig
from shared.messages import ClippedSum
from shared.model.behaviour import BehaviourStage, CatalogueVectors, EventBatch, trainable_parameters
from shared.model.weights import find_base
from simulations.audit.mechanism.checks import Check, Finding, Setting, at_least, at_most, check, equal, none_of
from simulations.audit.mechanism.rehearsal import histories_of

CHECKS: list[Check] = []
CLIP = 0.01
"""Far below the gradients here: every user is clipped."""
ITEMS, REVIEWS, BESIDE = 30, 50, 32
TRAINING = TrainingConfig(drop_events=0.0)


@dataclass(frozen=True)
class Model:
    """A behaviour stage whose trained parameters are all away from zero."""

    stage: BehaviourStage
    gradients: UserGradients
    catalogue: CatalogueVectors

    def contribution(self, maker: BatchMaker, *users: int) -> ClippedSum:
        """The clipped sum of some users."""
        batches = maker.training(np.array(users, dtype=np.int64), TRAINING, b"k" * 32)
        return self.gradients.clipped_sum(batches, self.catalogue, _no_prior, CLIP)


@check(CHECKS, "a clip per event, or parameters that the clip misses")
def one_row(setting: Setting) -> Iterator[Finding]:
    """A user of one review and one of `REVIEWS` reach one norm over all that is trained, alone and beside others."""
    model, maker = _model(setting.config.model), _reviewers(setting.config.model, setting.seed)
    alone = [model.contribution(maker, user).values for user in (0, 1)]
    for name, values in zip(("one review", f"{REVIEWS} reviews"), alone, strict=True):
        norm = float(np.linalg.norm(values)) / CLIP
        yield at_most(f"what a user of {name} adds, in clip norms", norm, 1 + 1e-6, "clip missing, or per event")
        yield at_least(
            f"what a user of {name} adds, in clip norms, at least", norm, 0.99, "a check that looks at nothing"
        )
    trained = sum(p.numel() for p in model.stage.parameters() if p.requires_grad)
    yield equal("coordinates of a sum", len(alone[0]), trained, "parameters that move outside the clip")
    both = model.contribution(maker, 0, 1).values
    moved = float(np.linalg.norm(both - alone[0])) / CLIP
    yield at_most("what a user adds beside another, in clip norms", moved, 1 + 1e-6, "a bound that holds alone only")
    apart = float(np.linalg.norm(both - sum(alone))) / CLIP
    yield at_most("a sum of two, less the two, in clip norms", apart, 1e-4, "a sum divided by the users in it")
    rows = _rows(setting.config.model)
    yield none_of("users of 40 who are not in exactly one row of a batch", rows, "clip per event")


@check(CHECKS, "padding that hangs on who else is in the batch")
def beside(setting: Setting) -> Iterator[Finding]:
    """A long history moves no short one, whatever model the coordinator sends: parameters x 1, 10 and 100."""
    model = _model(setting.config.model)
    honest = flatten_parameters(model.stage)
    histories = histories_of([[3, 4]] * BESIDE + [[*range(ITEMS)]])
    maker = BatchMaker(histories, np.zeros((0, model.stage.width), np.float16), _long(setting.config.model))
    for factor in (1, 10, 100):
        load_parameters(model.stage, honest * np.float32(factor))
        try:
            alone = model.contribution(maker, *range(BESIDE)).values
            both = model.contribution(maker, *range(BESIDE + 1)).values
            long = model.contribution(maker, BESIDE).values
        finally:
            load_parameters(model.stage, honest)
        off = float(np.abs(both - alone - long).max()) / CLIP
        name = (
            f"how far a long history moves {BESIDE} short ones, parameters x {factor}, largest coordinate in clip norms"
        )
        yield at_most(name, off, 1e-6, "padding that hangs on the batch")


@check(CHECKS, "batch statistics or negatives across users")
def coupling(setting: Setting) -> Iterator[Finding]:
    """Another user's data change no bit of a user's gradient."""
    model = _model(setting.config.model)
    batch = _random_batch(6, setting.seed)
    other = replace(batch, items=batch.items.clone(), targets=batch.targets.clone())
    other.items[3:], other.targets[3:] = (other.items[3:] + 7) % ITEMS, (other.targets[3:] + 5) % ITEMS
    one, two = (model.gradients.of(each, model.catalogue, _no_prior(each))[0] for each in (batch, other))
    moved = float((one[:3] - two[:3]).abs().max() / one[:3].abs().max())
    yield at_most("how far other users' data move a user's gradient, relative", moved, 0.0, "users that are coupled")
    yield at_least("how far they move their own", float((one[3:] - two[3:]).abs().max()), 1e-9, "a check of nothing")


@lru_cache(maxsize=1)
def _model(config: ModelConfig) -> Model:
    stage = BehaviourStage(find_base(config.base, local_only=True), config, n_items=ITEMS)
    random = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in trainable_parameters(stage).values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=random))
    texts, items = torch.randn(2, ITEMS, stage.width, generator=random)
    catalogue = CatalogueVectors(0.3 * texts, torch.nn.functional.normalize(items, dim=-1))
    return Model(stage, UserGradients(stage), catalogue)


def _long(config: ModelConfig) -> ModelConfig:
    return config.model_copy(update={"max_events": REVIEWS})


def _reviewers(config: ModelConfig, seed: int) -> BatchMaker:
    """A user of one review (and the target after it) and one of `REVIEWS`, with vectors as long as BERT makes them."""
    rng, width = np.random.default_rng(seed), _model(config).stage.width
    many = [*rng.permutation(ITEMS).tolist(), *rng.permutation(ITEMS)[: REVIEWS - ITEMS].tolist()]
    plain = histories_of([[3, 4], many])
    texts = tuple(f"review {k}" for k in range(len(plain.items)))
    vectors = np.where(rng.random((len(texts), width)) < 0.5, -1, 1).astype(np.float16)
    reviewed = replace(plain, reviews=np.arange(len(texts), dtype=np.int32), review_texts=texts)
    return BatchMaker(reviewed, vectors, _long(config))


def _rows(config: ModelConfig) -> int:
    """Users that are not in exactly one row, of 40 whose first item is their own."""
    rng = np.random.default_rng(0)
    histories = histories_of([[k, *rng.integers(40, 50, rng.integers(1, 9))] for k in range(40)])
    maker = BatchMaker(histories, np.zeros((0, 1), np.float16), config.model_copy(update={"max_events": 20}))
    training = TRAINING.model_copy(update={"microbatch": 7})
    first: list[int] = [int(row[0]) for batch in maker.training(np.arange(40), training, b"k") for row in batch.items]
    counts: NDArray[np.int64] = np.bincount(first, minlength=40)
    return int(np.sum(counts != 1))


def _random_batch(users: int, seed: int) -> EventBatch:
    random = torch.Generator().manual_seed(seed)
    shape = (users, 8)
    items, targets = (torch.randint(ITEMS, shape, generator=random) for _ in range(2))
    codes = torch.zeros_like(items)
    return EventBatch(items, codes, codes, torch.full((users,), 8), None, targets)


def _no_prior(batch: EventBatch) -> torch.Tensor:
    return torch.zeros(*batch.items.shape, ITEMS)
