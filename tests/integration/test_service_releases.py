"""Releases come and go under a running service: the newest verified one answers, and nobody is turned away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from service_setting import running
from signed_releases import KEY, STRANGER, signed, write
from starlette.testclient import TestClient

from client.data.ingest import RawData
from client.ranking.releases import ReleaseShelf
from client.service.app import create_app
from client.service.requests import RankRequest, RankResponse
from client.service.service import Service, Source
from shared.errors import IntegrityError

if TYPE_CHECKING:
    from conftest import Done

Shelve = Callable[..., Path]
WAIT_S = 30.0


@pytest.fixture
def shelve(whole: Done, tmp_path: Path) -> Shelve:
    """Put the finished run's adapter on the shelf as a signed release of a version."""
    files = {file.name: file.read_bytes() for file in (whole.out / "adapter").iterdir()}

    def put(version: int, *, key: object = KEY, flip: str = "") -> Path:
        contents = signed(files, key, version=version)  # type: ignore[arg-type]
        if flip:
            contents = {**contents, flip: contents[flip][:-9] + b"corrupted"}
        folder = tmp_path / "copying" / str(version)
        write(folder, contents)
        there = tmp_path / "releases" / f"v{version}"
        there.parent.mkdir(exist_ok=True)
        return folder.rename(there)

    return put


@pytest.fixture
def service(shelve: Shelve, shop_data: RawData, tmp_path: Path) -> Iterator[Service]:
    shelve(1)
    shelf = ReleaseShelf(tmp_path / "releases", KEY.public, tmp_path / "releases.json")
    with running(tmp_path, shop_data, Source(shelf=shelf), StringIO()) as service:
        yield service


def until(true: Callable[[], bool]) -> None:
    """Wait for the watch over the shelf."""
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.02)


def api_version(service: Service) -> int:
    """As whoever asks is told."""
    told: int = TestClient(create_app(service)).get("/v1/release").json()["version"]
    return told


def version(service: Service) -> int:
    return service.desk.stand.info.version


def test_releases_are_swapped_under_load_and_no_request_fails(service: Service, shelve: Shelve) -> None:
    """50 callers who never pause; good and bad releases arrive meanwhile."""
    stop, answers = threading.Event(), []
    asked = [RankRequest(user_id=f"user-{k:07d}", k=3) for k in range(50)]

    def calls(request: RankRequest) -> None:
        while not stop.is_set():
            answers.extend(service.batcher.submit([request]).result(WAIT_S))

    callers = [threading.Thread(target=calls, args=(request,)) for request in asked]
    for caller in callers:
        caller.start()
    answered = lambda: {one.release for one in answers[-50:] if isinstance(one, RankResponse)}  # noqa: E731
    until(lambda: answered() == {1} and len(answers) > 100)
    shelve(2)
    until(lambda: answered() == {2})
    shelve(3, flip="behaviour.safetensors")
    shelve(4, key=STRANGER)
    shelve(5)
    until(lambda: answered() == {5})
    stop.set()
    for caller in callers:
        caller.join(WAIT_S)
    assert len(answers) > 100
    assert all(isinstance(one, RankResponse) and len(one.items) == 3 for one in answers)
    assert {one.release for one in answers if isinstance(one, RankResponse)} == {1, 2, 5}


def test_a_bad_release_is_refused_and_the_old_one_goes_on(service: Service, shelve: Shelve) -> None:
    shelve(2, flip="config.json")
    shelve(3, key=STRANGER)
    until(lambda: service.shelved().refused == 2)
    api = TestClient(create_app(service))
    assert api.get("/v1/release").json()["version"] == 1 and api.get("/v1/release").json()["signed"]
    assert api.get("/v1/releases").json()["versions"] == [1]
    until(lambda: "veilrec_releases_refused 2.0" in api.get("/metrics").text)


def test_two_releases_can_be_compared(service: Service, shelve: Shelve) -> None:
    shelve(2)
    until(lambda: version(service) == 2)
    api = TestClient(create_app(service))
    requests = [{"query": "tea", "release": number} for number in (1, 2)] + [{"query": "tea", "release": 7}]
    one, two, none = api.post("/v1/rank/batch", json={"requests": requests}).json()["lists"]
    assert (one["release"], two["release"]) == (1, 2) and one["items"] == two["items"]
    assert none["error"] == "ConfigError" and "version=7" in none["message"]


def test_an_older_release_is_served_only_once_it_is_pinned(service: Service, shelve: Shelve, tmp_path: Path) -> None:
    shelve(2)
    until(lambda: version(service) == 2)
    assert not service.look() and version(service) == 2, "the older one is there, and left alone"
    operator = ReleaseShelf(tmp_path / "releases", KEY.public, tmp_path / "releases.json")
    operator.pin(1)
    until(lambda: version(service) == 1)
    operator.unpin()
    until(lambda: version(service) == 2)
    assert api_version(service) == 2


def test_without_a_release_that_verifies_nothing_starts(shelve: Shelve, shop_data: RawData, tmp_path: Path) -> None:
    shelve(1, key=STRANGER)
    shelf = ReleaseShelf(tmp_path / "releases", KEY.public, tmp_path / "releases.json")
    with (
        pytest.raises(IntegrityError, match="trusted key"),
        running(tmp_path, shop_data, Source(shelf=shelf), StringIO()),
    ):
        raise AssertionError("it started")
