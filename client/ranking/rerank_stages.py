"""Stages that rerank the candidates of one user, each a small function with its parameters fixed.

::

    retrieval -> Candidates -> Exclude -> LongTailBoost -> Freshen -> Diversify -> Arrange -> Top -> Candidates
                                 (what each stage reads of items: ItemFacts)

A stage takes candidates and gives candidates: it may put them in another order, and it invents none. Only `Exclude`
and `Top` take some away (and `client.ranking.business_rules.Arrange`, where a cap leaves no other way). Of equals the
order stays. Stages hold no state and draw no random numbers, and one whose strength is nothing returns what it was
given.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from shared.errors import ConfigError, RankingError

Rows = NDArray[np.int32]
Vector = NDArray[np.float32]
NO_GROUP = -1
SEPARATORS = re.compile(r"[|,;>]")
"""Between an item's categories, or the levels of one."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """What may be shown to one user, in the order in which it would be.

    Parameters
    ----------
    rows : array of int32, shape (N,)
        Catalogue rows, each once. Retrieval gives them by falling score; stages may give another order.
    scores : array of float32, shape (N,)
        Relevance. NaN has only an item that was pinned and not retrieved: nothing scored it.

    Raises
    ------
    RankingError
        If shapes differ, a row comes twice, or a score is infinite.
    """

    rows: Rows
    scores: Vector

    def __post_init__(self) -> None:
        if self.rows.ndim != 1 or self.rows.shape != self.scores.shape:
            raise RankingError(f"Expected one score a candidate, got {self.rows.shape} and {self.scores.shape}.")
        if len(np.unique(self.rows)) != len(self.rows) or np.isinf(self.scores).any():
            raise RankingError("Expected each candidate once, with a score that is not infinite.")

    @classmethod
    def best(cls, scores: Vector, n: int, *, seen: Rows | None = None) -> Candidates:
        """The `n` best items of a whole catalogue's scores, shape ``(I,)``; equals by row; `seen` rows left out."""
        open_scores = scores if seen is None else scores.copy()
        if seen is not None:
            open_scores[seen] = -np.inf
        rows = np.argsort(-open_scores, kind="stable")[:n]
        rows = rows[open_scores[rows] > -np.inf]
        return cls(rows.astype(np.int32), scores[rows].astype(np.float32))

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, places: NDArray[np.integer] | NDArray[np.bool_] | slice) -> Candidates:
        """Those at `places`, in that order."""
        return Candidates(self.rows[places], self.scores[places])

    def rescored(self, scores: NDArray[np.floating]) -> Candidates:
        """With other scores, by falling score; of equals the order stays."""
        order = np.argsort(-scores, kind="stable")
        return Candidates(self.rows[order], scores[order].astype(np.float32))


@dataclass(frozen=True, slots=True)
class Groups:
    """Which groups of one kind (brands, categories) each item is in.

    Parameters
    ----------
    names : tuple of str
        Of the groups; a group's code is its place here.
    codes : array of int32, shape (I, m)
        Codes of each item's groups; `NO_GROUP` fills up.
    """

    names: tuple[str, ...]
    codes: NDArray[np.int32]

    @classmethod
    def of(cls, told: Sequence[str], *, split: bool = False) -> Groups:
        """From one text an item, "" for none; with `split`, a text names several groups (`SEPARATORS`)."""
        of_item = [_names(text) if split else [text] * bool(text) for text in told]
        names = tuple(sorted({name for own in of_item for name in own}))
        place = {name: code for code, name in enumerate(names)}
        codes = np.full((len(told), max((len(own) for own in of_item), default=1) or 1), NO_GROUP, dtype=np.int32)
        for row, own in enumerate(of_item):
            codes[row, : len(own)] = [place[name] for name in own]
        return cls(names, codes)

    def inside(self, rows: Rows, names: frozenset[str]) -> NDArray[np.bool_]:
        """Whether each of the items is in one of these groups, shape ``(n,)``; a name that no item has selects none."""
        wanted = [code for code, name in enumerate(self.names) if name in names]
        return np.asarray(np.isin(self.codes[rows], wanted).any(axis=1))


def _names(text: str) -> list[str]:
    return list(dict.fromkeys(name for part in SEPARATORS.split(text) if (name := part.strip())))


@dataclass(frozen=True, slots=True)
class ItemFacts:
    """What stages read of the catalogue's items: all of it public.

    Parameters
    ----------
    vectors : array of float32, shape (I, H)
        Of norm 1.
    popularity : array of float32, shape (I,)
        Centred log popularity as the released prior has it; its scale does not matter.
    added : array of float64, shape (I,), optional
        When each item came into the catalogue, in seconds; NaN where unknown.
    groups : mapping of str to Groups
        By kind, e.g. ``brand`` and ``category``.

    Raises
    ------
    RankingError
        If they are not all of as many items.
    """

    vectors: NDArray[np.float32]
    popularity: Vector
    added: NDArray[np.float64] | None = None
    groups: Mapping[str, Groups] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = {len(self.vectors), len(self.popularity), *(len(one.codes) for one in self.groups.values())}
        if self.added is not None:
            sizes.add(len(self.added))
        if len(sizes) != 1:
            raise RankingError(f"Expected facts of the same items throughout, got items={sorted(sizes)}.")

    def __len__(self) -> int:
        return len(self.popularity)

    def kind(self, name: str) -> Groups:
        """The groups of a kind.

        Raises
        ------
        ConfigError
            If nothing is known of that kind.
        """
        if name not in self.groups:
            raise ConfigError(f"Expected a kind of group out of {', '.join(sorted(self.groups)) or 'none'}.")
        return self.groups[name]


class Stage(Protocol):
    """One step from candidates to candidates."""

    def __call__(self, candidates: Candidates, facts: ItemFacts) -> Candidates:
        """The candidates as this stage would have them."""
        ...


# --- scores ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LongTailBoost:
    """Takes a part of popularity out of the scores.

    ``s_i - strength sd(s) (p_i - mean(p)) / sd(p)`` with scores s and log popularity p of this user's candidates: both
    are standardised, so that one strength means the same for every user and every release, however its prior scales
    popularity. Nothing changes where all candidates are as popular, or all have one score.

    Methods of two classes (xQuAD over head and tail) need the border between them, of which a noisy release tells
    little, and fill places with the same few items beyond it; this one reads nothing but the order and the spacing of
    popularity.

    Parameters
    ----------
    strength : float
        0 changes nothing; at 1 popularity weighs, against the item, as much as relevance does for it.

    References
    ----------
    H. Abdollahpouri, R. Burke and B. Mobasher, "Managing popularity bias in recommender systems with personalized
    re-ranking", FLAIRS 2019 (a trade-off of relevance and long tail over the candidates, theirs with two classes).
    """

    strength: float

    def __post_init__(self) -> None:
        _expect(self.strength >= 0, "strength of at least 0", self.strength)

    def __call__(self, candidates: Candidates, facts: ItemFacts) -> Candidates:
        """By falling compensated score."""
        if not self.strength or not len(candidates):
            return candidates
        popularity = facts.popularity[candidates.rows].astype(np.float64)
        spread = float(popularity.std())
        if spread == 0:
            return candidates
        return _raised(candidates, self.strength * (popularity.mean() - popularity) / spread)


@dataclass(frozen=True, slots=True)
class Freshen:
    """Adds to the scores of new items: ``s_i + strength sd(s) 2^(-age_i / half_life)``.

    Parameters
    ----------
    half_life : float
        Seconds after which half of the bonus is left.
    strength : float
        Bonus of an item that is new at this moment, in standard deviations of the candidates' scores; 0 changes
        nothing. Items whose age is unknown have no bonus; those that are yet to come have all of it.
    now : float
        Seconds, on the clock of `ItemFacts.added`.
    """

    half_life: float
    strength: float
    now: float

    def __post_init__(self) -> None:
        _expect(self.half_life > 0, "half_life above 0", self.half_life)
        _expect(self.strength >= 0, "strength of at least 0", self.strength)
        _expect(True, "now", self.now)

    def __call__(self, candidates: Candidates, facts: ItemFacts) -> Candidates:
        """By falling raised score; a `ConfigError` if no times are known."""
        if not self.strength or not len(candidates):
            return candidates
        if facts.added is None:
            raise ConfigError("Expected times at which items were added, for freshness.")
        age = np.maximum(self.now - facts.added[candidates.rows], 0.0)
        return _raised(candidates, self.strength * np.nan_to_num(np.exp2(-age / self.half_life)))


def _raised(candidates: Candidates, bonus: NDArray[np.float64]) -> Candidates:
    """Scores plus a bonus in units of their standard deviation.

    Places come after scores: a pinned item has no score to add to.
    """
    scores = candidates.scores.astype(np.float64)
    if not np.isfinite(scores).all():
        raise RankingError("Expected finite scores: stages of scores come before those of places.")
    return candidates.rescored(scores + float(scores.std()) * bonus)


# --- places ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Diversify:
    """Maximal marginal relevance: fills the first places one by one, each unlike what stands already.

    Each place takes ``argmax_i  t r_i - (1 - t) max_{j chosen} cos(e_i, e_j)``, with r the scores brought to [0, 1]
    over the candidates. One pass over the candidates for each place: O(depth N H). Scores stay what they were, so that
    they need not fall any more.

    Parameters
    ----------
    trade_off : float
        t, of [0, 1]; 1 changes nothing.
    depth : int
        Places that are filled so; what is left follows in the order given.

    References
    ----------
    J. Carbonell and J. Goldstein, "The use of MMR, diversity-based reranking for reordering documents and producing
    summaries", SIGIR 1998.
    """

    trade_off: float
    depth: int = 10

    def __post_init__(self) -> None:
        _expect(0 <= self.trade_off <= 1, "trade_off of [0, 1]", self.trade_off)
        _expect(self.depth >= 1, "depth of at least 1", self.depth)

    def __call__(self, candidates: Candidates, facts: ItemFacts) -> Candidates:
        """The chosen ones, then the others."""
        if self.trade_off == 1 or len(candidates) < 2:
            return candidates
        relevance = _to_unit(candidates.scores) * np.float32(self.trade_off)  # (N,)
        vectors = facts.vectors[candidates.rows]  # (N, H)
        nearest = np.full(len(candidates), -1, dtype=np.float32)  # largest cosine with what is chosen
        left, chosen = np.ones(len(candidates), dtype=bool), np.empty(min(self.depth, len(candidates)), dtype=np.int64)
        for place in range(len(chosen)):
            worth = relevance - np.float32(1 - self.trade_off) * nearest
            chosen[place] = best = int(np.argmax(np.where(left, worth, -np.inf)))  # of equals the first
            left[best] = False
            np.maximum(nearest, vectors @ vectors[best], out=nearest)
        return candidates.take(np.concatenate([chosen, np.flatnonzero(left)]))


def _to_unit(scores: Vector) -> Vector:
    if not np.isfinite(scores).all():
        raise RankingError("Expected finite scores: diversity comes before pinned places.")
    low, high = float(scores.min()), float(scores.max())
    return np.asarray((scores - low) / max(high - low, 1e-12), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Exclude:
    """Takes items away: by row, or whole groups.

    Parameters
    ----------
    rows : tuple of int
        Catalogue rows.
    groups : tuple of (str, str)
        Kind and name: ``("category", "Horror")``. An item of several groups goes with any of them.
    """

    rows: tuple[int, ...] = ()
    groups: tuple[tuple[str, str], ...] = ()

    def gone(self, rows: Rows, facts: ItemFacts) -> NDArray[np.bool_]:
        """Whether each of the items is excluded, shape ``(n,)``; a `ConfigError` for an unknown kind of group."""
        gone = np.asarray(np.isin(rows, np.array(self.rows, dtype=np.int64)))
        for kind in {kind for kind, _ in self.groups}:
            gone |= facts.kind(kind).inside(rows, frozenset(name for of, name in self.groups if of == kind))
        return gone

    def __call__(self, candidates: Candidates, facts: ItemFacts) -> Candidates:
        """Those that are left, in the order given."""
        if not self.rows and not self.groups:
            return candidates
        return candidates.take(~self.gone(candidates.rows, facts))


@dataclass(frozen=True, slots=True)
class Top:
    """The first k.

    Parameters
    ----------
    k : int
    """

    k: int

    def __post_init__(self) -> None:
        _expect(self.k >= 1, "k of at least 1", self.k)

    def __call__(self, candidates: Candidates, facts: ItemFacts) -> Candidates:
        """The first k of them, or all where there are fewer."""
        return candidates.take(slice(self.k))


def _expect(holds: bool, what: str, value: float) -> None:
    if not (holds and math.isfinite(value)):
        raise ConfigError(f"Expected {what}, got {value}.")
