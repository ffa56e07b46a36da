"""Review texts of the embedded marketplace: they agree with the rating, and give away their writer.

A review says how the item did and, in most cases, something about the person beyond the item: what they
want next, what they have got into, the look they prefer, for whom they shop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from simulations.marketplace_archetypes import ARCHETYPES
from simulations.marketplace_catalogue import KINDS, article
from simulations.marketplace_text import AUDIENCES, BRANDS, STYLES, THEMES, TIERS

_VERDICTS: dict[int, tuple[str, ...]] = {
    5: (
        "Exactly what I wanted.",
        "Could not be happier with it.",
        "The best {noun} I have owned.",
        "Brilliant, five stars.",
        "Very pleased with it.",
        "It exceeded my expectations.",
        "Absolutely love it.",
        "What a lovely thing!",
        "I would buy it again tomorrow.",
        "Great design, well thought out.",
        "Wonderful, from the packaging to the last detail.",
        "No complaints at all, a superb {noun}.",
    ),
    4: (
        "Good, nearly perfect.",
        "Happy with this {noun} overall.",
        "A solid {noun}.",
        "It does what it should, and does it well.",
        "A good buy.",
        "Nice, only small niggles.",
        "Pleased with this one, four stars.",
        "Very decent, I would say.",
    ),
    3: (
        "It is all right, nothing special.",
        "A decent {noun} with some flaws.",
        "I have mixed feelings about it.",
        "An average {noun}.",
        "It does the job, more or less.",
        "Not bad, not great.",
        "Three stars, because it could be better.",
    ),
    2: (
        "Disappointed with this one.",
        "I expected more from this {noun}.",
        "Not really for me.",
        "Below average, sadly.",
        "A weak {noun}, I am afraid.",
        "This is not what I had hoped for.",
    ),
    1: (
        "I sent it back after a week.",
        "I would not recommend this {noun}.",
        "A waste of money.",
        "Terrible, avoid it.",
        "Broken within days.",
        "The worst {noun} I have had.",
    ),
}
_PRAISE = (
    "I really like that it has {feature}.",
    "It has {feature}, which I use all the time.",
    "Having {feature} makes a real difference.",
    "It comes with {feature}, and everything feels well made.",
    "After {number} weeks it still looks like new.",
    "It arrived within {number} days and was well packed.",
    "I compared {number} others before I chose this one.",
    "I did not know how much I needed {feature}.",
    "The quality is better than the photos suggest.",
)
_DOUBTS = (
    "It has {feature}, but the finish could be better.",
    "I like that it has {feature}, yet it feels a bit flimsy.",
    "It took me {number} days to get used to it.",
    "For the price I had expected a little more.",
    "The colour differs from the photos.",
)
_FAULTS = (
    "It is meant to have {feature}, but mine arrived faulty.",
    "Even with {feature} it is a pain to use.",
    "It felt cheap from the first day.",
    "After {number} weeks it started to fall apart.",
    "Customer service took {number} days to answer.",
)
_PLANS = (
    "Next on my list is {wish}.",
    "Now I am looking for {wish}.",
    "I am saving up for {wish} next.",
    "The next thing I need is {wish}.",
    "What is still missing is {wish}.",
    "I have already started to look for {wish}.",
)
_HOBBIES = (
    "I have really got into {hobby} this year.",
    "Most of my free time goes into {hobby}.",
    "My new passion is {hobby}.",
    "Lately it is all about {hobby} for me.",
    "I am spending more and more time {hobby}.",
)
_WISHES = (
    "I wish it came in a more {adj} design.",
    "A more {adj} version would suit me better.",
    "It could look a little more {adj} for my taste.",
    "I usually go for a more {adj} look.",
)
_LOYALTY = (
    "I own several things by {brand}.",
    "I usually buy {brand}.",
    "{brand} is still my favourite brand.",
    "It goes well with what I have from {brand}.",
)


@dataclass(frozen=True, slots=True)
class Subject:
    """What one review is written from: indices into the vocabulary, and the words' randomness.

    `kind`, `style` of the item; `wish` kind, style and brand that the person thinks of buying; `likes`
    favourite style, audience, theme, tier and brand; `interest` the archetype that they talk about;
    `u` 18 uniform numbers.
    """

    kind: int
    style: int
    rating: int
    wish: tuple[int, int, int]
    interest: int
    likes: tuple[int, int, int, int, int]
    u: list[float]


def write_review(subject: Subject) -> str:
    """Write one review."""
    u = iter(subject.u)
    kind = KINDS[subject.kind]
    details = _PRAISE if subject.rating >= 4 else _DOUBTS if subject.rating == 3 else _FAULTS
    sentences = [_one(_VERDICTS[subject.rating], u)]
    feature, number = _one(kind.features, u), str(2 + int(next(u) * 8))
    if next(u) < 0.7:
        sentences.append(_one(details, u).format(feature=feature, number=number))
    first, more = next(u), next(u)
    if first < 0.9:
        sentences.append(_reveal(subject, first / 0.9, u))
        if more < 0.3:
            # The other end of the list of asides, so that nobody says the same thing twice.
            sentences.append(_reveal(subject, (first / 0.9 + 0.5) % 1.0, u))
    return " ".join(sentences).format(noun=kind.noun)


def _reveal(subject: Subject, choice: float, u: Iterator[float]) -> str:
    """A sentence about the writer; `choice` in [0, 1) says of which sort."""
    for share, tell in _REVEALS:
        if choice < share:
            return tell(subject, u)
        choice -= share
    return _plan(subject, u)


def _plan(subject: Subject, u: Iterator[float]) -> str:
    kind, style, brand = subject.wish
    if kind == subject.kind:  # they have just got one
        return _hobby(subject, u)
    noun, how = KINDS[kind].noun, next(u)
    wish = article(f"{_one(STYLES[style].words, u)} {noun}" if how < 0.75 else noun)
    if 0.5 < how < 0.9:
        wish += f" from {BRANDS[brand]}"
    return _one(_PLANS, u).format(wish=wish)


def _hobby(subject: Subject, u: Iterator[float]) -> str:
    return _one(_HOBBIES, u).format(hobby=_one(ARCHETYPES[subject.interest].hobbies, u))


def _look(subject: Subject, u: Iterator[float]) -> str:
    liked = STYLES[subject.likes[0]]
    if subject.style != subject.likes[0] and next(u) < 0.5:
        return _one(_WISHES, u).format(adj=_one(liked.words, u))
    return _one(liked.asides, u)


def _brand(subject: Subject, u: Iterator[float]) -> str:
    return _one(_LOYALTY, u).format(brand=BRANDS[subject.likes[4]])


_REVEALS: tuple[tuple[float, Callable[[Subject, Iterator[float]], str]], ...] = (
    (0.44, _plan),
    (0.10, _look),
    (0.09, lambda subject, u: _one(AUDIENCES[subject.likes[1]].asides, u)),
    (0.16, _hobby),
    (0.04, _look),
    (0.06, lambda subject, u: _one(THEMES[subject.likes[2]].asides, u)),
    (0.05, lambda subject, u: _one(TIERS[subject.likes[3]].asides, u)),
    (0.06, _brand),
)


def _one(options: tuple[str, ...], u: Iterator[float]) -> str:
    return options[int(next(u) * len(options))]
