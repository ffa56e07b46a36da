"""The people of the embedded marketplace: partners, latent tastes, and when each person visits.

Each person's randomness comes from a generator keyed by (seed, user), so a person is the same in a shop
of any size and in any chunk; all else is computed for a chunk of people at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulations.marketplace_archetypes import ARCHETYPES
from simulations.marketplace_catalogue import KIND_CATEGORY, KINDS
from simulations.marketplace_goods import CATEGORIES
from simulations.marketplace_text import AUDIENCES, BRANDS, STYLES, THEMES, TIERS

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MIN_VISITS, MAX_VISITS = 5, 95  # item visits of a person; each is one to four events
_VISIT_DRAWS = 40  # uniforms for each item visit: choices and times, then words
_WORDS_FROM = 22
_HEAD_DRAWS = 16
_MEDIAN_VISITS, _VISITS_SPREAD = 9.0, 0.75
_NEW_SESSION = 0.5
_NEWCOMERS = 0.08
_DRIFT_WIDTH = 0.05  # how gradually one interest gives way to the next, in fractions of the time span
_DAY = 86_400
_HOURS = np.cumsum([0, 2, 1, 1, 1, 1, 2, 4, 6, 7, 8, 8, 9, 9, 8, 8, 8, 9, 11, 13, 15, 15, 12, 8, 4], dtype=float)


@dataclass(frozen=True, slots=True)
class Partners:
    """How partners differ.

    `share` ``(P,)`` of people, `kinds` ``(P, kinds)`` log weights, `archetypes` ``(P, archetypes)`` chances,
    `activity` ``(P,)`` factors on the number of visits.
    """

    share: Floats
    kinds: Floats
    archetypes: Floats
    activity: Floats


def draw_partners(partners: int, seed: int) -> Partners:
    """Draw what sets `partners` partners apart (non-IID in departments, people and activity)."""
    rng = np.random.default_rng([seed, 3])
    departments = rng.normal(0.0, 0.7, (partners, len(CATEGORIES)))
    return Partners(
        share=rng.dirichlet(np.full(partners, 6.0)),
        kinds=departments[:, KIND_CATEGORY],
        archetypes=rng.dirichlet(np.full(len(ARCHETYPES), 0.8), size=partners),
        activity=np.exp(rng.normal(0.0, 0.2, partners)),
    )


@dataclass(frozen=True, slots=True)
class Draws:
    """Raw randomness of a chunk of n people with E item visits in all.

    `head` ``(n, 16)`` and `visits` ``(E, 40)`` are uniform, `normal` ``(n, sum of vocabulary)`` standard
    normal; person k owns visits ``[offsets[k], offsets[k + 1])``.
    """

    head: Floats
    normal: Floats
    visits: Floats
    offsets: Ints

    @property
    def person(self) -> Ints:
        """Row of the person of every visit, shape ``(E,)``."""
        return np.repeat(np.arange(len(self.head)), np.diff(self.offsets))

    @property
    def words(self) -> Floats:
        """The part of `visits` that chooses words, shape ``(E, 18)``."""
        return self.visits[:, _WORDS_FROM:]


_NORMALS = 1 + len(KINDS) + len(STYLES) + len(AUDIENCES) + len(TIERS) + len(BRANDS)


def draw_people(users: range, seed: int, partners: Partners) -> Draws:
    """Draw the randomness of `users`, each from a generator of their own."""
    n = len(users)
    head, normal = np.empty((n, _HEAD_DRAWS)), np.empty((n, _NORMALS))
    visits: list[Floats] = []
    share = np.cumsum(partners.share)
    for k, user in enumerate(users):
        rng = np.random.default_rng([seed, 4, user])
        rng.random(out=head[k])
        rng.standard_normal(out=normal[k])
        activity = partners.activity[min(int(share.searchsorted(head[k, 0])), len(share) - 1)]
        wanted = _MEDIAN_VISITS * activity * np.exp(_VISITS_SPREAD * normal[k, 0])
        visits.append(rng.random((int(min(max(wanted, MIN_VISITS), MAX_VISITS)), _VISIT_DRAWS)))
    offsets = np.concatenate([[0], np.cumsum([len(v) for v in visits])]).astype(np.int64)
    return Draws(head, normal, np.concatenate(visits), offsets)


@dataclass(frozen=True, slots=True)
class Tastes:
    """Latent tastes of n people; log weights unless said otherwise.

    `archetypes` ``(n, 2)``: what a person is, and what they turn into; `kinds` ``(n, 2, kinds)`` and `themes`
    ``(n, 2, themes)`` for each of the two; `styles`, `audiences`, `tiers`, `brands` ``(n, values)``;
    `partners` ``(n, 2)``: home, and a second one (the same for most); `start`, `end`, `turn` ``(n,)``: first
    and last possible visit and change of interest, as fractions of the time span.
    """

    archetypes: Ints
    kinds: Floats
    themes: Floats
    styles: Floats
    audiences: Floats
    tiers: Floats
    brands: Floats
    partners: Ints
    start: Floats
    end: Floats
    turn: Floats


def form_tastes(draws: Draws, partners: Partners, shared_users: float) -> Tastes:
    """Turn randomness into tastes; a fraction `shared_users` of people shops at two partners."""
    head = draws.head
    home = pick(np.broadcast_to(partners.share, (len(head), len(partners.share))), head[:, 0])
    others = np.tile(partners.share, (len(head), 1))
    if len(partners.share) > 1:
        others[np.arange(len(head)), home] = 0.0
    second = np.where(head[:, 1] < shared_users, pick(others, head[:, 2]), home)
    mix = partners.archetypes[home]  # (n, archetypes)
    now = pick(mix, head[:, 3])
    rest = mix + 0.02
    rest[np.arange(len(head)), now] = 0.0
    archetypes = np.stack([now, pick(rest, head[:, 4])], axis=1)
    _, kinds, styles, audiences, tiers, brands = np.split(
        draws.normal, np.cumsum([1, len(KINDS), len(STYLES), len(AUDIENCES), len(TIERS)]), axis=1
    )
    start, end, turn = _lifetimes(head)
    return Tastes(
        archetypes=archetypes,
        kinds=_KIND_TASTE[archetypes] + 0.7 * kinds[:, None, :],
        themes=_THEME_TASTE[archetypes],
        styles=0.35 * styles + 2.0 * _favourites(_STYLES[now], head[:, 11:13], len(STYLES)),
        audiences=0.3 * audiences + 1.3 * _favourites(_AUDIENCES[now], head[:, 13:15], len(AUDIENCES)),
        tiers=0.3 * tiers + 1.2 * np.eye(len(TIERS))[pick(_TIERS[now], head[:, 10])],
        brands=0.6 * brands,
        partners=np.stack([home, second], axis=1),
        start=start,
        end=end,
        turn=turn,
    )


def _lifetimes(head: Floats) -> tuple[Floats, Floats, Floats]:
    """Most people stay until the end, some leave early, a few are new."""
    new = head[:, 5] < _NEWCOMERS
    start = np.where(new, 0.93 + 0.06 * head[:, 6], 0.75 * head[:, 6])
    left = start + 0.05 + np.maximum(0.95 - start, 0.0) * head[:, 8]
    end = np.where((head[:, 7] < 0.7) | new, 1.0, np.minimum(left, 1.0))
    return start, end, start + (end - start) * (0.3 + 0.8 * head[:, 9])


_KIND_TASTE = np.log(np.array([[a.categories.get(int(c), 0.0) + 0.012 for c in KIND_CATEGORY] for a in ARCHETYPES]))
_THEME_TASTE = np.zeros((len(ARCHETYPES), len(THEMES)))
for _a, _archetype in enumerate(ARCHETYPES):
    _THEME_TASTE[_a, list(_archetype.themes)] = (1.2, 0.8)
_STYLES = np.array([a.styles for a in ARCHETYPES])
_AUDIENCES = np.array([a.audiences for a in ARCHETYPES])
_TIERS = np.array([a.tiers for a in ARCHETYPES])


def _favourites(options: Ints, u: Floats, values: int) -> Floats:
    """Weight 1 on a person's favourite and 1/2 on what people of their type like best, ``(n, values)``.

    `options` ``(n, m)`` in falling order of liking, `u` ``(n, 2)`` uniform.
    """
    rows, taste = np.arange(len(options)), np.zeros((len(options), values))
    usual = options[rows, np.minimum((u[:, 0] ** 1.5 * options.shape[1]).astype(int), options.shape[1] - 1)]
    # One person in four has a favourite that their type does not explain.
    free = (u[:, 1] * 4 * values).astype(int)
    taste[rows, options[:, 0]] = 0.5
    taste[rows, np.where(free < values, free, usual)] = 1.0
    return taste


def pick(weights: Floats, u: Floats) -> Ints:
    """Column drawn by each row of `weights` ``(n, m)`` with a uniform number each, shape ``(n,)``."""
    total = np.cumsum(weights, axis=1)
    column = (total <= u[:, None] * total[:, -1:]).sum(axis=1)
    return np.asarray(np.minimum(column, weights.shape[1] - 1), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Visits:
    """When, where and in which mood E item visits happen: one entry a visit.

    `opens`: the visit begins a session; `fraction`: of the time span; `second`: seconds since the shop
    opened; `interest`: 0 or 1, which of the person's two archetypes leads; `partner`: row of the partner.
    """

    opens: NDArray[np.bool_]
    fraction: Floats
    second: Ints
    interest: Ints
    partner: Ints


@dataclass(frozen=True, slots=True)
class Crowd:
    """A chunk of people with all that is known of them before they choose anything."""

    draws: Draws
    tastes: Tastes
    visits: Visits


def gather(users: range, seed: int, partners: Partners, days: int, shared_users: float) -> Crowd:
    """The people `users` of a shop that is open for `days` days."""
    draws = draw_people(users, seed, partners)
    tastes = form_tastes(draws, partners, shared_users)
    return Crowd(draws, tastes, plan_visits(draws, tastes, days))


def plan_visits(draws: Draws, tastes: Tastes, days: int) -> Visits:
    """Group visits into sessions, and place the sessions in time (evenings are busy)."""
    u, person = draws.visits, draws.person
    opens = u[:, 0] < _NEW_SESSION
    opens[draws.offsets[:-1]] = True
    first = np.flatnonzero(opens)
    session = np.cumsum(opens) - 1
    who, v = person[first], u[first]
    day = np.floor((tastes.start[who] + (tastes.end[who] - tastes.start[who]) * v[:, 1] ** 0.8) * days)
    hour = np.interp(v[:, 2] * _HOURS[-1], _HOURS, np.arange(25))
    begin = np.clip(day, 0, days - 1) * _DAY + hour * 3600
    begin = begin[np.lexsort((begin, who))]  # sessions of a person in time order
    # Whole seconds: a sum of integers is the same in any chunk.
    inside = np.cumsum((25.0 - 140.0 * np.log1p(-u[:, 3])).astype(np.int64))
    second = begin[session].astype(np.int64) + inside - inside[first][session]
    fraction = begin / (days * _DAY)
    turned = 1.0 / (1.0 + np.exp(-np.clip((fraction - tastes.turn[who]) / _DRIFT_WIDTH, -50, 50)))
    interest = (v[:, 4] < turned).astype(np.int64)
    place = tastes.partners[who, (v[:, 5] < 0.35).astype(np.int64)]
    return Visits(opens, fraction[session], second, interest[session], place[session])
