"""A partner's second adapter: the released one, trained further on its own users, without noise, and never sent.

It is trained on top of the *global* prior and then used on top of the partner's own (`client.ranking.personal`): on top
of that one, whose exact sums know every position it would learn from, there is nothing left to learn and only to forget
(ml_100k, one of eight partners: NDCG@10 0.106 to 0.100 instead of to 0.113). How many epochs help is read off the
partner's last-but-one split; for most small partners it is none.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from client.batches import BatchMaker
from client.learner import Learner
from client.ranking.left_out import LeftOut
from client.ranking.personal import PersonalPrior, own_prior
from client.ranking.personal_files import Personal, damaged, keep, kept
from shared.adapter import Release, flatten_parameters, load_parameters
from shared.model.behaviour import BehaviourStage, CatalogueVectors, trainable_parameters
from shared.model.prior_scores import PriorScorer, mask_seen

ADAPTER_FILE = "adapter.safetensors"
MOST_EPOCHS, PATIENCE = 6, 2
USERS_A_STEP, LEARNING_RATE, BETAS = 16, 1e-3, (0.9, 0.99)
MOST_USERS = 2000
"""Users of an epoch: a larger partner's epochs are parts of its users."""
Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class PersonalAdapter(Personal):
    """Trained parameters of a partner's own.

    Parameters
    ----------
    release : str
        Fingerprint of the release that they were trained from.
    epochs : int
        0: the released adapter is the best that was found.
    parameters : array of float32, shape (P,)
        Private.
    """

    release: str
    epochs: int
    parameters: Vector

    def over(self, release: Release) -> Release:
        """The release with these parameters; the given one stays as it was.

        Raises
        ------
        AdapterMismatchError
            If they were trained from another release.
        """
        self.check(release)
        if not self.epochs:
            return release
        model = copy.deepcopy(release.model)
        load_parameters(model, self.parameters)
        return replace(release, model=model)

    def save(self, premises: Path) -> None:
        """Keep them on the partner's premises."""
        told = {"release": self.release, "epochs": str(self.epochs)}
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
            return cls(told["release"], int(told["epochs"]), arrays["parameters"])
        except (KeyError, ValueError):
            raise damaged(premises, ADAPTER_FILE) from None


def adapt(learner: Learner, release: Release, own: PersonalPrior) -> PersonalAdapter:
    """Train the released adapter further on a partner's users, as many epochs as helped on its last-but-one split.

    No epoch from a release without noise, which knows that split by heart, nor where nobody can be asked.
    """
    start = flatten_parameters(release.model)
    epochs = 0
    if release.manifest["privacy"]["mode"] != "none" and len(left_out := LeftOut.of(learner, release)):
        epochs = _best_epoch(learner, release, left_out, own)
    if not epochs:
        return PersonalAdapter(release.fingerprint, 0, start)
    config = release.config
    maker = learner.batch_maker(config.model, config.seed or 0)
    *_, last = _trained(learner, release, maker, len(learner.histories(config.model)), epochs)
    return PersonalAdapter(release.fingerprint, epochs, flatten_parameters(last))


def _best_epoch(learner: Learner, release: Release, left_out: LeftOut, own: PersonalPrior) -> int:
    # The partner's own prior too must not have met what is asked for.
    part = own_prior(left_out.histories, len(own.own.popularity), release.config.prior)
    prior = own.with_part(release.prior, part)
    losses = [left_out.loss(left_out.text_scores(release.model.to(learner.device)), prior)]
    for model in _trained(learner, release, left_out.maker, len(left_out.histories), MOST_EPOCHS):
        losses.append(left_out.loss(left_out.text_scores(model), prior))
        if len(losses) - 1 - int(np.argmin(losses)) >= PATIENCE:
            break
    return int(np.argmin(losses))


def _trained(
    learner: Learner, release: Release, maker: BatchMaker, users: int, epochs: int
) -> Iterator[BehaviourStage]:
    """A copy of the released model after each epoch; the same model every time."""
    model = copy.deepcopy(release.model).to(learner.device)
    optimizer = torch.optim.Adam(trainable_parameters(model).values(), lr=LEARNING_RATE, betas=BETAS)
    catalogue = learner.workbench(release.config.model, release.config.seed or 0).catalogue
    prior = PriorScorer(release.prior, release.config.prior, catalogue.items)
    order = np.random.default_rng(0)
    for epoch in range(epochs):
        taken = order.permutation(users)[:MOST_USERS]
        for start in range(0, len(taken), USERS_A_STEP):
            optimizer.zero_grad()
            some = taken[start : start + USERS_A_STEP]
            _add_gradients(model, maker, some, release, prior, catalogue, epoch)
            optimizer.step()
        yield model


def _add_gradients(
    model: BehaviourStage,
    maker: BatchMaker,
    users: NDArray[np.int64],
    release: Release,
    prior: PriorScorer,
    catalogue: CatalogueVectors,
    epoch: int,
) -> None:
    """Of the mean loss of these users."""
    for made in maker.training(users, release.config.training, epoch.to_bytes(32, "big")):
        batch = made.to(catalogue.items.device)
        logits = mask_seen(prior.all_positions(batch.items), batch.items)
        loss: torch.Tensor = model(batch, catalogue, logits).sum() / len(users)
        loss.backward()  # type: ignore[no-untyped-call]
