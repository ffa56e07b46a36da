"""A softmax over some of a large catalogue: which items, and what each of them stands for.

Over the whole catalogue a user of 30 events has 30 logits an item: with 100,000 items they take most of a training
step. Above `MOST_EXACT` items the sum over all others of a position's target is estimated from a sample
(Bengio and Senecal, 2008): item j, drawn with probability q_j, stands for ``1 / (K q_j)`` items. The estimate is right
on average, and the loss goes to the exact one as K grows.

Guarantees
----------
The sample hangs on public things alone: the round's number, the catalogue's size, the released popularity. It is the
same for all users, so that a user's loss remains a function of that user's row; no other user's items are the
negatives, as those of a batch would be.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MOST_EXACT = 50_000
"""Items up to which the softmax is over all of them."""
CANDIDATES = 8_192
"""K, items that are drawn, with replacement."""
UNIFORM_SHARE = 0.5
"""Of the draws, uniform ones: no item stands for more than ``I / (UNIFORM_SHARE K)``. The others are by popularity,
where the mass of the softmax is."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Items drawn for a round.

    Attributes
    ----------
    items : (K,)
        Catalogue rows; an item may be drawn again.
    weights : (K,)
        Log of how many items each stands for, ``-log(K q)``.
    """

    items: Tensor
    weights: Tensor


@dataclass(frozen=True, slots=True)
class SampledPrior:
    """A prior's logits of each position's target, then of the candidates with their weights: ``(B, T, 1 + K)``.

    Attributes
    ----------
    logits : (B, T, 1 + K)
    items : (K,)
        The candidates' catalogue rows.
    """

    logits: Tensor
    items: Tensor


def draw_candidates(popularity: Tensor, key: bytes, count: int = CANDIDATES) -> Candidates:
    """Draw by the softmax of `popularity`, logits of shape ``(I,)``, and uniformly; the same for the same key."""
    n_items = len(popularity)
    by_popularity = torch.softmax(popularity.double().cpu(), 0).numpy()
    q = UNIFORM_SHARE / n_items + (1 - UNIFORM_SHARE) * by_popularity
    seed = int.from_bytes(hashlib.sha256(b"veilrec candidates " + key).digest(), "big")
    drawn = np.random.default_rng(seed).choice(n_items, size=count, p=q / q.sum())
    weights = torch.from_numpy(-np.log(count * q[drawn])).to(popularity)
    return Candidates(torch.from_numpy(drawn).to(popularity.device), weights)


def target_and_others(targets: Tensor, others: Tensor) -> Tensor:
    """Two parts of a position's logits side by side: ``(B, T)`` and ``(B, T, K)`` to ``(B, T, 1 + K)``."""
    return torch.cat([targets.unsqueeze(-1), others], dim=-1)


def not_to_be_ranked(items: Tensor, targets: Tensor, candidates: Tensor) -> Tensor:
    """Where a candidate was met by then, or is the target itself, which is counted once: ``(B, T, K)``.

    Parameters
    ----------
    items, targets : (B, T) with -1 for none
    candidates : (K,)
    """
    met = torch.zeros(len(items), len(candidates), dtype=torch.bool, device=items.device)
    out = targets.unsqueeze(-1) == candidates  # (B, T, K)
    for t in range(items.shape[1]):
        met |= items[:, t : t + 1] == candidates
        out[:, t] |= met
    return out
