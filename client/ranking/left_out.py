"""A partner's own last-but-one split: what it chooses by when it adds something of its own to a release.

The item that each user met last is taken out of the user's history and then predicted. A release with noise hardly
knows these items; one without noise knows them by heart (ml_100k: NDCG@10 0.52 on them, 0.11 on others), so that
nothing of one's own could seem to help, and nothing is chosen by them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from client.batches import BatchMaker
from client.learner import Learner
from client.ranking.scorer import ModelScorer, Scores
from shared import metrics
from shared.adapter import Release
from shared.config import PriorConfig
from shared.model.behaviour import BehaviourStage, CatalogueVectors
from shared.model.prior import CollaborativePrior, uninformed
from shared.model.prior_scores import RULED_OUT, PriorScorer
from shared.schema import Histories

MIN_EVENTS = 5
"""Users with fewer events are not asked."""
TEMPERATURES = (1.0, 1.5, 2.0, 3.0, 4.0)
MOST_ASKED = 1000
"""Users who are asked: choosing among a few settings needs no more."""
BATCH = 256


@dataclass(frozen=True)
class LeftOut:
    """The question and who is asked.

    Parameters
    ----------
    histories : Histories
        Without what is asked for; all users of the partner.
    asked : array of int64, shape (n,)
        Places of users in `histories`.
    wanted : array of int32, shape (n,)
        The catalogue row that each of them met last.
    maker : BatchMaker
        Of `histories`.
    """

    histories: Histories
    asked: NDArray[np.int64]
    wanted: NDArray[np.int32]
    maker: BatchMaker
    catalogue: CatalogueVectors
    config: PriorConfig

    @classmethod
    def of(cls, learner: Learner, release: Release) -> LeftOut:
        """The split of a partner's data, under a release's configuration."""
        model, seed = release.config.model, release.config.seed or 0
        rest, targets = leave_last_out(learner.histories(model))
        asked = np.flatnonzero(targets >= 0)[:MOST_ASKED]  # users are sorted by pseudonym: a random choice
        maker, catalogue = learner.maker_of(rest, model, seed), learner.workbench(model, seed).catalogue
        return cls(rest, asked, targets[asked], maker, catalogue, release.config.prior)

    def __len__(self) -> int:
        return len(self.asked)

    def text_scores(self, model: BehaviourStage) -> Scores:
        """What BERT says without any prior, shape ``(n, items)``."""
        nothing = uninformed(len(self.catalogue.items))
        return ModelScorer(model, nothing, self.config, self.catalogue).users(self.maker, self.asked)

    def loss(self, text: Scores, prior: CollaborativePrior) -> float:
        """Mean cross-entropy of the items left out, among all that each user has not met, at the best temperature.

        It tells more of few users than their NDCG does. The temperature is fitted (one of `TEMPERATURES`) because no
        ranking hangs on it, and opinions that were trained beside one another are too sure together.
        """
        totals = np.zeros(len(TEMPERATURES))
        for logits, targets in self._logits(text, prior):
            for n, temperature in enumerate(TEMPERATURES):
                totals[n] += float(torch.nn.functional.cross_entropy(logits / temperature, targets, reduction="sum"))
        return float(totals.min()) / len(self.asked)

    def ndcg(self, text: Scores, prior: CollaborativePrior) -> float:
        """NDCG@10 of the items left out, among all that each user has not met."""
        ranks = [
            metrics.fractional_ranks(logits.cpu().numpy(), targets.cpu().numpy(), (logits > RULED_OUT).cpu().numpy())
            for logits, targets in self._logits(text, prior)
        ]
        return metrics.ndcg(np.concatenate(ranks))

    def _logits(self, text: Scores, prior: CollaborativePrior) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Of batches of those asked, ``(B, I)``, what each has met ruled out, and the rows of what was left out."""
        device, scorer = self.catalogue.items.device, PriorScorer(prior, self.config, self.catalogue.items)
        for places, batch in self.maker.latest(self.asked, BATCH):
            logits = torch.from_numpy(text[places]).to(device) + scorer.last_position(batch.items.to(device))
            for row, place in enumerate(places):
                met = self.histories[int(self.asked[place])].items
                logits[row, torch.from_numpy(met).long().to(device)] = RULED_OUT
            yield logits, torch.from_numpy(self.wanted[places].astype(np.int64)).to(device)


def leave_last_out(histories: Histories) -> tuple[Histories, NDArray[np.int32]]:
    """Take the item that each user met last, with all its events, out of the user's history.

    Returns
    -------
    rest : Histories
    targets : array of int32, shape (users,)
        Catalogue rows; -1 for users with fewer than `MIN_EVENTS` events or of one item, who keep everything.
    """
    lengths, of_user = histories.lengths, np.repeat(np.arange(len(histories)), histories.lengths)
    last = histories.items[histories.offsets[1:] - 1]
    other = histories.items != last[of_user]  # (events,)
    left = np.bincount(of_user[other], minlength=len(histories))
    asked = (lengths >= MIN_EVENTS) & (left > 0)
    kept = other | ~asked[of_user]
    rest = replace(
        histories,
        offsets=np.concatenate([[0], np.cumsum(np.where(asked, left, lengths))]).astype(np.int64),
        items=histories.items[kept],
        timestamps=histories.timestamps[kept],
        events=histories.events[kept],
        ratings=histories.ratings[kept],
        reviews=histories.reviews[kept],
    )
    return rest, np.where(asked, last, -1).astype(np.int32)
