"""The catalogue of the embedded marketplace: latent attributes of items, and the texts written from them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from simulations.marketplace_goods import CATEGORIES, PLAIN, Kind
from simulations.marketplace_text import AUDIENCES, BRANDS, COLOURS, SERIES, STYLES, THEMES, TIERS

KINDS: tuple[Kind, ...] = tuple(kind for category in CATEGORIES for kind in category.kinds)
KIND_CATEGORY: NDArray[np.int64] = np.repeat(np.arange(len(CATEGORIES)), [len(c.kinds) for c in CATEGORIES])

LATE_SHARE = 0.10
"""Share of items that come out in the last days: few or no events before the end."""
LATE_WINDOW = 0.02
"""When those days begin, as a fraction of the time span before its end."""
_TAIL_EXPONENT, _TAIL_SHIFT = 0.95, 8.0  # popularity of the r-th item: (r + shift) ** -exponent

_OPENERS = (
    "{An_adj} {noun} for {audience}.",
    "This {adj} {noun} was made for {theme}.",
    "{brand} presents {an_adj} {noun} for {audience}.",
    "Meet the {series}: {an_adj} {noun} for {theme}.",
    "{An_tier} {noun} for {theme}, in {an_adj} look.",
    "Looking for {an_adj} {noun}? The {series} is one for {audience}.",
)
_FEATURES = (
    "It has {first} and {second}.",
    "It comes with {first}, {second} and {third}.",
    "You get {first} as well as {second}.",
    "Expect {first} and, as a bonus, {second}.",
)
_MATERIALS = ("Made of {material}.", "Crafted from {material}.", "The main material is {material}.")
_TITLES = (
    "{brand} {series} {Noun}, {Adj}{colour}",
    "{brand} {Adj} {Noun} {series}{colour}",
    "{brand} {series}: {Adj} {Noun}{colour}",
)


@dataclass(frozen=True, slots=True)
class Goods:
    """Latent attributes of items, one entry an item.

    Besides indices into the vocabulary: `log_popularity` (up to a constant), `quality` (standardised) and
    `release` as a fraction of the time of the shop (0: on sale from the beginning). `shelf` holds the items
    of every kind, shape ``(kinds, longest)``, padded with -1; `follow` the chance of each kind after each,
    ``(kinds, kinds)``.
    """

    kind: NDArray[np.int64]
    style: NDArray[np.int64]
    audience: NDArray[np.int64]
    theme: NDArray[np.int64]
    tier: NDArray[np.int64]
    brand: NDArray[np.int64]
    log_popularity: NDArray[np.float64]
    quality: NDArray[np.float64]
    release: NDArray[np.float64]
    shelf: NDArray[np.int64]
    follow: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.kind)


def draw_goods(items: int, seed: int) -> Goods:
    """Draw the attributes of `items` items (at least one of every kind)."""
    rng = np.random.default_rng([seed, 1])
    kinds = len(KINDS)
    extra = rng.choice(kinds, size=items - kinds, p=rng.dirichlet(np.full(kinds, 8.0)))
    # The first item of a kind is on sale from the beginning, so that no shelf is ever empty.
    order = rng.permutation(items)
    kind = np.concatenate([np.arange(kinds), extra])[order]
    late, later = rng.random(items), rng.random(items)
    release = np.where(late < 0.3, 0.95 * later, 0.0)
    release = np.where(late < LATE_SHARE, 0.9997 - LATE_WINDOW * later**1.5, release)
    release[order < kinds] = 0.0
    style, audience, theme = (
        _fitting(rng, kind, [getattr(c, name) for c in CATEGORIES]) for name in ("styles", "audiences", "themes")
    )
    tier = rng.choice(3, size=items, p=[0.35, 0.4, 0.25])
    rank = rng.permutation(items)
    return Goods(
        kind=kind,
        style=style,
        audience=audience,
        theme=theme,
        tier=tier,
        brand=_draw_brands(rng, KIND_CATEGORY[kind], style, tier),
        log_popularity=-_TAIL_EXPONENT * np.log(rank + _TAIL_SHIFT),
        quality=rng.standard_normal(items),
        release=release,
        shelf=_shelves(kind),
        follow=_follow(),
    )


def _fitting(rng: np.random.Generator, kind: NDArray[np.int64], allowed: list[tuple[int, ...]]) -> NDArray[np.int64]:
    """One of the values that fit the department of each item, shape ``(items,)``."""
    choice = rng.random(len(kind))
    values = [allowed[c] for c in KIND_CATEGORY[kind]]
    return np.array([v[int(u * len(v))] for v, u in zip(values, choice, strict=True)], dtype=np.int64)


def _draw_brands(
    rng: np.random.Generator, category: NDArray[np.int64], style: NDArray[np.int64], tier: NDArray[np.int64]
) -> NDArray[np.int64]:
    """A brand for each item: brands have departments in which they are at home, a look and a price level."""
    home = rng.random((len(BRANDS), len(CATEGORIES))) < 0.25
    look, level = rng.integers(len(STYLES), size=len(BRANDS)), rng.integers(len(TIERS), size=len(BRANDS))
    # (items, brands)
    logits = 3.0 * home.T[category] + 1.5 * (style[:, None] == look) + 1.0 * (tier[:, None] == level)
    return np.asarray((logits + rng.gumbel(size=logits.shape)).argmax(axis=1), dtype=np.int64)


def _shelves(kind: NDArray[np.int64]) -> NDArray[np.int64]:
    members = [np.flatnonzero(kind == k) for k in range(len(KINDS))]
    shelf = np.full((len(KINDS), max(map(len, members))), -1, dtype=np.int64)
    for k, rows in enumerate(members):
        shelf[k, : len(rows)] = rows
    return shelf


def _follow() -> NDArray[np.float64]:
    """Chance that kind k is followed by kind l: the first named accessory is the likeliest."""
    row = {kind.noun: k for k, kind in enumerate(KINDS)}
    follow: NDArray[np.float64] = np.zeros((len(KINDS), len(KINDS)))
    for k, kind in enumerate(KINDS):
        for place, noun in enumerate(kind.then):
            follow[k, row[noun]] = 0.6**place
    follow /= follow.sum(axis=1, keepdims=True)
    return follow


def article(phrase: str) -> str:
    """`phrase` with "a" or "an" before it."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def items_frame(goods: Goods, seed: int) -> pl.DataFrame:
    """Titles, texts and categories of all items: columns item_id, title, text, categories."""
    rng = np.random.default_rng([seed, 2])
    titles: list[str] = []
    texts: list[str] = []
    taken: dict[str, int] = {}
    for row in range(len(goods)):
        title, text = _describe(goods, row, rng)
        taken[title] = taken.get(title, 0) + 1
        titles.append(title if taken[title] == 1 else f"{title} (edition {taken[title]})")
        texts.append(text)
    categories = [f"{CATEGORIES[KIND_CATEGORY[k]].name} > {_caps(KINDS[k].noun)}" for k in goods.kind]
    return pl.DataFrame({"item_id": item_ids(len(goods)), "title": titles, "text": texts, "categories": categories})


def item_ids(items: int) -> list[str]:
    """Ids in the order of rows, which is also their sorted order."""
    width = max(5, len(str(items - 1)))
    return [f"item-{row:0{width}d}" for row in range(items)]


def _describe(goods: Goods, row: int, rng: np.random.Generator) -> tuple[str, str]:
    """Title and description of one item."""
    u = iter(rng.random(20).tolist())

    def one(options: tuple[str, ...]) -> str:
        return options[int(next(u) * len(options))]

    kind = KINDS[goods.kind[row]]
    look, audience, theme, tier = (
        STYLES[goods.style[row]],
        AUDIENCES[goods.audience[row]],
        THEMES[goods.theme[row]],
        TIERS[goods.tier[row]],
    )
    adj, adj_tier, series = one(look.words), one(tier.words), one(SERIES)
    colour = "" if kind.noun in PLAIN else f", {_caps(one(COLOURS))}"
    first, second, third = (kind.features[k] for k in rng.permutation(len(kind.features))[:3])
    words = {
        "adj": adj,
        "Adj": _caps(adj),
        "an_adj": article(adj),
        "An_adj": article(adj).capitalize(),
        "An_tier": article(adj_tier).capitalize(),
        "noun": kind.noun,
        "Noun": _caps(kind.noun),
        "brand": BRANDS[goods.brand[row]],
        "series": series,
        "colour": colour,
        "audience": one(audience.words),
        "theme": one(theme.words),
        "first": first,
        "second": second,
        "third": third,
        "material": one(kind.materials),
    }
    body = [one(look.lines), one(audience.lines), one(theme.lines), one(tier.lines)]
    if next(u) < 0.4:  # a description need not say everything
        del body[1 + int(next(u) * 3)]
    body.append(one(_MATERIALS).format(**words))
    body = [body[k] for k in rng.permutation(len(body))]
    text = " ".join([one(_OPENERS).format(**words), one(_FEATURES).format(**words), *body])
    return one(_TITLES).format(**words), text


def _caps(words: str) -> str:
    return " ".join(word[:1].upper() + word[1:] for word in words.split())
