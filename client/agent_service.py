"""The agent's socket: three addresses, one caller.

::

    POST /v1/messages   a message's content in (`shared.wire_frames`), an answer's out
    GET  /v1/status     JSON
    GET  /v1/metrics    Prometheus

The node, which talks to the outside, may open ``agent.sock`` and nothing else of the partner's: it is told there only
what depends on no data. ``operator.sock`` tells the partner's own people more. Both sockets are made with mode 0600
before anybody can connect; systemd may hand the first one in, made for the node's user.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from client.agent_monitor import AgentMonitor
from client.agent_socket import MESSAGES, METRICS, STATUS
from client.intake.commit import data_version
from client.listening import AGENT_SOCKET, OPERATOR_SOCKET, handed_socket, private_socket
from client.premises import Premises
from client.resident import ResidentAgent

LARGEST_MESSAGE = 256 * 2**20
"""Bytes. What is larger is refused, and not kept while it is read: a prior of 3,000 items is 36 MB."""
READ_S = 30.0
"""For a whole message to arrive from a process on this machine."""
Endpoint = Callable[[Request], Awaitable[Response]]


def agent_app(agent: ResidentAgent, monitor: AgentMonitor, operator: Path) -> Starlette:
    """The three addresses.

    Parameters
    ----------
    agent : ResidentAgent
    monitor : AgentMonitor
    operator : Path
        The socket whose callers are the partner's own people.
    """

    def is_operator(request: Request) -> bool:
        return bool(request.scope["server"][0] == str(operator))

    turn = asyncio.Lock()

    async def messages(request: Request) -> Response:
        async with turn:  # one message is in memory at a time, however many are begun
            try:
                frame = await _frame(request)
            except TimeoutError:
                return JSONResponse({"error": f"Expected a message within {READ_S:g} s."}, status_code=408)
            if frame is None:
                monitor.refused("ProtocolError")
                return JSONResponse({"error": f"Expected a message of <= {LARGEST_MESSAGE} bytes."}, status_code=413)
            answer = await run_in_threadpool(agent.answer, frame)
        return Response(answer, media_type="application/octet-stream")

    async def status(request: Request) -> Response:
        tell = monitor.status if is_operator(request) else monitor.public_status
        return JSONResponse(await run_in_threadpool(tell))

    async def metrics(request: Request) -> Response:
        if not is_operator(request):
            return JSONResponse({"error": "Expected the operator's socket."}, status_code=403)
        return Response(await run_in_threadpool(monitor.exposition), media_type="text/plain; version=0.0.4")

    return Starlette(
        routes=[
            Route(MESSAGES, messages, methods=["POST"]),
            Route(STATUS, status, methods=["GET"]),
            Route(METRICS, metrics, methods=["GET"]),
        ]
    )


async def _frame(request: Request) -> bytes | None:
    """The body of a request; None if it is too large: it is then read to its end, so that the caller hears why."""
    frame, size = bytearray(), 0
    async with asyncio.timeout(READ_S):
        async for part in request.stream():
            size += len(part)
            if size <= LARGEST_MESSAGE:
                frame += part
            else:
                frame.clear()
    return None if size > LARGEST_MESSAGE else bytes(frame)


def serve_agent(folder: Path, device: str = "auto", ready: Callable[[], None] = lambda: None) -> None:
    """Be a partner's agent until a signal ends it.

    Raises
    ------
    ConfigError
        If the folder is not a partner's, or a socket cannot be made.
    """
    premises = Premises.open(folder)
    monitor = AgentMonitor(premises, device=device, data_version=lambda: data_version(agent.premises))
    agent = ResidentAgent(folder, device, monitor)
    sockets = [handed_socket() or private_socket(folder / AGENT_SOCKET), private_socket(folder / OPERATOR_SOCKET)]
    app = agent_app(agent, monitor, folder / OPERATOR_SOCKET)
    config = uvicorn.Config(
        app, log_config=None, access_log=False, lifespan="off", ws="none", timeout_graceful_shutdown=5
    )
    ready()
    uvicorn.Server(config).run(sockets=sockets)
