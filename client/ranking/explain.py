"""Why an item was ranked: the part of its score that goes away with each thing that the user met.

An item's score is measured against the mean of the catalogue. What leaves a history out of account lowers or raises
all scores alike, which changes no order: only the difference tells why this item rather than others. It is a sum::

    score = popularity + prior_effect + model_effect

popularity alone is what a user without any events is shown; the other two are what the history adds, through the
item-to-item weights of the prior and the likeness by text beside them, and through BERT.

An event's *effect* is counterfactual (leave-one-out; I. Covert, S. Lundberg and S. Lee, "Explaining by removing", JMLR
22, 2021): the same scorer, asked again without it, in one batch for all events. There is no baseline to choose and
nothing to approximate: "without it the score were 0.8 lower" is what was measured. All events with one item are one
thing: of a product that was viewed, put in the cart and bought, no single event is missed much. Nor is one of several
things that say the same, so that effects do not add up to the whole; what each does *alone* shows such cases.
`simulations.benchmarks.explain` tests both by deleting what they name. Everything is computed in float32.

Shapes: N rows of a batch, T events, I items, K ranked items, U different things of a history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.batches import BatchMaker
from shared.errors import RankingError
from shared.model.behaviour import BehaviourStage, CatalogueVectors, EventBatch
from shared.model.prior_scores import PriorScorer
from shared.schema import EVENT_KINDS, UserHistory

ROWS = 128
"""Rows that are scored at once."""
Effects = NDArray[np.float64]
Source = Literal["title", "review", "query"]


@dataclass(frozen=True, slots=True)
class EventReason:
    """What one thing of a history did to a ranked item's score.

    Attributes
    ----------
    events : tuple of int
        Places in the history of all events with the item that the model read, the oldest first.
    item : int
        Catalogue row; -1 for a free-text query.
    kinds : tuple of str
        The kind of each event, as in `shared.schema.EVENT_KINDS`.
    effect : float
        How much lower the item's score were without these events; negative where they hold it down.
    alone : float
        How much higher it is with these events alone than without any.
    share : float
        The effect as a part of the sum of all that are positive; 0 where none is.
    """

    events: tuple[int, ...]
    item: int
    kinds: tuple[str, ...]
    effect: float
    alone: float
    share: float


@dataclass(frozen=True, slots=True)
class WordReason:
    """How much lower a ranked item's score were without a word: of an item's title, of a review, or of a query.

    Attributes
    ----------
    source : str
    item : int
        The catalogue row that the title or review is about; -1 for a query.
    word : str
    effect : float
    """

    source: Source
    item: int
    word: str
    effect: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why one item has its score; `score` is measured against the mean of the catalogue.

    Attributes
    ----------
    item : int
        Catalogue row.
    score, popularity, prior_effect, model_effect : float
        The first is the sum of the others. For a query all of it is `model_effect`.
    reasons : tuple of EventReason
        By falling effect.
    words : tuple of WordReason
        By falling effect; empty unless they were asked for.
    """

    item: int
    score: float
    popularity: float
    prior_effect: float
    model_effect: float
    reasons: tuple[EventReason, ...] = ()
    words: tuple[WordReason, ...] = ()


@dataclass(frozen=True)
class ScoreParts:
    """A scorer in its two parts, which `client.ranking.scorer.ModelScorer` adds.

    Parameters
    ----------
    model : BehaviourStage or None
    prior : PriorScorer
    catalogue : CatalogueVectors
    """

    model: BehaviourStage | None
    prior: PriorScorer
    catalogue: CatalogueVectors

    def of_prior(self, batch: EventBatch, rows: Sequence[int]) -> Effects:
        """The prior's part of the scores of `rows`, less the catalogue's mean; shape ``(N, K)``."""
        return _against_mean(self.prior.last_position(batch.items), rows)

    @torch.inference_mode()
    def of_likeness(self, items: Tensor, rows: Sequence[int], moved: Tensor | None = None) -> Effects:
        """The likeness by text in the prior's part, ``(N, K)``; `moved` as `PriorScorer.liked` takes it."""
        liked = self.prior.liked(items, moved)
        if liked is None:
            return np.zeros((len(items), len(rows)))
        return _against_mean(liked @ self.catalogue.items.T, rows)

    @torch.inference_mode()
    def of_model(self, batch: EventBatch, rows: Sequence[int]) -> Effects:
        """BERT's part, shape ``(N, K)``; 0 for a row without events, of which it has nothing to say."""
        if self.model is None:
            return np.zeros((len(batch.lengths), len(rows)))
        parts = []
        for start in range(0, len(batch.lengths), ROWS):
            some = _rows_of(batch, slice(start, start + ROWS))
            scores = self.model.score(self.model.newest(some, self.catalogue), self.catalogue)  # (N, I)
            parts.append(_against_mean(scores * (batch.lengths[start : start + ROWS, None] > 0), rows))
        return np.concatenate(parts)

    def __call__(self, batch: EventBatch, rows: Sequence[int]) -> Effects:
        """Scores of `rows` against the catalogue's mean, shape ``(N, K)``."""
        return self.of_prior(batch, rows) + self.of_model(batch, rows)


@dataclass(frozen=True)
class Read:
    """What a scorer reads of one user, by the different things in it.

    Attributes
    ----------
    batch : EventBatch
        Of one row, without padding.
    unit : array of int64, shape (T,)
        Which thing each event belongs to: one an item, and each query by itself.
    first : int
        Place in the history of the first event that is read.
    """

    batch: EventBatch
    unit: NDArray[np.int64]
    first: int

    @classmethod
    def of(cls, maker: BatchMaker, history: UserHistory, device: torch.device) -> Read:
        """The newest events of a history."""
        batch = maker.one(history).to(device)
        items = batch.items[0].cpu().numpy()
        apart = np.where(items >= 0, items, -1 - np.arange(len(items)))
        _, unit = np.unique(apart, return_inverse=True)
        return cls(batch, unit.astype(np.int64), len(history) - len(items))

    @property
    def units(self) -> int:
        """How many different things were read."""
        return int(self.unit.max(initial=-1)) + 1

    def keeping(self, kept: NDArray[np.bool_]) -> EventBatch:
        """A batch with a row for each set of things that stay, shape ``(N, U)``; what stays moves together."""
        return _keeping(self.batch, torch.from_numpy(kept[:, self.unit]).to(self.batch.items.device))


def missed(parts: ScoreParts, read: Read, rows: Sequence[int]) -> Effects:
    """How far the scores of `rows` fall without each thing, shape ``(U, K)``: one batch of U + 1 rows."""
    kept = np.ones((1, read.units), dtype=bool), ~np.eye(read.units, dtype=bool)
    scores = parts(read.keeping(np.concatenate(kept)), rows)
    falls: Effects = scores[0] - scores[1:]
    return falls


def alone(parts: ScoreParts, read: Read, rows: Sequence[int]) -> Effects:
    """How far they rise from nothing with each thing alone, shape ``(U, K)``: as many rows, but short ones."""
    kept = np.zeros((1, read.units), dtype=bool), np.eye(read.units, dtype=bool)
    scores = parts(read.keeping(np.concatenate(kept)), rows)
    rises: Effects = scores[1:] - scores[0]
    return rises


def explain(parts: ScoreParts, maker: BatchMaker, history: UserHistory, rows: Sequence[int]) -> tuple[Explanation, ...]:
    """Explain the scores of `rows` (catalogue rows) for one user, whatever their number with one batch of things.

    A history without events is explained by popularity alone.

    Raises
    ------
    RankingError
        If a row is not in the catalogue.
    """
    n_items = len(parts.catalogue.items)
    if not all(0 <= row < n_items for row in rows):
        raise RankingError(f"Expected catalogue rows of at least 0 and below items={n_items}.")
    read = Read.of(maker, history, parts.catalogue.items.device)
    both = read.keeping(np.stack([np.zeros(read.units, dtype=bool), np.ones(read.units, dtype=bool)]))
    prior, model = parts.of_prior(both, rows), parts.of_model(both, rows)  # (2, K): without and with the history
    effects, brought = missed(parts, read, rows), alone(parts, read, rows)  # (U, K)
    return tuple(
        Explanation(
            int(row),
            float(prior[1, k] + model[1, k]),
            float(prior[0, k]),
            float(prior[1, k] - prior[0, k]),
            float(model[1, k]),
            _reasons(read, history, effects[:, k], brought[:, k]),
        )
        for k, row in enumerate(rows)
    )


def _reasons(read: Read, history: UserHistory, effects: Effects, brought: Effects) -> tuple[EventReason, ...]:
    positive = float(effects[effects > 0].sum())
    found = []
    for unit in np.argsort(-effects, kind="stable"):
        places = np.flatnonzero(read.unit == unit)
        events = tuple(int(place) + read.first for place in places)
        kinds = tuple(EVENT_KINDS[int(history.events[event])] for event in events)
        effect, item = float(effects[unit]), int(read.batch.items[0, places[0]])
        share = effect / positive if positive else 0.0
        found.append(EventReason(events, item, kinds, effect, float(brought[unit]), share))
    return tuple(found)


def _keeping(one: EventBatch, kept: Tensor) -> EventBatch:
    """Rows of one history with the events that are kept, ``(N, T)``, moved to the front; the rest is padding."""
    lengths = kept.sum(1)
    width = max(int(lengths.max()), 1)
    order = torch.argsort((~kept).long(), dim=1, stable=True)[:, :width]  # (N, width)
    if not order.shape[1]:  # a history without events: a place of padding all the same
        empty = torch.zeros(len(kept), 1, dtype=torch.long, device=kept.device)
        return EventBatch(empty - 1, empty, empty, lengths, None, empty - 1)
    there = torch.arange(width, device=kept.device) < lengths.unsqueeze(1)
    items, events, ratings = one.items[0][order], one.events[0][order], one.ratings[0][order]
    texts = None if one.texts is None else one.texts[0][order] * there.unsqueeze(-1)
    return EventBatch(
        items.where(there, -1), events * there, ratings * there, lengths, texts, torch.full_like(items, -1)
    )


def _rows_of(batch: EventBatch, cut: slice) -> EventBatch:
    """Some rows; a row without events is read as one of nothing, and its score is then left out."""
    texts = None if batch.texts is None else batch.texts[cut]
    lengths = batch.lengths[cut].clamp(min=1)
    return EventBatch(batch.items[cut], batch.events[cut], batch.ratings[cut], lengths, texts, batch.targets[cut])


def _against_mean(scores: Tensor, rows: Sequence[int]) -> Effects:
    wanted = scores[:, torch.as_tensor(rows, dtype=torch.long, device=scores.device)]
    found: Effects = (wanted - scores.mean(1, keepdim=True)).double().cpu().numpy()
    return found
