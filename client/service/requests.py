"""What the service is asked and answers, as the schema that its OpenAPI document tells."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from client.ranking.rerank import RerankSettings
from shared.schema import EVENT_KINDS

MOST_EVENTS, MOST_SESSION, MOST_REQUESTS, MOST_ITEMS = 1000, 100, 1000, 1000
UserId = Annotated[str, Field(min_length=1, max_length=256, description="The partner's own name of a user.")]
ItemId = Annotated[str, Field(min_length=1, max_length=256)]
Words = Annotated[str, Field(min_length=1, max_length=2000, description="What somebody wants, in words.")]
Length = Annotated[int, Field(ge=1, le=MOST_ITEMS, strict=True)]
Switch = Annotated[bool, Field(strict=True)]
Kind = Literal["view", "cart", "purchase", "rating", "review", "checkin", "tip", "query", "other"]
Basis = Literal["history", "query", "history and query", "popularity"]

if Kind.__args__ != EVENT_KINDS:  # type: ignore[attr-defined]
    raise AssertionError("the kinds of event in the schema are not those of the model")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class EventIn(_Model):
    """One event."""

    item_id: ItemId
    kind: Kind = "view"
    timestamp: int | None = Field(default=None, strict=True, ge=0, le=2**53, description="UTC seconds; by default now.")
    rating: float | None = Field(default=None, strict=True, ge=-1e6, le=1e6)
    review: str = Field(default="", max_length=10_000, description="The user's own words; they stay here.")


class EventsRequest(_Model):
    """Events of one user; the user's next list knows them."""

    user_id: UserId
    events: tuple[EventIn, ...] = Field(min_length=1, max_length=MOST_EVENTS)


class EventsResponse(_Model):
    """What became of them."""

    written: int = Field(description="New or changed.")
    unknown_items: int = Field(description="Kept, and read as soon as the catalogue has their items.")


class ForgetRequest(_Model):
    """A user to forget."""

    user_id: UserId


class ForgetResponse(_Model):
    """What was erased."""

    erased: int


class RankRequest(_Model):
    """A list for a user, for a session without one, for a wish in words, or for a user with a wish.

    Whoever is not known and asks for nothing gets what is popular.
    """

    user_id: UserId | None = None
    events: tuple[EventIn, ...] = Field(
        default=(), max_length=MOST_SESSION, description="Of this session, after what is held of the user; not kept."
    )
    query: Words | None = None
    k: Length = 10
    categories: tuple[ItemId, ...] = Field(default=(), max_length=100, description="Only items in one of these.")
    rerank: RerankSettings = RerankSettings()
    explain: Switch = False
    words: Switch = Field(default=False, description="Also which words moved an explained item; it takes a second.")
    release: int | None = Field(
        strict=True, default=None, ge=1, le=2**53, description="A version on the shelf; by default the one served."
    )


class RankBatch(_Model):
    """Many lists at once."""

    requests: tuple[RankRequest, ...] = Field(
        min_length=1, max_length=MOST_REQUESTS, description="At most 100 of them explained, 10 by words."
    )

    @model_validator(mode="after")
    def _leaves_time_for_others(self) -> Self:
        if sum(one.explain for one in self.requests) > 100 or sum(one.words for one in self.requests) > 10:
            raise ValueError("Expected at most 100 explained lists in a batch, 10 of them by words.")
        return self


class Reason(_Model):
    """A thing of the history and what it did to the score."""

    item_id: str
    title: str
    kinds: tuple[str, ...]
    effect: float = Field(description="How much lower the score were without it.")


class Word(_Model):
    """A word of a title, a review or the query, and what it did to the score."""

    word: str
    source: Literal["title", "review", "query"]
    effect: float = Field(description="How much lower the score were without it.")


class Ranked(_Model):
    """One place of a list."""

    rank: int
    item_id: str
    title: str
    score: float | None = Field(description="Null for an item that a rule put there.")
    reason: str = ""
    because: tuple[Reason, ...] = ()
    words: tuple[Word, ...] = ()


class ReleaseInfo(_Model):
    """The release that answered."""

    version: int
    fingerprint: str
    privacy: str = Field(description="Mode, epsilon and delta as the release says them.")
    signed: bool = Field(description="Whether a trusted key's signature was checked.")
    personal: bool = Field(default=False, description="Whether the partner's own part was added.")


class RankResponse(_Model):
    """A list."""

    items: tuple[Ranked, ...]
    basis: Basis
    release: int = Field(description="Version.")


class Failure(_Model):
    """What could not be done. It never holds what was asked."""

    error: str = Field(description="The family of the error.")
    message: str


class BatchResponse(_Model):
    """Lists in the order of the requests."""

    lists: tuple[RankResponse | Failure, ...]


class HistoryRequest(_Model):
    """Whose history is asked for."""

    user_id: UserId


class HeldEvent(_Model):
    """An event that is held."""

    item_id: str
    title: str
    kind: str
    timestamp: int
    rating: float | None
    review: str


class HistoryResponse(_Model):
    """What is held of a user, the newest first: for the partner's own people."""

    events: tuple[HeldEvent, ...]


class ShelfResponse(_Model):
    """Releases that can be asked for by version."""

    served: ReleaseInfo
    versions: tuple[int, ...] = Field(description="All that verify, the newest first.")
    refused: int


class CategoriesResponse(_Model):
    """Names that `categories` may hold."""

    categories: tuple[str, ...]


class AvailabilityRequest(_Model):
    """Items that may no longer, or may again, be shown."""

    item_ids: tuple[ItemId, ...] = Field(min_length=1, max_length=10_000)
    available: Switch


class AvailabilityResponse(_Model):
    """How many of the catalogue's items are hidden now."""

    hidden: int
