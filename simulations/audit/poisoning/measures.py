"""What honest partners' users see: how many are shown the target, and how well all else is ranked for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared import metrics
from shared.adapter import Release
from shared.schema import Histories
from simulations.evaluation import NO_TARGET, Evaluation, Scorer, evaluate, seen_pairs
from simulations.results import model_scorer
from simulations.workspace import Workspace

DEPTHS = (10, 50)


@dataclass(frozen=True, slots=True)
class PartnerView:
    """One honest partner's users under a release.

    Attributes
    ----------
    partition : int
    histories : Histories
    scores : array of float32, shape (users, items)
    held_out : Evaluation
        Of the items that were held back from training.
    """

    partition: int
    histories: Histories
    scores: NDArray[np.float32]
    held_out: Evaluation

    def met(self, item: int) -> NDArray[np.bool_]:
        """Which users have an item in their history, shape ``(users,)``."""
        user = np.repeat(np.arange(len(self.histories)), self.histories.lengths)
        found = np.zeros(len(self.histories), dtype=bool)
        found[user[self.histories.items == item]] = True
        return found

    def ranks_of(self, item: int, among: NDArray[np.bool_] | None = None) -> NDArray[np.float64]:
        """0-based ranks of an item for the users who have not met it, and are `among` those given."""
        asked = ~self.met(item) if among is None else ~self.met(item) & among
        wanted = np.where(asked, item, NO_TARGET).astype(np.int32)
        return evaluate(_kept(self.scores), self.histories, wanted).ranks


@dataclass(frozen=True, slots=True)
class Exposure:
    """How far an item gets: shares of users who have it in their first places, and its mean rank (1 is best)."""

    at_10: float
    at_50: float
    mean_rank: float
    users: int

    @classmethod
    def of(cls, ranks: NDArray[np.float64]) -> Exposure:
        """From the 0-based ranks of one item for its users."""
        at_10, at_50 = (metrics.hit_rate(ranks, k) for k in DEPTHS)
        return cls(at_10, at_50, float(ranks.mean()) + 1, len(ranks))


def views(release: Release, workspace: Workspace, partners: Sequence[int]) -> list[PartnerView]:
    """Rank for the users of some partners."""
    found = []
    for k in partners:
        learner = workspace.learner(k)
        histories = learner.histories(release.config.model)
        scores = np.asarray(model_scorer(release, learner, histories)(histories, np.arange(len(histories))))
        targets = workspace.targets(k, release.config.model)
        found.append(PartnerView(k, histories, scores, evaluate(_kept(scores), histories, targets)))
    return found


def exposure(seen: Sequence[PartnerView], item: int) -> Exposure:
    """Of an item, over the users of all these partners who have not met it."""
    return Exposure.of(np.concatenate([view.ranks_of(item) for view in seen]))


def triggered(seen: Sequence[PartnerView], target: int, trigger: int) -> Exposure:
    """The same over those alone who have met the trigger."""
    return Exposure.of(np.concatenate([view.ranks_of(target, view.met(trigger)) for view in seen]))


def quality(seen: Sequence[PartnerView]) -> dict[str, float]:
    """HR@10 and NDCG@10 of held-out items, over all users."""
    ranks = np.concatenate([view.held_out.ranks for view in seen])
    return {"hr@10": metrics.hit_rate(ranks), "ndcg@10": metrics.ndcg(ranks)}


def hits_by_partner(seen: Sequence[PartnerView]) -> dict[str, float]:
    """HR@10 of each partner's users."""
    return {f"partner-{view.partition:03d}": metrics.hit_rate(view.held_out.ranks) for view in seen}


def exposures(view: PartnerView) -> NDArray[np.float64]:
    """Of every item at a partner, as `client.ranking.promotion_gate.exposure` has it, shape ``(items,)``."""
    items = view.scores.shape[1]
    users, seen = seen_pairs(view.histories, np.arange(len(view.histories)))
    scores = view.scores.copy()
    scores[users, seen] = -np.inf
    top = np.argpartition(-scores, DEPTHS[0] - 1, axis=1)[:, : DEPTHS[0]]
    listed = np.bincount(top[np.isfinite(np.take_along_axis(scores, top, axis=1))], minlength=items)
    known = np.isneginf(scores).sum(axis=0)
    return np.asarray(listed / np.maximum(len(scores) - known, 1.0))


def _kept(scores: NDArray[np.float32]) -> Scorer:
    return lambda _, users: scores[users]
