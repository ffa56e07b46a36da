"""Canaries: invented users whose presence a coin decides, put among the real ones for an audit.

Gradient canaries are worst cases: their update is one coordinate, far longer than the clip norm. Canary users are made
of real items and of texts. Coins are independent and fair, as the one-run audits ask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from client.data.formats.columns import INTERACTION_COLUMNS
from shared.errors import ConfigError
from shared.schema import Catalogue

EXCESS = 100.0
"""Length of a gradient canary's update before it is clipped, in clip norms."""
REVIEWS = 6
"""Events of a canary user, each with a review."""
WORDS, SYLLABLES = 12, ("mo", "ra", "li", "tes", "ku", "ven", "do", "pha", "zi", "bru", "ner", "gol")
DAY = 86_400
BEGINNING = 1_600_000_000


@dataclass(frozen=True, slots=True)
class GradientCanaries:
    """m users of whom each adds one coordinate to the gradient, and one pair of items to the prior's sum.

    Attributes
    ----------
    names : tuple of str
        User ids.
    pairs : (m, 2) int64
        Rows of two items; no two canaries have both in common.
    coordinates : (m,) int64
        Of the flat gradient; no two are the same.
    inside : (m,) bool
        Who takes part.
    """

    names: tuple[str, ...]
    pairs: NDArray[np.int64]
    coordinates: NDArray[np.int64]
    inside: NDArray[np.bool_]

    @classmethod
    def draw(cls, m: int, catalogue: Catalogue, size: int, *, disjoint: bool, seed: int) -> GradientCanaries:
        """Draw m canaries for `size` parameters; fewer where the catalogue has not enough pairs.

        Parameters
        ----------
        disjoint : bool
            No two share an item, where the prior's sum has nothing that belongs to a pair alone.
        """
        rng, n = np.random.default_rng([seed, 1]), len(catalogue)
        m = min(m, size, n // 2 if disjoint else n * (n - 1) // 2)
        if m < 1:
            raise ConfigError(f"Expected a catalogue of at least 2 items for canaries, got {n}.")
        pairs = rng.permutation(n)[: 2 * m].reshape(m, 2) if disjoint else _distinct_pairs(m, n, rng)
        coordinates = rng.choice(size, m, replace=False)
        names = tuple(f"gradient-canary-{k:05d}" for k in range(m))
        return cls(names, pairs.astype(np.int64), coordinates.astype(np.int64), rng.random(m) < 0.5)

    def __len__(self) -> int:
        return len(self.names)

    def events(self, catalogue: Catalogue) -> pl.DataFrame:
        """The events of all of them: two items, and the first once more, so that a window is the pair."""
        rows = []
        for name, (first, second) in zip(self.names, self.pairs, strict=True):
            for age, item in enumerate((first, second, first)):
                rows.append((name, catalogue.item_ids[int(item)], BEGINNING + age * DAY, "view", None, ""))
        return _frame(rows)


@dataclass(frozen=True, slots=True)
class TextCanaries:
    """m users with items drawn at random and reviews of words that nobody else uses; `inside` (m,) take part."""

    names: tuple[str, ...]
    events: pl.DataFrame
    inside: NDArray[np.bool_]

    @classmethod
    def draw(cls, m: int, catalogue: Catalogue, *, seed: int) -> TextCanaries:
        """Draw m canary users."""
        rng = np.random.default_rng([seed, 2])
        names = tuple(f"text-canary-{k:05d}" for k in range(m))
        rows = []
        for name in names:
            items = rng.choice(len(catalogue), min(REVIEWS, len(catalogue)), replace=False)
            for age, item in enumerate(items):
                text = " ".join("".join(rng.choice(SYLLABLES, 3)) for _ in range(WORDS))
                rating = float(rng.integers(1, 6))
                rows.append((name, catalogue.item_ids[int(item)], BEGINNING + age * DAY, "review", rating, text))
        return cls(names, _frame(rows), rng.random(m) < 0.5)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, slots=True)
class Candidates:
    """Users of the data whose earlier events are trained on or not, and whose later events never are.

    Attributes
    ----------
    names : tuple of str
        User ids.
    earlier, later : polars.DataFrame
        Their events, with the ``partner`` that has them.
    inside : (m,) bool
        Whose earlier events are trained on.
    """

    names: tuple[str, ...]
    earlier: pl.DataFrame
    later: pl.DataFrame
    inside: NDArray[np.bool_]

    @classmethod
    def draw(cls, m: int, ordered: pl.DataFrame, *, least: int, share: float, seed: int) -> Candidates:
        """Draw at most m users of one partner each with at least `least` events; the last `share` of them are later.

        Parameters
        ----------
        ordered : polars.DataFrame
            Events in time order, with a ``partner`` column.
        """
        rng = np.random.default_rng([seed, 3])
        counted = ordered.group_by("user_id").agg(pl.len().alias("n"), pl.col("partner").n_unique().alias("at"))
        known = counted.filter((pl.col("n") >= least) & (pl.col("at") == 1)).get_column("user_id").sort().to_list()
        names = tuple(sorted(rng.choice(known, min(m, len(known)), replace=False).tolist())) if known else ()
        own = ordered.filter(pl.col("user_id").is_in(names))
        place = pl.int_range(pl.len()).over("user_id")
        kept = (pl.len().over("user_id") * (1 - share)).ceil()
        return cls(names, own.filter(place < kept), own.filter(place >= kept), rng.random(len(names)) < 0.5)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def taking_part(self) -> list[str]:
        """Who is trained on."""
        return [name for name, inside in zip(self.names, self.inside, strict=True) if inside]


def _distinct_pairs(m: int, n: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """m unordered pairs of n items, no two the same, in random order within each."""
    numbers = rng.choice(n * (n - 1) // 2, m, replace=False)
    high = np.floor((1 + np.sqrt(1 + 8.0 * numbers)) / 2).astype(np.int64)
    low = numbers - high * (high - 1) // 2
    pairs = np.stack([low, high], axis=1)
    swap = rng.random(m) < 0.5
    pairs[swap] = pairs[swap][:, ::-1]
    return pairs


def _frame(rows: Sequence[tuple[str, str, int, str, float | None, str]]) -> pl.DataFrame:
    kinds = (pl.String, pl.String, pl.Int64, pl.String, pl.Float64, pl.String)
    return pl.DataFrame(rows, schema=dict(zip(INTERACTION_COLUMNS, kinds, strict=True)), orient="row")


def at_partners(events: pl.DataFrame, names: tuple[str, ...], partners: int, each: int) -> pl.DataFrame:
    """The events with a ``partner`` column: every user is at `each` neighbouring partners."""
    first = {name: k % partners for k, name in enumerate(names)}
    homes = pl.col("user_id").replace_strict(first, return_dtype=pl.Int32)
    copies = [events.with_columns(partner=(homes + step) % partners) for step in range(min(each, partners))]
    return pl.concat(copies)
