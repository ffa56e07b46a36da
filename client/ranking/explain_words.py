"""Which words of titles and reviews, or of a query, an item's score hangs on.

A word's effect is counterfactual as an event's is (`client.ranking.explain`): the text is read by BERT again without
the word, wherever it stands in it, and the item is scored again. A title's word goes out of the item's whole passage.
Only what reads text can change: BERT's part of the score, and, for a title's word, the likeness by text in the
prior's, whose item-to-item weights know items by their numbers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.batches import BatchMaker
from client.ranking.explain import EventReason, Explanation, Read, ScoreParts, Source, WordReason
from shared.model.behaviour import EventBatch
from shared.model.text import TextStage
from shared.schema import Catalogue, UserHistory

STRONGEST = 2
"""Things of a history whose words are tried, for each ranked item."""
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_\u3040-\u30ff\u3400-\u9fff]+(?:['\u2019-][^\W_]+)*")
"""A run of letters and digits; where words are not spaced, each character."""


@dataclass(frozen=True, slots=True)
class Texts:
    """Where words come from, and what reads them.

    Attributes
    ----------
    catalogue : Catalogue
    reviews : tuple of str
        `Histories.review_texts`.
    stage : TextStage
    """

    catalogue: Catalogue
    reviews: tuple[str, ...]
    stage: TextStage

    def passage(self, item: int) -> str:
        """What BERT reads of one item."""
        whole = self.catalogue
        columns = (whole.item_ids, whole.titles, whole.texts, whole.categories)
        return Catalogue(*((column[item],) for column in columns)).passages()[0]


@dataclass(frozen=True, slots=True)
class _Trial:
    """One word left out of one text: `places` are the events that read the text."""

    source: Source
    item: int
    word: str
    text: str
    without: str
    places: tuple[int, ...]


def explain_words(
    explanations: Sequence[Explanation], parts: ScoreParts, maker: BatchMaker, history: UserHistory, texts: Texts
) -> tuple[Explanation, ...]:
    """The explanations that `explain` gives of a history, with the words of each item's strongest things.

    The vectors of texts with and without a word are both made in float32, so that only the word tells them apart.
    """
    read = Read.of(maker, history, parts.catalogue.items.device)
    named = {reason for one in explanations for reason in _strongest(one)}
    trials = [
        trial
        for item, events in sorted({(reason.item, reason.events) for reason in named})
        for trial in _trials(item, events, read.first, history.reviews, texts)
    ]
    if parts.model is None or not trials:
        return tuple(explanations)
    rows = [one.item for one in explanations]
    batch, moved = _with_words_left_out(read.batch, trials, texts.stage)
    falls = parts.of_model(read.batch, rows) - parts.of_model(batch, rows)  # (trials, K)
    falls += parts.of_likeness(read.batch.items, rows) - parts.of_likeness(batch.items, rows, moved)
    told = []
    for k, one in enumerate(explanations):
        items = {reason.item for reason in _strongest(one)}
        words = [
            WordReason(trial.source, trial.item, trial.word, float(fall))
            for trial, fall in zip(trials, falls[:, k], strict=True)
            if trial.item in items
        ]
        told.append(replace(one, words=_by_effect(words)))
    return tuple(told)


def explain_query(
    text: str, score: Callable[[str], NDArray[np.float32]], rows: Sequence[int]
) -> tuple[Explanation, ...]:
    """Explain the scores of `rows` for a query by its words.

    Parameters
    ----------
    text : str
    score : callable
        Scores of the catalogue for a query, shape ``(I,)``, as `ModelScorer.query` gives them. It is asked once for
        the query and once without each of its words.
    rows : sequence of int
    """

    def scores(query: str) -> NDArray[np.float64]:
        found = score(query)
        return found[list(rows)].astype(np.float64) - float(found.mean())

    whole = scores(text)
    words = _words(text)
    falls = [whole - scores(_left_out(text, word)) for word in words]
    return tuple(
        Explanation(
            int(row),
            float(whole[k]),
            0.0,
            0.0,
            float(whole[k]),
            words=_by_effect(
                [WordReason("query", -1, word, float(fall[k])) for word, fall in zip(words, falls, strict=True)]
            ),
        )
        for k, row in enumerate(rows)
    )


def _strongest(explanation: Explanation) -> Iterator[EventReason]:
    return (reason for reason in explanation.reasons[:STRONGEST] if reason.effect > 0 and reason.item >= 0)


def _trials(
    item: int, events: tuple[int, ...], first: int, reviews: NDArray[np.int32], texts: Texts
) -> Iterator[_Trial]:
    passage = texts.passage(item)
    places = tuple(event - first for event in events)
    for word in _words(texts.catalogue.titles[item]):
        yield _Trial("title", item, word, passage, _left_out(passage, word), places)
    for event, place in zip(events, places, strict=True):
        if reviews[event] >= 0:
            text = texts.reviews[reviews[event]]
            for word in _words(text):
                yield _Trial("review", item, word, text, _left_out(text, word), (place,))


def _with_words_left_out(one: EventBatch, trials: Sequence[_Trial], stage: TextStage) -> tuple[EventBatch, Tensor]:
    """A row for each trial: the history, with the difference that the word makes added to the events' own texts.

    Beside it the difference that a title's word makes to the events' item vectors, ``(N, T, H)``.
    """
    device, titles = one.items.device, [trial for trial in trials if trial.source == "title"]
    texts, above = _vectors(stage, trials, device, items=False), _vectors(stage, titles, device, items=True)
    N, T = len(trials), one.items.shape[1]
    width = next(iter(texts.values())).shape[-1]
    changed, moved = torch.zeros(2, N, T, width, device=device)
    if one.texts is not None:
        changed = changed + one.texts
    for row, trial in enumerate(trials):
        changed[row, list(trial.places)] += (texts[trial.without] - texts[trial.text])[0]
        if trial.source == "title":
            moved[row, list(trial.places)] = (above[trial.without] - above[trial.text])[1]
    items, events, ratings = (x.expand(N, -1) for x in (one.items, one.events, one.ratings))
    return EventBatch(items, events, ratings, one.lengths.expand(N), changed, one.targets.expand(N, -1)), moved


def _vectors(stage: TextStage, trials: Sequence[_Trial], device: torch.device, *, items: bool) -> dict[str, Tensor]:
    """Text vectors, and with `items` item vectors below them, of the texts with and without the words."""
    texts = sorted({text for trial in trials for text in (trial.text, trial.without)})
    vectors = torch.from_numpy(stage.encode(texts, items=items).astype(np.float32)).to(device)
    return dict(zip(texts, vectors, strict=True))


def _words(text: str) -> list[str]:
    """The different words of a text, in their order, as they are first written."""
    found: dict[str, str] = {}
    for word in WORD.findall(text):
        found.setdefault(word.casefold(), word)
    return list(found.values())


def _left_out(text: str, word: str) -> str:
    """The text without the word, in whatever case; empty where nothing but marks is left."""
    rest = WORD.sub(lambda found: "" if found[0].casefold() == word.casefold() else found[0], text)
    return " ".join(rest.split()) if WORD.search(rest) else ""


def _by_effect(words: list[WordReason]) -> tuple[WordReason, ...]:
    return tuple(sorted(words, key=lambda reason: -reason.effect))
