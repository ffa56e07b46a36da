"""Routes of the questions beside ranking: interests, similar items, similar users, audiences.

The store knows users by pseudonym alone, and so does what is computed here. Who asks about a crowd brings the user ids
to look among, and is told ids that they brought: nobody learns of a user whom they did not know of, no pseudonym leaves
the service (it would be a name that stays, by which answers of different days could be joined), and there is no table
from pseudonyms back to people.

A crowd is read in slices, so that lists which are asked for meanwhile wait for one slice at most.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Protocol, TypeVar

import numpy as np
from anyio import to_thread
from fastapi import FastAPI
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

from client.ranking.audience import Wanting
from client.ranking.interests import Interest
from client.ranking.questions import Questions
from client.service.requests import Failure, ItemId, UserId, Words
from client.service.service import Service
from client.service.stand import CATEGORY, Stand
from shared.errors import ConfigError, UnknownUserError
from shared.schema import Histories

MOST_CROWD, MOST_OFFERED, MOST_TOLD, SLICE = 50_000, 100, 1000, 256
T = TypeVar("T")
Few = Annotated[int, Field(ge=1, le=100, strict=True)]
Many = Annotated[int, Field(ge=1, le=MOST_TOLD, strict=True)]
Crowd = Annotated[tuple[UserId, ...], Field(min_length=1, max_length=MOST_CROWD)]
Categories = Annotated[tuple[ItemId, ...], Field(max_length=100, description="Only items in one of these.")]
FAILURES: dict[int | str, dict[str, object]] = {
    code: {"model": Failure} for code in (400, 401, 404, 413, 422, 429, 503)
}


class OnDevice(Protocol):
    """Runs work in the one thread that owns the device."""

    def __call__(self, work: Callable[[], T], /) -> Awaitable[T]:
        """The result of `work`, or its error."""
        ...


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class InterestsRequest(_Model):
    """Of a user, of a wish in words, or of both; without either, what is usual."""

    user_id: UserId | None = None
    query: Words | None = None
    kind: ItemId = Field(default=CATEGORY, description="category, word, or cluster.")
    n: Few = 5


class InterestOut(_Model):
    """A group of items."""

    kind: str
    name: str
    probability: float = Field(description="That the next item is of it.")
    lift: float = Field(description="How many times as probable as for somebody of whom nothing is known.")
    items: tuple[str, ...] = Field(description="Most probable items of it that the user has not met.")


class InterestsResponse(_Model):
    """Interests add up to 1 with `other`; attributes may overlap."""

    interests: tuple[InterestOut, ...]
    other: float
    attributes: tuple[InterestOut, ...] = Field(description="Of all kinds, by what they tell of this user.")
    known: bool = Field(description="Whether anything is held of the user.")


class SimilarItemsRequest(_Model):
    """Items like one of the catalogue's."""

    item_id: ItemId
    n: Few = 10
    categories: Categories = ()


class SimilarItem(_Model):
    """One of them."""

    item_id: str
    title: str
    score: float


class SimilarItemsResponse(_Model):
    """The most alike first."""

    items: tuple[SimilarItem, ...]


class SimilarUsersRequest(_Model):
    """Users like one, out of those named."""

    user_id: UserId
    among: Crowd
    n: Many = 10


class SimilarUser(_Model):
    """One of them."""

    user_id: str
    likeness: float = Field(description="Cosine of what the two want, beyond what everybody wants.")


class SimilarUsersResponse(_Model):
    """The most alike first."""

    users: tuple[SimilarUser, ...]
    unknown: int = Field(description="Of those named, users of whom nothing is held.")


class AudienceRequest(_Model):
    """An offer, of items or in words, and the users to choose from."""

    item_ids: Annotated[tuple[ItemId, ...], Field(max_length=MOST_OFFERED)] = ()
    query: Words | None = None
    among: Crowd
    n: Many = 100

    @model_validator(mode="after")
    def _one_offer(self) -> AudienceRequest:
        if bool(self.item_ids) == (self.query is not None):
            raise ValueError("Expected either item_ids or query.")
        return self


class AudienceMember(_Model):
    """One user."""

    user_id: str
    probability: float = Field(description="Of an offered item to be their next one; mean over those not met.")
    rank: int = Field(description="Place of the best such item in the user's own list.")


class AudienceResponse(_Model):
    """Who wants it most first."""

    users: tuple[AudienceMember, ...]
    has_it: int = Field(description="Left out: they have met all of the offer.")
    unknown: int = Field(description="Of those named, users of whom nothing is held.")
    offer: tuple[str, ...] = Field(description="Ids of the items that were offered.")


def add_questions(app: FastAPI, service: Service, on_device: OnDevice) -> None:
    """Add the routes.

    Parameters
    ----------
    on_device : callable
        Runs a function where the ranking runs, between two batches of it.
    """
    desk = _Desk(service, on_device)

    @app.post("/v1/users/interests", responses=FAILURES)
    async def interests(request: InterestsRequest) -> InterestsResponse:
        """What a user, or a wish, is after."""
        return await desk.interests(request)

    @app.post("/v1/items/similar", responses=FAILURES)
    async def similar_items(request: SimilarItemsRequest) -> SimilarItemsResponse:
        """What is like an item."""
        return await on_device(lambda: desk.similar_items(request))

    @app.post("/v1/users/similar", responses=FAILURES)
    async def similar_users(request: SimilarUsersRequest) -> SimilarUsersResponse:
        """Who is like a user."""
        return await desk.similar_users(request)

    @app.post("/v1/audience", responses=FAILURES)
    async def audience(request: AudienceRequest) -> AudienceResponse:
        """Whom to show an offer."""
        return await desk.audience(request)


class _Desk:
    """Questions of the release that is served, in the shop's ids."""

    def __init__(self, service: Service, on_device: OnDevice) -> None:
        self._service, self._on_device = service, on_device
        self._stand: Stand | None = None
        self._ready: Questions | None = None

    def _questions(self, stand: Stand) -> Questions:
        """Those of a stand; made anew for a new release. In the device thread alone."""
        if self._ready is None or self._stand is not stand:
            self._stand, self._ready = stand, Questions(stand.engine, stand.facts)
        return self._ready

    async def interests(self, request: InterestsRequest) -> InterestsResponse:
        stand = self._service.desk.stand
        held = await self._held(stand, [request.user_id] if request.user_id is not None else [])
        return await self._on_device(lambda: self._interests(stand, held, request))

    def _interests(self, stand: Stand, held: Histories, request: InterestsRequest) -> InterestsResponse:
        questions, wish = self._questions(stand), request.query or ""
        maker = stand.engine.maker(held) if len(held) else None
        shown = self._shown(stand, ())
        found = questions.interests(maker, 0, request.n, wish=wish, kind=request.kind, shown=shown)
        told = questions.attributes(maker, 0, request.n, wish=wish, shown=shown)
        ids = stand.engine.catalogue.item_ids
        return InterestsResponse(
            interests=tuple(_out(one, ids) for one in found.found),
            other=found.other,
            attributes=tuple(_out(one, ids) for one in told),
            known=maker is not None,
        )

    def similar_items(self, request: SimilarItemsRequest) -> SimilarItemsResponse:
        stand = self._service.desk.stand
        catalogue = stand.engine.catalogue
        (row,) = _rows(stand, (request.item_id,))
        shown = self._shown(stand, request.categories)
        rows, scores = self._questions(stand).similar_items(int(row), request.n, shown)
        return SimilarItemsResponse(
            items=tuple(
                SimilarItem(item_id=catalogue.item_ids[k], title=catalogue.titles[k], score=float(score))
                for k, score in zip(rows, scores, strict=True)
            )
        )

    async def similar_users(self, request: SimilarUsersRequest) -> SimilarUsersResponse:
        stand = self._service.desk.stand
        own = await self._held(stand, [request.user_id])
        if not len(own):
            raise UnknownUserError("Expected a user of the store: nothing is held of this one.")
        me = await self._vectors(stand, own)
        crowd = self._different(request.among, but=request.user_id)
        ids: list[str] = []
        vectors = [np.zeros((0, me.shape[1]), dtype=np.float32)]
        for some in _slices(crowd):
            held = await self._held(stand, some)
            ids += self._named(held, some)
            vectors.append(await self._vectors(stand, held))
        find = lambda: self._questions(stand).similar_users(me, np.concatenate(vectors), request.n)  # noqa: E731
        places, cosines = await self._on_device(find)
        users = tuple(
            SimilarUser(user_id=ids[place], likeness=float(cosine))
            for place, cosine in zip(places[0], cosines[0], strict=True)
        )
        return SimilarUsersResponse(users=users, unknown=len(crowd) - len(ids))

    async def audience(self, request: AudienceRequest) -> AudienceResponse:
        stand = self._service.desk.stand
        rows = await self._on_device(lambda: self._offer(stand, request))
        crowd = self._different(request.among)
        ids: list[str] = []
        found: list[Wanting] = []
        for some in _slices(crowd):
            held = await self._held(stand, some)
            if len(held):
                ids += self._named(held, some)
                found.append(await self._wanting(stand, held, rows))
        users, has = _chosen(ids, found, request.n)
        offer = tuple(stand.engine.catalogue.item_ids[row] for row in rows)
        return AudienceResponse(users=users, has_it=has, unknown=len(crowd) - len(ids), offer=offer)

    def _offer(self, stand: Stand, request: AudienceRequest) -> NDArray[np.int64]:
        if request.query is not None:
            return self._questions(stand).offer(request.query, self._shown(stand, ()))
        return _rows(stand, tuple(dict.fromkeys(request.item_ids)))

    def _wanting(self, stand: Stand, held: Histories, rows: NDArray[np.int64]) -> Awaitable[Wanting]:
        def work() -> Wanting:
            return self._questions(stand).audience(stand.engine.maker(held), np.arange(len(held)), rows)

        return self._on_device(work)

    def _vectors(self, stand: Stand, held: Histories) -> Awaitable[NDArray[np.float32]]:
        def work() -> NDArray[np.float32]:
            return self._questions(stand).tastes.vectors(stand.engine.maker(held), np.arange(len(held)))

        return self._on_device(work)

    async def _held(self, stand: Stand, ids: Sequence[str]) -> Histories:
        """What is held of users; the store is read in another thread, so that nothing waits for it."""
        return await to_thread.run_sync(lambda: self._service.store.histories(ids, stand.engine.catalogue))

    def _named(self, held: Histories, ids: Sequence[str]) -> list[str]:
        """The ids that the caller brought, in the order of the histories."""
        brought = {self._service.store.pseudonym(user): user for user in ids}
        return [brought[pseudonym] for pseudonym in held.users]

    def _different(self, ids: Sequence[str], but: str | None = None) -> list[str]:
        """One id for each person, whatever blanks stand around it; without one of them."""
        people = {self._service.store.pseudonym(user): user for user in reversed(ids)}
        if but is not None:
            people.pop(self._service.store.pseudonym(but), None)
        return list(people.values())

    def _shown(self, stand: Stand, categories: tuple[str, ...]) -> NDArray[np.bool_]:
        shown = stand.inside(categories) if categories else np.ones(len(stand.facts), dtype=bool)
        rows = stand.engine.catalogue.rows
        shown[[rows[item_id] for item_id in self._service.desk.hidden if item_id in rows]] = False
        return shown


def _chosen(ids: Sequence[str], found: Sequence[Wanting], n: int) -> tuple[tuple[AudienceMember, ...], int]:
    """The best `n` of all slices, and how many have the offer."""
    if not found:
        return (), 0
    whole = Wanting(
        np.concatenate([one.probability for one in found]),
        np.concatenate([one.rank for one in found]),
        np.concatenate([one.has for one in found]),
    )
    users = tuple(
        AudienceMember(user_id=ids[k], probability=float(whole.probability[k]), rank=int(whole.rank[k]))
        for k in whole.order()[:n]
    )
    return users, int(whole.has.sum())


def _rows(stand: Stand, item_ids: tuple[str, ...]) -> NDArray[np.int64]:
    known = stand.engine.catalogue.rows
    missing = sum(item_id not in known for item_id in item_ids)
    if missing:
        raise ConfigError(f"Expected items of the catalogue, got unknown={missing} of items={len(item_ids)}.")
    return np.array([known[item_id] for item_id in item_ids], dtype=np.int64)


def _slices(crowd: Sequence[str]) -> list[Sequence[str]]:
    return [crowd[start : start + SLICE] for start in range(0, len(crowd), SLICE)]


def _out(one: Interest, ids: Sequence[str]) -> InterestOut:
    items = tuple(ids[row] for row in one.rows)
    return InterestOut(kind=one.kind, name=one.name, probability=one.probability, lift=one.lift, items=items)
