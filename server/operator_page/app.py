"""The application: a page, its status as JSON, metrics. It only reads; nothing can be changed by it.

It is bound to this machine (``veilrec server run`` sees to that), and it answers to this machine's own names alone: a
web page elsewhere could have its own name resolve to this machine (DNS rebinding) and read the status with it.
"""

from __future__ import annotations

import json
from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.monitor import CoordinatorMonitor
from server.operator_page.render import page_of

ASSETS = Path(__file__).parent / "assets"
OWN_NAMES = ("localhost", "127.0.0.1", "[")
"""As a Host header begins with them; an IPv6 address, with its bracket, is no name that could be made to resolve."""
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


def operator_app(monitor: CoordinatorMonitor) -> Starlette:
    """The page of one coordinator: ``/``, ``/status.json``, ``/metrics``, ``/healthz``.

    Parameters
    ----------
    monitor : CoordinatorMonitor

    Returns
    -------
    Starlette
        To be listened with on loopback alone: who can reach it is not asked for a password.
    """

    async def page(_: Request) -> Response:
        return HTMLResponse(page_of(await run_in_threadpool(monitor.status)))

    async def status(_: Request) -> Response:
        told = json.dumps(await run_in_threadpool(monitor.status), allow_nan=False)
        return Response(told, media_type="application/json")

    async def metrics(_: Request) -> Response:
        return Response(await run_in_threadpool(monitor.exposition), media_type=PROMETHEUS)

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    routes = [
        Route("/", page),
        Route("/status.json", status),
        Route("/metrics", metrics),
        Route("/healthz", healthz),
        Mount("/assets", StaticFiles(directory=ASSETS)),
    ]
    guards = [
        Middleware(_Headers),  # outermost: refusals have them too
        Middleware(TrustedHostMiddleware, allowed_hosts=list(OWN_NAMES), www_redirect=False),
    ]
    return Starlette(routes=routes, middleware=guards)


class _Headers:
    """ASGI middleware that puts `HEADERS` on every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [(name, value) for name, value in message["headers"] if name.decode() not in HEADERS]
                message["headers"] = [*own, *((name.encode(), value.encode()) for name, value in HEADERS.items())]
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)
