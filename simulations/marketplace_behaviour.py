"""Which item each visit is about, and what comes of it: the walk of people through the shop."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from simulations.marketplace_catalogue import Goods
from simulations.marketplace_people import Crowd, Floats, Ints, Partners, pick

_SAME_KIND, _ACCESSORY = 0.36, 0.36  # within a session; else the person looks for something new
_COME_BACK = 0.25  # a session that begins with an accessory of the last item
_SEEN = 5.0  # log weight taken from an item that the person has looked at before
_NEWS = 1.5  # log weight added to an item on the day of its release,
_NEWS_FADES = 0.05  # which fades over this fraction of the time span
_SAME_BRAND, _SAME_STYLE = 1.0, 0.6  # accessories tend to match


@dataclass(frozen=True, slots=True)
class Choices:
    """The item of each visit, shape ``(E,)``, and `fit`: how well it suits the person (log weight)."""

    item: Ints
    fit: Floats


@dataclass(frozen=True, slots=True)
class _Step:
    """The k-th visit of all people who have one: their rows, the visits' rows, the items before."""

    who: Ints
    visit: Ints
    previous: Ints


def walk(goods: Goods, partners: Partners, crowd: Crowd) -> Choices:
    """Let all people of a chunk choose an item for each of their visits, step by step."""
    draws, lengths = crowd.draws, np.diff(crowd.draws.offsets)
    item, fit = np.zeros(len(draws.visits), dtype=np.int64), np.zeros(len(draws.visits))
    previous = np.zeros(len(lengths), dtype=np.int64)
    seen = np.zeros((len(lengths), len(goods)), dtype=np.bool_)
    pull = partners.kinds + _stock(goods)  # (P, kinds)
    for k in range(int(lengths.max())):
        who = np.flatnonzero(lengths > k)
        step = _Step(who, draws.offsets[who] + k, previous[who])
        kind, linked = _next_kinds(goods, pull, crowd, step)
        candidates = goods.shelf[kind]  # (active, longest shelf)
        taste = _suits(goods, crowd, step, candidates)
        logits = taste + _match(goods, candidates, step.previous) * linked[:, None]
        logits += goods.log_popularity[candidates] + _news(goods, crowd.visits.fraction[step.visit], candidates)
        logits -= _SEEN * seen[who[:, None], candidates]
        logits[candidates < 0] = -np.inf
        column = pick(_weights(logits), draws.visits[step.visit, 8])
        at = np.arange(len(who))
        chosen = candidates[at, column]
        item[step.visit], fit[step.visit] = chosen, taste[at, column]
        previous[who] = chosen
        seen[who, chosen] = True
    return Choices(item, fit)


def _weights(logits: Floats) -> Floats:
    return np.asarray(np.exp(logits - logits.max(axis=1, keepdims=True)))


def _stock(goods: Goods) -> Floats:
    """Log weight of each kind: the summed popularity of what is on its shelf, shape ``(kinds,)``."""
    weight = np.where(goods.shelf >= 0, np.exp(goods.log_popularity[goods.shelf]), 0.0)
    return np.asarray(np.log(weight.sum(axis=1)))


def _next_kinds(goods: Goods, pull: Floats, crowd: Crowd, step: _Step) -> tuple[Ints, NDArray[np.bool_]]:
    """Kind of product of each visit, and whether it is an accessory of the last item."""
    visits, row = crowd.visits, step.visit
    which, mode = crowd.draws.visits[row, 6], crowd.draws.visits[row, 7]
    fresh = pick(_weights(crowd.tastes.kinds[step.who, visits.interest[row]] + pull[visits.partner[row]]), which)
    last = goods.kind[step.previous]
    accessory = pick(goods.follow[last], which)
    opens = visits.opens[row]
    stays = ~opens & (mode < _SAME_KIND)
    linked = ~stays & (mode < np.where(opens, _COME_BACK, _SAME_KIND + _ACCESSORY))
    linked &= row != crowd.draws.offsets[step.who]  # there is nothing before the first visit
    return np.where(stays, last, np.where(linked, accessory, fresh)), linked


def _suits(goods: Goods, crowd: Crowd, step: _Step, candidates: Ints) -> Floats:
    """How well each candidate suits each person, shape of `candidates`."""
    tastes, person = crowd.tastes, step.who[:, None]
    interest = crowd.visits.interest[step.visit][:, None]
    suits = tastes.styles[person, goods.style[candidates]] + tastes.brands[person, goods.brand[candidates]]
    suits += tastes.audiences[person, goods.audience[candidates]] + tastes.tiers[person, goods.tier[candidates]]
    return np.asarray(suits + tastes.themes[person, interest, goods.theme[candidates]])


def _match(goods: Goods, candidates: Ints, previous: Ints) -> Floats:
    same_brand = goods.brand[candidates] == goods.brand[previous][:, None]
    same_style = goods.style[candidates] == goods.style[previous][:, None]
    return np.asarray(_SAME_BRAND * same_brand + _SAME_STYLE * same_style)


def _news(goods: Goods, now: Floats, candidates: Ints) -> Floats:
    """Nothing before the release; interest in what is new, which fades."""
    age = now[:, None] - goods.release[candidates]
    fresh = np.where(goods.release[candidates] > 0, _NEWS * np.exp(-np.maximum(age, 0.0) / _NEWS_FADES), 0.0)
    return np.where(age < 0, -1e3, fresh)


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What comes of each visit, shape ``(E,)``: a funnel of flags, and the rating from 1 to 5."""

    views: NDArray[np.bool_]
    carts: NDArray[np.bool_]
    buys: NDArray[np.bool_]
    rates: NDArray[np.bool_]
    reviews: NDArray[np.bool_]
    rating: Ints


def decide(goods: Goods, crowd: Crowd, choices: Choices) -> Outcomes:
    """Whether a visit ends in the cart, at the till, in a rating or a review: better fits go further."""
    u = crowd.draws.visits
    charm = 0.35 * (choices.fit - 2.0) + 0.3 * goods.quality[choices.item]
    closes = np.append(crowd.visits.opens[1:], True)  # people compare first, buy, and leave
    direct = u[:, 9] < 0.06  # bought without a look: a reorder, or a gift from a list
    carts = ~direct & (u[:, 10] < 1.0 / (1.0 + np.exp(0.1 - charm)))
    buys = direct | (carts & (u[:, 11] < np.where(closes, 0.95, 0.25)))
    reviews = buys & (u[:, 12] < 0.75)
    noise = 0.75 * (np.log(u[:, 13]) - np.log1p(-u[:, 13]))
    rating = np.clip(np.rint(4.15 + 0.7 * charm + noise), 1, 5).astype(np.int64)
    return Outcomes(~direct, carts, buys, buys & ~reviews & (u[:, 12] < 0.9), reviews, rating)
