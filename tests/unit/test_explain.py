"""Explanations say what the scorer does: each effect is what asking it again without the thing gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from client.batches import BatchMaker
from client.ranking.explain import EventReason, Explanation, Read, ScoreParts, WordReason, explain
from client.ranking.explain_words import Texts, explain_query, explain_words
from client.ranking.scorer import ModelScorer
from client.ranking.sentences import sentence
from shared.config import ModelConfig, PriorConfig
from shared.errors import RankingError
from shared.model.behaviour import BehaviourStage, CatalogueVectors
from shared.model.prior import CollaborativePrior
from shared.model.prior_scores import PriorScorer
from shared.model.text import TextStage
from shared.schema import EVENT_KINDS, Catalogue, Histories, UserHistory

if TYPE_CHECKING:
    from conftest import HistoriesOf, World

    from shared.model.weights import BaseModel

CONFIG = PriorConfig(decay=0.8)
ROWS = [3, 17, 29]
NO_TEXTS = np.zeros((0, 384), dtype=np.float16)
TITLES = ("Oak desk", "Oak shelf", "Wool scarf", "Teapot", "Pine desk", "Silk scarf")


def prior_of(n_items: int) -> CollaborativePrior:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(n_items, n_items)).astype(np.float32)
    return CollaborativePrior(rng.normal(size=n_items).astype(np.float32), matrix)


@pytest.fixture(scope="module")
def parts(world: World) -> ScoreParts:
    items = world.catalogue.items
    return ScoreParts(world.model, PriorScorer(prior_of(world.n_items), CONFIG, items), world.catalogue)


@pytest.fixture(scope="module")
def scorer(world: World) -> ModelScorer:
    return ModelScorer(world.model, prior_of(world.n_items), CONFIG, world.catalogue)


@pytest.fixture
def makers(histories_of: HistoriesOf, tiny_model: ModelConfig) -> Callable[[list[int]], tuple[BatchMaker, UserHistory]]:
    def make(items: list[int]) -> tuple[BatchMaker, UserHistory]:
        histories = histories_of([items])
        return BatchMaker(histories, NO_TEXTS, tiny_model), histories[0]

    return make


Makers = Callable[[list[int]], tuple[BatchMaker, UserHistory]]


def asked(scorer: ModelScorer, maker: BatchMaker, history: UserHistory, gone: int | None) -> Any:
    """The scores of ROWS against the mean, as the scorer that ranks gives them without event `gone`."""
    kept = np.arange(len(history)) != (-1 if gone is None else gone)
    columns = (history.items, history.timestamps, history.events, history.ratings, history.reviews)
    rest = UserHistory(history.user, *(column[kept] for column in columns))
    scores = scorer.batch(maker.one(rest))[0].double().numpy()
    return scores[ROWS] - scores.mean()


# --- things of a history ----------------------------------------------------------------------------


def test_each_effect_is_what_the_ranking_scorer_says_without_the_event(
    parts: ScoreParts, scorer: ModelScorer, makers: Makers
) -> None:
    maker, history = makers([5, 2, 9, 12, 20])
    whole = asked(scorer, maker, history, None)
    for k, one in enumerate(explain(parts, maker, history, ROWS)):
        assert one.item == ROWS[k] and len(one.reasons) == 5
        assert one.score == pytest.approx(whole[k], abs=1e-4)
        assert one.score == pytest.approx(one.popularity + one.prior_effect + one.model_effect)
        for reason in one.reasons:
            (gone,) = reason.events
            assert reason.item == history.items[gone]
            assert reason.effect == pytest.approx(whole[k] - asked(scorer, maker, history, gone)[k], abs=1e-4)


def test_reasons_stand_by_falling_effect_and_share_what_lifts(parts: ScoreParts, makers: Makers) -> None:
    for one in explain(parts, *makers([5, 2, 9, 12, 20]), ROWS):
        effects = [reason.effect for reason in one.reasons]
        assert effects == sorted(effects, reverse=True)
        assert sum(reason.share for reason in one.reasons if reason.effect > 0) == pytest.approx(1.0)
        assert all(reason.share * reason.effect >= 0 for reason in one.reasons)


def test_the_only_event_is_the_whole_difference(parts: ScoreParts, makers: Makers) -> None:
    for one in explain(parts, *makers([5]), ROWS):
        (reason,) = one.reasons
        assert reason.effect == pytest.approx(one.score - one.popularity, abs=1e-6)
        assert reason.alone == pytest.approx(reason.effect, abs=1e-6)


def test_without_events_there_is_popularity_alone(parts: ScoreParts, world: World, makers: Makers) -> None:
    popularity = CONFIG.popularity_weight * prior_of(world.n_items).popularity
    for k, one in enumerate(explain(parts, *makers([]), ROWS)):
        assert one.score == one.popularity == pytest.approx(popularity[ROWS[k]] - popularity.mean(), abs=1e-5)
        assert (one.prior_effect, one.model_effect, one.reasons) == (0.0, 0.0, ())


def test_events_that_the_model_does_not_read_are_no_reasons(parts: ScoreParts, makers: Makers) -> None:
    newest = [5, 2, 9, 12, 20, 1, 7, 8]  # as many as are read
    short, long = (explain(parts, *makers([*old, *newest]), ROWS) for old in ([], [25, 26, 27]))
    for here, there in zip(short, long, strict=True):
        assert [reason.item for reason in here.reasons] == [reason.item for reason in there.reasons]
        moved = [tuple(event + 3 for event in reason.events) for reason in here.reasons]
        assert [reason.events for reason in there.reasons] == moved
        assert here.score == there.score


def test_all_events_with_one_item_are_one_thing(parts: ScoreParts, scorer: ModelScorer, makers: Makers) -> None:
    maker, history = makers([5, 2, 5, 9, 5])
    other, rest = makers([2, 9])
    whole, without = asked(scorer, maker, history, None), asked(scorer, other, rest, None)
    for k, one in enumerate(explain(parts, maker, history, ROWS)):
        by_item = {reason.item: reason for reason in one.reasons}
        assert sorted(by_item) == [2, 5, 9]
        assert by_item[5].events == (0, 2, 4) and by_item[5].kinds == ("purchase",) * 3
        assert by_item[5].effect == pytest.approx(whole[k] - without[k], abs=1e-4)


def test_each_query_in_a_history_is_a_thing_of_its_own(parts: ScoreParts, makers: Makers) -> None:
    maker, history = makers([5, -1, 2, -1])
    kinds = np.where(history.items < 0, EVENT_KINDS.index("query"), history.events).astype(np.int8)
    (one,) = explain(parts, maker, replace(history, events=kinds), ROWS[:1])
    assert sorted(reason.events for reason in one.reasons) == [(0,), (1,), (2,), (3,)]
    assert {reason.kinds for reason in one.reasons if reason.item < 0} == {("query",)}


def test_a_prior_alone_is_explained_too(parts: ScoreParts, makers: Makers) -> None:
    for one in explain(replace(parts, model=None), *makers([5, 2, 9]), ROWS):
        assert one.model_effect == 0 and one.reasons[0].effect != 0


def test_many_ranked_items_cost_what_one_does(
    parts: ScoreParts, makers: Makers, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert parts.model is not None
    read, newest = [], parts.model.newest

    def counted(batch: Any, catalogue: CatalogueVectors) -> torch.Tensor:
        read.append(batch.items.numel())
        return newest(batch, catalogue)

    monkeypatch.setattr(parts.model, "newest", counted)
    explain(parts, *makers([5, 2, 9, 12, 20, 1, 7, 8]), list(range(25)))
    assert sum(read) == 9 * 8 + 9 + 2 * 8, "all but one of 8; each by itself; all and none"


@pytest.mark.parametrize("row", [-1, 30])
def test_a_row_outside_the_catalogue_is_refused(parts: ScoreParts, makers: Makers, row: int) -> None:
    with pytest.raises(RankingError, match="below items=30"):
        explain(parts, *makers([5]), [3, row])


# --- words ----------------------------------------------------------------------------------------


class Shop:
    """Items with real text vectors, and an untrained BERT that reads them."""

    def __init__(self, base: BaseModel, config: ModelConfig) -> None:
        ids = tuple(f"i{k}" for k in range(len(TITLES)))
        self.catalogue = Catalogue(ids, TITLES, ("",) * len(ids), ("",) * len(ids))
        self.stage = TextStage(base, adapted_layers=1, max_tokens=16, device=torch.device("cpu"))
        vectors = torch.from_numpy(self.stage.encode(TITLES).astype(np.float32))
        self.vectors = CatalogueVectors(vectors[:, 0].contiguous(), vectors[:, 1].contiguous())
        self.model = BehaviourStage(base, config, n_items=len(ids))
        prior = CollaborativePrior(np.zeros(len(ids), dtype=np.float32))
        self.prior = prior
        self.parts = ScoreParts(self.model, PriorScorer(prior, CONFIG, self.vectors.items), self.vectors)
        self.config = config

    def maker(self, histories: Histories) -> BatchMaker:
        return BatchMaker(histories, self.stage.encode(histories.review_texts, items=False)[:, 0], self.config)

    def words(self, histories: Histories, rows: list[int]) -> tuple[Explanation, ...]:
        maker, texts = self.maker(histories), Texts(self.catalogue, histories.review_texts, self.stage)
        return explain_words(explain(self.parts, maker, histories[0], rows), self.parts, maker, histories[0], texts)


@pytest.fixture(scope="module")
def shop(base: BaseModel, tiny_model: ModelConfig) -> Shop:
    return Shop(base, tiny_model)


def test_a_desk_is_shown_for_the_word_desk(shop: Shop, histories_of: HistoriesOf) -> None:
    (pine,) = shop.words(histories_of([[0]]), [4])
    assert [(word.source, word.item) for word in pine.words] == [("title", 0)] * 2
    assert pine.words[0].word == "desk"
    assert pine.words[0].effect > 2 * abs(pine.words[1].effect)
    assert sentence(pine, shop.catalogue) == "Because of Oak desk (bought), mostly for the word \u2018desk\u2019."


def test_the_effect_of_a_title_s_only_word_is_that_of_an_empty_text(shop: Shop, histories_of: HistoriesOf) -> None:
    histories = histories_of([[3]])
    (one,) = shop.words(histories, [0])
    read = Read.of(shop.maker(histories), histories[0], torch.device("cpu"))
    blank = replace(shop.parts, catalogue=CatalogueVectors(shop.vectors.texts.clone(), shop.vectors.items))
    blank.catalogue.texts[3] = 0
    expected = (shop.parts(read.batch, [0]) - blank(read.batch, [0]))[0, 0]
    assert [word.word for word in one.words] == (["Teapot"] if one.reasons[0].effect > 0 else [])
    for word in one.words:
        assert word.effect == pytest.approx(expected, abs=2e-3), "text vectors are kept in half precision"


def test_a_word_s_effect_is_that_of_the_title_without_it(shop: Shop, histories_of: HistoriesOf) -> None:
    histories = histories_of([[0, 2]])
    (one,) = shop.words(histories, [4])
    read = Read.of(shop.maker(histories), histories[0], torch.device("cpu"))
    for word in one.words:
        title = " ".join(part for part in TITLES[word.item].split() if part != word.word)
        texts = shop.vectors.texts.clone()
        texts[word.item] = torch.from_numpy(shop.stage.encode([title], items=False)[0, 0].astype(np.float32))
        other = replace(shop.parts, catalogue=CatalogueVectors(texts, shop.vectors.items))
        fall = (shop.parts(read.batch, [4]) - other(read.batch, [4]))[0, 0]
        # The catalogue's vectors may be made in bfloat16: a hundredth of the vector.
        assert word.effect == pytest.approx(fall, abs=0.05)


def test_a_title_s_word_is_missed_in_the_likeness_by_text_too(shop: Shop, histories_of: HistoriesOf) -> None:
    histories = histories_of([[0, 2]])
    liking = replace(shop.prior, text_weights=np.array([5.0, 0.0], dtype=np.float32))
    parts = replace(shop.parts, prior=PriorScorer(liking, CONFIG, shop.vectors.items))
    maker, texts = shop.maker(histories), Texts(shop.catalogue, (), shop.stage)
    (one,) = explain_words(explain(parts, maker, histories[0], [4]), parts, maker, histories[0], texts)
    assert {word.word for word in one.words} >= {"Oak", "desk"}
    read = Read.of(maker, histories[0], torch.device("cpu"))
    for word in one.words:
        title = " ".join(part for part in TITLES[word.item].split() if part != word.word)
        both = torch.from_numpy(shop.stage.encode([title])[0].astype(np.float32))
        below, history = shop.vectors.texts.clone(), shop.vectors.items.clone()
        below[word.item], history[word.item] = both
        other = replace(shop.parts, catalogue=CatalogueVectors(below, shop.vectors.items))
        mean = torch.nn.functional.normalize(history[2] + 0.6 * history[0], dim=0)
        liked = 5.0 * shop.vectors.items @ mean
        without = other.of_model(read.batch, [4])[0, 0] + float(liked[4] - liked.mean())
        fall = (parts(read.batch, [4]))[0, 0] - without
        assert word.effect == pytest.approx(fall, abs=0.05)


def test_words_of_one_s_own_review_are_told_from_those_of_the_title(shop: Shop, histories_of: HistoriesOf) -> None:
    plain = histories_of([[3, 2]])
    histories = replace(plain, reviews=np.array([0, -1], dtype=np.int32), review_texts=("desk, DESK desk!",))
    (one,) = shop.words(histories, [4])
    review = [word for word in one.words if word.source == "review"]
    assert [(word.item, word.word) for word in review] == [(3, "desk")], "one word, however often"
    assert review[0].effect > 0 and review[0] == one.words[0]


def test_a_prior_has_no_words(shop: Shop, histories_of: HistoriesOf) -> None:
    histories = histories_of([[0, 2]])
    parts, maker = replace(shop.parts, model=None), shop.maker(histories)
    plain = explain(parts, maker, histories[0], [4])
    assert explain_words(plain, parts, maker, histories[0], Texts(shop.catalogue, (), shop.stage)) == plain


def test_a_query_is_explained_by_its_words(shop: Shop) -> None:
    scorer = ModelScorer(shop.model, shop.prior, CONFIG, shop.vectors)
    (one,) = explain_query("a scarf, please", lambda text: scorer.query(text, shop.stage), [5])
    assert {word.word for word in one.words} == {"a", "scarf", "please"}
    assert one.words[0].word == "scarf"
    whole, without = (scorer.query(text, shop.stage) for text in ("a scarf, please", "a , please"))
    expected = (whole[5] - whole.mean()) - (without[5] - without.mean())
    assert one.words[0].effect == pytest.approx(expected, abs=1e-5)
    assert sentence(one, shop.catalogue) == "Fits \u2018scarf\u2019 in your words."


def test_words_of_a_language_without_spaces_are_its_characters() -> None:
    told: list[str] = []

    def score(text: str) -> Any:
        told.append(text)
        return np.zeros(2, dtype=np.float32)

    explain_query("\u6728\u684c x", score, [0])
    assert told == ["\u6728\u684c x", "\u684c x", "\u6728 x", "\u6728\u684c"]


# --- sentences ------------------------------------------------------------------------------------

CATALOGUE = Catalogue(("a", "b", "c"), ("Desk Lamp", "Notebook", ""), ("",) * 3, ("",) * 3)


def reason(item: int, effect: float, *kinds: str, alone: float = 0.0) -> EventReason:
    return EventReason(tuple(range(len(kinds))), item, kinds, effect, alone, 0.0)


def told(*reasons: EventReason, popularity: float = 0.1, history: float = 3.0, words: Any = ()) -> str:
    return sentence(Explanation(0, popularity + history, popularity, history, 0.0, reasons, words), CATALOGUE)


def test_at_most_two_things_are_named_and_the_second_only_if_it_counts() -> None:
    lamp, book, third = reason(0, 2.0, "view", "purchase"), reason(1, 1.2, "other"), reason(2, 1.1, "cart")
    assert told(lamp, book, third) == "Because of Desk Lamp (bought) and Notebook."
    assert told(lamp, reason(1, 0.9, "view")) == "Because of Desk Lamp (bought)."
    assert told(third) == "Because of c (put in the cart)."
    assert told(reason(-1, 1.0, "query")) == "Because of what you searched for."


def test_a_word_is_named_only_where_the_score_hangs_on_it() -> None:
    lamp, book = reason(0, 2.0, "purchase"), reason(1, 1.0, "view")

    def because(effect: float, item: int = 0) -> str:
        return told(lamp, book, words=(WordReason("review", item, "oak", effect),))

    assert because(1.6) == (
        "Because of Desk Lamp (bought) and Notebook (viewed), mostly for the word \u2018oak\u2019 in your review."
    )
    assert "in part for the word" in because(0.8)
    assert because(0.7) == because(9.0, item=2) == "Because of Desk Lamp (bought) and Notebook (viewed)."


def test_popularity_is_said_where_it_counts_for_more() -> None:
    small = reason(0, 0.05, "purchase")
    assert told(small, popularity=2.0, history=0.1) == "Popular; nothing that you met stands out as the reason."
    assert told(popularity=2.0, history=0.0) == "Popular; nothing that you met stands out as the reason."
    both = told(reason(0, 1.0, "purchase"), popularity=2.0, history=1.0)
    assert both == "Popular, and because of Desk Lamp (bought)."


def test_of_things_that_say_the_same_none_is_made_the_reason() -> None:
    lamp, book = reason(0, 0.1, "purchase", alone=2.9), reason(1, 0.2, "view", alone=2.5)
    assert told(book, lamp) == (
        "Goes with several things that you met, such as Desk Lamp (bought) and Notebook (viewed)."
    )
    weak = reason(0, 0.1, "purchase", alone=1.0), reason(1, 0.2, "view", alone=0.1)
    assert told(*weak) == "Fits all that you met; no one thing stands out as the reason."


def test_nothing_is_made_up_where_there_is_no_reason() -> None:
    assert told(reason(0, -1.0, "purchase"), popularity=-1.0, history=-1.0) == "No reason stands out."
