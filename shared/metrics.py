"""Metrics of ranked lists. No other module computes them, so that every figure has one definition.

Accuracy metrics start from the *rank* of the one held-out item among a user's candidates: 0-based and
fractional, ``rank = #better + #equal / 2``, so that a scorer gains nothing by giving many items one score.
A fractional rank is used as it stands: an item counts as within the first k when its 1-based rank
``rank + 1`` is at most k, so a rank of 9.5 (between the tenth and the eleventh place) is no hit at 10, and
its discount is ``1 / log2(rank + 2)`` of the fractional number.

List metrics start from the top-k lists: catalogue rows, shape ``(users, k)``, with -1 in the places that
a user with fewer than k candidates leaves empty.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from shared.errors import EmptyHistoryError, RankingError

HEAD_SHARE = 0.8
"""Share of all interactions that the head of the catalogue holds; the other items are the long tail."""


def fractional_ranks(
    scores: NDArray[np.floating[Any]], targets: NDArray[np.integer[Any]], candidates: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Rank of each user's target among the user's candidates; ties count half.

    Parameters
    ----------
    scores : array of float, shape (n, items)
    targets : array of int, shape (n,)
        Column of each user's held-out item; it must be a candidate.
    candidates : array of bool, shape (n, items)

    Returns
    -------
    array of float64, shape (n,)
        0-based: ``#better + #(equal others) / 2``, with the target's own score as the measure.

    Raises
    ------
    RankingError
        A score that is not finite (it would hide below, or above, all others), or a target that is no
        candidate.
    """
    if not np.isfinite(scores).all():
        raise RankingError("Expected finite scores for all users and items.")
    row = np.arange(len(targets))
    if not candidates[row, targets].all():
        raise RankingError("Expected every target among its user's candidates: the target was seen before.")
    own = scores[row, targets][:, None]  # (n, 1)
    better = np.count_nonzero((scores > own) & candidates, axis=1)
    equal = np.count_nonzero((scores == own) & candidates, axis=1) - 1  # the target equals itself
    ranks: NDArray[np.float64] = better + equal / 2
    return ranks


def ndcg_per_user(ranks: NDArray[np.float64], k: int = 10) -> NDArray[np.float64]:
    """Normalised discounted cumulative gain at k of each user, shape ``(n,)``.

    ``1 / log2(rank + 2)`` for a 0-based rank within the first k places, else 0. With one relevant item the
    ideal gain is 1, so nothing is left to normalise.

    Source: K. Järvelin and J. Kekäläinen, "Cumulated gain-based evaluation of IR techniques", ACM TOIS 20(4),
    2002.
    """
    return np.where(_hits(ranks, k), 1 / np.log2(ranks + 2), 0.0)


def ndcg(ranks: NDArray[np.float64], k: int = 10) -> float:
    """Mean over users of `ndcg_per_user`: NDCG@k."""
    return float(ndcg_per_user(ranks, k).mean())


def hit_rate(ranks: NDArray[np.float64], k: int = 10) -> float:
    """Share of users whose held-out item is within the first k places: HR@k.

    ``mean(rank + 1 <= k)`` with 0-based ranks. With one held-out item it equals recall@k.

    Source: M. Deshpande and G. Karypis, "Item-based top-N recommendation algorithms", ACM TOIS 22(1), 2004.
    """
    return float(_hits(ranks, k).mean())


def mean_reciprocal_rank(ranks: NDArray[np.float64]) -> float:
    """Mean of ``1 / (rank + 1)`` over users, with 0-based ranks and no cut-off: MRR.

    Source: E. M. Voorhees, "The TREC-8 question answering track report", TREC 1999.
    """
    return float((1 / (_checked(ranks) + 1)).mean())


def auc(ranks: NDArray[np.float64], candidates: NDArray[np.integer[Any]]) -> float:
    """Mean share of the other candidates that the target is ranked above: 0.5 is chance.

    ``mean(1 - rank / (candidates - 1))`` with 0-based ranks; a user with no other candidate counts 0.5.

    Source: S. Rendle et al., "BPR: Bayesian personalized ranking from implicit feedback", UAI 2009.
    """
    others = np.maximum(candidates - 1, 1)
    return float(np.where(candidates > 1, 1 - _checked(ranks) / others, 0.5).mean())


def coverage(top: NDArray[np.integer[Any]], items: int) -> float:
    """Share of the catalogue's ``items`` that stand in at least one list.

    ``|union of the lists| / items``.

    Source: M. Ge, C. Delgado-Battenfeld and D. Jannach, "Beyond accuracy: evaluating recommender systems by
    coverage and serendipity", RecSys 2010 (catalogue coverage).
    """
    return len(np.unique(_listed(top))) / items


def novelty(top: NDArray[np.integer[Any]], item_counts: NDArray[np.integer[Any]]) -> float:
    """Mean self-information, in bits, of the listed items: the rarer, the higher.

    ``mean(-log2 p_i)`` over all places, ``p_i = (count_i + 1) / (sum of counts + items)``: the share of
    interactions that are with the item, each item counted once more so that unseen items have a finite
    novelty.

    Source: S. Vargas and P. Castells, "Rank and relevance in novelty and diversity metrics for recommender
    systems", RecSys 2011 (free discovery).
    """
    share = (item_counts + 1) / (item_counts.sum() + len(item_counts))
    return float(-np.log2(share[_listed(top)]).mean())


def long_tail_share(top: NDArray[np.integer[Any]], item_counts: NDArray[np.integer[Any]]) -> float:
    """Share of places that hold a long-tail item.

    The head is the smallest set of most popular items that holds `HEAD_SHARE` of the interactions; items
    that are as popular as its last one belong to it too, so that the order of equals does not matter.

    Source: H. Abdollahpouri, R. Burke and B. Mobasher, "Managing popularity bias in recommender systems with
    personalized re-ranking", FLAIRS 2019 (average percentage of long-tail items).
    """
    return float(1 - _head(item_counts)[_listed(top)].mean())


def exposure(top: NDArray[np.integer[Any]], groups: NDArray[np.integer[Any]], n_groups: int) -> NDArray[np.float64]:
    """Share of all exposure that goes to each group of items, shape ``(n_groups,)``; the shares add up to 1.

    A place has the exposure ``1 / log2(place + 1)``, its discount in NDCG: the chance that somebody looks at it.

    Parameters
    ----------
    top : array of int, shape (users, k)
    groups : array of int, shape (items,)
        Group of each item, from 0.
    n_groups : int

    Source: A. Singh and T. Joachims, "Fairness of exposure in rankings", KDD 2018.
    """
    _listed(top)
    users, places = np.nonzero(top >= 0)
    seen = np.bincount(groups[top[users, places]], weights=1 / np.log2(places + 2), minlength=n_groups)
    return np.asarray(seen / seen.sum(), dtype=np.float64)


def popularity_quantiles(item_counts: NDArray[np.integer[Any]], n: int = 5) -> NDArray[np.int64]:
    """Which part of the catalogue each item is in, shape ``(items,)``: 0 the most popular nth, ``n - 1`` the least.

    An item's part follows from how many are more popular, so that the order of equals does not matter.
    """
    more = len(item_counts) - np.searchsorted(np.sort(item_counts), item_counts, side="right")
    return np.asarray(more * n // len(item_counts), dtype=np.int64)


def intra_list_diversity(top: NDArray[np.integer[Any]], vectors: NDArray[np.floating[Any]]) -> float:
    """Mean of ``1 - cos`` over all pairs of a list, then over the lists with two items or more.

    `vectors`, shape ``(items, H)``, have norm 1.

    Source: B. Smyth and P. McClave, "Similarity vs. diversity", ICCBR 2001; C.-N. Ziegler et al., "Improving
    recommendation lists through topic diversification", WWW 2005.
    """
    unlike = []
    for row in top:
        own = vectors[row[row >= 0]].astype(np.float64)
        if (n := len(own)) > 1:
            # Of all ordered pairs but each item with itself: |sum of vectors|^2 less the n ones.
            unlike.append(1 - (np.square(own.sum(axis=0)).sum() - np.square(own).sum()) / (n * (n - 1)))
    if not unlike:
        raise EmptyHistoryError("Expected at least one list of two items.")
    return float(np.mean(unlike))


def mean_listed(top: NDArray[np.integer[Any]], values: NDArray[np.floating[Any]]) -> float:
    """Mean of a value that each item has, e.g. its age, over all places; NaN, for not known, is passed over.

    Raises an `EmptyHistoryError` if nothing is known of any listed item.
    """
    told = values[_listed(top)]
    if np.isnan(told).all():
        raise EmptyHistoryError("Expected at least one listed item with a value.")
    return float(np.nanmean(told))


def _head(item_counts: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    descending = np.sort(item_counts)[::-1]
    last = int(np.searchsorted(descending.cumsum(), HEAD_SHARE * item_counts.sum()))
    return np.asarray(item_counts >= descending[min(last, len(descending) - 1)])


def _hits(ranks: NDArray[np.float64], k: int) -> NDArray[np.bool_]:
    return np.asarray(_checked(ranks) + 1 <= k)


def _checked(ranks: NDArray[np.float64]) -> NDArray[np.float64]:
    if ranks.size == 0:
        raise EmptyHistoryError("Expected at least one evaluated user.")
    if not (np.isfinite(ranks).all() and (ranks >= 0).all()):
        raise RankingError("Expected finite ranks of at least 0.")
    return ranks


def _listed(top: NDArray[np.integer[Any]]) -> NDArray[np.integer[Any]]:
    listed = top[top >= 0]
    if listed.size == 0:
        raise EmptyHistoryError("Expected at least one listed item.")
    return listed
