"""What a user is interested in: their taste (`client.ranking.tastes`) summed over groups of items.

::

    p(i | user) -> sum over a category, a brand, a cluster, a word -> the most probable, with lift and the items behind

*Interests* are shares of one kind of group: an item in several gives each an equal part, so that all add up to 1.
*Attributes* are of several kinds at once, and may overlap: each has the probability that the next item is of it, and
they are ordered by what each tells of this user, its part of the Kullback-Leibler divergence from what is usual.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.ranking.rerank_stages import NO_GROUP, Groups
from shared.errors import RankingError
from shared.schema import Catalogue

Shares = NDArray[np.float32]
CARRIED_BY = 3
"""Items that are named for each interest."""
WORD = re.compile(r"[^\W_][\w'-]{2,}")
SHARED_BY, AT_MOST = 5, 0.3
"""A word is an attribute if so many items have it, and no more than this part of the catalogue."""
CLUSTERS, PASSES = 20, 20


@dataclass(frozen=True, slots=True)
class Interest:
    """A group of items that somebody wants.

    Parameters
    ----------
    kind, name : str
        E.g. ``category`` and ``Board Game``.
    probability : float
        That the next item is of it.
    lift : float
        How many times as probable as it is usual.
    rows : tuple of int
        Catalogue rows of the most probable items of the group that may be shown, the best first.
    """

    kind: str
    name: str
    probability: float
    lift: float
    rows: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Interests:
    """The most probable groups of one kind.

    Parameters
    ----------
    found : tuple of Interest
        By falling probability.
    other : float
        Of all groups that are not named here, and of items in none: with the others it makes 1.
    """

    found: tuple[Interest, ...]
    other: float


def mass(shares: Shares, groups: Groups, *, split: bool) -> NDArray[np.float64]:
    """The probability of each group, shape ``(groups,)``.

    Parameters
    ----------
    shares : array of float32, shape (I,)
    split : bool
        Whether an item in several groups gives each an equal part, or all of its probability to each.
    """
    if groups.codes.shape[:1] != shares.shape:
        raise RankingError(f"Expected groups of items={len(shares)}, got {len(groups.codes)}.")
    inside = groups.codes != NO_GROUP
    own = np.broadcast_to(shares[:, None].astype(np.float64), groups.codes.shape)
    if split:
        own = own / np.maximum(inside.sum(axis=1, keepdims=True), 1)
    summed = np.bincount(groups.codes[inside], weights=own[inside], minlength=len(groups.names))
    return np.asarray(summed, dtype=np.float64)


def interests(
    shares: Shares, usual: Shares, kind: str, groups: Groups, n: int, shown: NDArray[np.bool_] | None = None
) -> Interests:
    """The `n` most probable groups.

    Parameters
    ----------
    shares, usual : array of float32, shape (I,)
        Of this user, and what lift is measured against; each adds up to 1.
    kind : str
        Name of the kind of group.
    shown : array of bool, shape (I,), optional
        Items that may be named.
    """
    own, base = mass(shares, groups, split=True), mass(usual, groups, split=True)
    best = np.argsort(-own, kind="stable")[:n]
    found = tuple(
        Interest(kind, groups.names[k], float(own[k]), _lift(own[k], base[k]), _carriers(shares, groups, int(k), shown))
        for k in best
    )
    return Interests(found, max(1.0 - float(own[best].sum()), 0.0))


def attributes(
    shares: Shares, usual: Shares, kinds: Mapping[str, Groups], n: int, shown: NDArray[np.bool_] | None = None
) -> tuple[Interest, ...]:
    """The `n` groups, of any kind, that tell most of this user: by falling ``p log(p / usual)``, none below 0."""
    told: list[tuple[float, str, int, float, float]] = []
    for kind, groups in kinds.items():
        own, base = mass(shares, groups, split=False), mass(usual, groups, split=False)
        worth = own * np.log(np.maximum(own, 1e-12) / np.maximum(base, 1e-12))
        best = [int(k) for k in np.argsort(-worth, kind="stable")[:n] if worth[k] > 0]
        told += [(float(worth[k]), kind, k, float(own[k]), _lift(own[k], base[k])) for k in best]
    told.sort(key=lambda one: (-one[0], one[1], one[2]))
    return tuple(
        Interest(kind, kinds[kind].names[k], own, lift, _carriers(shares, kinds[kind], k, shown))
        for _, kind, k, own, lift in told[:n]
    )


def words_of(catalogue: Catalogue, *, shared_by: int = SHARED_BY) -> Groups:
    """Words of titles as groups: in them are brands, materials and price words that no column names."""
    own = [list(dict.fromkeys(word.lower() for word in WORD.findall(title))) for title in catalogue.titles]
    counts: dict[str, int] = {}
    for words in own:
        for word in words:
            counts[word] = counts.get(word, 0) + 1
    kept = {word for word, n in counts.items() if shared_by <= n <= AT_MOST * len(own)}
    return Groups.of(["|".join(word for word in words if word in kept) for words in own], split=True)


def clusters_of(vectors: NDArray[np.float32], catalogue: Catalogue, *, n: int = CLUSTERS, seed: int = 0) -> Groups:
    """Clusters of items by text, for a catalogue without categories, named after the item next to each middle.

    Spherical k-means from a seeded start (I. Dhillon and D. Modha, "Concept decompositions for large sparse text data
    using clustering", Machine Learning 42, 2001).

    Parameters
    ----------
    vectors : array of float32, shape (I, H)
        Of norm 1.
    """
    n = min(n, len(vectors))
    middles = vectors[np.random.default_rng(seed).choice(len(vectors), n, replace=False)]
    own = np.zeros(len(vectors), dtype=np.int64)
    for _ in range(PASSES):
        own = np.argmax(vectors @ middles.T, axis=1)
        sums = np.zeros_like(middles)
        np.add.at(sums, own, vectors)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        middles = np.where(norms > 0, sums / np.maximum(norms, 1e-12), middles)
    # A name may hold what separates categories, and two middles may be next to one item: codes, not names, count.
    names = [f"like {catalogue.titles[int(row)]}" for row in np.argmax(vectors @ middles.T, axis=0)]
    return Groups(tuple(names), own[:, None].astype(np.int32))


def _lift(own: float, usual: float) -> float:
    return float(own) / max(float(usual), 1e-12)


def _carriers(shares: Shares, groups: Groups, group: int, shown: NDArray[np.bool_] | None) -> tuple[int, ...]:
    inside = (groups.codes == group).any(axis=1)
    rows = np.flatnonzero(inside if shown is None else inside & shown)
    return tuple(int(row) for row in rows[np.argsort(-shares[rows], kind="stable")[:CARRIED_BY]])
