"""Scores of the collaborative prior for batches of histories."""

from __future__ import annotations

from functools import cached_property

import torch
import torch.nn.functional as F

from shared.config import PriorConfig
from shared.model.candidates import Candidates, SampledPrior, not_to_be_ranked, target_and_others
from shared.model.prior import CollaborativePrior
from shared.model.prior_texts import completed

RULED_OUT = -1e4
"""Logit of an item that cannot be the next new one."""
LIKENESS_DECAY = 0.6
"""Weight of an event's text by its age in events (docs/adr/0021-texts-where-the-sum-is-noise.md)."""
STEEPNESS = 3.0
"""Standardised scores have long tails: taken as they are, the softmax is sure where it should not be, and what is
trained on top of it learns to mend that first. ``asinh(3 z)`` keeps their order and loses a fifth of the
cross-entropy (docs/adr/0009-calibrated-prior.md)."""


class PriorScorer:
    """Logits of the prior for histories: decayed sums of rows, calibrated over the catalogue; popularity; likeness.

    Parameters
    ----------
    prior : CollaborativePrior
    config : PriorConfig
    items : (I, H)
        Item vectors of the frozen BERT, of norm 1: what nobody was seen with is scored as its neighbours (`completed`),
        and likeness is their products. Scores are made on their device.
    """

    def __init__(self, prior: CollaborativePrior, config: PriorConfig, items: torch.Tensor) -> None:
        device, prior = items.device, completed(prior, items.cpu().numpy())
        self._popularity = torch.from_numpy(prior.popularity).to(device) * config.popularity_weight
        matrix, widen = prior.item_to_item, prior.widen
        self._matrix = None if matrix is None else torch.from_numpy(matrix).to(device)
        self._widen = None if widen is None else torch.from_numpy(widen).to(device)
        self._weight, self._decay, self._training_share = config.weight, config.decay, config.training_share
        self._items, self._likeness = items, 0.0 if prior.text_weights is None else float(prior.text_weights[0])

    @property
    def popularity(self) -> torch.Tensor:
        """Logits of a user without any event, shape ``(I,)``."""
        return self._popularity

    @property
    def is_product(self) -> bool:
        """Whether these logits are a product of a vector of the user (`liked`) with item vectors, plus popularity."""
        return self._matrix is None

    def all_positions(self, items: torch.Tensor) -> torch.Tensor:
        """Logits after each event, as training has them; `items` is ``(B, T)`` with -1 for padding.

        Shape ``(B, T, I)``; with ``training_share`` of all that hangs on the history.
        """
        logits = self._popularity.expand(*items.shape, -1)
        if self._matrix is not None and self._training_share:
            sums = _running(self._matrix, items, self._decay)  # (B, T, I), or (B, T, r)
            logits = logits + self._training_share * self._weight * _calibrated(self._widened(sums))
        if self._likeness and self._training_share:
            liked = F.normalize(_running(self._items, items, LIKENESS_DECAY), dim=-1)  # (B, T, H)
            logits = logits + self._training_share * self._likeness * (liked @ self._items.T)
        return logits

    def of_candidates(self, items: torch.Tensor, targets: torch.Tensor, candidates: Candidates) -> SampledPrior:
        """As `all_positions`, of each position's target and of candidates alone, which stand for the others.

        What was met before is ruled out, as `mask_seen` does; a target is an item that was not.
        """
        places, wanted = candidates.items, targets.clamp(min=0)
        logits = target_and_others(self._popularity[wanted], self._popularity[places].expand(*items.shape, -1))
        if self._matrix is not None and self._training_share:
            scores = self._some_calibrated(_running(self._matrix, items, self._decay), wanted, places)
            logits = logits + self._training_share * self._weight * scores
        if self._likeness and self._training_share:
            liked = F.normalize(_running(self._items, items, LIKENESS_DECAY), dim=-1)
            scores = target_and_others((liked * self._items[wanted]).sum(-1), liked @ self._items[places].T)
            logits = logits + self._training_share * self._likeness * scores
        others = (logits[..., 1:] + candidates.weights).masked_fill(not_to_be_ranked(items, targets, places), RULED_OUT)
        return SampledPrior(torch.cat([logits[..., :1], others], dim=-1), places)

    def _some_calibrated(self, sums: torch.Tensor, targets: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """`_calibrated` scores of some items; of two factors the others are never made."""
        if self._widen is None:
            scores = _calibrated(sums)
            return target_and_others(scores.gather(-1, targets.unsqueeze(-1)).squeeze(-1), scores[..., places])
        scores = target_and_others((sums * self._widen.T[targets]).sum(-1), sums @ self._widen[:, places])
        mean, covariance = self._moments
        variance = ((sums @ covariance) * sums).sum(-1, keepdim=True).clamp(min=0)
        return _drawn_in(STEEPNESS * (scores - sums @ mean) / variance.sqrt().clamp(min=1e-12))

    @cached_property
    def _moments(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean ``(r, 1)`` and covariance ``(r, r)`` of the columns of `widen`: those of all items' scores follow."""
        assert self._widen is not None
        mean = self._widen.mean(1, keepdim=True)
        centred = self._widen - mean
        return mean, centred @ centred.T / centred.shape[1]

    def last_position(self, items: torch.Tensor, *, likeness: bool = True) -> torch.Tensor:
        """Logits after the newest event, shape ``(B, I)``; cheaper than taking it from all positions.

        Without `likeness` where a product with `liked` is added elsewhere.
        """
        logits = self._popularity.expand(len(items), -1)
        if self._matrix is not None:
            bags = _bag(self._matrix, items, self._decay)  # (B, I) or (B, r)
            logits = logits + self._weight * _calibrated(self._widened(bags))
        liked = self.liked(items) if likeness else None
        return logits if liked is None else logits + liked @ self._items.T

    def liked(self, items: torch.Tensor, moved: torch.Tensor | None = None) -> torch.Tensor | None:
        """Vectors, ``(B, H)``, whose products with item vectors are the likeness by text; None if it has no weight.

        With `moved`, ``(B, T, H)``, as if the item vector of each event were another by so much.
        """
        if not self._likeness:
            return None
        return self._likeness * recent_texts(self._items, items, LIKENESS_DECAY, moved)

    def _widened(self, scores: torch.Tensor) -> torch.Tensor:
        return scores if self._widen is None else scores @ self._widen


def recent_texts(
    vectors: torch.Tensor, items: torch.Tensor, decay: float, moved: torch.Tensor | None = None
) -> torch.Tensor:
    """The direction of the items' vectors, summed by ``decay^age``: ``(B, T)`` with -1 for none to ``(B, H)``."""
    summed = _bag(vectors, items, decay)
    if moved is not None:
        summed = summed + (_by_age(items, decay).unsqueeze(1) @ moved).squeeze(1)
    return F.normalize(summed, dim=-1)


def _running(matrix: torch.Tensor, items: torch.Tensor, decay: float) -> torch.Tensor:
    """Sums of the rows of the items up to each place, by ``decay^age``: ``(B, T)`` to ``(B, T, columns)``."""
    rows = matrix[items.clamp(min=0)] * (items >= 0).unsqueeze(-1)
    running = torch.zeros_like(rows[:, 0])
    for t in range(items.shape[1]):
        running = running * decay + rows[:, t]
        rows[:, t] = running
    return rows


def _bag(matrix: torch.Tensor, items: torch.Tensor, decay: float) -> torch.Tensor:
    """The sum at the newest event of each row, ``(B, columns)``."""
    weights = _by_age(items, decay).to(matrix.dtype)
    return F.embedding_bag(items.clamp(min=0), matrix, per_sample_weights=weights, mode="sum")


def _by_age(items: torch.Tensor, decay: float) -> torch.Tensor:
    """``decay^age`` of each event with an item, else 0; the newest of a row stands at its last place with one."""
    steps = torch.arange(items.shape[1], device=items.device)
    newest = torch.where(items >= 0, steps, -1).amax(dim=1, keepdim=True)  # (B, 1)
    weights: torch.Tensor = (decay ** (newest - steps).clamp(min=0)) * (items >= 0)
    return weights


def _calibrated(scores: torch.Tensor) -> torch.Tensor:
    """Mean 0 and deviation 1 over the catalogue, tails drawn in; all-equal scores become 0."""
    centred = scores - scores.mean(-1, keepdim=True)
    deviation = centred.square().mean(-1, keepdim=True).sqrt().clamp(min=1e-12)
    return _drawn_in(STEEPNESS * centred / deviation)


def _drawn_in(steep: torch.Tensor) -> torch.Tensor:
    """asinh, which torch does not vectorise: a tenth of the time."""
    size = steep.abs()
    return torch.log(size + torch.sqrt(size * size + 1.0)).copysign(steep)


def mask_seen(logits: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """Rule out, at each position, the items that the user has met by then.

    Ranking leaves them out too; learning to push them down would be effort for nothing.

    Parameters
    ----------
    logits : (B, T, I)
    items : (B, T) with -1 for none
    """
    T = items.shape[1]
    steps = torch.arange(T, device=items.device)
    met_at = torch.full((len(items), logits.shape[-1]), T, device=items.device)  # (B, I): first meeting
    met_at.scatter_reduce_(1, items.clamp(min=0), torch.where(items >= 0, steps, T), reduce="amin")
    return logits.masked_fill(met_at.unsqueeze(1) <= steps.view(1, T, 1), RULED_OUT)
