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
from torch import Tensor

from client.batches import BatchMaker
from client.data.text_cache import TextCache
from client.ranking.explain import ScoreParts
from client.ranking.scan import Scan
from client.ranking.scorer import QUERY_BEHAVIOUR_WEIGHT, QUERY_POPULARITY_WEIGHT, ModelScorer, standardised
from shared.adapter import Release
from shared.errors import AdapterMismatchError, RankingError
from shared.model.behaviour import CatalogueVectors, EventBatch
from shared.model.merged import merged
from shared.model.text import TextStage
from shared.schema import Catalogue, Histories

BATCH = 256
SCAN_ABOVE = 100_000
"""Items above which a CPU looks through 8-bit scores first. A GPU has the bandwidth to score all of them."""
WISH_WEIGHT = 0.5
"""Of what a user asks for in words beside what their history says, both standardised over the catalogue."""
Mask = NDArray[np.bool_]
Best = tuple[Tensor, Tensor]
"""Scores and rows, each (B, N), by falling score."""
Encode = Callable[[Sequence[str], bool], NDArray[np.float16]]
"""Vectors of users' own texts, shape (texts, H), and whether they may be kept for the next time."""


@dataclass(frozen=True, slots=True)
class Retrieved:
    """The best items of each of B requests, by falling score; of those found, equals in the order of the catalogue.

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


def own_texts(cache: TextCache, stage: TextStage, width: int) -> Encode:
    """Vectors of users' own texts from a cache of them."""

    def encode(texts: Sequence[str], keep: bool) -> NDArray[np.float16]:
        return cache.vectors(stage, texts, width=width, items=False, keep=keep)[:, 0]

    return encode


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
        products = self.scorer.prior.is_product and self.model.residuals is None
        large = len(catalogue) > SCAN_ABOVE and self.device.type == "cpu"
        self._scan = Scan(vectors.items, self.scorer.prior.popularity) if products and large else None

    @property
    def parts(self) -> ScoreParts:
        """The scorer in its two parts, as explanations ask it."""
        return ScoreParts(self.model, self.scorer.prior, self.vectors)

    def maker(self, histories: Histories, brought: int = 0) -> BatchMaker:
        """Batches of these histories; the users' own texts are encoded, the last `brought` of them leaving no trace."""
        texts = [np.zeros((0, self.model.width), dtype=np.float16)]
        held = len(histories.review_texts) - brought
        for some, keep in ((histories.review_texts[:held], True), (histories.review_texts[held:], False)):
            if some:
                texts.append(self._encode(some, keep))
        return BatchMaker(histories, np.concatenate(texts), self._config.model)

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
            barred = [_barred(histories[int(users[k])].items, _one(allowed, k)) for k in places]
            asked = [wishes[int(k)] if len(wishes) else "" for k in places]
            best = self._scanned if self._scan else self._scored
            values, rows = best(batch.to(self.device), asked, found.rows.shape[1], barred)
            _keep(found, places, values, rows)
        return found

    @torch.inference_mode()
    def query(self, texts: Sequence[str], depth: int, allowed: Sequence[Mask | None] = ()) -> Retrieved:
        """The `depth` items that fit each wish in words best."""
        found = _empty(len(texts), min(depth, len(self.catalogue)))
        depth = found.rows.shape[1]
        for k, text in enumerate(texts):
            barred = [_barred(_NOTHING_MET, _one(allowed, np.int64(k)))]
            if self._scan:
                gain = torch.tensor([QUERY_POPULARITY_WEIGHT * _per_deviation(self.scorer.prior.popularity)])
                values, rows = self._scan.best(self._asked(self._scan, text), gain, depth, barred)
            else:
                scores = torch.from_numpy(self.scorer.query(text, self.text)).to(self.device).unsqueeze(0)
                values, rows = _best(scores, depth, barred)
            _keep(found, np.array([k]), values, rows)
        return found

    def popular(self, depth: int, allowed: Mask | None = None) -> Retrieved:
        """What a user gets of whom nothing is known."""
        found = _empty(1, min(depth, len(self.catalogue)))
        scores = self.scorer.prior.popularity.clone().unsqueeze(0)
        _keep(found, np.zeros(1, dtype=np.int64), *_best(scores, found.rows.shape[1], [_barred(_NOTHING_MET, allowed)]))
        return found

    def _scored(self, batch: EventBatch, wishes: Sequence[str], depth: int, barred: Sequence[Tensor]) -> Best:
        """By the score of every item."""
        scores = self.scorer.batch(batch)
        for row, wish in enumerate(wishes):
            if wish:
                asked = torch.from_numpy(self.scorer.query(wish, self.text, popularity=0.0)).to(self.device)
                scores[row] = standardised(scores[row]) + WISH_WEIGHT * standardised(asked)
        return _best(scores, depth, barred)

    def _scanned(self, batch: EventBatch, wishes: Sequence[str], depth: int, barred: Sequence[Tensor]) -> Best:
        """By one vector a request, where all scores are products with item vectors and popularity."""
        vectors = self.scorer.wanted(batch)
        if self._scan is None or vectors is None:
            raise AssertionError("a scan of scores that are no products")
        gains = torch.ones(len(vectors))
        for row, wish in enumerate(wishes):
            if wish:
                vector, gain = self._scan.standardised(vectors[row : row + 1], gains[row : row + 1])
                vectors[row], gains[row] = vector[0] + WISH_WEIGHT * self._wish(self._scan, wish)[0], gain[0]
        return self._scan.best(vectors, gains, depth, barred)

    def _wish(self, scan: Scan, text: str) -> Tensor:
        """`_asked`, standardised."""
        return scan.standardised(self._asked(scan, text), torch.zeros(1))[0]

    def _asked(self, scan: Scan, text: str) -> Tensor:
        """`ModelScorer.query` without popularity as one vector, ``(1, H)``."""
        two, _ = scan.standardised(self.scorer.query_vectors(text, self.text), torch.zeros(2))
        return two[:1] + QUERY_BEHAVIOUR_WEIGHT * two[1:]


_NOTHING_MET = np.zeros(0, dtype=np.int32)


def _per_deviation(scores: Tensor) -> float:
    """What scores are to be multiplied with for deviation 1; 0 where all are equal."""
    deviation = float(scores.std(correction=0))
    return 1 / deviation if deviation > 0 else 0.0


def _one(allowed: Sequence[Mask | None], place: np.int64) -> Mask | None:
    return allowed[int(place)] if len(allowed) else None


def _barred(met: NDArray[np.int32], allowed: Mask | None) -> Tensor:
    """What may not be shown: rows, or a mask of items where only some are allowed."""
    rows = met[met >= 0].astype(np.int64)
    if allowed is None:
        return torch.from_numpy(rows)
    gone = ~allowed
    gone[rows] = True
    return torch.from_numpy(gone)


def _best(scores: Tensor, depth: int, barred: Sequence[Tensor]) -> Best:
    """The largest of each row that is not barred, ties by column: `torch.topk` leaves their order open."""
    for row, gone in enumerate(barred):
        scores[row, gone.to(scores.device)] = -torch.inf
    values, rows = scores.topk(depth)
    order = rows.argsort(dim=1, stable=True)
    values, rows = values.gather(1, order), rows.gather(1, order)
    order = values.argsort(dim=1, descending=True, stable=True)
    return values.gather(1, order), rows.gather(1, order)


def _keep(found: Retrieved, places: NDArray[np.int64], values: Tensor, rows: Tensor) -> None:
    found.rows[places] = torch.where(values.isfinite(), rows, -1).cpu().numpy()
    found.scores[places] = values.cpu().numpy()


def _empty(requests: int, depth: int) -> Retrieved:
    return Retrieved(
        np.full((requests, depth), -1, dtype=np.int64), np.full((requests, depth), -np.inf, dtype=np.float32)
    )
