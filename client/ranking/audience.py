"""Whom to show an item or an offer: how much each user wants it, as users want things.

A raw score says how an item compares with others for one user; between users it says nothing, as some histories make
all scores large. What is compared is the probability that an item of the offer is the user's next one
(`client.ranking.tastes`), a mean over those of it that they have not met: with the sum, who bought half of what is
offered would stand behind who wants none of it. Who has all of the offer already is left out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from client.batches import BatchMaker
from client.ranking.engine import Mask
from client.ranking.tastes import Tastes
from shared.errors import RankingError

OFFERED = 20
"""Items that stand for an offer in words: those that fit it best."""


@dataclass(frozen=True, slots=True)
class Wanting:
    """How much each of B users wants an offer.

    Parameters
    ----------
    probability : array of float32, shape (B,)
        Of an item of the offer to be their next one: the mean over those that they have not met; 0 where there is none.
    rank : array of int64, shape (B,)
        Place, from 1, of the offer's best such item among all that the user has not met; 0 where there is none.
    has : array of bool, shape (B,)
        Whether they have met all of the offer.
    """

    probability: NDArray[np.float32]
    rank: NDArray[np.int64]
    has: NDArray[np.bool_]

    def order(self) -> NDArray[np.int64]:
        """Places of the users who have not all of it, who wants it most first; equals in the order given."""
        open_to_it = np.flatnonzero(~self.has)
        return open_to_it[np.argsort(-self.probability[open_to_it], kind="stable")]


def wanting(tastes: Tastes, maker: BatchMaker, users: NDArray[np.int64], rows: NDArray[np.int64]) -> Wanting:
    """How much users want an offer.

    Parameters
    ----------
    tastes : Tastes
    maker : BatchMaker
        From `Engine.maker`.
    users : array of int64, shape (B,)
        Places in its histories, of at least one event each.
    rows : array of int64, shape (N,)
        Catalogue rows of the offer, each once.
    """
    items = len(tastes.engine.catalogue)
    if not len(rows) or len(np.unique(rows)) != len(rows) or rows.min() < 0 or rows.max() >= items:
        raise RankingError(f"Expected an offer of different rows of items={items}.")
    probability, rank = np.zeros(len(users), dtype=np.float32), np.zeros(len(users), dtype=np.int64)
    has = np.zeros(len(users), dtype=bool)
    offer = torch.from_numpy(rows).to(tastes.engine.device)
    for places, shares, met in tastes.batches(maker, users):
        open_shares = shares.masked_fill(met, 0.0)
        offered, owned = open_shares[:, offer], met[:, offer].all(dim=1)  # (b, N), (b,)
        best = torch.where(met[:, offer], -1.0, shares[:, offer]).amax(dim=1, keepdim=True)
        better = ((shares > best) & ~met).sum(dim=1) + 1
        unmet = (~met[:, offer]).sum(dim=1).clamp(min=1)
        probability[places] = (offered.sum(dim=1) / unmet).cpu().numpy()
        rank[places] = better.masked_fill(owned, 0).cpu().numpy()
        has[places] = owned.cpu().numpy()
    return Wanting(probability, rank, has)


def offer_in_words(tastes: Tastes, words: str, *, items: int = OFFERED, shown: Mask | None = None) -> NDArray[np.int64]:
    """Catalogue rows of the items, of those that may be shown, that fit the words of an offer best."""
    fit = tastes.engine.scorer.query(words, tastes.engine.text, popularity=0.0)
    if shown is not None:
        fit[~shown] = -np.inf
    best = np.argsort(-fit, kind="stable")[:items]
    return np.asarray(best[np.isfinite(fit[best])], dtype=np.int64)
