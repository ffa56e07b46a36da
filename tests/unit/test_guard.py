"""Who may ask the service, how often, and how much."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from client.service.guard import Bucket, Guard, check_exposure, read_tokens
from shared.errors import ConfigError

TOKEN, OTHER = "a-token-of-many-letters", "another-token-of-letters"


async def echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


def client(**settings: object) -> TestClient:
    routes = [Route(path, echo, methods=["GET", "POST"]) for path in ("/", "/healthz", "/v1/rank", "/metrics")]
    return TestClient(Guard(Starlette(routes=routes), **settings))  # type: ignore[arg-type]


def tokens_in(folder: Path, text: str, mode: int = 0o600) -> Path:
    file = folder / "tokens"
    file.write_text(text)
    file.chmod(mode)
    return file


def bearer(token: str, kind: str = "Bearer") -> dict[str, str]:
    return {"Authorization": f"{kind} {token}"}


def test_only_known_tokens_may_ask(tmp_path: Path) -> None:
    known = read_tokens(tokens_in(tmp_path, f"# for the shop\n{TOKEN}\n\n{OTHER}\n"))
    assert len(known) == 2
    asks = client(tokens=known)
    for headers in (
        {},
        bearer("wrong"),
        bearer(TOKEN + "x"),
        bearer(TOKEN, "Basic"),
        bearer("# for the shop"),
        bearer(""),
    ):
        refused = asks.post("/v1/rank", content=b"x", headers=headers)
        assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"
        assert TOKEN not in refused.text
    for token in (TOKEN, OTHER):
        assert asks.post("/v1/rank", content=b"x", headers=bearer(token)).text == "1"
    assert asks.get("/metrics").status_code == 401
    assert asks.get("/healthz").status_code == asks.get("/").status_code == 200


@pytest.mark.parametrize(
    ("text", "mode", "says"),
    [(f"{TOKEN}\n", 0o644, "mode=0600"), ("short\n", 0o600, "at least 20"), ("# nothing\n", 0o600, "at least 20")],
)
def test_a_file_of_tokens_that_protects_nothing_is_refused(tmp_path: Path, text: str, mode: int, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        read_tokens(tokens_in(tmp_path, text, mode))
    assert "short" not in str(caught.value)


def test_a_missing_file_of_tokens_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="readable"):
        read_tokens(tmp_path / "none")


def test_without_tokens_only_this_machine_may_ask() -> None:
    for host in ("127.0.0.1", "::1", "localhost"):
        check_exposure(host, frozenset())
    for host in ("0.0.0.0", "::", "192.168.1.4", "shop.example"):
        with pytest.raises(ConfigError, match="--tokens"):
            check_exposure(host, frozenset())
        check_exposure(host, frozenset({b"digest"}))


def test_a_body_that_is_too_large_is_refused_with_or_without_its_length() -> None:
    asks = client(most_body=100)
    assert asks.post("/v1/rank", content=b"x" * 100).text == "100"
    assert asks.post("/v1/rank", content=b"x" * 101).status_code == 413

    def pieces() -> Iterator[bytes]:
        for _ in range(20):
            yield b"x" * 10

    assert asks.post("/v1/rank", content=pieces()).status_code == 413


def test_one_caller_cannot_take_all_the_time_of_another(tmp_path: Path) -> None:
    known = read_tokens(tokens_in(tmp_path, f"{TOKEN}\n{OTHER}\n"))
    asks = client(tokens=known, rate=2.0)
    greedy = [asks.post("/v1/rank", headers=bearer(TOKEN)).status_code for _ in range(12)]
    assert greedy.count(200) in range(4, 8) and 429 in greedy  # a burst of 4, and 2 a second
    refused = asks.post("/v1/rank", headers=bearer(TOKEN))
    assert refused.status_code == 429 and refused.headers["retry-after"] == "1"
    assert asks.post("/v1/rank", headers=bearer(OTHER)).status_code == 200


def test_a_bucket_lets_its_rate_through() -> None:
    bucket = Bucket(rate=5.0, burst=10.0, at=0.0)
    taken = sum(bucket.take(k / 100) for k in range(1000))  # 100 a second for 10 seconds
    assert 10 + 5 * 10 - 2 <= taken <= 10 + 5 * 10
