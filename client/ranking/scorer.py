"""Scores of a partner's users, or of a free-text query, under a model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from client.batches import BatchMaker
from shared.config import PriorConfig
from shared.model.behaviour import QUERY_EVENT, BehaviourStage, CatalogueVectors, EventBatch
from shared.model.prior import CollaborativePrior
from shared.model.prior_scores import PriorScorer, recent_texts
from shared.model.text import TextStage
from shared.schema import Histories

Scores = NDArray[np.float32]
QUERY_BEHAVIOUR_WEIGHT = 0.25
"""Weight of the behaviour stage beside the plain similarity of query and item."""
QUERY_POPULARITY_WEIGHT = 0.5
"""Of popularity, where nothing else is known than the query: of what fits words that fit many, most want what most do.
The largest weight at which a title still finds its own item first, for 99 % of titles."""


class ModelScorer:
    """Scores of all items after the newest event of a user.

    Parameters
    ----------
    model : BehaviourStage or None
        None scores with the prior alone.
    prior : CollaborativePrior
    config : PriorConfig
    catalogue : CatalogueVectors
    bf16 : bool
        Read histories in bfloat16.
    """

    def __init__(
        self,
        model: BehaviourStage | None,
        prior: CollaborativePrior,
        config: PriorConfig,
        catalogue: CatalogueVectors,
        *,
        batch_size: int = 256,
        bf16: bool = False,
    ) -> None:
        self._model, self._catalogue, self._batch_size, self._bf16 = model, catalogue, batch_size, bf16
        self._device = catalogue.items.device
        self._prior = PriorScorer(prior, config, catalogue.items)

    @property
    def prior(self) -> PriorScorer:
        """The prior's part of the score."""
        return self._prior

    def users(self, maker: BatchMaker, users: NDArray[np.int64]) -> Scores:
        """Scores of users by their place in the maker's histories, shape ``(len(users), I)``."""
        scores = np.empty((len(users), len(self._catalogue.items)), dtype=np.float32)
        for places, batch in maker.latest(np.asarray(users, dtype=np.int64), self._batch_size):
            scores[places] = self.batch(batch.to(self._device)).cpu().numpy()
        return scores

    @torch.inference_mode()
    def batch(self, batch: EventBatch) -> torch.Tensor:
        """Scores after the newest event of each row, shape ``(B, I)``."""
        if self._model is None:
            return self._prior.last_position(batch.items)
        newest = self._newest(self._model, batch)
        # Products not in bfloat16: of many thousand scores some would be equal that are not.
        vectors = self._vectors(self._model, newest, batch)
        if vectors is None:  # learned item vectors beside those of the texts
            return self._prior.last_position(batch.items) + self._model.score(newest, self._catalogue)
        return self._prior.last_position(batch.items, likeness=False) + vectors @ self._catalogue.items.T

    @torch.inference_mode()
    def wanted(self, batch: EventBatch) -> torch.Tensor | None:
        """Vectors, ``(B, H)``, whose products with item vectors are `batch` without popularity; None if none are."""
        if self._model is None or not self._prior.is_product:
            return None
        return self._vectors(self._model, self._newest(self._model, batch), batch)

    def _vectors(self, model: BehaviourStage, newest: torch.Tensor, batch: EventBatch) -> torch.Tensor | None:
        """What the model wants and what texts are liked as one vector a row: item vectors are read once."""
        wanted, liked = model.wanted(newest), self._prior.liked(batch.items)
        return wanted if wanted is None or liked is None else wanted + liked

    def _newest(self, model: BehaviourStage, batch: EventBatch) -> torch.Tensor:
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bf16):
            newest = model.newest(batch, self._catalogue)
        return newest.float()

    @torch.inference_mode()
    def query(self, text: str, stage: TextStage, *, popularity: float = QUERY_POPULARITY_WEIGHT) -> Scores:
        """Scores for a natural-language intent, shape ``(I,)``.

        The query is one event whose text vector stands where an item's would; beside it, the plain
        similarity of the frozen BERT and the prior's popularity, all standardised.

        Parameters
        ----------
        popularity : float
            0 where the wish stands beside a history, whose scores have popularity already.
        """
        likeness, event = self._read_query(text, stage)
        similar = standardised(likeness @ self._catalogue.items.T)
        if self._model is None:
            return np.asarray(similar.cpu().numpy(), dtype=np.float32)
        wanted = self._model.score(self._model.newest(event, self._catalogue), self._catalogue)[0]
        scores = similar + QUERY_BEHAVIOUR_WEIGHT * standardised(wanted)
        scores = scores + popularity * standardised(self._prior.popularity)
        return np.asarray(scores.cpu().numpy(), dtype=np.float32)

    @torch.inference_mode()
    def query_vectors(self, text: str, stage: TextStage) -> torch.Tensor:
        """The two vectors, ``(2, H)``, whose standardised products with item vectors `query` adds up.

        The second, of the behaviour stage, has the weight `QUERY_BEHAVIOUR_WEIGHT`.
        """
        likeness, event = self._read_query(text, stage)
        wanted = None if self._model is None else self._model.wanted(self._model.newest(event, self._catalogue))
        return torch.stack([likeness, torch.zeros_like(likeness) if wanted is None else wanted[0]])

    def _read_query(self, text: str, stage: TextStage) -> tuple[torch.Tensor, EventBatch]:
        """The query's item vector, ``(H,)``, and an event with its text vector."""
        vectors = torch.from_numpy(stage.encode([text]).astype(np.float32)).to(self._device)  # (1, 2, H)
        one = torch.ones(1, 1, dtype=torch.long, device=self._device)
        return vectors[0, 1], EventBatch(-one, one * QUERY_EVENT, one * 0, one[0], vectors[:, :1], -one)


def histories_scorer(scorer: ModelScorer, maker: BatchMaker) -> Callable[[Histories, NDArray[np.int64]], Scores]:
    """A function of (histories, users), as evaluation takes it, over the histories that `maker` holds."""

    def scores(histories: Histories, users: NDArray[np.int64]) -> Scores:
        return scorer.users(maker, users)

    return scores


class FrozenBert:
    """The base BERT without any training: similarity to the recency-weighted mean of the user's items.

    Parameters
    ----------
    catalogue : CatalogueVectors
    popularity : (I,) float32
        Centred log popularity, added with `popularity_weight`.
    decay : float
        Weight of an event by its age in events.
    """

    def __init__(
        self,
        catalogue: CatalogueVectors,
        popularity: Scores,
        *,
        temperature: float = 15.0,
        popularity_weight: float = 0.9,
        decay: float = 0.8,
        max_events: int = 50,
    ) -> None:
        self._items = catalogue.items.cpu()
        self._bias = popularity_weight * popularity
        self._temperature, self._decay, self._max_events = temperature, decay, max_events

    def __call__(self, histories: Histories, users: NDArray[np.int64]) -> Scores:
        """Scores of users, shape ``(len(users), I)``."""
        newest = np.full((len(users), self._max_events), -1, dtype=np.int64)
        for row, user in zip(newest, users, strict=True):
            items = histories[int(user)].items[-self._max_events :]
            row[: len(items)] = items
        wanted = recent_texts(self._items, torch.from_numpy(newest), self._decay)
        return np.asarray(self._temperature * (wanted @ self._items.T).numpy() + self._bias, dtype=np.float32)


def standardised(scores: torch.Tensor) -> torch.Tensor:
    """Mean 0 and deviation 1 over the catalogue."""
    return (scores - scores.mean()) / scores.std(correction=0).clamp(min=1e-12)
