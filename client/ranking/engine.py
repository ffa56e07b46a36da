"""The ranking engine: one verified release over one partner's catalogue, on one device.

    Histories -> EventBatch -> state after the newest event -> score of every item -> the best that are allowed

It keeps nothing of a user: whoever calls it brings the histories and says what may be shown. One thread at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from client.batches import BatchMaker
from client.ranking.scorer import ModelScorer, standardised
from shared.adapter import Release
from shared.errors import AdapterMismatchError, RankingError
from shared.model.behaviour import CatalogueVectors
from shared.model.merged import merged
from shared.model.text import TextStage
from shared.schema import Catalogue, Histories

BATCH = 256
WISH_WEIGHT = 1.0
"""Of what a user asks for in words beside what their history says, both standardised over the catalogue."""
Mask = NDArray[np.bool_]
Encode = Callable[[Sequence[str]], NDArray[np.float16]]
"""Vectors of users' own texts, shape (texts, H)."""


@dataclass(frozen=True, slots=True)
class Retrieved:
    """The best items of each of B requests, by falling score; ties in the order of the catalogue.

    Parameters
    ----------
    rows : array of int64, shape (B, N)
        Catalogue rows; -1 where fewer than N items may be shown.
    scores : array of float32, shape (B, N)
        ``-inf`` there.
    """

    rows: NDArray[np.int64]
    scores: NDArray[np.float32]

    def of(self, place: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """What there is for one request: rows and scores, each (n,) with n <= N."""
        found = self.rows[place] >= 0
        return self.rows[place, found], self.scores[place, found]


class Engine:
    """Scores and retrieval.

    Parameters
    ----------
    release : Release
        Verified, and of the rows of `catalogue` (`client.ranking.local_catalogue.aligned`).
    catalogue : Catalogue
    vectors : CatalogueVectors
        Of `catalogue`, on the device to rank on.
    text : TextStage
        Reads queries.
    encode : callable
        Vectors of users' own texts.
    bf16 : bool
        Read histories in bfloat16; scores are made in float32.

    Raises
    ------
    AdapterMismatchError
        If the three do not have the same number of items.
    """

    def __init__(
        self,
        release: Release,
        catalogue: Catalogue,
        vectors: CatalogueVectors,
        text: TextStage,
        encode: Encode,
        *,
        bf16: bool = False,
    ) -> None:
        if not len(catalogue) == len(vectors.items) == len(release.prior.popularity):
            raise AdapterMismatchError(
                f"Expected a release of items={len(catalogue)}, got {len(release.prior.popularity)}."
            )
        self.release, self.catalogue, self.vectors = release, catalogue, vectors
        self.device = vectors.items.device
        self.text, self._encode, self._config = text, encode, release.config
        self.model = merged(release.model).to(self.device)
        self.scorer = ModelScorer(self.model, release.prior, release.config.prior, vectors, bf16=bf16)

    def maker(self, histories: Histories) -> BatchMaker:
        """Batches of these histories; the users' own texts are encoded."""
        if histories.review_texts:
            texts = self._encode(histories.review_texts)
        else:
            texts = np.zeros((0, self.model.width), dtype=np.float16)
        return BatchMaker(histories, texts, self._config.model)

    @torch.inference_mode()
    def retrieve(
        self,
        maker: BatchMaker,
        users: NDArray[np.int64],
        depth: int,
        allowed: Sequence[Mask | None] = (),
        wishes: Sequence[str] = (),
    ) -> Retrieved:
        """The `depth` best items of every user that the user has not met.

        Parameters
        ----------
        maker : BatchMaker
            From `maker`.
        users : array of int64, shape (B,)
            Places in its histories, of at least one event each.
        depth : int
        allowed : sequence of (I,) bool or None
            Items that may be shown to each user, None for all; empty for all of everybody.
        wishes : sequence of str
            What each user asks for in words, "" for nothing; empty for nobody.
        """
        histories = maker.histories
        if (histories.lengths[users] < 1).any():
            raise RankingError("Expected histories of events>=1; without any, ask with a query or for what is popular.")
        found = _empty(len(users), min(depth, len(self.catalogue)))
        for places, batch in maker.latest(users, BATCH):
            scores = self.scorer.batch(batch.to(self.device))
            for row, place in enumerate(places):
                if len(wishes) and wishes[int(place)]:
                    wish = torch.from_numpy(self.scorer.query(wishes[int(place)], self.text)).to(self.device)
                    scores[row] = standardised(scores[row]) + WISH_WEIGHT * standardised(wish)
            for row, user in enumerate(users[places]):
                met = histories[int(user)].items
                scores[row, torch.from_numpy(met[met >= 0]).long().to(self.device)] = -torch.inf
            self._best(scores, places, allowed, found)
        return found

    @torch.inference_mode()
    def query(self, texts: Sequence[str], depth: int, allowed: Sequence[Mask | None] = ()) -> Retrieved:
        """The `depth` items that fit each wish in words best."""
        found = _empty(len(texts), min(depth, len(self.catalogue)))
        scores = np.stack([self.scorer.query(text, self.text) for text in texts])
        self._best(torch.from_numpy(scores).to(self.device), np.arange(len(texts)), allowed, found)
        return found

    def popular(self, depth: int, allowed: Mask | None = None) -> Retrieved:
        """What a user gets of whom nothing is known."""
        found = _empty(1, min(depth, len(self.catalogue)))
        scores = torch.from_numpy(self.release.prior.popularity.copy()).to(self.device).unsqueeze(0)
        self._best(scores, np.zeros(1, dtype=np.int64), (allowed,), found)
        return found

    def _best(
        self, scores: torch.Tensor, places: NDArray[np.int64], allowed: Sequence[Mask | None], found: Retrieved
    ) -> None:
        """Keep the best of `scores`, (B, I), whose rows stand at `places` in `found`. `scores` are overwritten."""
        for row, place in enumerate(places):
            mask = allowed[int(place)] if len(allowed) else None
            if mask is not None:
                scores[row, torch.from_numpy(~mask).to(self.device)] = -torch.inf
        values, rows = _topk(scores, found.rows.shape[1])
        kept = values.isfinite()
        found.rows[places] = torch.where(kept, rows, -1).cpu().numpy()
        found.scores[places] = values.cpu().numpy()


def _topk(scores: torch.Tensor, depth: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest of each row, ties by column: `torch.topk` leaves their order open."""
    values, rows = scores.topk(depth)
    order = rows.argsort(dim=1, stable=True)
    values, rows = values.gather(1, order), rows.gather(1, order)
    order = values.argsort(dim=1, descending=True, stable=True)
    return values.gather(1, order), rows.gather(1, order)


def _empty(requests: int, depth: int) -> Retrieved:
    return Retrieved(
        np.full((requests, depth), -1, dtype=np.int64), np.full((requests, depth), -np.inf, dtype=np.float32)
    )
