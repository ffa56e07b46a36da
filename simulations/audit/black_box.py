"""What a release says of a user: the loss of its events, against that of a model that was never trained."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from client.learner import Learner
from client.training import PriorLogits
from shared.adapter import Release
from shared.model.behaviour import BehaviourStage, CatalogueVectors, EventBatch
from shared.model.prior import uninformed
from shared.model.weights import find_base
from shared.schema import Histories
from simulations.audit.text_probe import mean_losses

Forward = Callable[[EventBatch], NDArray[np.float64]]


def gains(release: Release, learner: Learner) -> tuple[Histories, NDArray[np.float64]]:
    """A partner's histories, and by how much the release's loss on each is below that of the untrained model, (U,).

    Parameters
    ----------
    release : Release
    learner : Learner
        Of the people who are asked about: users without a target have a gain of 0.

    Notes
    -----
    The ratio of likelihoods of Kandpal et al., "User Inference Attacks on Large Language Models" (EMNLP 2024), with
    the pretrained model as reference.
    """
    config = release.config
    bench = learner.workbench(config.model, config.seed or 0)
    maker = learner.batch_maker(config.model, config.seed or 0)
    untrained = BehaviourStage(
        find_base(config.model.base), config.model, n_items=len(learner.catalogue), seed=config.seed or 0
    )
    losses = []
    for model, prior in ((untrained, uninformed(len(learner.catalogue))), (release.model, release.prior)):
        forward = _forward(model.to(learner.device), bench.catalogue, bench.prior_logits(prior, config.prior))
        losses.append(mean_losses(forward, maker, config.training))
    return maker.histories, losses[0] - losses[1]


def _forward(model: BehaviourStage, catalogue: CatalogueVectors, logits: PriorLogits) -> Forward:
    @torch.no_grad()
    def forward(batch: EventBatch) -> NDArray[np.float64]:
        moved = batch.to(catalogue.items.device)
        return model(moved, catalogue, logits(moved)).double().cpu().numpy()  # type: ignore[no-any-return]

    return forward
