"""What is like an item, and who is like a user."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from client.ranking.engine import Mask, Retrieved
from shared.errors import RankingError
from shared.model.prior import CollaborativePrior
from shared.model.prior_scores import STEEPNESS
from shared.model.prior_texts import completed

Vectors = NDArray[np.float32]
TOGETHER_WEIGHT = 2.0
"""Of being met by the same users, beside likeness of text: both standardised over the catalogue, the first with its
tails drawn in as the prior's scores are. Chosen on the last-but-one split (`simulations.benchmarks.questions`)."""
USERS_AT_ONCE = 256


class SimilarItems:
    """Items that are like one: by text, and by who meets both.

    Text finds items of the same sort; the item-to-item weights of the prior, of both directions, find what goes with
    it. An item that nobody was seen with has its text alone.

    Parameters
    ----------
    vectors : array of float32, shape (I, H)
        Of norm 1.
    prior : CollaborativePrior
    together : float
    """

    def __init__(self, vectors: Vectors, prior: CollaborativePrior, *, together: float = TOGETHER_WEIGHT) -> None:
        if len(vectors) != len(prior.popularity):
            raise RankingError(f"Expected vectors of items={len(prior.popularity)}, got {len(vectors)}.")
        self._vectors, self._together = vectors, together
        self._prior = completed(prior, vectors)

    def scores(self, row: int) -> NDArray[np.float32]:
        """How like an item all items are, shape ``(I,)``; of itself ``-inf``."""
        scores = _standardised(self._vectors @ self._vectors[row])
        unseen = self._prior.unseen is not None and self._prior.unseen[row] > 0
        if self._prior.item_to_item is not None and self._together and not unseen:
            scores = scores + self._together * np.arcsinh(STEEPNESS * _standardised(self._both_ways(row)))
        scores[row] = -np.inf
        return scores.astype(np.float32)

    def nearest(self, row: int, n: int, allowed: Mask | None = None) -> Retrieved:
        """The `n` items that are most like one, itself not among them; equals by row.

        Parameters
        ----------
        row : int
            Catalogue row.
        allowed : array of bool, shape (I,), optional
            Items that may be named.
        """
        scores = self.scores(row)
        if allowed is not None:
            scores[~allowed] = -np.inf
        best = np.argsort(-scores, kind="stable")[:n]
        found = np.isfinite(scores[best])
        return Retrieved(np.where(found, best, -1)[None], scores[best][None])

    def _both_ways(self, row: int) -> NDArray[np.float32]:
        """Weights from the item and to it; its own is not one of them."""
        left, widen = self._prior.item_to_item, self._prior.widen
        if left is None:
            raise AssertionError("asked without item-to-item weights")
        both = left[row] + left[:, row] if widen is None else left[row] @ widen + left @ widen[:, row]
        both[row] = 0.0
        return np.asarray(both, dtype=np.float32)


def nearest_users(
    asked: Vectors, crowd: Vectors, n: int, *, itself: NDArray[np.int64] | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """The `n` of a crowd that are most like each of those asked for, by cosine.

    All pairs, as matrix products: exact, and for a shop's users quick enough.

    Parameters
    ----------
    asked, crowd : array of float32, shapes (B, H) and (C, H)
        Of norm 1 (`client.ranking.tastes.Tastes.vectors`).
    itself : array of int64, shape (B,), optional
        Place in the crowd of each of those asked for, -1 for none: nobody is like themselves.

    Returns
    -------
    places : array of int64, shape (B, n)
        In the crowd, the most alike first; -1 where there are fewer.
    cosines : array of float32, shape (B, n)
    """
    n = min(n, len(crowd))
    places, cosines = np.empty((len(asked), n), dtype=np.int64), np.empty((len(asked), n), dtype=np.float32)
    for start in range(0, len(asked), USERS_AT_ONCE):
        cut = slice(start, start + USERS_AT_ONCE)
        likeness = asked[cut] @ crowd.T  # (b, C)
        if itself is not None:
            known = np.flatnonzero(itself[cut] >= 0)
            likeness[known, itself[cut][known]] = -np.inf
        best = np.argpartition(-likeness, n - 1, axis=1)[:, :n] if n else np.empty((len(likeness), 0), np.int64)
        values = np.take_along_axis(likeness, best, axis=1)
        order = np.lexsort((best, -values), axis=1)
        cosines[cut] = np.take_along_axis(values, order, axis=1)
        places[cut] = np.take_along_axis(best, order, axis=1)
    places[~np.isfinite(cosines)] = -1
    return places, cosines


def _standardised(scores: Vectors) -> Vectors:
    return np.asarray((scores - scores.mean()) / max(float(scores.std()), 1e-12), dtype=np.float32)
