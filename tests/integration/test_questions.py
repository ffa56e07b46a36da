"""The questions beside ranking, over a real release: the library, then the service as a shop asks it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from service_setting import running
from starlette.testclient import TestClient

from client.data.ingest import RawData
from client.ranking.questions import Questions
from client.ranking.rerank_stages import Groups
from client.service import questions as routes
from client.service.app import create_app
from client.service.service import Service, Source
from client.service.stand import Stand
from shared.errors import ConfigError, RankingError
from shared.schema import Catalogue, Histories

if TYPE_CHECKING:
    from conftest import Done

SECRET = "nobody-knows-this-name"


@pytest.fixture(scope="module")
def service(whole: Done, shop_data: RawData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("questions")
    with running(folder, shop_data, Source(adapter=whole.out / "adapter"), StringIO()) as service:
        yield service


@pytest.fixture(scope="module")
def stand(service: Service) -> Stand:
    return service.desk.stand


@pytest.fixture(scope="module")
def catalogue(stand: Stand) -> Catalogue:
    return stand.engine.catalogue


@pytest.fixture(scope="module")
def user_ids(shop_data: RawData) -> list[str]:
    return sorted(shop_data.interactions.get_column("user_id").unique().to_list())


@pytest.fixture(scope="module")
def histories(service: Service, user_ids: list[str], catalogue: Catalogue) -> Histories:
    return service.store.histories(user_ids, catalogue)


@pytest.fixture(scope="module")
def questions(stand: Stand) -> Questions:
    return Questions(stand.engine, stand.facts)


@pytest.fixture(scope="module")
def api(service: Service) -> TestClient:
    return TestClient(create_app(service), raise_server_exceptions=False)


def asked(api: TestClient, path: str, **body: Any) -> Any:
    response = api.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


# --- the library


def test_tastes_are_the_softmax_of_the_scores(questions: Questions, histories: Histories) -> None:
    maker, users = questions.engine.maker(histories), np.arange(0, len(histories), 9)
    scores = questions.engine.scorer.users(maker, users) / questions.tastes.temperature
    expected = np.exp(scores - scores.max(axis=1, keepdims=True))
    for places, shares, met in questions.tastes.batches(maker, users):
        own = expected[places] / expected[places].sum(axis=1, keepdims=True)
        np.testing.assert_allclose(shares.numpy(), own, atol=2e-3)  # bfloat16, where the hardware has it
        for row, user in enumerate(users[places]):
            assert set(np.flatnonzero(met[row])) == set(histories[int(user)].items)


def test_interests_are_those_of_the_user(questions: Questions, histories: Histories) -> None:
    """A user's own categories are more probable than another's: measured over everybody."""
    maker, everybody = questions.engine.maker(histories), range(len(histories))
    groups = questions.facts.kind("category")
    told, own = np.zeros((2, len(histories), len(groups.names)))
    for user in everybody:
        found = questions.interests(maker, user, len(groups.names))
        assert sum(one.probability for one in found.found) + found.other == pytest.approx(1.0, abs=1e-4)
        for one in found.found:
            told[user, groups.names.index(one.name)] = one.lift
            assert not set(one.rows) & set(histories[user].items), "what they have is not named"
        codes = groups.codes[histories[user].items]
        own[user] = np.bincount(codes[codes >= 0], minlength=len(groups.names)) > 0
    assert told[own > 0].mean() > 1.1 * told[own == 0].mean()


def test_a_wish_moves_interests_to_what_it_names(questions: Questions, histories: Histories) -> None:
    maker, groups = questions.engine.maker(histories), questions.facts.kind("category")
    moved = []
    for name in groups.names[::6]:
        everything = len(groups.names)
        before, after, alone = (
            {one.name: one.probability for one in questions.interests(made, 0, everything, wish=wish).found}[name]
            for made, wish in ((maker, ""), (maker, name), (None, name))
        )
        moved.append(after > before and alone > before)
    assert np.mean(moved) > 0.8


def test_somebody_of_whom_nothing_is_known_has_no_attributes(questions: Questions) -> None:
    assert questions.attributes(None, 0, 5) == ()
    assert all(one.lift == pytest.approx(1.0) for one in questions.interests(None, 0, 5).found)


def test_attributes_are_words_and_categories(questions: Questions, histories: Histories) -> None:
    found = questions.attributes(questions.engine.maker(histories), 0, 8)
    assert found and {one.kind for one in found} <= {"word", "category"}
    assert all(one.lift > 1 and 0 < one.probability <= 1 for one in found)


def test_clusters_stand_in_for_categories(stand: Stand, histories: Histories) -> None:
    nothing = Groups.of([""] * len(stand.facts), split=True)
    bare = Questions(stand.engine, replace(stand.facts, groups={"category": nothing}))
    found = bare.interests(bare.engine.maker(histories), 0, 4)
    assert {one.kind for one in found.found} == {"cluster"} and all(one.name.startswith("like ") for one in found.found)
    with pytest.raises(ConfigError, match="category"):
        bare.interests(None, 0, 4, kind="colour")


def test_an_audience_is_told_by_the_users_own_lists(questions: Questions, histories: Histories) -> None:
    """The rank that is told is the place in the list that the engine makes."""
    engine, users = questions.engine, np.arange(0, len(histories), 5)
    maker = engine.maker(histories)
    offer = np.array([3, 40, 77])
    found = questions.audience(maker, users, offer)
    lists = engine.retrieve(maker, users, len(engine.catalogue))
    for place, user in enumerate(users):
        left = [row for row in offer if row not in histories[int(user)].items]
        assert found.has[place] == (not left)
        if left:
            own = lists.of(place)[0].tolist()
            assert abs(found.rank[place] - (min(own.index(row) for row in left) + 1)) <= 1
    assert (found.probability[found.has] == 0).all() and (np.diff(found.probability[found.order()]) <= 0).all()
    for wrong in ([], [3, 3], [-1], [len(engine.catalogue)]):
        with pytest.raises(RankingError, match="different rows"):
            questions.audience(maker, users, np.array(wrong, dtype=np.int64))


def test_an_offer_in_words_counts_what_is_not_met_alone(questions: Questions, histories: Histories) -> None:
    engine, users = questions.engine, np.arange(0, len(histories), 7)
    maker, rows = engine.maker(histories), questions.offer("a present for somebody who cooks")
    assert len(set(rows)) == 20
    scores = engine.scorer.users(maker, users) / questions.tastes.temperature
    shares = np.exp(scores - scores.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    left = np.array([~np.isin(rows, histories[int(user)].items) for user in users])
    assert (~left).any(), "somebody has met some of it"
    expected = (shares[:, rows] * left).sum(axis=1) / left.sum(axis=1)
    np.testing.assert_allclose(questions.audience(maker, users, rows).probability, expected, rtol=0.05)
    assert np.abs(shares[:, rows].mean(axis=1) / expected - 1).max() > 0.1, "what is met would have told otherwise"


def test_users_who_did_the_same_are_alike(questions: Questions, histories: Histories) -> None:
    vectors = questions.tastes.vectors(questions.engine.maker(histories), np.arange(len(histories)))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-3)
    places, cosines = questions.similar_users(vectors[:5], vectors, 3)
    np.testing.assert_array_equal(places[:, 0], np.arange(5))
    np.testing.assert_allclose(cosines[:, 0], 1.0, atol=1e-3)


# --- the service


def test_interests_over_http(api: TestClient, user_ids: list[str]) -> None:
    known = asked(api, "/v1/users/interests", user_id=user_ids[0], n=4)
    assert known["known"] and len(known["interests"]) == 4 and known["attributes"]
    assert sum(one["probability"] for one in known["interests"]) + known["other"] == pytest.approx(1, abs=1e-4)
    stranger = asked(api, "/v1/users/interests", user_id=SECRET)
    assert not stranger["known"] and stranger["attributes"] == []
    wished = asked(api, "/v1/users/interests", query="a board game for two")
    assert wished["interests"] != stranger["interests"] and wished["attributes"]


def test_similar_items_keep_to_what_may_be_shown(api: TestClient, service: Service, catalogue: Catalogue) -> None:
    one = catalogue.item_ids[0]
    first = asked(api, "/v1/items/similar", item_id=one, n=5)["items"]
    assert one not in [item["item_id"] for item in first] and len(first) == 5
    hidden = first[0]["item_id"]
    service.desk.hide([hidden], available=False)
    try:
        again = [item["item_id"] for item in asked(api, "/v1/items/similar", item_id=one, n=5)["items"]]
    finally:
        service.desk.hide([hidden], available=True)
    assert hidden not in again and again[:4] == [item["item_id"] for item in first[1:]]
    category = service.desk.stand.facts.kind("category").names[0]
    inside = asked(api, "/v1/items/similar", item_id=one, categories=[category])["items"]
    assert inside and all(category in catalogue.categories[catalogue.rows[item["item_id"]]] for item in inside)


def test_similar_users_are_out_of_those_named(
    api: TestClient, user_ids: list[str], monkeypatch: pytest.MonkeyPatch, service: Service
) -> None:
    body = {"user_id": user_ids[0], "among": [*user_ids, f" {user_ids[0]} ", user_ids[3], SECRET], "n": 7}
    whole = asked(api, "/v1/users/similar", **body)
    found = [one["user_id"] for one in whole["users"]]
    assert len(set(found)) == 7 and set(found) <= set(user_ids[1:]) and whole["unknown"] == 1
    assert service.store.pseudonym(user_ids[0]) not in str(whole)
    monkeypatch.setattr(routes, "SLICE", 13)
    sliced = asked(api, "/v1/users/similar", **body)
    assert len({one["user_id"] for one in sliced["users"]} & set(found)) >= 6  # bfloat16: near ties


def test_an_audience_leaves_out_who_has_it(
    api: TestClient, user_ids: list[str], service: Service, catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    item = catalogue.item_ids[0]
    having = {user for user in user_ids if 0 in service.store.history(user, catalogue)[0].items}
    assert having
    monkeypatch.setattr(routes, "SLICE", 20)
    found = asked(api, "/v1/audience", item_ids=[item], among=[*user_ids, SECRET], n=1000)
    assert {one["user_id"] for one in found["users"]} == set(user_ids) - having
    assert (found["has_it"], found["unknown"], found["offer"]) == (len(having), 1, [item])
    sure = [one["probability"] for one in found["users"]]
    assert sure == sorted(sure, reverse=True) and all(one["rank"] >= 1 for one in found["users"])
    words = asked(api, "/v1/audience", query="something for the garden", among=user_ids, n=3)
    assert len(words["users"]) == 3 and len(words["offer"]) == 20
    nobody = asked(api, "/v1/audience", item_ids=[item], among=[SECRET])
    assert nobody["users"] == [] and nobody["unknown"] == 1


def test_all_of_the_model_runs_in_one_thread(
    api: TestClient, user_ids: list[str], catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads: list[str] = []

    def noted(name: str) -> None:
        real = getattr(Questions, name)

        def call(*args: Any, **options: Any) -> Any:
            threads.append(threading.current_thread().name)
            return real(*args, **options)

        monkeypatch.setattr(Questions, name, call)

    for name in ("interests", "similar_items", "similar_users", "audience", "offer"):
        noted(name)
    asked(api, "/v1/users/interests", user_id=user_ids[0])
    asked(api, "/v1/items/similar", item_id=catalogue.item_ids[0])
    asked(api, "/v1/users/similar", user_id=user_ids[0], among=user_ids)
    asked(api, "/v1/audience", query="tea", among=user_ids)
    assert len(threads) == 5 and len(set(threads)) == 1 and threads[0] == "ranking"


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/users/interests", {"n": 0}, 422),
        ("/v1/users/interests", {"kind": "colour"}, 422),
        ("/v1/users/interests", {"user_id": " "}, 422),
        ("/v1/items/similar", {"item_id": SECRET}, 422),
        ("/v1/users/similar", {"user_id": SECRET, "among": ["a"]}, 404),
        ("/v1/users/similar", {"user_id": SECRET, "among": []}, 422),
        ("/v1/users/similar", {"user_id": "a", "among": ["a"] * 50_001}, 422),
        ("/v1/audience", {"among": ["a"]}, 422),
        ("/v1/audience", {"among": ["a"], "item_ids": [SECRET]}, 422),
        ("/v1/audience", {"among": ["a"], "item_ids": ["a"], "query": "a"}, 422),
    ],
)
def test_what_cannot_be_answered_is_refused_without_a_name(
    api: TestClient, path: str, body: dict[str, Any], status: int
) -> None:
    response = api.post(path, json=body)
    assert response.status_code == status, response.text
    assert SECRET not in response.text and response.json()["message"]
