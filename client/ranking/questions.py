"""What a shop asks beside "what should this user see", of one release over its catalogue.

::

    interests, attributes   what does a user (or a wish) want?       client.ranking.interests
    similar items           what is like this item?                  client.ranking.similar
    similar users           who of these is like this user?
    audience                whom of these to show this offer?        client.ranking.audience

A new user has a wish, or what is usual; a new item has its text. Nothing is kept of a user.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from client.batches import BatchMaker
from client.ranking.audience import Wanting, offer_in_words, wanting
from client.ranking.engine import Engine, Mask
from client.ranking.interests import Interest, Interests, Shares, attributes, clusters_of, interests, words_of
from client.ranking.rerank_stages import Groups, ItemFacts
from client.ranking.similar import SimilarItems, nearest_users
from client.ranking.tastes import Tastes
from shared.errors import RankingError

WORD, CLUSTER = "word", "cluster"


class Questions:
    """Answers, in catalogue rows and places of users. One thread at a time, as the engine's.

    Parameters
    ----------
    engine : Engine
    facts : ItemFacts
        Their `groups` are what interests can be told in, beside words of titles and clusters of texts.
    temperature : float, optional
        See `client.ranking.tastes`.
    """

    def __init__(self, engine: Engine, facts: ItemFacts, *, temperature: float | None = None) -> None:
        if len(facts) != len(engine.catalogue):
            raise RankingError(f"Expected facts of items={len(engine.catalogue)}, got {len(facts)}.")
        self.engine, self.facts = engine, facts
        self.tastes = Tastes(engine, temperature)

    @cached_property
    def kinds(self) -> Mapping[str, Groups]:
        """What an item can be sorted by; kinds that no item has a group of are left out."""
        own = {WORD: words_of(self.engine.catalogue), **self.facts.groups}
        return {kind: groups for kind, groups in own.items() if groups.names}

    @cached_property
    def _clusters(self) -> Groups:
        return clusters_of(self.facts.vectors, self.engine.catalogue)

    @cached_property
    def _similar(self) -> SimilarItems:
        return SimilarItems(self.facts.vectors, self.engine.release.prior)

    def interests(
        self,
        maker: BatchMaker | None,
        user: int,
        n: int,
        *,
        wish: str = "",
        kind: str = "category",
        shown: Mask | None = None,
    ) -> Interests:
        """The `n` most probable groups of one kind for a user, a wish, or both.

        Parameters
        ----------
        maker : BatchMaker or None
            None for somebody of whom nothing is known.
        user : int
            Place in its histories.
        kind : str
            One of `kinds`, or ``cluster``; clusters too where no item has a group of that kind.
        shown : array of bool, shape (I,), optional
            Items that may be named; those that the user has met are never.
        """
        shares = self.tastes.of(maker, user, wish)
        kind = kind if kind in self.kinds or kind in self.facts.groups else self._refused(kind)
        groups = self.kinds.get(kind, self._clusters)
        kind = kind if kind in self.kinds else CLUSTER
        return interests(shares, self.tastes.usual, kind, groups, n, self._open(maker, user, shown))

    def attributes(
        self, maker: BatchMaker | None, user: int, n: int, *, wish: str = "", shown: Mask | None = None
    ) -> tuple[Interest, ...]:
        """The `n` groups, of all `kinds`, that tell most of a user."""
        shares: Shares = self.tastes.of(maker, user, wish)
        return attributes(shares, self.tastes.usual, self.kinds, n, self._open(maker, user, shown))

    def similar_items(
        self, row: int, n: int, shown: Mask | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The `n` items that are most like one, and how much."""
        return self._similar.nearest(row, n, shown).of(0)

    def similar_users(
        self, vectors: NDArray[np.float32], crowd: NDArray[np.float32], n: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """The `n` of a crowd that are most like each user; both as `Tastes.vectors` has them."""
        return nearest_users(vectors, crowd, n)

    def audience(self, maker: BatchMaker, users: NDArray[np.int64], rows: NDArray[np.int64]) -> Wanting:
        """How much each user wants an offer of items."""
        return wanting(self.tastes, maker, users, rows)

    def offer(self, words: str, shown: Mask | None = None) -> NDArray[np.int64]:
        """The items that an offer in words is of."""
        return offer_in_words(self.tastes, words, shown=shown)

    def _open(self, maker: BatchMaker | None, user: int, shown: Mask | None) -> Mask:
        open_to_all = np.ones(len(self.facts), dtype=bool) if shown is None else shown.copy()
        if maker is not None:
            open_to_all[maker.histories[user].items] = False
        return open_to_all

    def _refused(self, kind: str) -> str:
        if kind != CLUSTER:
            self.facts.kind(kind)  # raises, with the kinds that there are
        return kind
