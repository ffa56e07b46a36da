"""The gate: what a node needs goes through unaltered, nothing else does, and whatever breaks is told as what it is."""

from __future__ import annotations

import base64
import io
import json
import logging
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from link_setting import Authority, free_port, served
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from server import gate as gate_module
from server.gate import CALLS, FLEET, HELLO, HOP_BY_HOP, NODE_KEY, PROTOCOL_HEADER, Gate, key_header
from shared.logs import Log
from shared.wire_frames import PROTOCOL

PULL = f"{FLEET}/pull-messages"
LIMIT = 1000
PEM = b"-----BEGIN PUBLIC KEY-----"


@dataclass
class Counted:
    """What the gate told its watcher."""

    seen_: list[tuple[str, int, int, int, str]] = field(default_factory=list)

    def seen(self, path: str, status: int, bytes_in: int, bytes_out: int, partner: str = "") -> None:
        self.seen_.append((path, status, bytes_in, bytes_out, partner))


@dataclass
class Link:
    """A SuperLink's place, taken by a server that notes all that reaches it."""

    paths: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    cut_off: int = 0
    answer: Callable[[bytes], Response] = field(default=lambda body: Response(b"got " + body, 207, {"x-flower": "1"}))

    def app(self) -> Starlette:
        async def any_path(request: Request) -> Response:
            self.paths.append(request.url.path)
            self.headers.append(dict(request.headers))
            try:
                return self.answer(await request.body())
            except ClientDisconnect:
                self.cut_off += 1
                raise

        return Starlette(routes=[Route("/{path:path}", any_path, methods=["GET", "POST", "PUT", "DELETE"])])


@dataclass
class Setting:
    """A gate before a SuperLink, and a way to it."""

    gate: Gate
    link: Link
    counted: Counted
    port: int
    log: io.StringIO

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def told(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    def post(self, path: str, content: bytes | Iterator[bytes] = b"", **headers: str) -> httpx.Response:
        told = {key.replace("_", "-"): value for key, value in headers.items()}
        return httpx.post(self.base + path, content=content, headers=told, timeout=10)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.make(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def setting(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> Iterator[Setting]:
    monkeypatch.setattr(gate_module, "LARGEST_BODY", LIMIT)
    link, counted, log = Link(), Counted(), io.StringIO()
    with served(link.app(), authority) as upstream:
        made = Gate(f"127.0.0.1:{upstream}", str(authority.certificate), counted, Log(log))
        with served(made.app(), at_end=made.close) as port:
            yield Setting(made, link, counted, port, log)


def soon(holds: Callable[[], bool]) -> None:
    until = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


# --- what goes through ----------------------------------------------------------------------------


def test_a_nodes_call_and_its_answer_go_through_unaltered(setting: Setting) -> None:
    setting.gate.partners = {key_header(PEM): "anna"}
    answer = setting.post(PULL, b"body", flwr_public_key=key_header(PEM), flwr_signature="s")
    assert (answer.status_code, answer.content, answer.headers["x-flower"]) == (207, b"got body", "1")
    assert setting.link.paths == [PULL]
    (headers,) = setting.link.headers
    assert (headers["flwr-signature"], headers[NODE_KEY]) == ("s", base64.b64encode(PEM).decode())
    soon(lambda: setting.counted.seen_ == [(PULL, 207, 4, 8, "anna")])


def test_a_nodes_key_that_is_not_known_is_counted_as_nobodys(setting: Setting) -> None:
    setting.post(PULL, b"body", flwr_public_key="junk")
    soon(lambda: setting.counted.seen_ == [(PULL, 207, 4, 8, "")])


def test_what_concerns_one_connection_is_not_handed_on(setting: Setting) -> None:
    setting.post(PULL, iter([b"body"]), te="trailers")
    (headers,) = setting.link.headers
    assert headers["host"] != f"127.0.0.1:{setting.port}" and "te" not in headers and "te" in HOP_BY_HOP


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control/list-nodes",
        "/v1/control/start-run",
        "/v1/runtime/pull-message",
        f"{FLEET}/register-node",
        f"{FLEET}/unregister-node",
        f"{FLEET}/../control/start-run",
        f"{FLEET}/%2e%2e/control/start-run",
        f"{PULL}/",
        f"/{PULL}",
        FLEET,
        "/",
        "/docs",
    ],
)
def test_nothing_else_of_the_superlink_can_be_reached(setting: Setting, path: str) -> None:
    with socket.create_connection(("127.0.0.1", setting.port)) as made:  # as it stands: a client would tidy the path
        made.sendall(f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode())
        assert made.recv(200).split()[1] in (b"404", b"307")
    assert setting.link.paths == []


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
def test_a_call_by_another_method_is_refused(setting: Setting, method: str) -> None:
    assert httpx.request(method, setting.base + PULL).status_code == 405
    assert setting.link.paths == []


def test_all_calls_of_flowers_node_but_those_of_enrolment_go_through(setting: Setting) -> None:
    from flwr.supernode.fleet_http_client import FleetHttpClient

    public = {name for name in vars(FleetHttpClient) if name[0].isupper()}
    calls = {"".join(f"-{c.lower()}" if c.isupper() else c for c in name).lstrip("-") for name in public}
    assert calls - set(CALLS) == {"register-node", "unregister-node"}
    assert {setting.post(f"{FLEET}/{call}").status_code for call in CALLS} == {207}


# --- sizes ----------------------------------------------------------------------------------------


def test_a_body_that_says_it_is_too_large_is_refused_and_counted(setting: Setting) -> None:
    answer = setting.post(PULL, bytes(LIMIT + 1))
    assert (answer.status_code, answer.text) == (413, f"Expected a body of <= {LIMIT} bytes.")
    assert setting.link.paths == []
    assert setting.counted.seen_ == [(PULL, 413, 0, 0, "")]


def test_a_body_that_goes_on_beyond_the_limit_is_refused_and_counted(setting: Setting) -> None:
    answer = setting.post(PULL, iter([bytes(600)] * 3))
    assert (answer.status_code, answer.text) == (413, f"Expected a body of <= {LIMIT} bytes.")
    soon(lambda: setting.link.cut_off == 1)  # the SuperLink never had it whole
    ((path, status, taken, given, _),) = setting.counted.seen_
    assert (path, status, given) == (PULL, 413, 0) and LIMIT < taken <= LIMIT + 2**16


def test_a_caller_that_goes_on_after_its_refusal_is_cut_off(setting: Setting) -> None:
    with socket.create_connection(("127.0.0.1", setting.port), timeout=5) as made:
        made.sendall(f"POST {PULL} HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n".encode())
        with pytest.raises(OSError):  # the reset of a connection that nobody reads
            for _ in range(20_000):
                made.sendall(b"400\r\n" + bytes(1024) + b"\r\n")
    assert setting.counted.seen_[0][1] == 413


def test_a_body_of_just_the_limit_goes_through(setting: Setting) -> None:
    assert setting.post(PULL, bytes(LIMIT)).status_code == 207
    assert setting.post(PULL, iter([bytes(LIMIT // 2)] * 2)).status_code == 207


# --- what breaks ----------------------------------------------------------------------------------


def test_a_superlink_that_is_being_started_again_is_told_and_tried_anew(authority: Authority) -> None:
    port, counted, link = free_port(), Counted(), Link()
    made = Gate(f"127.0.0.1:{port}", str(authority.certificate), counted)
    with served(made.app(), at_end=made.close) as public:
        url = f"http://127.0.0.1:{public}{PULL}"
        answer = httpx.post(url, content=b"body")
        assert (answer.status_code, answer.text) == (503, "Expected the SuperLink, it does not answer.")
        with served(link.app(), authority, port=port):
            assert httpx.post(url, content=b"body").status_code == 207
        assert httpx.post(url, content=b"body").status_code == 503
    assert [status for _, status, *_ in counted.seen_] == [503, 207, 503]


def test_a_superlink_of_another_authority_is_not_believed(authority: Authority, tmp_path: Path) -> None:
    other, link = Authority.make(tmp_path), Link()
    with served(link.app(), other) as port:
        made = Gate(f"127.0.0.1:{port}", str(authority.certificate), Counted())
        with served(made.app(), at_end=made.close) as public:
            assert httpx.post(f"http://127.0.0.1:{public}{PULL}").status_code == 503
    assert link.paths == []


def test_a_node_that_is_gone_in_the_middle_of_its_request_leaves_no_error(
    setting: Setting, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", setting.port)) as made:
            made.sendall(f"POST {PULL} HTTP/1.1\r\nhost: x\r\ncontent-length: 900\r\n\r\n".encode() + bytes(100))
            soon(lambda: len(setting.link.paths) > setting.link.cut_off)
        soon(lambda: len(setting.link.paths) == setting.link.cut_off)
    assert setting.post(PULL, b"body").status_code == 207
    assert [status for _, status, *_ in setting.counted.seen_][:3] == [499] * 3
    assert not [
        record for record in caplog.records if record.levelno >= logging.ERROR and "gate" in str(record.exc_info)
    ]


def test_an_answer_that_breaks_off_does_not_pass_for_a_whole_one(setting: Setting) -> None:
    async def half() -> AsyncIterator[bytes]:
        yield b"half"
        raise ConnectionAbortedError

    setting.link.answer = lambda _: StreamingResponse(half(), headers={"content-length": "8"})
    with pytest.raises(httpx.RemoteProtocolError):
        setting.post(PULL)
    setting.link.answer = lambda _: Response(b"whole")
    assert setting.post(PULL).content == b"whole"


# --- hello ----------------------------------------------------------------------------------------


def test_the_gate_tells_its_versions(setting: Setting) -> None:
    told = httpx.get(setting.base + HELLO).json()
    assert told["protocol"] == PROTOCOL and set(told) == {"veilrec", "flower", "protocol"}
    assert httpx.get(setting.base + HELLO, headers={PROTOCOL_HEADER: str(PROTOCOL)}).status_code == 200


def test_a_node_of_another_protocol_is_told_so_and_the_operator_too_once(setting: Setting) -> None:
    for _ in range(3):
        answer = httpx.get(setting.base + HELLO, headers={PROTOCOL_HEADER: "7"})
        assert (answer.status_code, answer.json()["protocol"]) == (426, PROTOCOL)
    (told,) = setting.told()
    assert told["why"] == f"Expected a node with protocol={PROTOCOL}, got 7: install one version."
    assert [status for _, status, *_ in setting.counted.seen_] == [426] * 3


def test_junk_for_a_protocol_is_not_written_down(setting: Setting) -> None:
    with httpx.Client(base_url=setting.base) as client:
        for junk in ("", "x", "-1", "9" * 40, "1;drop", "\u00b2"):
            headers = {PROTOCOL_HEADER.encode(): junk.encode("latin-1")}
            assert client.get(HELLO, headers=headers).status_code == 200
        for number in range(100, 130):
            client.get(HELLO, headers={PROTOCOL_HEADER: str(number)})
    assert len(setting.told()) == 16
