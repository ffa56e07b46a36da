"""``veilrec serve`` as an operator starts and stops it: a real process, its log, its exit codes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from postgres_server import postgres_url

from simulations.benchmarks.ranking_world import make_world, user_id

__all__ = ["postgres_url"]  # a fixture
pytestmark = [pytest.mark.e2e, pytest.mark.slow]

USERS, TOKEN = 40, "a-token-of-the-test-and-nobody-else"
Veilrec = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("shop"), 1000, USERS)


@contextmanager
def started(world: Path, *more: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The process and its port, once it says that it listens."""
    command = [sys.executable, "-c", "from simulations.cli import main; main()", "serve", "--run", str(world)]
    command += ["--data", str(world / "data"), "--state", str(world / "state"), "--port", "0", *more]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            told = next(json.loads(line) for line in process.stderr if '"listening"' in line)
            yield process, told["port"]
        finally:
            process.kill()


def test_what_has_begun_is_finished_before_the_service_ends(world: Path) -> None:
    with started(world) as (process, port):
        answers: list[int] = []
        requests = {"requests": [{"user_id": user_id(k), "k": 5} for k in range(USERS)] * 10}

        def asks() -> None:
            answers.append(httpx.post(f"http://127.0.0.1:{port}/v1/rank/batch", json=requests, timeout=60).status_code)

        httpx.post(f"http://127.0.0.1:{port}/v1/rank", json={"user_id": user_id(0)}, timeout=60).raise_for_status()
        caller = threading.Thread(target=asks)
        caller.start()
        caller.join(0.2)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
        caller.join(60)
    assert answers == [200] and process.returncode == 0
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert [line["route"] for line in lines if line["event"] == "request"][-1] == "/v1/rank/batch"
    assert user_id(0) not in log and "Traceback" not in log


def test_events_may_live_in_postgresql(world: Path, postgres_url: str) -> None:
    with (
        started(world, "--database", postgres_url) as (_, port),
        httpx.Client(base_url=f"http://127.0.0.1:{port}/v1", timeout=60) as shop,
    ):
        known = shop.post("/rank", json={"user_id": user_id(3), "k": 5}).json()
        assert known["basis"] == "history" and len(known["items"]) == 5
        event = {"item_id": known["items"][0]["item_id"], "kind": "purchase"}
        assert shop.post("/events", json={"user_id": user_id(3), "events": [event]}).json()["written"] == 1
        after = shop.post("/rank", json={"user_id": user_id(3), "k": 5}).json()
        assert event["item_id"] not in [item["item_id"] for item in after["items"]]
        assert shop.post("/users/forget", json={"user_id": user_id(3)}).json()["erased"] > 40
    with started(world, "--database", postgres_url) as (_, port):
        again = httpx.post(f"http://127.0.0.1:{port}/v1/rank", json={"user_id": user_id(3)}, timeout=60).json()
    assert again["basis"] == "popularity", "the data are imported at each start, without who was forgotten"


def test_only_a_token_opens_the_service(world: Path, tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(TOKEN + "\n")
    tokens.chmod(0o600)
    with started(world, "--tokens", str(tokens), "--host", "0.0.0.0") as (_, port):
        url = f"http://127.0.0.1:{port}/v1/rank"
        assert httpx.post(url, json={"k": 3}, timeout=60).status_code == 401
        answer = httpx.post(url, json={"k": 3}, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)
        assert answer.status_code == 200 and len(answer.json()["items"]) == 3


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "one of --run and --releases"),
        (("--releases", "shelf"), "--trust"),
        (("--run", "run", "--host", "0.0.0.0"), "--tokens"),
        (("--run", "run", "--tokens", "none"), "one token a line"),
    ],
)
def test_options_that_cannot_be_are_refused_at_once(veilrec: Veilrec, options: tuple[str, ...], says: str) -> None:
    code, out, err = veilrec("serve", "--data", "marketplace", *options)
    assert (code, out) == (10, "") and says in err
