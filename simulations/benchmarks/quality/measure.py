"""Figures of one method on one split, and the rank of every user, in an order that all methods share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from shared import metrics
from simulations.baselines import item_counts
from simulations.evaluation import COLD_THRESHOLD, NO_TARGET, Evaluation
from simulations.segments import Part, ScorerOver, rank_all, tail_items, with_target_in


@dataclass(frozen=True, slots=True)
class Measured:
    """What a method came to.

    Attributes
    ----------
    metrics : dict of str to float
        As `Evaluation.metrics`; ``tail_`` and ``cold_`` before a name: over the users whose held-out item is among the
        least popular 80 % of the catalogue, or has at most `COLD_THRESHOLD` training interactions.
    users : array of uint64, shape (n,)
        The first 64 bits of their pseudonyms, ascending: the same for all methods and partitions.
    ranks : array of float64, shape (n,)
        0-based, fractional.
    targets : array of int32, shape (n,)
        Catalogue rows.
    """

    metrics: dict[str, float]
    users: NDArray[np.uint64]
    ranks: NDArray[np.float64]
    targets: NDArray[np.int32]


def measure(scorer_over: ScorerOver, parts: Sequence[Part], items: int) -> Measured:
    """Rank the users of all partners, each partner's scorer for its own; `items` is the size of the catalogue."""
    evaluation = rank_all(scorer_over, parts)
    users = np.array([int(name[:16], 16) for part in parts for name in _evaluated(part)], dtype=np.uint64)
    order = np.argsort(users)
    counts = item_counts([part.histories for part in parts], items)
    return Measured(_figures(evaluation, counts), users[order], evaluation.ranks[order], evaluation.targets[order])


def _evaluated(part: Part) -> list[str]:
    """Pseudonyms in the order in which `evaluate` has the users."""
    return [part.histories.users[int(user)] for user in np.flatnonzero(part.targets != NO_TARGET)]


def _figures(evaluation: Evaluation, counts: NDArray[np.int64]) -> dict[str, float]:
    figures = evaluation.metrics(counts)
    for name, items in (("tail", tail_items(counts)), ("cold", counts <= COLD_THRESHOLD)):
        some = with_target_in(evaluation, items)
        figures[f"{name}_users"] = len(some)
        if len(some):  # no user, no figure
            figures |= {f"{name}_ndcg@10": metrics.ndcg(some.ranks), f"{name}_hr@10": metrics.hit_rate(some.ranks)}
    return figures
