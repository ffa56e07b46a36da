"""The ranking engine over a real release: the best that are allowed, and a catalogue of one's own."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from client.data.cleaning import clean
from client.data.histories import build_histories
from client.data.ingest import RawData
from client.data.pseudonyms import PseudonymKey
from client.ranking import engine as engine_module
from client.ranking.engine import Engine
from client.ranking.local_catalogue import aligned
from shared.adapter import Release, load_release
from shared.catalogue import build_catalogue
from shared.errors import AdapterMismatchError, RankingError
from shared.model.behaviour import BehaviourStage, CatalogueVectors
from shared.model.prior import CollaborativePrior
from shared.model.text import TextStage
from shared.model.weights import find_base
from shared.schema import Catalogue, Histories

if TYPE_CHECKING:
    from conftest import Done

DEPTH = 12


@pytest.fixture(scope="module")
def release(whole: Done) -> Release:
    return load_release(whole.out / "adapter")


@pytest.fixture(scope="module")
def text() -> TextStage:
    return TextStage(find_base("all-MiniLM-L6-v2"), adapted_layers=2, max_tokens=32, device=torch.device("cpu"))


@pytest.fixture(scope="module")
def catalogue(shop_data: RawData) -> Catalogue:
    return build_catalogue(clean(shop_data)[0].items)


@pytest.fixture(scope="module")
def histories(shop_data: RawData, catalogue: Catalogue) -> Histories:
    return build_histories(
        clean(shop_data)[0].interactions, catalogue, PseudonymKey.generate(), max_events=1000, tie_seed=0
    )


@cache
def encoded(text: TextStage, texts: tuple[str, ...], *, items: bool) -> NDArray[np.float16]:
    return text.encode(texts, items=items)


def engine_of(
    release: Release,
    catalogue: Catalogue,
    text: TextStage,
    *,
    bf16: bool = False,
    device: str = "cpu",
) -> Engine:
    both = torch.from_numpy(encoded(text, tuple(catalogue.passages()), items=True).astype(np.float32))
    vectors = CatalogueVectors(both[:, 0].contiguous(), both[:, 1].contiguous()).to(torch.device(device))
    own = lambda texts, keep: encoded(text, tuple(texts), items=False)[:, 0]  # noqa: E731
    return Engine(release, catalogue, vectors, text, own, bf16=bf16)


@pytest.fixture(scope="module")
def engine(release: Release, catalogue: Catalogue, text: TextStage) -> Engine:
    return engine_of(release, catalogue, text)


@pytest.fixture(scope="module")
def everybody(histories: Histories) -> NDArray[np.int64]:
    return np.arange(len(histories))


def check_best(engine: Engine, histories: Histories, users: NDArray[np.int64]) -> None:
    """What is retrieved is the head of the sorted scores of all items that the user has not met."""
    maker = engine.maker(histories)
    found = engine.retrieve(maker, users, DEPTH)
    for place, user in enumerate(users):
        whole = engine.scorer.users(maker, np.array([user]))[0]
        whole[histories[int(user)].items] = -np.inf
        expected = np.argsort(-whole, kind="stable")[:DEPTH]
        rows, scores = found.of(place)
        np.testing.assert_allclose(scores, whole[expected], atol=1e-4)
        assert set(rows) == set(expected) or np.ptp(np.sort(whole)[-DEPTH - 1 :][:2]) < 1e-4


def test_the_best_items_are_found_for_every_user(
    engine: Engine, histories: Histories, everybody: NDArray[np.int64]
) -> None:
    check_best(engine, histories, everybody[::4])


def test_an_engine_that_shows_what_was_met_is_caught(
    engine: Engine, histories: Histories, everybody: NDArray[np.int64], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "torch", _Forgetful(engine_module.torch))
    with pytest.raises(AssertionError):
        check_best(engine, histories, everybody[::4])


class _Forgetful:
    """A torch whose -inf brings to the top what it should rule out."""

    inf = -1e3

    def __init__(self, real: object) -> None:
        self._real = real

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)


def test_only_what_is_allowed_is_shown_to_each(
    engine: Engine, histories: Histories, everybody: NDArray[np.int64]
) -> None:
    even = np.arange(len(engine.catalogue)) % 2 == 0
    nothing = np.zeros(len(engine.catalogue), dtype=bool)
    found = engine.retrieve(engine.maker(histories), everybody[:3], DEPTH, (even, None, nothing))
    assert (found.of(0)[0] % 2 == 0).all() and len(found.of(0)[0]) == DEPTH
    assert (found.of(1)[0] % 2 == 1).any()
    assert len(found.of(2)[0]) == 0 and (found.rows[2] == -1).all()


def test_a_fresh_event_moves_the_list_at_once(engine: Engine, histories: Histories) -> None:
    """No training: what is asked again with one event more is answered anew."""
    user = int(np.argmax(histories.lengths))
    one = histories[user]
    clicked = int(engine.retrieve(engine.maker(histories), np.array([user]), 60).of(0)[0][-1])  # far down the list
    longer = Histories(
        (one.user,),
        np.array([0, len(one) + 1]),
        np.append(one.items, np.int32(clicked)),
        np.append(one.timestamps, one.timestamps[-1] + 1),
        np.append(one.events, one.events[-1]),
        np.append(one.ratings, np.float32(np.nan)),
        np.append(one.reviews, np.int32(-1)),
        histories.review_texts,
    )
    before = engine.scorer.users(engine.maker(histories), np.array([user]))[0]
    after = engine.scorer.users(engine.maker(longer), np.array([0]))[0]
    places = lambda scores: np.argsort(np.argsort(-scores))  # noqa: E731
    vectors = engine.vectors.items.numpy()
    related = np.argsort(-(vectors @ vectors[clicked]))[1:9]
    related = related[~np.isin(related, one.items)]
    assert places(after)[related].mean() < places(before)[related].mean()
    assert clicked not in engine.retrieve(engine.maker(longer), np.array([0]), len(engine.catalogue)).of(0)[0]


def test_reading_in_bfloat16_moves_lists_little(
    release: Release, catalogue: Catalogue, text: TextStage, engine: Engine, histories: Histories
) -> None:
    users = np.arange(0, len(histories), 3)
    exact, quick = (
        e.retrieve(e.maker(histories), users, 10) for e in (engine, engine_of(release, catalogue, text, bf16=True))
    )
    shared = [len(set(a) & set(b)) for a, b in zip(exact.rows, quick.rows, strict=True)]
    assert np.mean(shared) > 9


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_the_lists_of_the_cpu(
    release: Release, catalogue: Catalogue, engine: Engine, histories: Histories
) -> None:
    stage = TextStage(find_base("all-MiniLM-L6-v2"), adapted_layers=2, max_tokens=32, device=torch.device("cuda"))
    there = engine_of(release, catalogue, stage, device="cuda")
    users, even = np.arange(0, len(histories), 5), np.arange(len(catalogue)) % 2 == 0
    wishes = ["a lamp"] + [""] * (len(users) - 1)
    allowed = [even] + [None] * (len(users) - 1)
    one, other = (e.retrieve(e.maker(histories), users, 10, allowed, wishes) for e in (engine, there))
    same = [len(set(a) & set(b)) for a, b in zip(one.rows, other.rows, strict=True)]
    assert np.mean(same) > 9.5
    assert len(set(engine.query(["tea"], 10).of(0)[0]) & set(there.query(["tea"], 10).of(0)[0])) >= 9
    np.testing.assert_array_equal(engine.popular(5).rows, there.popular(5).rows)


def test_a_user_without_events_is_asked_for_otherwise(engine: Engine, histories: Histories) -> None:
    empty = replace(
        histories, users=(*histories.users, "~"), offsets=np.append(histories.offsets, histories.offsets[-1])
    )
    with pytest.raises(RankingError, match="events>=1"):
        engine.retrieve(engine.maker(empty), np.array([len(histories)]), DEPTH)
    popular = engine.popular(DEPTH).of(0)[0]
    assert engine.release.prior.popularity[popular].min() >= np.sort(engine.release.prior.popularity)[-DEPTH]


def test_a_scan_answers_as_scores_of_all_items_do(
    release: Release, catalogue: Catalogue, text: TextStage, histories: Histories, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What catalogues of a million items are ranked by, on this small one: histories, wishes, and both."""
    settings = release.config.model.model_copy(update={"item_rank": 0})
    popular = replace(
        release,
        prior=CollaborativePrior(release.prior.popularity, text_weights=np.array([7.0, 0.0], dtype=np.float32)),
        model=BehaviourStage(find_base(settings.base), settings, n_items=len(catalogue)),
    )
    monkeypatch.setattr(engine_module, "SCAN_ABOVE", len(catalogue))
    scored = engine_of(popular, catalogue, text)
    monkeypatch.setattr(engine_module, "SCAN_ABOVE", 0)
    scanned = engine_of(popular, catalogue, text)
    assert scored._scan is None and scanned._scan is not None
    users, even = np.arange(6), np.arange(len(catalogue)) % 2 == 0
    wishes, allowed = ["", "a lamp", "", "", "tea", ""], [None, None, even, even, even, None]
    for depth in (5, len(catalogue)):
        one, other = (
            [
                e.retrieve(e.maker(histories), users, depth, allowed, wishes),
                e.query(["a lamp", "tea"], depth, [None, even]),
            ]
            for e in (scored, scanned)
        )
        for a, b in zip(one, other, strict=True):
            same = [len(set(x[x >= 0]) ^ set(y[y >= 0])) for x, y in zip(a.rows, b.rows, strict=True)]
            assert max(same) <= 2, same  # near ties at the end of a list
    np.testing.assert_allclose(scored.popular(5).rows, scanned.popular(5).rows)


# --- a catalogue of one's own


def test_rows_follow_their_ids(release: Release, catalogue: Catalogue, text: TextStage, histories: Histories) -> None:
    """Items that the federation has and this shop has not; the rows of all others move."""
    kept = [row for row in range(len(catalogue)) if row % 7]
    ours = _of(catalogue, kept)
    local = engine_of(aligned(release, catalogue, ours), ours, text)
    popularity = release.prior.popularity[kept]
    np.testing.assert_array_equal(local.release.prior.popularity, popularity)
    assert local.release.prior.text_weights is release.prior.text_weights
    weights, theirs = local.release.prior.item_to_item, release.prior.item_to_item
    assert (weights is None) == (theirs is None)
    if weights is not None and theirs is not None:
        np.testing.assert_array_equal(weights, theirs[np.ix_(kept, kept)])
    maker = local.maker(replace(histories, items=np.full_like(histories.items, 3)))
    assert len(local.retrieve(maker, np.arange(2), DEPTH).of(0)[0]) == DEPTH


def test_a_new_item_is_ranked_by_its_text(release: Release, catalogue: Catalogue, text: TextStage) -> None:
    copied = 5
    ours = Catalogue(
        (*catalogue.item_ids, "~new"),
        (*catalogue.titles, catalogue.titles[copied]),
        (*catalogue.texts, catalogue.texts[copied]),
        (*catalogue.categories, catalogue.categories[copied]),
    )
    local = engine_of(aligned(release, catalogue, ours), ours, text)
    rows = local.query([catalogue.passages()[copied]], 2).of(0)[0]
    assert set(rows) == {copied, len(catalogue)}
    assert local.release.prior.unseen is None or local.release.prior.unseen[-1] == 1


def test_learned_item_vectors_follow_too(release: Release, catalogue: Catalogue) -> None:
    settings = release.config.model.model_copy(update={"item_rank": 4})
    model = BehaviourStage(find_base(settings.base), settings, n_items=len(catalogue))
    ours = _of(catalogue, range(10, 20))
    of_ours = aligned(replace(release, model=model), catalogue, ours).model
    assert model.residuals is not None and of_ours.residuals is not None
    torch.testing.assert_close(of_ours.residuals.factors.weight, model.residuals.factors.weight[10:20].detach())
    assert of_ours.residuals.out.weight is of_ours.residuals.factors.weight
    assert len(model.residuals.factors.weight) == len(catalogue), "the released model stays as it was"


def test_another_catalogue_is_refused(release: Release, catalogue: Catalogue) -> None:
    with pytest.raises(AdapterMismatchError, match="digests differ"):
        aligned(release, _of(catalogue, range(9)), catalogue)
    with pytest.raises(AdapterMismatchError, match="got none"):
        aligned(release, catalogue, Catalogue(("~a",), ("lamp",), ("",), ("",)))


def test_an_engine_of_other_items_is_refused(release: Release, catalogue: Catalogue, text: TextStage) -> None:
    with pytest.raises(AdapterMismatchError, match="items=9"):
        engine_of(release, _of(catalogue, range(9)), text)


def _of(catalogue: Catalogue, rows: range | list[int]) -> Catalogue:
    pick = lambda column: tuple(column[row] for row in rows)  # noqa: E731
    return Catalogue(
        pick(catalogue.item_ids), pick(catalogue.titles), pick(catalogue.texts), pick(catalogue.categories)
    )
