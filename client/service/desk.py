"""The desk: answers batches of requests. All that it does with a request is on this page.

::

    requests -> histories (store + session) -> retrieve -> rerank -> explain -> answers
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from client.batches import BatchMaker
from client.ranking.engine import Mask, Retrieved
from client.ranking.explain import Explanation, explain
from client.ranking.explain_words import Texts, explain_query, explain_words
from client.ranking.rerank import pipeline, rerank
from client.ranking.rerank_stages import Candidates
from client.ranking.sentences import sentence
from client.ranking.store import EventStore
from client.service.requests import Basis, Ranked, RankRequest, RankResponse, Reason, Word
from client.service.sessions import histories_of
from client.service.stand import Stand
from shared.errors import ConfigError, VeilrecError

DEPTH = 200
"""Candidates that rerank stages choose from."""
NAMED = 3
"""Things of a history that are told for each place of an explained list."""
Answer = RankResponse | VeilrecError
Find = Callable[[int], Stand]
"""A stand for a version on the shelf."""


class Desk:
    """Answers with the release that is served when a batch begins.

    Parameters
    ----------
    stand : Stand
    store : EventStore
    find : callable, optional
        For requests that name a version.
    """

    def __init__(self, stand: Stand, store: EventStore, find: Find | None = None) -> None:
        self._stand, self._store, self._find = stand, store, find
        self._hidden: frozenset[str] = frozenset()
        self._lock = threading.Lock()

    @property
    def stand(self) -> Stand:
        """What is served."""
        return self._stand

    def serve(self, stand: Stand) -> None:
        """Answer with another release from the next batch on."""
        self._stand = stand

    def hide(self, item_ids: Sequence[str], *, available: bool) -> int:
        """Show items no longer, or again; how many of the catalogue's are hidden then."""
        with self._lock:
            self._hidden = self._hidden - set(item_ids) if available else self._hidden | set(item_ids)
        return sum(item_id in self._stand.engine.catalogue.rows for item_id in self._hidden)

    @property
    def hidden(self) -> frozenset[str]:
        """Ids that are not shown."""
        return self._hidden

    def answer(self, asked: Sequence[RankRequest]) -> list[Answer]:
        """A list or an error for each request."""
        answers: list[Answer | None] = [None] * len(asked)
        served = self._stand
        for version in sorted({request.release or 0 for request in asked}):
            places = [k for k, request in enumerate(asked) if (request.release or 0) == version]
            found: Sequence[Answer]
            try:
                found = self._each(self._of(version, served), [asked[k] for k in places])
            except VeilrecError as error:
                found = [error] * len(places)
            for place, one in zip(places, found, strict=True):
                answers[place] = one
        return [one for one in answers if one is not None]

    def _each(self, stand: Stand, asked: Sequence[RankRequest]) -> list[Answer]:
        """All together, or, where one of them cannot be read, each by itself: nobody fails for another's sake."""
        try:
            return self._answers(stand, asked)
        except VeilrecError as error:
            if len(asked) == 1:
                return [error]
            return [answer for one in asked for answer in self._each(stand, [one])]

    def _of(self, version: int, served: Stand) -> Stand:
        if version in (0, served.info.version):
            return served
        if self._find is None:
            raise ConfigError(f"Expected release={served.info.version}: no other is at hand.")
        return self._find(version)

    def _answers(self, stand: Stand, asked: Sequence[RankRequest]) -> list[Answer]:
        histories, brought = histories_of(asked, self._store, stand.engine.catalogue)
        allowed = [self._allowed(stand, request) for request in asked]
        depth = max(DEPTH, *(request.k for request in asked))
        maker = stand.engine.maker(histories, brought)
        users = np.flatnonzero(histories.lengths > 0)
        pick = [allowed[int(k)] for k in users]
        found = stand.engine.retrieve(maker, users, depth, pick, [asked[int(k)].query or "" for k in users])
        place = {int(user): k for k, user in enumerate(users)}
        answers: list[Answer] = []
        for k, request in enumerate(asked):
            try:
                if k in place:
                    basis: Basis = "history and query" if request.query else "history"
                    answers.append(self._list(stand, request, basis, found, place[k], maker, k))
                elif request.query:
                    one = stand.engine.query([request.query], depth, [allowed[k]])
                    answers.append(self._list(stand, request, "query", one, 0))
                else:
                    one = stand.engine.popular(depth, allowed[k])
                    answers.append(self._list(stand, request, "popularity", one, 0))
            except VeilrecError as error:
                answers.append(error)
        return answers

    def _allowed(self, stand: Stand, request: RankRequest) -> Mask | None:
        mask: NDArray[np.bool_] | None = stand.inside(request.categories) if request.categories else None
        if self._hidden:
            mask = np.ones(len(stand.facts), dtype=bool) if mask is None else mask
            rows = stand.engine.catalogue.rows
            mask[[rows[item_id] for item_id in self._hidden if item_id in rows]] = False
        return mask

    def _list(
        self,
        stand: Stand,
        request: RankRequest,
        basis: Basis,
        found: Retrieved,
        place: int,
        maker: BatchMaker | None = None,
        user: int = 0,
    ) -> RankResponse:
        catalogue = stand.engine.catalogue
        rows, scores = found.of(place)
        asked = request.rerank
        shown = asked.model_copy(update={"pin": tuple(pin for pin in asked.pin if pin.item not in self._hidden)})
        stages = pipeline(shown, catalogue, stand.facts, now=time.time(), k=request.k)
        best = rerank(Candidates(rows.astype(np.int32), scores), stand.facts, stages)
        why: Sequence[Explanation | None] = [None] * len(best)
        if request.explain and basis != "popularity":
            why = _explained(stand, request, [int(row) for row in best.rows], maker, user)
        items = tuple(
            _ranked(stand, n, int(row), float(score), one)
            for n, (row, score, one) in enumerate(zip(best.rows, best.scores, why, strict=True), start=1)
        )
        return RankResponse(items=items, basis=basis, release=stand.info.version)


def _explained(
    stand: Stand, request: RankRequest, rows: list[int], maker: BatchMaker | None, user: int
) -> Sequence[Explanation]:
    """By the things of the history; of a wish alone, by its words."""
    engine = stand.engine
    if maker is None:
        return explain_query(request.query or "", lambda text: engine.scorer.query(text, engine.text), rows)
    history = maker.histories[user]
    found = explain(engine.parts, maker, history, rows)
    if not request.words:
        return found
    texts = Texts(engine.catalogue, maker.histories.review_texts, engine.text)
    return explain_words(found, engine.parts, maker, history, texts)


def _ranked(stand: Stand, rank: int, row: int, score: float, why: Explanation | None) -> Ranked:
    catalogue = stand.engine.catalogue
    because = () if why is None else tuple(reason for reason in why.reasons[:NAMED] if reason.effect > 0)
    return Ranked(
        rank=rank,
        item_id=catalogue.item_ids[row],
        title=catalogue.titles[row],
        score=score if np.isfinite(score) else None,
        reason="" if why is None else sentence(why, catalogue),
        because=tuple(
            Reason(
                item_id=catalogue.item_ids[one.item] if one.item >= 0 else "",
                title=catalogue.titles[one.item] if one.item >= 0 else "",
                kinds=one.kinds,
                effect=one.effect,
            )
            for one in because
        ),
        words=tuple(
            Word(word=one.word, source=one.source, effect=one.effect)
            for one in (() if why is None else why.words[:NAMED])
            if one.effect > 0
        ),
    )
