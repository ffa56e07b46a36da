"""The HTTP application: every route on one page. What a request means is in `client.service.desk`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from client.ranking.store_rows import Event
from client.service.batcher import BusyError
from client.service.desk import Answer
from client.service.guard import MOST_BODY, Guard
from client.service.monitor import Watch
from client.service.questions import add_questions
from client.service.requests import (
    AvailabilityRequest,
    AvailabilityResponse,
    BatchResponse,
    CategoriesResponse,
    EventsRequest,
    EventsResponse,
    Failure,
    ForgetRequest,
    ForgetResponse,
    HeldEvent,
    HistoryRequest,
    HistoryResponse,
    RankBatch,
    RankRequest,
    RankResponse,
    ReleaseInfo,
    ShelfResponse,
)
from client.service.service import Service
from client.service.stand import CATEGORY
from shared.errors import ConfigError, DataError, UnknownUserError, VeilrecError
from shared.schema import EVENT_KINDS

PAGE = Path(__file__).parent / "page"
STATUS: Sequence[tuple[type[VeilrecError], int]] = (
    (BusyError, 503),
    (UnknownUserError, 404),
    (ConfigError, 422),
    (DataError, 422),
    (VeilrecError, 503),
)
FAILURES: dict[int | str, dict[str, Any]] = {
    code: {"model": Failure, "description": text}
    for code, text in {
        400: "Not JSON.",
        401: "No token of this service.",
        404: "Nothing of that name.",
        405: "Not with this method.",
        413: "Too large.",
        422: "Not what was expected.",
        429: "Too many requests.",
        503: "Not now.",
    }.items()
}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


FRESH = {"Cache-Control": "no-cache", "X-Content-Type-Options": "nosniff"}


class _Page(StaticFiles):
    """Asked for anew each time: modules of two versions do not go together."""

    def file_response(self, *told: Any, **more: Any) -> Response:
        """With `FRESH`."""
        response = super().file_response(*told, **more)
        response.headers.update(FRESH)
        return response


def create_app(
    service: Service,
    *,
    tokens: frozenset[bytes] = frozenset(),
    rate: float = 0.0,
    most_body: int = MOST_BODY,
    hosts: Sequence[str] = (),
) -> FastAPI:
    """The application over a running service; whoever opened that closes it.

    Parameters
    ----------
    tokens, rate, most_body
        See `client.service.guard.Guard`.
    hosts : sequence of str
        Names by which the service may be asked for; empty for any.
    """

    app = FastAPI(
        title="Veilrec ranking service",
        summary="Ranks a shop's catalogue for its users, on the shop's own premises.",
        version="1",
        docs_url=None,
        redoc_url=None,
    )
    _add_ranking(app, service)
    _add_keeping(app, service)
    add_questions(app, service, service.batcher.call)
    _add_operations(app, service)
    _add_page(app)
    _add_errors(app)
    if hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False)
    app.add_middleware(Guard, tokens=tokens, rate=rate, most_body=most_body)
    app.add_middleware(Watch, monitor=service.monitor)  # outermost: it sees what the guard refuses
    return app


def _add_ranking(app: FastAPI, service: Service) -> None:
    @app.post("/v1/rank", responses=FAILURES)
    async def rank(request: RankRequest) -> RankResponse:
        """One list."""
        (answer,) = await service.batcher.ask([request])
        return _list(answer)

    @app.post("/v1/rank/batch", responses=FAILURES)
    async def rank_batch(batch: RankBatch) -> BatchResponse:
        """Many lists; what cannot be done for one does not hold up the others."""
        answers = await service.batcher.ask(batch.requests)
        return BatchResponse(lists=tuple(_failure(one) if isinstance(one, VeilrecError) else one for one in answers))


def _add_keeping(app: FastAPI, service: Service) -> None:
    @app.post("/v1/events", responses=FAILURES)
    def events(request: EventsRequest) -> EventsResponse:
        """Keep events of a user. The user's next list knows them: nothing is trained for that."""
        import time

        now = int(time.time())
        told = [
            Event(e.item_id, e.kind, now if e.timestamp is None else e.timestamp, e.rating, e.review)
            for e in request.events
        ]
        kept = service.keep(request.user_id, told)
        service.monitor.events.inc(kept.written)
        return EventsResponse(written=kept.written, unknown_items=kept.unknown)

    @app.post("/v1/users/history", responses=FAILURES)
    def history(request: HistoryRequest) -> HistoryResponse:
        """What is held of a user."""
        return history_of(request.user_id, service)

    @app.post("/v1/users/forget", responses=FAILURES)
    def forget(request: ForgetRequest) -> ForgetResponse:
        """Erase all that is held of a user."""
        return ForgetResponse(erased=service.forget(request.user_id))

    @app.post("/v1/items/availability", responses=FAILURES)
    def availability(request: AvailabilityRequest) -> AvailabilityResponse:
        """Hide items from all lists, or show them again."""
        return AvailabilityResponse(hidden=service.hide(request.item_ids, available=request.available))


def _add_operations(app: FastAPI, service: Service) -> None:
    @app.get("/v1/release", responses=FAILURES)
    def release() -> ReleaseInfo:
        """What is served."""
        return service.desk.stand.info

    @app.get("/v1/releases", responses=FAILURES)
    def releases() -> ShelfResponse:
        """What can be asked for."""
        return service.shelved()

    @app.get("/v1/categories", responses=FAILURES)
    def categories() -> CategoriesResponse:
        """What the catalogue's items are sorted into."""
        return CategoriesResponse(categories=service.desk.stand.facts.kind(CATEGORY).names)

    @app.get("/healthz", responses=FAILURES)
    def healthz() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/readyz", responses=FAILURES)
    def readyz() -> dict[str, str]:
        """Whether lists can be had: a release is served and the store answers."""
        service.check_store()
        return {"status": "ready"}

    @app.get("/metrics", responses=FAILURES, response_class=Response)
    def metrics() -> Response:
        """For Prometheus."""
        service.monitor.waiting.set(service.batcher.waiting)
        return Response(service.monitor.exposition(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_page(app: FastAPI) -> None:
    app.mount("/page", _Page(directory=PAGE), name="page")

    @app.get("/", include_in_schema=False)
    def page() -> FileResponse:
        return FileResponse(PAGE / "index.html", headers={"Content-Security-Policy": POLICY, **FRESH})


def _add_errors(app: FastAPI) -> None:
    def told(_: Request, error: Exception) -> JSONResponse:
        if not isinstance(error, VeilrecError):
            raise AssertionError("another handler's error")
        status = next(code for kind, code in STATUS if isinstance(error, kind))
        headers = {"Retry-After": "1"} if status == 503 else None
        return JSONResponse(_failure(error).model_dump(), status, headers)

    def invalid(_: Request, error: Exception) -> JSONResponse:
        """Where and what, not what was sent."""
        if not isinstance(error, RequestValidationError):
            raise AssertionError("another handler's error")
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if isinstance(part, int) or part.isidentifier())
        return JSONResponse(Failure(error="SchemaError", message=f"{where}: {first['msg']}").model_dump(), 422)

    def refused(_: Request, error: Exception) -> JSONResponse:
        """What the framework refuses: no such route, not that method, not JSON."""
        if not isinstance(error, HTTPException):
            raise AssertionError("another handler's error")
        told = Failure(error="RefusedError", message=str(error.detail))
        return JSONResponse(told.model_dump(), error.status_code, error.headers)

    def unexpected(_: Request, __: Exception) -> JSONResponse:
        return JSONResponse(Failure(error="InternalError", message="See the service's log.").model_dump(), 500)

    handlers: dict[type[Exception], Callable[[Request, Exception], JSONResponse]] = {
        VeilrecError: told,
        RequestValidationError: invalid,
        HTTPException: refused,
        Exception: unexpected,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def history_of(user_id: str, service: Service) -> HistoryResponse:
    """What is held of a user, the newest event first."""
    catalogue = service.desk.stand.engine.catalogue
    held, texts = service.store.history(user_id, catalogue)
    events = tuple(
        HeldEvent(
            item_id=catalogue.item_ids[held.items[k]],
            title=catalogue.titles[held.items[k]],
            kind=EVENT_KINDS[held.events[k]],
            timestamp=int(held.timestamps[k]),
            rating=None if np.isnan(held.ratings[k]) else float(held.ratings[k]),
            review=texts[held.reviews[k]] if held.reviews[k] >= 0 else "",
        )
        for k in reversed(range(len(held)))
    )
    return HistoryResponse(events=events)


def _list(answer: Answer) -> RankResponse:
    if isinstance(answer, VeilrecError):
        raise answer
    return answer


def _failure(error: VeilrecError) -> Failure:
    return Failure(error=error.wire_name, message=str(error))
