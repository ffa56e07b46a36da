"""Rules of places, which hold exactly, whatever came before: items at fixed places, and caps on groups.

Rules that look at the same places may undo each other when applied one after the other: a pinned item may be one too
many of its brand, and a second cap lifts items that the first one put down. `Arrange` therefore keeps all of them in
one pass.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.ranking.rerank_stages import NO_GROUP, Candidates, ItemFacts
from shared.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Pin:
    """An item at a place, whether it was retrieved or not, and whether or not the user has met it.

    Parameters
    ----------
    row : int
        Of the catalogue.
    place : int
        From 1.
    """

    row: int
    place: int

    def __post_init__(self) -> None:
        if self.row < 0 or self.place < 1:
            raise ConfigError(f"Expected a row of at least 0 and a place of at least 1, got {self.row}, {self.place}.")


@dataclass(frozen=True, slots=True)
class CapPerGroup:
    """At most so many items of one group within the first places.

    Parameters
    ----------
    kind : str
        Of `ItemFacts.groups`. An item of several groups counts in each; one of none in no cap.
    most : int
        At least 1.
    first : int
        Places that the cap looks at.
    """

    kind: str
    most: int
    first: int = 10

    def __post_init__(self) -> None:
        if self.most < 1 or self.first < 1:
            raise ConfigError(f"Expected most and first of at least 1, got most={self.most}, first={self.first}.")


@dataclass(frozen=True, slots=True)
class Arrange:
    """Pins items and keeps caps.

    Every place takes the item that is pinned to it, or else the first candidate that no cap is against; pinned items
    count from the start. Where no candidate is left that may stand at a place, the pinned items of later places move up
    and the list ends there: a cap is kept rather than a length.

    Parameters
    ----------
    pins : tuple of Pin
    caps : tuple of CapPerGroup

    Raises
    ------
    ConfigError
        If two pins name one place or one item.
    """

    pins: tuple[Pin, ...] = ()
    caps: tuple[CapPerGroup, ...] = ()

    def __post_init__(self) -> None:
        rows, places = {pin.row for pin in self.pins}, {pin.place for pin in self.pins}
        if min(len(rows), len(places)) < len(self.pins):
            raise ConfigError("Expected each pinned item and each pinned place once.")

    @property
    def pinned(self) -> NDArray[np.int32]:
        """Rows of the pinned items."""
        return np.array([pin.row for pin in self.pins], dtype=np.int32)

    def check(self, facts: ItemFacts) -> None:
        """Refuse what no list can keep.

        Raises
        ------
        ConfigError
            If a pinned item is outside of the catalogue, the pinned items alone break a cap, or nothing is known of a
            kind of group.
        """
        if not all(pin.row < len(facts) for pin in self.pins):
            raise ConfigError(f"Expected pinned items of a catalogue of items={len(facts)}.")
        for cap in self.caps:
            if (_Tally(cap, facts, self.pins).counts > cap.most).any():
                raise ConfigError(f"Expected pinned items that keep the cap of {cap.most} in the first {cap.first}.")

    def __call__(self, candidates: Candidates, facts: ItemFacts) -> Candidates:
        """In the order that the rules leave; see `check` for what is refused."""
        if not self.pins and not self.caps:
            return candidates
        self.check(facts)
        free = candidates.rows[~np.isin(candidates.rows, self.pinned)]
        return _scored(_Arrangement(self, facts, free).rows(), candidates)


def _scored(rows: NDArray[np.int32], candidates: Candidates) -> Candidates:
    """Rows with the scores that they have as candidates, NaN for what was not retrieved."""
    score = dict(zip(candidates.rows.tolist(), candidates.scores, strict=True))
    return Candidates(rows, np.array([score.get(row, np.nan) for row in rows.tolist()], dtype=np.float32))


class _Tally:
    """How many of each group stand, or will stand, within the places of a cap."""

    def __init__(self, cap: CapPerGroup, facts: ItemFacts, pins: tuple[Pin, ...]) -> None:
        groups = facts.kind(cap.kind)
        self.cap, self._codes = cap, groups.codes
        self.counts = np.zeros(len(groups.names), dtype=np.int64)
        for pin in pins:
            if pin.place <= cap.first:
                self.add(pin.row)

    def add(self, row: int) -> None:
        codes = self._codes[row]
        self.counts[codes[codes != NO_GROUP]] += 1

    def against(self, rows: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Whether one more of these would be too many, for each."""
        full = np.append(self.counts >= self.cap.most, False)  # the last entry answers for NO_GROUP
        return np.asarray(full[self._codes[rows]].any(axis=1))


class _Arrangement:
    """One pass over the places that a rule looks at."""

    def __init__(self, rules: Arrange, facts: ItemFacts, free: NDArray[np.int32]) -> None:
        self._pins = sorted(rules.pins, key=lambda pin: pin.place)
        self._tallies = [_Tally(cap, facts, rules.pins) for cap in rules.caps]
        self._free, self._left = free, np.ones(len(free), dtype=bool)
        self._last = max([pin.place for pin in rules.pins] + [cap.first for cap in rules.caps])
        self._list: list[int] = []

    def rows(self) -> NDArray[np.int32]:
        waiting = list(self._pins)
        while len(self._list) < self._last:
            if waiting and waiting[0].place == len(self._list) + 1:
                self._list.append(waiting.pop(0).row)
            elif not self._fill():
                return np.array(self._list + self._moved_up(waiting), dtype=np.int32)
        return np.concatenate([np.array(self._list, dtype=np.int32), self._free[self._left]])

    def _fill(self) -> bool:
        """Put the first candidate that may stand at the next place there; whether there is one."""
        looking = [one for one in self._tallies if len(self._list) < one.cap.first]
        fits = self._left.copy()
        for one in looking:
            fits &= ~one.against(self._free)
        if not fits.any():
            return False
        place = int(np.argmax(fits))
        self._left[place] = False
        self._put(int(self._free[place]), looking)
        return True

    def _put(self, row: int, looking: list[_Tally]) -> None:
        self._list.append(row)
        for one in looking:
            one.add(row)

    def _moved_up(self, waiting: list[Pin]) -> list[int]:
        """Pinned items of later places; one that a cap is against, at the place where it would stand, ends the list."""
        moved: list[int] = []
        for pin in waiting:
            place = len(self._list) + len(moved) + 1
            # A cap that looks at the place which the item was pinned to has counted it.
            news = [one for one in self._tallies if place <= one.cap.first < pin.place]
            if any(one.against(np.array([pin.row], dtype=np.int32))[0] for one in news):
                break
            for one in news:
                one.add(pin.row)
            moved.append(pin.row)
        return moved
