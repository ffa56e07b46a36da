"""The local ranking service, asked as a shop asks it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pytest
from service_setting import running
from starlette.testclient import TestClient

from client.data.ingest import RawData
from client.data.text_cache import TextCache
from client.ranking.personal import PersonalPrior, Taken
from client.ranking.personal_adapter import PersonalAdapter, own_config
from client.ranking.rank import LocalRanker
from client.service.app import create_app
from client.service.command import quiet
from client.service.guard import OWN_NAMES
from client.service.service import Service, Source
from shared.adapter import flatten_parameters, load_release
from shared.errors import IntegrityError
from shared.model.behaviour import BehaviourStage
from shared.model.prior import CollaborativePrior
from shared.model.weights import find_base

if TYPE_CHECKING:
    from conftest import Done, HistoriesOf

SECRET = "the user wrote of an aunt in Perth"


@pytest.fixture(scope="module")
def log() -> StringIO:
    return StringIO()


@pytest.fixture(scope="module")
def service(
    whole: Done, shop_data: RawData, tmp_path_factory: pytest.TempPathFactory, log: StringIO
) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("serve"), shop_data, Source(adapter=whole.out / "adapter"), log) as service:
        yield service


@pytest.fixture(scope="module")
def shop_api(service: Service) -> TestClient:
    return TestClient(create_app(service), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def somebody(shop_data: RawData) -> str:
    """The user with the most events."""
    return str(shop_data.interactions.group_by("user_id").len().sort("len", "user_id").get_column("user_id")[-1])


def asked(api: TestClient, path: str = "/v1/rank", **body: Any) -> Any:
    response = api.post(path, json=body)
    assert response.status_code == 200, response.text
    return response.json()


def ids(answer: Any) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


# --- lists


def test_a_list_is_the_one_that_the_library_makes(
    shop_api: TestClient, whole: Done, shop_data: RawData, somebody: str
) -> None:
    """The service reads histories in bfloat16 where the hardware has it: near ties may change places."""
    expected = LocalRanker.open(whole.out / "adapter", shop_data, device="cpu").for_user(somebody, 10)
    answer = asked(shop_api, user_id=somebody)
    assert len(set(ids(answer)) & {item.item_id for item in expected.items}) >= 9
    assert [item["rank"] for item in answer["items"]] == list(range(1, 11))
    assert answer["basis"] == "history" and answer["release"] == 1


def test_nothing_is_shown_that_the_user_has_met(shop_api: TestClient, shop_data: RawData, somebody: str) -> None:
    met = set(shop_data.interactions.filter(pl.col("user_id") == somebody).get_column("item_id"))
    answer = asked(shop_api, user_id=somebody, k=1000)
    assert not met & set(ids(answer)) and len(ids(answer)) > 50


def test_a_batch_answers_each_as_if_alone(shop_api: TestClient, shop_data: RawData) -> None:
    users = shop_data.interactions.get_column("user_id").unique().sort().to_list()[:12]
    requests = [{"user_id": user, "k": 5} for user in users] + [{"query": "a lamp", "k": 3}, {"user_id": "nobody"}]
    lists = asked(shop_api, "/v1/rank/batch", requests=requests)["lists"]
    alone = [asked(shop_api, **request) for request in requests]
    assert [one["basis"] for one in lists] == ["history"] * 12 + ["query", "popularity"]
    same = [ids(one) == ids(other) for one, other in zip(lists, alone, strict=True)]
    assert sum(same) >= len(same) - 1  # the size of a batch moves the last bits of a score
    assert len({tuple(ids(one)) for one in lists[:12]}) > 6


def test_a_fresh_click_changes_the_next_list_and_is_gone_when_forgotten(
    shop_api: TestClient, shop_data: RawData
) -> None:
    item = str(shop_data.items.get_column("item_id").sort()[9])
    assert asked(shop_api, user_id="newcomer")["basis"] == "popularity"
    events = [{"item_id": item, "kind": "view"}, {"item_id": "not sold here", "kind": "view"}]
    assert asked(shop_api, "/v1/events", user_id="newcomer", events=events) == {"written": 2, "unknown_items": 1}
    after = asked(shop_api, user_id="newcomer")
    assert after["basis"] == "history" and item not in ids(after)
    session = asked(shop_api, events=[{"item_id": item, "kind": "view"}])
    assert ids(session) == ids(after), "a session that is not kept is read as one that is"
    assert asked(shop_api, "/v1/users/forget", user_id="newcomer") == {"erased": 2}
    assert asked(shop_api, user_id="newcomer")["basis"] == "popularity"


def test_forgetting_a_user_erases_the_vectors_of_what_the_user_wrote(
    shop_api: TestClient, service: Service, shop_data: RawData
) -> None:
    item = str(shop_data.items.get_column("item_id")[3])
    events = [
        {"item_id": item, "kind": "review", "review": SECRET},
        {"item_id": "not sold here", "review": SECRET + "!"},
    ]
    asked(shop_api, "/v1/events", user_id="writer", events=events)
    asked(shop_api, user_id="writer")
    stage, cache = service.desk.stand.engine.text, TextCache(service._maker.cache)
    assert asked(shop_api, "/v1/users/forget", user_id="writer") == {"erased": 2}
    assert cache.erase(stage, [SECRET, SECRET + "!"], items=False) == 0
    session = {"events": [{"item_id": item, "kind": "review", "review": SECRET}]}
    asked(shop_api, **session)
    assert cache.erase(stage, [SECRET], items=False) == 0, "nothing of a session is kept"


def test_a_review_that_is_replaced_leaves_no_vector(shop_api: TestClient, service: Service, shop_data: RawData) -> None:
    event = {"item_id": str(shop_data.items.get_column("item_id")[3]), "kind": "review", "timestamp": 1_700_000_000}
    stage, cache = service.desk.stand.engine.text, TextCache(service._maker.cache)
    asked(shop_api, "/v1/events", user_id="writer", events=[{**event, "review": SECRET}])
    asked(shop_api, user_id="writer")
    asked(shop_api, "/v1/events", user_id="writer", events=[{**event, "review": "Better words."}])
    asked(shop_api, user_id="writer")
    assert cache.erase(stage, [SECRET], items=False) == 0
    assert cache.erase(stage, ["Better words."], items=False) == 1, "vectors of reviews are held where this test looks"
    asked(shop_api, "/v1/users/forget", user_id="writer")


def test_what_could_not_be_erased_can_be_asked_for_again(
    shop_api: TestClient, service: Service, shop_data: RawData, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = [{"item_id": str(shop_data.items.get_column("item_id")[3]), "kind": "review", "review": SECRET}]
    asked(shop_api, "/v1/events", user_id="writer", events=events)
    asked(shop_api, user_id="writer")

    def locked(*_: object, **__: object) -> int:
        raise IntegrityError("another process has kept it")

    with monkeypatch.context() as patch:
        patch.setattr(TextCache, "erase", locked)
        assert shop_api.post("/v1/users/forget", json={"user_id": "writer"}).status_code == 503
    assert asked(shop_api, "/v1/users/forget", user_id="writer") == {"erased": 1}
    assert TextCache(service._maker.cache).erase(service.desk.stand.engine.text, [SECRET], items=False) == 0


def test_a_wish_beside_a_history_moves_the_list_towards_it(
    shop_api: TestClient, shop_data: RawData, somebody: str
) -> None:
    title = str(shop_data.items.sort("item_id").get_column("title")[70])
    both = asked(shop_api, user_id=somebody, query=title, k=20)
    wish, history = asked(shop_api, query=title, k=20), asked(shop_api, user_id=somebody, k=20)
    assert both["basis"] == "history and query"
    near = len(set(ids(both)) & set(ids(wish)))
    assert near > len(set(ids(history)) & set(ids(wish)))


def test_only_what_is_allowed_is_shown(shop_api: TestClient, somebody: str) -> None:
    category = shop_api.get("/v1/categories").json()["categories"][0]
    inside = asked(shop_api, user_id=somebody, categories=[category], k=1000)
    assert 0 < len(ids(inside)) < 60
    first = ids(inside)[0]
    assert asked(shop_api, "/v1/items/availability", item_ids=[first], available=False) == {"hidden": 1}
    assert first not in ids(asked(shop_api, user_id=somebody, categories=[category], k=1000))
    pin = {"pin": [{"item": first, "place": 1}]}
    assert first not in ids(asked(shop_api, user_id=somebody, rerank=pin)), "a pin does not show what is hidden"
    assert asked(shop_api, "/v1/items/availability", item_ids=[first], available=True) == {"hidden": 0}
    assert ids(asked(shop_api, user_id=somebody, categories=["no such"], k=5)) == []


def test_rerank_rules_hold_in_the_answer(shop_api: TestClient, somebody: str) -> None:
    plain = ids(asked(shop_api, user_id=somebody, k=10))
    rules = {"exclude": {"items": plain[:2]}, "pin": [{"item": plain[9], "place": 1}]}
    changed = asked(shop_api, user_id=somebody, k=8, rerank=rules)
    assert ids(changed)[0] == plain[9] and not set(plain[:2]) & set(ids(changed)) and len(ids(changed)) == 8


def test_an_explained_list_names_what_the_user_met(shop_api: TestClient, somebody: str) -> None:
    answer = asked(shop_api, user_id=somebody, explain=True, k=5)
    held = asked(shop_api, "/v1/users/history", user_id=somebody)["events"]
    titles = {event["title"] for event in held}
    assert all(item["reason"] for item in answer["items"])
    named = [reason for item in answer["items"] for reason in item["because"]]
    assert named and all(reason["title"] in titles and reason["effect"] > 0 for reason in named)
    assert ids(answer) == ids(asked(shop_api, user_id=somebody, k=5))


def test_a_wish_is_explained_by_its_words(shop_api: TestClient) -> None:
    answer = asked(shop_api, query="a lamp for the desk", explain=True, k=3)
    assert all(item["reason"] and not item["because"] for item in answer["items"])
    words = {word["word"] for word in answer["items"][0]["words"]}
    assert words & {"lamp", "desk"} and words <= {"a", "lamp", "for", "the", "desk"}


def test_words_are_told_where_they_are_asked_for(shop_api: TestClient, somebody: str) -> None:
    assert not any(item["words"] for item in asked(shop_api, user_id=somebody, explain=True, k=3)["items"])
    told = asked(shop_api, user_id=somebody, explain=True, words=True, k=3)["items"]
    assert all(word["source"] in ("title", "review") for item in told for word in item["words"])
    assert any(item["words"] for item in told)


def test_what_is_held_of_a_user_is_told_newest_first(shop_api: TestClient, shop_data: RawData, somebody: str) -> None:
    events = asked(shop_api, "/v1/users/history", user_id=somebody)["events"]
    assert [event["timestamp"] for event in events] == sorted((e["timestamp"] for e in events), reverse=True)
    assert len(events) >= 10


# --- what is refused


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/v1/rank", {"user_id": 3}, 422),
        ("/v1/rank", {"user": "a"}, 422),
        ("/v1/rank", {"k": 0}, 422),
        ("/v1/rank", {"k": True}, 422),
        ("/v1/rank", {"k": "3"}, 422),
        ("/v1/rank", {"explain": 1}, 422),
        ("/v1/rank", {"events": [{"item_id": "a", "timestamp": True}]}, 422),
        ("/v1/rank", {"rerank": {"diversify": {"trade_off": "0.5"}}}, 422),
        ("/v1/rank", {"query": ""}, 422),
        ("/v1/rank", {"release": 7}, 422),
        ("/v1/rank", {"rerank": {"pin": [{"item": SECRET, "place": 1}]}}, 422),
        ("/v1/rank", {"rerank": {"long_tail": {"strength": 99}}}, 422),
        ("/v1/rank/batch", {"requests": []}, 422),
        ("/v1/rank/batch", {"requests": [{"words": True}] * 11}, 422),
        ("/v1/events", {"user_id": SECRET, "events": [{"item_id": "a", "kind": "theft"}]}, 422),
        ("/v1/events", {"user_id": SECRET, "events": [{"item_id": "a", "timestamp": 2**52}]}, 422),
        ("/v1/users/history", {"user_id": SECRET}, 404),
        ("/v1/users/steal", {"user_id": SECRET}, 404),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line_without_what_was_sent(
    shop_api: TestClient, path: str, body: dict[str, Any], status: int
) -> None:
    response = shop_api.post(path, json=body)
    assert response.status_code == status, response.text
    assert SECRET not in response.text and "\n" not in response.text.strip()


def test_one_request_that_fails_does_not_hold_up_its_batch(shop_api: TestClient, somebody: str) -> None:
    pinned = {"rerank": {"pin": [{"item": "not sold here", "place": 1}]}}
    requests = [
        {"user_id": somebody, "k": 3},
        {"user_id": somebody, **pinned},
        {"query": "tea", "k": 3},
        {"release": 9},
        {"user_id": " "},
        {"user_id": somebody, "k": 3},
    ]
    lists = asked(shop_api, "/v1/rank/batch", requests=requests)["lists"]
    assert [sorted(one)[0] for one in lists] == ["basis", "error", "basis", "error", "error", "basis"]
    assert len(ids(lists[0])) == 3


def test_an_error_that_nobody_expected_tells_nothing(
    shop_api: TestClient, service: Service, monkeypatch: pytest.MonkeyPatch, log: StringIO
) -> None:
    def breaks(user_id: str) -> int:
        raise ValueError(f"{user_id} broke it")

    monkeypatch.setattr(service, "forget", breaks)
    response = shop_api.post("/v1/users/forget", json={"user_id": SECRET})
    assert response.status_code == 500 and SECRET not in response.text
    assert '"ValueError"' in log.getvalue() and SECRET not in log.getvalue()


def test_a_foreign_page_in_the_partner_s_browser_gets_nothing(service: Service, somebody: str) -> None:
    """It can send plain text without being asked for leave, and have its own name resolve to this machine."""
    api = TestClient(create_app(service, hosts=OWN_NAMES), base_url="http://localhost:8080")
    body = {"user_id": somebody, "events": [{"item_id": "a"}]}
    for kind in ("text/plain", "application/x-www-form-urlencoded", "", None):
        request = api.build_request("POST", "/v1/events", content=json.dumps(body))
        if kind is not None:
            request.headers["Content-Type"] = kind
        assert api.send(request).status_code == 422
    assert api.post("/v1/rank", json={"k": 1}).status_code == 200
    assert api.post("/v1/rank", json={"k": 1}, headers={"Host": "[::1]:8080"}).status_code == 200
    for name in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example:8080"):
        assert api.post("/v1/rank", json={"k": 1}, headers={"Host": name}).status_code == 400


# --- what it tells of itself


def test_the_server_s_own_log_has_no_traceback(caplog: pytest.LogCaptureFixture) -> None:
    """uvicorn logs what the application raises, with the message."""
    quiet()
    for name in ("uvicorn.error", "asyncio"):
        try:
            raise ValueError(SECRET)
        except ValueError as error:
            logging.getLogger(name).error("Exception in ASGI application\n", exc_info=error)
    assert len(caplog.records) == 2 and SECRET not in caplog.text


def test_logs_and_metrics_hold_no_user(shop_api: TestClient, log: StringIO, somebody: str) -> None:
    asked(shop_api, user_id=somebody, query=SECRET)
    shop_api.get(f"/v1/{SECRET}")
    metrics = shop_api.get("/metrics").text
    for text in (log.getvalue(), metrics):
        assert SECRET not in text and somebody not in text
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    assert {"route", "status", "ms"} <= set([line for line in lines if line["event"] == "request"][-1])
    assert 'veilrec_requests_total{route="/v1/rank",status="200"}' in metrics
    assert "veilrec_batch_size_count" in metrics and "veilrec_release_version 1.0" in metrics


def test_health_release_and_page(shop_api: TestClient) -> None:
    assert shop_api.get("/healthz").json() == {"status": "ok"}
    assert shop_api.get("/readyz").json() == {"status": "ready"}
    release = shop_api.get("/v1/release").json()
    assert release["version"] == 1 and not release["signed"] and "epsilon" in release["privacy"]
    assert shop_api.get("/v1/releases").json()["versions"] == [1]
    page = shop_api.get("/")
    assert page.status_code == 200 and "'self'" in page.headers["content-security-policy"]


def test_what_is_hidden_stays_hidden_over_a_restart(
    whole: Done, shop_data: RawData, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("again")
    item = str(shop_data.items.get_column("item_id")[0])
    source = Source(adapter=whole.out / "adapter")
    with running(folder, shop_data, source, StringIO()) as service:
        service.hide([item], available=False)
    with running(folder, shop_data, source, StringIO()) as service:
        assert service.desk.hidden == {item}


def test_a_partner_s_own_part_is_added_to_the_release_that_it_was_made_for(
    whole: Done, shop_data: RawData, service: Service, histories_of: HistoriesOf, tmp_path: Path
) -> None:
    release, premises = load_release(whole.out / "adapter"), tmp_path / "premises"
    items = len(release.prior.popularity)
    own = CollaborativePrior(np.linspace(3, -3, items, dtype=np.float32), np.eye(items, dtype=np.float32)[::-1].copy())
    maker = replace(service._maker, premises=premises)
    PersonalPrior(release.fingerprint, Taken(0.8, 1.0), own).save(premises)
    with_own = maker.make(release, signed=False)
    assert with_own.info.personal and with_own.info.fingerprint == release.fingerprint
    np.testing.assert_allclose(with_own.engine.release.prior.popularity, own.popularity)
    config = own_config(release.config, items).model
    model = BehaviourStage(find_base(config.base), config, n_items=items)
    PersonalAdapter(release.fingerprint, 10, flatten_parameters(model)).save(premises)
    both = maker.make(release, signed=False).engine
    np.testing.assert_allclose(both.release.prior.popularity, own.popularity)
    assert both.model.residuals is not None, "item vectors of its own"
    ranked = both.retrieve(both.maker(histories_of([[0, 1, 2]])), np.arange(1), 5)
    assert len(set(ranked.rows[0].tolist()) - {0, 1, 2}) == 5
    PersonalPrior("another release", Taken(0.8, 1.0), own).save(premises)
    PersonalAdapter("another release", 10, flatten_parameters(model)).save(premises)
    assert not maker.make(release, signed=False).info.personal
    assert not service.desk.stand.info.personal
