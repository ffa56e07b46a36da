"""The promotion gate: before a release is served, what does it put before the partner's own users?

The coordinator cannot look into masked sums, and a signature says who made a release, not whose users it is made from.
The partner can look at what comes out: over its own users, on its own machine, it compares how many of them would have
each item among their first ten with how many have it now and with how many have met it. An item that leaps is the mark
of a promotion attack, and the release waits until an operator has looked and pins it. It is post-processing at the
partner: nothing leaves, and no privacy is spent.

    histories -> top ten under the candidate -> exposure of every item -> bound -> served, or held back

What it cannot see is an item that gets a few users more (`SLACK`), or a backdoor that opens for few of them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from client.ranking.engine import Engine
from client.ranking.held_releases import HeldReleases
from client.ranking.release_memory import Known
from shared.errors import RankingError
from shared.schema import Catalogue, Histories

DEPTH = 10
USERS = 2000
"""Of the partner's, drawn by their pseudonyms: a share of them is known to 0.011, and the same users are compared."""
LEAST_USERS = 100
"""Fewer say too little about shares; a release is then served as it comes."""
FACTOR = 2.0
SLACK, FIRST_SLACK = 0.10, 0.15
"""By experiment (docs/audits.md): between honest runs with other noise the largest leap beyond twice what was is 0.08
(3,300 users in all, three buckets), and 0.13 beyond twice what users have met, where no release was served before."""
NAMED = 3
"""Items that a refusal names."""
Shares = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Leap:
    """An item (a catalogue row) beyond the bound: its share of users in the candidate's lists, and the most allowed."""

    item: int
    share: float
    allowed: float


def exposure(engine: Engine, histories: Histories) -> Shares:
    """Share of users, of those who have not met it, who have each item among their first ten, shape ``(I,)``.

    The same for two releases but for what they were trained on: reviews are left out, which takes the reading of texts
    from it.
    """
    maker = engine.maker(_without_reviews(histories))
    found = engine.retrieve(maker, np.arange(len(histories)), DEPTH).rows
    listed = np.bincount(found[found >= 0], minlength=len(engine.catalogue))
    return np.asarray(listed / np.maximum(len(histories) - _met(histories, len(engine.catalogue)), 1.0))


def met(histories: Histories, n_items: int) -> Shares:
    """Share of users who have met each item, shape ``(n_items,)``: what to expect of it without any release."""
    return np.asarray(_met(histories, n_items) / max(len(histories), 1))


def leaps(candidate: Shares, served: Shares | None, at_home: Shares) -> list[Leap]:
    """Items that the candidate shows to more than `FACTOR` times as many users as before, and `SLACK`; the worst first.

    Parameters
    ----------
    candidate : (I,)
        From `exposure`.
    served : (I,) or None
        The same under the release that is served now; None if there is none.
    at_home : (I,)
        From `met`.
    """
    usual = at_home if served is None else np.maximum(served, at_home)
    allowed = FACTOR * usual + (FIRST_SLACK if served is None else SLACK)
    beyond = np.flatnonzero(candidate > allowed)
    worst = beyond[np.argsort(allowed[beyond] - candidate[beyond], kind="stable")]
    return [Leap(int(k), float(candidate[k]), float(allowed[k])) for k in worst]


@dataclass
class PromotionGate:
    """Remembers what releases showed, and which were held back. One thread at a time.

    Attributes
    ----------
    held : HeldReleases
    shown : dict
        Exposures under releases that were looked at, by fingerprint, to the users of that time.
    """

    held: HeldReleases
    shown: dict[str, Shares] = field(default_factory=dict)

    def check_known(self, known: Known) -> None:
        """Refuse a release that was held back before, without any work.

        Raises
        ------
        RankingError
        """
        if (reason := self.held.read().get(known.fingerprint)) is not None:
            raise RankingError(reason)

    def look(self, known: Known, engine: Engine, histories: Histories) -> None:
        """Take note of what a release shows that is served already, or was pinned."""
        if len(histories) >= LEAST_USERS:
            self.shown[known.fingerprint] = exposure(engine, histories)
        self.held.keep(known.fingerprint, None)

    def admit(self, known: Known, engine: Engine, histories: Histories, served: Known | None) -> None:
        """Refuse a candidate that puts an item before too many users.

        Parameters
        ----------
        known : Known
            The candidate.
        engine : Engine
            Of the candidate; nobody else uses it yet.
        histories : Histories
            Of the partner's own users.
        served : Known or None
            The release that is served now.

        Raises
        ------
        RankingError
            Names the release, the items and their shares; no user.
        """
        if len(histories) < LEAST_USERS:
            return
        candidate = exposure(engine, histories)
        before = self.shown.get(served.fingerprint) if served else None
        found = leaps(candidate, before, met(histories, len(engine.catalogue)))
        if found:
            reason = _refusal(known, found, engine.catalogue)
            self.held.keep(known.fingerprint, reason)
            raise RankingError(reason)
        self.shown[known.fingerprint] = candidate


def _refusal(known: Known, found: list[Leap], catalogue: Catalogue) -> str:
    ids = catalogue.item_ids
    told = ", ".join(f"{ids[leap.item]} {leap.share:.0%} (allowed {leap.allowed:.0%})" for leap in found[:NAMED])
    return (
        f"release version={known.version}: Expected items to be shown to about as many users as before, "
        f"got {len(found)} beyond the bound: {told}. Look at it, then pin it or leave it."
    )


def _met(histories: Histories, n_items: int) -> NDArray[np.int64]:
    """Users who have met each item."""
    user = np.repeat(np.arange(len(histories), dtype=np.int64), histories.lengths)
    pairs = np.unique(user * n_items + histories.items)
    return np.bincount(pairs % n_items, minlength=n_items)


def _without_reviews(histories: Histories) -> Histories:
    return replace(histories, reviews=np.full_like(histories.reviews, -1), review_texts=())
