"""What is written to the gate by hand, against all rules of HTTP, reaches nothing but a node's calls either."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path

from link_setting import Authority, served
from starlette.applications import Starlette
from starlette.requests import Request as StarletteRequest
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from server.gate import Gate


class Silent:
    """Counts nothing."""

    def seen(self, path: str, status: int, bytes_in: int, bytes_out: int, partner: str = "") -> None: ...


def test_no_request_to_the_superlink_is_smuggled_through_the_gate(tmp_path: Path) -> None:
    """Lengths that contradict each other, names of hosts with paths in them, paths with paths in them."""
    authority, reached = Authority.make(tmp_path), list[tuple[str, bytes]]()

    async def note(request: StarletteRequest) -> PlainTextResponse:
        reached.append((request.scope["path"], await request.body()))
        return PlainTextResponse("ok")

    link = Starlette(routes=[Route("/{path:path}", note, methods=["GET", "POST"])])
    inner = b"POST /v1/control/start-run HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n"
    call = b"POST /v1/fleet/get-run HTTP/1.1\r\n"
    chunked, length = b"Transfer-Encoding: chunked\r\n", b"Content-Length: %d\r\n"
    whole = b"%x\r\n%s\r\n0\r\n\r\n" % (len(inner), inner)
    attacks = [
        call + b"Host: a\r\n" + chunked + length % 4 + b"\r\n" + whole,
        call + b"Host: a\r\n" + length % 4 + chunked + b"\r\n" + whole,
        call + b"Host: a\r\n" + length % 0 + length % len(inner) + b"\r\n" + inner,
        call + b"Host: a\r\n" + b"Transfer-Encoding: x, chunked\r\n" + length % 0 + b"\r\n" + inner,
        call + b"Host: a\r\nConnection: content-length\r\n" + length % len(inner) + b"\r\n" + inner,
        call + b"Host: a/v1/control/start-run?\r\n" + length % 0 + b"\r\n",
        b"POST /v1/fleet/get-run/../../control/start-run HTTP/1.1\r\nHost: a\r\n" + length % 0 + b"\r\n",
        b"POST /v1/fleet/get-run%2f..%2f..%2fcontrol HTTP/1.1\r\nHost: a\r\n" + length % 0 + b"\r\n",
        b"POST https://a/v1/control/start-run HTTP/1.1\r\nHost: a\r\n" + length % 0 + b"\r\n",
        b"POST //v1/control/start-run HTTP/1.1\r\nHost: a\r\n" + length % 0 + b"\r\n",
    ]
    with ExitStack() as ended:
        upstream = ended.enter_context(served(link, authority))
        gate = Gate(f"127.0.0.1:{upstream}", str(authority.certificate), Silent())
        port = ended.enter_context(served(gate.app()))
        for attack in attacks:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as made:
                made.sendall(attack)
                made.shutdown(socket.SHUT_WR)
                while made.recv(65536):
                    pass
    assert {path for path, _ in reached} <= {"/v1/fleet/get-run"}
    assert reached  # some of them are whole requests all the same
