"""Where a model is tested hardest: rare items, people with little history, and people with none who say what they want.

All segments belong to the normal split (`simulations.evaluation.hold_out`) and to its candidates: every item that the
user had not met by the time of the held-out one. Only what the scorer may read differs::

    long_tail    users whose held-out item is among the least popular 80 % of the catalogue; all of the history
    few_events   every user as if new: the last one to four events alone
    query_only   no history; one category of the held-out item, in words

Items without any training interaction are another experiment: see `simulations.cold`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from shared.schema import Catalogue, Histories
from simulations.evaluation import NO_TARGET, Evaluation, Scorer, evaluate, merge

ScorerOver = Callable[[int, Histories], Scorer]
"""(partner, histories) -> a scorer that reads these histories: those of the partner's users, or a part of them."""
QueryScores = Callable[[Sequence[str]], NDArray[np.float32]]
"""(texts) -> scores of the whole catalogue for each, shape (texts, items)."""

SEGMENTS = "segments"
"""Name of the field of ``run.json``."""
TAIL_SHARE = 0.8
FEW_EVENTS = 4
SAMPLED_USERS = 1000
"""At most so many users are ranked once more for `few_events` and for `query_only`: a seeded sample."""
SHARED_BY = 20
"""A query names a category only if so many items are of it: twice as many as a list has places."""
SEPARATORS = r"[|,;>]"
"""Between an item's categories, or the levels of one."""
TEMPLATE = "something in the category {}"


@dataclass(frozen=True, slots=True)
class Part:
    """A partner's users and their held-out items.

    Parameters
    ----------
    histories : Histories
    targets : array of int32, shape (users,)
        Catalogue rows; -1: the user is not evaluated.
    """

    histories: Histories
    targets: NDArray[np.int32]


def rank_all(scorer_over: ScorerOver, parts: Sequence[Part]) -> Evaluation:
    """`evaluate` at every partner; users of all partners count alike.

    A history ends at ``model.max_history`` events, as it does where a partner ranks: what is older is not known any
    more, neither to rank by nor to leave out.
    """
    return merge([evaluate(scorer_over(k, p.histories), p.histories, p.targets) for k, p in enumerate(parts)])


# --- long tail ------------------------------------------------------------------------------------


def tail_items(item_counts: NDArray[np.int64], share: float = TAIL_SHARE) -> NDArray[np.bool_]:
    """The least popular `share` of the catalogue by training interactions, shape ``(items,)``.

    Items that are as popular as the last of them belong to it too, so that the order of equals does not matter.
    """
    last = max(int(np.ceil(share * len(item_counts))) - 1, 0)
    return np.asarray(item_counts <= np.sort(item_counts)[last])


def with_target_in(evaluation: Evaluation, items: NDArray[np.bool_]) -> Evaluation:
    """The users of an evaluation whose held-out item is one of `items`, shape ``(items,)``; ranks stay as they are."""
    kept = items[evaluation.targets]
    return Evaluation(
        evaluation.users[kept],
        evaluation.targets[kept],
        evaluation.ranks[kept],
        evaluation.candidates[kept],
        evaluation.top[kept],
    )


# --- few events -----------------------------------------------------------------------------------


def few_events(scorer_over: ScorerOver, parts: Sequence[Part], *, seed: int) -> Evaluation | None:
    """Rank for a sample of users from their newest one to four events alone (each number for a quarter of them).

    The events before are hidden from the scorer, and stay no candidates: a cut-off event is not the answer. None
    where no user is evaluated.
    """
    found = []
    for k, users in sampled_users(parts, seed).items():
        part = parts[k]
        whole = selected(part.histories, users)
        newest = np.array([_digest(seed, whole.users[n]) % FEW_EVENTS + 1 for n in range(len(whole))], dtype=np.int64)
        short = selected(part.histories, users, newest=newest)
        found.append(evaluate(reading(scorer_over(k, short), short), whole, part.targets[users]))
    return merge(found) if found else None


def reading(scorer: Scorer, histories: Histories) -> Scorer:
    """`scorer`, reading these histories whatever ones it is given: what was met and what may be read differ."""
    return lambda _, users: scorer(histories, users)


def selected(histories: Histories, users: NDArray[np.int64], *, newest: NDArray[np.int64] | None = None) -> Histories:
    """Histories of some users, in the order given.

    Parameters
    ----------
    users : array of int64, shape (n,)
        Ascending, so that pseudonyms stay sorted.
    newest : array of int64, shape (n,), optional
        Events that are kept of each user, the newest ones. Default: all.

    Returns
    -------
    Histories
        Without the review texts that none of the kept events has.
    """
    lengths = histories.lengths[users] if newest is None else np.minimum(newest, histories.lengths[users])
    offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    ends = histories.offsets[users + 1]
    events = np.repeat(ends - lengths - offsets[:-1], lengths) + np.arange(offsets[-1])
    reviews = histories.reviews[events]
    used, rows = np.unique(reviews[reviews >= 0], return_inverse=True)
    kept = np.full(len(reviews), -1, dtype=np.int32)
    kept[reviews >= 0] = rows
    return replace(
        histories,
        users=tuple(histories.users[int(k)] for k in users),
        offsets=offsets,
        items=histories.items[events],
        timestamps=histories.timestamps[events],
        events=histories.events[events],
        ratings=histories.ratings[events],
        reviews=kept,
        review_texts=tuple(histories.review_texts[int(k)] for k in used),
    )


def sampled_users(parts: Sequence[Part], seed: int, most: int = SAMPLED_USERS) -> dict[int, NDArray[np.int64]]:
    """At most `most` of all evaluated users, by a seeded hash of the pseudonym.

    Returns
    -------
    dict of int to array of int64
        Ascending places of the chosen users, by partner; partners without one are left out.
    """
    keyed = [
        (_digest(seed, part.histories.users[int(user)]), k, int(user))
        for k, part in enumerate(parts)
        for user in np.flatnonzero(part.targets != NO_TARGET)
    ]
    chosen: dict[int, list[int]] = {}
    for _, k, user in sorted(keyed)[:most]:
        chosen.setdefault(k, []).append(user)
    return {k: np.array(sorted(users), dtype=np.int64) for k, users in sorted(chosen.items())}


# --- query only -----------------------------------------------------------------------------------


def query_of_items(catalogue: Catalogue) -> list[str]:
    """What somebody who wants this item might say: the rarest of its categories that `SHARED_BY` items share.

    One public word or name, so that a query fits many items and gives none away; "" where there is no such category.
    """
    names = [_names(text) for text in catalogue.categories]
    shared: dict[str, int] = {}
    for own in names:
        for name in own:
            shared[name] = shared.get(name, 0) + 1
    told = []
    for own in names:
        fitting = sorted((shared[name], name) for name in own if shared[name] >= SHARED_BY)
        told.append(TEMPLATE.format(fitting[0][1]) if fitting else "")
    return told


def query_only(scores_of: QueryScores, catalogue: Catalogue, parts: Sequence[Part], *, seed: int) -> Evaluation | None:
    """Rank for a sample of users from a query alone; None where no held-out item has a category to name."""
    asked = query_of_items(catalogue)
    texts = sorted(set(asked) - {""})
    if not texts:
        return None
    scores, place = scores_of(texts), {text: n for n, text in enumerate(texts)}  # (texts, items)
    rows = np.array([place.get(text, -1) for text in asked])  # of each item's query
    found = []
    for k, sample in sampled_users(parts, seed).items():
        part = parts[k]
        users = sample[rows[part.targets[sample]] >= 0]
        whole, targets = selected(part.histories, users), part.targets[users]
        found.append(evaluate(_Asked(scores, rows[targets]), whole, targets))
    return merge(found) if any(len(one) for one in found) else None


@dataclass(frozen=True, slots=True)
class _Asked:
    """Each user's scores are those of the user's query."""

    scores: NDArray[np.float32]  # (texts, items)
    rows: NDArray[np.int64]  # (users,)

    def __call__(self, histories: Histories, users: NDArray[np.int64]) -> NDArray[np.float32]:
        return self.scores[self.rows[users]]


def blind(item_counts: NDArray[np.int64]) -> QueryScores:
    """Popularity, whatever the words are."""
    return lambda texts: np.tile(item_counts.astype(np.float32), (len(texts), 1))


def category_popularity(catalogue: Catalogue, item_counts: NDArray[np.int64]) -> QueryScores:
    """What needs no model: the most popular items of the category that is asked for, then all others."""
    asked = [_names(text) for text in catalogue.categories]
    counts = item_counts.astype(np.float32)

    def scores_of(texts: Sequence[str]) -> NDArray[np.float32]:
        of = {TEMPLATE.format(name): name for own in asked for name in own}
        inside = np.array([[of[text] in own for own in asked] for text in texts])
        return np.asarray(counts + inside * (counts.max() + 1), dtype=np.float32)

    return scores_of


def _names(categories: str) -> frozenset[str]:
    return frozenset(name for part in re.split(SEPARATORS, categories) if (name := part.strip()))


# --- all of them ----------------------------------------------------------------------------------


def measure_segments(
    ranked: Mapping[str, Evaluation],
    scorers: Mapping[str, ScorerOver],
    queries: Mapping[str, QueryScores],
    catalogue: Catalogue,
    parts: Sequence[Part],
    item_counts: NDArray[np.int64],
    *,
    seed: int,
) -> dict[str, dict[str, dict[str, float]]]:
    """Metrics by segment, then by method; a segment without a user is left out: no evidence, no figure.

    Parameters
    ----------
    ranked : mapping of str to Evaluation
        Methods that are looked at on the long tail: it takes no ranking beyond that of the normal split.
    scorers : mapping of str to ScorerOver
        Methods that rank from few events.
    queries : mapping of str to QueryScores
        Methods that rank from a query.
    catalogue : Catalogue
    parts : sequence of Part
        One a partner.
    item_counts : array of int64, shape (items,)
        Training interactions of the whole federation.
    seed : int
        Of the samples.
    """
    tail = tail_items(item_counts)
    found: dict[str, dict[str, Evaluation | None]] = {
        "long_tail": {name: with_target_in(one, tail) for name, one in ranked.items()},
        "few_events": {name: few_events(one, parts, seed=seed) for name, one in scorers.items()},
        "query_only": {name: query_only(one, catalogue, parts, seed=seed) for name, one in queries.items()},
    }
    measured = {
        segment: {name: one.metrics(item_counts) for name, one in methods.items() if one is not None and len(one)}
        for segment, methods in found.items()
    }
    return {segment: methods for segment, methods in measured.items() if methods}


def _digest(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), key=str(seed).encode(), digest_size=8).digest(), "big")
