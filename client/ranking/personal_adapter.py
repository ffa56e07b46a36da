"""A partner's second adapter: the released one, trained further on its own users, without noise, and never sent.

Where nothing is noised it can be what the federation's model could not afford to be (docs/adr/0022): trained *beside*
the prior, as a second opinion, with learned item vectors of its own
(docs/adr/0026-a-partner-s-own-adapter-beside-the-prior.md). It then ranks beside the global prior with the partner's
own part (`client.ranking.personal`). How many steps help is read off the partner's last-but-one split; for partners of
few users it may be none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch.optim.swa_utils import AveragedModel

from client.batches import BatchMaker
from client.learner import Learner
from client.ranking.left_out import LeftOut
from client.ranking.personal import PersonalPrior, own_prior
from client.ranking.personal_files import Personal, damaged, keep, kept
from shared.adapter import Release, flatten_parameters, load_parameters
from shared.config import RunConfig, learned_item_rank
from shared.model.behaviour import BehaviourStage, CatalogueVectors, trainable_parameters
from shared.model.prior_scores import PriorScorer, mask_seen
from shared.model.weights import find_base, has_fast_bf16

ADAPTER_FILE = "adapter.safetensors"
DROP_EVENTS, DROPOUT, TEMPERATURE = 0.2, 0.3, 1.0
USERS_A_STEP, LEARNING_RATE, BETAS = 256, 5e-3, (0.9, 0.99)
BLOCK, MOST_BLOCKS, PATIENCE = 20, 12, 4
"""Steps after which it is asked whether they helped; how often at most, and how often in vain."""
Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PersonalAdapter(Personal):
    """Trained parameters of a partner's own.

    Parameters
    ----------
    release : str
        Fingerprint of the release that they were trained from.
    steps : int
        0: the released adapter is the best that was found.
    parameters : array of float32, shape (P,)
        Of the model that `own_config` describes. Private.
    """

    release: str
    steps: int
    parameters: Vector

    def over(self, release: Release) -> Release:
        """The release with these parameters in the place of its own; the given one stays as it was.

        Raises
        ------
        AdapterMismatchError
            If they were trained from another release.
        """
        self.check(release)
        if not self.steps:
            return release
        config, model = _started(release)
        load_parameters(model, self.parameters)
        return replace(release, model=model, config=config)

    def save(self, premises: Path) -> None:
        """Keep them on the partner's premises."""
        told = {"release": self.release, "steps": str(self.steps)}
        keep(premises, ADAPTER_FILE, {"parameters": self.parameters}, told)

    @classmethod
    def load(cls, premises: Path) -> PersonalAdapter | None:
        """What `save` kept; None where there is nothing.

        Raises
        ------
        IntegrityError
            If the file is not what was written.
        """
        if (found := kept(premises, ADAPTER_FILE)) is None:
            return None
        arrays, told = found
        try:
            return cls(told["release"], int(told["steps"]), arrays["parameters"])
        except (KeyError, ValueError):
            raise damaged(premises, ADAPTER_FILE) from None


def own_config(config: RunConfig, n_items: int) -> RunConfig:
    """The configuration of a partner's own model: the release's, with item vectors and `TEMPERATURE`."""
    model = config.model.model_copy(update={"item_rank": learned_item_rank(n_items), "temperature": TEMPERATURE})
    return config.model_copy(update={"model": model})


def adapt(learner: Learner, release: Release, own: PersonalPrior) -> PersonalAdapter:
    """Train the released adapter further on a partner's users, as many steps as helped on its last-but-one split.

    None from a release without noise, which knows that split by heart, nor where nobody can be asked.
    """
    steps = 0
    if release.manifest["privacy"]["mode"] != "none" and len(left_out := LeftOut.of(learner, release)):
        steps = BLOCK * _best_block(learner, release, left_out, own)
    if not steps:
        return PersonalAdapter(release.fingerprint, 0, flatten_parameters(release.model))
    config = release.config
    maker = learner.batch_maker(config.model, config.seed or 0)
    *_, last = _trained(learner, release, maker, len(learner.histories(config.model)), steps // BLOCK)
    return PersonalAdapter(release.fingerprint, steps, flatten_parameters(last))


def _best_block(learner: Learner, release: Release, left_out: LeftOut, own: PersonalPrior) -> int:
    # The partner's own prior too must not have met what is asked for.
    part = own_prior(left_out.histories, len(own.own.popularity), release.config.prior)
    prior = own.with_part(release.prior, part)
    before = best = left_out.text_scores(release.model.to(learner.device))
    losses = [left_out.loss(before, prior)]
    for model in _trained(learner, release, left_out.maker, len(left_out.histories), MOST_BLOCKS):
        text = left_out.text_scores(model)
        losses.append(left_out.loss(text, prior))
        block = int(np.argmin(losses))
        if block == len(losses) - 1:
            best = text
        if len(losses) - 1 - block >= PATIENCE:
            break
    # What is surer of the same order is no better for those who are ranked for.
    return block if left_out.ndcg(best, prior) > left_out.ndcg(before, prior) else 0


def _trained(
    learner: Learner, release: Release, maker: BatchMaker, users: int, blocks: int
) -> Iterator[BehaviourStage]:
    """The mean of the iterates of each block of steps."""
    model = _started(release)[1].to(learner.device)
    optimizer = torch.optim.Adam(trainable_parameters(model).values(), lr=LEARNING_RATE, betas=BETAS)
    catalogue = learner.workbench(release.config.model, release.config.seed or 0).catalogue
    beside = release.config.prior.model_copy(update={"training_share": 0.0})
    prior, order = PriorScorer(release.prior, beside, catalogue.items), np.random.default_rng(0)
    for block in range(blocks):
        averaged = AveragedModel(model)
        for step in range(block * BLOCK, (block + 1) * BLOCK):
            optimizer.zero_grad()
            some = order.permutation(users)[:USERS_A_STEP]
            with model.dropping_out(DROPOUT, step):
                _add_gradients(model, maker, some, release, prior, catalogue, step)
            optimizer.step()
            averaged.update_parameters(model)
        yield cast(BehaviourStage, averaged.module)


def _started(release: Release) -> tuple[RunConfig, BehaviourStage]:
    """`own_config`, and the released model under it, with item vectors that say nothing yet."""
    n_items = len(release.prior.popularity)
    config = own_config(release.config, n_items)
    model = BehaviourStage(find_base(config.model.base), config.model, n_items=n_items, seed=config.seed or 0)
    own = trainable_parameters(model)
    with torch.no_grad():
        for name, released in trainable_parameters(release.model).items():
            own[name].copy_(released)
    return config, model


def _add_gradients(
    model: BehaviourStage,
    maker: BatchMaker,
    users: NDArray[np.int64],
    release: Release,
    prior: PriorScorer,
    catalogue: CatalogueVectors,
    step: int,
) -> None:
    """Of the mean loss of these users."""
    training = release.config.training.model_copy(update={"drop_events": DROP_EVENTS})
    device = catalogue.items.device
    for made in maker.training(users, training, step.to_bytes(32, "big")):
        batch = made.to(device)
        logits = mask_seen(prior.all_positions(batch.items), batch.items)
        with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device.type)):
            loss: torch.Tensor = model(batch, catalogue, logits).sum() / len(users)
        loss.backward()  # type: ignore[no-untyped-call]
