"""The coordinator's public door: Flower's Fleet interface, and nothing else of the SuperLink.

A SuperLink of Flower 1.41 serves nodes, operators and its own processes on one port, and whoever reaches its control
interface may start code and enrol nodes. So the SuperLink listens on loopback, and this gate, which alone is open to
the outside, hands on what a node needs. TLS ends here; to the SuperLink it is spoken anew. Who a node is, is proved by
its signature, which the SuperLink checks.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import AsyncIterator, Mapping
from importlib.metadata import version
from typing import Protocol

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from shared.errors import VersionMismatchError
from shared.logs import Log
from shared.wire_frames import PROTOCOL

HELLO, FLEET = "/v1/hello", "/v1/fleet"
PROTOCOL_HEADER = "veilrec-protocol"
CALLS = (
    "activate-node",
    "deactivate-node",
    "send-node-heartbeat",
    "pull-messages",
    "push-messages",
    "get-run",
    "get-fab",
    "pull-object",
    "push-object",
    "confirm-message-received",
)
"""What a node that was registered calls. ``register-node`` is not among them: partners are enrolled by people."""
LARGEST_BODY = 32 * 2**20
"""Bytes of one request. Flower cuts arrays into pieces of 5 MiB."""
NODE_KEY = "flwr-public-key"
HOP_BY_HOP = frozenset({"connection", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"})
TIMEOUT_S = 60.0
_UPGRADE, _GONE = 426, 499
_MOST_TOLD = 16


class Watcher(Protocol):
    """Who counts what passes (`server.monitor.CoordinatorMonitor`)."""

    def seen(self, path: str, status: int, bytes_in: int, bytes_out: int, partner: str = "") -> None:
        """A request was answered."""


class Gate:
    """Hands requests on to the SuperLink.

    Parameters
    ----------
    superlink : str
        ``HOST:PORT`` on loopback.
    authority : Path or str
        File of the CA that signed the SuperLink's certificate.
    watcher : Watcher
    log : Log, optional
    """

    def __init__(self, superlink: str, authority: str, watcher: Watcher, log: Log | None = None) -> None:
        self._base, self._watcher, self._log = f"https://{superlink}", watcher, log or Log(None)
        context = ssl.create_default_context(cafile=authority)
        limits = httpx.Limits(max_connections=200, max_keepalive_connections=50)
        # Not by a proxy that the machine's environment names: this is the way to itself.
        self._client = httpx.AsyncClient(verify=context, timeout=TIMEOUT_S, limits=limits, trust_env=False)
        self.partners: Mapping[str, str] = {}
        """Names by node key, base64 of its PEM form, as far as they are known: for the count of bytes alone."""
        self._others: set[int] = set()
        self._versions = {"veilrec": version("veilrec"), "flower": version("flwr"), "protocol": PROTOCOL}

    def app(self) -> Starlette:
        """The gate as an ASGI application."""
        calls = [Route(f"{FLEET}/{call}", self._hand_on, methods=["POST"]) for call in CALLS]
        return Starlette(routes=[Route(HELLO, self._hello, methods=["GET"]), *calls])

    async def close(self) -> None:
        """Close the connections to the SuperLink."""
        await self._client.aclose()

    async def _hello(self, request: Request) -> Response:
        """Who this is; a node says which protocol it speaks, so that both sides hear of a mismatch."""
        spoken = request.headers.get(PROTOCOL_HEADER, "")
        if spoken.isascii() and spoken.isdigit() and len(spoken) < 6 and int(spoken) != PROTOCOL:
            self._tell_other(int(spoken))
            self._watcher.seen(HELLO, _UPGRADE, 0, 0)
            return JSONResponse(self._versions, _UPGRADE)
        return JSONResponse(self._versions)

    def _tell_other(self, spoken: int) -> None:
        """Once for each, and not for ever: anybody can say hello."""
        if spoken not in self._others and len(self._others) < _MOST_TOLD:
            self._others.add(spoken)
            why = f"Expected a node with protocol={PROTOCOL}, got {spoken}: install one version."
            self._log.trouble(VersionMismatchError(why), "refused", level="warning")

    async def _hand_on(self, request: Request) -> Response:
        took = _Taken(request)
        if int(request.headers.get("content-length", 0)) > LARGEST_BODY:
            return self._refused(request, took, 413, f"Expected a body of <= {LARGEST_BODY} bytes.")
        headers = [(k, v) for k, v in request.headers.items() if k not in HOP_BY_HOP]
        asked = self._client.build_request(
            request.method, self._base + request.scope["path"], headers=headers, content=took.parts()
        )
        try:
            answer = await self._client.send(asked, stream=True)
        except _TooLargeError:
            return self._refused(request, took, 413, f"Expected a body of <= {LARGEST_BODY} bytes.")
        except ClientDisconnect:  # nobody hears this answer, but it is counted
            return self._refused(request, took, _GONE, "Expected the whole request.")
        except httpx.HTTPError:
            # The SuperLink is being started again: nodes try anew by themselves.
            return self._refused(request, took, 503, "Expected the SuperLink, it does not answer.")
        given = _Given(answer)

        async def done() -> None:
            await answer.aclose()
            partner = self.partners.get(request.headers.get(NODE_KEY, ""), "")
            self._watcher.seen(request.scope["path"], answer.status_code, took.size, given.size, partner)

        kept = {k: v for k, v in answer.headers.items() if k not in HOP_BY_HOP}
        return StreamingResponse(given.parts(), answer.status_code, kept, background=BackgroundTask(done))

    def _refused(self, request: Request, took: _Taken, status: int, why: str) -> Response:
        self._watcher.seen(request.scope["path"], status, took.size, 0)
        return PlainTextResponse(why, status, {"connection": "close"})  # else what is still to come is read for ever


def key_header(pem: bytes) -> str:
    """A node's public key as its requests bear it."""
    return base64.b64encode(pem).decode("ascii")


class _TooLargeError(Exception):
    """A body went on beyond `LARGEST_BODY` without having said so."""


class _Taken:
    """The body of a request, counted on its way."""

    def __init__(self, request: Request) -> None:
        self._request, self.size = request, 0

    async def parts(self) -> AsyncIterator[bytes]:
        async for part in self._request.stream():
            self.size += len(part)
            if self.size > LARGEST_BODY:
                raise _TooLargeError
            yield part


class _Given:
    """The body of an answer, counted on its way."""

    def __init__(self, answer: httpx.Response) -> None:
        self._answer, self.size = answer, 0

    async def parts(self) -> AsyncIterator[bytes]:
        async for part in self._answer.aiter_raw():
            self.size += len(part)
            yield part
