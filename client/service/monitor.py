"""What the service tells of itself: Prometheus metrics and one JSON line a request. No user's id, text or list.

Routes are named as the schema has them, never as they were asked for: a path may hold anything.
"""

from __future__ import annotations

import sys
import time
from typing import TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from shared.logs import Log

SECONDS = (0.002, 0.005, 0.01, 0.015, 0.025, 0.04, 0.06, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 1024)


class Monitor:
    """Metrics and logs of one service.

    Parameters
    ----------
    log : text stream, optional
        One JSON document a line; None for no logs.
    """

    def __init__(self, log: TextIO | None = sys.stderr) -> None:
        self.log = Log(log)
        self.tell, self.trouble = self.log.tell, self.log.trouble
        self.registry = CollectorRegistry()
        self.requests = Counter("veilrec_requests", "Requests.", ["route", "status"], registry=self.registry)
        self.seconds = Histogram(
            "veilrec_request_seconds", "Time of a request.", ["route"], buckets=SECONDS, registry=self.registry
        )
        self.batches = Histogram(
            "veilrec_batch_size", "Requests ranked at once.", buckets=BATCHES, registry=self.registry
        )
        self.waiting = Gauge("veilrec_waiting", "Callers that wait for the device.", registry=self.registry)
        self.version = Gauge("veilrec_release_version", "The release that is served.", registry=self.registry)
        self.refused = Gauge(
            "veilrec_releases_refused", "Folders on the shelf that were refused.", registry=self.registry
        )
        self.events = Counter("veilrec_events", "Events that were written.", registry=self.registry)

    def exposition(self) -> bytes:
        """The metrics as Prometheus reads them."""
        return generate_latest(self.registry)


class Watch:
    """ASGI middleware that times every request."""

    def __init__(self, app: ASGIApp, monitor: Monitor) -> None:
        self._app, self._monitor = app, monitor

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count and log one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.perf_counter(), 500

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            self._monitor.trouble(error)
            raise
        finally:
            seconds, route = time.perf_counter() - began, _route(scope)
            self._monitor.requests.labels(route, str(status)).inc()
            self._monitor.seconds.labels(route).observe(seconds)
            self._monitor.tell("request", route=route, status=status, ms=round(1000 * seconds, 2))


def _route(scope: Scope) -> str:
    route = scope.get("route")
    return str(getattr(route, "path", "none"))
