"""The embedded marketplace: a deterministic, believable shop with several partners.

::

    config -> goods ----------------------------> catalogue
           -> partners -> people -> tastes -> visits -> choices -> outcomes -> events, reviews

An item is a kind of product with a look, users, an occasion, a price level and a brand, and its text says
so. A person likes some of these more than others, belongs to a type that turns into another type over
time, visits in sessions, and tends to buy what goes with what they have just seen. Reviews give away
more of the person than the item does. Everything follows from the seed: the same configuration gives
the same bytes, and person k is the same in a shop with more people.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from shared.errors import ConfigError
from shared.schema import EVENT_KINDS
from simulations.marketplace_behaviour import Choices, Outcomes, decide, walk
from simulations.marketplace_catalogue import KINDS, Goods, draw_goods, item_ids, items_frame
from simulations.marketplace_people import Crowd, Draws, Ints, Visits, draw_partners, gather
from simulations.marketplace_reviews import Subject, write_review

MAX_EVENTS = 200
"""Events of a person; whoever has more keeps the first."""
OPENED = 1_672_617_600
"""When the shop opened: 2 January 2023, 00:00 UTC."""
_DAY = 86_400
_VIEW, _CART, _PURCHASE, _RATING, _REVIEW = map(EVENT_KINDS.index, ("view", "cart", "purchase", "rating", "review"))
_ROW_GROUP = 100_000


@dataclass(frozen=True, slots=True)
class MarketplaceConfig:
    """Size and make of a shop.

    Parameters
    ----------
    users : int
        People, at least 1.
    items : int
        Products, at least two of every kind on average.
    partners : int
        Shops that share the catalogue, at least 1.
    seed : int
        Not negative; decides everything else.
    days : int
        Time span, at least 30.
    shared_users : float
        Fraction of people who shop at two partners.

    Raises
    ------
    ConfigError
        If a value is out of its range.
    """

    users: int = 3000
    items: int = 600
    partners: int = 4
    seed: int = 0
    days: int = 548
    shared_users: float = 0.12

    def __post_init__(self) -> None:
        lowest = {"users": 1, "items": 2 * len(KINDS), "partners": 1, "seed": 0, "days": 30}
        for name, least in lowest.items():
            if getattr(self, name) < least:
                raise ConfigError(f"Expected {name}={least} or more, got {getattr(self, name)}.")
        if not 0 <= self.shared_users <= 1:
            raise ConfigError(f"Expected shared_users between 0 and 1, got {self.shared_users}.")


def catalogue(config: MarketplaceConfig) -> pl.DataFrame:
    """The public items: columns item_id, title, text, categories; does not depend on the users."""
    return items_frame(draw_goods(config.items, config.seed), config.seed)


def generate(config: MarketplaceConfig) -> tuple[pl.DataFrame, pl.DataFrame]:
    """All interactions (as of `stream`) and the items, in memory."""
    return pl.concat(list(stream(config))), catalogue(config)


def stream(config: MarketplaceConfig, chunk_users: int = 2000) -> Iterator[pl.DataFrame]:
    """Yield the interactions of `chunk_users` people at a time; memory does not grow with the users.

    Yields
    ------
    polars.DataFrame
        user_id, item_id str, timestamp i64 (UTC seconds), event str, rating f64 (null but for ratings and
        reviews), review str, partner i32; by user, then time. The chunk size changes no row.
    """
    if chunk_users < 1:
        raise ConfigError(f"Expected chunk_users=1 or more, got {chunk_users}.")
    goods, partners = draw_goods(config.items, config.seed), draw_partners(config.partners, config.seed)
    ids = pl.Series("item_id", item_ids(config.items))
    for first in range(0, config.users, chunk_users):
        users = range(first, min(first + chunk_users, config.users))
        crowd = gather(users, config.seed, partners, config.days, config.shared_users)
        choices = walk(goods, partners, crowd)
        outcomes = decide(goods, crowd, choices)
        events = _events(config.days, crowd, outcomes)
        deeds = _Deeds(crowd, choices, outcomes, events)
        yield _frame(users, ids, deeds, _reviews(goods, deeds))


@dataclass(frozen=True, slots=True)
class _Events:
    """Columns of events, in the order of the result: visit row, code, seconds since opening, partner."""

    visit: Ints
    code: Ints
    second: Ints
    partner: Ints


@dataclass(frozen=True, slots=True)
class _Deeds:
    """A chunk of people, and all that they did."""

    crowd: Crowd
    choices: Choices
    outcomes: Outcomes
    events: _Events


def _events(days: int, crowd: Crowd, outcomes: Outcomes) -> _Events:
    """Unfold each visit into its one to four events (five with a look at the other partner)."""
    draws, tastes, visits = crowd.draws, crowd.tastes, crowd.visits
    u = draws.visits
    cart = visits.second + 15 + (u[:, 14] * 100).astype(np.int64)
    buy = cart + 20 + (u[:, 15] * 200).astype(np.int64)
    answer = buy + ((0.8 + 11.0 * u[:, 16] ** 2) * _DAY).astype(np.int64)
    in_time = answer < days * _DAY  # what would be written after the end is not there yet
    # Who shops at two partners sometimes compares them before a visit.
    home, second = tastes.partners[draws.person].T
    other = np.where(visits.partner == home, second, home)
    compares = (home != second) & outcomes.views & (u[:, 17] < 0.15)
    earlier = np.maximum(visits.second - 60 - (u[:, 18] * 600).astype(np.int64), 0)
    parts = [
        (compares, _VIEW, earlier, other),
        (outcomes.views, _VIEW, visits.second, visits.partner),
        (outcomes.carts, _CART, cart, visits.partner),
        (outcomes.buys, _PURCHASE, buy, visits.partner),
        (outcomes.rates & in_time, _RATING, answer, visits.partner),
        (outcomes.reviews & in_time, _REVIEW, answer, visits.partner),
    ]
    visit = np.concatenate([np.flatnonzero(flag) for flag, _, _, _ in parts])
    code = np.concatenate([np.full(int(flag.sum()), code) for flag, code, _, _ in parts])
    when = np.concatenate([at[flag] for flag, _, at, _ in parts])
    partner = np.concatenate([where[flag] for flag, _, _, where in parts])
    person = draws.person[visit]
    order = np.lexsort((code, visit, when, person))
    person = person[order]
    place = np.arange(len(order)) - np.searchsorted(person, person)  # of the event in its person's history
    order = order[place < MAX_EVENTS]
    return _Events(visit[order], code[order], when[order], partner[order])


def _reviews(goods: Goods, deeds: _Deeds) -> list[str]:
    """The text of every event, empty but for reviews."""
    draws, tastes, visits = deeds.crowd.draws, deeds.crowd.tastes, deeds.crowd.visits
    choices, events = deeds.choices, deeds.events
    rows = events.visit[events.code == _REVIEW]
    person, u = draws.person[rows], draws.visits[rows]
    kind = goods.kind[choices.item]
    # What people say they want next is mostly what they buy at the end of their next session.
    planned = _planned(draws, visits)[rows]
    dream = [tastes.kinds[person, 1], tastes.styles[person], tastes.brands[person]]
    plan = [latent[choices.item[planned]] for latent in (goods.kind, goods.style, goods.brand)]
    follows = (planned >= 0) & (u[:, 19] < 0.85)
    wish = [np.where(follows, real, taste.argmax(axis=1)) for real, taste in zip(plan, dream, strict=True)]
    role = (u[:, 20] < 0.65).astype(np.int64)  # of the two interests, the one that they talk about
    likes = np.stack(
        [
            tastes.styles[person].argmax(axis=1),
            tastes.audiences[person].argmax(axis=1),
            tastes.themes[person, role].argmax(axis=1),
            tastes.tiers[person].argmax(axis=1),
            tastes.brands[person].argmax(axis=1),
        ],
        axis=1,
    )
    columns = zip(
        kind[rows].tolist(),
        goods.style[choices.item[rows]].tolist(),
        deeds.outcomes.rating[rows].tolist(),
        zip(*(part.tolist() for part in wish), strict=True),
        tastes.archetypes[person, role].tolist(),
        map(tuple, likes.tolist()),
        draws.words[rows].tolist(),
        strict=True,
    )
    texts = iter([write_review(Subject(*column)) for column in columns])
    return [next(texts) if code == _REVIEW else "" for code in events.code.tolist()]


def _planned(draws: Draws, visits: Visits) -> Ints:
    """Row of the visit that ends the person's next session; -1 in their last session. Shape ``(E,)``."""
    first = np.append(np.flatnonzero(visits.opens), len(visits.opens))
    session = np.cumsum(visits.opens) - 1
    following = np.minimum(session + 1, len(first) - 2)
    again = (following > session) & (draws.person[first[following]] == draws.person)
    return np.where(again, first[following + 1] - 1, -1)


def _frame(users: range, ids: pl.Series, deeds: _Deeds, texts: list[str]) -> pl.DataFrame:
    """Name the columns."""
    events = deeds.events
    names = pl.Series([f"user-{user:07d}" for user in users])
    rated: NDArray[np.bool_] = events.code >= _RATING
    rating = pl.Series(deeds.outcomes.rating[events.visit].astype(np.float64))
    return pl.DataFrame(
        {
            "user_id": names.gather(deeds.crowd.draws.person[events.visit]),
            "item_id": ids.gather(deeds.choices.item[events.visit]),
            "timestamp": events.second + OPENED,
            "event": pl.Series(EVENT_KINDS).gather(events.code),
            "rating": rating.set(pl.Series(~rated), None),
            "review": texts,
            "partner": events.partner.astype(np.int32),
        }
    )


def write(config: MarketplaceConfig, folder: Path) -> None:
    """Write ``interactions.parquet`` (with `partner`) and ``items.parquet`` into `folder`, atomically.

    Chunk by chunk: one million people need no more memory than two thousand.
    """
    folder.mkdir(parents=True, exist_ok=True)
    parts = Path(tempfile.mkdtemp(prefix=".marketplace-", dir=folder))
    try:
        for number, chunk in enumerate(stream(config)):
            chunk.write_parquet(parts / f"part-{number:06d}.parquet")
        whole, items = parts / "interactions.parquet", parts / "items.parquet"
        pl.scan_parquet(parts / "part-*.parquet").sink_parquet(whole, row_group_size=_ROW_GROUP)
        catalogue(config).write_parquet(items)
        items.replace(folder / items.name)
        whole.replace(folder / whole.name)
    finally:
        shutil.rmtree(parts)
